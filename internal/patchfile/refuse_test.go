package patchfile

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"hotpatch/internal/fault"
	"hotpatch/internal/testtarget"
)

const oneFunction = "int f(int x); int f(int x) { return x + 1; }\n"

// wantFault checks an error's code and that its message and hint say why.
func wantFault(t *testing.T, p *Patch, err error, code, why string) {
	t.Helper()
	var e *fault.Error
	if !errors.As(err, &e) || p != nil {
		t.Fatalf("got %v and error %v, want %s", p, err, code)
	}
	if e.Code != code || e.Kind != fault.Unfit {
		t.Errorf("got %s (kind %d): %v; want %s", e.Code, e.Kind, e, code)
	}
	if text := e.Error() + " " + e.Hint; !strings.Contains(text, why) {
		t.Errorf("the message is %q, want %q in it", text, why)
	}
	if !printable(e.Error(), 1<<16) {
		t.Errorf("the message cannot be printed: %q", e.Error())
	}
}

func TestOpenRefusesFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	big := file("big", "")
	if err := os.Truncate(big, MaxSize+1); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ path, code, why string }{
		{filepath.Join(dir, "none"), "patch-missing", "no such file"},
		{filepath.Join(dir, "none\n\x1b[2J"), "patch-missing", `\x1b`},
		{dir, "patch-not-regular", "d---"},
		{fifo, "patch-not-regular", "p---"},
		{"/dev/zero", "patch-not-regular", "D"},
		{big, "patch-too-large", "1073741825"},
		{file("empty", ""), "patch-empty", "0 bytes"},
		{file("text", "#!/bin/sh\necho hello\n"), "patch-not-elf", "magic"},
		{file("short", "\x7fE"), "patch-truncated", "2 bytes"},
		{file("header", "\x7fELF\x02\x01\x01"), "patch-truncated", "7 bytes"},
		{filepath.Join(file("plain", "x"), "below"), "patch-unreadable", "not a directory"},
	}
	for _, tt := range tests {
		p, err := Open(tt.path)
		wantFault(t, p, err, tt.code, tt.why)
	}
	if os.Geteuid() != 0 { // root may read everything
		path := file("secret", "x")
		if err := os.Chmod(path, 0); err != nil {
			t.Fatal(err)
		}
		p, err := Open(path)
		wantFault(t, p, err, "patch-unreadable", "permission")
	}
}

// Each of these comes from the compiler as somebody might really make it.
func TestOpenRefusesBuilds(t *testing.T) {
	t.Parallel()
	const ifunc = "static int g(void) { return 1; } static void *pick(void) { return (void *)g; }\n"
	const with = "#include \"hotpatch.h\"\n"
	tests := []struct{ name, text, flags, code, why string }{
		{"executable", "int main(void) { return 0; }", "-no-pie -fno-pic", "patch-not-shared-object", "executable"},
		{"PIE", "int main(void) { return 0; }", "-pie -fPIE", "patch-not-shared-object", "-shared"},
		{"static PIE", "int main(void) { return 0; }", "-static-pie -fPIE", "patch-not-shared-object", "position-independent"},
		{"object", oneFunction, "-c", "patch-not-shared-object", "relocatable"},
		{"32 bit object", oneFunction, "-m32 -c", "patch-wrong-machine", "32"},
		{"static functions only", "static int f(void) { return 1; } int v; int *p = &v; static int (*q)(void) __attribute__((used)) = f;", "",
			"patch-no-functions", "HOTPATCH_REPLACE"},
		{"hidden", oneFunction, "-fvisibility=hidden", "patch-no-functions", "exports no function"},
		{"hooks only", with + "int f(void); int f(void) { return 0; }\nHOTPATCH_AFTER_APPLY(f)\n", "", "patch-no-functions", "exports no function"},
		{"executable stack", oneFunction, "-z execstack", "patch-exec-stack", "noexecstack"},
		{"writable code", oneFunction + "__asm__(\".section .both,\\\"awx\\\"\\n.quad 1\\n.text\");", "", "patch-writable-code", "writable and executable"},
		{"text relocations", "extern int far; __asm__(\".text\\n.quad far\\n\");" + oneFunction, "-z notext", "patch-text-relocations", "-fPIC"},
		{"exported IFUNC", ifunc + "int f(void) __attribute__((ifunc(\"pick\")));", "", "patch-bad-replacement", "IFUNC"},
		{"IFUNC as new function", with + ifunc + "int f(void) __attribute__((ifunc(\"pick\")));\nHOTPATCH_REPLACE(f, \"old\")\n", "",
			"patch-bad-replacement", "IFUNC"},
		{"static IFUNC as new function", with + ifunc + "static int f(void) __attribute__((ifunc(\"pick\")));\nHOTPATCH_REPLACE(f, \"old\")\n", "",
			"patch-bad-replacement", "IFUNC"},
		{"undefined new function", with + "int f(void);\nHOTPATCH_REPLACE(f, \"old\")\n", "", "patch-bad-replacement", "not defined"},
		{"data as new function", with + "static int v;\nHOTPATCH_REPLACE(&v, \"old\")\n", "", "patch-bad-replacement", "not a function"},
		{"data as hook", with + oneFunction + "static int v;\nHOTPATCH_BEFORE_APPLY((int (*)(void))&v)\n", "", "patch-bad-replacement", "hook"},
		{"replaced twice", with + "static int f(void) { return 1; }\nstatic int g(void) { return 1; }\nHOTPATCH_REPLACE(f, \"old\")\nHOTPATCH_REPLACE(g, \"old\")\n", "",
			"patch-bad-replacement", "two records"},
		{"two versions of an export", "int f1(void); int f1(void) { return 1; } int f2(void); int f2(void) { return 2; }\n" +
			"__asm__(\".symver f1,f@V1\\n.symver f2,f@@V2\");", "-Wl,--version-script=@dir@/versions.h", "patch-bad-replacement", "twice"},
		{"version 0", with + oneFunction + "HOTPATCH_NAME(\"x\", 0)\n", "", "patch-bad-record", "version is 0"},
		{"negative version", with + oneFunction + "HOTPATCH_NAME(\"x\", -1)\n", "", "patch-bad-record", "version is -1"},
		{"empty name", with + oneFunction + "HOTPATCH_NAME(\"\", 1)\n", "", "patch-bad-record", "empty"},
		{"option as name", with + oneFunction + "HOTPATCH_NAME(\"--all\", 1)\n", "", "patch-bad-record", "dash"},
		{"escape in name", with + oneFunction + "HOTPATCH_NAME(\"a\\033[2J\", 1)\n", "", "patch-bad-record", "printed"},
		{"zero in name", with + oneFunction + "HOTPATCH_NAME(\"a\\0b\", 1)\n", "", "patch-bad-record", "after the text"},
		{"two names", with + oneFunction + "HOTPATCH_NAME(\"a\", 1)\nHOTPATCH_NAME(\"b\", 1)\n", "", "patch-bad-record", "version 1"},
		{"two descriptions", with + oneFunction + "HOTPATCH_DESCRIPTION(\"a\")\nHOTPATCH_DESCRIPTION(\"b\")\n", "", "patch-bad-record", "two descriptions"},
		{"two lines of description", with + oneFunction + "HOTPATCH_DESCRIPTION(\"a\\nb\")\n", "", "patch-bad-record", "printed"},
		{"empty CVE", with + oneFunction + "HOTPATCH_CVE(\"\")\n", "", "patch-bad-record", "CVE"},
		{"bad build-id", with + oneFunction + "HOTPATCH_BASE(\"0xabcd\")\n", "", "patch-bad-record", "hexadecimal"},
		{"empty build-id", with + oneFunction + "HOTPATCH_BASE(\"\")\n", "", "patch-bad-record", "hexadecimal"},
		{"escape in a module", with + oneFunction + "HOTPATCH_BASE_MODULE(\"\\033\", \"abcd\")\n", "", "patch-bad-record", "module"},
		{"nameless reference", with + oneFunction + "HOTPATCH_REF(int, p, \"\")\n", "", "patch-bad-record", "empty"},
		{"two references in one", with + oneFunction + "static int *p;\nHOTPATCH_BIND(p, \"a\")\nHOTPATCH_BIND(p, \"b\")\n", "", "patch-bad-record", "two records"},
		{"reference in constant memory", with + oneFunction + "static int *const p __attribute__((section(\".rodata.p\"))) = 0;\nHOTPATCH_BIND(p, \"a\")\n", "",
			"patch-bad-record", "writable"},
		{"function without a name", with + "static int f(void) { return 1; }\nHOTPATCH_REPLACE(f, \"\")\n", "", "patch-bad-record", "empty"},
		{"function at 0", with + "static int f(void) { return 1; }\nHOTPATCH_REPLACE_AT(f, \"ab\", 0)\n", "", "patch-bad-record", "address 0"},
		{"both consistencies", with + oneFunction + "HOTPATCH_CONSISTENCY_STACK\nHOTPATCH_CONSISTENCY_ENTRY\n", "", "patch-bad-record", "contradictory"},
		{"section of the future", oneFunction + "static int v __attribute__((section(\".hotpatch.relocs\"), used)) = 1;", "", "patch-bad-record", "newer version"},
		{"rubbish in the section", oneFunction + "static int v __attribute__((section(\".hotpatch.records\"), used, aligned(8))) = 1;", "", "patch-bad-record", "are left"},
		{"section of zeros only", "static long v __attribute__((section(\".hotpatch.records\"), used, aligned(8))) = 0;", "", "patch-no-functions", "exports no function"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			spec := testtarget.Spec{Files: map[string]string{"p.c": tt.text}, Flags: strings.Fields(tt.flags), Name: "p.so",
				Shared: !strings.Contains(tt.flags, "pi") && !strings.Contains(tt.flags, "-c")}
			if strings.Contains(tt.flags, "@dir@") {
				dir := t.TempDir()
				if err := os.WriteFile(filepath.Join(dir, "versions.h"), []byte("V1 { f; }; V2 { f; } V1;"), 0o600); err != nil {
					t.Fatal(err)
				}
				spec.Flags = strings.Fields(strings.ReplaceAll(tt.flags, "@dir@", dir))
			}
			p, err := Open(testtarget.Build(t, spec))
			wantFault(t, p, err, tt.code, tt.why)
		})
	}
}

// What hotpatch.h cannot say and a damaged file can.
func TestParseRefusesDamage(t *testing.T) {
	t.Parallel()
	whole, err := Open(library(t, "gcc", "-O2"))
	if err != nil {
		t.Fatal(err)
	}
	sec, _ := whole.Image.Section(recordSection)
	le := binary.LittleEndian
	// record gives the file offset of the first record of a type.
	record := func(data []byte, typ uint32) uint64 {
		for off := sec.Off; off < sec.Off+sec.Size; off += uint64(le.Uint32(data[off+4:])) {
			if le.Uint32(data[off+8:]) == typ {
				return off
			}
		}
		t.Fatalf("there is no record of type %d", typ)
		return 0
	}
	put32 := func(typ uint32, at uint64, v uint32) func([]byte) []byte {
		return func(data []byte) []byte {
			le.PutUint32(data[record(data, typ)+at:], v)
			return data
		}
	}
	header := func(at int, b ...byte) func([]byte) []byte {
		return func(data []byte) []byte { copy(data[at:], b); return data }
	}
	// dynamic changes the value of a dynamic tag.
	dynamic := func(tag elf.DynTag, change func(uint64) (elf.DynTag, uint64)) func([]byte) []byte {
		return func(data []byte) []byte {
			s, _ := whole.Image.Section(".dynamic")
			for off := s.Off; off < s.Off+s.Size; off += 16 {
				if elf.DynTag(le.Uint64(data[off:])) == tag {
					newTag, v := change(le.Uint64(data[off+8:]))
					le.PutUint64(data[off:], uint64(newTag))
					le.PutUint64(data[off+8:], v)
					return data
				}
			}
			t.Fatalf("there is no %v", tag)
			return nil
		}
	}
	// segment changes the flags of a program header, or its type.
	segment := func(typ elf.ProgType, at int, v uint32) func([]byte) []byte {
		return func(data []byte) []byte {
			for off := 64; off < 64+56*len(whole.Image.Segments()); off += 56 {
				if elf.ProgType(le.Uint32(data[off:])) == typ {
					le.PutUint32(data[off+at:], v)
				}
			}
			return data
		}
	}
	// relocation changes the first relocation in the records' section.
	relocation := func(at int, v uint64) func([]byte) []byte {
		return func(data []byte) []byte {
			s, _ := whole.Image.Section(".rela.dyn")
			for off := s.Off; off < s.Off+s.Size; off += 24 {
				if sec.Contains(le.Uint64(data[off:])) && le.Uint32(data[off+8:]) == uint32(elf.R_X86_64_RELATIVE) {
					le.PutUint64(data[int(off)+at:], v)
					return data
				}
			}
			t.Fatal("there is no relocation in the records")
			return nil
		}
	}
	tests := []struct {
		name, code, why string
		spoil           func([]byte) []byte
	}{
		{"magic", "patch-bad-record", "begins with", put32(typeName, 0, 0x12345678)},
		{"size 0", "patch-bad-record", "0 bytes", put32(typeName, 4, 0)},
		{"size odd", "patch-bad-record", "bytes", put32(typeName, 4, 45)},
		{"size huge", "patch-bad-record", "4294967288", put32(typeName, 4, 0xfffffff8)},
		{"size too small", "patch-bad-record", "24 bytes", put32(typeKeep, 4, 24)},
		{"unknown type", "patch-bad-record", "type 99", put32(typeName, 8, 99)},
		{"type with a pointer for one without", "patch-bad-record", "relocation", put32(typeDescription, 8, typeKeep)},
		{"type without a pointer for one with", "patch-bad-record", "relocation", put32(typeReplace, 8, typeName)},
		{"pointer without a relocation", "patch-bad-record", "has a pointer", put32(typeName, 24, 1)},
		{"kind", "patch-bad-record", "kind 3", put32(typeRef, 12, 3)},
		{"kind of hook", "patch-bad-record", "unknown kind 0", put32(typeHook, 12, 0)},
		{"kind of consistency", "patch-bad-record", "unknown kind 0", put32(typeConsistency, 12, 0)},
		{"kind where none is", "patch-bad-record", "kind 1", put32(typeName, 12, 1)},
		{"value where none is", "patch-bad-record", "value 1", put32(typeCVE, 16, 1)},
		{"text without an end", "patch-bad-record", "does not end", func(data []byte) []byte {
			off := record(data, typeCVE)
			for i := off + recordHeader; i < off+uint64(le.Uint32(data[off+4:])); i++ {
				data[i] = 'x'
			}
			return data
		}},
		{"text after the end", "patch-bad-record", "after the text", func(data []byte) []byte {
			off := record(data, typeCVE)
			data[off+uint64(le.Uint32(data[off+4:]))-1] = 'x'
			return data
		}},
		{"relocation type", "patch-bad-record", "R_X86_64_PC32", relocation(8, uint64(elf.R_X86_64_PC32))},
		{"relocation beside a pointer", "patch-bad-record", "misplaced", relocation(0, sec.Addr+12)},
		{"relocation across the start", "patch-bad-record", "misplaced", relocation(0, sec.Addr-4)},
		{"relocation in a magic number", "patch-bad-record", "relocation", relocation(0, sec.Addr)},
		{"relocation to nowhere", "patch-bad-record", "writable", relocation(16, 1<<40)},
		{"relocation to a symbol that is not", "patch-damaged", "symbol", relocation(8, 1<<60|uint64(elf.R_X86_64_64))},
		{"class", "patch-wrong-machine", "32", header(elf.EI_CLASS, 1)},
		{"byte order", "patch-wrong-machine", "byte order", header(elf.EI_DATA, 2)},
		{"ARM", "patch-wrong-machine", "AARCH64", header(18, 183)},
		{"magic number", "patch-not-elf", "magic", header(0, 0)},
		{"ELF version", "patch-damaged", "version", header(elf.EI_VERSION, 9)},
		{"core", "patch-not-shared-object", "core", header(16, 4)},
		{"unknown ELF type", "patch-not-shared-object", "type", header(16, 0xee)},
		{"program headers beyond the end", "patch-truncated", "program header", header(32, 0, 0, 0, 0, 1)},
		{"section headers beyond the end", "patch-truncated", "section header", header(40, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)},
		{"no section headers", "patch-damaged", "no section headers", header(40, 0, 0, 0, 0, 0, 0, 0, 0)},
		{"no dynamic section", "patch-not-shared-object", "dynamic", segment(elf.PT_DYNAMIC, 0, uint32(elf.PT_NULL))},
		{"executable stack", "patch-exec-stack", "stack", segment(elf.PT_GNU_STACK, 4, uint32(elf.PF_R|elf.PF_W|elf.PF_X))},
		{"stack not described", "patch-exec-stack", "stack", segment(elf.PT_GNU_STACK, 0, uint32(elf.PT_NULL))},
		{"writable code", "patch-writable-code", "writable", segment(elf.PT_LOAD, 4, uint32(elf.PF_R|elf.PF_W|elf.PF_X))},
		{"no writable memory", "patch-bad-record", "writable", segment(elf.PT_LOAD, 4, uint32(elf.PF_R|elf.PF_X))},
		{"text relocations", "patch-text-relocations", "-fPIC", dynamic(elf.DT_RELACOUNT, func(uint64) (elf.DynTag, uint64) { return elf.DT_TEXTREL, 0 })},
		{"text relocation flag", "patch-text-relocations", "-fPIC", dynamic(elf.DT_RELACOUNT, func(uint64) (elf.DynTag, uint64) { return elf.DT_FLAGS, uint64(elf.DF_TEXTREL) })},
		{"PIE flag", "patch-not-shared-object", "position", dynamic(elf.DT_RELACOUNT, func(uint64) (elf.DynTag, uint64) { return elf.DT_FLAGS_1, uint64(elf.DF_1_PIE) })},
		{"string table elsewhere", "patch-damaged", "table", dynamic(elf.DT_STRTAB, func(uint64) (elf.DynTag, uint64) { return elf.DT_STRTAB, 1 << 60 })},
		{"relocations elsewhere", "patch-damaged", "relocation", dynamic(elf.DT_RELA, func(uint64) (elf.DynTag, uint64) { return elf.DT_RELA, 1 << 60 })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := Parse("full.so", tt.spoil(slices.Clone(whole.Data)))
			wantFault(t, p, err, tt.code, tt.why)
		})
	}

	t.Run("optional type", func(t *testing.T) {
		p, err := Parse("full.so", put32(typeDescription, 8, optional|99)(slices.Clone(whole.Data)))
		if err != nil || p.Description != "" || p.Name != "fix-login" {
			t.Errorf("got %v, %v", p, err)
		}
	})
	t.Run("name of the file", func(t *testing.T) {
		plain, err := os.ReadFile(compile(t, oneFunction))
		if err != nil {
			t.Fatal(err)
		}
		for path, name := range map[string]string{"/a/b/fix.so": "fix", "fix-2.so": "fix-2", "lib.so.1": "lib.so.1"} {
			if p, err := Parse(path, plain); err != nil || p.Name != name {
				t.Errorf("%s: %v, %v", path, p, err)
			}
		}
		for _, path := range []string{".so", "/a/-x.so", "a\nb.so", " a.so", strings.Repeat("x", 129)} {
			p, err := Parse(path, plain)
			wantFault(t, p, err, "patch-bad-name", "rename")
		}
	})
	t.Run("truncated", func(t *testing.T) {
		for n := 0; n < len(whole.Data); n += 1 + n/37 {
			p, err := Parse("full.so", bytes.Clone(whole.Data[:n]))
			if p != nil || !slices.Contains([]string{"patch-empty", "patch-truncated"}, fault.CodeOf(err)) {
				t.Errorf("cut after %d of %d bytes: %v", n, len(whole.Data), err)
			}
		}
	})
}

func run(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

// Libraries that came out of strip or objcopy, or that are no patches.
func TestOpenOtherLibraries(t *testing.T) {
	t.Parallel()
	t.Run("debug file", func(t *testing.T) {
		t.Parallel()
		testtarget.Need(t, "objcopy")
		path := filepath.Join(t.TempDir(), "fix.debug")
		run(t, "objcopy", "--only-keep-debug", library(t, "gcc", "-O2", "-g"), path)
		p, err := Open(path)
		wantFault(t, p, err, "patch-not-shared-object", "debug file")
	})
	t.Run("stripped", func(t *testing.T) {
		t.Parallel()
		testtarget.Need(t, "strip")
		path := filepath.Join(t.TempDir(), "full.so")
		run(t, "strip", "--strip-unneeded", "-o", path, library(t, "gcc", "-O2"))
		p, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		checkFull(t, p, "-s")
	})
	t.Run("libc", func(t *testing.T) {
		t.Parallel()
		p, err := Open("/lib/x86_64-linux-gnu/libc.so.6")
		if fault.CodeOf(err) == "patch-missing" {
			testtarget.Unavailable(t, "there is no libc.so.6 where Debian has it")
		}
		if p != nil || fault.CodeOf(err) == "" {
			t.Errorf("the C library is taken for a patch: %v", err)
		}
	})
}
