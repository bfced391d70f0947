package e2e

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// randomBuild is how a random program is compiled and linked.
type randomBuild struct {
	built
	flags, link []string
}

func newRandomBuild(r *rand.Rand) randomBuild {
	b := randomBuild{built: built{cxx: r.IntN(4) == 0, compiler: "gcc", kind: "pie", level: "-O2", strip: r.IntN(3) > 0}}
	if r.IntN(3) == 0 {
		b.compiler = "clang"
	}
	b.kind = []string{"pie", "no-pie", "library"}[r.IntN(3)]
	b.level = []string{"-O0", "-O1", "-O2", "-O2", "-O3", "-Os"}[r.IntN(6)]
	if r.IntN(4) > 0 {
		b.flags = append(b.flags, "-g")
	}
	for _, flag := range []string{"-fno-plt", "-fcf-protection=full", "-fpatchable-function-entry=16,14", "-fstack-protector-all", "-fno-asynchronous-unwind-tables",
		"-fno-omit-frame-pointer", "-fno-inline", "-fno-semantic-interposition", "-fno-toplevel-reorder", "-fcommon", "-falign-functions=32", "-fno-jump-tables", "-ftls-model=initial-exec"} {
		if r.IntN(10) == 0 && (b.compiler == "gcc" || !strings.Contains(flag, "toplevel")) {
			b.flags = append(b.flags, flag)
		}
	}
	for _, flag := range []string{"-Wl,-z,now", "-Wl,-z,norelro", "-Wl,-O1", "-Wl,-Bsymbolic", "-Wl,--hash-style=sysv"} {
		if r.IntN(8) == 0 {
			b.link = append(b.link, flag)
		}
	}
	return b
}

func (b randomBuild) String() string {
	return b.built.String() + " " + strings.Join(append(slices.Clone(b.flags), b.link...), " ")
}

// randomRun is one program that is built, patched and compared with its reference.
type randomRun struct {
	t     *testing.T
	build randomBuild
	dir   string
	units []string // the files that differ
}

func (r *randomRun) write(name, text string) {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *randomRun) command(dir string, args ...string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = filepath.Join(r.dir, dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v in %s: %w\n%s", cmd, cmd.Dir, err, out)
	}
	return nil
}

// prepare writes and compiles everything. It gives the program and the image with the
// code, which is sometimes linked from the very objects, and sometimes has no sections for
// each function.
func (r *randomRun) prepare(p *randomProgram) (program, image string, err error) {
	b := r.build
	ext := map[bool]string{false: ".c", true: ".cc"}[b.cxx]
	kind := map[string][]string{"pie": {"-fPIE"}, "no-pie": {"-fno-pie"}, "library": {"-fPIC"}}[b.kind]
	flags := slices.Concat([]string{b.driver(), b.level, "-w"}, kind, b.flags)
	run := func(dir string, args ...string) { err = errors.Join(err, r.command(dir, args...)) }
	r.units = nil
	for unit, name := range []string{"a", "b"} {
		old, changed := p.file(before, unit), p.file(after, unit)
		r.write(filepath.Join("pre", name+ext), old)
		r.write(filepath.Join("post", name+ext), changed)
		args := slices.Concat(flags, []string{"-ffunction-sections", "-fdata-sections", "-c", name + ext, "-o", name + ".o"})
		run("pre", args...)
		if old != changed {
			r.units = append(r.units, name)
			run("post", args...)
		}
	}
	r.write("ref/ref"+ext, p.reference())
	run("ref", map[bool]string{false: "gcc", true: "g++"}[b.cxx], "-w", "ref"+ext, "-o", "ref")
	tools, main := r.common()
	program = filepath.Join(r.dir, "pre", "program")
	image = program
	code := []string{"a.o", "b.o"}
	if b.strip && p.IntN(2) == 0 {
		code = []string{"a" + ext, "b" + ext}
	}
	code = slices.Concat(flags, code, []string{tools, "-Wl,--build-id"}, b.link)
	if b.kind == "library" {
		image = filepath.Join(r.dir, "pre", "libbase.so")
		run("pre", append(code, "-shared", "-o", "libbase.so")...)
		run("pre", "gcc", "-o", "program", main, "-L.", "-lbase", "-Wl,-rpath,"+filepath.Join(r.dir, "pre"))
	} else {
		run("pre", append(code, main, "-"+b.kind, "-o", "program")...)
	}
	if err == nil && b.strip {
		err = r.command("pre", "strip", "-s", image)
	}
	return program, image, err
}

// common gives the objects that all programs have.
func (r *randomRun) common() (tools, main string) {
	r.t.Helper()
	object := func(name, text string) string {
		return testtarget.Build(r.t, testtarget.Spec{Files: map[string]string{name + ".c": randomHeader + text}, Compiler: "gcc", Flags: []string{"-O1", "-fPIC", "-w", "-r"}, Shared: false})
	}
	return object("tools", randomTools+"u32 note_sum(void) { return noted; }\n"), object("main", "int version;\n"+randomMain)
}

var refusalCode = regexp.MustCompile(`\[([a-z-]+)\]`)

// run does all with one seed; it gives what came out: "patched", "nothing", or the codes
// of the refusals.
func (r *randomRun) run(seed uint64) string {
	t := r.t
	p := newRandomProgram(seed, r.build.cxx, !slices.Contains(r.build.flags, "-g"))
	program, image, err := r.prepare(p)
	if err != nil {
		t.Fatalf("seed %d, %v, %q: %v", seed, r.build, p.edits, err)
	}
	target, reference := testtarget.Start(t, program), testtarget.Start(t, filepath.Join(r.dir, "ref", "ref"))
	step := 0
	unstored := false // variables may have another value than in the reference
	same := func(when string) bool {
		t.Helper()
		for range 2 {
			step++
			question := fmt.Sprintf("run 100 %d", (seed*1000+uint64(step))*2654435761%4294967295)
			got, want := target.Ask(question, "^sum"), reference.Ask(question, "^sum")
			if got != want && unstored {
				return false
			}
			if got != want {
				t.Fatalf("seed %d, %v, %q: %s, step %d, it says %q, want %q (in %s)", seed, r.build, p.edits, when, step, got, want, r.dir)
			}
		}
		return true
	}
	version := func(v int) { reference.Ask(fmt.Sprintf("version %d", v), "^version") }
	same("before")
	patch := filepath.Join(r.dir, "fix.so")
	args := []string{"build", "--base", image, "-o", patch, "--name", "fix"}
	if len(r.units) == 0 {
		return "no change of the source"
	}
	for _, name := range r.units {
		args = append(args, "--pre", filepath.Join(r.dir, "pre", name+".o"), "--post", filepath.Join(r.dir, "post", name+".o"))
	}
	built := testtarget.Run(t, args...)
	switch built.Exit {
	case 7:
		version(1)
		same("with nothing to patch")
		return "nothing"
	case 4:
		return "build: " + refusalCodes(built.Stderr)
	case 0:
	default:
		t.Fatalf("seed %d, %v, %q: %v", seed, r.build, p.edits, built)
	}
	unstored = strings.Contains(built.Stdout+built.Stderr, "[unstored-variable]")
	before := testtarget.TextSnapshot(t, target.PID())
	pid := strconv.Itoa(target.PID())
	applied := testtarget.Run(t, "apply", "--pid", pid, patch)
	switch applied.Exit {
	case 0:
	case 3, 4:
		return "apply: " + refusalCodes(applied.Stderr)
	default:
		t.Fatalf("seed %d, %v, %q: %v", seed, r.build, p.edits, applied)
	}
	version(1)
	first, second := same("patched"), same("patched")
	if !first || !second {
		return "patched, with a variable that was not stored"
	}
	must(t, "verify", "--pid", pid)
	revert(t, target.PID(), "fix")
	version(0)
	unstored = unstored || p.folded()
	if !same("reverted") {
		return "patched, with a variable that was not stored"
	}
	unchanged(t, before, target.PID())
	target.Healthy(t)
	target.Stop()
	reference.Stop()
	return "patched"
}

// refusalCodes gives the codes in a message, each once.
func refusalCodes(text string) string {
	var list []string
	for _, m := range refusalCode.FindAllStringSubmatch(text, -1) {
		list = append(list, m[1])
	}
	slices.Sort(list)
	return strings.Join(slices.Compact(list), " ")
}

// TestBuildRandom: patches of random changes of random programs, made by random
// compilers with random options, do what the new source does, on the state that is there.
// HOTPATCH_RANDOM is for how long (a duration) it goes on, HOTPATCH_RANDOM_SEED where it begins.
func TestBuildRandom(t *testing.T) {
	lengthy(t)
	t.Parallel()
	testtarget.Need(t, "clang++")
	count, until := uint64(8), time.Time{}
	first := uint64(1)
	if s := os.Getenv("HOTPATCH_RANDOM"); s != "" {
		d, err := time.ParseDuration(s)
		if err != nil {
			t.Fatal(err)
		}
		count, until = 1<<40, time.Now().Add(d)
	}
	if s := os.Getenv("HOTPATCH_RANDOM_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first = n
	}
	var lock sync.Mutex
	results := make(map[string][]uint64)
	t.Run("seeds", func(t *testing.T) {
		seeds := make(chan uint64)
		go func() {
			defer close(seeds)
			for n := range count {
				if !until.IsZero() && time.Now().After(until) {
					return
				}
				seeds <- first + n
			}
		}()
		for worker := range 2 {
			t.Run(strconv.Itoa(worker), func(t *testing.T) {
				t.Parallel()
				for seed := range seeds {
					t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
						dir := os.Getenv("HOTPATCH_RANDOM_KEEP")
						if dir == "" {
							dir = t.TempDir()
						} else {
							dir = filepath.Join(dir, strconv.FormatUint(seed, 10))
						}
						r := &randomRun{t: t, build: newRandomBuild(rand.New(rand.NewPCG(seed, 2))), dir: dir}
						result := r.run(seed)
						lock.Lock()
						defer lock.Unlock()
						results[result] = append(results[result], seed)
					})
				}
			})
		}
	})
	for _, k := range slices.Sorted(maps.Keys(results)) {
		list := results[k]
		t.Logf("%5d %s, such as %d", len(list), k, list[:min(len(list), 5)])
	}
}
