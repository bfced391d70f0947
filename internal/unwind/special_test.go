package unwind

import (
	"debug/elf"
	"fmt"
	"slices"
	"strings"
	"testing"

	"hotpatch/internal/procfs"
	"hotpatch/internal/testtarget"
)

func special(t *testing.T, flags []string, args ...string) *target {
	t.Helper()
	path := testtarget.Build(t, testtarget.Spec{Files: source(t, "special.c"), Flags: append([]string{"-O2"}, flags...)})
	x := open(t, testtarget.Start(t, path, testtarget.Args(args...)).PID())
	x.u.Prepare()
	return x
}

// contains reports whether the functions are called directly from one another, the innermost
// first.
func contains(w *Walk, want ...string) bool {
	got := names(w)
	for i := range got {
		if i+len(want) <= len(got) && slices.Equal(got[i:i+len(want)], want) {
			return true
		}
	}
	return false
}

// TestSpecialPlaces walks stacks that end, or do not, in special ways.
func TestSpecialPlaces(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		where    string
		complete bool
		why      string
		chain    []string
		how      How
	}{
		{"hidden", false, whyNoInfo, []string{"waits", "no_info"}, Unknown},
		{"jit", false, whyNoModule, []string{"waits", ""}, Unknown},
		{"signal", true, "", []string{"waits", "handler"}, BySignal},
		{"altstack", true, "", []string{"waits", "handler"}, BySignal},
		{"coroutine", false, whyRANoCall, []string{"waits", "in_coroutine"}, Unknown},
		{"noreturn", true, "", []string{"waits", "leaves", "calls_last", "main"}, ByMark},
		{"deep", true, "", []string{"recurse", "recurse", "main"}, ByMark},
		{"thread", true, "", []string{"waits", "thread"}, ByMark},
	} {
		t.Run(c.where, func(t *testing.T) {
			t.Parallel()
			x := special(t, nil, c.where)
			found := false
			for _, w := range x.walks(t) {
				if !contains(&w, "waits") {
					continue
				}
				found = true
				last := w.Frames[len(w.Frames)-1]
				if w.Complete != c.complete || !strings.HasSuffix(w.Why, c.why) || !contains(&w, c.chain...) {
					t.Errorf("want complete %v %q %q: %s", c.complete, c.why, c.chain, chain(&w))
				}
				if !c.complete && last.How != Unknown {
					t.Errorf("the last frame's caller is known: %s", chain(&w))
				}
				if c.how == BySignal {
					i := slices.IndexFunc(w.Frames, func(f Frame) bool { return f.How == BySignal })
					if i < 0 || !w.Frames[i+1].Signal || !w.Frames[i+1].Exact || !contains(&w, "interrupted", "main") {
						t.Errorf("no signal frame: %s", chain(&w))
						continue
					}
					// The handler's stack and what is around it is not the thread's.
					signal, below := w.Frames[i], w.Frames[i+1]
					if alt := c.where == "altstack"; alt != (signal.CFA != below.SP) || alt && w.Covers(signal.SP+0x1000) {
						t.Errorf("the signal frame ends at %#x: %s", signal.CFA, chain(&w))
					}
				}
			}
			if !found {
				t.Error("no thread waits")
			}
		})
	}
}

// TestConstructor: a thread in a library's constructor has the dynamic linker's entry
// point as its outermost frame, which has no unwind information.
func TestConstructor(t *testing.T) {
	t.Parallel()
	lib := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"early.c": `
#include <stdio.h>
#include <unistd.h>
volatile int sink;
__attribute__((noinline)) void waits(void) { char c; printf("READY %d\n", getpid()); fflush(stdout); while (read(0, &c, 1) == 1) sink++; }
__attribute__((constructor)) void early(void) { waits(); sink++; }`}, Flags: []string{"-O2"}, Shared: true})
	path := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"main.c": `void early(void); int main(int c, char **v) { if (c > 9) early(); return v == 0; }`}, Libs: []string{lib}})
	x := open(t, testtarget.Start(t, path).PID())
	x.u.Prepare()
	w := x.walks(t)[x.pid]
	last := w.Frames[len(w.Frames)-1]
	if !w.Complete || last.How != ByEntry || !strings.HasPrefix(last.Module.Name, "ld-") || !contains(&w, "waits", "early") {
		t.Error(chain(&w))
	}
}

// TestMusl: the C library of musl has no unwind information at all. What is
// outside of it can be walked, and its signal trampoline is known.
func TestMusl(t *testing.T) {
	t.Parallel()
	testtarget.Need(t, "musl-gcc")
	source := map[string]string{"spin.c": `
#include <signal.h>
#include <stdio.h>
#include <unistd.h>
volatile int stop;
__attribute__((noinline)) void spins(void) { while (!stop) ; }
__attribute__((noinline)) void handler(int s) { spins(); stop = s; }
__attribute__((noinline)) void faults(void) { *(volatile int *)8 = 1; stop = 2; }
int main(void) { signal(SIGSEGV, handler); printf("READY %d\n", getpid()); fflush(stdout); faults(); return stop; }`}
	path := testtarget.Build(t, testtarget.Spec{Files: source, Compiler: "musl-gcc", Flags: []string{"-O2"}})
	x := open(t, testtarget.Start(t, path).PID())
	list := x.u.Prepare()
	var w Walk
	for range 100 { // until it is in the handler
		if w = x.walks(t)[x.pid]; contains(&w, "spins", "handler") {
			break
		}
	}
	i := slices.IndexFunc(w.Frames, func(f Frame) bool { return f.How == BySigreturn })
	if i < 0 || !w.Frames[i+1].Signal || !contains(&w, "faults", "main") {
		t.Errorf("no signal frame: %s", chain(&w))
	}
	if w.Complete || !strings.HasSuffix(w.Why, whyNoInfo) && !strings.HasSuffix(w.Why, whyNoTable) {
		t.Errorf("it must end in the C library: %s", chain(&w))
	}
	t.Log(list)
}

// TestDeep: the limit ends a walk as incomplete, and a deep stack is walked to
// its end.
func TestDeep(t *testing.T) {
	t.Parallel()
	x := special(t, []string{"-fno-optimize-sibling-calls"}, "deep", "1500")
	w := x.walks(t)[x.pid]
	if !w.Complete || len(w.Frames) < 1500 || !w.Covers(w.Frames[700].SP) || w.Covers(w.Frames[0].SP-8) {
		t.Errorf("%d frames, %s", len(w.Frames), w.Why)
	}
	x.u.mem.empty()
	if end, ok := x.u.layout.stackEnd(w.Frames[0].SP); !ok || w.Covers(end-8) {
		t.Errorf("the end of the stack %#x is covered", end)
	}
}

// TestFromMemory: a module whose file cannot be read has no sections; its table
// is found by its segment.
func TestFromMemory(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libstdc++.so.6", "/usr/lib/x86_64-linux-gnu/libstdc++.so.6"} {
		im, err := openFile(name)
		if err != nil {
			continue
		}
		whole, err := ehTable(im)
		if err != nil {
			t.Fatal(err)
		}
		bare := withoutSections(t, name)
		if _, ok := bare.Section(".eh_frame"); ok {
			t.Fatal("there are sections")
		}
		table, err := ehTable(bare)
		if err != nil {
			t.Fatal(err)
		}
		if len(table.fdes) != len(whole.fdes) || len(table.fdes) < 1000 {
			t.Errorf("%s: %d records without sections, %d with", name, len(table.fdes), len(whole.fdes))
		}
		return
	}
	t.Error("no library found")
}

// TestSetMaps: a module that is not mapped any more as it was is not used.
func TestSetMaps(t *testing.T) {
	t.Parallel()
	x := special(t, nil, "deep")
	if w := x.walks(t)[x.pid]; !w.Complete {
		t.Fatal(chain(&w))
	}
	maps, err := x.proc.Maps()
	if err != nil {
		t.Fatal(err)
	}
	exe := x.space.Executable()
	regs := Regs{RIP: exe.Addr(exe.Image.Entry()), RSP: stackTop(t, maps) - 64}
	x.u.SetMaps(maps)
	if w := x.u.Walk(regs, 10); !w.Complete || w.Frames[0].How != ByMark {
		t.Error(chain(&w))
	}
	for name, change := range map[string]func(*procfs.Map){
		"another file":   func(m *procfs.Map) { m.Inode++ },
		"another offset": func(m *procfs.Map) { m.Offset += 4096 },
		"no code":        func(m *procfs.Map) { m.Perm &^= procfs.Exec },
		"elsewhere":      func(m *procfs.Map) { m.End = m.Start + 1 },
	} {
		changed := slices.Clone(maps)
		for i := range changed {
			if changed[i].Perm&procfs.Exec != 0 && exe.Contains(changed[i].Start) {
				change(&changed[i])
			}
		}
		x.u.SetMaps(changed)
		if w := x.u.Walk(regs, 10); w.Complete || !strings.HasSuffix(w.Why, whyStale) {
			t.Errorf("%s: %s", name, chain(&w))
		}
	}
}

func stackTop(t *testing.T, maps []procfs.Map) uint64 {
	for _, m := range maps {
		if m.Path == "[stack]" {
			return m.End
		}
	}
	t.Fatal("no stack")
	return 0
}

// TestStub: code that the caller vouches for, such as an island, has its return
// address on top of the stack.
func TestStub(t *testing.T) {
	t.Parallel()
	x := special(t, nil, "deep")
	var w Walk
	for _, w = range x.walks(t) {
	}
	// As if the thread had just been called in another place: nobody's code. The frames
	// inside of the recursion may have changed since, if the thread had not come to rest.
	f := w.Frames[slices.IndexFunc(w.Frames, func(f Frame) bool { return f.Function == "recurse" })]
	const island = 0x10000
	regs := Regs{RIP: island, RSP: f.At, RBP: 1}
	if got := x.u.Walk(regs, 100); got.Complete || !strings.HasSuffix(got.Why, whyNoModule) {
		t.Error(chain(&got))
	}
	x.u.Stub = func(pc uint64) bool { return pc == island }
	got := x.u.Walk(regs, 100)
	if got.Frames[0].How != ByStub || len(got.Frames) < 2 || got.Frames[1].PC != f.PC || got.Frames[1].SP != f.SP {
		t.Error(chain(&got))
	}
}

// TestHostileRegisters: whatever the registers are, a walk ends and says why.
func TestHostileRegisters(t *testing.T) {
	t.Parallel()
	x := special(t, nil, "deep")
	var w Walk
	for _, w = range x.walks(t) {
	}
	pc, sp := w.Frames[0].PC, w.Frames[0].SP
	for name, r := range map[string]Regs{
		"zero":             {},
		"no code":          {RIP: sp, RSP: sp},
		"no stack":         {RIP: pc, RSP: 0},
		"stack in code":    {RIP: pc, RSP: pc &^ 7},
		"highest address":  {RIP: ^uint64(0), RSP: ^uint64(0)},
		"last of the code": {RIP: 1<<47 - 1, RSP: 1<<47 - 8},
	} {
		if got := x.u.Walk(r, 100); got.Complete || got.Why == "" || len(got.Frames) != 1 {
			t.Errorf("%s: %s", name, chain(&got))
		}
	}
	if got := x.u.Walk(Regs{RIP: pc, RSP: sp}, 1); got.Complete || len(got.Frames) != 1 {
		t.Errorf("limit 1: %s", chain(&got))
	}
	if got := x.u.Walk(Regs{RIP: pc, RSP: sp}, -5); got.Complete || len(got.Frames) != 1 {
		t.Errorf("limit -5: %s", chain(&got))
	}
}

// TestNoAllocation: a walk allocates its result and nothing else.
func TestNoAllocation(t *testing.T) {
	x := special(t, nil, "deep", "30")
	var w Walk
	for _, w = range x.walks(t) {
	}
	r := Regs{RIP: w.Frames[0].PC, RSP: w.Frames[0].SP}
	if got := x.u.Walk(r, 100); !got.Complete {
		t.Fatal(chain(&got))
	}
	if n := testing.AllocsPerRun(20, func() { x.u.Walk(r, 100) }); n > 1 {
		t.Errorf("%v allocations", n)
	}
}

// TestPrepareTells: modules without tables are named.
func TestPrepareTells(t *testing.T) {
	t.Parallel()
	x := open(t, testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Files: source(t, "special.c"), Flags: []string{"-O2"}}), testtarget.Args("deep")).PID())
	exe := x.space.Executable()
	broken := *exe
	broken.Image = withoutSections(t, "/proc/"+fmt.Sprint(x.pid)+"/exe", elf.PT_GNU_EH_FRAME)
	u := New(x.space, x.mem)
	list := u.Prepare(&broken)
	if len(list) != 1 || list[0].Code != "no-unwind-tables" {
		t.Errorf("%v", list)
	}
	if list := u.Prepare(&broken); len(list) != 0 {
		t.Errorf("prepared twice: %v", list)
	}
	other := *exe
	other.Image = damaged(t, "/proc/"+fmt.Sprint(x.pid)+"/exe")
	if list := u.Prepare(&other); len(list) != 1 || list[0].Code != "damaged-unwind-tables" {
		t.Errorf("%v", list)
	}
	if list := u.Prepare(); len(list) != 0 {
		t.Errorf("%v", list)
	}
}

// BenchmarkWalk measures a walk of 1,000 frames.
func BenchmarkWalk(b *testing.B) {
	path := testtarget.Build(b, testtarget.Spec{Files: source(b, "special.c"), Flags: []string{"-O2", "-fno-optimize-sibling-calls"}})
	x := open(b, testtarget.Start(b, path, testtarget.Args("deep", "1000")).PID())
	x.u.Prepare()
	w := x.walks(b)[x.pid]
	r := Regs{RIP: w.Frames[0].PC, RSP: w.Frames[0].SP}
	b.ReportAllocs()
	for b.Loop() {
		if w := x.u.Walk(r, 2000); !w.Complete {
			b.Fatal(chain(&w))
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(w.Frames)), "ns/frame")
}
