package elfsym

import (
	"slices"
	"strings"
	"testing"
)

func TestParseQuery(t *testing.T) {
	t.Parallel()
	const sayHello = "DemoClass::say_hello(int, std::basic_string_view<char, std::char_traits<char> >)"
	for text, want := range map[string]Query{
		"name":                              {Name: "name"},
		"_ZN1C2fbEi":                        {Name: "_ZN1C2fbEi"},
		"libc.so.6!read":                    {Module: "libc.so.6", Name: "read"},
		"file.c:name":                       {File: "file.c", Name: "name"},
		"prog!file.c:name":                  {Module: "prog", File: "file.c", Name: "name"},
		"/opt/app (x86)/lib.so!src/f.cc:fn": {Module: "/opt/app (x86)/lib.so", File: "src/f.cc", Name: "fn"},
		"[vdso]!time":                       {Module: "[vdso]", Name: "time"},
		" prog ! a.c : f ":                  {Module: "prog", File: "a.c", Name: "f"},
		sayHello:                            {Name: sayHello},
		"DemoClass::say_hello":              {Name: "DemoClass::say_hello"},
		"lib.so!" + sayHello:                {Module: "lib.so", Name: sayHello},
		"lib.so!x.cc:" + sayHello:           {Module: "lib.so", File: "x.cc", Name: sayHello},
		"::f(int)":                          {Name: "f(int)"},
		"a.cc:::f(int)":                     {Name: "a.cc:::f(int)"},
		"A::operator!()":                    {Name: "A::operator!()"},
		"operator!=(A const&, A const&)":    {Name: "operator!=(A const&, A const&)"},
		"operator !(A)":                     {Name: "operator !(A)"},
		"lib.so!A::operator!=(A const&)":    {Module: "lib.so", Name: "A::operator!=(A const&)"},
		"(anonymous namespace)::f(int)":     {Name: "(anonymous namespace)::f(int)"},
		"a.cc:(anonymous namespace)::f":     {File: "a.cc", Name: "(anonymous namespace)::f"},
		"f[abi:cxx11](int)":                 {Name: "f[abi:cxx11](int)"},
		"a.cc:f[abi:cxx11](int)":            {File: "a.cc", Name: "f[abi:cxx11](int)"},
		"main::{lambda(int)#1}::operator()(int) const": {Name: "main::{lambda(int)#1}::operator()(int) const"},
		"A<(1)!=2>::f()":               {Name: "A<(1)!=2>::f()"},
		"memcpy@GLIBC_2.2.5":           {Name: "memcpy", Version: "GLIBC_2.2.5"},
		"libc.so.6!memcpy@@GLIBC_2.14": {Module: "libc.so.6", Name: "memcpy", Version: "GLIBC_2.14"},
		"std::vector<int>::push_back":  {Name: "std::vector<int>::push_back"},
		"non-virtual thunk to C::fb()": {Name: "non-virtual thunk to C::fb()"},
	} {
		got, err := ParseQuery(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
			continue
		}
		if again, err := ParseQuery(got.String()); err != nil || again != got {
			t.Errorf("%q is written %q, which is %+v, %v", text, got.String(), again, err)
		}
	}
	for _, text := range []string{"", " ", "!f", "a.c:", ":f", "lib.so!", "lib.so!:f", "::", "f\x00", "f@", "f@@@V"} {
		q, err := ParseQuery(text)
		if err == nil {
			t.Errorf("%q: %+v", text, q)
			continue
		}
		wantCode(t, err, "bad-symbol-name")
	}
}

func TestIdentifier(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"f": "f", "_ZN1C1fEv": "_ZN1C1fEv", "A::f(int)": "f", "int A::f<int>(B)": "f", "A::~A()": "A", "A::operator()(int)": "A",
		"operator<<(std::ostream&, A const&)": "", "std::allocator<char>::allocator()": "", "std::string::append(char)": "append",
		"(anonymous namespace)::g(int)": "g", "main::{lambda(int)#1}::operator()(int) const": "main", "A::operator bool()": "A",
		"vtable for C": "C", "f[abi:cxx11](int)": "f", "std::vector<Foo, std::allocator<Foo> >::push_back(Foo&&)": "push_back",
		"operator new(unsigned long)": "", "A<B>::C<D>": "C",
	} {
		if got := identifier(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

func TestGlob(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*", "", true}, {"", "", true}, {"", "a", false}, {"a*c", "abc", true}, {"a*c", "ac", true}, {"a*c", "acb", false},
		{"?b?", "abc", true}, {"?b?", "bc", false}, {"*a*b*", "xaybz", true}, {"*ab", "aab", true}, {"a/*[x]", "a/b/[x]", true},
		{strings.Repeat("*a", 50) + "*b", strings.Repeat("a", 10000), false},
	} {
		if got := globMatch(c.pattern, c.name); got != c.want {
			t.Errorf("%.20q %.20q: %v", c.pattern, c.name, got)
		}
	}
}

const demoCC = `
#include <cstdio>
#include <string>
#include <string_view>
#include <unistd.h>
struct DemoClass {
	int say_hello(int, std::string_view);
	virtual int say_hello(long);
	DemoClass();
	virtual ~DemoClass();
	bool operator!() const;
	DemoClass &operator+=(int);
	int x;
};
DemoClass::DemoClass() : x(1) {}
DemoClass::~DemoClass() {}
int DemoClass::say_hello(int i, std::string_view s) { return i + (int)s.size(); }
int DemoClass::say_hello(long i) { return (int)i; }
bool DemoClass::operator!() const { return x == 0; }
DemoClass &DemoClass::operator+=(int i) { x += i; return *this; }
int say_hello_fun(int i, std::string_view s) { return i - (int)s.size(); }
template <typename T> __attribute__((noinline)) T twice(T t) { return t + t; }
template int twice<int>(int);
template long twice<long>(long);
namespace { __attribute__((noinline, noipa)) int hidden(unsigned long x) { return (int)x; } }
__attribute__((noinline, noipa)) static int fact(int n) { return n < 2 ? 1 : n * fact(n - 1); }
std::string text(int i) { return std::string(i, 'x'); }
extern "C" int plain_c(int x) { return x; }
int main() {
	DemoClass d; d += 1;
	int sum = hidden(1) + fact(3) + (int)text(2).size();
	printf("READY %d %d\n", (int)getpid(), 0 * sum); fflush(stdout);
	for (;;) pause();
}
`

// TestFind: mangled and demangled names.
func TestFind(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{"demo.cc": demoCC})
	run(t, dir, "g++ -std=c++17 -O1 -o demo demo.cc")
	s := liveSpace(t, dir, "./demo")
	for text, want := range map[string][]string{
		"_ZN9DemoClass9say_helloEiSt17basic_string_viewIcSt11char_traitsIcEE":              {"_ZN9DemoClass9say_helloEiSt17basic_string_viewIcSt11char_traitsIcEE"},
		"DemoClass::say_hello(int, std::basic_string_view<char, std::char_traits<char> >)": {"_ZN9DemoClass9say_helloEiSt17basic_string_viewIcSt11char_traitsIcEE"},
		"DemoClass::say_hello( int,std::basic_string_view<char,std::char_traits<char>> )":  {"_ZN9DemoClass9say_helloEiSt17basic_string_viewIcSt11char_traitsIcEE"},
		"demo!DemoClass::say_hello":        {"_ZN9DemoClass9say_helloEiSt17basic_string_viewIcSt11char_traitsIcEE", "_ZN9DemoClass9say_helloEl"},
		"DemoClass::say_hello(long)":       {"_ZN9DemoClass9say_helloEl"},
		"say_hello_fun":                    {"_Z13say_hello_funiSt17basic_string_viewIcSt11char_traitsIcEE"},
		"twice<int>":                       {"_Z5twiceIiET_S0_"},
		"int twice<int>(int)":              {"_Z5twiceIiET_S0_"},
		"twice<int>(int)":                  {"_Z5twiceIiET_S0_"},
		"twice<long>(long)":                {"_Z5twiceIlET_S0_"},
		"(anonymous namespace)::hidden":    {"_ZN12_GLOBAL__N_16hiddenEm"},
		"demo.cc:fact":                     {"_ZL4facti"},
		"fact(int)":                        {"_ZL4facti"},
		"DemoClass::operator!":             {"_ZNK9DemoClassntEv"},
		"demo!DemoClass::operator!()const": {"_ZNK9DemoClassntEv"},
		"DemoClass::operator+=(int)":       {"_ZN9DemoClasspLEi"},
		"text[abi:cxx11](int)":             {"_Z4textB5cxx11i"},
		"plain_c":                          {"plain_c"},
		"vtable for DemoClass":             {"_ZTV9DemoClass"},
		"DemoClass::~DemoClass":            {"_ZN9DemoClassD0Ev", "_ZN9DemoClassD1Ev", "_ZN9DemoClassD2Ev"},
		"say_hell":                         nil,
		"DemoClass::say_hello(int)":        nil,
		"other.cc:fact":                    nil,
	} {
		list, err := s.Find(query(t, text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		var got []string
		for _, sym := range list {
			got = append(got, sym.Name)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
	// Two constructors at one address are one.
	c := one(t, s, "DemoClass::DemoClass()")
	aliases, err := s.Aliases(c)
	if err != nil || len(aliases) != 1 || !strings.HasPrefix(aliases[0].Name, "_ZN9DemoClassC") || aliases[0].Name == c.Name {
		t.Errorf("aliases of %s: %v, %v", c.Name, aliases, err)
	}
	_, err = s.One(query(t, "DemoClass::say_hello"), nil)
	if e := wantCode(t, err, "ambiguous-symbol"); len(e.Details.([]Candidate)) != 2 || !strings.Contains(e.Hint, "parameters") {
		t.Errorf("%v; %s", e, e.Hint)
	}
	_, err = s.One(query(t, "DemoClass::say_helo"), nil)
	if e := wantCode(t, err, "no-symbol"); !strings.Contains(e.Hint, "DemoClass::say_hello(long)") {
		t.Errorf("hint: %q", e.Hint)
	}
	if sym := one(t, s, "fact"); sym.String() == "" || !strings.HasPrefix(sym.String(), "demo!demo.cc:fact(int) at 0x") {
		t.Errorf("%q", sym.String())
	}

	for pattern, want := range map[string][]string{
		"DemoClass::say_*":    {"_ZN9DemoClass9say_helloEiSt17basic_string_viewIcSt11char_traitsIcEE", "_ZN9DemoClass9say_helloEl"},
		"_ZN9DemoClass9say_*": {"_ZN9DemoClass9say_helloEiSt17basic_string_viewIcSt11char_traitsIcEE", "_ZN9DemoClass9say_helloEl"},
		"oClass::say_hello(l": {"_ZN9DemoClass9say_helloEl"},
		"say_hello_f":         {"_Z13say_hello_funiSt17basic_string_viewIcSt11char_traitsIcEE"},
		"*twice<????>*":       {"_Z5twiceIlET_S0_"},
		"(unsigned long":      nil,
		"able for DemoCl":     {"_ZTV9DemoClass"},
	} {
		var got []string
		err := s.Search(pattern, func(sym Symbol) bool {
			if sym.Module == s.Executable() {
				got = append(got, sym.Name)
			}
			return true
		})
		if err != nil {
			t.Errorf("%s: %v", pattern, err)
		}
		slices.Sort(got)
		if want == nil {
			if !slices.Contains(got, "_ZN12_GLOBAL__N_16hiddenEm") {
				t.Errorf("%s: %v", pattern, got)
			}
		} else if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", pattern, got, want)
		}
	}
	n := 0
	if err := s.Search("*", func(Symbol) bool { n++; return n < 3 }); err != nil || n != 3 {
		t.Errorf("Search does not stop: %d, %v", n, err)
	}
}

// TestVersions: default and older versions of one name.
func TestVersions(t *testing.T) {
	t.Parallel()
	dir := files(t, map[string]string{
		"v.c": `__asm__(".symver old_f, f@V1"); int old_f(int x) { return x; } __asm__(".symver new_f, f@@V2"); int new_f(int x) { return -x; }`,
		"map": "V1 { global: f; local: *; }; V2 { global: f; } V1;",
		"p.c": "int f(int);\n" + ready + "int main(void) { f(1); ready(); }",
	})
	run(t, dir, "gcc -O1 -fPIC -shared -Wl,--version-script=map -o libv.so v.c")
	run(t, dir, "gcc -o p p.c ./libv.so -Wl,-rpath,.")
	for _, stripped := range []bool{false, true} {
		if stripped {
			run(t, dir, "strip libv.so")
		}
		s := liveSpace(t, dir, "./p")
		found, err := s.Lookup([]string{"f"})
		if err != nil || len(found["f"]) != 2 {
			t.Fatalf("stripped %v: %v, %v", stripped, found, err)
		}
		for _, sym := range found["f"] {
			if want := sym.Version == "V1"; sym.Hidden != want || sym.Version != "V1" && sym.Version != "V2" {
				t.Errorf("stripped %v: %+v", stripped, sym)
			}
		}
		_, err = s.One(query(t, "f"), nil)
		if e := wantCode(t, err, "ambiguous-symbol"); !strings.Contains(e.Hint, "f@V") {
			t.Errorf("hint: %q", e.Hint)
		}
		a, b := one(t, s, "f@V1"), one(t, s, "libv.so!f@@V2")
		if a.Addr == b.Addr || a.Version != "V1" || b.Version != "V2" {
			t.Errorf("%v, %v", a, b)
		}
	}
}

func FuzzParseQuery(f *testing.F) {
	f.Add("prog!file.c:name")
	f.Add("lib.so!A::operator!=(A const&)")
	f.Add("memcpy@@GLIBC_2.14")
	f.Fuzz(func(t *testing.T, text string) {
		q, err := ParseQuery(text)
		if (err != nil) != (q == Query{}) {
			t.Fatalf("%+v with %v", q, err)
		}
		if err != nil {
			return
		}
		if q.Name == "" {
			t.Fatalf("%+v has no name", q)
		}
		newMatcher(q).match(&Sym{Name: []byte(text)})
		if !globMatch("*", text) {
			t.Fatalf("* does not match %q", text)
		}
		_ = globMatch(q.Name, text)
	})
}

func FuzzDemangle(f *testing.F) {
	f.Add("_ZN9DemoClass9say_helloEiSt17basic_string_viewIcSt11char_traitsIcEE")
	f.Add("_ZTchn16_h16_N1C5cloneEv")
	f.Fuzz(func(t *testing.T, name string) {
		if Demangle(name) == "" && name != "" {
			t.Fatal("nothing")
		}
		forms(name)
		lastIdentifier([]byte(name))
		ThunkOf(name)
	})
}
