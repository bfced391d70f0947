package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// both are two states of a source: one function changed, one with another line number
// only, one with another order of strings around it, and a new one.
var both = [2]string{`
extern int put(const char *), where(int);
int changed(int a) { return a + 1; }
int line(void) { return where(__LINE__); }
int strings(void) { return put("one") + put("two"); }
`, `
extern int put(const char *), where(int);
int more(int a) { return put("zero") * a; }
int changed(int a) { return a + 2 * put("none"); }

int line(void) { return where(__LINE__); }
int strings(void) { return put("one") + put("two"); }
`}

// TestAbsorbed: a function that only one other calls is no more there under its name.
func TestAbsorbed(t *testing.T) {
	call := func(name string) code { return code{refs: []string{"0x1 R_X86_64_PLT32 " + name + "-4"}} }
	pre := functions{"a.o helper": {}, "a.o caller": call("helper"), "a.o other": call("elsewhere")}
	post := functions{"a.o helper.part.0": {}, "a.o caller": call("helper"), "a.o other": call("elsewhere")}
	if !absorbed(pre, post, "helper", []string{"caller"}) {
		t.Error("its only caller is replaced")
	}
	if absorbed(pre, post, "helper", []string{"other"}) {
		t.Error("its caller is not replaced")
	}
	if absorbed(pre, pre, "helper", []string{"caller"}) {
		t.Error("it is still there")
	}
	pre["a.o caller"] = call(".text.helper")
	if !absorbed(pre, post, "helper", []string{"caller"}) {
		t.Error("its only caller, which calls it by its section, is replaced")
	}
	pre["a.o other"] = call("helper")
	if absorbed(pre, post, "helper", []string{"caller"}) {
		t.Error("another one calls it")
	}
}

func TestJudge(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Fatal("the judge is for gcc's objects: ", err)
	}
	var states [2]functions
	for i, text := range both {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "a.c"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := command(t.Context(), dir, nil, "gcc", "-O2", "-g", "-ffunction-sections", "-c", "a.c"); err != nil {
			t.Fatal(err)
		}
		var err error
		if states[i], err = functionsOf(dir); err != nil {
			t.Fatal(err)
		}
	}
	changed, lines, added := difference(states[0], states[1])
	if !slices.Equal(changed, []string{"changed"}) || !slices.Equal(lines, []string{"line"}) || !slices.Equal(added, []string{"more"}) {
		t.Errorf("changed %v, line numbers %v, new %v", changed, lines, added)
	}
	if changed, lines, added = difference(states[0], states[0]); len(changed)+len(lines)+len(added) > 0 {
		t.Errorf("against itself: changed %v, line numbers %v, new %v", changed, lines, added)
	}
}

// TestFixes checks that every fix which is to be automatic has a scenario that shows it.
func TestFixes(t *testing.T) {
	data := filepath.Join("..", "..", "testdata", "cve")
	fixes, err := readFixes(filepath.Join(data, "fixes.tsv"), filepath.Join(data, "packages.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fixes {
		if _, ok := scenarios[f.Show]; !ok && slices.Contains(f.Expect, "automatic") {
			t.Errorf("%s: no scenario %q", f.name(), f.Show)
		}
	}
}

func TestPlain(t *testing.T) {
	for name, want := range map[string]string{
		"a.isra.0": "a", "a.part.0.cold": "a", "headers.1": "headers", ".text.a.constprop.0": ".text.a", "a": "a", "_ZN1a1bEv.cold": "_ZN1a1bEv",
	} {
		if got := plain(name); got != want {
			t.Errorf("%s is %s instead of %s", name, got, want)
		}
	}
}
