package trampoline

import (
	"bufio"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The oracle is objdump: every instruction that it finds in real programs is
// decoded by Decode, and the two must agree about the length and about every
// direct target and operand relative to RIP. Decode may refuse, but not often.

// oracle gives the path of objdump. Where CI is set it has to be there.
func oracle(t *testing.T) string {
	t.Helper()
	return needTool(t, "objdump")
}

func needTool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not installed, and CI is set", name)
		}
		t.Skipf("%s is not installed", name)
	}
	return path
}

// dumped is one line of objdump.
type dumped struct {
	addr  uint64
	bytes []byte
	text  string
}

var (
	lineRE   = regexp.MustCompile(`^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *\t(.*)$`)
	branchRE = regexp.MustCompile(`(?:^| )(?:j[a-z]+|call[a-z]*|loop[a-z]*|xbegin[a-z]*)(?:,p[nt])? +(?:0x)?([0-9a-f]+)(?: <|$)`)
	ripRE    = regexp.MustCompile(`\(%[re]ip\).* # (?:0x)?([0-9a-f]+)`)
)

func disassemble(t *testing.T, objdump string, args []string, f func(dumped)) {
	t.Helper()
	cmd := exec.Command(objdump, append([]string{"-w", "--insn-width=15"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		m := lineRE.FindStringSubmatch(sc.Text())
		if m == nil {
			continue
		}
		addr, err1 := strconv.ParseUint(m[1], 16, 64)
		code, err2 := hex.DecodeString(strings.ReplaceAll(m[2], " ", ""))
		if err1 != nil || err2 != nil {
			t.Fatalf("objdump line %q", sc.Text())
		}
		f(dumped{addr, code, strings.TrimSpace(m[3])})
	}
	if err := sc.Err(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("objdump: %v", err)
	}
}

// compare is the comparison of one file.
type compare struct {
	text    []byte // the section
	base    uint64 // its address
	end     uint64 // objdump was stopped here
	count   int
	refused map[string]int // by mnemonic
	wrong   []string
}

func (c *compare) check(d dumped) {
	off := d.addr - c.base
	if d.addr < c.base || d.addr+maxInst > c.end || off+maxInst > uint64(len(c.text)) {
		return // objdump itself may have cut it off
	}
	if strings.Contains(d.text, "(bad)") || strings.HasPrefix(d.text, ".byte") {
		return // data, or objdump stopped in the middle because a symbol begins
	}
	c.count++
	in, err := Decode(c.text[off:off+maxInst], d.addr)
	if err != nil {
		op, _, _ := strings.Cut(d.text, " ")
		c.refused[op]++
		return
	}
	if in.Op == "fwait" {
		return // objdump joins it with what follows, or parts it from its prefix
	}
	var miss []string
	if in.Len != len(d.bytes) {
		miss = append(miss, fmt.Sprintf("length %d", in.Len))
	}
	miss = append(miss, differ("target", in.HasTarget, in.Target, branchRE.FindStringSubmatch(d.text))...)
	miss = append(miss, differ("rip", in.RIPRel, in.RIPTarget, ripTarget(d.text))...)
	if in.Flow == Next && (in.HasTarget || strings.HasPrefix(d.text, "ret") || strings.HasPrefix(d.text, "syscall")) {
		miss = append(miss, "flow next")
	}
	if len(miss) > 0 {
		c.wrong = append(c.wrong, fmt.Sprintf("%x: % x: objdump %q, Decode %q: %s",
			d.addr, d.bytes, d.text, in, strings.Join(miss, ", ")))
	}
}

// ripTarget gives the address in objdump's comment, as a match. With 32-bit
// addressing objdump extends its sign, and the processor does not (SDM volume 1,
// 3.6.1).
func ripTarget(text string) []string {
	m := ripRE.FindStringSubmatch(text)
	if m != nil && strings.Contains(text, "(%eip)") {
		m[1] = strings.TrimLeft(m[1][max(0, len(m[1])-8):], "0")
	}
	return m
}

func differ(what string, has bool, got uint64, want []string) []string {
	switch {
	case want == nil && has:
		return []string{fmt.Sprintf("%s 0x%x, where there is none", what, got)}
	case want != nil && !has:
		return []string{what + " missing"}
	case want != nil && strconv.FormatUint(got, 16) != want[1]:
		return []string{fmt.Sprintf("%s 0x%x", what, got)}
	}
	return nil
}

// report fails on any disagreement, and if more than one instruction in limit
// was refused.
func (c *compare) report(t *testing.T, limit int) {
	t.Helper()
	sum := 0
	for _, n := range c.refused {
		sum += n
	}
	ops := slices.SortedFunc(maps.Keys(c.refused), func(a, b string) int { return c.refused[b] - c.refused[a] })
	t.Logf("%d instructions, %d refused, %d disagreements", c.count, sum, len(c.wrong))
	for _, op := range ops[:min(len(ops), 20)] {
		t.Logf("refused %d times: %s", c.refused[op], op)
	}
	for _, w := range c.wrong[:min(len(c.wrong), 20)] {
		t.Error(w)
	}
	if c.count == 0 {
		t.Error("nothing was compared")
	}
	if sum*limit > c.count {
		t.Errorf("%d of %d instructions refused: more than 1 in %d", sum, c.count, limit)
	}
}

func compareText(t *testing.T, path string, limit int) {
	t.Helper()
	objdump := oracle(t)
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
	c := &compare{text: text, base: sec.Addr, refused: map[string]int{}}
	for _, r := range samples(Range{sec.Addr, sec.Addr + sec.Size}) {
		c.end = r.End
		disassemble(t, objdump, []string{"-d", "-j", ".text",
			fmt.Sprintf("--start-address=%#x", r.Start), fmt.Sprintf("--stop-address=%#x", r.End), path}, c.check)
	}
	c.report(t, limit)
}

// samples gives all of r, or in short mode two pieces of it.
func samples(r Range) []Range {
	const piece = 24 << 10
	if !testing.Short() || r.Len() <= 2*piece {
		return []Range{r}
	}
	var rs []Range
	for _, part := range []uint64{4, 2} {
		start := r.Start + r.Len()/part
		rs = append(rs, Range{start, min(start+piece, r.End)})
	}
	return rs
}

// realFiles are programs and libraries with much hand-written and vector code;
// those that are there are compared.
var realFiles = []string{
	"/usr/lib/*/libc.so.6",
	"/usr/lib/*/libm.so.6",
	"/usr/lib/*/libstdc++.so.6",
	"/usr/lib/*/libcrypto.so.3",
	"/usr/lib/*/libx265.so.*",
	"/usr/bin/bash",
	"/usr/bin/gdb",
}

func TestDecodeAgreesWithObjdump(t *testing.T) {
	t.Parallel()
	oracle(t)
	for _, path := range present(t, realFiles) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			compareText(t, path, 100)
		})
	}
}

// present gives the x86-64 files that match the patterns. There must be one.
func present(t *testing.T, patterns []string) []string {
	t.Helper()
	var found []string
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			f, err := elf.Open(path)
			if err != nil {
				continue
			}
			if f.Machine == elf.EM_X86_64 {
				found = append(found, path)
			}
			f.Close()
		}
	}
	if len(found) == 0 {
		t.Fatalf("none of %v is there: nothing can be checked", patterns)
	}
	return found
}

// vectorSource makes a compiler use every vector width, jump tables, calls to
// thread-local storage, tail calls and float constants relative to RIP.
const vectorSource = `
#include <math.h>
#include <string.h>
__thread int tls;
extern int ext(int);
static const float table[64] = { 1.5f, 2.5f, 3.5f };
float sum(const float *a, int n) { float s = 0; for (int i = 0; i < n; i++) s += a[i] * table[i & 63] + 0.7f; return s; }
void scale(double *a, const double *b, int n) { for (int i = 0; i < n; i++) a[i] = b[i] * 3.25 + sqrt(b[i]); }
void mask(int *a, const int *b, int n) { for (int i = 0; i < n; i++) if (b[i] > 7) a[i] = b[i] ^ 0x55aa55aa; }
void bytes(unsigned char *a, const unsigned char *b, int n) { for (int i = 0; i < n; i++) a[i] = b[i] > 'z' ? b[i] - 32 : b[i]; }
int choose(int x) { switch (x) { case 0: return ext(9); case 1: return ext(1) + 2; case 2: return tls++; case 3: return ext(4) * 3;
  case 4: return 77; case 5: return ext(x + 7) ^ 5; default: return ext(x); } }
int tail(int x) { return ext(x + 1); }
unsigned long bits(unsigned long x) { return __builtin_popcountl(x) + (x ? __builtin_ctzl(x) : 3); }
int atomic(int *p) { return __atomic_fetch_add(p, 3, __ATOMIC_SEQ_CST); }
void big(char *p) { memset(p, 7, 333); }
`

func TestDecodeCompiledCode(t *testing.T) {
	t.Parallel()
	oracle(t)
	for _, compiler := range []string{"gcc", "clang"} {
		for _, flags := range []string{
			"-O0", "-O2 -mavx2 -mfma", "-O3 -march=skylake-avx512 -mprefer-vector-width=512",
			"-O2 -fcf-protection=full", "-O2 -fPIC -ftls-model=global-dynamic -ffast-math",
			"-O2 -Wa,-mbranches-within-32B-boundaries", "-O1 -fpatchable-function-entry=16,14",
		} {
			if compiler == "clang" && strings.Contains(flags, "-Wa,") {
				continue // its assembler has another spelling of the option
			}
			t.Run(compiler+" "+flags, func(t *testing.T) {
				t.Parallel()
				cc := needTool(t, compiler)
				dir := t.TempDir()
				src, obj := filepath.Join(dir, "v.c"), filepath.Join(dir, "v.o")
				if err := os.WriteFile(src, []byte(vectorSource), 0o644); err != nil {
					t.Fatal(err)
				}
				args := append(strings.Fields(flags), "-c", "-o", obj, src)
				if out, err := exec.Command(cc, args...).CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				compareText(t, obj, 1000)
			})
		}
	}
}

// TestDecodeRandomBytes compares what no compiler makes. Every 16 random bytes
// are followed by 16 NOPs, so that objdump is in step again at the next ones.
func TestDecodeRandomBytes(t *testing.T) {
	t.Parallel()
	objdump := oracle(t)
	const slot = 32
	n := 40_000
	if testing.Short() {
		n = 4_000
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	leads := [][]byte{{}, {0x0f}, {0x0f, 0x38}, {0x0f, 0x3a}, {0x66}, {0x66, 0x0f}, {0xf3, 0x0f}, {0xf2, 0x0f},
		{0x48}, {0x48, 0x0f}, {0xc5}, {0xc4, 0xe1}, {0xc4, 0xe2}, {0xc4, 0xe3}, {0x62, 0xf1}, {0x62, 0xf2}, {0x62, 0xf3},
		{0x64}, {0x67}, {0x8f, 0xe8}, {0x8f, 0xe9}, {0xf0}, {0x66, 0x48}}
	text := make([]byte, 0, n*slot)
	for i := range n {
		at := len(text)
		text = append(text, leads[i%len(leads)]...)
		for len(text) < at+slot/2 {
			text = append(text, byte(rnd.Uint32()))
		}
		for len(text) < at+slot {
			text = append(text, 0x90)
		}
	}
	path := filepath.Join(t.TempDir(), "random")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	c := &compare{text: text, end: uint64(len(text)), refused: map[string]int{}}
	disassemble(t, objdump, []string{"-D", "-b", "binary", "-m", "i386:x86-64", path}, c.check)
	c.report(t, 100)
}
