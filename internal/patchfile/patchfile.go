package patchfile

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
)

// MaxSize is the greatest size of a patch library in bytes.
const MaxSize = 1 << 30

// Patch is a patch library and all that it says of itself. Addresses are
// link-time addresses in the library.
type Patch struct {
	Path    string // as it was given
	File    string // its base name, in quotes with escapes if it cannot be printed as it is
	Data    []byte // the whole file: what was checked is what is to be loaded
	SHA256  string // of Data, in hexadecimal
	Image   *elfsym.Image
	BuildID elfsym.BuildID // may be empty

	Name        string // never empty; printable
	Version     uint64 // from 1 up
	Description string // may be empty; printable
	CVEs        []string

	// Replacements are the pairs that the patch names. Exports are the global
	// functions that replace those of the same name in the target, without the
	// ones that are named otherwise, kept, or hooks. Weak are the weak ones,
	// which do so only if the user asks for it. Exports and Weak are sorted by
	// name, and each name is there once.
	Replacements []Replacement
	Exports      []Export
	Weak         []Export
	Kept         []Function // never offered, though global

	Bases       []Base
	Refs        []Ref
	Images      []Image // what Binds and Replacements by code refer to
	Binds       []Bind  // ascending places
	Hooks       Hooks
	Consistency Consistency

	Overrides []string // refusals that whoever built the patch has overridden, by name
	Builder   string   // what built it, compiler included; may be empty

	HasRecords bool // false: only the functions it exports say what it is for

	seen map[string]bool // while records are read: what must be there only once
}

// Function is a function of the library.
type Function struct {
	Name string // mangled; "" if the symbol tables do not tell
	Addr uint64
	Size uint64 // in bytes; 0 if the symbol tables do not tell
}

// Replacement is a pair that the patch names: either Old is set, or OldBuildID
// and OldAddr. With OldImage, OldBuildID is that of the image, and the old
// function is known by its code.
type Replacement struct {
	New        Function
	Old        string         // a symbol of the target, as elfsym.ParseQuery takes it
	OldBuildID elfsym.BuildID // of the image that the old function is in
	OldAddr    uint64         // its link-time address there

	OldImage  uint32   // Image.Number, or 0
	OldNames  []string // mangled names of the old function, at least one
	OldSize   uint64   // its size in bytes
	OldSHA256 [32]byte // of these bytes in the image's file
}

// Export is a function that the dynamic linker can see.
type Export struct {
	Function
	Bind elf.SymBind // STB_GLOBAL or STB_WEAK
}

// Base is a build that the patch was made for.
type Base struct {
	Module  string // "": any module in which the patch replaces a function
	BuildID elfsym.BuildID
}

// Ref is a pointer variable of the patch that is to be filled with the address
// of a symbol of the target before anything of the patch runs.
type Ref struct {
	Slot  uint64 // address of the pointer variable, a multiple of 8
	Query string // a symbol of the target, as elfsym.ParseQuery takes it
	Kind  RefKind
}

// RefKind says what the symbol of a Ref must be.
type RefKind uint32

const (
	AnySymbol  RefKind = 0
	FuncSymbol RefKind = 1
	VarSymbol  RefKind = 2
)

// Hooks are functions of type int (void), in the order in which they are to be
// called.
type Hooks struct {
	BeforeApply, AfterApply, BeforeRevert, AfterRevert []Function
}

// Consistency is what the patch asks of the moment of applying.
type Consistency string

const (
	AnyConsistency   Consistency = ""      // nothing is said
	StackConsistency Consistency = "stack" // no thread may run, or return into, a replaced function
	EntryConsistency Consistency = "entry" // no thread may be inside the overwritten bytes
)

// Open reads a patch library, once and whole, and parses it. In addition to
// those of Parse, the faults are "patch-missing", "patch-unreadable",
// "patch-not-regular" (a directory, device, pipe or socket) and
// "patch-too-large".
func Open(path string) (*Patch, error) {
	data, err := Read(path, nil)
	if err != nil {
		return nil, err
	}
	return Parse(path, data)
}

// Read reads a patch library without looking at what is in it. check, if it is not nil,
// may refuse the open file before it is read. Faults: as Open.
func Read(path string, check func(*os.File) error) ([]byte, error) {
	// O_NONBLOCK: opening a pipe without a writer must not hang.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hint(refuse(path, "patch-missing", "there is no such file"), "give the path of a shared object")
	}
	if err != nil {
		return nil, unreadable(path, err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, unreadable(path, err)
	case !st.Mode().IsRegular():
		return nil, refuse(path, "patch-not-regular", "it is not a regular file but %s", st.Mode().Type())
	case st.Size() > MaxSize:
		return nil, refuse(path, "patch-too-large", "it has %d bytes, and at most %d are accepted", st.Size(), MaxSize)
	}
	if check != nil {
		if err := check(f); err != nil {
			return nil, err
		}
	}
	data := make([]byte, st.Size())
	n, err := io.ReadFull(f, data)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, unreadable(path, err)
	}
	return data[:n], nil
}

// Parse checks a patch library and reads what it says of itself. path is only
// for messages and for the name of a patch that does not give one. data must
// not be changed afterwards.
//
// All faults are Unfit: "patch-empty", "patch-truncated", "patch-not-elf",
// "patch-wrong-machine" (also 32-bit), "patch-not-shared-object",
// "patch-damaged", "patch-text-relocations", "patch-exec-stack",
// "patch-writable-code", "patch-bad-record", "patch-bad-name",
// "patch-bad-replacement" and "patch-no-functions".
func Parse(path string, data []byte) (*Patch, error) {
	im, err := checkLoadable(path, data)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	p := &Patch{
		Path:    path,
		File:    printablePath(filepath.Base(path)),
		Data:    data,
		SHA256:  hex.EncodeToString(sum[:]),
		Image:   im,
		BuildID: im.BuildID(),
		Version: 1,
	}
	if err := p.readRecords(); err != nil {
		return nil, err
	}
	if err := p.nameFunctions(); err != nil {
		return nil, err
	}
	if err := p.readExports(); err != nil {
		return nil, err
	}
	if p.Name == "" {
		p.Name = strings.TrimSuffix(filepath.Base(path), ".so")
		if why := badName(p.Name); why != "" {
			return nil, hint(refuse(path, "patch-bad-name", "its file name gives the patch's name, which %s", why),
				"rename the file, or name the patch with HOTPATCH_NAME")
		}
	}
	if len(p.Replacements)+len(p.Exports)+len(p.Weak) == 0 {
		return nil, hint(refuse(path, "patch-no-functions", "it exports no function and names no replacement"),
			"is the new function static, or hidden by -fvisibility? name it with HOTPATCH_REPLACE")
	}
	return p, nil
}

// refuse makes a fault about the patch library.
func refuse(path, code, format string, args ...any) *fault.Error {
	return &fault.Error{Kind: fault.Unfit, Code: code, What: "cannot use the patch library",
		Where: printablePath(path), Why: fmt.Sprintf(format, args...)}
}

// hint adds a hint to e.
func hint(e *fault.Error, text string) *fault.Error {
	e.Hint = text
	return e
}

func unreadable(path string, err error) *fault.Error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err // the path is in the message already
	}
	e := refuse(path, "patch-unreadable", "it cannot be read")
	e.Err = err
	return e
}

// damaged turns an error of elfsym into one that speaks of the patch library.
func damaged(path string, err error) *fault.Error {
	code := "patch-damaged"
	switch fault.CodeOf(err) {
	case "not-elf":
		code = "patch-not-elf"
	case "not-64-bit", "wrong-machine":
		code = "patch-wrong-machine"
	}
	why := err.Error()
	var e *fault.Error
	if errors.As(err, &e) {
		why = e.Why
	}
	r := refuse(path, code, "%s", why)
	r.Err = errors.Unwrap(err)
	return r
}

func printablePath(path string) string {
	if printable(path, len(path)) {
		return path
	}
	return strconv.Quote(path)
}

// newImage parses data as ELF and gives the image the path for messages.
func newImage(path string, data []byte) (*elfsym.Image, error) {
	im, err := elfsym.NewImage(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, damaged(path, err)
	}
	im.SetName(printablePath(path))
	return im, nil
}
