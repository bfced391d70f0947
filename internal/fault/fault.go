// Package fault is the one error type in which hotpatch refuses or fails.
//
// Whoever runs hotpatch at three in the morning needs four things of an error:
// what was being done, where, why it cannot be, and what would help. Every
// refusal in the project is a *fault.Error that carries these four, a Code that
// scripts and tests can rely on, and a Kind that decides the exit status.
//
// Codes are part of the command line's contract: docs/limits.md lists every one
// (a test compares the list), and --json prints them.
package fault

import (
	"errors"
	"fmt"
	"strings"
)

// Kind says what sort of answer an error is. It maps one to one onto the exit
// status of the command.
type Kind int

// The kinds. The numbers are the exit statuses.
const (
	Failed   Kind = 1 // something went wrong; the target is as it was
	Usage    Kind = 2 // wrong flags or arguments
	Busy     Kind = 3 // not now: threads stayed in the way until the timeout
	Unfit    Kind = 4 // the patch does not fit this target
	NoAccess Kind = 5 // the process cannot be worked on: gone, forbidden, traced, of another sort
	Differs  Kind = 6 // memory is not what the ledger says
	NoChange Kind = 7 // build only: the change makes no difference in the object code
)

// Error is one refusal or failure.
type Error struct {
	Kind  Kind   // what sort of answer it is
	Code  string // short stable name, such as "short-function"
	What  string // what cannot be done: "cannot replace C::fb(int)"
	Where string // module, file, address, thread: whatever locates it; may be empty
	Why   string // the reason, with its numbers
	Hint  string // what the reader can do; may be empty

	// Details is data for --json beyond the text, such as the candidates of an
	// ambiguous name. It must marshal to JSON. May be nil.
	Details any

	Err error // the cause, where there is one; may be nil
}

// Error gives what, where and why in one line. The hint is printed apart.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.What)
	if e.Where != "" {
		fmt.Fprintf(&b, " (%s)", e.Where)
	}
	if e.Why != "" {
		b.WriteString(": ")
		b.WriteString(e.Why)
	}
	if e.Err != nil {
		b.WriteString(": ")
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is an *Error with the same code, so that
// errors.Is(err, &fault.Error{Code: "no-symbol"}) works.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code != "" && t.Code == e.Code
}

// WhyOf gives the reason of the first *Error in err's tree, or what err says if there is none.
func WhyOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Why
	}
	return err.Error()
}

// CodeOf gives the code of the first *Error in err's tree, or "".
func CodeOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// List is several refusals found in one go: a plan reports all of them and not
// only the first.
type List []*Error

// Error gives all refusals, one a line.
func (l List) Error() string {
	lines := make([]string, len(l))
	for i, e := range l {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.Is and errors.As look into every refusal.
func (l List) Unwrap() []error {
	errs := make([]error, len(l))
	for i, e := range l {
		errs[i] = e
	}
	return errs
}

// ErrOrNil gives l as an error, or nil if it is empty.
func (l List) ErrOrNil() error {
	switch len(l) {
	case 0:
		return nil
	case 1:
		return l[0]
	}
	return l
}

// ExitStatus maps an error to the exit status of the command: 0 for nil, the
// kind of the first *Error found, 1 for anything else.
func ExitStatus(err error) int {
	if err == nil {
		return 0
	}
	var e *Error
	if errors.As(err, &e) && e.Kind != 0 {
		return int(e.Kind)
	}
	return int(Failed)
}
