package elfsym

import (
	"debug/elf"
	"encoding/binary"
)

// gnuHash is the hash table by which the dynamic linker finds what a file exports
// (DT_GNU_HASH, as GNU ld has written it since 2006): a Bloom filter of 64-bit words,
// buckets with the index of their first symbol, and for each symbol from first on the
// hash of its name, whose lowest bit says that it is the last one of its bucket. A name
// takes a few reads of some bytes, where a symbol table and its strings have hundreds
// of kilobytes.
type gnuHash struct {
	buckets, first, words, shift uint32
	filter, bucket, chain        uint64 // addresses
	symbols                      uint64 // DT_SYMTAB
}

// hashHead reads the head of the table. ok is false if the file has none.
func (im *Image) hashHead() (g gnuHash, ok bool, err error) {
	at, ok := im.dynAddr(elf.DT_GNU_HASH)
	if !ok {
		return g, false, nil
	}
	b, err := im.few(at, 16)
	if err != nil {
		return g, false, err
	}
	le := binary.LittleEndian
	g = gnuHash{buckets: le.Uint32(b), first: le.Uint32(b[4:]), words: le.Uint32(b[8:]), shift: le.Uint32(b[12:])}
	g.filter = at + 16
	g.bucket = g.filter + 8*uint64(g.words)
	g.chain = g.bucket + 4*uint64(g.buckets)
	return g, true, nil
}

// gnuHash gives the table for looking up names. ok is false if the file has none that can be
// used for that.
func (im *Image) gnuHash() (g gnuHash, ok bool) {
	g, ok, err := im.hashHead()
	symbols, have := im.dynAddr(elf.DT_SYMTAB)
	if ent, given := im.DynTag(elf.DT_SYMENT); !ok || err != nil || !have || given && ent != symSize {
		return g, false
	}
	g.symbols = symbols
	return g, g.buckets > 0 && g.words > 0 && g.words&(g.words-1) == 0 && g.shift < 32
}

// gnuHashCount gives one more than the highest symbol index that the table names; 0 if there
// is no table.
func (im *Image) gnuHashCount() (uint32, error) {
	g, ok, err := im.hashHead()
	if !ok || err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	b, err := im.bytesAt(g.bucket, uint64(g.buckets)*4, maxSmall)
	if err != nil {
		return 0, err
	}
	last := uint32(0)
	for ; len(b) > 0; b = b[4:] {
		last = max(last, le.Uint32(b))
	}
	if last < g.first {
		return g.first, nil
	}
	// Each chain ends with a word whose lowest bit is set.
	for ; last < maxTable/symSize; last++ {
		w, err := im.few(g.chain+uint64(last-g.first)*4, 4)
		if err != nil {
			break
		}
		if w[0]&1 != 0 {
			return last + 1, nil
		}
	}
	return 0, im.damaged("its symbol hash table at %#x does not end", g.filter-16)
}

// hashOf is the hash function of DT_GNU_HASH: Bernstein's.
func hashOf(name string) uint32 {
	h := uint32(5381)
	for i := range len(name) {
		h = h*33 + uint32(name[i])
	}
	return h
}

// maxExports bounds how many symbols of one bucket are looked at: a damaged chain has
// no end.
const maxExports = 1 << 16

// exported gives the entries of .dynsym that the dynamic linker could find by this
// name, in all versions. What they refer to may be kept. A table that contradicts
// itself is fault "damaged-elf".
func (im *Image) exported(g gnuHash, name string) (list []Sym, err error) {
	h := hashOf(name)
	le := binary.LittleEndian
	b, err := im.few(g.filter+8*uint64(h/64&(g.words-1)), 8)
	if err != nil {
		return nil, err
	}
	if word := le.Uint64(b); word>>(h%64)&1 == 0 || word>>(h>>g.shift%64)&1 == 0 {
		return nil, nil
	}
	if b, err = im.few(g.bucket+4*uint64(h%g.buckets), 4); err != nil {
		return nil, err
	}
	i := le.Uint32(b)
	if i < g.first {
		return nil, nil // an empty bucket
	}
	for range maxExports {
		if b, err = im.few(g.chain+4*uint64(i-g.first), 4); err != nil {
			return nil, err
		}
		hash := le.Uint32(b)
		if hash|1 == h|1 {
			s, ok, err := im.exportNamed(g, i, name)
			if err != nil {
				return nil, err
			}
			if ok && s.Section != elf.SHN_UNDEF {
				list = append(list, s)
			}
		}
		if hash&1 != 0 {
			return list, nil
		}
		i++
	}
	return nil, im.damaged("its symbol hash table at %#x does not end", g.filter-16)
}

// exportNamed reads an entry of .dynsym. ok is false if it has another name.
func (im *Image) exportNamed(g gnuHash, i uint32, name string) (s Sym, ok bool, err error) {
	b, err := im.few(g.symbols+symSize*uint64(i), symSize)
	if err != nil {
		return s, false, err
	}
	fillSym(&s, i, b)
	if im.dynString(uint64(binary.LittleEndian.Uint32(b))) != name {
		return s, false, nil
	}
	s.Name = []byte(name)
	s.Version, s.Hidden = im.symbolVersion(i)
	return s, true, nil
}

// few reads some bytes at an address; they are to be used before the next call.
func (im *Image) few(vaddr uint64, n int) ([]byte, error) {
	b := im.scratch[:n]
	if err := im.ReadVaddr(b, vaddr); err != nil {
		return nil, im.damaged("a table at %#x is not in a segment", vaddr)
	}
	return b, nil
}
