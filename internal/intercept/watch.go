package intercept

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"hotpatch/internal/lazy"
)

// The environment of a build that is watched.
const (
	dirVariable   = "HOTPATCH_INTERCEPT"        // the directory of the Watch
	roundVariable = "HOTPATCH_INTERCEPT_ROUND"  // into which log to write
	treeVariable  = "HOTPATCH_INTERCEPT_TREE"   // the source tree: content is noted below it
	mapVariable   = "HOTPATCH_INTERCEPT_MAP"    // FROM=TO: added as -ffile-prefix-map
	innerVariable = "HOTPATCH_INTERCEPT_WITHIN" // set for what a watched compiler calls itself
)

// Watch watches builds. Its directory holds the links that stand on PATH, the
// objects and the records.
type Watch struct {
	dir  string
	tree string
	from string // see mapVariable
}

// compilerName matches the names of C and C++ compilers, with a target in front and
// a version behind.
var compilerName = lazy.Regexp(`^([a-z0-9_.]+-)*(gcc|g\+\+|cc|c\+\+|clang|clang\+\+|c89|c99)(-[0-9][0-9.]*)?$`)

// launchers run the compiler that their arguments name, or take the object from
// somewhere else, which must not be.
var launchers = []string{"ccache", "sccache", "distcc", "icecc", "icecream", "colorgcc"}

// New makes a Watch in an empty directory, for builds of a source tree. self is the
// program that calls Main; path is the PATH of the build. If prefix is not empty,
// names of files that begin with it are changed in objects to begin with tree.
func New(dir, self, path, tree, prefix string) (*Watch, error) {
	w := &Watch{dir: dir, tree: tree, from: prefix}
	for _, d := range []string{"bin", "objects"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	for _, d := range filepath.SplitList(path) {
		entries, _ := os.ReadDir(d)
		for _, e := range entries {
			if !compilerName().MatchString(e.Name()) && !isLauncher(e.Name()) {
				continue
			}
			link := filepath.Join(dir, "bin", e.Name())
			if _, err := os.Lstat(link); err == nil {
				continue
			}
			if err := os.Symlink(self, link); err != nil {
				return nil, err
			}
		}
	}
	return w, nil
}

// Env gives the environment in which a build is watched. The records of each round
// are apart.
func (w *Watch) Env(base []string, round int) ([]string, error) {
	log := w.log(round)
	if err := os.MkdirAll(log, 0o755); err != nil {
		return nil, err
	}
	// What compilers leave there when they are killed goes with the directory.
	temp := filepath.Join(w.dir, "tmp")
	if err := os.MkdirAll(temp, 0o700); err != nil {
		return nil, err
	}
	var env []string
	path := ""
	for _, e := range base {
		switch name, value, _ := strings.Cut(e, "="); name {
		case "PATH":
			path = value
		case dirVariable, roundVariable, treeVariable, mapVariable, innerVariable, "CCACHE_DISABLE", "TMPDIR", "DEPENDENCIES_OUTPUT", "SUNPRO_DEPENDENCIES", "CCACHE_PREFIX":
		default:
			env = append(env, e)
		}
	}
	env = append(env, "PATH="+filepath.Join(w.dir, "bin")+string(filepath.ListSeparator)+path,
		dirVariable+"="+w.dir, fmt.Sprintf("%s=%d", roundVariable, round), treeVariable+"="+w.tree, "CCACHE_DISABLE=1", "TMPDIR="+temp)
	if w.from != "" {
		env = append(env, mapVariable+"="+w.from+"="+w.tree)
	}
	return env, nil
}

func (w *Watch) log(round int) string { return filepath.Join(w.dir, fmt.Sprintf("log%d", round)) }

// Compiles gives the compilations of a round in the order in which they began.
func (w *Watch) Compiles(round int) ([]*Compile, error) {
	return read(w.log(round), "compile", func(c *Compile) int64 { return c.Start })
}

// Linkings gives the links of a round that were tried, in order.
func (w *Watch) Linkings(round int) ([]*Linking, error) {
	return read(w.log(round), "link", func(l *Linking) int64 { return l.Start })
}

// Count gives the number of compilations of a round so far.
func (w *Watch) Count(round int) int {
	files, _ := filepath.Glob(filepath.Join(w.log(round), "compile-*"))
	return len(files)
}

// Reuse is told to later rounds: a compilation that is asked for again gives the
// object that it gave before; if always is false, only if all that it read is as it
// was then.
func (w *Watch) Reuse(c *Compile, always bool) error {
	dir := filepath.Join(w.dir, "reuse")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	data, err := json.Marshal(reusable{Compile: c, Always: always})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, c.key()), data, 0o644)
}

type reusable struct {
	*Compile
	Always bool
}

// Replay gives the command that compiles once more, to another object, and a
// function that reads which files it has read.
func (c *Compile) Replay(ctx context.Context, object string, more ...string) (*exec.Cmd, func() []string) {
	deps := object + ".d"
	cmd := exec.CommandContext(ctx, c.Compiler)
	cmd.Args = append([]string{c.Name}, c.Args...)
	if c.Lang != "assembler" {
		cmd.Args = insert(cmd.Args, "-MD", "-MF", deps)
	}
	cmd.Args = insert(insert(cmd.Args, more...), "-o", object)
	cmd.Dir, cmd.Env = c.Dir, c.Env
	return cmd, func() []string {
		text, err := os.ReadFile(deps)
		if err != nil {
			return nil
		}
		list := ParseDeps(string(text))
		for i := range list {
			list[i] = absolute(c.Dir, list[i])
		}
		return list
	}
}

// insert adds options in front of "--", behind which are only files.
func insert(args []string, more ...string) []string {
	for i, a := range args {
		if a == "--" {
			return append(append(append([]string{}, args[:i]...), more...), args[i:]...)
		}
	}
	return append(append([]string{}, args...), more...)
}

func absolute(dir, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	// Not cleaned: what ".." leads to depends on symbolic links.
	return dir + "/" + name
}
