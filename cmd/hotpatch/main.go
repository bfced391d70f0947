package main

import (
	"errors"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"hotpatch/internal/engine"
	"hotpatch/internal/fault"
	"hotpatch/internal/intercept"
	"hotpatch/internal/rebuild"
)

func main() {
	// A command is over before collecting garbage would gain anything, but for very
	// large programs.
	debug.SetGCPercent(1000)
	debug.SetMemoryLimit(1 << 30)
	// In a build that it watches, hotpatch is called as the compilers are, and as
	// the process that builds.
	for _, other := range []func() (int, bool){intercept.Main, rebuild.Main} {
		if status, called := other(); called {
			os.Exit(status)
		}
	}
	ignoreLostReaders()
	engine.ToolVersion = build().short()
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run runs one command line and gives the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	a := &app{args: args, stdout: stdout, stderr: stderr, color: wantsColor(stderr)}
	root := newRoot(a, alone(args))
	root.SetArgs(args)
	cmd, err := root.ExecuteC()
	return a.conclude(cmd, err)
}

// app is what the commands share: where output goes, and the answer of the
// command that ran.
type app struct {
	args           []string
	stdout, stderr io.Writer
	color          bool // on stderr

	json    bool        // --json
	started bool        // flags and arguments were right, and the command ran
	changes bool        // the command may have changed a process
	result  any         // for --json; nil: there is none
	text    func(*page) // the same for people; nil: nothing
}

// answer sets what goes to standard output, once the command has ended.
func (a *app) answer(result any, text func(*page)) { a.result, a.text = result, text }

// conclude prints the answer and the errors, and gives the exit status.
func (a *app) conclude(cmd *cobra.Command, err error) int {
	err = a.asUsage(cmd, err)
	isUsage := fault.ExitStatus(err) == int(fault.Usage)
	asJSON := a.json || isUsage && asksForJSON(a.args)
	problems := problemsOf(err)

	var lost error
	if asJSON {
		lost = writeJSON(a.stdout, cmd.Name(), a.result, problems)
	} else if a.text != nil {
		p := &page{color: wantsColor(a.stdout)}
		a.text(p)
		_, lost = a.stdout.Write(p.Bytes())
	}
	if !asJSON || isUsage {
		printProblems(a.stderr, a.color, problems)
	}
	if lost == nil || isBrokenPipe(lost) {
		return fault.ExitStatus(err)
	}
	// What happened to the process counts, not what happened to the text.
	lostFault := &fault.Error{Kind: fault.Failed, Code: "output-lost", What: "cannot write the output", Err: lost}
	if a.changes {
		lostFault.Hint = "what the command did to the process stands; hotpatch list shows it"
	} else if err == nil {
		err = lostFault
	}
	printProblems(a.stderr, a.color, problemsOf(lostFault))
	return fault.ExitStatus(err)
}

// asUsage turns the errors that come from parsing the command line into faults,
// and gives those of wrong usage a hint.
func (a *app) asUsage(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		if a.started {
			return err
		}
		f = usage("%s", err.Error())
		err = f
	}
	if f.Kind == fault.Usage && f.Hint == "" {
		f.Hint = cmd.CommandPath() + " --help shows how it is used"
	}
	return err
}

// usage makes a fault of wrong usage.
func usage(format string, args ...any) *fault.Error {
	return &fault.Error{Kind: fault.Usage, Code: "usage", What: printf(format, args...)}
}

// asksForJSON looks for --json in a command line that could not be parsed.
func asksForJSON(args []string) bool {
	for _, arg := range args {
		switch arg {
		case "--":
			return false
		case "--json", "--json=true":
			return true
		}
	}
	return false
}

const rootLong = `Replace functions in C and C++ processes while they run, from outside: without
a restart, a preload or special compiler flags. The process gets the whole patch
while it is stopped for an instant, or keeps running exactly as before. It goes on
if hotpatch is killed, at any moment; what was begun then, the next hotpatch command
on the process completes or takes back.

A patch is a shared object with the new functions under their old names.`

// commands make the commands, in the order of the help. Some can do without the others,
// which need not be made then: an operator waits for it.
var commands = []struct {
	name  string
	make  func(*app) *cobra.Command
	alone bool
}{
	{"apply", newApply, true},
	{"list", newList, true},
	{"revert", newRevert, true},
	{"verify", newVerify, true},
	{"stacks", newStacks, true},
	{"symbols", newSymbols, true},
	{"inspect", newInspect, true},
	{"build", newBuild, true},
	{"version", newVersion, true},
	{"completion", newCompletion, false},
	{"man", newMan, false},
}

// alone gives the name of the command that a command line begins with, if it can do
// without the others, else "".
func alone(args []string) string {
	for _, c := range commands {
		if len(args) > 0 && c.name == args[0] && c.alone {
			return c.name
		}
	}
	return ""
}

// newRoot makes the commands, or only one of them.
func newRoot(a *app, only string) *cobra.Command {
	root := &cobra.Command{
		Use:           "hotpatch COMMAND",
		Short:         "replace functions in a running process",
		Long:          rootLong,
		Version:       build().short(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Example: `  g++ -shared -fPIC -O2 -o fix.so fix.cc       # a patch
  hotpatch apply --pid 4711 --dry-run fix.so   # what it would do
  hotpatch apply --pid 4711 fix.so
  hotpatch list                                # every patched process
  hotpatch revert --pid 4711 fix`,
		Annotations: exits(0, 1, 2, 3, 4, 5, 6),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("no command given")
			}
			return unknownCommand(cmd, args[0])
		},
		// Without a function to run, cobra would print the help and succeed.
		RunE: func(*cobra.Command, []string) error { return nil },

		SuggestionsMinimumDistance: 2,
	}
	root.Flags().Bool("version", false, "print the version")
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { a.help(cmd) })
	root.SetHelpCommand(newHelp(a))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		// Of "hotpatch aply --pid 1", the flag is not what is wrong.
		if !cmd.HasParent() && !strings.HasPrefix(a.args[0], "-") {
			return unknownCommand(cmd, a.args[0])
		}
		return err
	})
	root.CompletionOptions.DisableDefaultCmd = true // newCompletion has its own help
	for _, c := range commands {
		if only == "" || only == c.name {
			root.AddCommand(c.make(a))
		}
	}
	for _, c := range root.Commands() {
		c.Flags().SortFlags = false
		c.DisableFlagsInUseLine = true
	}
	return root
}

func unknownCommand(root *cobra.Command, name string) error {
	err := usage("unknown command %q", name)
	if like := root.SuggestionsFor(name); len(like) > 0 {
		err.Hint = "did you mean " + strings.Join(like, " or ") + "?"
	}
	return err
}

// start wraps the function of a command: once it runs, errors are no longer
// those of the command line.
func (a *app) start(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		// With fewer, no process can be looked at, and the Go runtime may give up.
		if err := engine.NeedDescriptors(8); err != nil {
			return err
		}
		return f(cmd, args)
	}
}
