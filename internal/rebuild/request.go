package rebuild

import (
	"hotpatch/internal/sourcetree"
)

// Request is what is to be built.
type Request struct {
	Tree    string // the source tree, absolute and without symbolic links
	Origin  string // where the tree can be read, if it is not there but is to be built as if it were; else empty
	Work    string // a directory for everything that is written
	Command []string
	Env     []string
	Jobs    int
	Changes []sourcetree.Change
	Images  []Image // what the patch is for
	Plain   bool    // build without watching first, and compare build-ids
	Private bool    // the copy can be mounted over the tree
}

// Copy gives the directory of the copy of the tree.
func (r *Request) Copy() string { return r.Work + "/tree" }

// original gives the directory where the tree itself can be read.
func (r *Request) original() string {
	switch {
	case r.Origin != "":
		return r.Origin
	case !r.Private:
		return r.Tree
	}
	return r.Work + "/original"
}

// Image is a program or library that runs.
type Image struct {
	Name    string // of its file
	Soname  string
	BuildID string
	Program bool
	Maybe   bool // it may have nothing to do with the source tree
}

// Report is what was built.
type Report struct {
	Units     []Unit     `json:"units"`              // compiled before and after
	Elsewhere []Unit     `json:"elsewhere"`          // concerned, but linked into none of the images, and so not compiled again
	Unread    []string   `json:"unread"`             // changed files that nothing has read
	Compiled  int        `json:"compiled"`           // compilations of the whole build
	Again     bool       `json:"again"`              // the build was run twice
	Plain     []Plain    `json:"plain"`              // what a build without watching gives
	Objects   []Object   `json:"objects"`            // everything that was compiled, before the change
	Whole     []bool     `json:"whole"`              // by image: Objects has all that it was linked from
	Folded    []bool     `json:"folded"`             // by image: equal functions were made one
	Relinked  []string   `json:"relinked,omitempty"` // what the change does to how the images are linked, and no patch carries
	Libraries [][]string `json:"libraries"`          // by image: what else it is linked with, after the change too: names as for -l, or paths
}

// Object is what a compilation has made.
type Object struct {
	File      string `json:"file"` // a copy that is kept
	Source    string `json:"source"`
	Assembler bool   `json:"assembler"`
	Images    []int  `json:"images"` // as in Unit
	Absent    []int  `json:"absent"` // as in Unit

	// What else it is linked into that is none of the images.
	Programs  []string `json:"programs,omitempty"`
	Libraries []string `json:"libraries,omitempty"`
}

// Unit is one compilation.
type Unit struct {
	Source  string   `json:"source"` // relative to the tree, where it is in there
	Output  string   `json:"output"`
	Pre     string   `json:"pre"` // object files
	Post    string   `json:"post"`
	Linked  []string `json:"linked"`  // files that it is linked into; empty: not known
	Images  []int    `json:"images"`  // indexes of the images that were made in this way
	Absent  []int    `json:"absent"`  // those of them of which it is certain that the linker has taken nothing of it into what it made
	Because []string `json:"because"` // files that it read and that are different
	// What has it and is none of the images.
	Programs  []string `json:"programs,omitempty"`
	Libraries []string `json:"libraries,omitempty"`
	// Indirect is Post compiled so that what other files define is reached by the global
	// offset table; empty: there is no need, or the compiler cannot do it.
	Indirect string `json:"indirect,omitempty"`
	New      bool   `json:"new"`     // it is compiled only after the change; there is no Pre
	Untaken  bool   `json:"untaken"` // the linker has not taken it before
}
