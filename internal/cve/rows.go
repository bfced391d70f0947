package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// source is a source package and how it is built here.
type source struct {
	Name, Version string
	Configure     string // a shell command, in the tree; may be empty
	Build         string // the same
	Image         string // the program or library that runs, below the tree
}

// fix is one row: a security fix and what is expected of it.
type fix struct {
	*source
	CVE     string
	Patches []string // below debian/patches, in this order
	Class   string
	Expect  []string // verdicts, any of which is right: "automatic", "refused", "nothing"
	Show    string   // the scenario that shows it, or ""
	Before  string   // the scenario's answer of the old code
	After   string   // of the new code; if equal, the new code is shown to be entered
}

func (f fix) name() string { return f.Name + " " + f.CVE }

// readTable gives the rows of a table with tab-separated fields and one line of names.
func readTable(path string, fields int) ([][]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var rows [][]string
	for i, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
		row := strings.Split(line, "\t")
		switch {
		case i == 0:
		case len(row) != fields:
			return nil, fmt.Errorf("%s:%d has %d fields instead of %d", path, i+1, len(row), fields)
		default:
			rows = append(rows, row)
		}
	}
	return rows, nil
}

func readFixes(fixes, packages string) ([]fix, error) {
	sources := make(map[string]*source)
	rows, err := readTable(packages, 5)
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		sources[r[0]] = &source{Name: r[0], Version: r[1], Configure: r[2], Build: r[3], Image: r[4]}
	}
	if rows, err = readTable(fixes, 8); err != nil {
		return nil, err
	}
	var list []fix
	for _, r := range rows {
		s := sources[r[0]]
		if s == nil {
			return nil, fmt.Errorf("%s: no package %s in %s", fixes, r[0], packages)
		}
		list = append(list, fix{source: s, CVE: r[1], Patches: strings.Fields(r[2]), Class: r[3], Expect: strings.Split(r[4], "|"), Show: r[5], Before: r[6], After: r[7]})
	}
	return list, nil
}

// selected gives the fixes that have one of the words as package, CVE or class; all, if
// there are no words.
func selected(fixes []fix, words []string) []fix {
	if len(words) == 0 {
		return fixes
	}
	return slices.DeleteFunc(fixes, func(f fix) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return w == f.Name || w == f.Class || w == f.CVE })
	})
}

func packagesOf(fixes []fix) []*source {
	var list []*source
	for _, f := range fixes {
		if !slices.Contains(list, f.source) {
			list = append(list, f.source)
		}
	}
	return list
}
