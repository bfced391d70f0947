package runpre

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestScale matches an object with many functions that begin alike. None may be
// taken for another one; those that nothing refers to are told by their constants.
func TestScale(t *testing.T) {
	t.Parallel()
	functions := 400
	if testing.Short() {
		functions = 200
	}
	var b strings.Builder
	b.WriteString("extern int out(const char *, int);\nextern int state[];\n")
	for i := range functions {
		fmt.Fprintf(&b, `int f%d(int x, int y)
{
	if (x > y) return out("function %d", x * %d);
	for (int i = 0; i < y; i++) x += state[i & 15] ^ y;
	state[%d] = x; state[%d] += y;
	return x / (y | 1);
}
`, i, i, i%7+3, i%16, i%13)
	}
	b.WriteString("int state[16];\n__attribute__((noinline)) int out(const char *s, int x) { return x + *s; }\nint main(int argc, char **argv) { return f1(argc, 2); }\n")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "many.c"), []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, dir, "gcc", "-O1", "-fPIE", "-pie", "many.c", "-o", "image")
	run(t, dir, "gcc", "-O1", "-fPIE", "-ffunction-sections", "-fdata-sections", "-c", "many.c", "-o", "pre.o")
	run(t, dir, "strip", "-s", "image", "-o", "stripped")
	start := time.Now()
	p, err := place(t, filepath.Join(dir, "stripped"), filepath.Join(dir, "pre.o"))
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	placed, all, agreed := check(t, p, filepath.Join(dir, "image"))
	t.Logf("%d of %d functions placed, %d symbols, in %v", placed, all, agreed, took)
	if placed < functions {
		t.Errorf("%d of %d functions were placed", placed, all)
	}
}
