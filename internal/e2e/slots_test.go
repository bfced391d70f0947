package e2e

import (
	"fmt"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// tableSource is a class of which a table of function pointers has a method, too.
const tableSource = `
#include <cstdio>
#include <cstring>
#include <unistd.h>
struct Base {
	virtual ~Base();
	virtual long method(long x);
};
struct Derived : Base {
	~Derived() override;
	long method(long x) override;
};
Base::~Base() {}
Derived::~Derived() {}
__attribute__((noinline)) long Base::method(long x) { return x + 1; }
__attribute__((noinline)) long Derived::method(long x) { return x + 2; }

// Function pointers, taken as g++ lets one.
typedef long (*function)(Base *, long);
extern "C" function const volatile constants[];
function const volatile constants[] = {(function)&Base::method, (function)&Derived::method};
static function volatile variables[] = {(function)&Base::method, (function)&Derived::method};

__attribute__((noinline)) static Base *make(bool derived) { return derived ? new Derived : new Base; }

int main() {
	std::setvbuf(stdout, nullptr, _IOLBF, 0);
	std::printf("READY %d\n", getpid());
	char line[64];
	while (std::fgets(line, sizeof line, stdin) != nullptr) {
		Base *base = make(false), *derived = make(true);
		std::printf("slots %ld %ld constants %ld %ld variables %ld %ld\n", base->method(10), derived->method(10),
		            constants[0](base, 10), constants[1](derived, 10), variables[0](base, 10), variables[1](derived, 10));
	}
}
`

func tableTarget(t testing.TB, flags ...string) string {
	t.Helper()
	flags = append([]string{"-O2", "-Wno-pmf-conversions", "-fno-devirtualize", "-fno-devirtualize-speculatively"}, flags...)
	return testtarget.Build(t, testtarget.Spec{Name: "table", Flags: flags, Files: map[string]string{"table.cc": tableSource}})
}

func tablePatch(t testing.TB) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Name: "table.so", Flags: []string{"-O2"}, Shared: true, Files: map[string]string{"patch.cc": `
struct Base {
	virtual ~Base();
	virtual long method(long x);
};
struct Derived : Base {
	~Derived() override;
	long method(long x) override;
};
long Derived::method(long x) { return x + 502; }
`}})
}

// TestFunctionPointers: tables of function pointers are not vtables, even if they
// look like one; they are named and left alone.
func TestFunctionPointers(t *testing.T) {
	t.Parallel()
	const old = "slots 11 12 constants 11 12 variables 11 12"
	p := testtarget.Start(t, tableTarget(t))
	pid := p.PID()
	p.Ask("?", "^"+old+"$")
	before := testtarget.TextSnapshot(t, pid)
	r := applyOne(t, pid, "--method", "vtable", tablePatch(t))
	p.Ask("?", "^slots 11 512 constants 11 12 variables 11 12$")
	if n := len(r.sites("vtable")); n != 1 {
		t.Errorf("%d slots are rewritten, want 1", n)
	}
	at := exeSymbol(t, pid, "constants") + 8
	if !strings.Contains(r.notes(), fmt.Sprintf("%#x", at)) {
		t.Errorf("the notes do not name the pointer at %#x:\n%s", at, r.notes())
	}
	revert(t, pid)
	// The entry reaches all.
	applyOne(t, pid, tablePatch(t))
	p.Ask("?", "^slots 11 512 constants 11 512 variables 11 512$")
	revert(t, pid)
	p.Ask("?", "^"+old+"$")
	unchanged(t, before, pid)
}

// TestStrippedVTables: without symbols a slot is known by the type information in
// front of it; without that, nothing is proven and nothing is written.
func TestStrippedVTables(t *testing.T) {
	t.Parallel()
	// The functions are exported, the vtables are not.
	export := []string{"-s", "-Wl,--export-dynamic-symbol=_ZN7Derived6methodEl"}
	for _, rtti := range []bool{true, false} {
		t.Run(fmt.Sprintf("rtti=%v", rtti), func(t *testing.T) {
			t.Parallel()
			flags := export
			if !rtti {
				flags = append([]string{"-fno-rtti"}, export...)
			}
			p := testtarget.Start(t, tableTarget(t, flags...))
			pid := p.PID()
			p.Ask("?", "^slots 11 12 constants 11 12 variables 11 12$")
			if !rtti {
				before := testtarget.TextSnapshot(t, pid)
				applyRefused(t, pid, 4, "no-vtable-slot", "--method", "vtable", tablePatch(t))
				identical(t, before, pid)
				p.Ask("?", "^slots 11 12 constants 11 12 variables 11 12$")
				return
			}
			r := applyOne(t, pid, "--method", "vtable", tablePatch(t))
			p.Ask("?", "^slots 11 512 constants 11 12 variables 11 12$")
			if n := len(r.sites("vtable")); n != 1 {
				t.Errorf("%d slots are rewritten, want 1", n)
			}
			revert(t, pid)
			p.Ask("?", "^slots 11 12 constants 11 12 variables 11 12$")
		})
	}
}

// TestCopies: an inline class and a template, of which the program and each of two
// libraries have their own.
func TestCopies(t *testing.T) {
	t.Parallel()
	type build struct {
		name           string
		program, libs  []string
		narrowed       string // answers when only liba is patched
		narrowedThrice string
	}
	builds := []build{
		{"own copies", nil, nil, "answer 42 5042 42", "thrice 6 5006 6"},
		{"symbolic", []string{"-rdynamic"}, []string{"-Wl,-Bsymbolic"}, "answer 42 5042 42", "thrice 6 5006 6"},
		{"hidden", []string{"-rdynamic"}, []string{"-fvisibility=hidden"}, "answer 42 5042 42", "thrice 6 5006 6"},
		// The dynamic linker has all modules use the program's.
		{"shared", []string{"-rdynamic"}, nil, "answer 42 42 42", "thrice 6 6 6"},
	}
	patch := testtarget.Build(t, testtarget.Spec{Sources: []string{"copies_p1.cc"}, Shared: true, Flags: []string{"-O2"}})
	for _, b := range some(builds, 0, 3) {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			library := func(name string) string {
				return testtarget.Build(t, testtarget.Spec{Sources: []string{"copies_lib.cc"}, Shared: true, Name: name, Flags: append([]string{"-O0"}, b.libs...)})
			}
			exe := testtarget.Build(t, testtarget.Spec{Sources: []string{"copies.cc"}, Flags: append([]string{"-O0"}, b.program...)})
			p := testtarget.Start(t, exe, testtarget.Args(library("liba.so"), library("libb.so")))
			pid := p.PID()
			before := testtarget.TextSnapshot(t, pid)
			old := func() {
				t.Helper()
				p.Ask("answer 1", "^answer 42 42 42$")
				p.Ask("thrice 2", "^thrice 6 6 6$")
			}
			old()
			for _, method := range []string{"auto", "entry"} {
				applyOne(t, pid, "--method", method, patch)
				p.Ask("answer 1", "^answer 5042 5042 5042$")
				p.Ask("thrice 2", "^thrice 5006 5006 5006$")
				revert(t, pid)
				old()
			}
			r := applyOne(t, pid, "--module", "liba.so", patch)
			for _, f := range r.Replaced {
				if f.Module != "liba.so" {
					t.Errorf("%s of %s is replaced", f.Function, f.Module)
				}
			}
			p.Ask("answer 1", "^"+b.narrowed+"$")
			p.Ask("thrice 2", "^"+b.narrowedThrice+"$")
			revert(t, pid)
			old()
			unchanged(t, before, pid)

			// A library that comes later has copies that nobody has replaced.
			applyOne(t, pid, patch)
			p.Ask("load "+library("libc_late.so"), "^loaded")
			if b.name == "own copies" {
				p.Ask("answer 1", "^answer 5042 5042 5042 42$")
				if got := verify(t, pid); !strings.Contains(got.Stdout+got.Stderr, "libc_late.so") {
					t.Errorf("verify does not name the new library\n%v", got)
				}
			}
			p.Healthy(t)
		})
	}
}
