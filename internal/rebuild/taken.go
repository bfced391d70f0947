package rebuild

import (
	"debug/elf"
	"slices"
	"strings"

	"hotpatch/internal/intercept"
)

// A linker takes of an archive only the members that something refers to, and with --gc-sections of
// no object more than that. What it has taken, the symbol table of what it made says.

// names gives the symbols that a linked file defines, or nil if that is not known: it is stripped.
func (l *linked) names() map[string]bool {
	if !l.read {
		l.read = true
		l.defined = definedIn(l.path)
	}
	return l.defined
}

func definedIn(path string) map[string]bool {
	f, err := elf.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	list, err := f.Symbols()
	if err != nil {
		return nil
	}
	names := make(map[string]bool)
	local := false
	for _, s := range list {
		if s.Section == elf.SHN_UNDEF || s.Name == "" {
			continue
		}
		name, _, _ := strings.Cut(s.Name, "@") // a version
		names[name] = true
		if typ := elf.ST_TYPE(s.Info); elf.ST_BIND(s.Info) == elf.STB_LOCAL && (typ == elf.STT_FUNC || typ == elf.STT_OBJECT) {
			local = true
		}
	}
	if !local {
		return nil // start files have some: those that are local were taken out, hidden ones among them
	}
	return names
}

// mark gives the global symbols of an object by which it is known where it was linked. None: it is
// not, since something in it is kept without being referred to, or all of it may be another's.
func mark(object string) (names []string) {
	f, err := elf.Open(object)
	if err != nil {
		return nil
	}
	defer f.Close()
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_ALLOC != 0 && s.Size > 0 && kept(s) {
			return nil
		}
	}
	list, _ := f.Symbols() // none is no error here
	for _, s := range list {
		if elf.ST_BIND(s.Info) == elf.STB_LOCAL || s.Section == elf.SHN_UNDEF || s.Name == "" {
			continue
		}
		if n := int(s.Section); n < len(f.Sections) && f.Sections[n].Flags&elf.SHF_GROUP != 0 {
			continue // another object may have brought it
		}
		names = append(names, s.Name)
	}
	return names
}

// lacks reports whether it is certain that nothing of an object is in a file that it was linked
// into, besides what other objects may have brought as well.
func (g *graph) lacks(out *linked, c *intercept.Compile) bool {
	in := out.names()
	if in == nil {
		return false
	}
	names, known := g.marks[c]
	if !known {
		names = mark(c.Object)
		g.marks[c] = names
	}
	return len(names) > 0 && !slices.ContainsFunc(names, func(n string) bool { return in[n] })
}

// kept reports whether linkers keep a section to which nothing refers: constructors, notes, and those
// to which __start_NAME refers.
func kept(s *elf.Section) bool {
	const retain = 0x200000 // SHF_GNU_RETAIN
	if s.Flags&retain != 0 || s.Type == elf.SHT_INIT_ARRAY || s.Type == elf.SHT_FINI_ARRAY || s.Type == elf.SHT_PREINIT_ARRAY {
		return true
	}
	name := s.Name
	for _, p := range []string{".init", ".fini", ".preinit", ".ctors", ".dtors"} {
		if name == p || strings.HasPrefix(name, p+".") || strings.HasPrefix(name, p+"_") {
			return true
		}
	}
	return name != "" && name[0] != '.' // a C identifier
}

// without gives those of the images that an object was linked into of which it is certain that
// nothing of it is in there.
func (g *graph) without(c *intercept.Compile) (list []int) {
	var has []int
	for _, out := range g.outputs {
		if !out.objects[c] || len(out.images) == 0 {
			continue
		}
		if g.lacks(out, c) {
			list = append(list, out.images...)
		} else {
			has = append(has, out.images...)
		}
	}
	list = slices.DeleteFunc(list, func(i int) bool { return slices.Contains(has, i) })
	slices.Sort(list)
	return slices.Compact(list)
}
