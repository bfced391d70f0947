package rebuild

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"hotpatch/internal/fault"
	"hotpatch/internal/intercept"
)

// replay compiles units again, side by side.
func (b *rebuilder) replay(ctx context.Context, units []*intercept.Compile, because map[*intercept.Compile][]string) error {
	dir := filepath.Join(b.Work, "post")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return workFault(err)
	}
	if len(units) > 0 {
		b.tell("compiling again what the change concerns: %d of %d files", len(units), len(b.compiles))
	}
	errs := make([]*fault.Error, len(units))
	read := make([][]string, len(units))
	b.report.Units = make([]Unit, len(units))
	limit := make(chan struct{}, max(1, b.Jobs))
	var wait sync.WaitGroup
	for i, c := range units {
		u := b.unit(c, because[c])
		u.Post = filepath.Join(dir, fmt.Sprintf("%d.o", i))
		b.report.Units[i] = u
		wait.Add(1)
		go func() {
			defer wait.Done()
			limit <- struct{}{}
			defer func() { <-limit }()
			cmd, deps := c.Replay(ctx, u.Post)
			killed(cmd)
			out, err := cmd.CombinedOutput()
			if err != nil {
				errs[i] = &fault.Error{Kind: fault.Failed, Code: "compile-failed", What: "the changed source does not compile", Where: u.Source, Why: ending(out), Err: err}
			}
			read[i] = deps()
			if err == nil {
				b.report.Units[i].Indirect = b.indirect(ctx, c, u)
			}
		}()
	}
	wait.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var list fault.List
	for _, e := range errs {
		if e != nil {
			list = append(list, e)
		}
	}
	if err := list.ErrOrNil(); err != nil {
		return err
	}
	b.report.Units = append(b.report.Units, b.fresh...)
	// New files are read by what is compiled now.
	b.report.Unread = slices.DeleteFunc(b.report.Unread, func(rel string) bool {
		path := real(filepath.Join(b.root, rel))
		return slices.ContainsFunc(read, func(names []string) bool {
			return slices.ContainsFunc(names, func(n string) bool { return real(n) == path })
		})
	})
	return b.certain()
}

// certain refuses to say that a changed file does not matter if that is not certain.
func (b *rebuilder) certain() error {
	var doubtful []string
	for _, rel := range b.report.Unread {
		if !b.covered && b.opens.times(filepath.Join(b.root, rel)) > 0 {
			doubtful = append(doubtful, rel)
		}
	}
	var list fault.List
	if e := b.standardInput(); e != nil {
		list = append(list, e)
	}
	if len(doubtful) > 0 {
		list = append(list, &fault.Error{Kind: fault.Unfit, Code: "unrecorded-compile", What: "cannot tell what has to be compiled", Where: b.names(doubtful),
			Why:  "the build has opened it, no compiler that was seen has, and how the base was linked was not seen either",
			Hint: "compilers must be called by way of PATH (CC=gcc, not CC=/usr/bin/gcc), and the base must be one of the files that the build makes"})
	}
	if len(b.report.Units) == 0 {
		for _, out := range b.graph.outputs {
			if len(out.unknown) > 0 && len(out.images) > 0 {
				list = append(list, b.unrecorded(out))
			}
		}
	}
	return list.ErrOrNil()
}

// ending gives the end of a compiler's messages in one line.
func ending(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[:min(len(lines), 8)], "; ")
}
