package testtarget

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Snapshot is the content of a process's memory: for every mapping, named by
// its addresses, permissions and file, the SHA-256 of its bytes.
type Snapshot map[string][32]byte

// TextSnapshot reads the mappings that cannot be written: code, constants and
// what the dynamic linker protected after relocation, such as vtables. Nothing
// in a running process changes them but a patch (and dlopen, which adds some).
func TextSnapshot(t testing.TB, pid int) Snapshot {
	t.Helper()
	return snapshot(t, pid, func(perms string) bool { return perms[0] == 'r' && perms[1] == '-' })
}

// FullSnapshot reads every readable mapping. Two of them are equal only if the
// process ran nothing in between: use it on targets that sleep.
func FullSnapshot(t testing.TB, pid int) Snapshot {
	t.Helper()
	return snapshot(t, pid, func(perms string) bool { return perms[0] == 'r' })
}

func snapshot(t testing.TB, pid int, take func(perms string) bool) Snapshot {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()

	s := make(Snapshot)
	for line := range strings.Lines(string(maps)) {
		// address perms offset dev inode pathname; the last may be missing and
		// may hold spaces.
		fields := strings.Fields(line)
		if len(fields) < 5 || !take(fields[1]) {
			continue
		}
		name := strings.Join(fields[5:], " ")
		if strings.HasPrefix(name, "[vvar") || name == "[vsyscall]" {
			continue // the kernel's own data, which changes by itself or cannot be read
		}
		from, to, _ := strings.Cut(fields[0], "-")
		start, err := strconv.ParseUint(from, 16, 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		end, err := strconv.ParseUint(to, 16, 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(mem, int64(start), int64(end-start))); err != nil {
			t.Fatalf("read %s of process %d: %v", strings.TrimSpace(line), pid, err)
		}
		s[strings.TrimSpace(fields[0]+" "+fields[1]+" "+name)] = [32]byte(h.Sum(nil))
	}
	return s
}

// Diff says how after differs from before: one line for every mapping that was
// added, removed or has another content; none if they are equal.
func Diff(before, after Snapshot) []string {
	var diff []string
	for name, sum := range before {
		if got, ok := after[name]; !ok {
			diff = append(diff, "removed "+name)
		} else if got != sum {
			diff = append(diff, "changed "+name)
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			diff = append(diff, "added "+name)
		}
	}
	slices.Sort(diff)
	return diff
}
