package runpre

import (
	"bytes"
	"fmt"

	"hotpatch/internal/objfile"
	"hotpatch/trampoline"
)

// key identifies something that an object defines or refers to: a place in a
// section, whatever its symbols are, or a symbol that is not defined there.
type key struct {
	sec *objfile.Section
	off uint64
	sym *objfile.Symbol
}

func keyOf(y *objfile.Symbol) key {
	if y.Section != nil {
		return key{sec: y.Section, off: y.Value}
	}
	return key{sym: y}
}

// sort says in which way a value stands for a key.
type sort int

const (
	atAddr   sort = iota // its address
	atPLT                // a PLT entry that leads to it
	atGOT                // a slot that holds its address
	tpOff                // its offset from the thread pointer
	dtpOff               // its offset within the module's thread-local variables
	tpSlot               // a slot that holds the former
	tlsPair              // two slots for __tls_get_addr
	tlsOwner             // the same for the module: the key is empty
)

type factKey struct {
	key
	sort sort
}

// fact is one thing that a comparison has solved.
type fact struct {
	factKey
	value uint64
}

// inner is a place within another function of the object.
type inner struct {
	key
	off uint64 // from the start of the function
	at  uint64 // address in the image
}

// position pairs places of an instruction.
type position struct{ pre, run uint64 } // offset in the function, address

// solution is what a comparison has found: the code at addr is that of the
// function, if all of the facts hold.
type solution struct {
	addr, end uint64
	facts     []fact
	inners    []inner
	pos       []position // ascending
	fixed     int        // bytes that were compared
	proofs    int        // names and contents that agreed
}

// function is a function, or part of one, of the object.
type function struct {
	syms   []*objfile.Symbol // the first one is the best
	sec    *objfile.Section
	lo, hi uint64
	insts  []objfile.Inst // without padding
	index  map[uint64]int // of the instruction at an offset of the section, or behind padding there
	err    error          // it cannot be decoded
	named  []uint64       // where symbol tables have it
	asked  map[uint64]bool
	cands  []*solution
	many   bool // too many candidates to keep
	absent bool // a complete symbol table does not have it
	miss   error
	missAt uint64
	placed *solution
}

func (f *function) key() key { return key{sec: f.sec, off: f.lo} }

func (f *function) decode() {
	list, err := f.sec.Decode(f.lo, f.hi)
	if err != nil {
		f.err = err
		return
	}
	f.index = make(map[uint64]int, len(list)+1)
	for _, in := range list {
		f.index[in.Addr] = len(f.insts)
		if len(in.Refs) > 0 || !isPadding(in.Bytes) {
			f.insts = append(f.insts, in)
		}
	}
	f.index[f.hi] = len(f.insts)
}

// comparison compares one function with the code at one address.
type comparison struct {
	m   *matcher
	f   *function
	s   *solution
	run map[uint64]int // index of the instruction at an address, or behind padding there
	// jumps are pairs of an instruction of the function, and where in the image
	// it must be.
	jumps []jump
}

type jump struct {
	index int
	at    uint64
}

// mismatch is the first instruction that differs. Most are never shown.
type mismatch struct {
	f   *function
	i   int
	run trampoline.Inst
	err error
}

func (e *mismatch) Error() string {
	p := &e.f.insts[e.i]
	return fmt.Sprintf("instruction %d at %s+%#x (%s), in the image at %#x (%s): %v", e.i+1, e.f.syms[0].Name, p.Addr-e.f.lo, p.Inst, e.run.Addr, e.run, e.err)
}

// compare compares; the error says where and how the code differs.
func (m *matcher) compare(f *function, addr uint64) (*solution, error) {
	if f.err != nil {
		return nil, f.err
	}
	c := &comparison{m: m, f: f, s: &solution{addr: addr}, run: make(map[uint64]int)}
	at := addr
	for i := 0; i < len(f.insts); {
		var r trampoline.Inst
		for {
			var err error
			if r, err = trampoline.Decode(m.im.at(at), at); err != nil || !m.im.executable(at) {
				return nil, fmt.Errorf("the image has no code at %#x", at)
			}
			c.run[at] = i
			if !isPadding(r.Bytes) {
				break
			}
			at = r.Next()
			if at-addr > 2*(f.hi-f.lo)+64 {
				return nil, fmt.Errorf("the image has padding at %#x", at)
			}
		}
		p := &f.insts[i]
		c.s.pos = append(c.s.pos, position{p.Addr - f.lo, at})
		n, size, err := c.threadLocalCall(i, at)
		if err == nil && n == 0 {
			n, size, err = 1, uint64(r.Len), c.step(p, &r)
		}
		if err != nil {
			return nil, &mismatch{f, i, r, err}
		}
		i += n
		at += size
	}
	c.s.end = at
	c.run[at] = len(f.insts)
	for n := 0; n < 16; n++ { // a jump can lead behind padding at the end only if nothing is there
		b := m.im.at(at)
		if k := trampoline.NopLen(b); k > 0 && b[0] != 0xcc {
			at += uint64(k)
			c.run[at] = len(f.insts)
			continue
		}
		break
	}
	for _, j := range c.jumps {
		if i, ok := c.run[j.at]; !ok || i != j.index {
			return nil, fmt.Errorf("a jump or a table leads to %#x, which is not instruction %d", j.at, j.index+1)
		}
	}
	return c.s, nil
}

// errBytes is the plain difference.
var errBytes = fmt.Errorf("they differ")

// step compares two instructions.
func (c *comparison) step(p *objfile.Inst, r *trampoline.Inst) error {
	if len(p.Refs) == 0 {
		switch {
		case p.HasTarget:
			return c.branch(p, r)
		case p.RIPRel && r.RIPRel && p.Len == r.Len && p.Len > 4 && bytes.Equal(p.Bytes[:p.Len-4], r.Bytes[:p.Len-4]):
			// The address of a label, as for a computed goto.
			i, ok := c.f.index[p.RIPTarget]
			if !ok {
				return fmt.Errorf("it refers to its own section in an unknown way")
			}
			c.jumps = append(c.jumps, jump{i, r.RIPTarget})
			c.s.fixed += p.Len - 4
			return nil
		case p.RIPRel:
			return fmt.Errorf("it refers to its own section in an unknown way")
		case !bytes.Equal(p.Bytes, r.Bytes):
			return errBytes
		}
		c.s.fixed += r.Len
		return nil
	}
	if r.HasTarget && p.HasTarget && len(p.Refs) == 1 {
		if p.Flow != r.Flow || p.Op != r.Op {
			return errBytes
		}
		return c.address(p.Refs[0], r.Target)
	}
	if p.Len == r.Len {
		if same, n := equalOutside(p, r.Bytes); same {
			c.s.fixed += n
			for _, x := range p.Refs {
				if err := c.field(p, x, r); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if len(p.Refs) == 1 {
		return c.relaxed(p, r)
	}
	return errBytes
}

// branch compares two jumps within the section, which the assembler has solved.
func (c *comparison) branch(p *objfile.Inst, r *trampoline.Inst) error {
	if !r.HasTarget || p.Flow != r.Flow || p.Op != r.Op {
		return errBytes
	}
	if i, ok := c.f.index[p.Target]; ok {
		c.jumps = append(c.jumps, jump{i, r.Target})
		c.s.fixed++
		return nil
	}
	y := c.f.sec.At(int64(p.Target))
	if y == nil {
		return fmt.Errorf("it leads to something without a name")
	}
	return c.address(objfile.Ref{Sym: y, Off: int64(p.Target - y.Value)}, r.Target)
}

// equalOutside compares the bytes that relocations leave alone, and counts them.
func equalOutside(p *objfile.Inst, run []byte) (bool, int) {
	at, n := 0, 0
	for _, x := range p.Refs {
		off := int(x.Reloc.Off - p.Addr)
		if off < at || !bytes.Equal(p.Bytes[at:off], run[at:off]) {
			return false, 0
		}
		n += off - at
		at = off + x.Reloc.Width()
	}
	return bytes.Equal(p.Bytes[at:], run[at:]), n + len(run) - at
}
