package elfsym

import (
	"debug/elf"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Multiple inheritance with a covariant return, a class that inherits a slot, a
// virtual diamond, and a table of function pointers that is no vtable.
const classesH = `
struct A { virtual long fa(long); virtual long common(long); virtual ~A(); long a; };
struct B { virtual long fb(long); virtual B *clone(); virtual ~B(); long b; };
struct C : A, B { long fa(long) override; long fb(long) override; C *clone() override; virtual long own(long); ~C() override; long c; };
struct D : C { long own(long) override; ~D() override; };
struct VB { virtual long vf(long); virtual ~VB(); long v; };
struct L : virtual VB { long vf(long) override; virtual long l(long); ~L() override; };
struct R : virtual VB { virtual long r(long); ~R() override; };
struct Dia : L, R { virtual long dia(long); ~Dia() override; };
`

const classesCC = `
#include "classes.h"
long A::fa(long x) { return x + 1; }  long A::common(long x) { return x + 2; }  A::~A() {}
long B::fb(long x) { return x + 3; }  B *B::clone() { return this; }  B::~B() {}
long C::fa(long x) { return x + c; }  long C::fb(long x) { return x * c; }  C *C::clone() { return this; }
long C::own(long x) { return x - 1; }  C::~C() {}
long D::own(long x) { return x - 2; }  D::~D() {}
long VB::vf(long x) { return x + 4; }  VB::~VB() {}
long L::vf(long x) { return x + v; }  long L::l(long x) { return x + 5; }  L::~L() {}
long R::r(long x) { return x + 6; }  R::~R() {}
long Dia::dia(long x) { return x + 7; }  Dia::~Dia() {}
`

const classesMain = `
#include "classes.h"
#include <cstdio>
#include <unistd.h>
static long plain(A *a, long x) { return a->a + x; }
long other(A *a, long x) { return a->a - x; }
typedef long (*fn)(A *, long);
fn pointers[] = {plain, other, 0, plain};
fn const *volatile keep = pointers;
int main() {
	A *volatile a = new D; B *volatile b = new D; VB *volatile v = new Dia; R *volatile r = new Dia;
	long sum = a->fa(1) + a->common(2) + b->fb(3) + b->clone()->b + v->vf(4) + r->r(5) + keep[0](a, 1);
	printf("READY %d %ld\n", (int)getpid(), sum * 0); fflush(stdout);
	for (;;) pause();
}
`

// slotNames gives "table+index" of every slot, sorted, by searching the vtables
// of the unstripped file with nm and readelf as the oracle.
func oracleSlots(t testing.TB, dir, prog string, targets map[string]bool) []string {
	t.Helper()
	f, err := elf.Open(filepath.Join(dir, prog))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	syms, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	addrs := map[uint64]bool{}
	for _, s := range syms {
		if targets[s.Name] {
			addrs[s.Value] = true
		}
	}
	// What the loader makes of the file: relative relocations.
	words := map[uint64]uint64{}
	for line := range strings.Lines(run(t, dir, "readelf -rW "+prog)) {
		var off, info, addend uint64
		if n, _ := fmt.Sscanf(line, "%x %x R_X86_64_RELATIVE %x", &off, &info, &addend); n == 3 {
			words[off] = addend
		}
	}
	read := func(addr uint64) uint64 {
		if w, ok := words[addr]; ok {
			return w
		}
		for _, sec := range f.Sections {
			if sec.Flags&elf.SHF_ALLOC != 0 && sec.Type != elf.SHT_NOBITS && sec.Addr <= addr && addr+8 <= sec.Addr+sec.Size {
				b := make([]byte, 8)
				if _, err := sec.ReadAt(b, int64(addr-sec.Addr)); err != nil {
					t.Fatal(err)
				}
				return f.ByteOrder.Uint64(b)
			}
		}
		return 0
	}
	var list []string
	for _, s := range syms {
		if !strings.HasPrefix(s.Name, "_ZTV") && !strings.HasPrefix(s.Name, "_ZTC") || s.Section == elf.SHN_UNDEF {
			continue
		}
		for i := uint64(0); i < s.Size/8; i++ {
			if addrs[read(s.Value+8*i)] {
				list = append(list, fmt.Sprintf("%#x", s.Value+8*i))
			}
		}
	}
	slices.Sort(list)
	return list
}

// virtuals are the functions looked for, with their thunks.
var virtuals = []string{"_ZN1C2faEl", "_ZN1C2fbEl", "_ZN1C5cloneEv", "_ZN1A6commonEl", "_ZN1L2vfEl", "_ZN1RD1Ev", "_ZN1R1rEl"}

var wantThunks = map[string][]string{
	"_ZN1C2faEl":     nil,
	"_ZN1C2fbEl":     {"_ZThn16_N1C2fbEl"},
	"_ZN1C5cloneEv":  {"_ZTchn16_h16_N1C5cloneEv"},
	"_ZN1L2vfEl":     {"_ZTv0_n24_N1L2vfEl"},
	"_ZN1RD1Ev":      {"_ZTv0_n32_N1RD1Ev"},
	"_ZN1R1rEl":      nil,
	"_ZN1A6commonEl": nil,
}

func slotAddrs(slots []Slot) []string {
	var list []string
	for _, s := range slots {
		list = append(list, fmt.Sprintf("%#x", s.Module.Vaddr(s.Addr)))
	}
	slices.Sort(list)
	return list
}

func TestVTableSlots(t *testing.T) {
	t.Parallel()
	for _, build := range []string{
		"g++ -O2 -fPIE -pie", "g++ -O0 -fno-pie -no-pie", "g++ -O2 -fno-pie -no-pie -Wl,-z,noseparate-code",
		"clang++ -O2 -fPIE -pie", "g++ -O2 -fPIE -pie -fno-rtti",
	} {
		t.Run(build, func(t *testing.T) {
			t.Parallel()
			needs(t, strings.Fields(build)[0])
			dir := files(t, map[string]string{"classes.h": classesH, "classes.cc": classesCC, "main.cc": classesMain})
			run(t, dir, build+" -o p classes.cc main.cc")

			// Which names to look for: the functions and their thunks.
			s := liveSpace(t, dir, "./p")
			exe := s.Executable()
			symbols := nmSymbols(t, dir, "p")
			wanted := map[string]bool{"_ZL5plainP1Al": true}
			targets := map[uint64]bool{one(t, s, "plain").Addr: true}
			for _, name := range virtuals {
				targets[one(t, s, name).Addr] = true
				wanted[name] = true
				thunks, err := s.Thunks(exe, name)
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, th := range thunks {
					got = append(got, th.Name)
					targets[th.Addr], wanted[th.Name] = true, true
					if of, ok := ThunkOf(th.Name); !ok || of != name {
						t.Errorf("ThunkOf(%s) = %s", th.Name, of)
					}
				}
				var nm []string
				for have := range symbols {
					if len(have) > 3 && strings.Contains("hvc", have[3:4]) && strings.HasPrefix(have, "_ZT") && strings.HasSuffix(have, "_"+name[2:]) {
						nm = append(nm, have)
					}
				}
				slices.Sort(nm)
				slices.Sort(got)
				if !slices.Equal(got, nm) {
					t.Errorf("thunks of %s: %v, nm says %v", name, got, nm)
				}
				for _, w := range wantThunks[name] {
					if !slices.Contains(got, w) {
						t.Errorf("thunks of %s: %v, want %s", name, got, w)
					}
				}
			}
			want := oracleSlots(t, dir, "p", wanted)
			// fa: C, D. common: A, C, D. fb and clone and their thunks: C, D.
			// vf: L, its construction table, Dia; the thunk in the same three.
			// R::r and ~R: R, its construction table, and r in Dia.
			if len(want) < 20 {
				t.Fatalf("the oracle finds only %v", want)
			}
			slots, others, err := s.VTableSlots(memory(t, s), targets)
			if err != nil {
				t.Fatal(err)
			}
			if got := slotAddrs(slots); !slices.Equal(got, want) {
				t.Errorf("slots %v\nwant %v", got, want)
			}
			for _, sl := range slots {
				if !strings.HasPrefix(sl.Table.Name, "_ZT") || sl.Addr != sl.Table.Addr+8*uint64(sl.Index) || !targets[sl.Value] {
					t.Errorf("%+v", sl)
				}
			}
			pointers := one(t, s, "pointers").Addr
			if len(others) != 2 || others[0].Addr != pointers || others[1].Addr != pointers+24 {
				t.Errorf("others: %v, want two in the table at %#x", others, pointers)
			}

			// The same without symbols: no wrong slot, and with type information
			// every one; construction vtables have null pairs, which end a proof.
			run(t, dir, "strip -s -o q p")
			bare := liveSpace(t, dir, "./q")
			shift := bare.Executable().Bias - exe.Bias
			moved := map[uint64]bool{}
			for a := range maps.Keys(targets) {
				moved[a+shift] = true
			}
			slots, others, err = bare.VTableSlots(memory(t, bare), moved)
			if err != nil {
				t.Fatal(err)
			}
			got := slotAddrs(slots)
			for _, a := range got {
				if !slices.Contains(want, a) {
					t.Errorf("stripped: %s is no slot", a)
				}
			}
			switch noRTTI := strings.Contains(build, "no-rtti"); {
			case noRTTI && len(got) != 0:
				t.Errorf("stripped without type information: %v are taken for proven", got)
			case !noRTTI && len(got) < len(want)-2:
				t.Errorf("stripped: only %d of %d: %v of %v", len(got), len(want), got, want)
			}
			if len(got)+len(others) != len(want)+2 {
				t.Errorf("stripped: %d slots and %d others, want %d in all", len(got), len(others), len(want)+2)
			}
			if !slices.ContainsFunc(others, func(o Slot) bool { return o.Addr == pointers+shift }) {
				t.Error("stripped: the table of function pointers is not among the others")
			}
		})
	}
}

// TestVTableCopy: with a copy relocation all objects use the executable's copy of
// the library's vtable.
func TestVTableCopy(t *testing.T) {
	t.Parallel()
	for _, strip := range []string{"", " -s"} {
		t.Run("strip"+strip, func(t *testing.T) {
			t.Parallel()
			dir := files(t, map[string]string{
				"key.h":  `struct Key { virtual long f(long); virtual ~Key(); long k; };`,
				"key.cc": "#include \"key.h\"\nlong Key::f(long x) { return x + k; }\nKey::~Key() {}\nKey *make() { return new Key; }\n",
				"m.cc": "#include \"key.h\"\n#include <cstdio>\n#include <unistd.h>\nKey *make();\n" +
					"int main() { Key k; Key *volatile p = make(); Key *volatile q = &k; printf(\"READY %d %ld\\n\", (int)getpid(), 0 * (p->f(1) + q->f(2))); fflush(stdout); for (;;) pause(); }\n",
			})
			run(t, dir, "g++ -O1 -fPIC -shared -o libkey.so key.cc"+strip)
			run(t, dir, "g++ -O1 -fno-pie -no-pie -o p m.cc ./libkey.so -Wl,-rpath,."+strip)
			if out := run(t, dir, "readelf -rW p"); !strings.Contains(out, "R_X86_64_COPY") {
				t.Fatalf("there is no copy relocation:\n%s", out)
			}
			s := liveSpace(t, dir, "./p")
			f := one(t, s, "libkey.so!Key::f(long)")
			slots, _, err := s.VTableSlots(memory(t, s), map[uint64]bool{f.Addr: true})
			if err != nil {
				t.Fatal(err)
			}
			var in []string
			for _, sl := range slots {
				in = append(in, sl.Module.Name+" "+sl.Table.Name)
				if sl.Index != 2 {
					t.Errorf("%v has index %d", sl, sl.Index)
				}
			}
			slices.Sort(in)
			if want := []string{"libkey.so _ZTV3Key", "p _ZTV3Key"}; !slices.Equal(in, want) {
				t.Errorf("slots in %v, want %v", in, want)
			}
		})
	}
}

func TestThunkEncoding(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"_ZThn16_N1C2fbEi": "_ZN1C2fbEi", "_ZTv0_n24_N1L2vfEi": "_ZN1L2vfEi", "_ZTchn16_h16_N1C5cloneEv": "_ZN1C5cloneEv",
		"_ZTch0_h16_N1C5cloneEv": "_ZN1C5cloneEv", "_ZTcv0_n24_v0_n32_N1C1fEv": "_ZN1C1fEv",
		"_ZTV1C": "", "_ZTh": "", "_ZThn16_": "", "_ZTh16N1C": "", "_ZTcn16_h16_N1C": "", "_ZTv0_N1C1fEv": "", "_ZN1C1fEv": "", "": "", "_ZTc": "",
	} {
		got, ok := ThunkOf(name)
		if got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v; want %q", name, got, ok, want)
		}
	}
}
