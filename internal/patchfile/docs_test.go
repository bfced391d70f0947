package patchfile

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hotpatch/internal/testtarget"
)

func formatDoc(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(testtarget.Root(t), "docs/patch-format.md"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The example in the documentation is a patch.
func TestDocExample(t *testing.T) {
	t.Parallel()
	_, example, _ := strings.Cut(formatDoc(t), "```asm\n")
	example, _, ok := strings.Cut(example, "```")
	if !ok {
		t.Fatal("there is no example")
	}
	example += "\n.text\n.type new_login, @function\nnew_login: ret\n.size new_login, .-new_login\n.section .note.GNU-stack,\"\",@progbits\n"
	for _, compiler := range []string{"gcc", "clang"} {
		p, err := Open(testtarget.Build(t, testtarget.Spec{Files: map[string]string{"example.S": example}, Compiler: compiler,
			Flags: []string{"-Wl,--gc-sections"}, Shared: true}))
		if err != nil {
			t.Fatal(err)
		}
		if p.Name != "fix-login" || p.Version != 2 || len(p.Replacements) != 1 ||
			p.Replacements[0].Old != "login.c:login" || p.Replacements[0].New.Name != "new_login" {
			t.Errorf("%s: got %s %d, %+v", compiler, p.Name, p.Version, p.Replacements)
		}
	}
}

// The documentation lists the codes of all refusals.
func TestDocCodes(t *testing.T) {
	t.Parallel()
	code := regexp.MustCompile(`"(patch-[a-z-]+)"`)
	var want []string
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range code.FindAllStringSubmatch(string(text), -1) {
			want = append(want, m[1])
		}
	}
	var got []string
	_, section, _ := strings.Cut(formatDoc(t), "## What is refused")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, m := range regexp.MustCompile("`(patch-[a-z-]+)`").FindAllStringSubmatch(section, -1) {
		got = append(got, m[1])
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(slices.Compact(want), got); diff != "" {
		t.Error(diff)
	}
}
