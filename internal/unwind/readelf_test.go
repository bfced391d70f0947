package unwind

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"hotpatch/elfsym"
	"hotpatch/internal/testtarget"
)

// registers are the names that readelf uses, by DWARF number.
var registers = [numRegs]string{"rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "ra"}

// openImage opens an ELF file.
func openImage(t testing.TB, name string) *elfsym.Image {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	im, err := elfsym.NewImage(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// TestRowsAgainstReadelf compares every row of every table with what readelf
// makes of it.
func TestRowsAgainstReadelf(t *testing.T) {
	t.Parallel()
	testtarget.Need(t, "readelf")
	files := []string{"libc.so.6", "ld-linux-x86-64.so.2"}
	if !testing.Short() {
		files = append(files, "libstdc++.so.6", "libm.so.6", "libcrypto.so.3", "libgcc_s.so.1", "bash", "redis-server")
	}
	tested := 0
	for _, name := range files {
		path := ""
		for _, dir := range []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/bin", "/usr/bin"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil && path == "" {
				path = filepath.Join(dir, name)
			}
		}
		if path == "" {
			t.Logf("%s is not installed", name)
			continue
		}
		tested++
		t.Run(name, func(t *testing.T) {
			im := openImage(t, path)
			table, err := ehTable(im)
			if err != nil {
				t.Fatal(err)
			}
			if n := compareRows(t, path, ".eh_frame", table); n < 1000 {
				t.Errorf("only %d rows", n)
			} else {
				t.Logf("%d rows, %d records", n, len(table.fdes))
			}
		})
	}
	if tested < 2 {
		t.Errorf("only %d files were compared", tested)
	}
}

// TestDebugFrameRowsAgainstReadelf does the same for .debug_frame, plain,
// compressed, and in a separate file.
func TestDebugFrameRowsAgainstReadelf(t *testing.T) {
	t.Parallel()
	testtarget.Need(t, "readelf")
	testtarget.Need(t, "objcopy")
	for _, compiler := range []string{"gcc", "clang"} {
		path := testtarget.Build(t, debugFrameSpec(t, compiler))
		im := openImage(t, path)
		table, err := debugTable(im, im)
		if err != nil {
			t.Fatal(err)
		}
		n := compareRows(t, path, ".debug_frame", table)
		if n < 10 {
			t.Errorf("only %d rows", n)
		}
		debug := filepath.Join(t.TempDir(), compiler+".debug")
		out, err := exec.Command("objcopy", "--only-keep-debug", "--compress-debug-sections=zlib", path, debug).CombinedOutput()
		if err != nil {
			t.Fatalf("objcopy: %v\n%s", err, out)
		}
		separate := openImage(t, debug)
		again, err := debugTable(separate, im)
		if err != nil {
			t.Fatal(err)
		}
		if len(again.fdes) != len(table.fdes) || !bytes.Equal(again.data, table.data) {
			t.Errorf("%d records in the compressed file, %d in the plain one", len(again.fdes), len(table.fdes))
		}
	}
}

// compareRows asks readelf for all rows of a section and compares the table's. It
// gives the number of rows.
func compareRows(t *testing.T, path, section string, table *table) int {
	t.Helper()
	out, err := exec.Command("readelf", "--wide", "-wN", "--debug-dump=frames-interp", path).Output()
	if err != nil {
		t.Fatalf("readelf: %v", err)
	}
	var columns []string
	var lo, hi uint64
	var m machine
	rows, errors := 0, 0
	skipped, here := 0, false
	inFDE, known := false, map[uint64]bool{}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		line := lines.Text()
		fields := strings.Fields(line)
		if strings.HasPrefix(line, "Contents of the ") {
			here, inFDE = strings.Contains(line, " "+section+" "), false
		}
		switch {
		case !here:
		case len(fields) > 4 && fields[3] == "CIE":
			inFDE = false
		case len(fields) > 5 && fields[3] == "FDE":
			inFDE = true
			columns = nil
			if _, err := fmt.Sscanf(fields[len(fields)-1], "pc=%x..%x", &lo, &hi); err != nil {
				t.Fatalf("readelf: %q: %v", line, err)
			}
			known[lo] = true
		case inFDE && len(fields) > 2 && fields[0] == "LOC":
			columns = fields
		case inFDE && columns != nil && len(fields) == len(columns):
			pc, err := strconv.ParseUint(fields[0], 16, 64)
			if err != nil || pc < lo || pc >= hi {
				skipped++ // readelf has a row behind the end of some
				break
			}
			rows++
			d := table.find(pc)
			if d == nil || d.lo != lo || d.hi != hi {
				t.Errorf("%#x: no record, readelf has one for %#x to %#x", pc, lo, hi)
				errors++
				break
			}
			m.steps = maxSteps
			if why := m.find(table, d, pc); why != "" {
				t.Errorf("%#x: %s", pc, why)
				errors++
				break
			}
			if got, want := show(&m.row, columns), strings.Join(fields[1:], " "); got != want {
				t.Errorf("%#x: %s\nreadelf: %s", pc, got, want)
				errors++
			}
		}
		if errors > 20 {
			t.Fatal("too many differences")
		}
	}
	if skipped > rows/500 {
		t.Errorf("%d rows were not compared", skipped)
	}
	if len(known) < len(table.fdes) {
		t.Errorf("%d records, readelf knows only %d", len(table.fdes), len(known))
	}
	return rows
}

// show writes a row as readelf does, for the columns that it names.
func show(r *row, columns []string) string {
	cfa := "exp"
	if r.cfa == cfaRegister {
		cfa = fmt.Sprintf("%s%+d", registers[r.cfaReg], r.cfaOff)
	}
	list := []string{cfa}
	for _, name := range columns[2:] {
		text := "?" // a register that does not matter here
		for reg, known := range registers {
			if known != name {
				continue
			}
			switch rule := r.regs[reg]; rule.kind {
			case ruleDefault, ruleUndefined:
				text = "u"
			case ruleSame:
				text = "s"
			case ruleOffset:
				text = fmt.Sprintf("c%+d", rule.off)
			case ruleValOffset:
				text = fmt.Sprintf("v%+d", rule.off)
			case ruleRegister:
				text = registers[rule.off]
			case ruleExpr:
				text = "exp"
			case ruleValExpr:
				text = "vexp"
			}
		}
		list = append(list, text)
	}
	return strings.Join(list, " ")
}
