package intercept

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		line    string
		step    step
		sources string // with the language
		output  string
		inputs  string
		compile string // arguments of the first source; "" if none
	}{
		{"-c a.c", compileStep, "a.c:c", "", "", "-c a.c"},
		{"-O2 -Wall -c -o x.o a.cc", compileStep, "a.cc:c++", "x.o", "", "-O2 -Wall -c a.cc"},
		{"-ox.o -c a.c", compileStep, "a.c:c", "x.o", "", "-c a.c"},
		{"-c a.c b.cpp", compileStep, "a.c:c b.cpp:c++", "", "", "-c a.c"},
		{"-I inc -D X=1 -include pre.h -c a.c", compileStep, "a.c:c", "", "", "-I inc -D X=1 -include pre.h -c a.c"},
		{"-MD -MP -MF d -MT t -c a.c -o a.o", compileStep, "a.c:c", "a.o", "", "-c a.c"},
		{"-Wp,-MMD,.a.d -c a.c", compileStep, "a.c:c", "", "", "-c a.c"},
		{"-Wp,-D_FORTIFY_SOURCE=2,-MD,x.d -c a.c", compileStep, "a.c:c", "", "", "-Wp,-D_FORTIFY_SOURCE=2 -c a.c"},
		{"-x c -c in -x none b.cc", compileStep, "in:c b.cc:c++", "", "", "-x c -c in -x none"},
		{"-xc++ -c -", compileStep, "-:c++", "", "", "-xc++ -c -"},
		{"-c x.S", compileStep, "x.S:assembler-with-cpp", "", "", "-c x.S"},
		{"-o prog a.c b.o -lm -L. -Wl,-z,now", compileLinkStep, "a.c:c", "prog", "b.o -lm -L.", "-c a.c"},
		{"-o prog a.o libx.a -Wl,--whole-archive,liby.a -l z -Lq", linkStep, "", "prog", "a.o libx.a liby.a -lz -Lq", ""},
		{"-shared -o l.so a.o -Xlinker b.a", linkStep, "", "l.so", "a.o b.a", ""},
		{"-r -o all.o a.o b.o", linkStep, "", "all.o", "a.o b.o", ""},
		{"-E a.c", otherStep, "a.c:c", "", "", ""},
		{"-S -o a.s a.c", otherStep, "a.c:c", "a.s", "", ""},
		{"-M a.c", otherStep, "a.c:c", "", "", ""},
		{"-fsyntax-only a.c", otherStep, "a.c:c", "", "", ""},
		{"--version", otherStep, "", "", "", ""},
		{"-print-search-dirs", otherStep, "", "", "", ""},
		{"-dumpmachine", otherStep, "", "", "", ""},
		{"-dumpbase x -c a.c", compileStep, "a.c:c", "", "", "-dumpbase x -c a.c"},
		{"-v", otherStep, "", "", "", ""},
		{"", otherStep, "", "", "", ""},
		{"-c a.o", otherStep, "", "", "a.o", ""},
		{"-cc1 -c a.c", otherStep, "a.c:c", "", "", ""},
		{"-export-dynamic -o p a.o", linkStep, "", "p", "a.o", ""},
		{"-undef -traditional-cpp -c a.c", compileStep, "a.c:c", "", "", "-undef -traditional-cpp -c a.c"},
		{"--param max=3 -Xclang -load -c a.c", compileStep, "a.c:c", "", "", "--param max=3 -Xclang -load -c a.c"},
		{"-c -- -odd.c", compileStep, "-odd.c:c", "", "", "-c -- -odd.c"},
		{"--output=x.o -c a.c", compileStep, "a.c:c", "x.o", "", "-c a.c"},
		{"-static -c a.c", compileStep, "a.c:c", "", "", "-static -c a.c"},
		{"-Os -std=c99 -c a.c", compileStep, "a.c:c", "", "", "-Os -std=c99 -c a.c"},
	} {
		c := Parse(strings.Fields(test.line))
		var sources []string
		for _, s := range c.sources() {
			sources = append(sources, s.value+":"+s.lang)
		}
		compile := ""
		if c.Step == compileStep || c.Step == compileLinkStep {
			compile = strings.Join(c.compileArgs(c.sources()[0]), " ")
		}
		if got := strings.Join(sources, " "); c.Step != test.step || got != test.sources || c.Output != test.output || strings.Join(c.inputs(), " ") != test.inputs || compile != test.compile {
			t.Errorf("%q: step %d, sources %q, output %q, inputs %q, compile %q; want %+v", test.line, c.Step, got, c.Output, c.inputs(), compile, test)
		}
	}
}

// TestParseDependencies: what the build wants to be told of dependencies.
func TestParseDependencies(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"-MD -c a.c":                    "-MD ",
		"-MMD -MF x.d -c a.c":           "-MMD x.d",
		"-Wp,-MMD,.x.d -c a.c":          "-MMD .x.d",
		"-MMD -MD -MFx.d -c a.c":        "-MD x.d",
		"-c a.c":                        " ",
		"-Wp,-MD,y.d,-MT,t -MP -c a.c ": "-MD y.d",
	} {
		if c := Parse(strings.Fields(line)); c.wants+" "+c.wantsFile != want {
			t.Errorf("%q: %q %q, want %q", line, c.wants, c.wantsFile, want)
		}
	}
}

func TestLinkArgs(t *testing.T) {
	t.Parallel()
	c := Parse(strings.Fields("-O2 -x c a.in -x none -MD -o prog b.cc c.o -lm"))
	if got := strings.Join(c.linkArgs([]string{"1.o", "2.o"}), " "); got != "-O2 1.o -o prog 2.o c.o -lm" {
		t.Errorf("%q", got)
	}
}

func TestLinkOptions(t *testing.T) {
	t.Parallel()
	c := Parse(strings.Fields("-O2 -pie -Wl,--wrap=f,-z,now,x.a -o prog a.o -L. -lm -u start -s"))
	if got := strings.Join(c.linkOptions(), "|"); got != "-pie|-Wl,--wrap=f|-Wl,-z|-Wl,now|-u start|-s" {
		t.Errorf("%q", got)
	}
}

func TestDeps(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		"a.o: a.c b.h \\\n c.h\n":        {"a.c", "b.h", "c.h"},
		"a.o b.o: a.c\n\nb.h:\n":         {"a.c"},
		`a.o: a\ b.c $$x.h y\#.h` + "\n": {"a b.c", "$x.h", "y#.h"},
		`a.o: a\\\ b.c` + "\n":           {`a\ b.c`},
		`a.o: a\\ b.c` + "\n":            {`a\`, "b.c"},
		"a.o: \\\r\n  a.c\r\n":           {"a.c"},
		"dir/a.o:\ta.c\tb.h":             {"a.c", "b.h"},
		"":                               nil,
		"no rule":                        nil,
		"C\\:x.o: back\\slash.h a:b.h\n": {`back\slash.h`, "a:b.h"},
		"a.o: \\\n \\\n a.c\n":           {"a.c"},
	} {
		if got := ParseDeps(text); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestDepsOfCompilers: names that compilers have to quote are read back.
func TestDepsOfCompilers(t *testing.T) {
	t.Parallel()
	for _, compiler := range []string{"gcc", "clang"} {
		dir := t.TempDir()
		names := []string{"plain.h", "with space.h", "with$dollar.h", "with#hash.h"}
		text := ""
		for _, n := range names {
			text += "#include \"" + n + "\"\n"
			if err := os.WriteFile(filepath.Join(dir, n), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "a.c"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		command(t, dir, compiler, "-MD", "-MF", "deps", "-c", "a.c")
		out, err := os.ReadFile(filepath.Join(dir, "deps"))
		if err != nil {
			t.Fatal(err)
		}
		got := ParseDeps(string(out))
		for _, n := range append(names, "a.c") {
			if !slices.Contains(got, n) {
				t.Errorf("%s: %q is missing in %q", compiler, n, got)
			}
		}
	}
}

func TestSplitWords(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		"-a  -b\n-c\t":            {"-a", "-b", "-c"},
		`-DX='a b' "c d"e \ f ""`: {"-DX=a b", "c de", " f", ""},
		`'a\'b' "c\"d" e\\f`:      {"a'b", `c"d`, `e\f`},
		"":                        nil,
	} {
		if got := splitWords(text); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// FuzzParse: every command line is taken apart, and nothing of it is lost.
func FuzzParse(f *testing.F) {
	f.Add("-c a.c -o x.o -MD -Wp,-MD,x -x c++ b.in -- -z")
	f.Add("-o")
	f.Add("-Wp,-MD -L -l")
	f.Fuzz(func(t *testing.T, line string) {
		words := strings.Fields(line)
		c := Parse(words)
		n := 0
		for _, a := range c.args {
			n += len(a.words)
			if a.kind == source && len(a.words) != 1 {
				t.Errorf("a source of %d words", len(a.words))
			}
		}
		if n > len(words) || n < len(words)-strings.Count(line, "-Wp,") {
			t.Errorf("%d words of %d: %q", n, len(words), words)
		}
		for _, s := range c.sources() {
			if !slices.Contains(c.compileArgs(s), s.value) {
				t.Errorf("the source %q is not compiled in %q", s.value, words)
			}
		}
		c.linkArgs(make([]string, len(c.sources())))
		c.inputs()
	})
}

// FuzzDeps: nothing a file holds makes it fail, and names hold no space that was not
// quoted.
func FuzzDeps(f *testing.F) {
	f.Add("a.o: a.c \\\n b\\ c.h $$d\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, name := range ParseDeps(text) {
			if name == "" || strings.Contains(name, "\n") {
				t.Errorf("%q gives the name %q", text, name)
			}
		}
	})
}
