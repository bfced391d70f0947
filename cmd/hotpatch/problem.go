package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"

	"hotpatch/internal/fault"
)

// schema is the version of the JSON objects. Fields may be added to a version;
// none is removed or changes its meaning.
const schema = 1

// envelope is the one object that --json prints.
type envelope struct {
	Schema  int       `json:"schema"`
	OK      bool      `json:"ok"` // the exit status is 0
	Command string    `json:"command"`
	Result  any       `json:"result,omitempty"`
	Error   *problem  `json:"error,omitempty"`  // the first one, which decides the exit status
	Errors  []problem `json:"errors,omitempty"` // all, if there are several
}

// problem is one error as it is printed.
type problem struct {
	Kind    string `json:"kind"`
	Code    string `json:"code"`
	Message string `json:"message"` // all in one line
	What    string `json:"what,omitempty"`
	Where   string `json:"where,omitempty"`
	Why     string `json:"why,omitempty"`
	Hint    string `json:"hint,omitempty"`
	Details any    `json:"details,omitempty"`
}

var kindNames = map[fault.Kind]string{
	fault.Failed: "failed", fault.Usage: "usage", fault.Busy: "busy", fault.Unfit: "unfit",
	fault.NoAccess: "no-access", fault.Differs: "differs", fault.NoChange: "no-change",
}

// problemsOf takes an error apart into what is printed: every refusal of a list
// and every part of joined errors by itself, with the words that were put
// around it.
func problemsOf(err error) []problem {
	if err == nil {
		return nil
	}
	switch e := err.(type) {
	case *fault.Error:
		return []problem{describe(e, e.Error())}
	case interface{ Unwrap() []error }:
		var all []problem
		var texts []string
		for _, part := range e.Unwrap() {
			all = append(all, problemsOf(part)...)
			texts = append(texts, part.Error())
		}
		if strings.Join(texts, "\n") == err.Error() {
			return all
		}
	case interface{ Unwrap() error }:
		inner := e.Unwrap()
		if inner == nil || fault.CodeOf(inner) == "" {
			break
		}
		before, ok := strings.CutSuffix(err.Error(), inner.Error())
		if !ok {
			break
		}
		all := problemsOf(inner)
		for i := range all {
			all[i].Message = before + all[i].Message
		}
		return all
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		f = &fault.Error{Kind: fault.Failed, Code: "unexpected", What: err.Error()}
	}
	return []problem{describe(f, err.Error())}
}

func describe(e *fault.Error, message string) problem {
	kind := e.Kind
	if kind == 0 {
		kind = fault.Failed // as fault.ExitStatus has it
	}
	why := e.Why
	if e.Err != nil {
		if why != "" {
			why += ": "
		}
		why += e.Err.Error()
	}
	return problem{Kind: kindNames[kind], Code: e.Code, Message: oneLine(message), What: e.What, Where: e.Where, Why: oneLine(why), Hint: e.Hint, Details: e.Details}
}

// oneLine joins the lines of joined errors.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", "; ") }

// printProblems prints errors for people.
func printProblems(w io.Writer, color bool, problems []problem) {
	for i, p := range problems {
		text := paint(color, red, "hotpatch:") + " " + harmless(p.Message)
		if p.Code != "" {
			text += " [" + harmless(p.Code) + "]"
		}
		// The same remedy for several refusals is given once, after the last.
		if p.Hint != "" && (i+1 == len(problems) || problems[i+1].Hint != p.Hint) {
			text += "\n" + paint(color, bold, "hint:") + " " + harmless(p.Hint)
		}
		// Nobody is left to tell if this cannot be written.
		_, _ = fmt.Fprintln(w, text)
	}
}

// writeJSON prints the one object of --json, on one line.
func writeJSON(w io.Writer, command string, result any, problems []problem) error {
	e := envelope{Schema: schema, OK: len(problems) == 0, Command: command, Result: result}
	if len(problems) > 0 {
		e.Error = &problems[0]
	}
	if len(problems) > 1 {
		e.Errors = problems
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return err
	}
	_, err := io.WriteString(w, visibleJSON(b.String()))
	return err
}

// visibleJSON escapes what JSON lets through and a terminal may obey: C1 control
// characters, bidirectional overrides and the like. They can only be in strings.
func visibleJSON(s string) string {
	harmful := func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }
	if strings.IndexFunc(s, harmful) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if !harmful(r) {
			b.WriteRune(r)
			continue
		}
		for _, u := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, u)
		}
	}
	return b.String()
}
