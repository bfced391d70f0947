package trampoline

import (
	"cmp"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hotpatch/internal/fault"
)

// The functions of real files are judged, and nearly all must be fit: a rule
// that is too strict is a defect as well.

// functions gives the functions of a file with a symbol and a size, and the
// bytes up to the next symbol as what may be padding.
func functions(t *testing.T, path string) []Function {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sec := f.Section(".text")
	if sec == nil {
		t.Fatalf("%s has no .text", path)
	}
	text, err := sec.Data()
	if err != nil {
		t.Fatal(err)
	}
	syms, _ := f.Symbols() // stripped files have none
	dyn, _ := f.DynamicSymbols()
	syms = slices.DeleteFunc(append(syms, dyn...), func(s elf.Symbol) bool {
		return elf.ST_TYPE(s.Info) != elf.STT_FUNC || s.Size == 0 ||
			s.Value < sec.Addr || s.Value+s.Size > sec.Addr+sec.Size
	})
	slices.SortFunc(syms, func(a, b elf.Symbol) int {
		return cmp.Or(cmp.Compare(a.Value, b.Value), cmp.Compare(a.Size, b.Size))
	})
	syms = slices.CompactFunc(syms, func(a, b elf.Symbol) bool { return a.Value == b.Value })
	at := func(a uint64) uint64 { return a - sec.Addr }
	var fns []Function
	prev := sec.Addr
	for i, s := range syms {
		end, next := s.Value+s.Size, sec.Addr+sec.Size
		if i+1 < len(syms) {
			next = syms[i+1].Value
		}
		fns = append(fns, Function{
			Addr:   s.Value,
			Code:   text[at(s.Value):at(end)],
			After:  text[at(end):at(max(end, next))],
			Before: text[at(min(prev, s.Value)):at(s.Value)],
		})
		prev = end
	}
	return fns
}

// judgeAll judges all functions, follows the encodings, and gives the number of
// those that are unfit.
func judgeAll(t *testing.T, fns []Function, far bool) int {
	t.Helper()
	sum, unfit := 0, map[string]int{}
	for _, f := range fns {
		p, err := Judge(f, far)
		if err != nil {
			unfit[fault.CodeOf(err)]++
			sum++
			if fault.CodeOf(err) == "unknown-instruction" {
				t.Logf("%v", err)
			}
			continue
		}
		checkEncode(t, p)
	}
	t.Logf("far %v: %d functions, unfit: %v", far, len(fns), unfit)
	return sum
}

func TestJudgeRealLibraries(t *testing.T) {
	t.Parallel()
	for _, path := range present(t, []string{"/usr/lib/*/libc.so.6", "/usr/lib/*/libm.so.6", "/usr/lib/*/libstdc++.so.6", "/usr/bin/bash"}) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			fns := functions(t, path)
			if len(fns) < 100 {
				t.Errorf("only %d functions", len(fns))
			}
			if n := judgeAll(t, fns, false); n*100 > len(fns) {
				t.Errorf("%d of %d functions are unfit for 5 bytes: more than 1 in 100", n, len(fns))
			}
			// Behind an endbr64 that is kept, 14 bytes do not fit into 16.
			if n := judgeAll(t, fns, true); n*4 > len(fns) {
				t.Errorf("%d of %d functions are unfit for 14 bytes: more than 1 in 4", n, len(fns))
			}
		})
	}
}

// TestJudgeCompiled: what compilers make for those who prepare their builds.
func TestJudgeCompiled(t *testing.T) {
	t.Parallel()
	const src = `
int tiny(int x) { return x + 1; }
void nothing(void) { }
int loop(int n) { int s = 0; while (n--) s += n * n; return s; }
int (*hook)(int);
int call(int x) { return hook(x) + 1; }
`
	for _, tt := range []struct {
		flags string
		far   bool
		form  map[string]Form
	}{
		{flags: "-O2", form: map[string]Form{"tiny": Near, "nothing": Near, "loop": Near, "call": Near}},
		{flags: "-O0", form: map[string]Form{"tiny": Near, "nothing": Near, "loop": Near, "call": Near}},
		{flags: "-O2 -fcf-protection=full", form: map[string]Form{"tiny": Near, "nothing": Near, "loop": Near, "call": Near}},
		{flags: "-O2 -fpatchable-function-entry=16,14", form: map[string]Form{"tiny": Near, "call": Near}},
		{flags: "-O2 -fpatchable-function-entry=16,14", far: true, form: map[string]Form{"tiny": Pad, "nothing": Pad, "call": Far}},
		{flags: "-Os -fpatchable-function-entry=16,14", far: true, form: map[string]Form{"tiny": Pad, "nothing": Pad, "call": Far}},
		{flags: "-Os -fpatchable-function-entry=16,14 -fcf-protection=full", far: true, form: map[string]Form{"tiny": Pad, "nothing": Pad}},
		{flags: "-O2 -fpatchable-function-entry=5", form: map[string]Form{"tiny": Near, "nothing": Near, "loop": Near, "call": Near}},
	} {
		for _, compiler := range []string{"gcc", "clang"} {
			t.Run(fmt.Sprintf("%s %s far=%v", compiler, tt.flags, tt.far), func(t *testing.T) {
				t.Parallel()
				fns := compiled(t, compiler, tt.flags, src)
				for name, form := range tt.form {
					p, err := Judge(fns[name], tt.far)
					if err != nil {
						t.Errorf("%s: %v", name, err)
						continue
					}
					if p.Form != form {
						t.Errorf("%s: %v with writes %v, want %v", name, p.Form, p.Writes, form)
					}
					checkEncode(t, p)
					for other := range tt.form {
						if q, err := Judge(fns[other], tt.far); other != name && err == nil && p.Overlaps(q) {
							t.Errorf("%s with writes %v overlaps %s with %v", name, p.Writes, other, q.Writes)
						}
					}
				}
			})
		}
	}
}

// compiled gives the functions of a source by name.
func compiled(t *testing.T, compiler, flags, src string) map[string]Function {
	t.Helper()
	cc := needTool(t, compiler)
	dir := t.TempDir()
	c, so := filepath.Join(dir, "t.c"), filepath.Join(dir, "t.so")
	if err := os.WriteFile(c, []byte(src), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append(strings.Fields(flags), "-shared", "-fPIC", "-nostdlib", "-o", so, c)
	if out, err := exec.Command(cc, args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f, err := elf.Open(so)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	syms, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	byAddr := map[uint64]Function{}
	for _, fn := range functions(t, so) {
		byAddr[fn.Addr] = fn
	}
	fns := map[string]Function{}
	for _, s := range syms {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC {
			fns[s.Name] = byAddr[s.Value]
		}
	}
	return fns
}
