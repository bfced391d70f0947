package elfsym

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// around is all that is said of an address from the index, and of the function there if
// the index knows that.
func around(s *Space, m *Module, addr uint64, knows func(vaddr uint64) bool) string {
	var b strings.Builder
	f, off, ok := s.FuncAt(addr)
	fmt.Fprintln(&b, "function", f, f.File, off, ok)
	lo, hi, ok := s.Unnamed(addr)
	fmt.Fprintf(&b, "unnamed %#x %#x %v\n", lo, hi, ok)
	for _, sym := range []Symbol{f, {Name: "none", Module: m, Addr: addr}, {Name: "sized", Module: m, Addr: addr, Size: 3}} {
		if sym.Module == nil || !knows(m.Vaddr(sym.Addr)) {
			continue
		}
		end, next, prev, err := s.Extent(sym)
		fmt.Fprintf(&b, "extent %#x %#x %#x %v\n", end, next, prev, err)
		aliases, err := s.Aliases(sym)
		fmt.Fprintln(&b, "aliases", aliases, err)
	}
	return b.String()
}

// TestCodeWindows: where the index of a window says that it knows an address, it answers
// as the index of the whole module does.
func TestCodeWindows(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"asm.s": `
	.text
	.globl wide
	.type wide, @function
wide:	nop			# reaches over the others
inner:	nop
	.skip 300
	.type small, @function
small:	ret
	.size small, 1
	.type alias, @function
alias = small
	.size alias, 1
	.type unsized, @function
unsized: ret
	.skip 5
	.size wide, .-wide
	.section .note.GNU-stack,"",@progbits
`, "p.c": splitC})
	run(t, dir, "gcc -O2 -o p p.c asm.s")
	static := testtarget.Build(t, testtarget.Spec{Sources: []string{"seed.cc"}, Flags: []string{"-O2", "-static"}})
	rng := rand.New(rand.NewPCG(1, 2))
	known, tried := 0, 0
	for _, s := range []*Space{liveSpace(t, dir, "./p"), space(t, live(t, "/", static))} {
		for _, m := range s.Modules {
			whole, err := s.codeOf(m)
			if err != nil {
				t.Fatal(err)
			}
			if len(whole.spans) == 0 {
				continue
			}
			for range 150 {
				sp := whole.spans[rng.IntN(len(whole.spans))]
				v := sp.start
				if n := sp.end - sp.start; rng.IntN(2) == 0 {
					v += rng.Uint64N(n + 8)
				}
				if !m.InText(m.Addr(v)) {
					continue
				}
				size := uint64(1) << (2 + rng.IntN(15))
				c, err := s.indexCode(m, max(v, size)-size, v+size)
				if err != nil {
					t.Fatal(err)
				}
				if tried++; !c.knows(v) {
					continue
				}
				known++
				want := around(s, m, m.Addr(v), c.knows)
				m.code = c
				got := around(s, m, m.Addr(v), c.knows)
				m.code = whole
				if got != want {
					t.Fatalf("%s, %#x, window of %#x:\n%s\nand the whole module says\n%s", m.Name, v, size, got, want)
				}
			}
		}
	}
	if known < 300 || known == tried {
		t.Errorf("%d of %d windows knew their address", known, tried)
	}
}

// TestLargeModule: what is asked for one function of a module with many symbols is
// answered without reading them all, and in the same way.
func TestLargeModule(t *testing.T) {
	t.Parallel()
	var asm strings.Builder
	asm.WriteString(".file \"many.c\"\n.text\n")
	const n = manySpans + 1000
	for i := range n {
		name := fmt.Sprintf("function_%d_of_many", i)
		if i%2 == 0 {
			fmt.Fprintf(&asm, ".globl %s\n", name)
		}
		fmt.Fprintf(&asm, ".type %s, @function\n%s: ret\n.size %s, 1\n.balign 16\n", name, name, name)
		if i == n/2 {
			fmt.Fprintf(&asm, ".type %s.cold, @function\n%s.cold: ret\n.size %s.cold, 1\n.set other, %s\n.balign 16\n", name, name, name, name)
		}
	}
	asm.WriteString(".section .note.GNU-stack,\"\",@progbits\n")
	dir := files(t, map[string]string{"many.s": asm.String(), "p.c": ready + "int main(void) { ready(); }"})
	run(t, dir, "gcc -o p p.c many.s")
	few, all := liveSpace(t, dir, "./p"), liveSpace(t, dir, "./p")
	for _, i := range []int{0, 1, n / 2, n - 1} {
		name := fmt.Sprintf("function_%d_of_many", i)
		say := func(s *Space) string {
			m := s.Executable()
			found, err := s.Lookup([]string{name})
			if err != nil || len(found[name]) != 1 {
				t.Fatal(found, err)
			}
			sym := found[name][0]
			parts, err := s.Parts(sym)
			text := fmt.Sprintf("%s %s %#x %v %v %v\n", sym.Name, sym.File, sym.Addr, sym.Bind, parts, err)
			text += around(s, m, sym.Addr, func(uint64) bool { return true })
			words := strings.Fields(text)
			for i, word := range words { // addresses as they are in the file
				var addr uint64
				if _, err := fmt.Sscanf(word, "0x%x", &addr); err == nil && m.Contains(addr) {
					words[i] = fmt.Sprintf("%#x", m.Vaddr(addr))
				}
			}
			return strings.Join(words, " ")
		}
		if _, err := all.codeOf(all.Executable()); err != nil {
			t.Fatal(err)
		}
		if _, err := all.derivedOf(all.Executable()); err != nil {
			t.Fatal(err)
		}
		if got, want := say(few), say(all); got != want {
			t.Errorf("%s:\n%s\nand with everything read\n%s", name, got, want)
		}
	}
	m := few.Executable()
	if m.code != nil || m.derived != nil || m.Image.tables[Symtab] != nil {
		t.Errorf("read everything: code %v, derived %v, table %v", m.code != nil, m.derived != nil, m.Image.tables[Symtab] != nil)
	}
	// But who asks for very many is better off with all.
	for i := range maxSearches + 1 {
		if _, err := few.Clones(m, fmt.Sprintf("function_%d_of_many", 3*i+100)); err != nil {
			t.Fatal(err)
		}
	}
	if m.derived == nil {
		t.Error("many searches, and not everything read")
	}
}
