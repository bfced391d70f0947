package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// debPackage is a source package of Debian, format "3.0 (quilt)", of the program of
// servedFiles.
type debPackage struct {
	revision string
	patches  map[string]string // below debian/patches
	series   []string          // those of them that are applied
	depends  string
}

// The patches of the package. Each is for the tree with those that it needs.
const (
	firstPatch = `--- a/second.c
+++ b/second.c
@@ -6,5 +6,5 @@
 		printf("%d is more than %d\n", x, most);
 		most = x;
 	}
-	return bounded(x + 1);
+	return bounded(x + 2);
 }
`
	fixPatch = `--- a/answer.c
+++ b/answer.c
@@ -11,7 +11,7 @@
 		puts("cannot be");
 		return -1;
 	}
-	return bounded(x) * 10 + calls;
+	return bounded(x) * 20 + calls;
 }
 int unused(int x) {
 	assert(x > __LINE__);
`
	// It changes a line that fixPatch has beside its own: one line of context.
	besidePatch = `--- a/answer.c
+++ b/answer.c
@@ -10,3 +10,3 @@
 	if (strchr(last, '/') == NULL) {
-		puts("cannot be");
+		puts("should not be");
 		return -1;
`
	// It changes the line of fixPatch once more.
	againPatch = `--- a/answer.c
+++ b/answer.c
@@ -13,3 +13,3 @@
 	}
-	return bounded(x) * 20 + calls;
+	return bounded(x) * 30 + calls;
 }
`
	// It can be applied and taken out.
	eitherPatch = `--- a/lines
+++ b/lines
@@ -3,6 +3,7 @@
 a
 a
 a
+a
 a
 a
 a
`
)

// make writes the package, and gives its .dsc file.
func (d debPackage) make(t *testing.T) string {
	t.Helper()
	for _, tool := range []string{"dpkg-source", "dpkg-buildpackage", "make", "patch"} {
		testtarget.Need(t, tool)
	}
	dir := t.TempDir()
	tree := filepath.Join(dir, "served-1.0")
	p := project{files: servedFiles()}.with("lines", strings.Repeat("a\n", 12)).
		with("Makefile", "served: main.o answer.o second.o\n\t$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^\n")
	p.write(t, tree)
	inDir(t, dir, "tar", "-czf", "served_1.0.orig.tar.gz", "served-1.0")
	files := map[string]string{
		"debian/source/format": "3.0 (quilt)\n",
		"debian/changelog":     "served (1.0-" + d.revision + ") unstable; urgency=medium\n\n  * A change.\n\n -- Nobody <nobody@example.org>  Mon, 01 Jan 2024 00:00:00 +0000\n",
		"debian/control": "Source: served\nSection: misc\nPriority: optional\nMaintainer: Nobody <nobody@example.org>\nStandards-Version: 4.6.2\n" +
			d.depends + "Rules-Requires-Root: no\n\nPackage: served\nArchitecture: any\nDescription: answers numbers\n It does.\n",
		"!debian/rules": "#!/usr/bin/make -f\ninclude /usr/share/dpkg/buildflags.mk\nbuild build-arch:\n\t$(MAKE) CFLAGS='$(CFLAGS) $(CPPFLAGS)' LDFLAGS='$(LDFLAGS)'\nclean:\n\trm -f *.o served\n",
	}
	if len(d.series) > 0 {
		files["debian/patches/series"] = strings.Join(d.series, "\n") + "\n"
	}
	for name, text := range d.patches {
		files["debian/patches/"+name] = text
	}
	project{files: files}.write(t, tree)
	inDir(t, tree, "dpkg-source", "-b", ".")
	return filepath.Join(dir, "served_1.0-"+d.revision+".dsc")
}

// stock builds the program as a distribution does, somewhere else, and strips it.
func (d debPackage) stock(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "served-1.0")
	run(t, "dpkg-source", "-x", d.make(t), dir)
	inDir(t, dir, "dpkg-buildpackage", "-d", "-renv", "-T", "build-arch")
	program := filepath.Join(dir, "served")
	run(t, "strip", "-s", program)
	return program
}

func inDir(t *testing.T, dir string, command ...string) {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

// TestDebianSource: a stripped program that was built from a source package gets a patch
// of that package while it runs, or one that a later version of the package has.
func TestDebianSource(t *testing.T) {
	lengthy(t)
	t.Parallel()
	patches := map[string]string{"first": firstPatch, "fix": fixPatch, "beside": besidePatch}
	old := debPackage{revision: "1", patches: patches, series: []string{"first"}}
	fixed := func(t *testing.T, stock, source debPackage, more ...string) testtarget.Result {
		t.Helper()
		q := testtarget.Start(t, stock.stock(t))
		is := func(want string) {
			t.Helper()
			if got := q.Ask("5000", `^5000 -> `); got != "5000 -> "+want {
				t.Fatalf("it says %q, want %q", got, want)
			}
		}
		is("10001 1000")
		out := filepath.Join(t.TempDir(), "fix.so")
		args := []string{"build", "--deb-source", source.make(t), "--patch", "debian/patches/fix", "--pid", fmt.Sprint(q.PID()), "-o", out}
		r := testtarget.Run(t, append(args, more...)...)
		if r.Exit != 0 {
			t.Fatalf("it should exit with 0\n%v", r)
		}
		apply(t, q.PID(), out)
		is("20002 1000")
		revert(t, q.PID(), "fix")
		is("10003 1000")
		q.Healthy(t)
		return r
	}
	t.Run("the package has not the patch", func(t *testing.T) {
		t.Parallel()
		r := fixed(t, old, old)
		says(t, r, "source package served 1.0-1, built at /build/reproducible-path/served-1.0", "is the very file that the package makes", "replaces answer (served)")
	})
	t.Run("the package has it", func(t *testing.T) {
		t.Parallel()
		later := old
		later.revision, later.series = "2", []string{"first", "fix"}
		r := fixed(t, old, later, "--watched-only")
		says(t, r, "the package has debian/patches/fix: it was taken out of the state before", "replaces answer (served)")
	})
	t.Run("and a later one beside it", func(t *testing.T) {
		t.Parallel()
		before, later := old, old
		before.series = []string{"first", "beside"}
		later.revision, later.series = "2", []string{"first", "fix", "beside"}
		r := fixed(t, before, later)
		says(t, r, "(and put back: beside)", "is the very file that the package makes")
	})
	t.Run("another program", func(t *testing.T) {
		t.Parallel()
		another := old
		another.series = nil
		r := fixed(t, another, old)
		says(t, r, "is not the very file that comes out of the package", "replaces answer (served)")
	})
}

// TestDebianSourceRefused: what cannot be unpacked, built or told apart is refused.
func TestDebianSourceRefused(t *testing.T) {
	lengthy(t)
	t.Parallel()
	either := filepath.Join(t.TempDir(), "either")
	if err := os.WriteFile(either, []byte(eitherPatch), 0o644); err != nil {
		t.Fatal(err)
	}
	plain := debPackage{revision: "1", patches: map[string]string{"fix": fixPatch}}
	for _, c := range []struct {
		code, patch string
		exit        int
		of          debPackage
		change      func(t *testing.T, dsc string)
		says        string
	}{
		{"series-conflict", "debian/patches/fix", 4, debPackage{revision: "1", patches: map[string]string{"fix": fixPatch, "again": againPatch}, series: []string{"fix", "again"}}, nil, "debian/patches/again cannot be put back"},
		{"patch-state", either, 4, plain, nil, either},
		{"build-dependencies", "debian/patches/fix", 1, debPackage{revision: "1", patches: plain.patches, depends: "Build-Depends: hotpatch-has-no-such-package\n"}, nil, "hotpatch-has-no-such-package"},
		{"source-unreadable", "debian/patches/fix", 2, plain, func(t *testing.T, dsc string) {
			if err := os.Remove(dsc); err != nil {
				t.Fatal(err)
			}
		}, "cannot read the source package"},
		{"unpack-failed", "debian/patches/fix", 1, plain, func(t *testing.T, dsc string) {
			if err := os.Truncate(filepath.Join(filepath.Dir(dsc), "served_1.0.orig.tar.gz"), 100); err != nil {
				t.Fatal(err)
			}
		}, "served_1.0.orig.tar.gz"},
	} {
		t.Run(c.code, func(t *testing.T) {
			t.Parallel()
			dsc := c.of.make(t)
			if c.change != nil {
				c.change(t, dsc)
			}
			r := testtarget.Run(t, "build", "--deb-source", dsc, "--patch", c.patch, "--base", "/bin/true", "-o", filepath.Join(t.TempDir(), "fix.so"))
			if r.Exit != c.exit {
				t.Errorf("it should exit with %d\n%v", c.exit, r)
			}
			says(t, r, c.code, c.says)
		})
	}
}
