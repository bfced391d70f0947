package intercept

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"hotpatch/internal/lazy"
)

// Main stands in for a compiler if this program was called as one within a build
// that is watched; then it gives the exit status to end with, and true.
func Main() (status int, called bool) {
	name := filepath.Base(os.Args[0])
	dir := os.Getenv(dirVariable)
	if dir == "" || !compilerName().MatchString(name) && !isLauncher(name) {
		return 0, false
	}
	w := &wrapper{dir: dir, argv0: os.Args[0], args: os.Args[1:], tree: os.Getenv(treeVariable), remap: os.Getenv(mapVariable)}
	w.round, _ = strconv.Atoi(os.Getenv(roundVariable))
	if err := w.find(name); err != nil {
		// As a shell says it.
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 127, true
	}
	return w.run(), true
}

func isLauncher(name string) bool { return slices.Contains(launchers, name) }

// wrapper is one call of a compiler.
type wrapper struct {
	dir   string
	round int
	tree  string
	remap string

	argv0 string
	real  string
	args  []string // as given
	cwd   string
	clang bool
}

// find finds the real compiler. A launcher that is in front of it is left out.
func (w *wrapper) find(name string) error {
	if isLauncher(name) && len(w.args) > 0 && !strings.HasPrefix(w.args[0], "-") && !strings.Contains(w.args[0], "=") {
		w.argv0, w.args = w.args[0], w.args[1:]
		name = filepath.Base(w.argv0)
		if strings.Contains(w.argv0, "/") {
			w.real = w.argv0
		}
	}
	if w.real == "" {
		w.real = behind(name)
	}
	if w.real == "" {
		return errors.New("not found")
	}
	// By its name, GCC looks for its parts beside the first program of that name on
	// PATH, which is this one.
	w.argv0 = w.real
	if self, err := os.Stat("/proc/self/exe"); err == nil {
		if st, err := os.Stat(w.real); err == nil && os.SameFile(self, st) {
			return errors.New("not found behind hotpatch")
		}
	}
	target, err := filepath.EvalSymlinks(w.real)
	w.clang = err == nil && strings.Contains(filepath.Base(target), "clang")
	return nil
}

// behind gives the first program of a name on PATH that is neither this one nor a
// launcher.
func behind(name string) string {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return ""
	}
	for _, d := range filepath.SplitList(os.Getenv("PATH")) {
		if d == "" {
			d = "."
		}
		path := filepath.Join(d, name)
		st, err := os.Stat(path)
		if err != nil || st.IsDir() || st.Mode()&0o111 == 0 || os.SameFile(self, st) {
			continue
		}
		if target, err := filepath.EvalSymlinks(path); err == nil && isLauncher(filepath.Base(target)) && !isLauncher(name) {
			continue
		}
		return path
	}
	return ""
}

// run does what was asked for.
func (w *wrapper) run() int {
	cwd, err := os.Getwd()
	if err != nil || os.Getenv(innerVariable) != "" || isLauncher(filepath.Base(w.real)) || isScript(w.real) {
		return w.through()
	}
	w.cwd = cwd
	c := Parse(expand(w.args, 0))
	switch c.Step {
	case linkStep:
		return w.link(c, nil, w.args)
	case compileStep:
		sources := c.sources()
		if !c.compilable() || len(sources) > 1 && c.Output != "" {
			break
		}
		status := 0
		for _, s := range sources {
			out := c.Output
			if out == "" {
				base := filepath.Base(s.value)
				out = strings.TrimSuffix(base, filepath.Ext(base)) + ".o"
			}
			if st, err := os.Stat(out); err == nil && !st.Mode().IsRegular() {
				return w.through() // /dev/null
			}
			status = max(status, w.compile(c, s, out))
		}
		return status
	case compileLinkStep:
		if c.compilable() && !slices.ContainsFunc(c.sources(), func(s arg) bool { return s.value == "-" }) {
			return w.compileAndLink(c)
		}
	}
	return w.through()
}

// through becomes the real compiler, with the arguments as they are.
func (w *wrapper) through() int {
	err := unix.Exec(w.real, append([]string{w.argv0}, w.args...), os.Environ())
	fmt.Fprintf(os.Stderr, "%s: %v\n", w.argv0, err)
	return 126
}

func isScript(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	b := make([]byte, 2)
	_, err = io.ReadFull(f, b)
	return err == nil && string(b) == "#!"
}

// compile compiles one source to an object, and keeps what is to be kept.
func (w *wrapper) compile(c *Command, s arg, out string) int {
	record := &Compile{
		Compiler: w.real, Name: w.argv0, Args: insert(c.compileArgs(s), w.more(c)...), Dir: w.cwd, Lang: s.lang,
		Output: absolute(w.cwd, out), Start: time.Now().UnixNano(),
	}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "HOTPATCH_INTERCEPT") {
			record.Env = append(record.Env, e)
		}
	}
	if s.value != "-" {
		record.Source = absolute(w.cwd, s.value)
	}
	if w.round > 0 && w.reuse(record, out) {
		return 0
	}
	kept, err := os.CreateTemp(filepath.Join(w.dir, "objects"), "*.o")
	if err != nil {
		return w.lost(err)
	}
	defer kept.Close()
	record.Object = kept.Name()
	deps := record.Object + ".d"
	args := append([]string{w.argv0}, record.Args...)
	if s.lang != "assembler" {
		args = insert(args, "-MD", "-MF", deps)
		args = insert(args, c.targets()...)
	}
	status := w.spawn(insert(args, "-o", out), record.Env)
	if status != 0 {
		_ = os.Remove(record.Object)
		return status
	}
	record.End = time.Now().UnixNano()
	if err := w.keep(record, c, out, deps, kept); err != nil {
		return w.lost(err)
	}
	return 0
}

// more gives the options that are added to a compilation.
func (w *wrapper) more(c *Command) []string {
	list := []string{"-ffunction-sections", "-fdata-sections"}
	level := c.last(func(s string) bool {
		return strings.HasPrefix(s, "-g") && !strings.HasPrefix(s, "-gcc") && !strings.HasPrefix(s, "-gno-") && !strings.HasPrefix(s, "-grecord") && !strings.HasPrefix(s, "-gsplit") && !strings.HasPrefix(s, "-gz") && !strings.HasPrefix(s, "-gpubnames")
	})
	if level == "" || strings.HasSuffix(level, "0") || strings.HasSuffix(level, "1") || level == "-gmlt" || strings.Contains(level, "line-") {
		list = append(list, "-g")
	}
	if c.last(func(s string) bool { return s == "-gsplit-dwarf" || strings.HasPrefix(s, "-gsplit-dwarf=") }) != "" {
		list = append(list, "-gno-split-dwarf")
	}
	if c.last(func(s string) bool { return s == "-fdebug-types-section" }) != "" {
		list = append(list, "-fno-debug-types-section")
	}
	if w.clang {
		list = append(list, "-fstandalone-debug")
	}
	if w.clang && c.Step == compileLinkStep {
		list = append(list, "-Qunused-arguments")
	}
	if w.remap != "" {
		list = append(list, "-ffile-prefix-map="+w.remap)
	}
	return list
}

// keep copies the object and writes the record.
func (w *wrapper) keep(record *Compile, c *Command, out, deps string, kept *os.File) error {
	object, err := os.Open(out)
	if err != nil {
		return err
	}
	defer object.Close()
	if _, err := io.Copy(kept, object); err != nil {
		return err
	}
	names := []string{}
	if text, err := os.ReadFile(deps); err == nil {
		names = ParseDeps(string(text))
		if err := w.giveDeps(c, out, record.Source, text); err != nil {
			return err
		}
	}
	if record.Source != "" {
		names = append(names, record.Source)
	}
	seen := make(map[string]bool)
	for _, n := range names {
		path := absolute(w.cwd, n)
		if seen[path] || record.Source == "" && n == "-" {
			continue
		}
		seen[path] = true
		d := Dep{Path: path}
		if w.isOwn(path) {
			d.Sum = Sum(path)
		}
		record.Deps = append(record.Deps, d)
	}
	_ = os.Remove(deps)
	return write(w.log(), "compile", record)
}

func (w *wrapper) log() string { return (&Watch{dir: w.dir}).log(w.round) }

// isOwn reports whether a file may be part of what is built: if it is in the source
// tree, or not one of the system's.
func (w *wrapper) isOwn(path string) bool {
	clean := filepath.Clean(path)
	return strings.HasPrefix(clean, w.tree+"/") || !strings.HasPrefix(clean, "/usr/")
}

// giveDeps puts the dependencies where the build wants them.
func (w *wrapper) giveDeps(c *Command, out, source string, text []byte) error {
	if c.wants == "" {
		return nil
	}
	name := c.wantsFile
	if name == "" {
		base := out
		if c.Output == "" || c.Step == compileLinkStep {
			base = filepath.Base(source)
		}
		name = strings.TrimSuffix(base, filepath.Ext(base)) + ".d"
	}
	if c.wants == "-MMD" {
		text = systemHeader().ReplaceAll(text, nil)
	}
	return os.WriteFile(name, text, 0o666)
}

// systemHeader matches what -MMD leaves out of a file of dependencies: headers where
// compilers and the C library have theirs, as prerequisites and, with -MP, as targets.
var systemHeader = lazy.Regexp(`(?m)(?:^|[ \t])/usr/(?:include|lib|local/include)/[^ \t\n]*`)

// reuse gives the object of an earlier round, if it may (see Watch.Reuse).
func (w *wrapper) reuse(record *Compile, out string) bool {
	if record.Source == "" {
		return false
	}
	data, err := os.ReadFile(filepath.Join(w.dir, "reuse", record.key()))
	if err != nil {
		return false
	}
	var r reusable
	if json.Unmarshal(data, &r) != nil {
		return false
	}
	if _, err := os.Stat(record.Source); err != nil {
		return false // the compiler says so
	}
	for _, d := range r.Deps {
		if d.Sum == "" || Sum(d.Path) == d.Sum {
			continue
		}
		if !r.Always || os.WriteFile(w.staleMark(), nil, 0o666) != nil {
			return false
		}
		break
	}
	object, err := os.ReadFile(r.Object)
	return err == nil && os.WriteFile(out, object, 0o666) == nil
}

// compileAndLink makes an object of each source and links them, in two steps.
func (w *wrapper) compileAndLink(c *Command) int {
	// The same for the same command, so that a later round finds what was made.
	tmp := filepath.Join(w.dir, "objects", "linked-"+(&Compile{Dir: w.cwd, Output: c.Output, Args: w.args}).key())
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return w.lost(err)
	}
	var objects []string
	for i, s := range c.sources() {
		base := filepath.Base(s.value)
		out := filepath.Join(tmp, fmt.Sprintf("%d-%s.o", i, strings.TrimSuffix(base, filepath.Ext(base))))
		if status := w.compile(c, s, out); status != 0 {
			return status
		}
		objects = append(objects, out)
	}
	return w.link(c, objects, c.linkArgs(objects))
}

// link links. In a round in which objects are what they were before the change, that may fail where
// what the change makes of them would not: then what is linked is only something to go on with.
func (w *wrapper) link(c *Command, objects, args []string) int {
	w.note(c, objects)
	w.args = args
	if _, err := os.Stat(w.staleMark()); w.round == 0 || err != nil {
		return w.through()
	}
	var said bytes.Buffer
	status := w.spawnTo(append([]string{w.argv0}, args...), os.Environ(), &said)
	if status != 0 {
		var ignored bytes.Buffer
		loose := append([]string{w.argv0}, insert(args, "-Wl,-z,muldefs", "-Wl,--unresolved-symbols=ignore-all")...)
		if w.spawnTo(loose, os.Environ(), &ignored) == 0 {
			return 0
		}
	}
	_, _ = os.Stderr.Write(said.Bytes())
	return status
}

// staleMark is there if the round has used an object of something that has changed since.
func (w *wrapper) staleMark() string { return filepath.Join(w.log(), "stale") }

// note writes down what is linked.
func (w *wrapper) note(c *Command, objects []string) {
	out := c.Output
	if out == "" {
		out = "a.out"
	}
	l := &Linking{Dir: w.cwd, Inputs: append(objects, c.inputs()...), Output: absolute(w.cwd, out), Driver: filepath.Base(w.argv0), Options: c.linkOptions(), Start: time.Now().UnixNano(),
		Folds: slices.ContainsFunc(w.args, func(s string) bool { return strings.Contains(s, "--icf=") && !strings.Contains(s, "--icf=none") })}
	if err := write(w.log(), "link", l); err != nil {
		w.lost(err)
	}
}

// lost says that something could not be kept. The build ends with it: what it made
// would be incomplete.
func (w *wrapper) lost(err error) int {
	fmt.Fprintf(os.Stderr, "hotpatch: the compilation cannot be recorded: %v\n", err)
	return 1
}

// spawn runs the real compiler and gives its exit status. A signal that ends it ends
// this program too.
func (w *wrapper) spawn(argv, env []string) int { return w.spawnTo(argv, env, os.Stderr) }

// spawnTo is spawn with another place for messages.
func (w *wrapper) spawnTo(argv, env []string, messages io.Writer) int {
	caught := make(chan os.Signal, 8)
	signal.Notify(caught, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	p := &exec.Cmd{Path: w.real, Args: argv, Env: append(env, innerVariable+"=1"), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: messages}
	if err := p.Start(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", w.argv0, err)
		return 126
	}
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-caught:
				_ = p.Process.Signal(s)
			case <-done:
				return
			}
		}
	}()
	err := p.Wait()
	close(done)
	signal.Stop(caught)
	if err != nil && p.ProcessState == nil {
		return w.lost(err)
	}
	ws := p.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		signal.Reset(ws.Signal())
		_ = unix.Kill(os.Getpid(), ws.Signal())
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
