package testtarget

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Spec says what to compile and how.
type Spec struct {
	// Sources are files of testdata/targets. Files are further sources given
	// as name and content; names that end in .h are headers.
	Sources []string
	Files   map[string]string

	Compiler string   // gcc, g++, clang, clang++, musl-gcc; "" chooses gcc or g++ by the sources
	Flags    []string // such as -O2; -std=gnu++17, -pthread and the include paths are there already
	Shared   bool     // a shared object instead of an executable
	Strip    bool     // strip all symbols that the dynamic linker does not need
	Libs     []string // shared objects, by the paths that Build gave, to link with; found at run time by that path
	Name     string   // the file's name; "" makes it from the first source: seed.cc gives seed, or seed.so if Shared
	Tree     string   // compile inside this Debian release, see Trees; "" is this machine
}

// Build compiles a target and gives its path. It ends the test if a compiler is
// missing (see Unavailable) or does not like the source.
//
// What was compiled once, from the same sources with the same compiler and
// flags, is taken from the cache. Tests and test processes may build the same
// target at the same time. The file must not be changed: copy it first.
func Build(t testing.TB, s Spec) string {
	t.Helper()
	s = s.withDefaults(t)
	tree := ""
	if s.Tree != "" {
		tree = Tree(t, s.Tree)
	} else {
		Need(t, s.Compiler)
	}

	dir := filepath.Join(cacheDir(t), "builds", s.key(t, tree))
	path := filepath.Join(dir, s.Name)
	once, _ := building.LoadOrStore(dir, new(sync.Mutex))
	once.(*sync.Mutex).Lock()
	defer once.(*sync.Mutex).Unlock()
	if _, err := os.Stat(path); err == nil {
		now := time.Now()
		_ = os.Chtimes(dir, now, now) // keeps it from prune; without it, it is built again some day
		return path
	}

	prune(filepath.Dir(dir))
	compiling <- struct{}{}
	defer func() { <-compiling }()
	s.compile(t, tree, dir)
	return path
}

var (
	building  sync.Map                      // cache directory -> *sync.Mutex
	compiling = make(chan struct{}, 2)      // no more compilers than this at a time
	versions  sync.Map                      // compiler and tree -> what it says of itself
	keepFor   = 14 * 24 * time.Hour         // unused builds are removed after this
	suffixes  = []string{".cc", ".c", ".S"} // of sources
)

func (s Spec) withDefaults(t testing.TB) Spec {
	t.Helper()
	names := slices.Concat(s.Sources, slices.Sorted(maps.Keys(s.Files)))
	names = slices.DeleteFunc(names, func(n string) bool { return strings.HasSuffix(n, ".h") })
	if len(names) == 0 {
		t.Fatal("testtarget.Build: no sources")
	}
	if s.Compiler == "" {
		s.Compiler = "gcc"
		if slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(n, ".cc") }) {
			s.Compiler = "g++"
		}
	}
	if s.Name == "" {
		s.Name = filepath.Base(names[0])
		for _, suffix := range suffixes {
			s.Name = strings.TrimSuffix(s.Name, suffix)
		}
		if s.Shared {
			s.Name += ".so"
		}
	}
	return s
}

// key gives the name of a build in the cache: a hash of everything that the
// result depends on.
func (s Spec) key(t testing.TB, tree string) string {
	t.Helper()
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %q %v %v %q\n", s.Sources, s.Compiler, s.Flags, s.Name, s.Shared, s.Strip, s.Libs)
	if tree != "" {
		fmt.Fprintf(h, "%q", treeStamp(t, tree))
	} else {
		fmt.Fprintf(h, "%q", compilerVersion(t, s.Compiler))
	}
	for _, name := range slices.Sorted(maps.Keys(s.Files)) {
		fmt.Fprintf(h, "%q %q\n", name, s.Files[name])
	}
	root := Root(t)
	targets := filepath.Join(root, "testdata/targets")
	for _, pattern := range []string{filepath.Join(targets, "*.h"), filepath.Join(root, "include/*.h")} {
		headers, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, header := range headers {
			hashFile(t, h, header)
		}
	}
	for _, source := range s.Sources {
		hashFile(t, h, filepath.Join(targets, source))
	}
	for _, lib := range s.Libs {
		if filepath.IsAbs(lib) {
			hashFile(t, h, lib)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

func hashFile(t testing.TB, h hash.Hash, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintf(h, "%q\n", path)
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
}

func compilerVersion(t testing.TB, compiler string) string {
	t.Helper()
	if v, ok := versions.Load(compiler); ok {
		return v.(string)
	}
	out, err := exec.Command(compiler, "--version").CombinedOutput()
	if err != nil {
		t.Fatalf("%s --version: %v\n%s", compiler, err, out)
	}
	v, _ := versions.LoadOrStore(compiler, string(out))
	return v.(string)
}

// compile makes dir with the result in it, or nothing: the work happens in a
// temporary directory beside it, which is renamed at the end.
func (s Spec) compile(t testing.TB, tree, dir string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), ".build-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range s.Files {
		if err := os.WriteFile(filepath.Join(work, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}

	root := Root(t)
	targets := filepath.Join(root, "testdata/targets")
	argv := s.command(root, work)
	var cmd *exec.Cmd
	if tree != "" {
		argv[0] = "/usr/bin/" + argv[0]
		cmd = treeCommand(tree, targets, []string{root, cacheDir(t)}, argv...)
	} else {
		cmd = exec.Command(argv[0], argv[1:]...)
		cmd.Dir = targets
		cmd.Env = cleanEnv()
	}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, &output)
	}
	for name := range s.Files {
		if err := os.Remove(filepath.Join(work, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(work, dir); err != nil {
		if _, statErr := os.Stat(filepath.Join(dir, s.Name)); statErr != nil {
			t.Fatal(err) // not somebody else who was faster
		}
	}
}

// command gives the compiler's command line.
func (s Spec) command(root, work string) []string {
	argv := []string{s.Compiler, "-pthread", "-I" + filepath.Join(root, "include"), "-I."}
	if len(s.Files) > 0 {
		argv = append(argv, "-I"+work)
	}
	if strings.HasSuffix(s.Compiler, "++") {
		argv = append(argv, "-std=gnu++17") // what gcc 10 and clang 14 do not speak by themselves
	}
	if s.Shared {
		argv = append(argv, "-shared", "-fPIC")
	}
	if s.Strip {
		argv = append(argv, "-s")
	}
	argv = append(argv, s.Flags...)
	argv = append(argv, s.Sources...)
	for _, name := range slices.Sorted(maps.Keys(s.Files)) {
		if !strings.HasSuffix(name, ".h") {
			argv = append(argv, filepath.Join(work, name))
		}
	}
	argv = append(argv, "-o", filepath.Join(work, s.Name))
	argv = append(argv, s.Libs...) // no soname: the path becomes the DT_NEEDED entry
	return append(argv, "-ldl")
}

// prune removes the builds that nobody has asked for in a long time. Whatever
// cannot be removed stays.
func prune(builds string) {
	entries, err := os.ReadDir(builds)
	if err != nil {
		return
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && time.Since(info.ModTime()) > keepFor {
			_ = os.RemoveAll(filepath.Join(builds, entry.Name()))
		}
	}
}

// Copy copies a file into a directory of the test and gives the copy's path:
// for tests that replace, delete or damage it.
func Copy(t testing.TB, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), filepath.Base(path))
	if err := os.WriteFile(copied, content, 0o755); err != nil {
		t.Fatal(err)
	}
	return copied
}
