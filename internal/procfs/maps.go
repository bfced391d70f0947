package procfs

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"

	"hotpatch/internal/fault"
)

// Perm is what the kernel allows on a mapping.
type Perm uint8

// The bits of Perm.
const (
	Read Perm = 1 << iota
	Write
	Exec
	Shared // MAP_SHARED; without it the mapping is private (copy on write)
)

// String gives the four letters of /proc/PID/maps, such as "r-xp".
func (p Perm) String() string {
	s := []byte("---p")
	if p&Read != 0 {
		s[0] = 'r'
	}
	if p&Write != 0 {
		s[1] = 'w'
	}
	if p&Exec != 0 {
		s[2] = 'x'
	}
	if p&Shared != 0 {
		s[3] = 's'
	}
	return string(s)
}

// Map is one line of /proc/PID/maps: the half-open range [Start, End) of
// addresses and what is mapped there.
type Map struct {
	Start, End uint64
	Perm       Perm
	Offset     uint64 // in the file, in bytes
	DevMajor   uint32
	DevMinor   uint32
	Inode      uint64 // 0: no file

	// Path is the file as seen from the reader's root directory, without the
	// kernel's " (deleted)" mark, or a name in brackets such as "[stack]". The
	// kernel does not escape backslashes, so a name that really holds the four
	// characters \012 cannot be told from one with a newline, nor a name that
	// really ends in " (deleted)" from a deleted file: Path is for people and
	// for a first guess, Inode is what identifies a file.
	Path    string
	Deleted bool
}

// Contains reports whether addr lies in the mapping.
func (m Map) Contains(addr uint64) bool { return m.Start <= addr && addr < m.End }

// String formats the mapping as /proc/PID/maps does, without the padding.
func (m Map) String() string {
	s := fmt.Sprintf("%08x-%08x %v %08x %02x:%02x %d", m.Start, m.End, m.Perm, m.Offset, m.DevMajor, m.DevMinor, m.Inode)
	if m.Path != "" {
		s += " " + strings.ReplaceAll(m.Path, "\n", `\012`)
	}
	if m.Deleted {
		s += deletedMark
	}
	return s
}

const deletedMark = " (deleted)"

// ParseMaps parses the whole text of /proc/PID/maps (format: proc_pid_maps(5)).
// It is strict: a line of another form, a line that is cut off, an empty or
// reversed range, and ranges that overlap or are not in ascending order are
// errors (fault "damaged-maps").
func ParseMaps(data []byte) ([]Map, error) {
	maps := make([]Map, 0, bytes.Count(data, []byte{'\n'}))
	var end uint64
	for n := 1; len(data) > 0; n++ {
		line, rest, whole := bytes.Cut(data, []byte{'\n'})
		if !whole {
			return nil, damagedMaps(n, line, "the last line is cut off")
		}
		data = rest
		m, why := parseMap(line)
		if why != "" {
			return nil, damagedMaps(n, line, why)
		}
		if m.Start < end {
			return nil, damagedMaps(n, line, fmt.Sprintf("the range begins before %#x, the end of the one above", end))
		}
		end = m.End
		maps = append(maps, m)
	}
	return maps, nil
}

func damagedMaps(n int, line []byte, why string) error {
	const most = 200
	if len(line) > most {
		line = line[:most]
	}
	return &fault.Error{
		Kind: fault.Failed, Code: "damaged-maps",
		What:  "cannot understand /proc/PID/maps",
		Where: fmt.Sprintf("line %d: %q", n, line),
		Why:   why,
	}
}

// parseMap parses one line; why is empty if it is good.
func parseMap(line []byte) (m Map, why string) {
	start, rest, ok1 := bytes.Cut(line, []byte{'-'})
	end, rest, ok2 := bytes.Cut(rest, []byte{' '})
	perm, rest, ok3 := bytes.Cut(rest, []byte{' '})
	offset, rest, ok4 := bytes.Cut(rest, []byte{' '})
	dev, rest, ok5 := bytes.Cut(rest, []byte{' '})
	inode, path, _ := bytes.Cut(rest, []byte{' '})
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 {
		return m, "there are fewer than five fields"
	}
	major, minor, ok := bytes.Cut(dev, []byte{':'})
	if !ok {
		return m, "the device has no colon"
	}
	var bad string
	num := func(field string, b []byte, base int, max uint64) uint64 {
		// ParseUint accepts underscores only for base 0 and no sign, and so
		// does exactly what the kernel's formats need.
		v, err := strconv.ParseUint(string(b), base, 64)
		if (err != nil || v > max) && bad == "" {
			bad = "the " + field + " is not a number of the right size"
		}
		return v
	}
	m.Start = num("start", start, 16, math.MaxUint64)
	m.End = num("end", end, 16, math.MaxUint64)
	m.Offset = num("offset", offset, 16, math.MaxUint64)
	m.DevMajor = uint32(num("device", major, 16, math.MaxUint32))
	m.DevMinor = uint32(num("device", minor, 16, math.MaxUint32))
	m.Inode = num("inode", inode, 10, math.MaxUint64)
	if bad != "" {
		return m, bad
	}
	if m.Start >= m.End {
		return m, "the range is empty or reversed"
	}
	if len(perm) != 4 {
		return m, "the permissions are not four letters"
	}
	for i, bit := range []Perm{Read, Write, Exec, Shared} {
		switch perm[i] {
		case "rwxs"[i]:
			m.Perm |= bit
		case "---p"[i]:
		default:
			return m, "the permissions have an unknown letter"
		}
	}
	p := string(bytes.TrimLeft(path, " "))
	if p, m.Deleted = strings.CutSuffix(p, deletedMark); p != "" {
		m.Path = strings.ReplaceAll(p, `\012`, "\n")
	} else if m.Deleted {
		return m, "a deleted file has no name"
	}
	return m, ""
}
