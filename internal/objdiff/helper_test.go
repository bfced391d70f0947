package objdiff

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hotpatch/internal/fault"
	"hotpatch/internal/objfile"
	"hotpatch/internal/testtarget"
)

// slots keeps the number of compilers that run at once small.
var slots = make(chan struct{}, 2)

// compile compiles a source text. flags start with the compiler.
func compile(t testing.TB, flags, name, source string, more ...string) *objfile.Object {
	t.Helper()
	args := strings.Fields(flags)
	compiler := args[0]
	if cc := map[string]string{"gcc": "g++", "clang": "clang++"}[compiler]; cc != "" && strings.HasSuffix(name, ".cc") {
		compiler = cc
	}
	testtarget.Need(t, compiler)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	args = append(args[1:], more...)
	args = append(args, "-c", name, "-o", "out.o")
	slots <- struct{}{}
	defer func() { <-slots }()
	cmd := exec.Command(compiler, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", compiler, args, err, out)
	}
	o, err := objfile.Open(filepath.Join(dir, "out.o"))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// sections are the flags without which nothing is compared.
const sections = " -ffunction-sections -fdata-sections"

// read reads a file of testdata.
func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// names gives the names of what differs, sorted and demangled.
func names(d *Diff) (changed, added, removed []string) {
	for _, f := range d.Changed {
		changed = append(changed, display(f.Pre.Name))
	}
	for _, y := range d.New {
		added = append(added, display(y.Name))
	}
	for _, y := range d.Removed {
		removed = append(removed, display(y.Name))
	}
	slices.Sort(changed)
	slices.Sort(added)
	slices.Sort(removed)
	return changed, added, removed
}

func shipped(d *Diff) (list []string) {
	for _, s := range d.Ship {
		list = append(list, s.Name)
	}
	return list
}

// codes gives the codes of all refusals, each once, sorted.
func codes(err error) (list []string) {
	var l fault.List
	var e *fault.Error
	switch {
	case errors.As(err, &l):
		for _, e := range l {
			list = append(list, e.Code)
		}
	case errors.As(err, &e):
		list = append(list, e.Code)
	case err != nil:
		list = append(list, err.Error())
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// describe gives a Diff as text, for failures.
func describe(d *Diff) string {
	if d == nil {
		return "no diff"
	}
	var b strings.Builder
	for _, f := range d.Changed {
		fmt.Fprintf(&b, "changed %s: %s (%s:%d), inlined %q\n", f.Pre.Name, f.Why, f.File, f.Line, f.Inlined)
	}
	_, added, removed := names(d)
	fmt.Fprintf(&b, "new %q\nremoved %q\nship %q\n", added, removed, shipped(d))
	for _, w := range d.Warnings {
		fmt.Fprintf(&b, "warning %s %s %s:%d %s (%s)\n", w.Code, w.Symbol, w.File, w.Line, w.Why, w.Override)
	}
	return b.String()
}

// reparse gives the object once more, with a byte that means nothing changed, so
// that it is really compared.
func reparse(t testing.TB, o *objfile.Object) *objfile.Object {
	t.Helper()
	data := slices.Clone(o.Data)
	data[15] ^= 1 // padding of e_ident
	p, err := objfile.Parse(o.Path, data)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
