package rebuild

import (
	"context"
	"debug/elf"
	"strings"

	"hotpatch/internal/intercept"
	"hotpatch/internal/objdiff"
	"hotpatch/internal/objfile"
)

// indirectOptions make code reach what other files define by way of the global offset table:
// gcc's from version 12 on, and clang's.
var indirectOptions = []string{objdiff.Indirectly, "-fno-direct-access-external-data"}

// indirect compiles a unit once more if its code after the change is the first of it to use
// data that another file or a library defines, and counts on the linker copying that into the
// program: no linker will. It gives the object, or "" if there is no need, or the compiler
// cannot do it.
func (b *rebuilder) indirect(ctx context.Context, c *intercept.Compile, u Unit) string {
	if !firstUse(u.Pre, u.Post) {
		return ""
	}
	object := strings.TrimSuffix(u.Post, ".o") + "-indirect.o"
	for _, option := range indirectOptions {
		cmd, _ := c.Replay(ctx, object, option)
		killed(cmd)
		if cmd.Run() == nil {
			return object
		}
	}
	return ""
}

// firstUse reports whether code of an object takes something to be near that is defined
// elsewhere and that another object does not know.
func firstUse(before, after string) bool {
	pre, err := objfile.Open(before)
	if err != nil {
		return false // comparing them says so
	}
	post, err := objfile.Open(after)
	if err != nil {
		return false
	}
	known := make(map[string]bool)
	for _, y := range pre.Symbols {
		known[y.Name] = true
	}
	for _, s := range post.Sections {
		if s.Flags&elf.SHF_ALLOC == 0 || s.Flags&elf.SHF_EXECINSTR == 0 {
			continue
		}
		for _, r := range s.Relocs {
			switch r.Type {
			case elf.R_X86_64_PC32, elf.R_X86_64_32, elf.R_X86_64_32S:
				if r.Sym.Where == elf.SHN_UNDEF && !known[r.Sym.Name] {
					return true
				}
			}
		}
	}
	return false
}
