package runpre

import (
	"os"
	"path/filepath"
	"testing"

	"hotpatch/internal/objfile"
)

// TestBeforeString: code counts from before a string, and the linker has put the string
// where another byte is in front of it.
func TestBeforeString(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{"work.c": `
int work(long i)
{
	const char *p;
	__asm__(".pushsection .rodata.str1.1,\"aMS\",@progbits,1\n.string \"GET\"\n.Lmine: .string \"HEAD\"\n.popsection\n"
		"lea .Lmine-1(%%rip), %0" : "=r"(p));
	return p[i + 1] * 3 + 1;
}
`, "main.c": `
#include <stdio.h>
int work(long i);
int main(int argc, char **argv) { (void)argv; puts("AHEAD"); return work(argc); }
`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(t, dir, "gcc", "-O2", "-fPIE", "-pie", "main.c", "work.c", "-o", "image")
	run(t, dir, "gcc", "-O2", "-fPIE", "-ffunction-sections", "-fdata-sections", "-c", "work.c", "-o", "pre.o")
	run(t, dir, "strip", "-s", "image", "-o", "stripped")
	p, err := place(t, filepath.Join(dir, "stripped"), filepath.Join(dir, "pre.o"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Check([]*objfile.Symbol{symbolOf(t, p, "work")}); err != nil {
		t.Error(err)
	}
}
