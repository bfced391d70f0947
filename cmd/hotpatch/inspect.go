package main

import (
	"strings"

	"github.com/spf13/cobra"

	"hotpatch/elfsym"
	"hotpatch/internal/engine"
	"hotpatch/internal/patchfile"
)

func newInspect(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect [flags] PATCH.so",
		Short: "show what a patch library says of itself",
		Long: `Show what a patch library says of itself, without loading it: its name and
version, what it replaces, the builds that it was made for, what it refers to in
the process, and its hooks. A file that cannot be a patch is refused with the
reason.`,
		Example: `  hotpatch inspect fix.so
  hotpatch inspect --json fix.so | jq -r '.result.cves[]'`,
		Annotations: exits(0, 1, 2, 4),
		Args:        oneArg("patch library"),
		RunE:        a.start(func(_ *cobra.Command, args []string) error { return a.inspect(args[0]) }),
	}
	a.addJSON(cmd)
	cmd.ValidArgsFunction = completeLibraries
	return cmd
}

// inspection is the result of inspect. Addresses are link-time addresses in the
// library, except for the old ones, which are of the image that is replaced.
type inspection struct {
	File         string        `json:"file"`
	Size         int           `json:"size"`
	SHA256       string        `json:"sha256"`
	BuildID      string        `json:"build_id,omitempty"`
	Name         string        `json:"name"`
	Version      uint64        `json:"version"`
	Description  string        `json:"description,omitempty"`
	CVEs         []string      `json:"cves,omitempty"`
	HasRecords   bool          `json:"has_records"`
	Consistency  string        `json:"consistency,omitempty"`
	Replacements []replacement `json:"replacements,omitempty"` // pairs that it names
	Exports      []function    `json:"exports,omitempty"`      // replace the function of the same name
	Weak         []function    `json:"weak,omitempty"`         // the same, with apply --weak
	Kept         []function    `json:"kept,omitempty"`         // replace nothing
	Bases        []base        `json:"bases,omitempty"`
	References   []reference   `json:"references,omitempty"`
	Images       []image       `json:"images,omitempty"` // builds that its places are bound to
	Places       []place       `json:"places,omitempty"` // filled with addresses in these builds
	Overrides    []string      `json:"overrides,omitempty"`
	Builder      string        `json:"builder,omitempty"`
	Hooks        []hook        `json:"hooks,omitempty"`
}

type function struct {
	Name    string     `json:"name,omitempty"` // demangled
	Mangled string     `json:"mangled,omitempty"`
	Address engine.Hex `json:"address"`
	Size    uint64     `json:"size,omitempty"`
}

type replacement struct {
	Old        string      `json:"old,omitempty"`
	OldBuildID string      `json:"old_build_id,omitempty"`
	OldAddress *engine.Hex `json:"old_address,omitempty"`
	OldNames   []string    `json:"old_names,omitempty"` // mangled
	OldSize    uint64      `json:"old_size,omitempty"`
	OldSHA256  string      `json:"old_sha256,omitempty"`
	New        function    `json:"new"`
}

type base struct {
	Module  string `json:"module,omitempty"`
	BuildID string `json:"build_id"`
}

type reference struct {
	Symbol string     `json:"symbol"`
	Kind   string     `json:"kind"` // any, function, variable
	Slot   engine.Hex `json:"slot"`
}

type image struct {
	Module  string `json:"module"`
	BuildID string `json:"build_id"`
}

type place struct {
	Address engine.Hex `json:"address"`
	Kind    string     `json:"kind"`
	Module  string     `json:"module,omitempty"` // none: the library itself
	Target  engine.Hex `json:"target"`           // link-time address in the module
	Addend  int64      `json:"addend"`
	Symbol  string     `json:"symbol,omitempty"` // mangled
}

type hook struct {
	When     string   `json:"when"` // before-apply, after-apply, before-revert, after-revert
	Function function `json:"function"`
}

func (a *app) inspect(path string) error {
	p, err := patchfile.Open(path)
	if err != nil {
		return err
	}
	in := inspectionOf(p)
	a.answer(in, func(p *page) { showInspection(p, in) })
	return nil
}

func inspectionOf(p *patchfile.Patch) *inspection {
	in := &inspection{
		File: p.Path, Size: len(p.Data), SHA256: p.SHA256, BuildID: p.BuildID.String(), Name: p.Name, Version: p.Version,
		Description: p.Description, CVEs: p.CVEs, HasRecords: p.HasRecords, Consistency: string(p.Consistency),
		Exports: exports(p.Exports), Weak: exports(p.Weak),
	}
	for _, r := range p.Replacements {
		out := replacement{Old: r.Old, New: functionOf(r.New)}
		if r.Old == "" {
			addr := engine.Hex(r.OldAddr)
			out.OldBuildID, out.OldAddress = r.OldBuildID.String(), &addr
		}
		if r.OldImage != 0 {
			out.OldNames, out.OldSize, out.OldSHA256 = r.OldNames, r.OldSize, printf("%x", r.OldSHA256)
		}
		in.Replacements = append(in.Replacements, out)
	}
	for _, f := range p.Kept {
		in.Kept = append(in.Kept, functionOf(f))
	}
	for _, b := range p.Bases {
		in.Bases = append(in.Bases, base{b.Module, b.BuildID.String()})
	}
	kinds := map[patchfile.RefKind]string{patchfile.AnySymbol: "any", patchfile.FuncSymbol: "function", patchfile.VarSymbol: "variable"}
	for _, r := range p.Refs {
		in.References = append(in.References, reference{r.Query, kinds[r.Kind], engine.Hex(r.Slot)})
	}
	modules := make(map[uint32]string)
	for _, im := range p.Images {
		modules[im.Number] = im.Module
		in.Images = append(in.Images, image{im.Module, im.BuildID.String()})
	}
	for _, b := range p.Binds {
		in.Places = append(in.Places, place{engine.Hex(b.Place), b.Kind.String(), modules[b.Image], engine.Hex(b.Addr), b.Addend, b.Symbol})
	}
	in.Overrides, in.Builder = p.Overrides, p.Builder
	for _, h := range []struct {
		when  string
		hooks []patchfile.Function
	}{
		{"before-apply", p.Hooks.BeforeApply}, {"after-apply", p.Hooks.AfterApply},
		{"before-revert", p.Hooks.BeforeRevert}, {"after-revert", p.Hooks.AfterRevert},
	} {
		for _, f := range h.hooks {
			in.Hooks = append(in.Hooks, hook{h.when, functionOf(f)})
		}
	}
	return in
}

func functionOf(f patchfile.Function) function {
	return function{Name: elfsym.Demangle(f.Name), Mangled: f.Name, Address: engine.Hex(f.Addr), Size: f.Size}
}

func exports(list []patchfile.Export) []function {
	var out []function
	for _, e := range list {
		out = append(out, functionOf(e.Function))
	}
	return out
}

// label names a function for people.
func (f function) label() string {
	if f.Name == "" {
		return "the function at " + f.Address.String()
	}
	return f.Name
}

func showInspection(p *page, in *inspection) {
	p.title("%s version %d (%s)", in.Name, in.Version, in.File)
	field := func(name, value string) {
		if value != "" {
			p.line("%-13s%s", name, value)
		}
	}
	field("description", in.Description)
	field("CVEs", strings.Join(in.CVEs, " "))
	field("size", count(in.Size, "byte", "bytes"))
	field("sha256", in.SHA256)
	field("build-id", in.BuildID)
	field("consistency", in.Consistency)
	if !in.HasRecords {
		field("records", "none: its exported functions replace those of the same name")
	}
	for _, b := range in.Bases {
		module := b.Module
		if module == "" {
			module = "every module that it changes"
		}
		field("made for", b.BuildID+" ("+module+")")
	}
	for _, r := range in.References {
		field("refers to", r.Symbol+" ("+r.Kind+")")
	}
	for _, im := range in.Images {
		field("bound to", im.BuildID+" ("+im.Module+")")
	}
	if len(in.Places) > 0 {
		field("places", count(len(in.Places), "reference to addresses in it", "references to addresses in it"))
	}
	for _, o := range in.Overrides {
		field("override", o)
	}
	field("built by", in.Builder)
	for _, h := range in.Hooks {
		field("hook", h.Function.label()+" ("+h.When+")")
	}
	for _, f := range in.Kept {
		field("keeps", f.label())
	}
	if len(in.Replacements)+len(in.Exports)+len(in.Weak) == 0 {
		return
	}
	p.gap()
	t := newTable("REPLACES", "WITH", "SIZE")
	for _, r := range in.Replacements {
		old := r.Old
		if r.OldAddress != nil {
			old = printf("%s in build %s", r.OldAddress, r.OldBuildID)
			if len(r.OldNames) > 0 {
				old = elfsym.Demangle(r.OldNames[0]) + " at " + r.OldAddress.String()
			}
		}
		t.add(old, r.New.label(), printf("%d", r.New.Size))
	}
	for _, f := range in.Exports {
		t.add(f.label(), "the same name", printf("%d", f.Size))
	}
	for _, f := range in.Weak {
		t.add(f.label(), "the same name (only with --weak)", printf("%d", f.Size))
	}
	p.table(t)
}
