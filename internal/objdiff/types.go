package objdiff

import (
	"slices"

	"hotpatch/internal/objfile"
)

// Diff is what is different between two builds of one object file.
type Diff struct {
	Pre, Post *objfile.Object

	// Changed has the functions that exist on both sides and differ, one for each
	// place in Pre. Parts such as .cold belong to their function.
	Changed []Function

	// New has the functions and variables that only Post has, whether they are
	// shipped or not. Constants that differ from Pre's are among them.
	New []*objfile.Symbol

	// Removed has the functions and variables that only Pre has.
	Removed []*objfile.Symbol

	// Ship has the sections of Post that the patch must contain, by ascending
	// index: code of changed and new functions, new data, and the strings and
	// constants they use; with the .gcc_except_table of that code. Not .eh_frame:
	// of it the patch needs the frames (objfile.Object.Frames) of shipped code.
	//
	// A section that several symbols share is shipped whole.
	Ship []*objfile.Section

	// Severed has the functions and variables of Post that have names of Pre's and are
	// nevertheless not those: the types that they are named by are others (numbered.go).
	Severed map[*objfile.Symbol]bool

	// Twin leads from a symbol of Post to the symbol of Pre that it continues. To
	// such a symbol a reference of shipped code must be bound in the base, also if
	// it is a changed function (then its address is meant). But what is within the
	// code of a function, as jump tables and exception tables refer to it, and all
	// references to parts such as .cold, mean the shipped code.
	//
	// A symbol that Post defines and that has no twin is in Ship if anything shipped
	// refers to it; a new common symbol has no section and is defined by the linker.
	// Undefined symbols have those of the same name as twins; Pre may lack one.
	Twin map[*objfile.Symbol]*objfile.Symbol

	// Warnings has what would have been refused but was overridden (those have
	// Override set), and what does not stand in the way: "main", "never-returns",
	// "saved-context", "kept-type", "kept-constant", "new-global", "removed-function", "removed-variable", "unstored-variable" and
	// "no-debug-info". There are none if the Diff is empty.
	Warnings []Finding

	roots []*objfile.Symbol // of Ship
}

// Empty reports whether there is nothing to patch.
func (d *Diff) Empty() bool { return len(d.Changed) == 0 && len(d.Ship) == 0 }

// Function is a function whose code differs.
type Function struct {
	Pre, Post *objfile.Symbol
	Aliases   []*objfile.Symbol // further symbols of Pre for the same code
	Parts     []Part            // by name
	Why       string            // the first difference, for people: "instruction 12: call foo, was call bar"
	File      string            // of its declaration in Post; empty without debugging information
	Line      int
	Inlined   []string // mangled names of functions that are inlined here and why it differs, as far as debugging information tells
}

// Part is code that belongs to a function and stands elsewhere, such as .cold.
// It is never called and needs no jump; one of the sides may be missing.
type Part struct {
	Name      string
	Pre, Post *objfile.Symbol // nil if that build has none
}

// Finding is a reason for a refusal, or a warning. Warnings have codes of their own.
type Finding struct {
	Code     string // stable; the code of the fault for a refusal
	Symbol   string // or type, or section
	File     string // of the source, or of the object if that is not known
	Line     int    // 0 if it is not known
	Why      string
	Hint     string
	Override string // name that allows it nevertheless, "" if there is none
}

// Indirectly is the option (of gcc from version 12 on) by which code reaches what other
// files define by way of the global offset table. Post may be compiled with it.
const Indirectly = "-mno-direct-extern-access"

// Options are the wishes of the author of the patch.
type Options struct {
	// Allow has names of overrides: see Overrides.
	Allow []string

	// SameLine says of a line that it is the same in both states of the source, under the same
	// number, and not to be taken for another. nil: nothing is known of lines.
	SameLine func(file string, line int) bool

	// Only has the functions of Pre that count as changed; nil: all that differ. It is for a
	// Post that was compiled with other options, which may be all that makes a difference.
	Only map[*objfile.Symbol]bool
}

// The names of overrides.
const (
	AllowLayout      = "struct-layout" // layouts of types differ
	AllowStatic      = "static-local"  // a static variable of a function is gone, or may be another one
	AllowVtable      = "vtable"        // vtables or type information differ
	AllowConstructor = "constructor"   // constructors differ or are new; they will not run
	AllowIFunc       = "ifunc"         // the resolver of an indirect function differs; it will not run
	AllowConstant    = "constant"      // a constant differs whose address the running program keeps
	AllowPrototype   = "prototype"     // a function whose address the running program may keep takes or returns other things
	AllowScope       = "scope"         // a static variable became global or the reverse, or a name means another sort of thing
)

// AllowBase is no override of this package: the image differs from the object before the change in
// code that is not replaced.
const AllowBase = "base"

// AllowOwnCopy is an override of linking: the patch has a definition of its own of what other files
// of the program may define too.
const AllowOwnCopy = "own-copy"

// Overrides lists the names of all overrides of comparisons.
var Overrides = []string{AllowLayout, AllowStatic, AllowVtable, AllowConstructor, AllowIFunc, AllowConstant, AllowPrototype, AllowScope}

// AllOverrides lists those of later steps too.
var AllOverrides = append(slices.Clone(Overrides), AllowBase, AllowOwnCopy)
