package patchfile

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
)

// Limits for what a library says of itself, in bytes.
const (
	maxName   = 128
	maxText   = 1024    // description
	maxID     = 64      // CVE identifier
	maxSymbol = 1 << 14 // symbol of the target, function name
)

const (
	elfHeaderSize  = 64
	progHeaderSize = 56
	sectHeaderSize = 64
)

// checkLoadable checks that data is a whole shared object for this machine and
// that loading it would not weaken the target.
func checkLoadable(path string, data []byte) (*elfsym.Image, error) {
	if len(data) == 0 {
		return nil, refuse(path, "patch-empty", "it has 0 bytes")
	}
	if err := checkComplete(path, data); err != nil {
		return nil, err
	}
	im, err := newImage(path, data)
	if err != nil {
		return nil, err
	}
	if err := checkType(path, im); err != nil {
		return nil, err
	}
	for _, seg := range im.Segments() {
		if end := seg.Off + seg.Filesz; seg.Type == elf.PT_LOAD && end > uint64(len(data)) {
			return nil, truncated(path, "the segment", seg.Vaddr, end, len(data))
		}
	}
	if err := im.SectionsErr(); err != nil {
		return nil, damaged(path, err)
	}
	if err := im.DynamicErr(); err != nil {
		return nil, damaged(path, err)
	}
	return im, checkSafe(path, im)
}

// checkComplete finds the end of the tables that the ELF header names. The
// section headers usually stand at the end of the file, so a file that was cut
// short shows here. What is no 64-bit little-endian ELF file is left to elfsym.
func checkComplete(path string, data []byte) error {
	if n := min(len(data), 4); string(data[:n]) != elf.ELFMAG[:n] {
		return nil
	}
	if len(data) < elfHeaderSize {
		return truncated(path, "the ELF header", 0, elfHeaderSize, len(data))
	}
	if elf.Class(data[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Data(data[elf.EI_DATA]) != elf.ELFDATA2LSB {
		return nil
	}
	le := binary.LittleEndian
	size := uint64(len(data))
	phoff, phnum := le.Uint64(data[32:]), uint64(le.Uint16(data[56:]))
	shoff, shnum := le.Uint64(data[40:]), uint64(le.Uint16(data[60:]))
	if phoff > size || phnum*progHeaderSize > size-phoff {
		return truncated(path, "the program header table", phoff, phoff+phnum*progHeaderSize, len(data))
	}
	if shoff > size || shnum*sectHeaderSize > size-shoff {
		return truncated(path, "the section header table", shoff, shoff+shnum*sectHeaderSize, len(data))
	}
	return nil
}

func truncated(path, what string, at, end uint64, size int) *fault.Error {
	return hint(refuse(path, "patch-truncated", "%s at %#x ends at %d, and the file has %d bytes", what, at, end, size),
		"copy or build the file again")
}

// checkType refuses everything that is ELF and not a shared object.
func checkType(path string, im *elfsym.Image) error {
	no := func(why, what string) error {
		return hint(refuse(path, "patch-not-shared-object", "%s", why), what)
	}
	const link = "link it with -shared"
	switch im.Type() {
	case elf.ET_DYN:
	case elf.ET_REL:
		return no("it is a relocatable object file", link)
	case elf.ET_EXEC:
		return no("it is an executable", link)
	case elf.ET_CORE:
		return no("it is a core dump", "")
	default:
		return no("its ELF type is "+im.Type().String(), link)
	}
	if s, ok := im.Section(".dynamic"); ok && s.Type == elf.SHT_NOBITS {
		return no("it is a separate debug file, without code", "give the library that it belongs to")
	}
	if !im.HasDynamic() {
		return no("it has no dynamic section", link)
	}
	flags, _ := im.DynTag(elf.DT_FLAGS_1)
	if elf.DynFlag1(flags)&elf.DF_1_PIE != 0 || im.Interp() != "" && im.Entry() != 0 {
		return no("it is a position-independent executable", link+", not with -pie")
	}
	return nil
}

// checkSafe refuses what would weaken the target, or what Parse could not see.
func checkSafe(path string, im *elfsym.Image) error {
	// Without section headers, records could be there unseen, and a reference
	// that nobody fills is a null pointer.
	if _, ok := im.Section(".dynsym"); !ok {
		return hint(refuse(path, "patch-damaged", "it has no section headers, so its records cannot be found"),
			"do not remove the section headers; strip keeps them")
	}
	flags, _ := im.DynTag(elf.DT_FLAGS)
	if _, ok := im.DynTag(elf.DT_TEXTREL); ok || elf.DynFlag(flags)&elf.DF_TEXTREL != 0 {
		return hint(refuse(path, "patch-text-relocations", "the loader would have to make its code writable"),
			"compile every file of it with -fPIC")
	}
	stack := elf.PF_X // what the loader assumes if nothing is said (glibc, DEFAULT_STACK_PERMS)
	for _, seg := range im.Segments() {
		switch {
		case seg.Type == elf.PT_GNU_STACK:
			stack = seg.Flags & elf.PF_X
		case seg.Type == elf.PT_LOAD && seg.Flags&(elf.PF_W|elf.PF_X) == elf.PF_W|elf.PF_X:
			return hint(refuse(path, "patch-writable-code", "its segment at %#x is writable and executable", seg.Vaddr),
				"link it without -N and without sections that are both")
		}
	}
	if stack != 0 {
		return hint(refuse(path, "patch-exec-stack", "loading it would make every stack of the target executable"),
			"link it with -z noexecstack; assembler files need .section .note.GNU-stack,\"\",@progbits")
	}
	return nil
}

// badName says what is wrong with the name of a patch, or "".
func badName(name string) string {
	switch {
	case name == "":
		return "is empty"
	case len(name) > maxName:
		return "is longer than 128 bytes"
	case !printable(name, maxName):
		return "has characters that cannot be printed"
	case strings.HasPrefix(name, "-"):
		return "begins with a dash"
	case strings.Contains(name, "@"):
		return "has an @, which separates a name from a version"
	case strings.TrimSpace(name) != name:
		return "begins or ends with a space"
	}
	return ""
}

// CheckName refuses what cannot be the name of a patch: fault "patch-bad-name",
// of kind Usage, since such a name was given by hand.
func CheckName(name string) error {
	why := badName(name)
	if why == "" {
		return nil
	}
	return &fault.Error{Kind: fault.Usage, Code: "patch-bad-name", What: fmt.Sprintf("cannot name a patch %q", name), Why: "the name " + why}
}

// printable reports whether s is valid UTF-8 of at most limit bytes and safe to
// print on a terminal: no control, formatting or unassigned characters.
func printable(s string, limit int) bool {
	if len(s) > limit || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
