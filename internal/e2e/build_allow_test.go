package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hotpatch/internal/objdiff"
	"hotpatch/internal/testtarget"
)

// TestBuildAllowed: what is refused with an override by name is allowed by that name, and the
// patch says so. The changes are those by which the comparison itself is tested.
func TestBuildAllowed(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(testtarget.Root(t), "internal", "objdiff", "testdata", "rules", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	done := make(map[string]string)
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		demand := make(map[string]string)
		for line := range strings.Lines(string(content)) {
			if key, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "// "), ": "); ok && strings.HasPrefix(line, "// ") {
				demand[key] = strings.TrimSpace(value)
			}
		}
		// Some leave nothing to replace when what was refused is left out.
		allow := demand["allow"]
		if allow == "" || done[allow] != "" || demand["changed"] == "" && allow != objdiff.AllowIFunc && allow != objdiff.AllowConstructor && allow != objdiff.AllowVtable {
			continue
		}
		done[allow] = file
	}
	if got := slices.Sorted(maps.Keys(done)); !slices.Equal(got, slices.Sorted(slices.Values(objdiff.Overrides))) {
		t.Fatalf("there are changes for %q only", got)
	}
	for allow, file := range done {
		t.Run(allow, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			name := filepath.Base(file)
			driver := map[bool]string{false: "gcc", true: "g++"}[strings.HasSuffix(name, ".cc")]
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			// So that there is something to replace in any case.
			text := string(content) + "\nint always(int x);\n__attribute__((noinline)) int always(int x)\n{\n#ifdef NEW\n\treturn x * 12345 + 7;\n#else\n\treturn x * 54321 + 8;\n#endif\n}\n"
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			path := func(name string) string { return filepath.Join(dir, name) }
			flags := []string{"-O2", "-g", "-fPIC", "-ffunction-sections", "-fdata-sections"}
			run(t, driver, append(flags, "-c", path(name), "-o", path("pre.o"))...)
			run(t, driver, append(flags, "-DNEW", "-c", path(name), "-o", path("post.o"))...)
			run(t, driver, "-shared", "-Wl,--build-id", path("pre.o"), "-o", path("base.so"))
			args := []string{"build", "--pre", path("pre.o"), "--post", path("post.o"), "--base", path("base.so"), "-o", path("fix.so")}
			if r := testtarget.Run(t, args...); r.Exit != 4 || !strings.Contains(r.Stderr, "allow it by the name "+allow) || !strings.Contains(r.Stderr, name+":") {
				t.Errorf("the hint names no override, or the place is not said\n%v", r)
			}
			must(t, append(args, "--allow", allow)...)
			if r := must(t, "inspect", path("fix.so")); !strings.Contains(r.Stdout, allow) {
				t.Errorf("the patch does not say what was allowed\n%v", r)
			}
		})
	}
}
