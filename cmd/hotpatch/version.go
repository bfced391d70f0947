package main

import (
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// buildInfo is what this binary was built from, as the Go toolchain recorded it.
type buildInfo struct {
	Version  string `json:"version"` // of the module; "devel" if it was not built as a version
	Revision string `json:"revision,omitempty"`
	Time     string `json:"time,omitempty"` // of the revision
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func build() buildInfo {
	b := buildInfo{Version: "devel", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := strings.Trim(info.Main.Version, "()"); v != "" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

// short gives the version in one word. A build that is no version is named by
// its revision.
func (b buildInfo) short() string {
	if b.Version != "devel" || b.Revision == "" {
		return b.Version
	}
	s := "devel-" + b.Revision[:min(12, len(b.Revision))]
	if b.Modified {
		s += "+dirty"
	}
	return s
}

func newVersion(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version [flags]",
		Short: "show the version of hotpatch",
		Long:  "Show the version of hotpatch, and what it was built from.",
		Example: `  hotpatch version
  hotpatch version --json | jq -r .result.version`,
		Annotations: exits(0, 1, 2),
		Args:        noArgs,
		RunE: a.start(func(*cobra.Command, []string) error {
			b := build()
			a.answer(b, func(p *page) { showVersion(p, b) })
			return nil
		}),
	}
	a.addJSON(cmd)
	return cmd
}

func showVersion(p *page, b buildInfo) {
	p.line("hotpatch version %s", b.short())
	if b.Revision != "" {
		modified := ""
		if b.Modified {
			modified = ", with changes"
		}
		p.line("built from revision %s of %s%s", b.Revision, b.Time, modified)
	}
	p.line("%s, %s", b.Go, b.Platform)
}
