package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/ianlancetaylor/demangle"
	"golang.org/x/arch/x86/x86asm"
)

// functions are the functions of all objects below a directory, by object and name.
type functions map[string]code

// code is a function as the judge compares it: the bytes without what relocations fill in,
// and what these refer to, by name or content.
type code struct {
	text []byte
	refs []string
}

// numbers are what compilers append to names.
var numbers = regexp.MustCompile(`\.(\d+|(isra|part|constprop|cold|lto_priv)(\.\d+)?)`)

// plain is a name without what compilers append.
func plain(name string) string { return numbers.ReplaceAllString(name, "") }

func functionsOf(tree string) (functions, error) {
	all := make(functions)
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".o" {
			return err
		}
		rel, err := filepath.Rel(tree, path)
		if err != nil {
			return err
		}
		return all.add(path, rel)
	})
	return all, err
}

// add adds the functions of an object that have a section of their own.
func (all functions) add(path, rel string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		return nil // an object without symbols has no functions
	}
	relocations := make(map[uint32]*elf.Section)
	for _, s := range f.Sections {
		if s.Type == elf.SHT_RELA {
			relocations[s.Info] = s
		}
	}
	for _, s := range symbols {
		i := int(s.Section)
		if elf.ST_TYPE(s.Info) != elf.STT_FUNC || i == 0 || i >= len(f.Sections) || !strings.HasPrefix(f.Sections[i].Name, ".text") {
			continue
		}
		text, err := f.Sections[i].Data()
		if err != nil || s.Value+s.Size > uint64(len(text)) {
			return fmt.Errorf("%s: function %s: %v", path, s.Name, err)
		}
		c := code{text: bytes.Clone(text[s.Value : s.Value+s.Size])}
		if r := relocations[uint32(i)]; r != nil {
			if err := c.relocate(f, symbols, r, s.Value); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		all[rel+" "+s.Name] = c
	}
	return nil
}

// relocate clears what relocations fill in, and notes what they refer to.
func (c *code) relocate(f *elf.File, symbols []elf.Symbol, r *elf.Section, start uint64) error {
	data, err := r.Data()
	if err != nil {
		return err
	}
	for ; len(data) >= 24; data = data[24:] {
		at := binary.LittleEndian.Uint64(data) - start
		info := binary.LittleEndian.Uint64(data[8:])
		addend := int64(binary.LittleEndian.Uint64(data[16:]))
		if at >= uint64(len(c.text)) {
			continue
		}
		kind := elf.R_X86_64(uint32(info))
		clear(c.text[at:min(at+4, uint64(len(c.text)))])
		target := "nothing"
		if n := info >> 32; n > 0 {
			target = targetOf(f, symbols[n-1], kind, addend)
		}
		c.refs = append(c.refs, fmt.Sprintf("%#x %v %s", at, kind, target))
	}
	return nil
}

// targetOf describes what a relocation refers to: a string by its content, and everything
// else by name.
func targetOf(f *elf.File, s elf.Symbol, kind elf.R_X86_64, addend int64) string {
	// The assembler keeps the compiler's own labels of strings and constants.
	if elf.ST_TYPE(s.Info) != elf.STT_SECTION && (!strings.HasPrefix(s.Name, ".L") || int(s.Section) >= len(f.Sections)) {
		return fmt.Sprintf("%s%+d", plain(s.Name), addend)
	}
	section := f.Sections[s.Section]
	if section.Flags&elf.SHF_STRINGS != 0 {
		at := int64(s.Value) + addend
		if kind == elf.R_X86_64_PC32 {
			at += 4 // no instruction that refers to a string has an immediate after it
		}
		if data, err := section.Data(); err == nil && at >= 0 && at < int64(len(data)) {
			text, _, _ := bytes.Cut(data[at:], []byte{0})
			return fmt.Sprintf("%q", text)
		}
	}
	if strings.HasPrefix(section.Name, ".rodata") {
		return "constant" // where it is says nothing; what it has, the judge does not see
	}
	return fmt.Sprintf("%s%+d", plain(section.Name), addend)
}

// difference gives the plain names of the functions that differ; "lines" are those that do
// only in immediate values which may be line numbers; added ones are in post only.
func difference(pre, post functions) (changed, lines, added []string) {
	differ, line, more := make(map[string]bool), make(map[string]bool), make(map[string]bool)
	for key, b := range post {
		_, name, _ := strings.Cut(key, " ")
		a, there := pre[key]
		switch {
		case !there:
			more[plain(name)] = true
		case bytes.Equal(a.text, b.text) && slices.Equal(a.refs, b.refs):
		case slices.Equal(a.refs, b.refs) && onlyLines(a.text, b.text):
			line[plain(name)] = true
		default:
			differ[plain(name)] = true
		}
	}
	// A piece with another number is no new function.
	for key := range pre {
		_, name, _ := strings.Cut(key, " ")
		if p := plain(name); more[p] && p != "" {
			delete(more, p)
			differ[p] = true
		}
	}
	for name := range differ {
		delete(line, name)
	}
	return slices.Sorted(maps.Keys(differ)), slices.Sorted(maps.Keys(line)), slices.Sorted(maps.Keys(more))
}

// absorbed reports whether a function of pre, by its plain name, is no more in post as it
// was named, and all that referred to it are among some others, demangled: where those are replaced,
// nobody calls it. (What data refers to would still be there.)
func absorbed(pre, post functions, name string, others []string) bool {
	was := ""
	for key := range pre {
		if _, n, _ := strings.Cut(key, " "); plain(n) != name {
			continue
		} else if _, still := post[key]; still || was != "" {
			return false
		}
		was = key
	}
	object, _, _ := strings.Cut(was, " ")
	users := 0
	for key, c := range pre {
		if !slices.ContainsFunc(c.refs, func(ref string) bool {
			// A static function that has a section of its own can be named by that.
			_, target, _ := strings.Cut(ref, " R_")
			_, target, _ = strings.Cut(target, " ")
			rest, is := strings.CutPrefix(strings.TrimPrefix(target, ".text."), name)
			return is && rest != "" && strings.ContainsRune("+-", rune(rest[0]))
		}) {
			continue
		}
		at, user, _ := strings.Cut(key, " ")
		if at != object || !slices.Contains(others, demangle.Filter(plain(user))) {
			return false
		}
		users++
	}
	return users > 0
}

// onlyLines says that two codes differ in small immediate values at most.
func onlyLines(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for len(a) > 0 {
		x, err := x86asm.Decode(a, 64)
		if err != nil {
			return false
		}
		y, err := x86asm.Decode(b, 64)
		if err != nil || x.Len != y.Len || x.Op != y.Op {
			return false
		}
		for i := range x.Args {
			m, is := x.Args[i].(x86asm.Imm)
			n, too := y.Args[i].(x86asm.Imm)
			if x.Args[i] == y.Args[i] || is && too && m > 0 && n > 0 && m < 1<<16 && n < 1<<16 && max(m, n)-min(m, n) < 1000 {
				continue
			}
			return false
		}
		a, b = a[x.Len:], b[x.Len:]
	}
	return true
}
