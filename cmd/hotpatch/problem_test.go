package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"hotpatch/internal/fault"
)

func TestProblemsOf(t *testing.T) {
	t.Parallel()
	short := &fault.Error{Kind: fault.Unfit, Code: "short-function", What: "cannot replace f", Where: "lib.so, 0x10", Why: "9 of 14 bytes", Hint: "give it room"}
	busy := &fault.Error{Kind: fault.Busy, Code: "threads-busy", What: "cannot change it now", Why: "thread 7 is there", Details: []int{7}}
	caused := &fault.Error{Kind: fault.Failed, Code: "hook", What: "the hook cancels", Err: errors.Join(errors.New("a"), errors.New("b"))}
	shortly := problem{Kind: "unfit", Code: "short-function", Message: "cannot replace f (lib.so, 0x10): 9 of 14 bytes", What: "cannot replace f", Where: "lib.so, 0x10", Why: "9 of 14 bytes", Hint: "give it room"}
	busily := problem{Kind: "busy", Code: "threads-busy", Message: "cannot change it now: thread 7 is there", What: "cannot change it now", Why: "thread 7 is there", Details: []int{7}}
	prefixed := func(before string, p problem) problem {
		p.Message = before + p.Message
		return p
	}
	unexpected := func(s string) problem { return problem{Kind: "failed", Code: "unexpected", Message: s, What: s} }

	for name, test := range map[string]struct {
		err  error
		want []problem
	}{
		"none":      {nil, nil},
		"one":       {short, []problem{shortly}},
		"list":      {fault.List{short, busy}, []problem{shortly, busily}},
		"around":    {fmt.Errorf("fix.so: %w", fault.List{short, busy}), []problem{prefixed("fix.so: ", shortly), prefixed("fix.so: ", busily)}},
		"joined":    {errors.Join(short, nil, fs.ErrClosed), []problem{shortly, unexpected("file already closed")}},
		"foreign":   {fs.ErrClosed, []problem{unexpected("file already closed")}},
		"wrapped":   {fmt.Errorf("bind x: %w", fs.ErrClosed), []problem{unexpected("bind x: file already closed")}},
		"two wraps": {fmt.Errorf("%w and %w", short, fs.ErrClosed), []problem{prefixed("", problem{Kind: "unfit", Code: "short-function", Message: "cannot replace f (lib.so, 0x10): 9 of 14 bytes and file already closed", What: "cannot replace f", Where: "lib.so, 0x10", Why: "9 of 14 bytes", Hint: "give it room"})}},
		"in middle": {fmt.Errorf("a %w z", short), []problem{{Kind: "unfit", Code: "short-function", Message: "a " + shortly.Message + " z", What: "cannot replace f", Where: "lib.so, 0x10", Why: "9 of 14 bytes", Hint: "give it room"}}},
		"cause":     {caused, []problem{{Kind: "failed", Code: "hook", Message: "the hook cancels: a; b", What: "the hook cancels", Why: "a; b"}}},
		"no kind":   {&fault.Error{Code: "x", What: "y"}, []problem{{Kind: "failed", Code: "x", Message: "y", What: "y"}}},
	} {
		if diff := cmp.Diff(test.want, problemsOf(test.err)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestPrintProblems(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	printProblems(&b, false, problemsOf(fault.List{
		{Kind: fault.Unfit, Code: "short-function", What: "cannot replace f\x1b[0m", Where: "lib.so", Why: "9 of 14 bytes\nhotpatch: forged", Hint: "give it room"},
		{Kind: fault.Unfit, Code: "short-function", What: "cannot replace g", Hint: "give it room"},
		{Kind: fault.Unfit, Code: "alias", What: "cannot replace h", Hint: "say --allow-aliases"},
	}))
	want := `hotpatch: cannot replace f\x1b[0m (lib.so): 9 of 14 bytes; hotpatch: forged [short-function]
hotpatch: cannot replace g [short-function]
hint: give it room
hotpatch: cannot replace h [alias]
hint: say --allow-aliases
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

// JSON is one line, says what was put in, and holds nothing that a terminal
// would obey.
func TestWriteJSON(t *testing.T) {
	t.Parallel()
	nasty := "a\x1b[31m\u009b2J\u202e\U000e0041<&>\n\x00é\xff"
	var b bytes.Buffer
	err := writeJSON(&b, "list", map[string]string{"name": nasty}, []problem{{Kind: "unfit", Code: "c", Message: nasty}, {Code: "d"}})
	if err != nil {
		t.Fatal(err)
	}
	text, ok := strings.CutSuffix(b.String(), "\n")
	if !ok || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("not one printable line: %q", b.String())
	}
	var got struct {
		Schema  int
		OK      *bool
		Command string
		Result  map[string]string
		Error   struct{ Message string }
		Errors  []problem
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := strings.ToValidUTF8(nasty, "\ufffd")
	if got.Result["name"] != want || got.Error.Message != want || got.Schema != 1 || got.OK == nil || *got.OK || got.Command != "list" || len(got.Errors) != 2 {
		t.Errorf("got %+v", got)
	}
}
