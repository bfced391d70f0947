package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// jumpTarget gives where the jump at an address goes, and its length.
func jumpTarget(t testing.TB, pid int, addr uint64) (to uint64, size int) {
	t.Helper()
	b := peek(t, pid, addr, 14)
	switch {
	case b[0] == 0xe9:
		return addr + 5 + uint64(int64(int32(binary.LittleEndian.Uint32(b[1:])))), 5
	case bytes.HasPrefix(b, []byte{0xff, 0x25, 0, 0, 0, 0}):
		return binary.LittleEndian.Uint64(b[6:]), 14
	case b[0] == 0xeb:
		return addr + 2 + uint64(int64(int8(b[1]))), 2
	}
	t.Fatalf("there is no jump at %#x: % x", addr, b)
	return 0, 0
}

// entryCase is what becomes of one function of entryAsm. code is the refusal, if
// it is one; why is in its message.
type entryCase struct {
	name      string
	old       int // what it gives for 5
	method    string
	code, why string
}

var nearCases = []entryCase{
	{name: "tight3", old: 5, code: "short-function", why: "3 of 5 bytes are available"},
	{name: "tight4", old: 5, code: "short-function", why: "4 of 5 bytes are available"},
	{name: "tight_endbr", old: 5, code: "short-function", why: "4 of 5 bytes are available (4 of the function behind endbr64"},
	{name: "exact5", old: 6, method: "entry"},
	{name: "nops_behind", old: 5, method: "entry"},
	{name: "single_nops_behind", old: 5, method: "entry"},
	{name: "int3_behind", old: 5, method: "entry"},
	{name: "pad_in_front", old: 5, method: "entry (pad)"},
	{name: "single_nops_in_front", old: 5, method: "entry (pad)"},
	{name: "small_pad_in_front", old: 5, code: "short-function", why: "4 of 5 bytes of padding are available"},
	{name: "endbr_pad", old: 5, method: "entry (pad)"},
	{name: "loop_to_1", old: 15, code: "branch-into-prologue", why: "+1"},
	{name: "loop_to_2", old: 15, code: "branch-into-prologue", why: "+2"},
	{name: "loop_to_3", old: 15, code: "branch-into-prologue", why: "+3"},
	{name: "loop_to_4", old: 15, code: "branch-into-prologue", why: "+4"},
	{name: "loop_to_5", old: 15, method: "entry"},
	{name: "reads_itself", old: 5, code: "reference-into-prologue", why: "+2"},
	{name: "undecodable", old: 13, code: "unknown-instruction"},
	{name: "nine", old: 14, method: "entry"},
	{name: "nine_padded", old: 14, method: "entry"},
	{name: "loop_to_7", old: 15, method: "entry"},
	{name: "cross1", old: 6, method: "entry"},
	{name: "cross2", old: 7, method: "entry"},
	{name: "cross3", old: 8, method: "entry"},
	{name: "cross4", old: 9, method: "entry"},
}

// farCases are those that need 14 bytes, since no island can be had.
var farCases = []entryCase{
	{name: "exact5", old: 6, code: "short-function", why: "5 of 14 bytes are available"},
	{name: "nine", old: 14, code: "short-function", why: "9 of 14 bytes are available"},
	{name: "nine_padded", old: 14, method: "entry (pad) (14 bytes)"},
	{name: "pad_in_front", old: 5, method: "entry (pad) (14 bytes)"},
	{name: "endbr_pad", old: 5, method: "entry (pad) (14 bytes)"},
	{name: "loop_to_7", old: 15, code: "branch-into-prologue", why: "+7"},
	{name: "loop_to_5", old: 15, code: "branch-into-prologue", why: "+5"},
	{name: "reads_itself", old: 5, code: "reference-into-prologue", why: "+2"},
	{name: "cross1", old: 6, method: "entry (14 bytes)"},
	{name: "cross4", old: 9, method: "entry (14 bytes)"},
}

// check applies a patch of the function, looks at the answers and at the bytes,
// and takes it out again; or sees it refused.
func (c entryCase) check(t *testing.T, p *testtarget.Process, far bool) {
	t.Helper()
	pid := p.PID()
	patch := calcPatch(t, c.name, 1000, c.name, 1)
	asks(t, p, c.name, 5, c.old)
	if c.code != "" {
		before := testtarget.TextSnapshot(t, pid)
		e := applyRefused(t, pid, 4, c.code, patch)
		why := c.why
		if offset, ok := strings.CutPrefix(why, "+"); ok { // an address within the function
			n, err := strconv.ParseUint(offset, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			why = fmt.Sprintf("%#x", exeSymbol(t, pid, c.name)+n)
		}
		if !strings.Contains(e.Why, why) {
			t.Errorf("%s: the message says %q, want %q in it", c.name, e.Why, why)
		}
		identical(t, before, pid)
		asks(t, p, c.name, 5, c.old)
		return
	}
	r := applyOne(t, pid, patch).only(t)
	if r.Method != c.method {
		t.Errorf("%s is replaced by %q, want %q", c.name, r.Method, c.method)
	}
	asks(t, p, c.name, 5, 1005)
	c.checkBytes(t, pid, r, far)
	verify(t, pid)
	revert(t, pid)
	asks(t, p, c.name, 5, c.old)
}

// checkBytes follows the jumps from the entry to the patch library.
func (c entryCase) checkBytes(t *testing.T, pid int, r replacedState, far bool) {
	t.Helper()
	entry := uint64(r.Old)
	if bytes.Contains([]byte(c.name), []byte("endbr")) {
		if got := peek(t, pid, entry, 4); !bytes.Equal(got, []byte{0xf3, 0x0f, 0x1e, 0xfa}) {
			t.Errorf("%s: endbr64 was overwritten: % x", c.name, got)
		}
		entry += 4
	}
	to, size := jumpTarget(t, pid, entry)
	if pad := strings.Contains(c.method, "(pad)"); pad != (size == 2) {
		t.Errorf("%s: a jump of %d bytes is at the entry, the method is %q", c.name, size, c.method)
	} else if pad {
		if to >= uint64(r.Old) {
			t.Errorf("%s: the short jump goes to %#x, which is not in front of %#x", c.name, to, uint64(r.Old))
		}
		to, size = jumpTarget(t, pid, to)
	}
	if want := map[bool]int{false: 5, true: 14}[far]; size != want {
		t.Errorf("%s: the jump has %d bytes, want %d", c.name, size, want)
	}
	if !far { // the island: code that reads its destination from the page behind
		if m := mappingAt(t, pid, to); m.perms != "r-xp" || m.path != "" {
			t.Errorf("%s: the jump goes to %v, which is no island", c.name, m)
		}
		b := peek(t, pid, to, 6)
		if b[0] != 0xff || b[1] != 0x25 {
			t.Fatalf("%s: the island has % x", c.name, b)
		}
		word := to + 6 + uint64(int64(int32(binary.LittleEndian.Uint32(b[2:]))))
		if m := mappingAt(t, pid, word); m.perms != "r--p" {
			t.Errorf("%s: the destination stands in %v", c.name, m)
		}
		to = binary.LittleEndian.Uint64(peek(t, pid, word, 8))
	}
	if m := mappingAt(t, pid, to); m.perms != "r-xp" || !strings.Contains(m.path, "hotpatch") {
		t.Errorf("%s: the last jump goes to %v, which is not the patch library", c.name, m)
	}
	for _, m := range mappings(t, pid) {
		if strings.Contains(m.perms, "wx") {
			t.Errorf("%v is writable and executable", m)
		}
	}
}

// TestEntryNear: the forms of entries, with an island in reach.
func TestEntryNear(t *testing.T) {
	lengthy(t)
	t.Parallel()
	for _, link := range []string{"-pie", "-no-pie"} {
		t.Run(link, func(t *testing.T) {
			t.Parallel()
			flags := []string{link}
			if link == "-no-pie" {
				flags = append(flags, "-fno-pie")
			}
			p := testtarget.Start(t, entryTarget(t, flags...))
			before := testtarget.TextSnapshot(t, p.PID())
			for _, c := range nearCases {
				c.check(t, p, false)
			}
			unchanged(t, before, p.PID())
			p.Healthy(t)
		})
	}
}

// TestEntryFar: the same where the target has taken all address space in reach.
func TestEntryFar(t *testing.T) {
	t.Parallel()
	for _, link := range some([]string{"-pie", "-no-pie"}, 1) {
		t.Run(link, func(t *testing.T) {
			t.Parallel()
			flags := []string{link}
			if link == "-no-pie" {
				flags = append(flags, "-fno-pie")
			}
			p := testtarget.Start(t, entryTarget(t, flags...), testtarget.Env("FAR=1"))
			before := testtarget.TextSnapshot(t, p.PID())
			for _, c := range farCases {
				c.check(t, p, true)
			}
			unchanged(t, before, p.PID())
			p.Healthy(t)
		})
	}
}

// TestEntryAlignment: entries at every address modulo 8, and others that the
// calculator has, in one patch each.
func TestEntryAlignment(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, testtarget.Build(t, testtarget.Spec{Sources: calcSources, Flags: []string{"-O2"}}))
	before := testtarget.TextSnapshot(t, p.PID())
	for i := range 8 {
		name := fmt.Sprintf("mod%d", i)
		if at := exeSymbol(t, p.PID(), name); at%8 != uint64(i) {
			t.Fatalf("%s is at %#x", name, at)
		}
		answers(t, p, name, 5, 5+i)
		applyOne(t, p.PID(), calcPatch(t, name, 1000, name, 1))
		answers(t, p, name, 5, 1005)
	}
	for _, f := range []struct {
		name string
		old  int
	}{{"rip_relative", 45}, {"endbr", 8}, {"jump_away", 11}, {"page_cross", 10}} { // jump_away goes on in page_cross
		answers(t, p, f.name, 5, f.old)
		applyOne(t, p.PID(), calcPatch(t, f.name, 1000, f.name, 1))
		answers(t, p, f.name, 5, 1005)
	}
	if at := exeSymbol(t, p.PID(), "page_cross"); at%4096 != 4094 {
		t.Fatalf("page_cross is at %#x", at)
	}
	verify(t, p.PID())
	revert(t, p.PID())
	for i := range 8 {
		answers(t, p, fmt.Sprintf("mod%d", i), 5, 5+i)
	}
	unchanged(t, before, p.PID())
}

// TestPatchableEntry: programs that were built to be patched. The pad in front of
// the entry is used where the function is too short for the jump.
func TestPatchableEntry(t *testing.T) {
	t.Parallel()
	// The tiny functions have fewer than 14 bytes. clang puts every function at a
	// multiple of 16 in any case; there, they have room behind.
	const source = `
#ifdef __clang__
#define ALIGNED __attribute__((aligned(64)))
#else
#define ALIGNED
#endif
ALIGNED long tiny(long x) { return x; }
ALIGNED long tiny2(long x) { return x; }
ALIGNED long longer(long x) { long y = x; __asm__ volatile("" : "+r"(y)); return y * 3 + (x ^ 5) / 7 * 11; }
`
	type build struct {
		compiler, entry string
		cet             bool
	}
	var builds []build
	for _, compiler := range []string{"gcc", "clang"} {
		for _, entry := range []string{"16,14", "5", "2,0"} {
			for _, cet := range []bool{false, true} {
				builds = append(builds, build{compiler, entry, cet})
			}
		}
	}
	for _, b := range some(builds, 1, 6, 8, 11) {
		t.Run(fmt.Sprintf("%s %s cet=%v", b.compiler, b.entry, b.cet), func(t *testing.T) {
			t.Parallel()
			flags := []string{"-O2", "-fno-align-functions", "-fpatchable-function-entry=" + b.entry}
			if b.cet {
				flags = append(flags, "-fcf-protection=full")
			} else {
				flags = append(flags, "-fcf-protection=none")
			}
			names := []string{"tiny", "tiny2", "longer"}
			exe := testtarget.Build(t, testtarget.Spec{Name: "patchable", Compiler: b.compiler, Flags: flags,
				Files: map[string]string{"patchable.c": source, "main.c": callerSource(names), "reserve.c": reserveSource}})
			for _, far := range []bool{false, true} {
				var env []string
				if far {
					env = append(env, "FAR=1")
				}
				p := testtarget.Start(t, exe, testtarget.Env(env...))
				pid := p.PID()
				before := testtarget.TextSnapshot(t, pid)
				endbr := bytes.Equal(peek(t, pid, exeSymbol(t, pid, "tiny"), 4), []byte{0xf3, 0x0f, 0x1e, 0xfa})
				if endbr != b.cet {
					t.Fatalf("endbr64 at the entry: %v", endbr)
				}
				for _, name := range names {
					old := map[string]int{"tiny": 5, "tiny2": 5, "longer": 15}[name]
					asks(t, p, name, 5, old)
					patch := calcPatch(t, name, 1000, name, 1)
					if far && b.entry != "16,14" && name != "longer" && b.compiler == "gcc" {
						applyRefused(t, pid, 4, "short-function", patch)
						asks(t, p, name, 5, old)
						continue
					}
					r := applyOne(t, pid, patch).only(t)
					asks(t, p, name, 5, 1005)
					pad := strings.Contains(r.Method, "(pad)")
					if far && b.entry == "16,14" && name != "longer" && !pad {
						t.Errorf("%s is replaced by %q, and the pad should be used", name, r.Method)
					}
					if strings.Contains(r.Method, "14 bytes") != far {
						t.Errorf("%s is replaced by %q, far is %v", name, r.Method, far)
					}
					at := uint64(r.Old)
					if endbr {
						if got := peek(t, pid, at, 4); !bytes.Equal(got, []byte{0xf3, 0x0f, 0x1e, 0xfa}) {
							t.Errorf("%s: endbr64 was overwritten: % x", name, got)
						}
						at += 4
					}
					jumpTarget(t, pid, at)
				}
				verify(t, pid)
				revert(t, pid)
				for _, name := range names {
					asks(t, p, name, 5, map[string]int{"tiny": 5, "tiny2": 5, "longer": 15}[name])
				}
				unchanged(t, before, pid)
				p.Healthy(t)
			}
		})
	}
}

// TestManyFunctions: more functions in one patch than an island has slots.
func TestManyFunctions(t *testing.T) {
	t.Parallel()
	const n = 600
	var names []string
	var old, new strings.Builder
	for i := range n {
		name := fmt.Sprintf("many_%d", i)
		names = append(names, name)
		fmt.Fprintf(&old, "long %s(long x) { return x + %d; }\n", name, i)
		fmt.Fprintf(&new, "long %s(long x) { return x + %d; }\n", name, 10000+i)
	}
	exe := testtarget.Build(t, testtarget.Spec{Name: "many", Flags: []string{"-O1", "-falign-functions=16"},
		Files: map[string]string{"many.c": old.String(), "main.c": callerSource(names)}})
	patch := testtarget.Build(t, testtarget.Spec{Name: "many.so", Flags: []string{"-O1"}, Shared: true,
		Files: map[string]string{"many.c": new.String()}})
	p := testtarget.Start(t, exe)
	all := func(plus int) {
		t.Helper()
		p.Send("all 1")
		for i, name := range names {
			want := fmt.Sprintf("%s(1) = %d", name, 1+plus+i)
			if got := p.Line(`^\w+\(1\) = `, testtarget.Timeout); got != want {
				t.Fatalf("the target says %q, want %q", got, want)
			}
		}
		p.Line("^all done$", testtarget.Timeout)
	}
	all(0)
	before := testtarget.TextSnapshot(t, p.PID())
	r := applyOne(t, p.PID(), patch)
	all(10000)
	islands := make(map[uint64]bool)
	for _, s := range r.sites("entry") {
		to, _ := jumpTarget(t, p.PID(), uint64(s.Address))
		islands[to&^4095] = true
	}
	if len(r.Replaced) != n || len(islands) < 2 {
		t.Errorf("%d functions, by way of %d islands", len(r.Replaced), len(islands))
	}
	verify(t, p.PID())
	revert(t, p.PID())
	all(0)
	unchanged(t, before, p.PID())
	// The islands are there, and are used again.
	after := len(mappings(t, p.PID()))
	applyOne(t, p.PID(), patch)
	all(10000)
	if got := len(mappings(t, p.PID())); got != after {
		t.Errorf("%d mappings after the second apply, %d before", got, after)
	}
	p.Healthy(t)
}

// TestSecondPatch: a later patch of a function leaves its entry alone and gives
// the island another destination. Where there is no island, the entry changes.
func TestSecondPatch(t *testing.T) {
	t.Parallel()
	for _, far := range []bool{false, true} {
		t.Run(fmt.Sprintf("far=%v", far), func(t *testing.T) {
			t.Parallel()
			name, old, env := "exact5", 6, []string(nil)
			if far {
				name, old, env = "cross1", 6, []string{"FAR=1"}
			}
			p := testtarget.Start(t, entryTarget(t), testtarget.Env(env...))
			pid := p.PID()
			before := testtarget.TextSnapshot(t, pid)
			entry := uint64(applyOne(t, pid, calcPatch(t, name, 1000, "second", 1)).only(t).Old)
			asks(t, p, name, 5, 1005)
			code := peek(t, pid, entry, 14)
			first := testtarget.TextSnapshot(t, pid)
			applyOne(t, pid, calcPatch(t, name, 2000, "second", 2))
			asks(t, p, name, 5, 2005)
			if same := bytes.Equal(code, peek(t, pid, entry, 14)); same == far {
				t.Errorf("the entry is the same: %v", same)
			}
			if !far {
				island, _ := jumpTarget(t, pid, entry)
				for _, line := range testtarget.Diff(first, testtarget.TextSnapshot(t, pid)) {
					if strings.HasPrefix(line, "changed ") && strings.Contains(line, fmt.Sprintf("%x-", island&^4095)) {
						t.Errorf("the island's code: %s", line)
					}
				}
			}
			verify(t, pid)
			revert(t, pid, "second@2")
			asks(t, p, name, 5, 1005)
			if !bytes.Equal(code, peek(t, pid, entry, 14)) {
				t.Errorf("the entry is not that of the first patch")
			}
			revert(t, pid)
			asks(t, p, name, 5, old)
			unchanged(t, before, pid)
		})
	}
}

// TestSharedPadding: of two neighbours, one has taken padding that the other
// would need too.
func TestSharedPadding(t *testing.T) {
	t.Parallel()
	p := testtarget.Start(t, entryTarget(t))
	pid := p.PID()
	both := testtarget.Build(t, testtarget.Spec{Name: "both.so", Flags: []string{"-O2"}, Shared: true,
		Files: map[string]string{"both.c": "long shares_a(long x) { return x + 1; }\nlong shares_b(long x) { return x + 2; }\n"}})
	a, b := calcPatch(t, "shares_a", 1000, "a", 1), calcPatch(t, "shares_b", 2000, "b", 1)
	applyRefused(t, pid, 4, "sites-overlap", both)
	applyOne(t, pid, a)
	before := testtarget.TextSnapshot(t, pid)
	for _, dry := range []string{"--dry-run", "--dry-run=false"} {
		e := applyRefused(t, pid, 4, "sites-overlap", dry, b)
		if !strings.Contains(e.Why, "by which shares_a is replaced") {
			t.Errorf("the message says %q", e.Why)
		}
	}
	identical(t, before, pid)
	asks(t, p, "shares_a", 5, 1005)
	asks(t, p, "shares_b", 5, 5)
	revert(t, pid)
	applyOne(t, pid, b)
	asks(t, p, "shares_a", 5, 5)
	asks(t, p, "shares_b", 5, 2005)
	verify(t, pid)
}
