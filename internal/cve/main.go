package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx)
	stop()
	os.Exit(status)
}

// run gives 0 if every fix came out as expected, 1 if not, and 2 for wrong usage.
func run(ctx context.Context) int {
	var e env
	table := flag.String("table", "", "write docs/cve.md's table to this `FILE`")
	list := flag.Bool("list", false, "list the source packages, with versions, and end")
	bench := flag.Bool("bench", false, "measure the cost of building a patch instead")
	flag.StringVar(&e.cache, "cache", "", "`DIRECTORY` of sources, compilers' results and work")
	flag.StringVar(&e.hotpatch, "hotpatch", "", "the hotpatch `PROGRAM`")
	flag.StringVar(&e.data, "data", "testdata/cve", "`DIRECTORY` with fixes.tsv and packages.tsv")
	flag.BoolVar(&e.keep, "keep", false, "keep the work of each row")
	flag.Parse()
	fixes, err := readFixes(filepath.Join(e.data, "fixes.tsv"), filepath.Join(e.data, "packages.tsv"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if fixes = selected(fixes, flag.Args()); len(fixes) == 0 {
		fmt.Fprintln(os.Stderr, "no fix has such a package, CVE or class")
		return 2
	}
	if *list {
		for _, p := range packagesOf(fixes) {
			fmt.Println(p.Name, p.Version)
		}
		return 0
	}
	if e.cache == "" || e.hotpatch == "" {
		fmt.Fprintln(os.Stderr, "-cache and -hotpatch are needed")
		return 2
	}
	if *bench {
		return measure(ctx, &e, fixes)
	}
	var outcomes []outcome
	status := 0
	for _, f := range fixes {
		if ctx.Err() != nil {
			return 1
		}
		o := e.one(ctx, f)
		if !o.expected() {
			status = 1
		}
		fmt.Println(o.line())
		outcomes = append(outcomes, o)
	}
	if *table != "" {
		if err := os.WriteFile(*table, []byte(tableOf(outcomes)), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return status
}
