package objdiff

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hotpatch/internal/fault"
)

// rule is what the comments at the start of a file of testdata/rules demand of
// its comparison without and with NEW.
type rule map[string][]string

func parseRule(t *testing.T, source string) rule {
	t.Helper()
	r := make(rule)
	for line := range strings.Lines(source) {
		text, ok := strings.CutPrefix(line, "// ")
		if !ok {
			break
		}
		key, value, ok := strings.Cut(strings.TrimSpace(text), ":")
		switch key {
		case "changed", "new", "removed", "refused", "warned", "inlined", "parts", "aliases", "allow", "only", "flags", "kept":
			if !ok {
				continue
			}
			fields := strings.Fields(value)
			if key == "changed" || key == "new" {
				fields = splitNames(value)
			}
			slices.Sort(fields)
			r[key] = append(r[key], fields...)
		}
	}
	if len(r) == 0 {
		t.Fatal("no demands")
	}
	return r
}

// splitNames splits at blanks, but for those in C++ declarations.
func splitNames(s string) []string {
	if strings.ContainsAny(s, "(") {
		return []string{strings.TrimSpace(s)}
	}
	return strings.Fields(s)
}

// TestRules compares small files before and after one change each. Each says
// at its start what must come out.
func TestRules(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/rules/*")
	if err != nil || len(files) < 60 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for i, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		r := parseRule(t, string(b))
		for _, compiler := range []string{"gcc", "clang"} {
			if only := r["only"]; only != nil && only[0] != compiler {
				continue
			}
			t.Run(filepath.Base(file)+"/"+compiler, func(t *testing.T) {
				t.Parallel()
				if few := testing.Short() || i%6 != 0 && os.Getenv("HOTPATCH_TEST_ALL") != "1"; few && compiler != "gcc" && r["only"] == nil {
					t.Skip("with gcc only, unless HOTPATCH_TEST_ALL=1")
				}
				r.check(t, debug[compiler]+" -O2 -g"+sections+" "+strings.Join(r["flags"], " "), filepath.Base(file), string(b))
			})
		}
	}
}

// debug has the flags for whole debugging information: clang leaves out classes
// whose constructors are elsewhere.
var debug = map[string]string{"gcc": "gcc", "clang": "clang -fstandalone-debug"}

func (r rule) check(t *testing.T, flags, name, source string) {
	pre := compile(t, flags, name, source)
	post := compile(t, flags, name, source, "-DNEW")
	for _, o := range []string{"pre against pre", "post against post"} {
		x := pre
		if o != "pre against pre" {
			x = post
		}
		y := reparse(t, x)
		if d, err := Compare(x, y, Options{}); err != nil || !d.Empty() || len(d.New)+len(d.Removed) > 0 {
			t.Errorf("%s: %v\n%s", o, err, describe(d))
		}
	}
	d, err := Compare(pre, post, Options{})
	if got := codes(err); !slices.Equal(got, r["refused"]) {
		t.Fatalf("refused %q: %v\nwant %q\n%s", got, err, r["refused"], describe(d))
	}
	if err != nil {
		checkRefusals(t, err, name)
		if r["allow"] == nil {
			return
		}
		if d, err = Compare(pre, post, Options{Allow: r["allow"]}); err != nil {
			t.Fatalf("allowed, and refused: %v", err)
		}
		if !slices.ContainsFunc(d.Warnings, func(f Finding) bool { return slices.Contains(r["allow"], f.Override) }) {
			t.Errorf("no warning of what was allowed\n%s", describe(d))
		}
	}
	changed, added, removed := names(d)
	var warned, inlined, parts, aliases []string
	for _, w := range d.Warnings {
		if w.Override == "" && !slices.Contains(warned, w.Code) {
			warned = append(warned, w.Code)
		}
	}
	for _, f := range d.Changed {
		if (f.Line == 0 || !strings.HasSuffix(f.File, name)) && !slices.Contains(r["flags"], "-g0") || f.Why == "" {
			t.Errorf("%s is at %s:%d, changed by %q", f.Post.Name, f.File, f.Line, f.Why)
		}
		inlined = append(inlined, f.Inlined...)
		for _, p := range f.Parts {
			parts = append(parts, p.Name)
		}
		for _, a := range f.Aliases {
			aliases = append(aliases, a.Name)
		}
	}
	for _, c := range []struct {
		what string
		got  []string
		want []string
		free bool // not looked at unless it is demanded
	}{
		{"changed", changed, r["changed"], false},
		{"new", baseNames(added), r["new"], strings.HasSuffix(name, ".cc") && r["new"] == nil},
		{"removed", baseNames(removed), r["removed"], strings.HasSuffix(name, ".cc") && r["removed"] == nil},
		{"warned", warned, r["warned"], false},
		{"inlined", inlined, r["inlined"], r["inlined"] == nil},
		{"parts", parts, r["parts"], r["parts"] == nil},
		{"aliases", aliases, r["aliases"], r["aliases"] == nil},
	} {
		slices.Sort(c.got)
		if !c.free && !slices.Equal(c.got, c.want) {
			t.Errorf("%s %q, want %q\n%s", c.what, c.got, c.want, describe(d))
		}
	}
	checkShip(t, d)
}

// baseNames gives names as the source has them: without numbers, and without
// the function that clang puts in front of its static variable.
func baseNames(list []string) (out []string) {
	for _, s := range list {
		s = baseName(s)
		if i := strings.LastIndexByte(s, '.'); i > 0 && !strings.Contains(s, "(") {
			s = s[i+1:]
		}
		out = append(out, s)
	}
	return out
}

// checkRefusals checks that every refusal says what, where, why and what helps.
func checkRefusals(t *testing.T, err error, name string) {
	t.Helper()
	list, ok := err.(fault.List)
	if e, one := err.(*fault.Error); one {
		list, ok = fault.List{e}, true
	}
	if !ok {
		t.Fatalf("%T", err)
	}
	for _, e := range list {
		f, ok := e.Details.(Finding)
		if !ok || f.Code != e.Code || f.Why != e.Why || e.Kind != fault.Unfit || e.What == "" || e.Why == "" || e.Hint == "" {
			t.Errorf("%#v", e)
		}
		if f.Override != "" && !slices.Contains(Overrides, f.Override) {
			t.Errorf("an override %q", f.Override)
		}
		if !strings.Contains(f.File, name) && !strings.HasSuffix(f.File, "out.o") {
			t.Errorf("file %q", f.File)
		}
	}
}

// checkShip checks that what is shipped is complete: everything that it refers to
// is shipped, undefined, or has a twin.
func checkShip(t *testing.T, d *Diff) {
	t.Helper()
	for _, f := range d.Changed {
		if !slices.Contains(d.Ship, f.Post.Section) {
			t.Errorf("%s is not shipped", f.Post.Name)
		}
	}
	for _, s := range d.Ship {
		for _, r := range Refs(s) {
			if y := r.Sym; d.Twin[y] == nil && y.Section != nil && !slices.Contains(d.Ship, y.Section) {
				t.Errorf("%s refers to %s in %s, which is not shipped", s.Name, y, y.Section.Name)
			}
		}
	}
	seen := map[any]bool{}
	for post, pre := range d.Twin {
		if seen[pre] {
			t.Errorf("%s has several twins", pre)
		}
		seen[pre] = true
		if post == nil || pre == nil {
			t.Error("a nil twin")
		}
	}
}
