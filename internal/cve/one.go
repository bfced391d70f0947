package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ianlancetaylor/demangle"
)

// answer is what hotpatch prints with --json.
type answer struct {
	OK     bool
	Result json.RawMessage
	Error  *struct{ Code, Message string }
	Errors []struct{ Code, Message string }
}

// ask runs hotpatch.
func (e *env) ask(ctx context.Context, dir string, result any, args ...string) (*answer, error) {
	cmd := exec.CommandContext(ctx, e.hotpatch, args...)
	cmd.Dir = dir
	var messages strings.Builder
	cmd.Stderr = &messages
	out, err := cmd.Output()
	var a answer
	if len(out) == 0 {
		return nil, fmt.Errorf("hotpatch %s: %w\n%s", args[0], err, tail([]byte(messages.String()), 12))
	}
	if err := json.Unmarshal(out, &a); err != nil {
		return nil, fmt.Errorf("hotpatch %s: %w", args[0], err)
	}
	if a.OK && result != nil {
		return &a, json.Unmarshal(a.Result, result)
	}
	return &a, nil
}

// do is ask of what must succeed.
func (e *env) do(ctx context.Context, dir string, result any, args ...string) error {
	a, err := e.ask(ctx, dir, result, append(args, "--json")...)
	if err == nil && !a.OK {
		err = errors.New("hotpatch " + args[0] + ": " + a.Error.Message)
	}
	return err
}

// one does all that is to be done for a fix.
func (e *env) one(ctx context.Context, f fix) outcome {
	o := outcome{fix: f, Verdict: "failed"}
	if o.Err = os.RemoveAll(e.work(f)); o.Err == nil {
		o.Err = os.MkdirAll(e.work(f), 0o755)
	}
	if o.Err != nil {
		return o
	}
	if !e.keep {
		defer os.RemoveAll(e.work(f))
	}
	base, pre, post, err := e.trees(ctx, f)
	if err != nil {
		o.Err = err
		return o
	}
	patch, err := e.makePatch(ctx, &o, base)
	if err != nil {
		o.Err = err
		return o
	}
	if o.Err = o.judged(pre, post); o.Err == nil && o.Verdict == "automatic" {
		o.Err = e.show(ctx, &o, base, patch)
	}
	return o
}

// makePatch builds the patch from the source before the fix and the fix.
func (e *env) makePatch(ctx context.Context, o *outcome, base string) (string, error) {
	work := e.work(o.fix)
	tree := filepath.Join(work, "source")
	if err := e.unpack(ctx, o.fix, tree); err != nil {
		return "", err
	}
	patch := filepath.Join(work, "fix.so")
	args := []string{"build", "--source", tree, "--base", base, "-o", patch, "--json"}
	for _, p := range o.Patches {
		args = append(args, "--patch", filepath.Join(tree, "debian", "patches", p))
	}
	for cve := range strings.SplitSeq(o.CVE, "+") {
		args = append(args, "--cve", cve)
	}
	args = append(args, "--", "bash", "-c", o.script(o.Configure, o.Build))
	var result struct {
		Replaced []struct{ Mangled string }
		Absent   []string
	}
	start := time.Now()
	a, err := e.ask(ctx, work, &result, args...)
	o.Took = time.Since(start)
	switch {
	case err != nil:
		return "", err
	case a.OK:
		o.Verdict = "automatic"
		for _, r := range result.Replaced {
			o.Replaced = append(o.Replaced, r.Mangled)
		}
		o.Absent = result.Absent
	case a.Error.Code == "nothing-to-patch":
		o.Verdict = "nothing"
	default:
		o.Verdict = "refused"
		o.Codes = append(o.Codes, a.Error.Code)
		for _, one := range a.Errors {
			if !slices.Contains(o.Codes, one.Code) {
				o.Codes = append(o.Codes, one.Code)
			}
		}
		if !slices.Contains(o.Expect, "refused") {
			return "", errors.New(a.Error.Message)
		}
	}
	return patch, nil
}

// judged compares what the patch replaces with what the judge found to be changed.
func (o *outcome) judged(pre, post functions) error {
	changed, lines, added := difference(pre, post)
	o.Judge = count(len(changed), "function") + " changed"
	if len(added) > 0 {
		o.Judge += fmt.Sprintf(", %d new", len(added))
	}
	if len(lines) > 0 {
		o.Judge += fmt.Sprintf(", %d in line numbers only", len(lines))
	}
	switch o.Verdict {
	case "nothing":
		if len(changed)+len(added) > 0 {
			return fmt.Errorf("the judge found changed: %s, new: %s", strings.Join(changed, ", "), strings.Join(added, ", "))
		}
	case "automatic":
		var have []string
		for _, name := range slices.Concat(o.Replaced, o.Absent) {
			have = append(have, demangle.Filter(plain(name)))
		}
		var missing, more []string
		for _, name := range changed {
			if full := demangle.Filter(name); !slices.Contains(have, full) && !absorbed(pre, post, name, have) {
				missing = append(missing, full)
			}
		}
		for _, name := range have {
			if !slices.ContainsFunc(changed, func(c string) bool { return demangle.Filter(c) == name }) {
				more = append(more, name)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("changed, says the judge, and not in the patch: %s", strings.Join(missing, ", "))
		}
		if len(more) > 0 {
			o.Judge += "; and not: " + strings.Join(more, ", ")
		} else {
			o.Judge += ", the same"
		}
	}
	return nil
}
