package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// outcome is what came out of a fix.
type outcome struct {
	fix
	Verdict  string // "automatic", "refused", "nothing", "failed"
	Codes    []string
	Replaced []string
	Absent   []string
	Judge    string // what the judge says
	Shown    string // how it was seen that the patch is in force
	Took     time.Duration
	Pause    float64 // microseconds
	Err      error
}

func (o outcome) expected() bool { return o.Err == nil && slices.Contains(o.Expect, o.Verdict) }

func (o outcome) what() string {
	switch o.Verdict {
	case "automatic":
		return fmt.Sprintf("%s, %s", count(len(o.Replaced), "function"), o.Shown)
	case "refused":
		return strings.Join(o.Codes, ", ")
	case "nothing":
		return "nothing to patch"
	}
	return ""
}

// line is what is printed of it.
func (o outcome) line() string {
	mark := "ok  "
	if !o.expected() {
		mark = "FAIL"
	}
	text := fmt.Sprintf("%s %s %s: %s: %s; judge: %s; %.1f s", mark, o.name(), o.Class, o.Verdict, o.what(), o.Judge, o.Took.Seconds())
	if o.Err != nil {
		text += "\n     " + strings.ReplaceAll(strings.TrimSpace(o.Err.Error()), "\n", "\n     ")
	}
	return text
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// tableOf is the table of docs/cve.md.
func tableOf(all []outcome) string {
	var b strings.Builder
	b.WriteString("| package | fix | class | verdict | replaced or refused | seen in the running process | judge | time |\n|---|---|---|---|---|---|---|---|\n")
	for _, o := range all {
		what := "`" + strings.Join(slices.Concat(o.Replaced, o.Codes), "`, `") + "`"
		if len(o.Replaced) > 8 {
			what = fmt.Sprintf("%d functions", len(o.Replaced))
		}
		if what == "``" {
			what = ""
		}
		if len(o.Absent) > 0 {
			what += "; inlined or unused: `" + strings.Join(o.Absent, "`, `") + "`"
		}
		verdict := o.Verdict
		if !o.expected() {
			verdict = "**" + verdict + "**, not as expected"
		}
		fmt.Fprintf(&b, "| %s %s | %s | %s | %s | %s | %s | %s | %.0f s |\n", o.Name, o.Version, o.CVE, o.Class, verdict, what, o.Shown, o.Judge, o.Took.Seconds())
	}
	return b.String()
}
