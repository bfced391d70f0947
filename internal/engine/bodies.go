package engine

import (
	"debug/elf"
	"fmt"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/patchfile"
	"hotpatch/internal/quiesce"
	"hotpatch/trampoline"
)

// Consistency says at which instants a patch may go in.
type Consistency string

// The consistencies.
const (
	// Stack: no thread is inside, or will return into, any function that is
	// replaced.
	Stack Consistency = "stack"
	// AtEntry: no thread is inside the first 14 bytes of a replaced function, or
	// will return into bytes that are overwritten.
	AtEntry Consistency = "entry"
)

// consistency settles what the user asks for and what the patch demands. Fault
// "consistency" if these contradict each other.
func (pl *planner) consistency() error {
	demand := Consistency(pl.p.Patch.Consistency)
	switch {
	case pl.o.Consistency == "" && demand != Consistency(patchfile.AnyConsistency):
		pl.p.Consistency = demand
	case pl.o.Consistency == "":
		pl.p.Consistency = Stack
	case demand != Consistency(patchfile.AnyConsistency) && demand != pl.o.Consistency:
		pl.refuse(&fault.Error{Code: "consistency", What: fmt.Sprintf("cannot apply %q", pl.p.Name),
			Why:  fmt.Sprintf("it demands --consistency %s, and --consistency %s was given", demand, pl.o.Consistency),
			Hint: "leave the flag out"})
	default:
		pl.p.Consistency = pl.o.Consistency
	}
	return nil
}

// findBodies collects, for each function that is replaced, the code that nobody
// may be in: its own, its parts elsewhere, and that of the patches that have
// replaced it before.
func (pl *planner) findBodies() error {
	if pl.p.Consistency != Stack {
		return nil
	}
	stack := pl.t.ledger.Stacks()
	for _, r := range pl.p.Replacements {
		sym := elfsym.Symbol{Name: r.Names[0], Module: r.Module, Addr: r.Old, Size: r.Size, Type: elf.STT_FUNC}
		ranges, err := pl.t.body(sym, r.Name())
		if err != nil {
			return err
		}
		r.Bodies = append(r.Bodies, ranges...)
		for _, p := range stack(r.Old) {
			for _, k := range p.Replaced {
				if k.Old != r.Old {
					continue
				}
				m := pl.t.space.ModuleAt(k.New)
				if m == nil {
					continue // its library is gone, and nobody can be in it
				}
				sym := elfsym.Symbol{Name: k.Function, Module: m, Addr: k.New, Type: elf.STT_FUNC}
				if f, off, ok := pl.t.space.FuncAt(k.New); ok && off == 0 {
					sym = f
				}
				ranges, err := pl.t.body(sym, r.Name()+" of "+patchLabel(p.Name, p.Version))
				if err != nil {
					return err
				}
				r.Bodies = append(r.Bodies, ranges...)
			}
		}
	}
	return nil
}

// body gives the ranges of a function's code.
func (t *target) body(sym elfsym.Symbol, name string) ([]quiesce.Range, error) {
	end, _, _, err := t.space.Extent(sym)
	if err != nil {
		return nil, err
	}
	ranges := []quiesce.Range{t.code(sym.Addr, end, name)}
	parts, err := t.space.Parts(sym)
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		end, _, _, err := t.space.Extent(p)
		if err != nil {
			return nil, err
		}
		// A part is entered by a jump, at its first byte or any other.
		ranges = append(ranges, t.code(p.Addr-1, end, name))
	}
	pieces, err := t.pieces(sym, end, name)
	if err != nil {
		return nil, err
	}
	ranges = append(ranges, pieces...)
	coroutine, err := t.space.Coroutine(sym)
	if err != nil {
		return nil, err
	}
	for _, c := range coroutine {
		end, _, _, err := t.space.Extent(c)
		if err != nil {
			return nil, err
		}
		// What the frame of a coroutine holds is the entry of one of these.
		ranges = append(ranges, t.code(c.Addr-1, end, name))
	}
	return ranges, nil
}

// code gives the range of a function or of a part of one. The pointers to whatever begins
// where it ends are many, on all stacks: they count as return addresses only if they can be.
func (t *target) code(start, end uint64, name string) quiesce.Range {
	last := make([]byte, 8)
	err := t.readOriginal(last, end-uint64(len(last)))
	return quiesce.Range{Start: start, End: end, Name: name, EndsInCall: err != nil || trampoline.CanReturnBehind(last)}
}

// pieces finds what belongs to a function of a stripped module without a symbol
// that says so: code that it, or another piece, jumps to, and that no symbol
// begins. That can also be a static function that it ends in a jump to; then
// more is kept quiet than need be.
func (t *target) pieces(sym elfsym.Symbol, end uint64, name string) ([]quiesce.Range, error) {
	if t.space.Named(sym.Module) {
		return nil, nil
	}
	const most = 64
	var out []quiesce.Range
	todo := []trampoline.Range{{Start: sym.Addr, End: end}}
	known := map[uint64]bool{sym.Addr: true}
	for len(todo) > 0 && len(out) < most {
		r := todo[0]
		todo = todo[1:]
		code := make([]byte, r.Len())
		if err := t.readOriginal(code, r.Start); err != nil {
			return nil, err
		}
		for pc := r.Start; pc < r.End; {
			in, err := trampoline.Decode(code[pc-r.Start:], pc)
			if err != nil {
				break // Judge has refused what it cannot decode; a piece may end in data
			}
			pc = in.Next()
			jumps := in.Flow == trampoline.Jump || in.Flow == trampoline.CondJump
			if !jumps || !in.HasTarget || in.Target >= sym.Addr && in.Target < end {
				continue
			}
			lo, hi, ok := t.space.Unnamed(in.Target)
			if !ok || known[lo] {
				continue
			}
			known[lo] = true
			out = append(out, t.code(lo-1, hi, name))
			todo = append(todo, trampoline.Range{Start: lo, End: hi})
		}
	}
	return out, nil
}
