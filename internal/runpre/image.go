package runpre

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
)

var le = binary.LittleEndian

// maxLoaded bounds the bytes of an image that are kept in memory.
const maxLoaded = 2 << 30

// Image is an image prepared for matching. It is not safe for concurrent use.
type Image struct {
	file    *elfsym.Image
	name    string // for people
	program bool   // linked as a program, and not as a library
	segs    []segment
	relocs  map[uint64]dynReloc // by place
	places  []uint64            // of relocs, ascending
	copies  map[uint64]string   // copy-relocated variables, by place
	plt     []elfsym.Section

	full   bool // a .symtab is there, so that what it does not have is not there
	locals bool // it has static functions
	names  map[string][]symbol
	// imports are the names that .dynsym has without a definition, with the PLT entry
	// that is the function's address for everybody, or 0 (psABI 5.2, Function Addresses).
	imports map[string]uint64
	tlsSize int64 // distance from the start of the thread-local variables to the thread pointer, in a program
	hasTLS  bool

	starts []uint64 // where functions or their parts may begin, ascending
	index  map[prefix][]uint64
}

// segment is a loaded segment.
type segment struct {
	lo, hi uint64 // link-time addresses
	flags  elf.ProgFlag
	data   []byte // the content of the file: shorter if zeros follow
}

// dynReloc is what the dynamic linker does to a word.
type dynReloc struct {
	typ    elf.R_X86_64
	name   string // empty if it has no symbol
	addend int64
}

// symbol is a symbol of the image.
type symbol struct {
	value, size uint64
	typ         elf.SymType
	bind        elf.SymBind
	file        string // of a static one
}

// Open reads an image; debug are separate debug files for it, of which those
// with another build-id are refused as "build-id". Other faults:
// "image-unreadable", "not-an-image" for what no loader loads, and those of
// elfsym.
func Open(path string, debug ...string) (*Image, error) {
	f, file, err := openELF(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	im := &Image{file: file, name: filepath.Base(path), relocs: make(map[uint64]dynReloc), copies: make(map[uint64]string),
		names: make(map[string][]symbol), imports: make(map[string]uint64)}
	if t := file.Type(); t != elf.ET_EXEC && t != elf.ET_DYN {
		return nil, &fault.Error{Kind: fault.Unfit, Code: "not-an-image", What: "cannot compare with this file", Where: path,
			Why: fmt.Sprintf("its type is %v", t), Hint: "give the program or the library that runs"}
	}
	im.program = file.IsProgram()
	for _, step := range []func() error{im.load, im.dynamic} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	im.places = slices.Sorted(maps.Keys(im.relocs))
	tables := []*elfsym.Image{file}
	for _, d := range debug {
		g, df, err := openELF(d)
		if err != nil {
			return nil, err
		}
		defer g.Close()
		if !df.BuildID().Equal(file.BuildID()) {
			return nil, &fault.Error{Kind: fault.Unfit, Code: "build-id", What: "cannot use the debug file for " + im.name, Where: d,
				Why: fmt.Sprintf("its build-id is %q, that of the image %q", df.BuildID(), file.BuildID())}
		}
		tables = append(tables, df)
	}
	if err := im.symbols(tables); err != nil {
		return nil, err
	}
	im.frames()
	slices.Sort(im.starts)
	im.starts = slices.Compact(im.starts)
	im.makeIndex()
	// What is bound later still reads the file; it must not depend on ours.
	if im.file, err = im.reopen(path); err != nil {
		return nil, err
	}
	return im, nil
}

// HasSymbols reports whether a symbol table, and not only that of what is exported, is known.
func (im *Image) HasSymbols() bool { return im.full }

// Static reports whether the image is a program without a dynamic linker.
func (im *Image) Static() bool { return im.program && im.file.Interp() == "" }

func unreadable(path string, err error) error {
	return &fault.Error{Kind: fault.Unfit, Code: "image-unreadable", What: "cannot read the image", Where: path, Err: err}
}

func openELF(path string) (*os.File, *elfsym.Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, unreadable(path, err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", st.Mode())
	}
	if err != nil {
		f.Close()
		return nil, nil, unreadable(path, err)
	}
	im, err := elfsym.NewImage(f, st.Size())
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	im.SetName(path)
	return f, im, nil
}
