package objdiff

import (
	"debug/elf"
	"os"
	"slices"
	"strings"
	"testing"

	"hotpatch/internal/objfile"
)

// TestEveryByteCounts changes each byte of functions, constants and variables that
// no relocation overwrites, one at a time: not one of these changes may be taken
// for none.
func TestEveryByteCounts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ flags, name string }{
		{"gcc -O2 -fPIE", "broad.c"}, {"gcc -O0 -fno-pie", "broad.c"}, {"clang -O2 -fPIC", "broad.c"}, {"gcc -O2 -fPIC", "broad.cc"},
	} {
		t.Run(c.flags+" "+c.name, func(t *testing.T) {
			t.Parallel()
			if testing.Short() && (c.name != "broad.c" || c.flags != "gcc -O2 -fPIE") {
				t.Skip("-short: one object only")
			}
			pre := compile(t, c.flags+sections, c.name, read(t, c.name))
			tries := 200 // in each section
			if c.name == "broad.cc" && os.Getenv("HOTPATCH_TEST_ALL") != "1" {
				tries = 30 // it has hundreds of them
			}
			tried := 0
			for _, s := range pre.Sections {
				step := len(s.Data)/tries + 1
				for at := 0; at < len(s.Data); at += step {
					if !counts(pre, s, uint64(at)) {
						continue
					}
					tried++
					data := slices.Clone(pre.Data)
					data[s.Offset+uint64(at)] ^= 0x11
					post, err := objfile.Parse("changed.o", data)
					if err != nil {
						continue // such as a frame that makes no sense any more
					}
					if d, err := Compare(pre, post, Options{}); err == nil && d.Empty() {
						t.Errorf("%s+0x%x: a change that makes no difference", s.Name, at)
					}
				}
			}
			if tried < 500 {
				t.Errorf("only %d bytes tried", tried)
			}
		})
	}
}

// counts reports whether a byte means something: it is part of a function or a
// variable, of a string or of an exception table, and no relocation writes it.
func counts(o *objfile.Object, s *objfile.Section, at uint64) bool {
	if s.Flags&elf.SHF_ALLOC == 0 || s.Name == ".eh_frame" || strings.HasPrefix(s.Name, ".note") {
		return false
	}
	for _, r := range s.Relocs {
		if at >= r.Off && at < r.Off+uint64(r.Width()) {
			return false
		}
	}
	if s.Flags&elf.SHF_STRINGS != 0 || isFrameData(s) {
		return true
	}
	y := s.At(int64(at))
	return y != nil && at >= y.Value && at < y.Value+y.Size
}
