package objdiff

import (
	"debug/elf"
	"slices"

	"golang.org/x/arch/x86/x86asm"

	"hotpatch/internal/objfile"
	"hotpatch/trampoline"
)

// A constant that differs is shipped as a new one, and the old one stays where it is. Whoever
// has kept the address of the old one goes on with that: an object that points to its table of
// functions, a string that is compared by its address.

// keptConstants looks at what the code before the change does with the addresses of constants that
// differ. It refuses those that it stores, and tables of functions that it gives away; of others
// that it gives away it warns.
func (d *differ) keptConstants() {
	gone := make(map[string]*objfile.Symbol)
	for _, a := range d.out.Removed {
		if namedConstant(a) {
			gone[a.File+"\x00"+baseName(a.Name)] = a
		}
	}
	for _, b := range d.out.New {
		if !namedConstant(b) {
			continue
		}
		a := gone[b.File+"\x00"+baseName(b.Name)]
		if a == nil {
			continue
		}
		const why = "its content differs, and the code before the change "
		const hint = "give the new constant another name, and let new code or a hook before apply put its address where the old one's is kept"
		switch use, f := d.useOf(a); {
		case use == kept:
			d.refuse("kept-constant", b, AllowConstant, why+"stores its address ("+display(f.Name)+"): what the running program has stored leads to the old one", hint)
		case use == given && len(a.Section.Within(a.Value, a.Value+a.Size)) > 0:
			d.refuse("kept-constant", b, AllowConstant, why+"gives its address to others ("+display(f.Name)+"): if they keep it, it leads to the old one", hint)
		case use == given:
			d.warn("kept-constant", b, why+"gives its address to others ("+display(f.Name)+"): if they keep it, it leads to the old one", "")
		}
	}
}

// namedConstant reports whether a symbol is a constant of the source, and not the table of a
// computed goto, which is of no use outside of its function.
func namedConstant(y *objfile.Symbol) bool {
	return !y.IsFunc() && y.Section != nil && y.Bind == elf.STB_LOCAL && byContent(y) && sized(y) && !anonymous(y.Name) && !leadsInside(y)
}

// use is what code does with the address of something.
type use int

const (
	looked use = iota // it reads what is there
	given             // it gives the address to what it calls, or returns it
	kept              // it stores the address
)

// useOf gives the worst that functions before the change do with the address of a constant,
// and one that does it.
func (d *differ) useOf(y *objfile.Symbol) (worst use, by *objfile.Symbol) {
	for _, f := range d.pre.Symbols {
		if !f.IsFunc() || !isCode(f.Section) || f.Section.Data == nil {
			continue
		}
		if !slices.ContainsFunc(references(f), func(r objfile.Ref) bool { return r.Sym == y }) {
			continue
		}
		if u := useIn(f, y); u > worst {
			worst, by = u, f
		}
	}
	return worst, by
}

// useIn follows the address of y through the registers of one function, along all ways through
// it. An indirect jump may lead to any instruction.
func useIn(f, y *objfile.Symbol) (worst use) {
	insts, err := f.Section.Decode(f.Value, f.Value+f.Size)
	if err != nil {
		return kept // nothing is known
	}
	index := make(map[uint64]int, len(insts))
	for i, in := range insts {
		index[in.Addr] = i
	}
	state := make([]addresses, len(insts))
	seen := make([]bool, len(insts))
	todo := []int{0}
	reach := func(i int, a addresses) {
		if i < len(insts) && (!seen[i] || state[i].or(a) != state[i]) {
			seen[i] = true
			state[i] = state[i].or(a)
			todo = append(todo, i)
		}
	}
	for len(todo) > 0 {
		i := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		in := insts[i]
		u, holds := step(in, y, state[i])
		worst = max(worst, u)
		switch in.Flow {
		case trampoline.Jump, trampoline.CondJump:
			if k, ok := index[in.Target]; ok && len(in.Refs) == 0 {
				reach(k, holds)
			} else if holds.fresh&arguments != 0 && in.Flow == trampoline.Jump {
				worst = max(worst, given) // a call at the end
			}
		case trampoline.IndirectJump:
			if holds.fresh&arguments != 0 && !byTable(in) {
				worst = max(worst, given)
			}
			for k := range insts {
				reach(k, holds)
			}
		}
		if !in.Ends() {
			reach(i+1, holds)
		}
	}
	return worst
}

// byTable reports whether an indirect jump takes its target from a table, as switches do.
func byTable(in objfile.Inst) bool {
	x, err := x86asm.Decode(in.Bytes, 64)
	m, ok := x.Args[0].(x86asm.Mem)
	return err == nil && ok && m.Index != 0
}

// registers is a set of general registers, by their numbers.
type registers uint16

// addresses says which registers hold the address, and in which of them it has not been used
// yet to get at what is there: nobody knows how many arguments a function that is called has, but
// what was only needed to read from is hardly one.
type addresses struct{ all, fresh registers }

func (a addresses) or(b addresses) addresses  { return addresses{a.all | b.all, a.fresh | b.fresh} }
func (a addresses) and(r registers) addresses { return addresses{a.all & r, a.fresh & r} }

func bit(r x86asm.Reg) registers {
	switch {
	case x86asm.RAX <= r && r <= x86asm.R15:
		return 1 << (r - x86asm.RAX)
	case x86asm.EAX <= r && r <= x86asm.R15L:
		return 1 << (r - x86asm.EAX)
	}
	return 0
}

// The registers that arguments are in, and those that a called function leaves as they are
// (psABI 3.2.1, 3.2.3).
var (
	arguments = bit(x86asm.RDI) | bit(x86asm.RSI) | bit(x86asm.RDX) | bit(x86asm.RCX) | bit(x86asm.R8) | bit(x86asm.R9)
	preserved = bit(x86asm.RBX) | bit(x86asm.RBP) | bit(x86asm.R12) | bit(x86asm.R13) | bit(x86asm.R14) | bit(x86asm.R15)
)

// step says what one instruction does with the address of y, and which registers hold the
// address behind it.
func step(in objfile.Inst, y *objfile.Symbol, holds addresses) (use, addresses) {
	switch in.Flow {
	case trampoline.Call, trampoline.IndirectCall:
		if holds.fresh&arguments != 0 {
			return given, holds.and(preserved)
		}
		return looked, holds.and(preserved)
	case trampoline.Ret:
		if holds.fresh&bit(x86asm.RAX) != 0 {
			return given, addresses{}
		}
		return looked, addresses{}
	}
	x, err := x86asm.Decode(in.Bytes, 64)
	if err != nil { // as for AVX, of which no instruction makes or stores an address
		return looked, holds
	}
	dest, _ := x.Args[0].(x86asm.Reg)
	to, toMemory := x.Args[0].(x86asm.Mem)
	named, value := refers(in, x, y) // value: an operand is the address itself
	for i, a := range x.Args {
		switch a := a.(type) {
		case x86asm.Reg:
			value = value || (i > 0 || x.Args[1] == nil) && bit(a)&holds.all != 0
		case x86asm.Mem:
			if at := (bit(a.Base) | bit(a.Index)) & holds.all; x.Op == x86asm.LEA {
				value = value || at != 0 || named
			} else {
				holds.fresh &^= at
			}
		}
	}
	set := func(on bool) addresses {
		next := holds.and(^bit(dest))
		if on {
			next = next.or(addresses{bit(dest), bit(dest)})
		}
		return next
	}
	stack := to.Base == x86asm.RSP || to.Base == x86asm.RBP
	switch {
	case x.Op == x86asm.CMP || x.Op == x86asm.TEST:
		return looked, holds
	case value && (x.Op == x86asm.PUSH || toMemory && stack):
		return given, holds // an argument, or a structure for one
	case value && (toMemory || x86asm.X0 <= dest && dest <= x86asm.X15):
		return kept, holds // vectors are made of addresses in order to store two at once
	case x.Op == x86asm.XOR && x.Args[0] == x.Args[1]:
		return looked, set(false)
	case x.Op == x86asm.MOV, x.Op == x86asm.MOVZX, x.Op == x86asm.MOVSX, x.Op == x86asm.MOVSXD, x.Op == x86asm.LEA:
		return looked, set(value)
	case x.Op == x86asm.MUL, x.Op == x86asm.DIV, x.Op == x86asm.IDIV, x.Op == x86asm.IMUL && x.Args[1] == nil:
		return looked, holds.and(^(bit(x86asm.RAX) | bit(x86asm.RDX)))
	case x.Args[1] == nil:
		return looked, holds
	}
	// Arithmetic on an address gives an address; a conditional move may leave what was there.
	return looked, set(value || bit(dest)&holds.all != 0)
}

// refers reports whether an instruction refers to y, and whether the address is a value in it:
// an immediate operand, which stands at its end, or loaded from the global offset table.
func refers(in objfile.Inst, x x86asm.Inst, y *objfile.Symbol) (named, value bool) {
	for _, r := range in.Refs {
		if r.Sym != y {
			continue
		}
		named = true
		switch r.Reloc.Type {
		case elf.R_X86_64_GOTPCREL, elf.R_X86_64_GOTPCRELX, elf.R_X86_64_REX_GOTPCRELX:
			value = true
		default:
			_, last := lastArg(x).(x86asm.Imm)
			value = value || last && r.Reloc.Off+uint64(r.Reloc.Width()) == in.Next()
		}
	}
	return named, value
}

func lastArg(x x86asm.Inst) (last x86asm.Arg) {
	for _, a := range x.Args {
		if a != nil {
			last = a
		}
	}
	return last
}
