package objdiff

import (
	"debug/elf"
	"fmt"
	"slices"
	"strings"

	"hotpatch/internal/fault"
	"hotpatch/internal/objfile"
)

// acceptable refuses objects that cannot be compared.
func (d *differ) acceptable() error {
	var list fault.List
	for _, o := range []*objfile.Object{d.pre, d.post} {
		if e := unsuitable(o); e != nil {
			list = append(list, e)
		}
	}
	if len(list) > 0 {
		return list.ErrOrNil()
	}
	before, after := d.pre.Compiler, d.post.Compiler
	what := "compilers"
	if slices.Equal(before, after) {
		// Whether what is defined elsewhere is reached by the global offset table makes no
		// other difference.
		plain := func(list []string) (out []string) {
			for _, s := range list {
				out = append(out, strings.ReplaceAll(s, " "+Indirectly, ""))
			}
			return out
		}
		if before, after = plain(d.info(d.pre).producers), plain(d.info(d.post).producers); len(before) == 0 || len(after) == 0 {
			return nil
		}
		what = "compilers or options"
	}
	if slices.Equal(before, after) {
		return nil
	}
	return refuseObject("different-compiler", d.post, fmt.Sprintf("the %s differ: %q before, %q after", what, before, after),
		"compile both with the same compiler and the same options")
}

func refuseObject(code string, o *objfile.Object, why, hint string) *fault.Error {
	return &fault.Error{
		Kind: fault.Unfit, Code: code, What: "cannot compare the object file", Where: o.Path, Why: why, Hint: hint,
		Details: Finding{Code: code, File: o.Path, Why: why, Hint: hint},
	}
}

// unsuitable says why an object cannot be compared, or gives nil.
func unsuitable(o *objfile.Object) *fault.Error {
	var code uint64
	lto := ""
	for _, s := range o.Sections {
		if isCode(s) {
			code += s.Size
		}
		if strings.HasPrefix(s.Name, ".gnu.lto_") || strings.HasPrefix(s.Name, ".llvm.lto") {
			lto = s.Name
		}
	}
	if lto != "" && code == 0 {
		return refuseObject("lto-object", o, "it holds intermediate code for link-time optimisation ("+lto+") and no machine code",
			"compile both states with -fno-lto; whether the program fits is checked later")
	}
	if code > 0 && len(o.Compiler) == 0 {
		return refuseObject("assembler-object", o, "it holds code and no .comment section: it was made from assembler, and nothing tells what in it is a function",
			"write the patch library by hand; compile without -fno-ident")
	}
	for _, s := range o.Sections {
		if s.Flags&elf.SHF_ALLOC == 0 {
			continue
		}
		for _, r := range s.Relocs {
			if !r.Known() {
				return refuseObject("unknown-relocation", o, fmt.Sprintf("a relocation of type %s at 0x%x of %s", r.Type, r.Off, s.Name), "")
			}
		}
		if y := unsectioned(s); y != nil {
			return refuseObject("no-function-sections", o, fmt.Sprintf("%s is in %s together with all others", y.Name, s.Name),
				"compile with -ffunction-sections -fdata-sections")
		}
	}
	return nil
}

// unsectioned gives a function or variable in a section that has nothing of its
// own with -ffunction-sections and -fdata-sections.
func unsectioned(s *objfile.Section) *objfile.Symbol {
	switch s.Name {
	case ".text", ".data", ".bss", ".rodata", ".data.rel", ".data.rel.local", ".data.rel.ro", ".data.rel.ro.local", ".tdata", ".tbss":
	default:
		return nil
	}
	for _, y := range s.Symbols {
		if y.Type != elf.STT_NOTYPE && y.Size > 0 && !strings.HasPrefix(y.Name, ".L") {
			return y
		}
	}
	return nil
}
