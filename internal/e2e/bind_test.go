package e2e

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// boundTarget has nothing that a dynamic linker could bind to.
const boundTarget = `
#include <stdio.h>
#include <stdlib.h>
static int counter;
static __attribute__((noinline, noclone)) int add(int x) { counter++; return x + counter; }
static __attribute__((noinline, noclone)) int work(int x) { return add(x) - counter + (x > 1000 ? rand() : 0); }
int main(void)
{
	char line[100];
	puts("READY");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		int result = work(atoi(line));
		printf("work %d counter %d\n", result, counter);
		fflush(stdout);
	}
	return 0;
}
`

// boundPatch is a patch of it as hotpatch build would make it: work(x) is
// add(x) + 100, and counter is set to twice its value. @name@ stands for what is
// known of the target.
const boundPatch = `
	.section .hotpatch.records, "awR", @progbits
	.balign 8
	.long 0x31525048, 40, 1, 0
	.quad 1, 0
	.asciz "bound"
	.balign 8
	.long 0x31525048, 32 + (3f - 2f), 11, 0
	.quad 1, 0
2:	.asciz "@id@"
	.asciz "target"
	.balign 8
3:
	.long 0x31525048, 32 + (3f - 2f), 14, 0
	.quad @work@, new_work
2:	.quad 1, @size@
	.asciz "work"
	.asciz "@sha@"
	.balign 8
3:
	.long 0x31525048, 56, 12, 2
	.quad @add@, call, 1, -4
	.asciz "add"
	.balign 8
	.long 0x31525048, 56, 12, 1
	.quad @counter@, slot, 1, 0
	.asciz "counter"
	.balign 8
	.long 0x31525048, 56, 12, 2
	.quad @counter@, direct, 1, -4
	.asciz "counter"
	.balign 8
@own@
	.text
	.type new_work, @function
new_work:
	sub $8, %rsp
	.byte 0xe8, 0, 0, 0, 0        # call add
	.set call, . - 4
	add $100, %eax
	.byte 0x8b, 0x0d, 0, 0, 0, 0  # mov counter(%rip), %ecx
	.set direct, . - 4
	mov slot(%rip), %rdx
	add %ecx, (%rdx)
	.byte 0xbe, 0, 0, 0, 0        # mov $word, %esi
	.set absolute, . - 4
	test %esi, %esi
	jz 1f
	add (%rsi), %eax
1:	add $8, %rsp
	ret
	.size new_work, . - new_work
	.data
	.balign 8
slot:	.quad 0
word:	.long 1000
	.section .note.GNU-stack,"",@progbits
`

const boundOwn = "	.long 0x31525048, 40, 13, 4\n	.quad 0, absolute, word\n"

// bound builds a patch for a program, replacing in its source what is given.
func bound(t *testing.T, exe string, replace ...string) string {
	t.Helper()
	f, err := elf.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	note, err := f.Section(".note.gnu.build-id").Data()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"@id@", hex.EncodeToString(note[16:]), "@own@", ""}
	syms, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range syms {
		if s.Name != "work" && s.Name != "add" && s.Name != "counter" {
			continue
		}
		args = append(args, "@"+s.Name+"@", fmt.Sprintf("%#x", s.Value))
		if s.Name == "work" {
			sec := f.Sections[s.Section]
			code := make([]byte, s.Size)
			if _, err := sec.ReadAt(code, int64(s.Value-sec.Addr)); err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(code)
			args = append(args, "@size@", fmt.Sprint(s.Size), "@sha@", hex.EncodeToString(sum[:]))
		}
	}
	text := strings.NewReplacer(append(replace, args...)...).Replace(boundPatch)
	return testtarget.Build(t, testtarget.Spec{Files: map[string]string{"bound.S": text}, Shared: true, Flags: []string{"-nostdlib"}})
}

// A patch that is bound to addresses in the program's file works, is verified
// with its code, and leaves nothing behind; also where the program has no symbols.
func TestBound(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, flags, own string }{
		{"PIE", "-O2 -pie -fPIE", ""},
		{"not PIE", "-O2 -no-pie -fno-pie", ""},
		{"not PIE, absolute", "-O2 -no-pie -fno-pie", boundOwn},
		{"high", "-O2 -no-pie -fno-pie -Wl,-Ttext-segment=0x70000000", boundOwn},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			exe := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"target.c": boundTarget}, Flags: strings.Fields(tt.flags)})
			patch := bound(t, exe, "@own@", tt.own)
			stripped := filepath.Join(t.TempDir(), "target")
			if out, err := exec.Command("strip", "-o", stripped, exe).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			p := testtarget.Start(t, stripped)
			say := func(x, result, counter int) {
				t.Helper()
				if got, want := p.Ask(fmt.Sprint(x), "work"), fmt.Sprintf("work %d counter %d", result, counter); got != want {
					t.Errorf("the program says %q, want %q", got, want)
				}
			}
			say(5, 5, 1)
			pid := fmt.Sprint(p.PID())
			before := testtarget.TextSnapshot(t, p.PID())
			for round := range 2 {
				more := 0
				if tt.own != "" {
					more = 1000
				}
				r := testtarget.Run(t, "apply", "--pid", pid, patch)
				if r.Exit != 0 {
					t.Fatalf("apply: %+v", r)
				}
				if round == 0 {
					say(5, 5+2+100+more, 4)
					say(5, 5+5+100+more, 10)
				} else {
					say(5, 5+12+100+more, 24)
				}
				if r := testtarget.Run(t, "verify", "--pid", pid); r.Exit != 0 {
					t.Errorf("verify: %+v", r)
				}
				if r := testtarget.Run(t, "revert", "--pid", pid, "bound"); r.Exit != 0 {
					t.Fatalf("revert: %+v", r)
				}
				unchanged(t, before, p.PID())
				if round == 0 {
					say(7, 7, 11)
				}
			}
			if r := testtarget.Run(t, "revert", "--pid", pid, "--all", "--unload"); r.Exit != 0 || len(mapsOf(t, p.PID(), "hotpatch:bound")) != 0 {
				t.Errorf("unload: %+v", r)
			}
			p.Healthy(t)
		})
	}
}

// In a Debian release whose loader does not look at where a library wants to be,
// the loader is led there.
func TestBoundOldLoader(t *testing.T) {
	t.Parallel()
	exe := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"target.c": boundTarget}, Flags: []string{"-O2"}, Tree: "bullseye"})
	p := testtarget.Start(t, exe, testtarget.InTree("bullseye"))
	pid := fmt.Sprint(p.PID())
	for i, want := range []string{"work 106 counter 2", "work 108 counter 6"} {
		if r := testtarget.Run(t, "apply", "--pid", pid, bound(t, exe)); r.Exit != 0 {
			t.Fatal(r)
		}
		if got := p.Ask("5", "work"); got != want {
			t.Errorf("round %d: the program says %q, want %q", i, got, want)
		}
		if r := testtarget.Run(t, "verify", "--pid", pid); r.Exit != 0 {
			t.Error(r)
		}
		if r := testtarget.Run(t, "revert", "--pid", pid, "--all", "--unload"); r.Exit != 0 || len(mapsOf(t, p.PID(), "hotpatch:bound")) != 0 {
			t.Error(r)
		}
	}
	p.Healthy(t)
}

// Two modules of one build leave it open which one is meant.
func TestBoundAmbiguous(t *testing.T) {
	t.Parallel()
	exe := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"target.c": strings.Replace(boundTarget, "int main(void)\n{\n", `
#include <dlfcn.h>
int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!dlopen(argv[i], RTLD_NOW))
			return 1;
`, 1)}, Flags: []string{"-O2"}})
	lib := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"target.c": strings.Replace(boundTarget, "int main", "int go", 1)}, Shared: true, Flags: []string{"-O2"}})
	data, err := os.ReadFile(lib)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "a.so"), filepath.Join(dir, "b.so")}
	for _, path := range paths {
		if err := os.WriteFile(path, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := testtarget.Start(t, exe, testtarget.Args(paths...))
	var said struct{ Error struct{ Code string } }
	if r := testtarget.RunJSON(t, &said, "apply", "--pid", fmt.Sprint(p.PID()), bound(t, lib)); r.Exit != 4 || said.Error.Code != "ambiguous-image" {
		t.Error(r)
	}
	p.Healthy(t)
}

// verify sees code of the library that somebody has changed.
func TestBoundVerified(t *testing.T) {
	t.Parallel()
	testtarget.NeedRoot(t) // to open the file that is mapped
	exe := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"target.c": boundTarget}, Flags: []string{"-O2"}})
	p := testtarget.Start(t, exe)
	pid := fmt.Sprint(p.PID())
	if r := testtarget.Run(t, "apply", "--pid", pid, bound(t, exe)); r.Exit != 0 {
		t.Fatalf("apply: %+v", r)
	}
	var list struct {
		Result struct {
			Processes []struct {
				Patches []struct {
					State     string
					Functions []struct{ New string }
				}
			}
		}
	}
	if r := testtarget.RunJSON(t, &list, "verify", "--pid", pid); r.Exit != 0 {
		t.Fatalf("verify: %+v", r)
	}
	var at uint64
	if _, err := fmt.Sscanf(list.Result.Processes[0].Patches[0].Functions[0].New, "0x%x", &at); err != nil {
		t.Fatal(err)
	}
	at += 5 // the bound place in the call
	old := peek(t, p.PID(), at, 1)
	poke(t, p.PID(), at, []byte{old[0] ^ 1})
	r := testtarget.RunJSON(t, &list, "verify", "--pid", pid)
	if r.Exit != 6 || list.Result.Processes[0].Patches[0].State != "altered" {
		t.Errorf("verify of altered code: %+v, state %s", r, list.Result.Processes[0].Patches[0].State)
	}
	poke(t, p.PID(), at, old)
	if r := testtarget.Run(t, "verify", "--pid", pid); r.Exit != 0 {
		t.Errorf("verify: %+v", r)
	}
	p.Healthy(t)
}

// What is not exactly as the patch was made for is refused, and nothing is
// touched.
func TestBoundRefused(t *testing.T) {
	t.Parallel()
	exe := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"target.c": boundTarget}, Flags: []string{"-O2"}})
	fixed := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"target.c": boundTarget}, Flags: []string{"-O2", "-no-pie", "-fno-pie"}})
	for _, tt := range []struct {
		name, exe, code string
		status          int
		replace         []string
	}{
		{"other code", exe, "base-differs", 6, []string{"@sha@", strings.Repeat("ab", 32)}},
		{"other build", exe, "build-id", 4, []string{"@id@", "abcdef"}},
		{"no code", exe, "not-code", 4, []string{"@work@", "0x100000"}},
		{"data out of reach", fixed, "out-of-reach", 4, []string{"@counter@", "0x7fffffff0000"}},
		{"no place below 2 GiB", exe, "no-place-near", 5, []string{"@own@", boundOwn}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := testtarget.Start(t, tt.exe)
			before := testtarget.TextSnapshot(t, p.PID())
			var said struct{ Error struct{ Code string } }
			r := testtarget.RunJSON(t, &said, "apply", "--pid", fmt.Sprint(p.PID()), bound(t, tt.exe, tt.replace...))
			if r.Exit != tt.status || said.Error.Code != tt.code {
				t.Errorf("got %+v", r)
			}
			unchanged(t, before, p.PID())
			if got := p.Ask("5", "work"); got != "work 5 counter 1" {
				t.Errorf("the program says %q", got)
			}
			p.Healthy(t)
		})
	}
}

// inspect shows what a patch is bound to.
func TestBoundInspected(t *testing.T) {
	t.Parallel()
	exe := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"target.c": boundTarget}, Flags: []string{"-O2"}})
	patch := bound(t, exe, "@own@", boundOwn)
	var in struct {
		Result struct {
			Images []struct{ Module string }
			Places []struct {
				Kind, Module, Symbol, Target string
				Addend                       int
			}
			Replacements []struct {
				OldNames []string `json:"old_names"`
				OldSize  int      `json:"old_size"`
			}
		}
	}
	if r := testtarget.RunJSON(t, &in, "inspect", patch); r.Exit != 0 {
		t.Fatal(r)
	}
	got := in.Result
	if len(got.Images) != 1 || got.Images[0].Module != "target" || len(got.Replacements) != 1 || got.Replacements[0].OldNames[0] != "work" || got.Replacements[0].OldSize == 0 {
		t.Errorf("got %+v", got)
	}
	var places []string
	for _, p := range got.Places {
		places = append(places, fmt.Sprintf("%s %s:%s%+d", p.Kind, p.Module, p.Symbol, p.Addend))
	}
	if want := "PC32 target:add-4 PC32 target:counter-4 ABS32 :+0 ABS64 target:counter+0"; strings.Join(places, " ") != want {
		t.Errorf("the places are %v, want %s", places, want)
	}
	if r := testtarget.Run(t, "inspect", patch); r.Exit != 0 || !strings.Contains(r.Stdout, "4 references") || !strings.Contains(r.Stdout, "work at 0x") {
		t.Error(r)
	}
}

// A hotpatch that is killed at any moment while it applies such a patch leaves a
// process that goes on, and the next one settles it.
func TestBoundKilled(t *testing.T) {
	t.Parallel()
	exe := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"target.c": boundTarget}, Flags: []string{"-O2"}})
	patch := bound(t, exe)
	p := testtarget.Start(t, exe)
	pid := fmt.Sprint(p.PID())
	before := testtarget.TextSnapshot(t, p.PID())
	began := time.Now()
	for _, args := range [][]string{{"apply", "--pid", pid, patch}, {"revert", "--pid", pid, "--all"}} {
		if r := testtarget.Run(t, args...); r.Exit != 0 {
			t.Fatal(r)
		}
	}
	long := time.Since(began)
	counter := 0
	ask := func(patched bool) {
		t.Helper()
		counter++
		want := 5
		if patched {
			want += counter + 100
			counter *= 2
		}
		if got, want := p.Ask("5", "work"), fmt.Sprintf("work %d counter %d", want, counter); got != want {
			t.Errorf("the program says %q, want %q", got, want)
		}
	}
	ask(false)
	trials, killed := 12, 0 // the counter doubles at each call of the new code
	if testing.Short() {
		trials = 4
	}
	for n := range trials {
		c := begin(t, "apply", "--pid", pid, patch)
		time.Sleep(long * time.Duration(n) / time.Duration(trials))
		c.kill()
		if r := c.end(t); r.Exit == 128+int(syscall.SIGKILL) {
			killed++
		} else if r.Exit != 0 {
			t.Fatal(r)
		}
		for _, args := range [][]string{{"apply", "--pid", pid, patch}, {"verify", "--pid", pid}, {"revert", "--pid", pid, "--all"}} {
			if r := testtarget.Run(t, args...); r.Exit != 0 {
				t.Fatalf("trial %d: %v", n, r)
			}
			ask(args[0] != "revert")
		}
		unchanged(t, before, p.PID())
	}
	if killed == 0 {
		t.Errorf("none of %d was killed in time", trials)
	}
	p.Healthy(t)
}
