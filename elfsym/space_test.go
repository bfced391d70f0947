package elfsym

import (
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const mainC = ready + `
int shared_a(int), shared_b(int);
__attribute__((weak, noinline)) int weak_one(int x) { return x + 1; }
int variable = 42;
int counter(int x) { return x + variable; }
int main(void) { variable += shared_a(1) + shared_b(2) + weak_one(3) + counter(4); ready(); }
`

// Two files with a static function of the same name.
const (
	aC = `static __attribute__((noinline, noipa)) int helper(int x) { return x * 3; } int shared_a(int x) { return helper(x) + 1; }`
	bC = `static __attribute__((noinline, noipa)) int helper(int x) { return x * 5; } int shared_b(int x) { return helper(x) + 2; }`
)

func statics(t testing.TB) string {
	return files(t, map[string]string{"main.c": mainC, "a.c": aC, "sub/b.c": bC})
}

// TestResolve compares every symbol with nm and with /proc/PID/maps.
func TestResolve(t *testing.T) {
	t.Parallel()
	for _, compiler := range []string{"gcc", "clang"} {
		for _, kind := range []string{"-pie -fPIE", "-no-pie -fno-pie"} {
			t.Run(compiler+" "+kind, func(t *testing.T) {
				t.Parallel()
				needs(t, compiler)
				dir := statics(t)
				noipa := ""
				if compiler == "clang" {
					noipa = " -Wno-unknown-attributes -Wno-attributes"
				}
				run(t, dir, compiler+" -O1 "+kind+noipa+" -o prog main.c a.c sub/b.c")
				s := liveSpace(t, dir, "./prog")
				exe := s.Executable()
				if exe == nil || exe.Name != "prog" || exe.Path != filepath.Join(dir, "prog") {
					t.Fatalf("executable: %+v", exe)
				}
				if fixed := strings.Contains(kind, "no-pie"); fixed != (exe.Bias == 0) || fixed != (exe.Image.Type() == elf.ET_EXEC) {
					t.Errorf("bias %#x, type %v", exe.Bias, exe.Image.Type())
				}
				want := nmSymbols(t, dir, "prog")
				list := []string{"main", "shared_a", "shared_b", "helper", "weak_one", "variable", "counter"}
				found, err := s.Lookup(list)
				if err != nil {
					t.Fatal(err)
				}
				for _, name := range list {
					var got []uint64
					for _, sym := range found[name] {
						if sym.Module != exe {
							t.Errorf("%v is not in the executable", sym)
						}
						if s.ModuleAt(sym.Addr) != exe {
							t.Errorf("ModuleAt(%v)", sym)
						}
						if sym.IsFunc() != exe.InText(sym.Addr) {
							t.Errorf("%v: function %v, in text %v", sym, sym.IsFunc(), exe.InText(sym.Addr))
						}
						got = append(got, exe.Vaddr(sym.Addr))
					}
					slices.Sort(got)
					slices.Sort(want[name])
					if !slices.Equal(got, want[name]) {
						t.Errorf("%s: %x, nm says %x", name, got, want[name])
					}
				}
				if len(found["helper"]) != 2 {
					t.Errorf("helper: %v", found["helper"])
				}
				// The code in memory is the code in the file.
				mem := memory(t, s)
				for _, sym := range found["helper"] {
					file, live := make([]byte, sym.Size), make([]byte, sym.Size)
					if err := exe.Image.ReadVaddr(file, exe.Vaddr(sym.Addr)); err != nil {
						t.Fatal(err)
					}
					if err := mem.ReadAt(live, sym.Addr); err != nil || string(live) != string(file) || len(file) == 0 {
						t.Errorf("%v: %x in memory, %x in the file, %v", sym, live, file, err)
					}
				}
			})
		}
	}
}

// TestAmbiguous: same-named statics are an error that lists each, and file and
// module choose.
func TestAmbiguous(t *testing.T) {
	t.Parallel()
	dir := statics(t)
	run(t, dir, "gcc -O1 -o prog main.c a.c sub/b.c")
	s := liveSpace(t, dir, "./prog")
	_, err := s.One(query(t, "helper"), nil)
	e := wantCode(t, err, "ambiguous-symbol")
	list, ok := e.Details.([]Candidate)
	if !ok || len(list) != 2 {
		t.Fatalf("details: %+v", e.Details)
	}
	if _, err := json.Marshal(e.Details); err != nil {
		t.Error(err)
	}
	for _, c := range list {
		if c.Module != "prog" || c.Name != "helper" || !strings.HasPrefix(c.Address, "0x") || !strings.Contains(e.Error(), c.Address) || !strings.Contains(e.Error(), filepath.Base(c.File)) {
			t.Errorf("candidate %+v in %q", c, e.Error())
		}
	}
	if !strings.Contains(e.Hint, "prog!a.c:helper") && !strings.Contains(e.Hint, "prog!b.c:helper") {
		t.Errorf("hint: %q", e.Hint)
	}
	a, b := one(t, s, "a.c:helper"), one(t, s, "prog!b.c:helper")
	if a.File != "a.c" || b.File == a.File || a.Addr == b.Addr {
		t.Errorf("%v, %v", a, b)
	}
	if c := one(t, s, "sub/b.c:helper"); c.Addr != b.Addr {
		t.Errorf("%v, %v", b, c)
	}
	// The hint's own example works.
	if h := one(t, s, b.Query()); h.Addr != b.Addr {
		t.Errorf("%s gives %v", b.Query(), h)
	}
	_, err = s.One(query(t, "c.c:helper"), nil)
	wantCode(t, err, "no-symbol")
	_, err = s.One(query(t, "libnone.so!helper"), nil)
	e = wantCode(t, err, "no-symbol")
	if !strings.Contains(e.Why, "libnone.so") {
		t.Error(e.Why)
	}
	_, err = s.One(query(t, "Shared_A"), nil)
	if e = wantCode(t, err, "no-symbol"); !strings.Contains(e.Hint, "shared_a") {
		t.Errorf("no similar name in %q", e.Hint)
	}
	_, err = s.One(query(t, "variable"), Symbol.IsFunc)
	if e = wantCode(t, err, "no-symbol"); !strings.Contains(e.Why, "STT_OBJECT") {
		t.Error(e.Why)
	}
}

// TestModules: what is mapped, and what is only mapped as data.
func TestModules(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"p.c": ready + `
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
int main(void) {
	if (!dlopen("./libd.so", RTLD_NOW | RTLD_LOCAL)) { puts(dlerror()); return 1; }
	int fd = open("./libdata.so", O_RDONLY);
	if (mmap(0, 1 << 14, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED) return 1;
	ready();
}`, "d.c": `int in_d(int x) { return x; } int in_d2(void) { return in_d(1); }`})
	run(t, dir, "gcc -o p p.c")
	run(t, dir, "gcc -shared -fPIC -Wl,-soname,libsoname.so.3 -o libd.so d.c")
	run(t, dir, "cp libd.so libdata.so")
	s := liveSpace(t, dir, "./p")
	d := module(t, s, "libd.so")
	if d.Kind != Library || d.Soname() != "libsoname.so.3" || d.Ours || d.Err != nil || d.Deleted {
		t.Errorf("%+v", d)
	}
	if module(t, s, "libsoname.so.3") != d || module(t, s, d.Path) != d {
		t.Error("soname or path names another module")
	}
	if slices.Contains(names(s), "libdata.so") {
		t.Error("a library that is mapped as data is taken for a module")
	}
	v := module(t, s, "[vdso]")
	if v.Kind != VDSO || len(v.BuildID) == 0 {
		t.Errorf("%+v", v)
	}
	if sym := one(t, s, "[vdso]!__vdso_clock_gettime"); !v.Contains(sym.Addr) {
		t.Errorf("%v", sym)
	}
	out := run(t, dir, "readelf -n libd.so")
	if len(d.BuildID) != 20 || !strings.Contains(out, d.BuildID.String()) || !d.BuildID.Equal(d.Image.BuildID()) {
		t.Errorf("build-id %v; %s", d.BuildID, out)
	}
	if sym := one(t, s, "libsoname.so.3!in_d"); sym.Module != d {
		t.Errorf("%v", sym)
	}
	for _, m := range s.Modules {
		if m.Err != nil {
			t.Errorf("%s: %v", m.Name, m.Err)
		}
		if m.Image == nil || m.Lo >= m.Hi || len(m.Maps) == 0 || !m.Contains(m.Lo) || m.Contains(m.Hi) {
			t.Errorf("%s: %+v", m.Name, m)
		}
	}
	if exe := s.Executable(); exe == nil || exe.Image.Interp() == "" || !exe.Image.HasDynamic() || !slices.Contains(exe.Image.Needed(), "libc.so.6") {
		t.Errorf("executable: %+v", exe)
	}
	if s.ModuleAt(0) != nil || s.ModuleAt(1<<63) != nil {
		t.Error("a module at an address where nothing is")
	}
	if _, _, ok := s.FuncAt(0); ok {
		t.Error("a function at 0")
	}
	sym := one(t, s, "in_d")
	if f, off, ok := s.FuncAt(sym.Addr + 3); !ok || f.Name != "in_d" || off != 3 {
		t.Errorf("FuncAt: %v+%d, %v", f, off, ok)
	}
}

// TestReplaced: what runs is read, not what has its name now.
func TestReplaced(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"deleted", "replaced"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			if os.Getuid() != 0 {
				t.Skip("reading map_files needs root")
			}
			dir := statics(t)
			run(t, dir, "gcc -O1 -o prog main.c a.c sub/b.c")
			want := nmSymbols(t, dir, "prog")["shared_a"]
			p := live(t, dir, "./prog")
			if err := os.Remove(filepath.Join(dir, "prog")); err != nil {
				t.Fatal(err)
			}
			if how == "replaced" {
				run(t, dir, "gcc -O1 -fpatchable-function-entry=64 -o prog sub/b.c main.c a.c")
				if slices.Equal(want, nmSymbols(t, dir, "prog")["shared_a"]) {
					t.Fatal("the new program has the same address")
				}
			}
			s := space(t, p)
			exe := s.Executable()
			if !exe.Deleted || exe.Err != nil || exe.Name != "prog" {
				t.Fatalf("%+v", exe)
			}
			if sym := one(t, s, "shared_a"); !slices.Equal(want, []uint64{exe.Vaddr(sym.Addr)}) {
				t.Errorf("%v, want %x", sym, want)
			}
		})
	}
}

// TestFallback: without map_files, only a proven file is used, else memory.
func TestFallback(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"p.c": ready + `int exported(int x) { return x; } int main(void) { ready(); }`})
	run(t, dir, "gcc -rdynamic -o p p.c")
	p := live(t, dir, "./p")
	s := space(t, p)
	mem := memory(t, s)
	exe := s.Executable()
	rd := reader{s: s, p: p, mem: mem}
	head := rd.fromMemory(exe, exe.Image)
	at := exe.Maps[0]
	path := filepath.Join(dir, "p")
	check := func(at string, ino uint64) error {
		f, err := openRegular(at)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		m := exe.Maps[0]
		m.Inode += ino
		_, err = rd.check(f, exe, head, m, false)
		return err
	}
	if err := check(path, 0); err != nil {
		t.Errorf("the file itself: %v", err)
	}
	if err := check(path, 1); err == nil || !strings.Contains(err.Error(), "another file") {
		t.Errorf("another inode: %v", err)
	}
	run(t, dir, "cp p copy")
	if err := check(filepath.Join(dir, "copy"), 0); err == nil {
		t.Error("a copy is taken for the mapped file")
	}
	// The same inode with another content.
	other := *exe
	other.BuildID = append(BuildID{1}, exe.BuildID[1:]...)
	f, err := openRegular(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := rd.check(f, &other, head, at, true); err == nil || !strings.Contains(err.Error(), "build-id") {
		t.Errorf("another build-id: %v", err)
	}

	// From memory, the exported symbols are the same as from the file.
	img := rd.fromMemory(exe, exe.Image)
	img.secs, img.dyn, img.tables, img.versions = nil, nil, [2]*symtab{}, nil
	if !img.FromMemory() {
		t.Fatal("not from memory")
	}
	get := func(im *Image) (list []string) {
		if err := im.Symbols(Dynsym, func(s *Sym) bool {
			if s.Defined() {
				list = append(list, fmt.Sprintf("%s@%s %#x %d", s.Name, s.Version, s.Value, s.Size))
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		return list
	}
	if a, b := get(exe.Image), get(img); !slices.Equal(a, b) || len(a) == 0 {
		t.Errorf("file: %v\nmemory: %v", a, b)
	}
	if !img.BuildID().Equal(exe.BuildID) || img.Soname() != "" || !slices.Equal(img.Needed(), exe.Image.Needed()) {
		t.Error("build-id or needed libraries differ")
	}
	libc := module(t, s, "libc.so.6")
	mlibc := rd.fromMemory(libc, libc.Image)
	mlibc.secs, mlibc.dyn, mlibc.tables, mlibc.versions = nil, nil, [2]*symtab{}, nil
	if a, b := get(libc.Image), get(mlibc); !slices.Equal(a, b) || len(a) < 1000 {
		t.Errorf("libc: %d symbols from the file, %d from memory", len(a), len(b))
	}
}

// TestNamespace: a process in a mount namespace of its own, whose files are
// hidden from us by other ones.
func TestNamespace(t *testing.T) {
	t.Parallel()
	needs(t, "unshare")
	if out, err := exec.Command("unshare", "-m", "true").CombinedOutput(); err != nil {
		t.Skipf("no mount namespace here: %v %s", err, out)
	}
	dir := statics(t)
	run(t, dir, "gcc -O1 -o prog main.c a.c sub/b.c")
	run(t, dir, "objcopy --only-keep-debug prog prog.debug")
	run(t, dir, "objcopy --strip-all --add-gnu-debuglink=prog.debug prog")
	// Only the process sees the program, and its debug file.
	script := `set -e
mkdir hidden
mv prog prog.debug ..
mount -t tmpfs none hidden
mkdir hidden/.debug
mv ../prog hidden
mv ../prog.debug hidden/.debug
exec hidden/prog`
	dir = filepath.Join(dir, "sub")
	run(t, dir, "mv ../prog ../prog.debug .")
	p := live(t, dir, "unshare", "-m", "sh", "-c", script)
	s := space(t, p)
	exe := s.Executable()
	if exe.Err != nil || exe.Image.HasSymtab() {
		t.Fatalf("%+v", exe)
	}
	if _, err := os.Stat(exe.Path); err == nil {
		t.Fatalf("%s can be seen from outside", exe.Path)
	}
	sym := one(t, s, "a.c:helper")
	if sym.Table != DebugFile || sym.File != "a.c" {
		t.Errorf("%+v", sym)
	}
}

func openImage(t testing.TB, path string) *Image {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	im, err := NewImage(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// TestOddTargets: static programs, a main thread that has ended, and our own
// patch libraries.
func TestOddTargets(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{
		"s.c": ready + "int in_static(int x) { return x; } int main(void) { in_static(1); ready(); }",
		"z.c": ready + `
#include <pthread.h>
static void *go(void *p) { usleep(100000); ready(); return 0; }
int in_threads(int x) { return x; }
int main(void) { pthread_t t; pthread_create(&t, 0, go, 0); pthread_exit(0); }`,
		"l.c": "int in_patch(int x) { return x; } int in_both(int x) { return x; }",
		"m.c": "#define _GNU_SOURCE\n" + ready + `
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
int in_both(int x) { return -x; }
int main(void) {
	static char b[1 << 20]; char path[64];
	int in = open("./l.so", O_RDONLY), out = memfd_create("hotpatch:test", 0);
	int n = read(in, b, sizeof b);
	if (write(out, b, n) != n) return 1;
	sprintf(path, "/proc/self/fd/%d", out);
	if (!dlopen(path, RTLD_NOW)) { puts(dlerror()); return 1; }
	ready();
}`,
	})
	for _, flags := range []string{"-static", "-static-pie"} {
		run(t, dir, "gcc "+flags+" -o s s.c")
		s := liveSpace(t, dir, "./s")
		exe := s.Executable()
		if exe == nil || exe.Image.Interp() != "" || exe.Image.HasDynamic() != (flags == "-static-pie") {
			t.Fatalf("%s: %+v", flags, exe)
		}
		if sym := one(t, s, "in_static"); sym.Module != exe {
			t.Errorf("%s: %v", flags, sym)
		}
	}

	run(t, dir, "gcc -pthread -o z z.c")
	p := live(t, dir, "./z")
	if st, err := p.Status(0); err != nil || !st.Dead() {
		t.Fatalf("the main thread lives: %+v, %v", st, err)
	}
	s := space(t, p)
	if sym := one(t, s, "in_threads"); sym.Module != s.Executable() || sym.Module.Image.FromMemory() && os.Getuid() == 0 {
		t.Errorf("zombie leader: %v, %+v", sym, sym.Module)
	}

	run(t, dir, "gcc -shared -fPIC -o l.so l.c")
	run(t, dir, "gcc -o m m.c")
	s = liveSpace(t, dir, "./m")
	i := slices.IndexFunc(s.Modules, func(m *Module) bool { return m.Ours })
	if i < 0 || !s.Modules[i].Deleted || s.Modules[i].Kind != Library {
		t.Fatalf("no patch library in %v", names(s))
	}
	found, err := s.Lookup([]string{"in_patch", "in_both"})
	if err != nil || len(found["in_patch"]) != 0 || len(found["in_both"]) != 1 {
		t.Errorf("%v, %v", found, err)
	}
	if err := s.scanAll(s.Modules[i], func(_ Table, sym *Sym) bool {
		if string(sym.Name) == "in_patch" {
			if f, _, ok := s.FuncAt(s.Modules[i].Addr(sym.Value)); !ok || f.Name != "in_patch" {
				t.Errorf("FuncAt in the patch library: %v", f)
			}
		}
		return true
	}); err != nil {
		t.Error(err)
	}
}
