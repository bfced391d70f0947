package objdiff

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"hotpatch/internal/objfile"
)

// matrix lists compilers with their options; the first ones are for -short.
func matrix() (list []string) {
	for _, c := range []string{"gcc", "clang"} {
		for _, options := range []string{
			"-O2 -g -fPIE", "-O2 -g -fPIC", "-O2 -g -fno-pie", "-O0 -fPIE", "-O0 -g -fno-pie", "-O1 -g -fPIC", "-O3 -fno-pie", "-O3 -g -fPIE",
			"-Os -g -fPIE", "-O2 -g -gdwarf-4 -gz -fPIE",
		} {
			list = append(list, c+" "+options+sections)
		}
	}
	return list
}

// TestMatrix compares a file with a bit of everything in it, with a change of one
// function: only that one is different, and those into which it was inlined.
func TestMatrix(t *testing.T) {
	t.Parallel()
	for _, file := range []struct{ name, changed string }{{"broad.c", "compute"}, {"broad.cc", "Shop::sell("}} {
		source := read(t, file.name)
		for i, flags := range matrix() {
			if file.name == "broad.cc" && i%3 != 0 {
				continue // a second to compile
			}
			t.Run(file.name+"/"+strings.TrimSuffix(flags, sections), func(t *testing.T) {
				t.Parallel()
				if testing.Short() && (i > 0 || file.name == "broad.cc") {
					t.Skip("-short: C and one set of options only")
				}
				pre := compile(t, flags, file.name, source)
				identities(t, flags, file.name, source, pre)
				d, err := Compare(pre, compile(t, flags, file.name, source, "-DNEW"), Options{})
				if err != nil {
					t.Fatal(err)
				}
				oneChanged(t, d, file.changed, strings.Contains(flags, "-g"))
				checkShip(t, d)
			})
		}
	}
}

// identities checks that what is no change is none.
func identities(t *testing.T, flags, name, source string, pre *objfile.Object) {
	same := map[string]string{
		"comment": "/* a comment */ " + source,
		"renamed": strings.ReplaceAll(source, "argc", "count_of_arguments"),
	}
	if functions, ok := reordered(source); ok {
		same["reordered"] = functions
	}
	for what, text := range same {
		post := compile(t, flags, name, text)
		if what == "reordered" && bytes.Equal(pre.Data, post.Data) {
			t.Error("reordered functions are the same file")
		}
		d, err := Compare(pre, post, Options{})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if !d.Empty() || len(d.New)+len(d.Removed) > 0 {
			t.Errorf("%s: something is different\n%s", what, describe(d))
		}
		checkShip(t, d)
	}
}

// reordered moves the functions area and mapped of broad.c to the front. Both
// use nothing that is declared in between.
func reordered(source string) (string, bool) {
	const marker = "int mapped(int x)\n"
	from := strings.Index(source, marker)
	to := strings.Index(source, "int compute(int x)\n")
	front := strings.Index(source, "static int twice")
	if from < 0 || to < from || front < 0 {
		return "", false
	}
	return source[:front] + source[from:to] + source[front:from] + source[to:], true
}

// oneChanged checks that only one function has changed, and that others did
// because it was inlined.
func oneChanged(t *testing.T, d *Diff, prefix string, debug bool) {
	found := false
	for _, f := range d.Changed {
		if strings.HasPrefix(display(f.Post.Name), prefix) {
			found = true
			continue
		}
		if debug && !slices.ContainsFunc(f.Inlined, func(s string) bool { return strings.HasPrefix(display(s), prefix) }) {
			t.Errorf("%s changed without it being inlined\n%s", f.Post.Name, describe(d))
		}
	}
	if !found || len(d.Removed) > 0 {
		t.Errorf("not found, or something is gone\n%s", describe(d))
	}
}
