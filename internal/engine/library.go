package engine

import (
	"bytes"
	"debug/elf"
	"io"

	"hotpatch/elfsym"
	"hotpatch/internal/ledger"
	"hotpatch/internal/patchfile"
	"hotpatch/internal/procfs"
)

// alteredLibraries compares the code of the patch libraries in force with the
// files that they are mapped from, bound places included, and adds what differs.
// A file that cannot be opened (that needs the rights of root) is not compared.
func (t *target) alteredLibraries(s *ProcessState) {
	for i := range t.ledger.Patches {
		p := &t.ledger.Patches[i]
		if p.State != ledger.Active {
			continue
		}
		m := t.space.ModuleAt(p.Lo)
		if m == nil || !m.Ours || m.Lo != p.Lo {
			continue // its mappings are gone: then its functions' sites lead nowhere, which no site can tell
		}
		d, ok := t.alteredLibrary(m)
		if !ok {
			continue
		}
		d.Function, d.Mangled, d.Module = patchLabel(p.Name, p.Version), p.Name, m.Name
		if f, _, ok := t.space.FuncAt(uint64(d.Address)); ok {
			d.Function, d.Mangled = f.Demangled(), f.Name
		}
		s.Differences = append(s.Differences, d)
		for k := range s.Patches {
			if q := &s.Patches[k]; q.Library == Hex(p.Lo) && q.State != "inert" {
				q.State = "altered"
			}
		}
	}
}

// alteredLibrary gives the first bytes of a library's code that are not what they
// must be.
func (t *target) alteredLibrary(m *elfsym.Module) (Difference, bool) {
	data, err := t.mappedFile(m)
	if err != nil {
		return Difference{}, false
	}
	patch, err := patchfile.Parse(m.Name, data)
	if err != nil {
		return Difference{}, false // what was mapped is no file of ours
	}
	images := make(map[uint32]*elfsym.Module)
	for _, im := range patch.Images {
		if base, err := t.imageModule(im); err == nil {
			images[im.Number] = base
		}
	}
	// Where the base is gone, its places are those that they were.
	places, err := boundPlaces(patch, m.Bias, images)
	if err != nil {
		return Difference{}, false
	}
	for _, seg := range patch.Image.Segments() {
		if seg.Type != elf.PT_LOAD || seg.Flags&elf.PF_X == 0 || seg.Filesz == 0 {
			continue
		}
		want := bytes.Clone(data[seg.Off : seg.Off+seg.Filesz])
		at := m.Addr(seg.Vaddr)
		for _, p := range places {
			if p.addr >= at && p.addr-at < seg.Filesz {
				copy(want[p.addr-at:], p.bytes)
			}
		}
		have := make([]byte, len(want))
		if t.mem.ReadAt(have, at) != nil {
			return Difference{Address: Hex(at), Kind: "library", Want: want[:min(16, len(want))]}, true
		}
		for i := range want {
			if want[i] != have[i] {
				end := min(i+16, len(want))
				return Difference{Address: Hex(at + uint64(i)), Kind: "library", Want: want[i:end], Have: have[i:end]}, true
			}
		}
	}
	return Difference{}, false
}

// mappedFile reads the file that a module is mapped from.
func (t *target) mappedFile(m *elfsym.Module) ([]byte, error) {
	var first procfs.Map
	for _, x := range m.Maps {
		if x.Start == m.Lo {
			first = x
		}
	}
	f, err := t.proc.OpenMapped(first)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, patchfile.MaxSize))
}
