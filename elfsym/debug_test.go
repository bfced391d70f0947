package elfsym

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// stripped builds the program with same-named statics, keeps its debug file, and
// strips it.
func stripped(t testing.TB) (dir string, want []uint64) {
	dir = statics(t)
	run(t, dir, "gcc -g -O1 -o prog main.c a.c sub/b.c")
	want = nmSymbols(t, dir, "prog")["helper"]
	run(t, dir, "objcopy --only-keep-debug prog prog.dbg")
	return dir, want
}

// helpers checks that both static functions are found, in the table.
func helpers(t testing.TB, s *Space, table Table, want []uint64) {
	t.Helper()
	found, err := s.Lookup([]string{"helper", "main"})
	if err != nil {
		t.Fatal(err)
	}
	var got []uint64
	for _, sym := range found["helper"] {
		got = append(got, sym.Module.Vaddr(sym.Addr))
		if sym.Table != table {
			t.Errorf("%v is from the %v, want the %v", sym, sym.Table, table)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("helper: %x, nm says %x", got, want)
	}
}

func TestDebugByBuildID(t *testing.T) {
	t.Parallel()
	dir, want := stripped(t)
	run(t, dir, "strip --strip-all prog")
	id := openImage(t, filepath.Join(dir, "prog")).BuildID().String()
	debug := filepath.Join(dir, "debugdir")
	sub := filepath.Join(debug, ".build-id", id[:2])
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "cp prog.dbg "+filepath.Join(sub, id[2:]+".debug"))
	p := live(t, dir, "./prog")
	helpers(t, space(t, p, debug), DebugFile, want)
	s := space(t, p, debug)
	if sym := one(t, s, "a.c:helper"); sym.File != "a.c" {
		t.Errorf("%+v", sym)
	}

	// Without the directory they are not found, and the hint says why.
	_, err := space(t, p).One(query(t, "helper"), nil)
	if e := wantCode(t, err, "no-symbol"); !strings.Contains(e.Hint, "stripped") {
		t.Errorf("hint: %q", e.Hint)
	}

	// A debug file of another build in its place is not used.
	run(t, dir, "gcc -g -O2 -o other main.c a.c sub/b.c")
	run(t, dir, "cp other "+filepath.Join(sub, id[2:]+".debug"))
	_, err = space(t, p, debug).One(query(t, "helper"), nil)
	if e := wantCode(t, err, "no-symbol"); !strings.Contains(e.Hint, "build-id") || !strings.Contains(e.Hint, id) {
		t.Errorf("hint: %q", e.Hint)
	}
	// Nor is a FIFO, on which opening would wait.
	if err := os.Remove(filepath.Join(sub, id[2:]+".debug")); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "mkfifo "+filepath.Join(sub, id[2:]+".debug"))
	_, err = space(t, p, debug).One(query(t, "helper"), nil)
	wantCode(t, err, "no-symbol")
}

func TestDebugLink(t *testing.T) {
	t.Parallel()
	for _, place := range []string{"", ".debug"} {
		for _, id := range []string{"sha1", "none"} {
			t.Run("dir "+place+" build-id "+id, func(t *testing.T) {
				t.Parallel()
				dir := statics(t)
				run(t, dir, "gcc -g -O1 -Wl,--build-id="+id+" -o prog main.c a.c sub/b.c")
				want := nmSymbols(t, dir, "prog")["helper"]
				run(t, dir, "objcopy --only-keep-debug prog prog.dbg")
				run(t, dir, "objcopy --strip-all --add-gnu-debuglink=prog.dbg prog")
				target := filepath.Join(dir, place, "prog.dbg")
				if place != "" {
					run(t, dir, "mkdir "+place)
					run(t, dir, "mv prog.dbg "+place)
				}
				p := live(t, dir, "./prog")
				helpers(t, space(t, p), DebugFile, want)

				// One more byte at the end harms no symbol, but the CRC is wrong.
				f, err := os.OpenFile(target, os.O_APPEND|os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				f.WriteString("x")
				f.Close()
				_, err = space(t, p).One(query(t, "helper"), nil)
				if e := wantCode(t, err, "no-symbol"); !strings.Contains(e.Hint, "CRC") {
					t.Errorf("hint: %q", e.Hint)
				}
			})
		}
	}
}

func TestDebugData(t *testing.T) {
	t.Parallel()
	needs(t, "xz")
	for _, check := range []string{"crc32", "crc64", "sha256", "none"} {
		t.Run(check, func(t *testing.T) {
			t.Parallel()
			dir, want := stripped(t)
			run(t, dir, "objcopy -S --remove-section .gdb_index --remove-section .comment --keep-symbol=helper prog.dbg mini")
			run(t, dir, "xz --check="+check+" mini")
			run(t, dir, "strip --strip-all prog")
			run(t, dir, "objcopy --add-section .gnu_debugdata=mini.xz prog")
			s := liveSpace(t, dir, "./prog")
			helpers(t, s, DebugData, want)
		})
	}
}

// TestDebugDataDamaged: a broken .gnu_debugdata is not used and the hint says so.
func TestDebugDataDamaged(t *testing.T) {
	t.Parallel()
	needs(t, "xz")
	dir, _ := stripped(t)
	run(t, dir, "objcopy -S --keep-symbol=helper prog.dbg mini")
	run(t, dir, "xz mini")
	packed, err := os.ReadFile(filepath.Join(dir, "mini.xz"))
	if err != nil {
		t.Fatal(err)
	}
	packed[len(packed)/2] ^= 1
	if err := os.WriteFile(filepath.Join(dir, "mini.xz"), packed, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "strip --strip-all prog")
	run(t, dir, "objcopy --add-section .gnu_debugdata=mini.xz prog")
	_, err = liveSpace(t, dir, "./prog").One(query(t, "helper"), nil)
	if e := wantCode(t, err, "no-symbol"); !strings.Contains(e.Hint, "compressed symbols") {
		t.Errorf("hint: %q", e.Hint)
	}
}

func TestUnpackXZ(t *testing.T) {
	t.Parallel()
	needs(t, "xz")
	plain := bytes.Repeat([]byte("hotpatch "), 300_000)
	for _, args := range []string{"-0", "-6", "-9", "--block-size=100000", "--check=sha256 -T2 --block-size=300000", "--lzma2=dict=4KiB"} {
		cmd := exec.Command("xz", append(strings.Fields(args), "-c")...)
		cmd.Stdin = bytes.NewReader(plain)
		packed, err := cmd.Output()
		if err != nil {
			t.Fatalf("xz %s: %v", args, err)
		}
		got, err := unpackXZ(packed, int64(len(plain)))
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("xz %s: %d bytes, %v", args, len(got), err)
		}
		_, err = unpackXZ(packed, int64(len(plain))-1)
		wantCode(t, err, "damaged-xz")
		for _, n := range []int{0, 5, 12, 20, 40, len(packed) / 2} {
			_, err := unpackXZ(packed[:min(n, len(packed)-30)], int64(len(plain)))
			wantCode(t, err, "damaged-xz")
		}
	}
	// A window of 1.5 GiB is refused before any memory is taken for it.
	cmd := exec.Command("xz", "--lzma2=dict=1536MiB", "-c")
	cmd.Stdin = strings.NewReader("x")
	packed, err := cmd.Output()
	if err != nil {
		t.Skipf("xz cannot make such a file here: %v", err)
	}
	_, err = unpackXZ(packed, 1<<20)
	wantCode(t, err, "damaged-xz")
}
