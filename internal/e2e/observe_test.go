package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hotpatch/internal/testtarget"
	"maps"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// processState is what list and verify say of a process, as far as the tests
// look at it.
type processState struct {
	PID     int
	Program string
	Patches []struct {
		Name    string
		Version uint64
		State   string
	}
	Differences []struct{ Address, Kind, Function, Module, Want, Have string }
	Interrupted bool
	Error       string
}

// processesOf runs list or verify with --json and gives the processes of the
// answer.
func processesOf(t testing.TB, args ...string) ([]processState, testtarget.Result) {
	t.Helper()
	var answer struct {
		Result struct{ Processes []processState }
	}
	r := testtarget.RunJSON(t, &answer, args...)
	return answer.Result.Processes, r
}

// checkList ends the test unless list shows these patches and states in a
// process, and no others; want is by "name@version". Reverted patches whose
// library is still mapped are left out.
func checkList(t testing.TB, pid int, want map[string]string) processState {
	t.Helper()
	found, r := processesOf(t, "list", "--pid", strconv.Itoa(pid))
	if r.Exit != 0 || len(found) != 1 || found[0].PID != pid {
		t.Fatalf("list of process %d\n%v", pid, r)
	}
	s := found[0]
	got := make(map[string]string)
	for _, p := range s.Patches {
		if p.State != "inert" {
			got[fmt.Sprintf("%s@%d", p.Name, p.Version)] = p.State
		}
	}
	if !maps.Equal(got, want) {
		t.Fatalf("process %d: list has %v, want %v", pid, got, want)
	}
	if s.Interrupted {
		t.Fatalf("process %d: list says that a hotpatch was interrupted", pid)
	}
	return s
}

// applySites applies a patch and gives the addresses that it has rewritten, by
// their kind.
func applySites(t testing.TB, pid int, patch string) map[string][]uint64 {
	t.Helper()
	var s struct {
		Result struct {
			Patches []struct {
				Replaced []struct {
					Sites []struct{ Address, Kind string }
				}
			}
		}
	}
	if r := testtarget.RunJSON(t, &s, "apply", "--pid", strconv.Itoa(pid), patch); r.Exit != 0 {
		t.Fatal(r)
	}
	sites := make(map[string][]uint64)
	for _, result := range s.Result.Patches {
		for _, f := range result.Replaced {
			for _, site := range f.Sites {
				at, err := strconv.ParseUint(strings.TrimPrefix(site.Address, "0x"), 16, 64)
				if err != nil {
					t.Fatal(err)
				}
				sites[site.Kind] = append(sites[site.Kind], at)
			}
		}
	}
	return sites
}

// islandWord gives the address of the word that a patched entry jumps through:
// "jmp rel32" to an island's slot, which is "jmp *disp(%rip)".
func islandWord(t testing.TB, pid int, entry uint64) uint64 {
	t.Helper()
	b := peek(t, pid, entry, 9)
	if bytes.HasPrefix(b, []byte{0xf3, 0x0f, 0x1e, 0xfa}) { // endbr64
		entry, b = entry+4, b[4:]
	}
	if b[0] != 0xe9 {
		t.Fatalf("at %#x are % x, which is no jump", entry, b)
	}
	slot := entry + 5 + uint64(int64(int32(binary.LittleEndian.Uint32(b[1:]))))
	b = peek(t, pid, slot, 6)
	if b[0] != 0xff || b[1] != 0x25 {
		t.Fatalf("at %#x are % x, which is no indirect jump", slot, b)
	}
	return slot + 6 + uint64(int64(int32(binary.LittleEndian.Uint32(b[2:]))))
}

// statusField gives a field of /proc/PID/status.
func statusField(t testing.TB, pid int, name string) string {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if field, value, ok := strings.Cut(line, ":"); ok && field == name {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no %s in the status of process %d", name, pid)
	return ""
}

// listedAddress gives the address of a function of a process, as the command
// symbols prints it.
func listedAddress(t testing.TB, pid int, name string) uint64 {
	t.Helper()
	found := regexp.MustCompile(`0x[0-9a-f]+`).FindString(must(t, "symbols", "--pid", strconv.Itoa(pid), name).Stdout)
	at, err := strconv.ParseUint(strings.TrimPrefix(found, "0x"), 16, 64)
	if err != nil {
		t.Fatalf("the address of %s: %v", name, err)
	}
	return at
}

// resources is what a process must not lose over many patches.
type resources struct {
	mappings, descriptors, threads int
	bytes                          uint64 // of address space
}

func resourcesOf(t testing.TB, pid int) resources {
	t.Helper()
	var r resources
	for _, line := range mapsOf(t, pid, "-") {
		var from, to uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		r.mappings++
		r.bytes += to - from
	}
	for what, count := range map[string]*int{"fd": &r.descriptors, "task": &r.threads} {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, what))
		if err != nil {
			t.Fatal(err)
		}
		*count = len(entries)
	}
	return r
}
