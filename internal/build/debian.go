package build

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"hotpatch/internal/debsource"
	"hotpatch/internal/rebuild"
	"hotpatch/internal/sourcetree"
)

// Debian is a change of a source package of Debian.
type Debian struct {
	Dsc     string             // its .dsc file
	Patches []sourcetree.Patch // those that the package has already are taken out of the state before
	Command []string           // that builds the tree; empty: as the distribution does
	Plain   bool               // build without watching first, and compare build-ids
	Jobs    int                // that compile at the same time
	Work    string             // an empty directory for everything that is written
}

// Package says what was made of a source package.
type Package struct {
	Name     string   `json:"name"`
	Version  string   `json:"version"`
	Place    string   `json:"place"` // the directory that the build has seen
	Added    []string `json:"added,omitempty"`
	TakenOut []string `json:"takenOut,omitempty"`
	Moved    []string `json:"moved,omitempty"` // of the series; taken out and put back
	Rebuilt  []Plain  `json:"rebuilt,omitempty"`
}

// Plain is a base as it comes out of the package.
type Plain struct {
	Base    string `json:"base"`
	Path    string `json:"path"` // in the tree
	BuildID string `json:"buildId"`
	Running string `json:"running"` // build-id of the base
	Equal   bool   `json:"equal"`
}

// FromDebian makes a patch from a change of a source package of Debian, which is built
// as the distribution does, at the place where that was done. Faults: those of
// FromSource, and those of debsource.
func FromDebian(ctx context.Context, r Request, d Debian) (*Result, error) {
	tell := r.Progress
	if tell == nil {
		tell = func(string, ...any) {}
	}
	work, err := filepath.EvalSymlinks(d.Work)
	if err != nil {
		return nil, workFault(err)
	}
	store := filepath.Join(work, "changes")
	if err := os.Mkdir(store, 0o755); err != nil {
		return nil, workFault(err)
	}
	tell("unpacking %s", filepath.Base(d.Dsc))
	pkg, err := debsource.Unpack(ctx, d.Dsc, work)
	if err != nil {
		return nil, err
	}
	states, err := pkg.States(ctx, d.Patches, work)
	if err != nil {
		return nil, err
	}
	if len(d.Command) == 0 {
		if err := pkg.CheckDependencies(ctx); err != nil {
			return nil, err
		}
		d.Command = pkg.Command(d.Jobs)
	}
	env, err := pkg.Environment(ctx, os.Environ())
	if err != nil {
		return nil, err
	}
	said := &Package{Name: pkg.Name, Version: pkg.Version, Place: pkg.Place(paths(r.Bases)), Added: states.Added, TakenOut: states.TakenOut, Moved: states.Moved}
	if strings.HasPrefix(work+"/", "/build/") {
		said.Place = pkg.Dir // nothing may be mounted over what is worked on
	}
	req := rebuild.Request{Tree: said.Place, Origin: states.Before, Work: work, Command: d.Command, Env: env, Jobs: d.Jobs, Images: images(r.Bases), Plain: d.Plain}
	if err := sourcetree.Copy(ctx, states.Before, req.Copy()); err != nil {
		return nil, err
	}
	if req.Changes, err = sourcetree.Compare(ctx, states.Before, states.After, store); err != nil {
		return nil, err
	}
	tell("building at %s", said.Place)
	report, err := rebuild.Run(ctx, req, tell)
	if err != nil {
		return nil, err
	}
	for _, p := range report.Plain {
		b := &r.Bases[p.Image]
		said.Rebuilt = append(said.Rebuilt, Plain{Base: b.String(), Path: p.Path, BuildID: p.BuildID, Running: req.Images[p.Image].BuildID, Equal: p.Equal})
		if p.Equal {
			tell("%s is the very file that the package makes: its symbols are used", b)
			b.Debug = append(b.Debug, p.Kept)
		}
	}
	result, err := patch(ctx, r, report, newLines(req).same, tell)
	if result != nil {
		result.Package = said
	}
	return result, err
}

func paths(bases []Base) []string {
	var list []string
	for _, b := range bases {
		list = append(list, b.Path)
	}
	return list
}
