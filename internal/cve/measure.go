package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// rounds of a measurement, of which the median counts.
const rounds = 3

// measure compares the time of hotpatch build with that of the two compilations which it
// needs: the whole build, and the same command once more after the fix. They take turns.
func measure(ctx context.Context, e *env, fixes []fix) int {
	fmt.Print("| package | fix | both compilations | hotpatch build | ratio |\n|---|---|---|---|---|\n")
	status := 0
	for _, f := range fixes {
		plain, patch, err := e.measureOne(ctx, f)
		if err != nil {
			fmt.Fprintln(os.Stderr, f.name()+":", err)
			status = 1
			continue
		}
		fmt.Printf("| %s | %s | %.1f s | %.1f s | %.2f |\n", f.Name, f.CVE, plain.Seconds(), patch.Seconds(), patch.Seconds()/plain.Seconds())
	}
	return status
}

func (e *env) measureOne(ctx context.Context, f fix) (plain, patch time.Duration, err error) {
	work := e.work(f)
	defer os.RemoveAll(work)
	tree := filepath.Join(work, "tree")
	var plains, patches []time.Duration
	for i := range rounds {
		if err := e.unpack(ctx, f, tree); err != nil {
			return 0, 0, err
		}
		start := time.Now()
		if err := command(ctx, tree, []string{"EXTRA=" + sections}, "bash", "-c", f.script(f.Configure, f.Build)); err != nil {
			return 0, 0, err
		}
		for _, p := range f.Patches {
			if err := applyTo(ctx, tree, p); err != nil {
				return 0, 0, err
			}
		}
		if err := command(ctx, tree, []string{"EXTRA=" + sections}, "bash", "-c", f.script(f.Build)); err != nil {
			return 0, 0, err
		}
		plains = append(plains, time.Since(start))
		if i == 0 { // an image without the fix
			if err := e.unpack(ctx, f, tree); err != nil {
				return 0, 0, err
			}
			if err := e.build(ctx, f, tree, ""); err != nil {
				return 0, 0, err
			}
			if err := command(ctx, work, nil, "strip", "-o", filepath.Join(work, filepath.Base(f.Image)), filepath.Join(tree, f.Image)); err != nil {
				return 0, 0, err
			}
		}
		o := outcome{fix: f}
		if _, err := e.makePatch(ctx, &o, filepath.Join(work, filepath.Base(f.Image))); err != nil {
			return 0, 0, err
		}
		patches = append(patches, o.Took)
	}
	slices.Sort(plains)
	slices.Sort(patches)
	return plains[rounds/2], patches[rounds/2], nil
}
