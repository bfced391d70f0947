package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"hotpatch/internal/testtarget"
)

// everyCommand gives the root command and all below it, hidden ones too.
func everyCommand() []*cobra.Command {
	root := newRoot(&app{stdout: io.Discard, stderr: io.Discard}, "")
	root.InitDefaultHelpCmd()
	return append([]*cobra.Command{root}, root.Commands()...)
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, c := range everyCommand() {
		t.Run(c.Name(), func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			args := []string{"--help"}
			if c.HasParent() {
				args = []string{c.Name(), "--help"}
			}
			if status := run(args, &stdout, &stderr); status != 0 || stderr.Len() > 0 {
				t.Fatalf("status %d, %q", status, stderr.String())
			}
			help := stdout.String()
			last := -1
			for _, part := range []string{c.Long, "\nUsage:\n  hotpatch", "\nFlags:\n", "\nExamples:\n  ", "\nExit status:\n  0  "} {
				at := strings.Index(help, part)
				if part == "" || at <= last {
					t.Errorf("%q is missing, or not in its place", part)
				}
				last = at
			}
			status, _ := exitStatuses(c)
			for _, s := range status {
				if !strings.Contains(help, "\n  "+s+"  ") {
					t.Errorf("exit status %s is missing", s)
				}
			}
			if !slices.Contains(status, "2") {
				t.Error("wrong usage has no exit status")
			}
			for line := range strings.Lines(help) {
				if len(line) > 110 {
					t.Errorf("a line of %d characters: %s", len(line), line)
				}
			}
			if c.HasParent() {
				var viaHelp bytes.Buffer
				run([]string{"help", c.Name()}, &viaHelp, io.Discard)
				if viaHelp.String() != help {
					t.Error("hotpatch help says something else")
				}
			}
		})
	}
}

// The examples are command lines that hotpatch understands.
func TestExamples(t *testing.T) {
	t.Parallel()
	for _, c := range everyCommand() {
		found := false
		for line := range strings.Lines(c.Example) {
			fields := strings.Fields(strings.NewReplacer("<(", " ", ")", " ", "'", "").Replace(line))
			at := slices.Index(fields, "hotpatch")
			if at < 0 {
				continue
			}
			fields = fields[at+1:]
			if end := slices.IndexFunc(fields, func(f string) bool { return strings.ContainsAny(f[:1], "#|>") }); end >= 0 {
				fields = fields[:end]
			}
			root := newRoot(&app{stdout: io.Discard, stderr: io.Discard}, "")
			root.InitDefaultHelpCmd()
			cmd, rest, err := root.Find(fields)
			if err != nil || cmd == root || c.HasParent() && cmd.Name() != c.Name() {
				t.Errorf("%s: which command is %q? %v", c.Name(), line, err)
				continue
			}
			if err := cmd.ParseFlags(rest); err != nil {
				t.Errorf("%s: %q: %v", c.Name(), line, err)
			}
			if cmd.Args != nil {
				if err := cmd.Args(cmd, cmd.Flags().Args()); err != nil {
					t.Errorf("%s: %q: %v", c.Name(), line, err)
				}
			}
			found = true
		}
		if !found {
			t.Errorf("%s has no example", c.Name())
		}
	}
}

func TestManPages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var stderr bytes.Buffer
	if status := run([]string{"man", dir}, io.Discard, &stderr); status != 0 {
		t.Fatal(stderr.String())
	}
	for _, c := range everyCommand() {
		path := filepath.Join(dir, manName(c)+".1")
		content, err := os.ReadFile(path)
		if c.Hidden {
			if err == nil {
				t.Errorf("the hidden command %s has a page", c.Name())
			}
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		for _, want := range []string{".SH NAME\n", ".SH SYNOPSIS\n", ".SH OPTIONS\n", ".SH EXIT STATUS\n", ".SH EXAMPLES\n", ".SH SEE ALSO\n"} {
			if !strings.Contains(string(content), want) {
				t.Errorf("%s lacks %q", path, want)
			}
		}
	}
	if run([]string{"man", filepath.Join(dir, "nowhere")}, io.Discard, io.Discard) != 1 {
		t.Error("a directory that is not there is fine")
	}
}

// groff understands the man pages without a warning, and shows what they say.
func TestManPagesFormat(t *testing.T) {
	t.Parallel()
	testtarget.Need(t, "groff")
	for _, c := range everyCommand() {
		if c.Hidden {
			continue
		}
		cmd := exec.Command("groff", "-man", "-ww", "-Tascii", "-P-cbou")
		cmd.Stdin = strings.NewReader(manPage(c))
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil || stderr.Len() > 0 {
			t.Errorf("%s: %v\n%s", c.Name(), err, stderr.String())
		}
		shown := strings.Join(strings.Fields(stdout.String()), " ")
		for _, want := range append(strings.Split(c.Example, "\n"), synopsis(c)) {
			if !strings.Contains(shown, strings.Join(strings.Fields(want), " ")) {
				t.Errorf("%s: %q is not shown as it is written:\n%s", c.Name(), want, stdout.String())
			}
		}
	}
}

func TestRoff(t *testing.T) {
	t.Parallel()
	if got, want := roff(".so /etc/passwd\n'br\na-b \\fB"), `\&.so /etc/passwd`+"\n"+`\(aqbr`+"\n"+`a\-b \efB`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCompletionScripts(t *testing.T) {
	t.Parallel()
	for _, shell := range shells {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			if status := run([]string{"completion", shell}, &stdout, &stderr); status != 0 || stderr.Len() > 0 {
				t.Fatalf("status %d, %s", status, stderr.String())
			}
			if !strings.Contains(stdout.String(), "hotpatch") {
				t.Errorf("it completes something else: %q", stdout.String())
			}
			if _, err := exec.LookPath(shell); err != nil {
				t.Skipf("the script was made, but not parsed: %v", err)
			}
			cmd := exec.Command(shell, "-n", "/dev/stdin")
			cmd.Stdin = &stdout
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
