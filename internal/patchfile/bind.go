package patchfile

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"
	"strings"

	"hotpatch/elfsym"
)

// Image is a build of a program or library that a patch is bound to: addresses
// in it were fixed when the patch was made, and no symbol is looked up.
type Image struct {
	Number  uint32 // by which records refer to it, from 1 up
	BuildID elfsym.BuildID
	Module  string // its name, for people
}

// BindKind says what a place of the library gets. S is the address of what it
// refers to, A the addend, P the address of the place itself (the letters of the
// x86-64 psABI, 4.4.1).
type BindKind uint32

// The kinds, as they are in records.
const (
	BindAbs64  BindKind = 1 // S + A, 8 bytes
	BindPC32   BindKind = 2 // S + A - P, 4 bytes with sign
	BindPC64   BindKind = 3 // S + A - P, 8 bytes
	BindAbs32  BindKind = 4 // S + A, 4 bytes without sign
	BindAbs32S BindKind = 5 // S + A, 4 bytes with sign
)

// Bind is a place of the library that is filled with a value made of an address
// in the target, before anything of the patch runs: a relocation that no linker
// can make, since what it refers to has no symbol there.
type Bind struct {
	Place  uint64 // link-time address in the library
	Kind   BindKind
	Image  uint32 // Image.Number; 0: the library itself
	Addr   uint64 // link-time address in that image
	Addend int64
	Symbol string // what is there, for people; may be empty
}

// Size is the number of bytes that a kind writes.
func (k BindKind) Size() int {
	if k == BindAbs64 || k == BindPC64 {
		return 8
	}
	return 4
}

// Relative reports whether the value depends on the place.
func (k BindKind) Relative() bool { return k == BindPC32 || k == BindPC64 }

// Near reports whether the value has room only if the place, or what it refers
// to, lies where 32 bits reach.
func (k BindKind) Near() bool { return k.Size() == 4 }

// String is the name of the kind as the psABI spells it.
func (k BindKind) String() string {
	return map[BindKind]string{BindAbs64: "ABS64", BindPC32: "PC32", BindPC64: "PC64", BindAbs32: "ABS32", BindAbs32S: "ABS32S"}[k]
}

// Encode gives the bytes for the place, which is at address place in the target
// while what it refers to is at address sym. ok is false if the value has no room.
func (b *Bind) Encode(place, sym uint64) (value []byte, ok bool) {
	v := sym + uint64(b.Addend)
	if b.Kind.Relative() {
		v -= place
	}
	switch b.Kind {
	case BindAbs64, BindPC64:
		return binary.LittleEndian.AppendUint64(nil, v), true
	case BindPC32, BindAbs32S:
		ok = int64(v) >= math.MinInt32 && int64(v) <= math.MaxInt32
	case BindAbs32:
		ok = v <= math.MaxUint32
	}
	return binary.LittleEndian.AppendUint32(nil, uint32(v)), ok
}

// maxImages is the greatest number of an image.
const maxImages = 255

// userEnd is the end of the addresses that a program can have (four-level page
// tables).
const userEnd = 1 << 47

func (p *Patch) takeImage(r record) error {
	id, err := p.buildID(r.offset, r.text[0])
	if err != nil {
		return err
	}
	if r.text[1] == "" || !printable(r.text[1], maxSymbol) || r.value == 0 || r.value > maxImages {
		return p.badRecord(r.offset, "the image number %d has an empty name, or one that cannot be printed, or that number", r.value)
	}
	for _, im := range p.Images {
		if uint64(im.Number) == r.value || im.BuildID.Equal(id) {
			return p.badRecord(r.offset, "two records describe the image with build-id %s, or number %d", id, r.value)
		}
	}
	p.Images = append(p.Images, Image{Number: uint32(r.value), BuildID: id, Module: r.text[1]})
	return nil
}

func (p *Patch) takeBind(typ uint32, r record) error {
	b := Bind{Place: r.pointer, Kind: BindKind(r.kind)}
	if typ == typeBindOwn {
		b.Addr = r.words[0]
		if b.Kind != BindAbs64 && b.Kind != BindAbs32 && b.Kind != BindAbs32S {
			return p.badRecord(r.offset, "a place refers to the library itself by kind %d", r.kind)
		}
	} else {
		b.Addr, b.Addend, b.Symbol = r.value, int64(r.words[1]), r.text[0]
		if b.Kind < BindAbs64 || b.Addr >= userEnd || !printable(b.Symbol, maxSymbol) || r.words[0] == 0 || r.words[0] > maxImages {
			return p.badRecord(r.offset, "a place refers to %#x of image %d by kind %d, under a name of %d bytes", b.Addr, r.words[0], r.kind, len(b.Symbol))
		}
		b.Image = uint32(r.words[0])
	}
	p.Binds = append(p.Binds, b)
	return nil
}

// takeReplaceCode takes in a replacement of a function that is known by its
// code.
func (p *Patch) takeReplaceCode(r record) error {
	if err := p.checkCode(r, "a new function"); err != nil {
		return err
	}
	const most = 64 << 20 // more than any function has
	re := Replacement{New: Function{Addr: r.pointer}, OldAddr: r.value, OldImage: uint32(r.words[0]), OldSize: r.words[1], OldNames: strings.Fields(r.text[0])}
	sum, err := hex.DecodeString(r.text[1])
	switch {
	case err != nil || len(sum) != len(re.OldSHA256):
		return p.badRecord(r.offset, "the checksum of a function to replace is %.100q", r.text[1])
	case len(re.OldNames) == 0 || !printable(r.text[0], maxSymbol):
		return p.badRecord(r.offset, "the names of a function to replace are missing, too long or cannot be printed")
	case r.value == 0 || r.value >= userEnd || re.OldSize == 0 || re.OldSize > most || r.words[0] == 0 || r.words[0] > maxImages:
		return p.badRecord(r.offset, "a function to replace is at %#x, with %d bytes, in image %d", r.value, re.OldSize, r.words[0])
	}
	copy(re.OldSHA256[:], sum)
	p.Replacements = append(p.Replacements, re)
	return nil
}

func (p *Patch) takeNote(r record) error {
	if r.text[0] == "" || !printable(r.text[0], maxText) {
		return p.badRecord(r.offset, "a note is empty, longer than %d bytes or cannot be printed", maxText)
	}
	switch r.kind {
	case 1:
		p.Overrides = append(p.Overrides, r.text[0])
	case 2:
		p.Builder = r.text[0]
	default:
		return p.badRecord(r.offset, "a note is of unknown kind %d", r.kind)
	}
	return nil
}

// checkBinds checks what can only be checked when all records are there: that
// the images exist, that no function is replaced twice, and that places lie in
// the file and do not overlap.
func (p *Patch) checkBinds() error {
	ids := make(map[uint32]elfsym.BuildID)
	for _, im := range p.Images {
		ids[im.Number] = im.BuildID
	}
	for i := range p.Replacements {
		re := &p.Replacements[i]
		if re.OldImage == 0 {
			continue
		}
		if re.OldBuildID = ids[re.OldImage]; re.OldBuildID == nil {
			return p.badReplacement(0, "a function at %#x of image %d is replaced, and there is no such image", re.OldAddr, re.OldImage)
		}
		key := oldKey(re)
		if p.seen[key] {
			return p.badReplacement(0, "two records replace the same function, %.200s", key)
		}
		p.seen[key] = true
	}
	slices.SortFunc(p.Binds, func(a, b Bind) int { return cmp.Compare(a.Place, b.Place) })
	segments := p.Image.Segments()
	var end uint64
	for _, b := range p.Binds {
		size := uint64(b.Kind.Size())
		switch {
		case b.Image != 0 && ids[b.Image] == nil:
			return p.badRecord(0, "the place at %#x refers to image %d, and there is none", b.Place, b.Image)
		case b.Image == 0 && !slices.ContainsFunc(segments, func(s elf.ProgHeader) bool {
			return s.Type == elf.PT_LOAD && s.Vaddr <= b.Addr && b.Addr-s.Vaddr <= s.Memsz
		}):
			return p.badRecord(0, "the place at %#x refers to %#x, which is not in the library", b.Place, b.Addr)
		case !slices.ContainsFunc(segments, func(s elf.ProgHeader) bool {
			return s.Type == elf.PT_LOAD && s.Vaddr <= b.Place && b.Place-s.Vaddr < s.Filesz && s.Filesz-(b.Place-s.Vaddr) >= size
		}):
			return p.badRecord(0, "the place at %#x is not within the file", b.Place)
		case b.Place < end:
			return p.badRecord(0, "two places that overlap are at %#x", b.Place)
		}
		end = b.Place + size
	}
	return nil
}
