package main

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hotpatch/internal/engine"
)

// pidFlag is the number of a process; 0: not given.
type pidFlag int

func (p *pidFlag) String() string {
	if *p == 0 {
		return ""
	}
	return strconv.Itoa(int(*p))
}

func (p *pidFlag) Type() string { return "PID" }

func (p *pidFlag) Set(s string) error {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n <= 0 {
		return errors.New("a process id is a positive number")
	}
	*p = pidFlag(n)
	return nil
}

func (p *pidFlag) add(cmd *cobra.Command, text string) { cmd.Flags().VarP(p, "pid", "p", text) }

// need gives the process id, which must have been given.
func (p *pidFlag) need() (int, error) {
	if *p == 0 {
		e := usage("no process given")
		e.Hint = "say which one with --pid PID"
		return 0, e
	}
	return int(*p), nil
}

// listFlag is a flag that can be repeated. pflag's own prepares to write a table for the
// text of each one, when the command line is made.
type listFlag []string

func (l *listFlag) String() string { return strings.Join(*l, " ") }

func (l *listFlag) Type() string { return "stringArray" }

func (l *listFlag) Set(s string) error {
	*l = append(*l, s)
	return nil
}

// timeoutFlag is a positive duration.
type timeoutFlag time.Duration

const defaultTimeout = timeoutFlag(10 * time.Second)

func (d *timeoutFlag) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}

func (d *timeoutFlag) Type() string { return "DURATION" }

func (d *timeoutFlag) Set(s string) error {
	v, err := time.ParseDuration(s)
	if err != nil || v <= 0 {
		return errors.New("a timeout is a positive duration with a unit, such as 500ms, 10s or 2m")
	}
	*d = timeoutFlag(v)
	return nil
}

func (d *timeoutFlag) add(cmd *cobra.Command) {
	*d = defaultTimeout
	cmd.Flags().Var(d, "timeout", "how long to wait for threads to leave the code that is changed")
}

// quietFlags say how a process may be changed: at which instants, and for how
// long it may be stopped.
type quietFlags struct {
	consistency string
	scan        string
	maxPause    timeoutFlag
}

// defaultPause is how long a process may be stopped at a time, unless the user
// says otherwise: far more than a pause takes, and less than a client waits.
const defaultPause = timeoutFlag(time.Second)

var (
	consistencies = []string{string(engine.Stack), string(engine.AtEntry)}
	scans         = []string{"stacks", "memory"}
)

func (q *quietFlags) add(cmd *cobra.Command, consistency string) {
	f := cmd.Flags()
	f.StringVar(&q.consistency, "consistency", "", consistency)
	f.StringVar(&q.scan, "scan", scans[0], "where to look for code that is being run: in the stacks of all\nthreads, or in all memory (memory), which finds coroutines too")
	q.maxPause = defaultPause
	f.Var(&q.maxPause, "max-pause", "how long the process may be stopped at a time; what would take\nlonger is not done")
	for name, values := range map[string][]string{"consistency": consistencies, "scan": scans} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	argument(cmd, "consistency", "stack|entry")
	argument(cmd, "scan", "stacks|memory")
}

// check refuses what is none of the values.
func (q *quietFlags) check() error {
	switch {
	case q.consistency != "" && !slices.Contains(consistencies, q.consistency):
		return usage("--consistency is %q: it must be stack or entry", q.consistency)
	case !slices.Contains(scans, q.scan):
		return usage("--scan is %q: it must be stacks or memory", q.scan)
	}
	return nil
}

// set hands the flags to the engine.
func (q *quietFlags) set(req *engine.Request) {
	req.Consistency = engine.Consistency(q.consistency)
	req.ScanMemory = q.scan == "memory"
	req.MaxPause = time.Duration(q.maxPause)
}

// versionFlag is a version of a patch, from 1 up; 0: not given.
type versionFlag uint64

func (v *versionFlag) String() string {
	if *v == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(*v), 10)
}

func (v *versionFlag) Type() string { return "N" }

func (v *versionFlag) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n == 0 {
		return errors.New("a version is a number from 1 up")
	}
	*v = versionFlag(n)
	return nil
}

// limitFlag is a number of things; 0: no limit.
type limitFlag int

func (l *limitFlag) String() string { return strconv.Itoa(int(*l)) }
func (l *limitFlag) Type() string   { return "N" }

func (l *limitFlag) Set(s string) error {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 0 {
		return errors.New("a limit is a number, 0 for none")
	}
	*l = limitFlag(n)
	return nil
}

// addJSON adds --json.
func (a *app) addJSON(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&a.json, "json", false, "print one JSON object instead of text")
}

// noArgs refuses arguments.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage("unexpected argument %q", args[0])
	}
	return nil
}

// oneArg asks for exactly one argument.
func oneArg(name string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return usage("no %s given", name)
		case len(args) > 1:
			return usage("unexpected argument %q after the %s", args[1], name)
		}
		return nil
	}
}

// someArgs asks for at least one argument.
func someArgs(name string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage("no %s given", name)
		}
		return nil
	}
}
