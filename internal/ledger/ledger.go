package ledger

import "time"

// Format is the version of the root page and of the bodies that this package
// reads and writes.
const Format = 1

// State says where a patch is in its life.
type State string

const (
	Loading State = "loading" // its library may be mapped; nothing calls it
	Active  State = "active"  // its layers are on their sites
	Inert   State = "inert"   // reverted; its library is still mapped
)

// Verb says what a transaction does.
type Verb string

const (
	Apply  Verb = "apply"
	Revert Verb = "revert"
)

// SiteKind says what the bytes of a site are.
type SiteKind string

const (
	Entry    SiteKind = "entry"     // instructions at a function's entry
	SlotWord SiteKind = "slot-word" // the 8-byte target of an island's slot
	VTable   SiteKind = "vtable"    // an 8-byte slot of a vtable
	Pad      SiteKind = "pad"       // padding in front of a function's entry
)

// MaxSite is the greatest number of bytes that a site can have.
const MaxSite = 16

// Ledger is everything that hotpatch knows of one patched process. All
// addresses are run-time addresses in that process. All strings are printable;
// names that come from the target go through Clean first.
type Ledger struct {
	Format int `json:"format"`

	// Generation is that of the body that this ledger was read from; 0 if it
	// was never written. The next body written has Generation+1.
	Generation uint64 `json:"-"`

	Patches   []Patch    `json:"patches"` // in the order in which they were last applied
	Islands   []Island   `json:"islands"`
	Functions []Function `json:"functions"`
	Sites     []Site     `json:"sites"` // ascending addresses
	Areas     [2]Area    `json:"areas"` // where bodies of even and odd generations go

	// Counter is the number given to the last library that was delivered; it
	// makes the spelling of the library's path unique in this process.
	Counter uint64 `json:"counter"`

	// Txn is what is about to be done, or nil at rest.
	Txn *Txn `json:"txn,omitempty"`
}

// Patch is one patch library that was brought into the process.
type Patch struct {
	ID          uint64   `json:"id"` // unique in this ledger, never 0
	Name        string   `json:"name"`
	Version     uint64   `json:"version"`
	Description string   `json:"description"`
	CVEs        []string `json:"cves"`
	SHA256      string   `json:"sha256"`  // hex, of the library's file
	BuildID     string   `json:"buildId"` // hex, of the library; may be empty
	File        string   `json:"file"`    // base name of the library's file as it was given
	Tool        string   `json:"tool"`    // version of hotpatch that applied it

	Base   uint64 `json:"base"` // load bias of the library
	Lo     uint64 `json:"lo"`   // first byte of the library's mappings
	Hi     uint64 `json:"hi"`   // first byte after them
	Handle uint64 `json:"handle"`

	State      State      `json:"state"`
	AppliedAt  time.Time  `json:"appliedAt"`
	RevertedAt time.Time  `json:"revertedAt"`
	Kept       string     `json:"kept"` // Inert: why its library is still mapped
	Hooks      Hooks      `json:"hooks"`
	Replaced   []Replaced `json:"replaced"`
}

// Hooks are addresses of functions in a patch library, in the order in which
// they are to be called.
type Hooks struct {
	BeforeApply  []uint64 `json:"beforeApply"`
	AfterApply   []uint64 `json:"afterApply"`
	BeforeRevert []uint64 `json:"beforeRevert"`
	AfterRevert  []uint64 `json:"afterRevert"`
}

// Replaced is one function that a patch replaces, for people and reports: what
// is in memory is told by the sites.
type Replaced struct {
	Function string `json:"function"` // mangled
	Module   string `json:"module"`
	Old      uint64 `json:"old"`
	New      uint64 `json:"new"`
	Method   string `json:"method"`
}

// Island is a page of code slots near a module and the data page with their
// targets.
type Island struct {
	Module  string `json:"module"`
	BuildID string `json:"buildId"`
	Code    uint64 `json:"code"`
	Data    uint64 `json:"data"`
	Used    int    `json:"used"` // slots given away
}

// Function is a function of the target that was replaced at least once. It
// keeps its island slot for the life of the process.
type Function struct {
	Name    string `json:"name"` // mangled
	Module  string `json:"module"`
	BuildID string `json:"buildId"`
	Entry   uint64 `json:"entry"` // unique in this ledger
	Slot    uint64 `json:"slot"`  // its code slot in an island; 0 if it has none
	Size    uint64 `json:"size"`
}

// Site is one place that is rewritten.
type Site struct {
	Addr     uint64   `json:"addr"`
	Kind     SiteKind `json:"kind"`
	Function int      `json:"function"` // index into Functions
	Original []byte   `json:"original"` // before any patch
	Layers   []Layer  `json:"layers"`   // the last one is in force; never empty
}

// Layer is what one patch wants a site to be.
type Layer struct {
	Patch uint64 `json:"patch"` // its ID
	Bytes []byte `json:"bytes"` // as many as Site.Original
}

// Edit is a site with the bytes that must be there before and come after.
type Edit struct {
	Addr uint64   `json:"addr"`
	Kind SiteKind `json:"kind"`
	Old  []byte   `json:"old"`
	New  []byte   `json:"new"` // as many as Old, and different
}

// Txn is an update of the target that is about to be done. The ledger that
// holds it describes the state before, After the state that follows.
type Txn struct {
	Verb    Verb      `json:"verb"`
	Patches []uint64  `json:"patches"`
	Edits   []Edit    `json:"edits"` // exactly the differences between before and After, in writing order
	Started time.Time `json:"started"`
	After   *Ledger   `json:"after"` // has no Txn of its own
}

// Area is memory that is set apart for bodies.
type Area struct {
	Addr uint64 `json:"addr"`
	Len  uint64 `json:"len"`
}

// InForce gives the bytes that memory must have at s.
func (s *Site) InForce() []byte {
	if n := len(s.Layers); n > 0 {
		return s.Layers[n-1].Bytes
	}
	return s.Original
}

// Patch gives the patch with that ID, or nil.
func (l *Ledger) Patch(id uint64) *Patch {
	for i := range l.Patches {
		if l.Patches[i].ID == id {
			return &l.Patches[i]
		}
	}
	return nil
}

// NextID gives an ID that no patch of l has.
func (l *Ledger) NextID() uint64 {
	var last uint64
	for i := range l.Patches {
		last = max(last, l.Patches[i].ID)
	}
	return last + 1
}

// FunctionsAt gives the indexes of all functions, by their entries.
func (l *Ledger) FunctionsAt() map[uint64]int {
	at := make(map[uint64]int, len(l.Functions))
	for i := range l.Functions {
		at[l.Functions[i].Entry] = i
	}
	return at
}

// FunctionAt gives the index of the function with that entry, or -1.
func (l *Ledger) FunctionAt(entry uint64) int {
	for i := range l.Functions {
		if l.Functions[i].Entry == entry {
			return i
		}
	}
	return -1
}
