package objdiff

import (
	"debug/elf"
	"fmt"

	"hotpatch/internal/objfile"
	"hotpatch/trampoline"
)

// unnamedCode refuses code that belongs to no function, as inline assembler
// outside of functions makes it, if it is not the same in both builds.
func (d *differ) unnamedCode() {
	before, after := sectionsByName(d.pre), sectionsByName(d.post)
	for _, o := range []*objfile.Object{d.pre, d.post} {
		for _, s := range o.Sections {
			if !isCode(s) || s.Data == nil {
				continue
			}
			at, found := uncovered(s)
			if !found {
				continue
			}
			p, q := before[s.Name], after[s.Name]
			if len(p) == 1 && len(q) == 1 && p[0].Data != nil && q[0].Data != nil && d.sameBytes(place{p[0], 0, p[0].Size}, place{q[0], 0, q[0].Size}, true) {
				continue
			}
			d.refuseAt("unnamed-code", s.Name, "", 0, "", fmt.Sprintf("there is code at 0x%x that belongs to no function, and it is not the same in both builds", at),
				"give code in assembler the type @function and a size (.type, .size)")
			return
		}
	}
}

// uncovered finds code that no function symbol covers and that is no padding.
func uncovered(s *objfile.Section) (at uint64, found bool) {
	end := uint64(0)
	gap := func(to uint64) bool {
		for end < to {
			switch n := trampoline.NopLen(s.Data[end:to]); {
			case n > 0:
				end += uint64(n)
			case s.Data[end] == 0: // between functions that are aligned by hand
				end++
			default:
				return true
			}
		}
		return false
	}
	for _, y := range s.Symbols {
		if !y.IsFunc() || y.Size == 0 {
			continue
		}
		if gap(y.Value) {
			return end, true
		}
		end = max(end, y.Value+y.Size)
	}
	return end, gap(s.Size)
}

func sectionsByName(o *objfile.Object) map[string][]*objfile.Section {
	m := make(map[string][]*objfile.Section)
	for _, s := range o.Sections {
		if s.Flags&elf.SHF_ALLOC != 0 {
			m[s.Name] = append(m[s.Name], s)
		}
	}
	return m
}

// sets refuses changes in sections that programs go through from end to end, as
// they do with the symbols __start_NAME and __stop_NAME that linkers make for
// sections whose names are C identifiers (ld manual, "Input Section Example").
// What a patch brings is not between the ends that the program knows.
func (d *differ) sets() {
	before, after := sectionsByName(d.pre), sectionsByName(d.post)
	for _, name := range sortedKeys(after) {
		p, q := before[name], after[name]
		if !identifier(name) || isCode(q[0]) || name == "__patchable_function_entries" {
			continue
		}
		same := len(p) == len(q)
		for i := 0; same && i < len(q); i++ {
			same = d.sameBytes(place{p[i], 0, p[i].Size}, place{q[i], 0, q[i].Size}, true)
		}
		if !same {
			d.refuseAt("changed-constructor", name, "", 0, AllowConstructor,
				"the section "+name+" is a list that the program goes through, and differs; it will not find what the patch has in it",
				"set up in a hook before apply what the new entries would do")
		}
	}
}

// identifier reports whether a section's name is a C identifier.
func identifier(name string) bool {
	for i, c := range []byte(name) {
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}
