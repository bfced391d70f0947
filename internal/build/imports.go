package build

import (
	"context"
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ianlancetaylor/demangle"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/objfile"
	"hotpatch/internal/patchlink"
)

// What new code needs of libraries, the dynamic linker has to find in the process. Here it is looked
// for in the bases, in the libraries that they and the patch need, and in what those need.

// surroundings is what a process with the bases has, as far as this machine knows.
type surroundings struct {
	ctx   context.Context
	names map[string]bool // that are exported
	seen  map[string]bool // libraries, by name
	holes bool            // something is not known
	bases []*symbols
}

// link makes the patch library, which is at its place only if all that it needs can be found.
func (r *Request) link(ctx context.Context, inputs []patchlink.Input) (*patchlink.Report, error) {
	dir, err := os.MkdirTemp(filepath.Dir(r.Out), ".hotpatch-")
	if err != nil {
		return nil, &fault.Error{Kind: fault.Failed, Code: "patch-not-written", What: "cannot write the patch library", Where: r.Out, Err: err}
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, filepath.Base(r.Out))
	meta := r.Meta
	report, err := patchlink.Link(ctx, inputs, meta, out)
	if err != nil {
		return nil, err
	}
	missing, err := r.missing(ctx, out)
	if err != nil {
		return nil, err
	}
	if more := r.offering(ctx, inputs, missing); len(more) > 0 {
		meta.Libraries = append(slices.Clone(meta.Libraries), more...)
		if report, err = patchlink.Link(ctx, inputs, meta, out); err != nil {
			return nil, err
		}
		if missing, err = r.missing(ctx, out); err != nil {
			return nil, err
		}
		r.added = more
	}
	if len(missing) > 0 {
		return nil, unresolved(missing, inputs)
	}
	if err := os.Rename(out, r.Out); err != nil {
		return nil, &fault.Error{Kind: fault.Failed, Code: "patch-not-written", What: "cannot write the patch library", Where: r.Out, Err: err}
	}
	return report, nil
}

func unresolved(missing []string, inputs []patchlink.Input) *fault.Error {
	const most = 5
	var list []string
	for i, name := range missing {
		if i == most {
			list = append(list, fmt.Sprintf("%d more", len(missing)-most))
			break
		}
		list = append(list, demangle.Filter(name))
	}
	var where []string
	for _, in := range inputs {
		name := in.Diff.Post.Path
		if !slices.Contains(where, name) && slices.ContainsFunc(in.Diff.Post.Symbols, func(y *objfile.Symbol) bool { return !y.Defined() && slices.Contains(missing, y.Name) }) {
			where = append(where, name)
		}
	}
	return &fault.Error{Kind: fault.Unfit, Code: "unknown-import", What: "cannot tell what defines " + strings.Join(list, ", "), Where: strings.Join(where, ", "),
		Why:     "new code needs it, and none of the bases exports it, nor does a library that they need: the patch could not be loaded",
		Hint:    "name the library that has it with --library; what another file of the program has must be there already, or be a part of the change",
		Details: missing}
}

// missing gives what a patch needs and nothing that is known has, in order. If not all is known that
// a process with the bases has, there is none.
func (r *Request) missing(ctx context.Context, path string) ([]string, error) {
	patch, err := readSymbols(path)
	if err != nil || len(patch.needs) == 0 {
		return nil, err
	}
	s := &surroundings{ctx: ctx, names: make(map[string]bool), seen: make(map[string]bool)}
	whole := false // the process is known, with all that it has loaded
	for i := range r.Bases {
		whole = whole || r.Bases[i].Maybe
		b, err := readSymbols(r.Bases[i].Path)
		if err != nil {
			return nil, nil // it is refused elsewhere, if it matters
		}
		s.bases = append(s.bases, b)
		s.seen[filepath.Base(r.Bases[i].Path)], s.seen[b.soname] = true, true
		maps.Copy(s.names, b.exports)
	}
	for i, b := range s.bases {
		s.add(b, r.Bases[i].String())
	}
	for _, b := range s.bases {
		// A library may be of a program that is not known, and use what that has.
		s.holes = s.holes || !whole && !b.program && slices.ContainsFunc(b.needs, func(n string) bool { return !s.names[n] })
	}
	s.add(patch, path)
	if s.holes {
		return nil, nil
	}
	return slices.DeleteFunc(patch.needs, func(n string) bool { return s.names[n] }), nil
}

// add adds the libraries that a file needs, and what those need.
func (s *surroundings) add(im *symbols, path string) {
	for _, lib := range im.needed {
		if s.seen[lib] {
			continue
		}
		s.seen[lib] = true
		file := s.find(im, path, lib)
		next, err := readSymbols(file)
		if err != nil {
			s.holes = true
			continue
		}
		maps.Copy(s.names, next.exports)
		s.add(next, file)
	}
}

// find finds a library where the dynamic linker would, or else where the compiler does.
func (s *surroundings) find(im *symbols, path, lib string) string {
	if filepath.IsAbs(lib) {
		return lib
	}
	var dirs []string
	for _, d := range im.dirs {
		dirs = append(dirs, strings.NewReplacer("${ORIGIN}", filepath.Dir(path), "$ORIGIN", filepath.Dir(path)).Replace(d))
	}
	dirs = append(dirs, filepath.SplitList(os.Getenv("LD_LIBRARY_PATH"))...)
	for _, d := range append(dirs, "/usr/local/lib", "/usr/local/lib64") {
		if file := filepath.Join(d, lib); filepath.IsAbs(file) {
			if _, err := os.Stat(file); err == nil {
				return file
			}
		}
	}
	return libraryFile(s.ctx, lib)
}

// libraryFile asks the compiler where a file of a library is; "": it does not know.
func libraryFile(ctx context.Context, name string) string {
	for _, driver := range []string{"gcc", "cc", "clang"} {
		if _, err := exec.LookPath(driver); err != nil {
			continue
		}
		out, err := exec.CommandContext(ctx, driver, "-print-file-name="+name).Output()
		if p := strings.TrimSpace(string(out)); err == nil && filepath.IsAbs(p) {
			return p
		}
		break
	}
	for _, d := range []string{"/lib64", "/usr/lib64", "/lib", "/usr/lib"} {
		if _, err := os.Stat(filepath.Join(d, name)); err == nil {
			return filepath.Join(d, name)
		}
	}
	return ""
}

// offering gives those of the libraries that the build links the bases with which have something of
// what is missing.
func (r *Request) offering(ctx context.Context, inputs []patchlink.Input, missing []string) (list []string) {
	if len(missing) == 0 {
		return nil
	}
	left := slices.Clone(missing)
	for _, in := range inputs {
		b, ok := in.Base.(base)
		if !ok || b.number >= len(r.linked) {
			continue
		}
		for _, lib := range r.linked[b.number] {
			file := lib
			if !filepath.IsAbs(lib) {
				file = libraryFile(ctx, "lib"+lib+".so")
			}
			var names map[string]bool
			if im, err := readSymbols(file); err == nil {
				names = im.exports
			} else {
				names = scripted(file)
			}
			n := len(left)
			left = slices.DeleteFunc(left, func(name string) bool { return names[name] })
			if len(left) < n {
				list = append(list, lib)
			}
		}
	}
	return list
}

// scripted gives what the libraries export that a linker script names.
func scripted(path string) map[string]bool {
	const most = 1 << 16
	names := make(map[string]bool)
	st, err := os.Stat(path)
	if err != nil || st.Size() > most {
		return names
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return names
	}
	for _, word := range strings.Fields(string(text)) {
		if filepath.IsAbs(word) && strings.Contains(word, ".so") {
			if im, err := readSymbols(word); err == nil {
				maps.Copy(names, im.exports)
			}
		}
	}
	return names
}

// symbols is what an image is to the dynamic linker.
type symbols struct {
	exports map[string]bool
	needs   []string // symbols, weak ones left out
	needed  []string // libraries
	dirs    []string // in which those are looked for
	soname  string
	program bool
}

func readSymbols(path string) (*symbols, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	im, err := elfsym.NewImage(f, st.Size())
	if err != nil {
		return nil, err
	}
	s := &symbols{exports: make(map[string]bool), needed: im.Needed(), soname: im.Soname(), program: im.IsProgram()}
	err = im.Symbols(elfsym.Dynsym, func(y *elfsym.Sym) bool {
		switch {
		case y.Section != elf.SHN_UNDEF && y.Bind != elf.STB_LOCAL:
			s.exports[string(y.Name)] = true
		case y.Section == elf.SHN_UNDEF && y.Bind == elf.STB_GLOBAL && len(y.Name) > 0:
			s.needs = append(s.needs, string(y.Name))
		}
		return true
	})
	slices.Sort(s.needs)
	if e, err := elf.NewFile(f); err == nil {
		for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
			list, _ := e.DynString(tag) // none is no error here
			for _, l := range list {
				s.dirs = append(s.dirs, filepath.SplitList(l)...)
			}
		}
	}
	return s, err
}
