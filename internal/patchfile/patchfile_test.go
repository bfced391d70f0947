package patchfile

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hotpatch/elfsym"
	"hotpatch/internal/testtarget"
)

// source reads a file of testdata.
func source(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// library compiles testdata/full.c.
func library(t testing.TB, compiler string, flags ...string) string {
	t.Helper()
	name := "full.c"
	if strings.HasSuffix(compiler, "++") {
		name = "full.cc"
	}
	return testtarget.Build(t, testtarget.Spec{Files: map[string]string{name: source(t, "full.c")},
		Compiler: compiler, Flags: flags, Shared: true})
}

// compile makes a shared object of C source text.
func compile(t testing.TB, text string, flags ...string) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Files: map[string]string{"p.c": text}, Flags: flags, Shared: true})
}

func names(fs []Function) string {
	var s []string
	for _, f := range fs {
		s = append(s, f.Name)
	}
	return strings.Join(s, " ")
}

func exported(es []Export) string {
	var s []string
	for _, e := range es {
		s = append(s, e.Name)
	}
	return strings.Join(s, " ")
}

// What the macros say must come out of Open whatever compiler and linker the
// library went through, and must be what the dynamic linker sees; and the
// compiler must not take a reference for the null pointer that it is in the
// file.
func TestOpenEveryBuild(t *testing.T) {
	t.Parallel()
	builds := []string{"-O0", "-O2", "-O3 -flto", "-O2 -ffunction-sections -fdata-sections -Wl,--gc-sections",
		"-O2 -flto -ffunction-sections -fdata-sections -Wl,--gc-sections", "-O2 -Wl,-z,pack-relative-relocs"}
	if !testing.Short() {
		builds = append(builds, "-O1", "-O3", "-Os -g", "-O2 -Wl,-Bsymbolic -Wl,-z,now", "-O2 -fvisibility=hidden",
			"-O2 -fuse-ld=gold", "-O2 -s", "-O2 -fcf-protection=full", "-O2 -fpatchable-function-entry=16,14")
		if _, err := exec.LookPath("ld.lld"); err == nil { // not everywhere for clang's own version
			builds = append(builds, "-O2 -fuse-ld=lld", "-O2 -fuse-ld=lld -Wl,--gc-sections -Wl,--pack-dyn-relocs=relr")
		}
	}
	loader := testtarget.Build(t, testtarget.Spec{Files: map[string]string{"loader.c": source(t, "loader.c")}})
	for _, compiler := range []string{"gcc", "g++", "clang", "clang++"} {
		for _, flags := range builds {
			t.Run(compiler+" "+flags, func(t *testing.T) {
				t.Parallel()
				if strings.Contains(flags, "=gold") {
					testtarget.Need(t, "ld.gold")
				}
				path := library(t, compiler, strings.Fields(flags)...)
				p, err := Open(path)
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(compiler, "g") && strings.Contains(flags, "-flto") {
					// gcc's link-time optimizer makes weak functions global.
					if diff := cmp.Diff("offered weak", exported(p.Exports)); diff != "" {
						t.Error(diff)
					}
					p.Weak, p.Exports = p.Exports[1:], p.Exports[:1]
				}
				checkFull(t, p, flags)
				if !strings.Contains(flags, "hidden") { // the loader could not find the function offered
					checkLoaded(t, loader, p)
				}
			})
		}
	}
}

// checkFull compares p with what testdata/full.c says.
func checkFull(t *testing.T, p *Patch, flags string) {
	t.Helper()
	stripped, hidden := strings.Contains(flags, "-s "), strings.Contains(flags, "hidden")
	stripped = stripped || strings.HasSuffix(flags, "-s")
	type said struct {
		Name, Description string
		Version           uint64
		CVEs, Bases, Refs []string
		Old               []string
		Exports, Weak     string
		Consistency       Consistency
		HasRecords        bool
	}
	got := said{Name: p.Name, Description: p.Description, Version: p.Version, CVEs: p.CVEs,
		Exports: exported(p.Exports), Weak: exported(p.Weak), Consistency: p.Consistency, HasRecords: p.HasRecords}
	for _, b := range p.Bases {
		got.Bases = append(got.Bases, b.Module+" "+b.BuildID.String())
	}
	for _, r := range p.Refs {
		got.Refs = append(got.Refs, fmt.Sprint(r.Kind, " ", r.Query))
	}
	for _, r := range p.Replacements {
		got.Old = append(got.Old, fmt.Sprintf("%s %s %#x", r.Old, r.OldBuildID, r.OldAddr))
	}
	want := said{Name: "fix-login", Version: 2, Description: "check the length before the copy, “everywhere”",
		CVEs:  []string{"CVE-2026-1234", "CVE-2026-1235"},
		Bases: []string{" 9f86d081884c7d65", "libfoo.so.1 00112233"},
		Refs: []string{"1 login.c:check", "2 login.c:failures", "2 limit", "0 app!login.c:helper",
			"0 Login::bound(int)"},
		Old:     []string{"login.c:login  0x0", "Login::old(char const*, int)  0x0", " 9f86d081884c7d65 0x1234"},
		Exports: "offered", Weak: "weak", Consistency: StackConsistency, HasRecords: true}
	if hidden {
		want.Exports, want.Weak = "", ""
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(p.Replacements) != 3 || len(p.Hooks.BeforeApply) != 2 {
		t.Fatal("no use to go on")
	}
	if !stripped && !strings.Contains(flags, "-flto") { // which may rename local functions
		functions := []Function{p.Replacements[0].New, p.Replacements[1].New, p.Replacements[2].New}
		functions = append(functions, p.Hooks.BeforeApply...)
		functions = append(functions, p.Hooks.AfterApply...)
		functions = append(functions, p.Hooks.BeforeRevert...)
		functions = append(functions, p.Hooks.AfterRevert...)
		functions = append(functions, p.Kept...)
		got := names(functions)
		for _, mangled := range []string{"_ZL9new_logini", "_ZL10by_addressi", "_ZL5firstv", "_ZL6secondv"} {
			got = strings.ReplaceAll(got, mangled, strings.TrimRight(strings.TrimLeft(mangled, "_ZL0123456789"), "iv"))
		}
		if want := "new_login global_new by_address first second after first second kept"; got != want {
			t.Errorf("the functions are %s, want %s", got, want)
		}
		for _, f := range functions {
			if f.Size == 0 {
				t.Errorf("%s has no size", f.Name)
			}
		}
	}
	if p.BuildID == nil || len(p.SHA256) != 64 || len(p.Data) == 0 {
		t.Errorf("build-id %v, checksum %q, %d bytes", p.BuildID, p.SHA256, len(p.Data))
	}
}

// checkLoaded lets the dynamic linker load the library.
func checkLoaded(t *testing.T, loader string, p *Patch) {
	t.Helper()
	args := []string{p.Path}
	for _, r := range p.Refs {
		args = append(args, fmt.Sprintf("%#x", r.Slot))
	}
	want := fmt.Sprintf("%d 101\n", 7+3+7+1000+10000*1+50000*2)
	sec, ok := p.Image.Section(recordSection)
	if !ok {
		t.Fatal("the section of records is missing")
	}
	data := make([]byte, sec.Size)
	if err := p.Image.ReadVaddr(data, sec.Addr); err != nil {
		t.Fatal(err)
	}
	pointers, err := p.pointers(sec, data)
	if err != nil {
		t.Fatal(err)
	}
	for off, ptr := range pointers {
		args = append(args, fmt.Sprintf("%#x", sec.Addr+off))
		want += fmt.Sprintf("%#x\n", ptr.addr)
	}
	if len(pointers) != 14 {
		t.Errorf("there are %d pointers in the records, want 14", len(pointers))
	}
	out, err := exec.Command(loader, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Errorf("the dynamic linker sees something else:\n%s", diff)
	}
}

// The header must compile without a word in every language it is meant for.
func TestHeaderWarnings(t *testing.T) {
	t.Parallel()
	standards := map[string][]string{
		"gcc": {"c89", "gnu89", "c99", "c11", "c2x"}, "clang": {"c89", "gnu89", "c99", "c11", "c2x"},
		"g++": {"c++98", "c++11", "c++17", "c++20"}, "clang++": {"c++98", "c++11", "c++17", "c++20"},
	}
	for compiler, list := range standards {
		if testing.Short() {
			list = list[:1]
		}
		for _, std := range list {
			t.Run(compiler+" "+std, func(t *testing.T) {
				t.Parallel()
				p, err := Open(library(t, compiler, "-std="+std, "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"))
				if err != nil {
					t.Fatal(err)
				}
				checkFull(t, p, "")
			})
		}
	}
}

// The compilers of other Debian releases: gcc 10, which has no retain attribute,
// and gcc 14.
func TestHeaderOtherCompilers(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short: two other systems' compilers are not run")
	}
	for _, tree := range []string{"bullseye", "trixie"} {
		for compiler, name := range map[string]string{"gcc": "full.c", "g++": "full.cc"} {
			t.Run(tree+" "+compiler, func(t *testing.T) {
				t.Parallel()
				p, err := Open(testtarget.Build(t, testtarget.Spec{Files: map[string]string{name: source(t, "full.c")},
					Compiler: compiler, Tree: tree, Shared: true, Flags: []string{"-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"}}))
				if err != nil {
					t.Fatal(err)
				}
				checkFull(t, p, "")
			})
		}
	}
}

// A header that nobody uses makes nothing.
func TestHeaderUnused(t *testing.T) {
	t.Parallel()
	p, err := Open(compile(t, "#include \"hotpatch.h\"\nint f(void); int f(void) { return 1; }\n"))
	if err != nil {
		t.Fatal(err)
	}
	if p.HasRecords || p.Name != "p" || p.Version != 1 || exported(p.Exports) != "f" || p.Consistency != AnyConsistency {
		t.Errorf("got %q version %d, exports %s, records %v", p.Name, p.Version, exported(p.Exports), p.HasRecords)
	}
	if err := p.Image.Symbols(elfsym.Symtab, func(s *elfsym.Sym) bool {
		if strings.HasPrefix(string(s.Name), "hotpatch") {
			t.Errorf("the header defines %s", s.Name)
		}
		return true
	}); err != nil {
		t.Error(err)
	}
}

func TestLookup(t *testing.T) {
	t.Parallel()
	p, err := Open(testtarget.Build(t, testtarget.Spec{Shared: true, Files: map[string]string{
		"a.c": "static int twice(void) { return 1; }\nint a(void); int a(void) { return twice(); }\n",
		"b.c": "static int twice(void) { return 2; }\nstatic int once(void) { return 3; }\nint v;\nint b(void); int b(void) { return twice() + once(); }\n",
	}, Flags: []string{"-O0"}}))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"a": true, "once": true, "twice": false, "v": false, "printf": false, "": false} {
		addr, ok := p.Lookup(name)
		if ok != want || ok != (addr != 0) {
			t.Errorf("Lookup(%q) gives %#x, %v", name, addr, ok)
		}
		if name == "a" && addr != p.Exports[0].Addr {
			t.Errorf("a is at %#x, not %#x", addr, p.Exports[0].Addr)
		}
	}
}
