package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// hostile starts a program that means harm, with the patches 1 and 2 of plus_one.
func hostile(t *testing.T, args ...string) (p *testtarget.Process, first, second string) {
	t.Helper()
	path := testtarget.Build(t, testtarget.Spec{Sources: []string{"hostile.c"}, Flags: []string{"-O2", "-pthread"}})
	return testtarget.Start(t, path, testtarget.Args(args...)), calcPatch(t, "plus_one", 1000, "first", 1), calcPatch(t, "plus_one", 2000, "second", 1)
}

// TestRequireSignature: with --require-signature only a patch that was signed with that
// key by minisign is applied; anything else is refused before the target is touched.
func TestRequireSignature(t *testing.T) {
	t.Parallel()
	testtarget.Need(t, "minisign")
	dir := t.TempDir()
	minisign := func(args ...string) { run(t, "minisign", args...) }
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"ours", "other"} {
		minisign("-G", "-W", "-p", in(name+".pub"), "-s", in(name+".key"))
	}
	p, original, evil := hostile(t, "plain")
	content, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, content []byte) string {
		if err := os.WriteFile(in(name), content, 0o644); err != nil {
			t.Fatal(err)
		}
		return in(name)
	}
	good := file("good.so", content)
	minisign("-S", "-s", in("ours.key"), "-m", good)
	old := file("old.so", content) // the older form, which signs the file and not its hash
	minisign("-S", "-l", "-s", in("ours.key"), "-m", old)
	theirs := file("theirs.so", content)
	minisign("-S", "-s", in("other.key"), "-m", theirs)
	changed := file("changed.so", append(bytes.Clone(content), 0))
	sign := func(name string, signature []byte) { file(name+".minisig", signature) }
	signature, err := os.ReadFile(good + ".minisig")
	if err != nil {
		t.Fatal(err)
	}
	sign("changed.so", signature)
	unsigned := file("unsigned.so", content)
	nonsense := file("nonsense.so", content)
	sign("nonsense.so", []byte("untrusted comment: none\nnonsense\n"))
	comment := file("comment.so", content)
	sign("comment.so", bytes.Replace(signature, []byte("trusted comment: timestamp:"), []byte("trusted comment: timestamp:1"), 1))
	endless := file("endless.so", content)
	if err := syscall.Mkfifo(endless+".minisig", 0o600); err != nil {
		t.Fatal(err)
	}

	pid, before := strconv.Itoa(p.PID()), testtarget.TextSnapshot(t, p.PID())
	key := in("ours.pub")
	for _, bad := range []struct {
		code string
		args []string
	}{
		{"signature-bad", []string{theirs}},
		{"signature-bad", []string{changed}},
		{"signature-bad", []string{nonsense}},
		{"signature-bad", []string{comment}},
		{"signature-missing", []string{unsigned}},
		{"signature-missing", []string{endless}},
		{"signature-missing", []string{"--signature", in("nowhere"), good}},
		{"signature-bad", []string{"--signature", theirs + ".minisig", good}},
		{"signature-missing", []string{good, evil}}, // one of two
	} {
		refused(t, 4, bad.code, append([]string{"apply", "--pid", pid, "--require-signature", key}, bad.args...)...)
	}
	for _, bad := range []string{in("nowhere"), "RWnonsense", unsigned, dir} {
		refused(t, 4, "signature-key", "apply", "--pid", pid, "--require-signature", bad, good)
	}
	refused(t, 2, "usage", "apply", "--pid", pid, "--signature", good+".minisig", good)
	identical(t, before, p.PID())

	lines, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Fields(string(lines))
	for _, fine := range [][]string{{"--require-signature", key, good}, {"--require-signature", key, old}, {"--require-signature", text[len(text)-1], good},
		{"--require-signature", key, "--signature", good + ".minisig", unsigned}} {
		must(t, append([]string{"apply", "--pid", pid}, fine...)...)
		p.Ask("?", `= 1001$`)
		revert(t, p.PID())
	}
	unchanged(t, before, p.PID())
}

// TestSwappedPatch: the bytes that are checked are those that are applied, however often
// somebody exchanges the file meanwhile.
func TestSwappedPatch(t *testing.T) {
	lengthy(t)
	t.Parallel()
	testtarget.Need(t, "minisign")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	p, good, evil := hostile(t, "plain")
	for name, from := range map[string]string{"good": good, "evil": evil, "patch.so": good} {
		content, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(in(name), content, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	run(t, "minisign", "-G", "-W", "-p", in("pub"), "-s", in("key"))
	run(t, "minisign", "-S", "-s", in("key"), "-m", in("patch.so"))
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-quit:
				return
			default:
			}
			from := []string{"good", "evil"}[n%2]
			_ = os.Remove(in("next"))
			if os.Link(in(from), in("next")) == nil {
				_ = os.Rename(in("next"), in("patch.so"))
			}
		}
	}()
	defer func() { close(quit); <-done }()
	pid, outcomes := strconv.Itoa(p.PID()), make(map[int]int)
	for range 60 {
		r := testtarget.Run(t, "apply", "--pid", pid, "--require-signature", in("pub"), in("patch.so"))
		outcomes[r.Exit]++
		switch {
		case r.Exit == 0:
			p.Ask("?", `= 1001$`)
			revert(t, p.PID())
		case r.Exit != 4 || !strings.Contains(r.Stderr, "[signature-bad]") && !strings.Contains(r.Stderr, "[patch-missing]"):
			t.Fatal(r)
		}
		p.Ask("?", `= 2$`)
	}
	if outcomes[0] == 0 || outcomes[4] == 0 {
		t.Errorf("the file was never exchanged at the right moment: %v", outcomes)
	}
}

// TestRequireRootOwner: with --require-root-owner a patch counts only if nobody but root
// can have put it there.
func TestRequireRootOwner(t *testing.T) {
	t.Parallel()
	testtarget.NeedRoot(t)
	p, patch, _ := hostile(t, "plain")
	content, err := os.ReadFile(patch)
	if err != nil {
		t.Fatal(err)
	}
	dir := publicDir(t)
	file := func(name string, owner int, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, content, 0o644)
		}
		if err == nil {
			err = os.Chown(path, owner, 0)
		}
		if err == nil {
			err = os.Chmod(path, mode)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good.so", 0, 0o644)
	open := file("open/good.so", 0, 0o644)
	if err := os.Chmod(filepath.Dir(open), 0o777); err != nil {
		t.Fatal(err)
	}
	foreign := file("foreign/good.so", 0, 0o644)
	if err := os.Chown(filepath.Dir(foreign), 65534, 0); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link.so")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	pid, before := strconv.Itoa(p.PID()), testtarget.TextSnapshot(t, p.PID())
	for _, bad := range []string{file("nobodys.so", 65534, 0o644), file("group.so", 0, 0o664), file("all.so", 0, 0o646), open, foreign} {
		refused(t, 4, "patch-not-roots", "apply", "--pid", pid, "--require-root-owner", bad)
	}
	identical(t, before, p.PID())
	for _, fine := range []string{good, link} {
		must(t, "apply", "--pid", pid, "--require-root-owner", fine)
		p.Ask("?", `= 1001$`)
		revert(t, p.PID())
	}
	unchanged(t, before, p.PID())
}

// commandsOn runs every command on a process. Each must end by itself, without a panic
// and without using up memory, whatever it says.
func commandsOn(t *testing.T, pid int, patch string) (codes []int) {
	t.Helper()
	id := strconv.Itoa(pid)
	for _, args := range [][]string{
		{"symbols", "--pid", id, "plus_one"}, {"apply", "--dry-run", "--pid", id, patch}, {"apply", "--pid", id, patch},
		{"list", "--pid", id}, {"stacks", "--pid", id}, {"verify", "--pid", id}, {"revert", "--pid", id, "--all"}, {"list"},
	} {
		cmd := exec.Command(testtarget.Hotpatch(t), args...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		watchdog := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // the status is looked at below
		watchdog.Stop()
		code := cmd.ProcessState.ExitCode()
		if strings.Contains(out.String(), "goroutine ") || !slices.Contains([]int{0, 1, 3, 4, 5, 6}, code) {
			t.Errorf("%v: status %d\n%s", args, code, out.String())
		}
		if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok && usage.Maxrss > 1<<20 {
			t.Errorf("%v used %d KiB", args, usage.Maxrss)
		}
		codes = append(codes, code)
	}
	return codes
}

// TestHostileImages: files that a target has mapped say whatever they like of
// themselves.
func TestHostileImages(t *testing.T) {
	lengthy(t)
	t.Parallel()
	testtarget.Need(t, "objcopy")
	testtarget.Need(t, "xz")
	dir := t.TempDir()
	library := testtarget.Build(t, testtarget.Spec{Sources: []string{"hostile.c"}, Shared: true, Flags: []string{"-O2", "-g", "-pthread"}})
	whole, err := os.ReadFile(library)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	file := func(name string, content []byte) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	le := binary.LittleEndian
	sections, count := int(le.Uint64(whole[0x28:])), int(le.Uint16(whole[0x3c:]))
	change := func(name string, f func(b []byte)) {
		b := bytes.Clone(whole)
		f(b)
		file(name, b)
	}
	// Every section, one after the other, with absurd sizes, offsets and links.
	for what, offset := range map[string]int{"offset": 0x18, "size": 0x20, "entsize": 0x38} {
		for _, value := range []uint64{1 << 60, ^uint64(0), 1<<63 - 8, 3} {
			change(fmt.Sprintf("%s-%x.so", what, value), func(b []byte) {
				for i := range count {
					le.PutUint64(b[sections+64*i+offset:], value)
				}
			})
		}
	}
	change("links.so", func(b []byte) { // each to itself
		for i := range count {
			le.PutUint32(b[sections+64*i+0x28:], uint32(i))
		}
	})
	change("count.so", func(b []byte) { le.PutUint16(b[0x3c:], 0xffff) })
	change("segments.so", func(b []byte) {
		for i := range int(le.Uint16(b[0x38:])) {
			le.PutUint64(b[64+56*i+0x28:], 1<<62)
		}
	})
	file("short.so", whole[:100])
	file("half.so", whole[:len(whole)/2])
	r := rand.New(rand.NewPCG(3, 4))
	for n := range 24 { // anything at all in the tables
		change(fmt.Sprintf("noise-%d.so", n), func(b []byte) {
			for range 400 {
				b[64+r.IntN(len(b)-64)] = byte(r.IntN(256))
			}
		})
	}
	// A symbol table in an xz stream that grows to four thousand times its size.
	zeros, bomb := filepath.Join(dir, "zeros"), filepath.Join(dir, "bomb.so")
	if err := os.WriteFile(zeros, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(zeros, 1<<30); err != nil {
		t.Fatal(err)
	}
	run(t, "xz", "-T1", "-0", zeros)
	run(t, "objcopy", "--add-section", ".gnu_debugdata="+zeros+".xz", library, bomb)
	paths = append(paths, bomb)

	p, patch, _ := hostile(t, append([]string{"maps"}, paths...)...)
	before := testtarget.TextSnapshot(t, p.PID())
	commandsOn(t, p.PID(), patch)
	unchanged(t, before, p.PID())
	p.Ask("?", `= 2$`)
	p.Healthy(t)
}

// TestScribblingTarget: a target that writes over the ledger, and all else that hotpatch
// keeps in it, all the time harms nobody but itself.
func TestScribblingTarget(t *testing.T) {
	t.Parallel()
	neighbour, _, _ := hostile(t, "plain")
	before := testtarget.TextSnapshot(t, neighbour.PID())
	rounds := 8
	if testing.Short() {
		rounds = 1
	}
	for range rounds {
		p, patch, other := hostile(t, "scribbles")
		for _, patch := range []string{patch, other, patch} {
			commandsOn(t, p.PID(), patch)
		}
		p.Stop()
	}
	identical(t, before, neighbour.PID())
	neighbour.Ask("?", `= 2$`)
	neighbour.Healthy(t)
}

// TestMovingTarget: mappings that come, go and move while they are read.
func TestMovingTarget(t *testing.T) {
	lengthy(t)
	t.Parallel()
	p, patch, _ := hostile(t, "moves")
	before := testtarget.TextSnapshot(t, p.PID())
	for range 6 {
		for i, code := range commandsOn(t, p.PID(), patch) {
			if code != 0 {
				t.Errorf("command %d gives %d", i, code)
			}
		}
	}
	p.Ask("?", `= 2$`)
	p.Healthy(t)
	for _, line := range testtarget.Diff(before, testtarget.TextSnapshot(t, p.PID())) {
		if !strings.HasPrefix(line, "added ") {
			t.Error(line)
		}
	}
}

// TestNamesWithEscapes: nothing that a target or a patch is called reaches the terminal
// as it is.
func TestNamesWithEscapes(t *testing.T) {
	t.Parallel()
	const name = "a\x1b[2Jb\nc\x07\u202ed"
	dir := t.TempDir()
	program := testtarget.Build(t, testtarget.Spec{Sources: []string{"hostile.c"}, Flags: []string{"-O2", "-pthread"}})
	copied := func(from, to string) string {
		content, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), content, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, to)
	}
	patch := copied(calcPatch(t, "plus_one", 1000, "named", 1), name+".so")
	nameless := copied(calcPatch(t, "plus_one", 2000, "", 0), name+"2.so")
	p := testtarget.Start(t, copied(program, name))
	pid := strconv.Itoa(p.PID())
	for _, args := range [][]string{
		{"symbols", "--pid", pid, "plus_one"}, {"apply", "--pid", pid, nameless}, {"apply", "--pid", pid, "--module", name, "--dry-run", patch},
		{"apply", "--pid", pid, patch}, {"list", "--pid", pid}, {"list"}, {"stacks", "--pid", pid}, {"verify", "--pid", pid}, {"inspect", patch},
		{"apply", "--pid", pid, "--require-signature", name, patch}, {"revert", "--pid", pid, name}, {"revert", "--pid", pid, "--all"},
	} {
		r := testtarget.Run(t, args...)
		for _, c := range r.Stdout + r.Stderr {
			if c < ' ' && c != '\n' && c != '\t' || c == 0x7f || c == '\u202e' {
				t.Errorf("%q is in the output\n%q", c, r)
				break
			}
		}
		r = testtarget.Run(t, append(args, "--json")...)
		if !json.Valid([]byte(r.Stdout)) {
			t.Errorf("no JSON\n%q", r)
		}
	}
	p.Ask("?", `= 2$`)
	p.Healthy(t)
}
