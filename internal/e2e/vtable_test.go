package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// forms14 are the 14 ways to call a virtual function of shape_main.cc, in its
// order: which of them can be reached depends on the compiler.
var forms14 = []string{
	"c_pointer", "a_pointer_c", "a_pointer_d", "d_pointer", "local_object", "new_object", "qualified", "member_pointer",
	"in_constructor", "c_pointer_fb", "b_pointer_c", "b_pointer_d", "final_pointer", "a_pointer_f",
}

// shapeAnswers is what every form of shape_main.cc gives without a patch.
var shapeAnswers = map[string]int{
	"c_pointer": 1103, "a_pointer_c": 1103, "a_pointer_d": 1103, "d_pointer": 1103, "local_object": 1103,
	"new_object": 1103, "qualified": 1103, "member_pointer": 1103, "in_constructor": 1103, "c_pointer_fb": 1203,
	"b_pointer_c": 1203, "b_pointer_d": 1203, "final_pointer": 1501, "a_pointer_f": 1501, "inherited": 1021,
	"base_a": 1011, "base_b": 1032, "own_c": 1303, "own_d": 1403, "covariant_b": 1203, "covariant_c": 1303,
	"virtual_base": 1604, "virtual_l": 1705, "virtual_dia": 1705, "l_of_dia": 1715, "r_of_dia": 1726,
	"dia_of_dia": 1737, "construction": 1705, "destructor": 1001, "twin_left": 3800, "twin_right": 3800,
}

// The methods of shape_p1.cc beyond those of the 14 forms: all of L::vf.
var formsOfL = []string{"virtual_l", "virtual_dia", "construction"}

// forms asks a shape program for every form and gives the answers.
func forms(t testing.TB, p *testtarget.Process) map[string]int {
	t.Helper()
	got := make(map[string]int)
	p.Send("all")
	for {
		line := p.Line(`^(\w+ = -?\d+|all done)$`, testtarget.Timeout)
		name, result, ok := strings.Cut(line, " = ")
		if !ok {
			break
		}
		n, err := strconv.Atoi(result)
		if err != nil {
			t.Fatal(err)
		}
		got[name] = n
	}
	if len(got) != len(shapeAnswers) {
		t.Fatalf("%d forms answered, want %d", len(got), len(shapeAnswers))
	}
	return got
}

// formsAre ends the test unless exactly these forms give 5000 more than without
// a patch, and all others the same.
func formsAre(t testing.TB, p *testtarget.Process, changed ...string) {
	t.Helper()
	got := forms(t, p)
	for _, name := range slices.Sorted(maps.Keys(shapeAnswers)) {
		want := shapeAnswers[name]
		if slices.Contains(changed, name) {
			want += 5000
		}
		if got[name] != want {
			t.Errorf("%s = %d, want %d", name, got[name], want)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// shapeProgram builds a shape program of its two files.
func shapeProgram(t testing.TB, compiler string, flags ...string) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Compiler: compiler, Sources: []string{"shape_main.cc", "shape.cc"}, Flags: flags})
}

// shapeUnit builds a shape program as one unit: the compiler sees everything.
func shapeUnit(t testing.TB, compiler string, flags ...string) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Compiler: compiler, Sources: []string{"shape_main.cc"},
		Flags: append([]string{"-DSHAPE_ONE_UNIT"}, flags...)})
}

// shapePatch builds a patch of shape.h.
func shapePatch(t testing.TB, compiler, source string, flags ...string) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Compiler: compiler, Sources: []string{source}, Shared: true, Flags: append([]string{"-O2"}, flags...)})
}

// cxxPatch builds a patch from C++ source that may include shape.h.
func cxxPatch(t testing.TB, source string, flags ...string) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Name: "patch.so", Shared: true, Flags: append([]string{"-O2"}, flags...),
		Files: map[string]string{"patch.cc": "#include \"hotpatch.h\"\n#include \"shape.h\"\n" + source}})
}

// without gives the forms of the 14 but these.
func without(names ...string) []string {
	return slices.DeleteFunc(slices.Clone(forms14), func(n string) bool { return slices.Contains(names, n) })
}

// The forms that each way of patching reaches, by what the compiler made of the
// calls.
var (
	// Known types: the compiler calls the function itself. No slot is read.
	knownType = []string{"local_object", "qualified", "in_constructor", "final_pointer"}
	// "new C" is a known type as well, unless nothing is optimised.
	bySlot   = without(append(knownType, "new_object")...)
	bySlotO0 = without(knownType...)
	// g++ -O2 compares the slot with the address it expects and runs a copy of
	// the body if they are equal: only calls through a base class of which it
	// expects another function reach the entry, and the thunks' entries.
	byEntrySpeculated = []string{"a_pointer_c", "a_pointer_d", "member_pointer", "a_pointer_f", "b_pointer_c", "b_pointer_d"}
)

// TestCallForms: which of the 14 forms of a virtual call each method reaches.
func TestCallForms(t *testing.T) {
	t.Parallel()
	type build struct {
		compiler string
		flags    []string
		want     map[string][]string // by method
	}
	all := without()
	builds := []build{
		{"g++", []string{"-O0"}, map[string][]string{"entry": all, "vtable": bySlotO0, "auto": all}},
		// g++ knows the type of *this in a constructor, clang -O0 takes the slot.
		{"clang++", []string{"-O0"}, map[string][]string{"entry": all, "vtable": append(bySlotO0, "in_constructor"), "auto": all}},
		{"g++", []string{"-O2"}, map[string][]string{"entry": byEntrySpeculated, "vtable": bySlot, "auto": bySlot}},
		{"clang++", []string{"-O2"}, map[string][]string{"entry": bySlot, "vtable": bySlot, "auto": bySlot}},
		{"g++", []string{"-O2", "-DSHAPE_NOINLINE"}, map[string][]string{"entry": all, "vtable": bySlot, "auto": all}},
		{"clang++", []string{"-O2", "-DSHAPE_NOINLINE"}, map[string][]string{"entry": all, "vtable": bySlot, "auto": all}},
		{"g++", []string{"-O2", "-flive-patching=inline-only-static"}, map[string][]string{"entry": all, "vtable": bySlot, "auto": all}},
	}
	for _, b := range some(builds, 0, 2, 5) {
		t.Run(b.compiler+" "+strings.Join(b.flags, " "), func(t *testing.T) {
			t.Parallel()
			exe := shapeUnit(t, b.compiler, b.flags...)
			patch := shapePatch(t, b.compiler, "shape_p1.cc")
			for _, method := range []string{"entry", "vtable", "auto"} {
				p := testtarget.Start(t, exe)
				before := testtarget.TextSnapshot(t, p.PID())
				formsAre(t, p)
				r := applyOne(t, p.PID(), "--method", method, patch)
				got := forms(t, p)
				var reached []string
				for _, name := range forms14 {
					switch got[name] - shapeAnswers[name] {
					case 5000:
						reached = append(reached, name)
					case 0:
					default:
						t.Errorf("%s: %s = %d", method, name, got[name])
					}
				}
				if !slices.Equal(reached, sorted(b.want[method])) {
					t.Errorf("%s reaches %d: %v\nwant %d: %v", method, len(reached), reached, len(b.want[method]), sorted(b.want[method]))
				}
				// What is not replaced is as before, whatever the method.
				for _, name := range []string{"inherited", "base_a", "base_b", "own_c", "own_d", "virtual_base", "l_of_dia", "r_of_dia", "destructor"} {
					if got[name] != shapeAnswers[name] {
						t.Errorf("%s: %s = %d, want %d", method, name, got[name], shapeAnswers[name])
					}
				}
				entries, slots := len(r.sites("entry")), len(r.sites("vtable"))
				if (entries > 0) != (method != "vtable") || (slots > 0) != (method != "entry") {
					t.Errorf("%s has rewritten %d entries and %d slots", method, entries, slots)
				}
				verify(t, p.PID())
				revert(t, p.PID())
				formsAre(t, p)
				unchanged(t, before, p.PID())
				p.Healthy(t)
			}
		})
	}
}

// sorted puts forms into the order of the program.
func sorted(names []string) []string {
	return slices.DeleteFunc(slices.Clone(forms14), func(n string) bool { return !slices.Contains(names, n) })
}

// TestVTables: every kind of slot, in a library whose objects others make.
func TestVTables(t *testing.T) {
	t.Parallel()
	type build struct {
		name, compiler   string
		library, program []string // flags; no library: the program has it all
		copies           bool     // the program has a copy of the library's vtables
	}
	builds := []build{
		{"one program", "g++", nil, []string{"-O0"}, false},
		{"one program, clang", "clang++", nil, []string{"-O2", "-DSHAPE_NOINLINE"}, false},
		{"no-pie", "g++", nil, []string{"-O2", "-DSHAPE_NOINLINE", "-fno-pie", "-no-pie"}, false},
		{"no-rtti", "g++", nil, []string{"-O2", "-DSHAPE_NOINLINE", "-fno-rtti"}, false},
		{"relr", "g++", nil, []string{"-O2", "-DSHAPE_NOINLINE", "-Wl,-z,pack-relative-relocs"}, false},
		{"no-relro", "g++", nil, []string{"-O2", "-DSHAPE_NOINLINE", "-Wl,-z,norelro"}, false},
		{"now", "g++", nil, []string{"-O2", "-DSHAPE_NOINLINE", "-Wl,-z,now"}, false},
		{"library, copy relocations", "g++", []string{"-O2"}, []string{"-O0", "-fPIE", "-pie"}, true},
		{"library, copy relocations, no-pie", "g++", []string{"-O0"}, []string{"-O0", "-fno-pie", "-no-pie"}, true},
		{"library, no copies", "g++", []string{"-O2"}, []string{"-O0", "-fPIC", "-pie"}, false},
		// clang inlines functions that a library exports, g++ does not.
		{"library, clang", "clang++", []string{"-O2", "-DSHAPE_NOINLINE"}, []string{"-O0", "-fPIC", "-pie"}, false},
		{"library, symbolic", "g++", []string{"-O2", "-Wl,-Bsymbolic"}, []string{"-O0", "-fPIC", "-pie"}, false},
	}
	for _, b := range some(builds, 0, 3, 7) {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			var exe string
			if b.library == nil {
				exe = shapeProgram(t, b.compiler, b.program...)
			} else {
				lib := testtarget.Build(t, testtarget.Spec{Compiler: b.compiler, Sources: []string{"shape.cc"}, Shared: true, Name: "libshape.so", Flags: b.library})
				exe = testtarget.Build(t, testtarget.Spec{Compiler: b.compiler, Sources: []string{"shape_main.cc"}, Flags: b.program, Libs: []string{lib}})
			}
			patch := shapePatch(t, b.compiler, "shape_p1.cc")
			p := testtarget.Start(t, exe)
			pid := p.PID()
			before := testtarget.TextSnapshot(t, pid)
			perms := permissions(t, pid)
			formsAre(t, p)

			// Through slots only: all calls that take one.
			r := applyOne(t, pid, "--method", "vtable", patch)
			got := forms(t, p)
			for _, name := range append(append([]string(nil), bySlot...), formsOfL...) {
				if got[name] != shapeAnswers[name]+5000 {
					t.Errorf("%s = %d, want %d", name, got[name], shapeAnswers[name]+5000)
				}
			}
			for _, name := range knownType[:3] {
				if got[name] != shapeAnswers[name] {
					t.Errorf("%s = %d: a slot cannot have changed that", name, got[name])
				}
			}
			// C::fa is in C, D and E; C::fb in the same, twice; F::fa in F; L::vf in L, Dia
			// and L-in-Dia, and its thunk in the same. Copies come on top.
			tables := make(map[string]int)
			for _, s := range r.sites("vtable") {
				module, table, _ := strings.Cut(s.Where, " ")
				tables[table[:strings.IndexByte(table, '+')]]++
				if want := "libshape.so"; b.library != nil && !b.copies && module != want {
					t.Errorf("a slot is in %s, want %s", s.Where, want)
				}
				perms := mappingAt(t, pid, uint64(s.Address)).perms
				if relro := b.name != "no-relro" && !b.copies; relro && perms != "r--p" {
					t.Errorf("%s is in a page that is %s", s.Where, perms)
				}
			}
			want := map[string]int{"vtable for C": 3, "vtable for D": 3, "vtable for E": 3, "vtable for F": 1,
				"vtable for L": 2, "vtable for Dia": 2, "construction vtable for L-in-Dia": 2}
			for table, n := range want {
				if got := tables[table]; got != n && !(b.copies && got == 2*n) {
					t.Errorf("%d slots of the %s are rewritten, want %d", got, table, n)
				}
			}
			if len(tables) != len(want) {
				t.Errorf("slots of %v are rewritten", tables)
			}
			if b.copies { // the program's copy is the one that objects use
				n := 0
				for _, s := range r.sites("vtable") {
					if strings.HasPrefix(s.Where, "shape_main ") {
						n++
					}
				}
				if n == 0 {
					t.Error("no slot of the program's own copy is rewritten")
				}
			}
			verify(t, pid)
			revert(t, pid)
			formsAre(t, p)

			// In both ways: every form, since nothing is inlined across the two files.
			applyOne(t, pid, patch)
			got = forms(t, p)
			for _, name := range append(without(), formsOfL...) {
				if got[name] != shapeAnswers[name]+5000 {
					t.Errorf("%s = %d, want %d", name, got[name], shapeAnswers[name]+5000)
				}
			}
			for name, perm := range permissions(t, pid) {
				if old, ok := perms[name]; ok && old != perm {
					t.Errorf("%s is %s now, and was %s", name, perm, old)
				}
			}
			revert(t, pid)
			formsAre(t, p)
			unchanged(t, before, pid)
			p.Healthy(t)
		})
	}
}

// permissions gives the permissions of every mapping by its address and file.
func permissions(t testing.TB, pid int) map[string]string {
	t.Helper()
	list := make(map[string]string)
	for _, m := range mappings(t, pid) {
		list[fmt.Sprintf("%x-%x %s", m.start, m.end, m.path)] = m.perms
	}
	return list
}

// shapeLibrary builds the shape program with its methods in a library that
// exports everything.
func shapeLibrary(t testing.TB) string {
	t.Helper()
	lib := testtarget.Build(t, testtarget.Spec{Sources: []string{"shape.cc"}, Shared: true, Name: "libshape.so", Flags: []string{"-O2"}})
	return testtarget.Build(t, testtarget.Spec{Sources: []string{"shape_main.cc"}, Flags: []string{"-O0"}, Libs: []string{lib}})
}

// TestCovariant: a function whose thunk adjusts this and the result.
func TestCovariant(t *testing.T) {
	t.Parallel()
	for _, method := range some([]string{"auto", "entry", "vtable"}, 0, 2) {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			p := testtarget.Start(t, shapeLibrary(t))
			applyOne(t, p.PID(), "--method", method, shapePatch(t, "g++", "shape_clone.cc"))
			formsAre(t, p, "covariant_b", "covariant_c")
			revert(t, p.PID())
			formsAre(t, p)
		})
	}
}

// TestDestructor: complete, base and deleting destructor and their thunks are
// replaced together.
func TestDestructor(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, shapeLibrary(t))
	patch := cxxPatch(t, `HOTPATCH_NAME("destructor", 1)
C::~C() { destroyed_c += 5001; }
`)
	r := applyOne(t, p.PID(), patch)
	var names []string
	for _, f := range r.Replaced {
		names = append(names, f.Mangled...)
	}
	for _, want := range []string{"_ZN1CD1Ev", "_ZN1CD2Ev", "_ZN1CD0Ev", "_ZThn16_N1CD1Ev", "_ZThn16_N1CD0Ev"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not replaced; replaced are %v", want, names)
		}
	}
	formsAre(t, p, "destructor")
	verify(t, p.PID())
	revert(t, p.PID())
	formsAre(t, p)
}

// TestThunkMissing: a patch without the thunks of a function that has some.
func TestThunkMissing(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, shapeProgram(t, "g++", "-O2"))
	before := testtarget.TextSnapshot(t, p.PID())
	patch := cxxPatch(t, `extern "C" long _ZN1C2fbEl(C *self, long x);
long _ZN1C2fbEl(C *self, long x) { return x + 5200 + self->c; }
`)
	for _, method := range []string{"auto", "entry", "vtable"} {
		e := applyRefused(t, p.PID(), 4, "thunk-missing", "--method", method, patch)
		if !strings.Contains(e.Message, "_ZThn16_N1C2fbEl") && !strings.Contains(e.Message, "non-virtual thunk to C::fb(long)") {
			t.Errorf("the message does not name the thunk: %s", e.Message)
		}
	}
	identical(t, before, p.PID())
	formsAre(t, p)
}

// TestFolded: two methods with the same code, which g++ -O2 gives one address.
func TestFolded(t *testing.T) {
	t.Parallel()
	exe := shapeProgram(t, "g++", "-O2")
	p := testtarget.Start(t, exe)
	pid := p.PID()
	left, right := exeSymbol(t, pid, "_ZN5Twins4leftEl"), exeSymbol(t, pid, "_ZN5Twins5rightEl")
	if left != right {
		t.Fatalf("the compiler has not folded Twins::left (%#x) and Twins::right (%#x)", left, right)
	}
	// A patch that defines the first method of Twins as a member brings a vtable,
	// which refers to the other.
	one := cxxPatch(t, "extern \"C\" long _ZN5Twins4leftEl(Twins *, long x);\nlong _ZN5Twins4leftEl(Twins *, long x) { return x * 3 + 5800; }\n")
	before := testtarget.TextSnapshot(t, pid)
	for _, method := range []string{"auto", "vtable"} {
		e := applyRefused(t, pid, 4, "alias", "--method", method, one)
		if !strings.Contains(e.Why, "Twins::right(long)") {
			t.Errorf("the message does not name the other function: %s", e.Why)
		}
	}
	identical(t, before, pid)
	formsAre(t, p)
	applyOne(t, pid, "--allow-aliases", one)
	formsAre(t, p, "twin_left", "twin_right")
	revert(t, pid)
	// Two different replacements of the same code cannot be.
	different := cxxPatch(t, `long Twins::left(long x) { return x * 3 + 5800; }
long Twins::right(long x) { return x * 4 + 5800; }
`)
	applyRefused(t, pid, 4, "alias-conflict", different)
	formsAre(t, p)
}

// TestNotVirtual: functions that no vtable has, also if something else points to
// them.
func TestNotVirtual(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Sources: calcSources, Flags: []string{"-O2"}}))
	before := testtarget.TextSnapshot(t, p.PID())
	e := applyRefused(t, p.PID(), 4, "no-vtable-slot", "--method", "vtable", calcPatch(t, "add_one", 1000, "slot", 1))
	if !strings.Contains(e.What, "add_one") {
		t.Errorf("it says %q", e.What)
	}
	identical(t, before, p.PID())
	answers(t, p, "add_one", 5, 6)
}
