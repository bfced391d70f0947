package debsource

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"hotpatch/internal/fault"
	"hotpatch/internal/lazy"
)

// Package is a source package that was unpacked.
type Package struct {
	Name     string
	Version  string   // with epoch and revision
	Upstream string   // without them
	Dir      string   // its tree
	Applied  []string // patches below debian/patches that are in the tree, in order
}

// Unpack unpacks a source package into a new directory below dir. Faults
// "source-unreadable", "no-dpkg-dev", "unpack-failed".
func Unpack(ctx context.Context, dsc, dir string) (*Package, error) {
	p, err := describe(dsc)
	if err != nil {
		return nil, err
	}
	p.Dir = filepath.Join(dir, p.Name+"-"+p.Upstream)
	// The signature is for apt to check; what the file names is compared by checksum.
	if out, err := tool(ctx, "", "dpkg-source", "--no-copy", "-x", "--", dsc, p.Dir); err != nil {
		return nil, toolFault(err, &fault.Error{Kind: fault.Failed, Code: "unpack-failed", What: "cannot unpack the source package", Where: dsc, Why: tail(out, 6), Err: err,
			Hint: "all files that the .dsc names must be beside it (`apt-get source --download-only`)"})
	}
	// What dpkg-source has applied itself (format "3.0 (quilt)").
	if text, err := os.ReadFile(filepath.Join(p.Dir, ".pc", "applied-patches")); err == nil {
		p.Applied = strings.Fields(string(text))
	}
	return p, nil
}

// describe reads the fields that are needed of a .dsc.
func describe(dsc string) (*Package, error) {
	text, err := os.ReadFile(dsc)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Usage, Code: "source-unreadable", What: "cannot read the source package", Where: dsc, Err: err}
	}
	p := &Package{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch {
		case name == "Source" && p.Name == "":
			p.Name = value
		case name == "Version" && p.Version == "":
			p.Version = value
		}
	}
	if !packageName().MatchString(p.Name) || !packageVersion().MatchString(p.Version) {
		return nil, &fault.Error{Kind: fault.Usage, Code: "source-unreadable", What: "cannot read the source package", Where: dsc,
			Why: "it names no source package and version", Hint: "give the .dsc file of a source package"}
	}
	p.Upstream = p.Version
	if _, rest, epoch := strings.Cut(p.Upstream, ":"); epoch {
		p.Upstream = rest
	}
	if i := strings.LastIndexByte(p.Upstream, '-'); i >= 0 {
		p.Upstream = p.Upstream[:i]
	}
	return p, nil
}

// Debian Policy 5.6.1 and 5.6.12.
var (
	packageName    = lazy.Regexp(`^[a-z0-9][a-z0-9+.-]+$`)
	packageVersion = lazy.Regexp(`^([0-9]+:)?[0-9][A-Za-z0-9.+~-]*$`)
)

// CheckDependencies refuses a package for whose build something is not installed.
// Faults "build-dependencies", "no-dpkg-dev".
func (p *Package) CheckDependencies(ctx context.Context) error {
	out, err := tool(ctx, p.Dir, "dpkg-checkbuilddeps", "-B")
	if err == nil {
		return nil
	}
	missing := tail(out, 6)
	if _, list, found := strings.Cut(missing, "nmet build dependencies: "); found {
		missing = "not installed: " + list
	}
	return toolFault(err, &fault.Error{Kind: fault.Failed, Code: "build-dependencies", What: "cannot build the source package", Where: p.Name + " " + p.Version,
		Why: missing, Hint: "apt-get build-dep --arch-only -P nocheck " + p.Name + ", with a deb-src entry in the sources of apt; or install these"})
}

// Command gives the command that builds the package as the distribution does, up to
// the point where files would be installed and packed: no rights are needed.
func (p *Package) Command(jobs int) []string {
	// No target that is run needs root, and so nothing that plays it: -r.
	return []string{"dpkg-buildpackage", "--no-check-builddeps", "-renv", "-j" + strconv.Itoa(jobs), "-T", "build-arch"}
}

// Environment gives the environment of the build, without what the distribution's
// build machines do not set. SOURCE_DATE_EPOCH is that of dpkg-buildpackage. Faults
// "no-dpkg-dev", "unpack-failed".
func (p *Package) Environment(ctx context.Context, base []string) ([]string, error) {
	out, err := tool(ctx, p.Dir, "dpkg-parsechangelog", "-STimestamp")
	if err != nil {
		return nil, toolFault(err, &fault.Error{Kind: fault.Failed, Code: "unpack-failed", What: "cannot read the source package", Where: p.Name + " debian/changelog", Why: tail(out, 3), Err: err})
	}
	options := "nocheck"
	var env []string
	for _, e := range base {
		name, value, _ := strings.Cut(e, "=")
		switch {
		case name == "DEB_BUILD_OPTIONS":
			options = value + " nocheck"
		case foreign().MatchString(name):
		default:
			env = append(env, e)
		}
	}
	return append(env, "LC_ALL=C.UTF-8", "DEB_BUILD_OPTIONS="+options, "DEB_BUILD_PROFILES=nocheck", "SOURCE_DATE_EPOCH="+strings.TrimSpace(string(out))), nil
}

// foreign matches the names of variables that change what a build gives.
var foreign = lazy.Regexp(`^(DEB_.*|DH_.*|(C|CPP|CXX|LD|OBJC|F|FC|ASM)FLAGS|CC|CXX|CPP|LD|AR|AS|MAKEFLAGS|MFLAGS|MAKELEVEL|LC_.*|LANG|LANGUAGE|TZ|SOURCE_DATE_EPOCH|QUILT_.*)$`)

// Place gives the directory in which the distribution has built the images in these
// files: one that they name, or else that of today's build machines. Programs have it
// in strings (the arguments of configure, __FILE__).
func (p *Package) Place(images []string) string {
	name := regexp.QuoteMeta(p.Name)
	exact := regexp.MustCompile(`/build/[A-Za-z0-9.+~_-]+/` + name + `-` + regexp.QuoteMeta(p.Upstream) + `(/|\b)`)
	other := regexp.MustCompile(`/build/[A-Za-z0-9.+~_-]+/` + name + `-[0-9][A-Za-z0-9.+~]*`)
	for _, re := range []*regexp.Regexp{exact, other} {
		for _, path := range images {
			data, err := os.ReadFile(path)
			if err != nil {
				continue // who needs it says so
			}
			if m := re.Find(data); m != nil {
				return string(bytes.TrimRight(m, "/."))
			}
		}
	}
	return "/build/reproducible-path/" + p.Name + "-" + p.Upstream
}

// tool runs a program of dpkg-dev, whose messages it gives with its output.
func tool(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEB_BUILD_PROFILES=nocheck")
	var messages bytes.Buffer
	cmd.Stderr = &messages
	out, err := cmd.Output()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		out = append(out, messages.Bytes()...)
	}
	return out, err
}

// toolFault gives the fault f of a program of dpkg-dev, or that it is not there.
func toolFault(err error, f *fault.Error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, exec.ErrNotFound):
		return &fault.Error{Kind: fault.Failed, Code: "no-dpkg-dev", What: "cannot work on a source package of Debian", Err: err, Hint: "install dpkg-dev"}
	}
	return f
}

// tail gives the last lines of a program's output in one line.
func tail(out []byte, lines int) string {
	all := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "; ")
}
