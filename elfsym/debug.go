package elfsym

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// debugRoot is where distributions put separate debug files.
const debugRoot = "/usr/lib/debug"

// Limits for foreign debug data.
const (
	maxDebugData = 256 << 20 // bytes of .gnu_debugdata, unpacked
	maxPacked    = 64 << 20  // bytes of .gnu_debugdata
	maxDebugFile = 16 << 30  // bytes of a debug file whose checksum is computed
)

// debugInfo is the separate symbol table of a stripped module.
type debugInfo struct {
	image *Image // nil: none
	table Table  // DebugFile or DebugData
	path  string
	notes []string // debug files that were found and not used, and why
}

// debugTable finds the symbols of a module without .symtab: the separate debug
// file by build-id, then by .gnu_debuglink, then .gnu_debugdata. The first one
// that is proven to belong to the module is taken. The search is made once.
func (s *Space) debugTable(m *Module) *debugInfo {
	if m.debug != nil {
		return m.debug
	}
	d := &debugInfo{}
	m.debug = d
	if m.Image == nil || m.Kind == VDSO || m.Image.HasSymtab() {
		return d
	}
	if s.debugByID(m, d) || s.debugByLink(m, d) {
		return d
	}
	s.debugByData(m, d)
	return d
}

// debugByID looks for .build-id/xx/yyyy.debug.
func (s *Space) debugByID(m *Module, d *debugInfo) bool {
	id := m.BuildID.String()
	if len(id) < 4 {
		return false
	}
	return s.tryDebug(m, d, path.Join(".build-id", id[:2], id[2:]+".debug"), nil)
}

// debugByLink looks for the file that .gnu_debuglink names, whose content must
// have the CRC-32 given there (GDB manual, "Separate Debug Files").
func (s *Space) debugByLink(m *Module, d *debugInfo) bool {
	sec, ok := m.Image.Section(".gnu_debuglink")
	if !ok {
		return false
	}
	b, err := m.Image.SectionData(sec, pageSize)
	if err != nil {
		d.notes = append(d.notes, "the debug link of "+m.Name+" is damaged")
		return false
	}
	base, _, _ := bytes.Cut(b, []byte{0})
	at := (len(base) + 4) &^ 3
	name := string(base)
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") || len(b) < at+4 {
		d.notes = append(d.notes, "the debug link of "+m.Name+" is damaged")
		return false
	}
	want := binary.LittleEndian.Uint32(b[at:])
	dir := path.Dir(m.Path)
	// The module itself can have the name that its link gives.
	if path.Base(m.Path) != name {
		if s.tryDebugFile(m, d, path.Join(dir, name), &want) {
			return true
		}
	}
	return s.tryDebugFile(m, d, path.Join(dir, ".debug", name), &want) ||
		s.tryDebug(m, d, path.Join(".", dir, name), &want)
}

// tryDebug tries a path relative to a debug directory: in the extra directories,
// then in the standard one of the process and of the host.
func (s *Space) tryDebug(m *Module, d *debugInfo, rel string, crc *uint32) bool {
	for _, dir := range s.debugDirs {
		if f, err := openRegular(filepath.Join(dir, rel)); err == nil && s.useDebug(m, d, f, crc) {
			return true
		}
	}
	return s.tryDebugFile(m, d, path.Join(debugRoot, rel), crc)
}

// tryDebugFile tries one path, as the process sees it and as the host does.
func (s *Space) tryDebugFile(m *Module, d *debugInfo, name string, crc *uint32) bool {
	if f, err := s.proc.OpenInRoot(name); err == nil && s.useDebug(m, d, f, crc) {
		return true
	}
	f, err := openRegular(name)
	return err == nil && s.useDebug(m, d, f, crc)
}

// useDebug takes a debug file if it is proven to be the module's, else it closes
// it and notes why not.
func (s *Space) useDebug(m *Module, d *debugInfo, f *os.File, crc *uint32) bool {
	img, err := checkDebug(f, m, crc)
	if err != nil {
		d.notes = append(d.notes, fmt.Sprintf("the debug file %s is not used: %s", f.Name(), reason(err)))
		f.Close()
		return false
	}
	img.name = f.Name()
	s.files = append(s.files, f)
	d.image, d.table, d.path = img, DebugFile, f.Name()
	return true
}

func checkDebug(f *os.File, m *Module, crc *uint32) (*Image, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	img, err := NewImage(f, st.Size())
	if err != nil {
		return nil, err
	}
	// Without a CRC the build-id is the only proof; with one it must at least
	// not say otherwise.
	if id := img.BuildID(); !id.Equal(m.BuildID) && (crc == nil || len(id) > 0 && len(m.BuildID) > 0) {
		return nil, fmt.Errorf("its build-id is %q, that of %s is %q", id, m.Name, m.BuildID)
	}
	if crc != nil {
		if st.Size() > maxDebugFile {
			return nil, fmt.Errorf("it has %d bytes, and no more than %d are checked", st.Size(), int64(maxDebugFile))
		}
		h := crc32.NewIEEE()
		if _, err := io.Copy(h, io.NewSectionReader(f, 0, st.Size())); err != nil {
			return nil, err
		}
		if h.Sum32() != *crc {
			return nil, fmt.Errorf("its CRC is %08x, the debug link of %s wants %08x", h.Sum32(), m.Name, *crc)
		}
	}
	if !img.HasSymtab() {
		return nil, errors.New("it has no symbol table")
	}
	return img, nil
}

// debugByData unpacks .gnu_debugdata: an xz-compressed ELF file within the
// module, with the function symbols that .dynsym does not have ("MiniDebugInfo"
// in the GDB manual).
func (s *Space) debugByData(m *Module, d *debugInfo) {
	sec, ok := m.Image.Section(".gnu_debugdata")
	if !ok {
		return
	}
	packed, err := m.Image.SectionData(sec, maxPacked)
	if err == nil {
		var data []byte
		if data, err = unpackXZ(packed, maxDebugData); err == nil {
			var img *Image
			if img, err = NewImage(bytes.NewReader(data), int64(len(data))); err == nil {
				img.name = m.Path + " (.gnu_debugdata)"
				d.image, d.table, d.path = img, DebugData, img.name
				return
			}
		}
	}
	d.notes = append(d.notes, fmt.Sprintf("the compressed symbols in %s are not used: %s", m.Name, reason(err)))
}
