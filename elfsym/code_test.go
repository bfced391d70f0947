package elfsym

import (
	"cmp"
	"debug/elf"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const splitC = ready + "#include <stdlib.h>" + `

__attribute__((noinline)) int risky(int x) {
	if (x < 0) abort();
	printf("%s", "");
	return x * 7;
}
static __attribute__((noinline)) int spec(int a, int b) { int s = 0; for (int i = 0; i < a; i++) s += b * i; return s; }
int user(int x) { return spec(x, 3) + spec(x + 1, 3); }
int main(int n, char **v) { volatile int k = risky(n) + user(n); (void)k; ready(); }
`

func TestClonesAndParts(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"p.c": splitC, "q.c": "int unused;"})
	run(t, dir, "gcc -O2 -o p p.c q.c")
	nm := nmSymbols(t, dir, "p")
	s := liveSpace(t, dir, "./p")
	exe := s.Executable()
	if len(nm["risky.cold"]) != 1 || len(nm["spec.constprop.0"]) != 1 || len(nm["spec"]) != 0 {
		t.Fatalf("gcc made no clones: %v", nm)
	}
	parts, err := s.Parts(one(t, s, "risky"))
	if err != nil || len(parts) != 1 || exe.Vaddr(parts[0].Addr) != nm["risky.cold"][0] || parts[0].Size == 0 {
		t.Errorf("parts of risky: %v, %v", parts, err)
	}
	clones, err := s.Clones(exe, "spec")
	if err != nil || len(clones) != 1 || exe.Vaddr(clones[0].Addr) != nm["spec.constprop.0"][0] {
		t.Errorf("clones of spec: %v, %v", clones, err)
	}
	if all, err := s.Clones(nil, "spec"); err != nil || !slices.Equal(all, clones) {
		t.Errorf("clones in all modules: %v, %v", all, err)
	}
	_, err = s.One(query(t, "spec"), nil)
	if e := wantCode(t, err, "no-symbol"); !strings.Contains(e.Why, "spec.constprop.0") {
		t.Errorf("%v", e)
	}
	if f, off, ok := s.FuncAt(parts[0].Addr + 1); !ok || f.Name != "risky.cold" || off != 1 {
		t.Errorf("FuncAt in the cold part: %v+%d, %v", f, off, ok)
	}
}

// TestExtent compares with what nm says, for every function, and checks that a
// stripped copy does not take unknown functions for padding.
func TestExtent(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"p.c": splitC, "asm.s": `
	.text
	.globl tiny
	.type tiny, @function
tiny:	mov $1, %eax
	ret
	.size tiny, .-tiny
nolabeltype:
	mov $2, %eax
	ret
	.globl nosize
	.type nosize, @function
nosize:	mov $3, %eax
	ret
	.section .note.GNU-stack,"",@progbits
`})
	run(t, dir, "gcc -O2 -rdynamic -o p p.c asm.s")
	f, err := elf.Open(filepath.Join(dir, "p"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	text := f.Section(".text")
	var code []elf.Symbol
	for _, sym := range all {
		if sym.Section != elf.SHN_UNDEF && text.Addr <= sym.Value && sym.Value < text.Addr+text.Size && elf.ST_TYPE(sym.Info) != elf.STT_SECTION {
			code = append(code, sym)
		}
	}
	slices.SortFunc(code, func(a, b elf.Symbol) int { return cmp.Compare(a.Value, b.Value) })
	s := liveSpace(t, dir, "./p")
	exe := s.Executable()
	checked := 0
	for i, sym := range code {
		if elf.ST_TYPE(sym.Info) != elf.STT_FUNC || sym.Size == 0 {
			continue
		}
		found, err := s.Lookup([]string{sym.Name})
		if err != nil {
			t.Fatal(err)
		}
		j := slices.IndexFunc(found[sym.Name], func(x Symbol) bool { return exe.Vaddr(x.Addr) == sym.Value })
		if j < 0 {
			t.Errorf("%s is not found", sym.Name)
			continue
		}
		end, next, prev, err := s.Extent(found[sym.Name][j])
		if err != nil {
			t.Fatal(err)
		}
		end, next, prev = exe.Vaddr(end), exe.Vaddr(next), exe.Vaddr(prev)
		wantNext := text.Addr + text.Size
		if i+1 < len(code) && code[i+1].Value > sym.Value {
			wantNext = code[i+1].Value
		}
		wantPrev := text.Addr
		if i > 0 {
			wantPrev = code[i-1].Value + code[i-1].Size
			if code[i-1].Size == 0 {
				wantPrev = sym.Value
			}
		}
		// .eh_frame knows the sizes that crt files do not give.
		if end != sym.Value+sym.Size || next != wantNext || prev != wantPrev && prev > sym.Value {
			t.Errorf("%s: [%#x, %#x), next %#x want %#x, previous ends %#x want %#x", sym.Name, sym.Value, end, next, wantNext, prev, wantPrev)
		}
		if prev != wantPrev && wantPrev != sym.Value {
			t.Errorf("%s: previous ends %#x want %#x", sym.Name, prev, wantPrev)
		}
		checked++
	}
	if checked < 6 {
		t.Errorf("only %d functions", checked)
	}
	// A function without a size, and without an FDE, ends where the section does
	// or the next thing begins; in front of it nothing is taken for padding.
	ns := one(t, s, "nosize")
	end, next, prev, err := s.Extent(ns)
	if err != nil || end != next || end <= ns.Addr || prev != ns.Addr {
		t.Errorf("nosize: %#x: %#x %#x %#x, %v", ns.Addr, end, next, prev, err)
	}
	tiny := one(t, s, "tiny")
	label := exe.Addr(nmSymbols(t, dir, "p")["nolabeltype"][0])
	if end, next, _, err := s.Extent(tiny); err != nil || end != tiny.Addr+tiny.Size || next != label {
		t.Errorf("tiny: %#x %#x, want the label at %#x, %v", end, next, label, err)
	}

	// Stripped: user is exported; the static function behind or in front of it is
	// not, but its FDE is known.
	user := one(t, s, "user")
	end, next, prev, err = s.Extent(user)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%#x %#x %#x", exe.Vaddr(end), exe.Vaddr(next), exe.Vaddr(prev))
	run(t, dir, "strip -s -o q p")
	s = liveSpace(t, dir, "./q")
	exe = s.Executable()
	user = one(t, s, "user")
	end, next, prev, err = s.Extent(user)
	if got := fmt.Sprintf("%#x %#x %#x", exe.Vaddr(end), exe.Vaddr(next), exe.Vaddr(prev)); got != want || err != nil {
		t.Errorf("stripped: %s, want %s, %v", got, want, err)
	}

	// And without .eh_frame, nothing around is known.
	run(t, dir, "objcopy --remove-section .eh_frame --remove-section .eh_frame_hdr q r")
	s = liveSpace(t, dir, "./r")
	user = one(t, s, "user")
	if end, next, prev, err = s.Extent(user); err != nil || end != user.Addr+user.Size || next != end || prev != user.Addr {
		t.Errorf("stripped, no frames: %#x %#x %#x, %v", end, next, prev, err)
	}
}

// TestFrameRanges compares with readelf.
func TestFrameRanges(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/proc/self/exe", "libc.so.6"} {
		if path == "libc.so.6" {
			dir := files(t, map[string]string{"p.c": ready + "int main(void) { ready(); }"})
			run(t, dir, "gcc -o p p.c")
			path = module(t, liveSpace(t, dir, "./p"), "libc.so.6").Path
		} else {
			dir := files(t, map[string]string{"p.c": splitC})
			run(t, dir, "gcc -O2 -o p p.c")
			path = filepath.Join(dir, "p")
		}
		var want []codeRange
		for line := range strings.Lines(run(t, "/", "readelf --debug-dump=no-follow-links,frames "+path)) {
			i := strings.Index(line, " pc=")
			var r codeRange
			if i < 0 {
				continue
			}
			if _, err := fmt.Sscanf(line[i:], " pc=%x..%x", &r.start, &r.end); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			want = append(want, r)
		}
		got, whole := openImage(t, path).frameRanges()
		if !whole || !slices.Equal(got, want) || len(want) == 0 {
			t.Errorf("%s: %d ranges, readelf has %d; whole %v", path, len(got), len(want), whole)
		}
		// The same without section headers.
		im := openImage(t, path)
		im.shoff = 0
		if got, _ := im.frameRanges(); !slices.Equal(got, want) {
			t.Errorf("%s without sections: %d ranges, readelf has %d", path, len(got), len(want))
		}
	}
}

func TestAliases(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"p.c": ready + `
int real(int x) { return x + 9; }
int other(int x) __attribute__((alias("real")));
int main(void) { ready(); }`})
	run(t, dir, "gcc -rdynamic -o p p.c")
	s := liveSpace(t, dir, "./p")
	list, err := s.Aliases(one(t, s, "real"))
	if err != nil || len(list) != 1 || list[0].Name != "other" {
		t.Errorf("%v, %v", list, err)
	}
	if list, err := s.Aliases(one(t, s, "main")); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}
