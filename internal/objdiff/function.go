package objdiff

import (
	"bytes"
	"debug/elf"
	"fmt"
	"slices"
	"strings"

	"hotpatch/internal/objfile"
)

// difference is where two functions begin to differ.
type difference struct {
	why       string
	pre, post uint64 // offsets in the sections
	preIn     *objfile.Section
	postIn    *objfile.Section
}

// compareCode compares the code of two functions or parts; nil means the same.
// The exception tables that belong to it count as code.
func (d *differ) compareCode(a, b *objfile.Symbol) *difference {
	s, t := a.Section, b.Section
	diff := &difference{pre: a.Value, post: b.Value, preIn: s, postIn: t}
	if s.Data == nil || t.Data == nil {
		diff.why = "it has no code"
		return diff
	}
	is, err := s.Decode(a.Value, a.Value+a.Size)
	var js []objfile.Inst
	if err == nil {
		js, err = t.Decode(b.Value, b.Value+b.Size)
	}
	if err != nil {
		if d.sameUndecoded(a, b) {
			return d.compareTables(a, b, diff)
		}
		diff.why = "its bytes differ, and some instruction of it is not known"
		return diff
	}
	for i := 0; i < len(is) || i < len(js); i++ {
		switch {
		case i == len(is):
			diff.pre, diff.post = a.Value+a.Size, js[i].Addr
			diff.why = fmt.Sprintf("instruction %d: %s, was the end", i, show(js[i]))
			return diff
		case i == len(js):
			diff.pre, diff.post = is[i].Addr, b.Value+b.Size
			diff.why = fmt.Sprintf("instruction %d: the end, was %s", i, show(is[i]))
			return diff
		case !d.sameInst(a, is[i], b, js[i]):
			diff.pre, diff.post = is[i].Addr, js[i].Addr
			x, y := show(is[i]), show(js[i])
			if x == y {
				y += " (what it refers to has another content or place)"
			}
			diff.why = fmt.Sprintf("instruction %d: %s, was %s", i, y, x)
			return diff
		}
	}
	return d.compareTables(a, b, diff)
}

// sameInst compares one instruction of a with one of b.
func (d *differ) sameInst(a *objfile.Symbol, in objfile.Inst, b *objfile.Symbol, jn objfile.Inst) bool {
	if in.Len != jn.Len || len(in.Refs) != len(jn.Refs) {
		return false
	}
	// Assemblers resolve direct branches within a section. One that leaves the
	// function is a reference like others.
	if in.HasTarget && jn.HasTarget && len(in.Refs) == 0 {
		x, leaves := target(a, in)
		y, leaves2 := target(b, jn)
		if leaves || leaves2 {
			return leaves == leaves2 && in.Op == jn.Op && d.sameRef(x, y)
		}
	}
	if !bytes.Equal(masked(in), masked(jn)) {
		return false
	}
	for i := range in.Refs {
		p, q := in.Refs[i], jn.Refs[i]
		if p.Reloc.Off-in.Addr != q.Reloc.Off-jn.Addr || !d.sameRef(p, q) {
			return false
		}
	}
	return true
}

// target gives where a direct branch of a function goes, if it leaves the function.
func target(f *objfile.Symbol, in objfile.Inst) (objfile.Ref, bool) {
	if in.Target >= f.Value && in.Target < f.Value+f.Size {
		return objfile.Ref{}, false
	}
	if y := f.Section.At(int64(in.Target)); y != nil && y.IsFunc() {
		return objfile.Ref{Sym: y, Off: int64(in.Target - y.Value)}, true
	}
	return objfile.Ref{Sym: f, Off: int64(in.Target - f.Value)}, true
}

// masked gives the bytes of an instruction with zeros where relocations write.
func masked(in objfile.Inst) []byte {
	if len(in.Refs) == 0 {
		return in.Bytes
	}
	b := bytes.Clone(in.Bytes)
	for _, r := range in.Refs {
		at := r.Reloc.Off - in.Addr
		clear(b[at : at+uint64(r.Reloc.Width())])
	}
	return b
}

// show gives an instruction for people, with what it refers to by name.
func show(in objfile.Inst) string {
	if len(in.Refs) == 0 {
		if in.HasTarget {
			return fmt.Sprintf("%s +0x%x", in.Op, in.Target)
		}
		return in.String()
	}
	var to []string
	for _, r := range in.Refs {
		name := r.Sym.String()
		if r.Off != 0 {
			name += fmt.Sprintf("%+d", r.Off)
		}
		to = append(to, name)
	}
	if in.HasTarget {
		return in.Op + " " + strings.Join(to, " ")
	}
	return fmt.Sprintf("%s [%s]", in, strings.Join(to, ", "))
}

// sameUndecoded compares functions of which some instruction is not known. Equal
// bytes are equal instructions; but what a relocation to a section means depends
// on them, so those sections must be the same as a whole.
func (d *differ) sameUndecoded(a, b *objfile.Symbol) bool {
	if a.Size != b.Size {
		return false
	}
	s, t := a.Section, b.Section
	pr, qr := s.Within(a.Value, a.Value+a.Size), t.Within(b.Value, b.Value+b.Size)
	if len(pr) != len(qr) {
		return false
	}
	x, y := bytes.Clone(s.Data[a.Value:a.Value+a.Size]), bytes.Clone(t.Data[b.Value:b.Value+b.Size])
	for i, p := range pr {
		q := qr[i]
		off := p.Off - a.Value
		if q.Off-b.Value != off || p.Type != q.Type || p.Addend != q.Addend || off+uint64(p.Width()) > a.Size {
			return false
		}
		clear(x[off : off+uint64(p.Width())])
		clear(y[off : off+uint64(p.Width())])
		switch {
		case p.Sym.Type == elf.STT_SECTION || q.Sym.Type == elf.STT_SECTION || byContent(p.Sym) || byContent(q.Sym):
			if !d.sameWholeSection(p.Sym, q.Sym) {
				return false
			}
		case d.twin[q.Sym] != p.Sym:
			return false
		}
	}
	return bytes.Equal(x, y)
}

// sameWholeSection reports whether two symbols stand at the same place of
// sections that are the same in everything, names of symbols included.
func (d *differ) sameWholeSection(a, b *objfile.Symbol) bool {
	s, t := a.Section, b.Section
	if s == nil || t == nil || a.Type != b.Type || a.Value != b.Value || s.Name != t.Name || s.Size != t.Size || len(s.Symbols) != len(t.Symbols) {
		return false
	}
	for i, y := range s.Symbols {
		z := t.Symbols[i]
		if y.Value != z.Value || y.Size != z.Size || !byContent(y) && d.twin[z] != y {
			return false
		}
	}
	return isCode(s) || d.sameBytes(place{s, 0, s.Size}, place{t, 0, t.Size}, false)
}

// compareTables compares the exception tables of two functions whose code is the
// same: what is caught is in there alone.
func (d *differ) compareTables(a, b *objfile.Symbol, diff *difference) *difference {
	p, ok := d.lsda(d.pre, a)
	q, ok2 := d.lsda(d.post, b)
	if ok != ok2 || ok && !d.sameTable(p, q) {
		diff.why = "what it catches or cleans up after an exception"
		return diff
	}
	return nil
}

// sameTable compares two tables of .gcc_except_table. Behind one of them there
// can be padding up to the next one.
func (d *differ) sameTable(p, q place) bool {
	n := min(p.hi-p.lo, q.hi-q.lo)
	for _, x := range []place{p, q} {
		if x.hi-x.lo-n >= x.s.Align && x.hi-x.lo != n {
			return false
		}
		for _, b := range x.s.Data[x.lo+n : x.hi] {
			if b != 0 {
				return false
			}
		}
	}
	p.hi, q.hi = p.lo+n, q.lo+n
	return d.sameBytes(p, q, true)
}

// lsda gives the exception table of a function: from where its frame says up to
// the next one in the section.
func (d *differ) lsda(o *objfile.Object, y *objfile.Symbol) (place, bool) {
	f := d.frame(o, y)
	if f == nil || f.LSDA == nil || f.LSDA.Data == nil {
		return place{}, false
	}
	p := place{f.LSDA, f.LSDAOff, f.LSDA.Size}
	starts := d.tables[f.LSDA]
	if starts == nil {
		for _, g := range o.Frames {
			if g.LSDA == f.LSDA {
				starts = append(starts, g.LSDAOff)
			}
		}
		slices.Sort(starts)
		d.tables[f.LSDA] = starts
	}
	if i, _ := slices.BinarySearch(starts, p.lo+1); i < len(starts) {
		p.hi = starts[i]
	}
	return p, true
}

// frame gives the frame that begins where y does, or nil.
func (d *differ) frame(o *objfile.Object, y *objfile.Symbol) *objfile.Frame {
	index := d.frames[o]
	if index == nil {
		index = make(map[codePlace]*objfile.Frame)
		for _, f := range o.Frames {
			index[codePlace{f.Code, f.CodeOff}] = f
		}
		d.frames[o] = index
	}
	return index[codePlace{y.Section, y.Value}]
}

type codePlace struct {
	s   *objfile.Section
	off uint64
}
