package sourcetree

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestRenumber(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ pre, post, want string }{
		"nothing":      {"a\nb\n", "a\nb\n", "a\nb\n"},
		"added":        {"a\nb\n", "a\nnew\nb\n", "a\nnew\n#line 2\nb\n"},
		"removed":      {"a\nb\nc\n", "a\nc\n", "a\n#line 3\nc\n"},
		"replaced":     {"a\nb\nc\n", "a\nB\nc\n", "a\nB\nc\n"},
		"two hunks":    {"a\nb\nc\nd\n", "1\na\nb\n2\n3\nd\n", "1\n#line 1\na\nb\n2\n3\n#line 4\nd\n"},
		"at the end":   {"a\n", "a\nb", "a\nb"},
		"no newline":   {"a\nb", "x\na\nb", "x\n#line 1\na\nb"},
		"comment":      {"/*\nb\n*/\nc\n", "/*\nnew\nb\n*/\nc\n", "/*\nnew\nb\n*/\n#line 4\nc\n"},
		"macro":        {"#define M \\\n a \\\n b\nc\n", "#define M \\\n new \\\n a \\\n b\nc\n", "#define M \\\n new \\\n a \\\n b\n#line 4\nc\n"},
		"parentheses":  {"f(a,\n b);\nc;\n", "f(a,\n new,\n b);\nc;\n", "f(a,\n new,\n b);\n#line 3\nc;\n"},
		"raw string":   {"x = R\"(\n\"a\n)\";\nc\n", "x = R\"(\nnew\n\"a\n)\";\nc\n", "x = R\"(\nnew\n\"a\n)\";\n#line 4\nc\n"},
		"string":       {"x = \"a\\\nb\";\nc\n", "y\nx = \"a\\\nb\";\nc\n", "y\n#line 1\nx = \"a\\\nb\";\nc\n"},
		"character":    {"x = '(';\nc\n", "x = '(';\nnew\nc\n", "x = '(';\nnew\n#line 2\nc\n"},
		"separator":    {"x = 1'000;\nc\n", "x = 1'000;\nnew\nc\n", "x = 1'000;\nnew\n#line 2\nc\n"},
		"apostrophe":   {"#if 0\ndon't (\n#endif\nc\n", "#if 0\ndon't (\n#endif\nnew\nc\n", "#if 0\ndon't (\n#endif\nnew\n#line 4\nc\n"},
		"branches":     {"#if A\nf(\n#else\ng(\n#endif\n1);\nc\n", "#if A\nf(\n#else\ng(\n#endif\n1);\nnew\nc\n", "#if A\nf(\n#else\ng(\n#endif\n1);\nnew\n#line 7\nc\n"},
		"own numbers":  {"#line 50 \"x\"\na\nb\n", "#line 60 \"x\"\na\nb\n", "#line 60 \"x\"\n#line 50\na\nb\n"},
		"slashes":      {"// ( \\\n ( \" \na\nb\n", "// ( \\\n ( \" \na\nnew\nb\n", "// ( \\\n ( \" \na\nnew\n#line 4\nb\n"},
		"new file":     {"", "a\nb\n", "a\nb\n"},
		"emptied file": {"a\n", "", ""},
	} {
		if got := string(Renumber([]byte(test.pre), []byte(test.post))); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// source makes a C file of n lines of different sorts, each of which has its number.
func source(r *rand.Rand, n int) []string {
	var lines []string
	for len(lines) < n {
		id := r.IntN(1 << 30)
		lines = append(lines, [][]string{
			{fmt.Sprintf("int v%d = __LINE__;", id)},
			{fmt.Sprintf("/* %d", id), "  (it's \"one */"},
			{fmt.Sprintf("#define M%d(x) \\", id), "\tf(x, \\", "\t1)"},
			{fmt.Sprintf("#if D%d", id), "int f(", "#else", "int g(", "#endif", "void);"},
			{fmt.Sprintf("const char *s%d = \"(/*\\\"\" \\", id), "  \"more\";"},
			{fmt.Sprintf("int u%d(int a,", id), "  int b);"},
			{"// don't \\", "  stop ("},
			{""},
		}[r.IntN(8)]...)
	}
	return lines
}

// TestRenumberCompiles: whatever is inserted and taken out, every line that is left
// and uses its number has the one that it had, by gcc's own word, and the text is the
// same but for the directives.
func TestRenumberCompiles(t *testing.T) {
	t.Parallel()
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 7))
		was := source(r, 120)
		var now []string
		for i := 0; i < len(was); i++ {
			// Only at lines that stand alone, so that the text stays valid.
			if alone := strings.HasPrefix(was[i], "int v"); alone && r.IntN(4) == 0 {
				switch r.IntN(3) {
				case 0:
					continue
				case 1:
					now = append(now, "int other"+was[i][5:])
					continue
				default:
					now = append(now, fmt.Sprintf("int new%d;", r.IntN(1<<30)), "")
				}
			}
			now = append(now, was[i])
		}
		pre, post := []byte(strings.Join(was, "\n")+"\n"), []byte(strings.Join(now, "\n")+"\n")
		out := Renumber(pre, post)
		var kept []byte
		for line := range bytes.Lines(out) {
			if !bytes.HasPrefix(line, []byte("#line ")) {
				kept = append(kept, line...)
			}
		}
		if !bytes.Equal(kept, post) {
			t.Fatalf("seed %d: the text is another one", seed)
		}
		before, after := values(t, pre), values(t, out)
		n := 0
		for _, line := range now {
			if !strings.HasPrefix(line, "int v") {
				continue
			}
			name := strings.Fields(line)[1]
			if before[name] != after[name] {
				t.Errorf("seed %d: %s had the number %s, and now %s\n%s", seed, name, before[name], after[name], out)
			}
			n++
		}
		if n == 0 {
			t.Errorf("seed %d: nothing was compared", seed)
		}
	}
}

// values gives what gcc makes of each "int NAME = __LINE__;".
func values(t *testing.T, text []byte) map[string]string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.c")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("gcc", "-E", "-P", path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	all := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 4 && f[0] == "int" && f[2] == "=" {
			all[f[1]] = f[3]
		}
	}
	return all
}

// FuzzRenumber: only directives are added.
func FuzzRenumber(f *testing.F) {
	f.Add("a\nb\n", "a\nc\nb\n")
	f.Add("/*\nR\"x(\n", "\n(\n#if\n'")
	f.Fuzz(func(t *testing.T, pre, post string) {
		if strings.Contains(post, "#line ") {
			return
		}
		out := string(Renumber([]byte(pre), []byte(post)))
		var kept strings.Builder
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, "#line ") {
				kept.WriteString(line)
			}
		}
		if kept.String() != post {
			t.Errorf("%q to %q gives %q", pre, post, out)
		}
	})
}
