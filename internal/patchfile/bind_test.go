package patchfile

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hotpatch/internal/testtarget"
)

// assembled is a library with a record of every type that hotpatch build makes.
// $TYPE(...) stands for a record's fields.
const assembled = `
	.section .hotpatch.records, "awR", @progbits
	.balign 8
` + imageRecord + noteRecords + bindRecord + ownRecord + codeRecord + `
	.text
	.type new_f, @function
new_f:	lea place(%rip), %rax
	.set place, . - 4
	call 1f
	.set second, . - 4
1:	ret
	.size new_f, . - new_f
	.data
	.balign 8
word:	.quad 0
third:	.long 0
	.section .note.GNU-stack,"",@progbits
`

const (
	imageRecord = `	.long 0x31525048, 64, 11, 0
	.quad 7, 0
	.asciz "9f86d081884c7d65"
	.asciz "server"
	.balign 8
	.zero 8
`
	noteRecords = `	.long 0x31525048, 56, 15, 1
	.quad 0, 0
	.asciz "struct-layout"
	.balign 8
	.zero 8
	.long 0x31525048, 40, 15, 2
	.quad 0, 0
	.asciz "gcc 12"
	.balign 8
`
	bindRecord = `	.long 0x31525048, 56, 12, 2
	.quad 0x4010, place, 7, -4
	.asciz "counter"
	.long 0x31525048, 56, 12, 1
	.quad 0x4018, word, 7, 16
	.asciz ""
	.balign 8
`
	ownRecord = `	.long 0x31525048, 40, 13, 5
	.quad 0, third, word
`
	codeRecord = `	.long 0x31525048, 144, 14, 0
	.quad 0x1130, new_f, 7, 42
	.asciz "_Z1fi f"
	.asciz "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	.balign 8
	.zero 16
`
)

func assemble(t testing.TB, text string) string {
	t.Helper()
	return testtarget.Build(t, testtarget.Spec{Files: map[string]string{"bound.S": text}, Shared: true, Flags: []string{"-nostdlib"}})
}

func TestBindRecords(t *testing.T) {
	t.Parallel()
	p, err := Open(assemble(t, assembled))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, im := range p.Images {
		got = append(got, fmt.Sprintf("image %d %s %s", im.Number, im.BuildID, im.Module))
	}
	text, _ := p.Image.Section(".text")
	data, _ := p.Image.Section(".data")
	name := func(addr uint64) string {
		if text.Contains(addr) {
			return fmt.Sprintf("text+%d", addr-text.Addr)
		}
		return fmt.Sprintf("data+%d", addr-data.Addr)
	}
	for _, b := range p.Binds {
		target := fmt.Sprintf("%#x", b.Addr)
		if b.Image == 0 {
			target = name(b.Addr)
		}
		got = append(got, fmt.Sprintf("%s %v %d:%s%+d %q", name(b.Place), b.Kind, b.Image, target, b.Addend, b.Symbol))
	}
	for _, r := range p.Replacements {
		got = append(got, fmt.Sprintf("%s for %#x of %d, %s, %d bytes, %x, %q", name(r.New.Addr), r.OldAddr, r.OldImage, r.OldBuildID, r.OldSize, r.OldSHA256[:2], r.OldNames))
	}
	got = append(got, p.Overrides...)
	got = append(got, p.Builder)
	want := []string{
		"image 7 9f86d081884c7d65 server",
		`text+3 PC32 7:0x4010-4 "counter"`,
		`data+0 ABS64 7:0x4018+16 ""`,
		`data+8 ABS32S 0:data+0+0 ""`,
		`text+0 for 0x1130 of 7, 9f86d081884c7d65, 42 bytes, 0123, ["_Z1fi" "f"]`,
		"struct-layout", "gcc 12",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if p.Replacements[0].New.Name != "new_f" || len(p.Exports) != 0 {
		t.Errorf("the new function is %+v, exports %v", p.Replacements[0].New, p.Exports)
	}
}

func TestBindRecordsRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, from, to, code, why string }{
		{"no image", imageRecord, "", "patch-bad-replacement", "no such image"},
		{"no image for a place", imageRecord + noteRecords + bindRecord + ownRecord + codeRecord, bindRecord, "patch-bad-record", "there is none"},
		{"image twice", imageRecord, imageRecord + imageRecord, "patch-bad-record", "two records"},
		{"image 0", ".quad 7, 0\n", ".quad 0, 0\n", "patch-bad-record", "number"},
		{"image 256", ".quad 7, 0\n", ".quad 256, 0\n", "patch-bad-record", "number"},
		{"image of nothing", `.asciz "9f86d081884c7d65"`, `.asciz "0x86d081884c7d65"`, "patch-bad-record", "hexadecimal"},
		{"kind 0", "56, 12, 2", "56, 12, 0", "patch-bad-record", "kind 0"},
		{"kind 6", "56, 12, 2", "56, 12, 6", "patch-bad-record", "kind 6"},
		{"own kind", "40, 13, 5", "40, 13, 2", "patch-bad-record", "kind 2"},
		{"own target outside", "third, word", "third, word + 0x100000", "patch-bad-record", "not in the library"},
		{"own target without relocation", "third, word", "third, 0", "patch-bad-record", "relocation"},
		{"addend with relocation", "place, 7, -4", "place, 7, word", "patch-bad-record", "relocation"},
		{"address too high", "0x4010", "1 << 47", "patch-bad-record", "0x800000000000"},
		{"place outside", "place, 7, -4", "word + 0x100000, 7, -4", "patch-bad-record", "not within the file"},
		{"places overlap", "0x4018, word, 7", "0x4018, place + 1, 7", "patch-bad-record", "overlap"},
		{"replaced twice", codeRecord, codeRecord + codeRecord, "patch-bad-replacement", "two records"},
		{"no code", "0x1130, new_f", "0x1130, word", "patch-bad-replacement", "not a function"},
		{"function at 0", "0x1130, new_f", "0, new_f", "patch-bad-record", "at 0x0"},
		{"no bytes", "new_f, 7, 42", "new_f, 7, 0", "patch-bad-record", "0 bytes"},
		{"huge", "new_f, 7, 42", "new_f, 7, 1 << 40", "patch-bad-record", "bytes"},
		{"checksum", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", strings.Repeat("x", 64), "patch-bad-record", "checksum"},
		{"nameless", `"_Z1fi f"`, `"       "`, "patch-bad-record", "names"},
		{"note of kind 0", "56, 15, 1", "56, 15, 0", "patch-bad-record", "unknown kind 0"},
		{"empty note", `"gcc 12"`, `"\0\0\0\0\0\0"`, "patch-bad-record", "empty"},
		{"short", "144, 14, 0\n", "40, 14, 0\n", "patch-bad-record", "40 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			text := strings.Replace(assembled, tt.from, tt.to, 1)
			if text == assembled {
				t.Fatalf("%q is not in the source", tt.from)
			}
			p, err := Open(assemble(t, text))
			wantFault(t, p, err, tt.code, tt.why)
		})
	}
}

func TestBindEncode(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		kind       BindKind
		place, sym uint64
		addend     int64
		want       uint64
		ok         bool
	}{
		{BindAbs64, 0, 1 << 40, -4, 1<<40 - 4, true},
		{BindPC64, 0x10, 0, 0, math.MaxUint64 - 0xf, true},
		{BindPC32, 0x1000, 0x2000, -4, 0xffc, true},
		{BindPC32, 0x2000, 0x1000, -4, 0xffffeffc, true},
		{BindPC32, 0, 1<<31 - 1, 0, 1<<31 - 1, true},
		{BindPC32, 0, 1 << 31, 0, 0, false},
		{BindPC32, 1 << 31, 0, 0, 1 << 31, true},
		{BindPC32, 1<<31 + 1, 0, 0, 0, false},
		{BindAbs32, 99, 1<<32 - 1, 0, 1<<32 - 1, true},
		{BindAbs32, 99, 1 << 32, 0, 0, false},
		{BindAbs32S, 99, 1<<31 - 1, 0, 1<<31 - 1, true},
		{BindAbs32S, 99, 1 << 31, 0, 0, false},
		{BindAbs32S, 99, 0, -1, math.MaxUint32, true},
	} {
		b := Bind{Kind: tt.kind, Addend: tt.addend}
		value, ok := b.Encode(tt.place, tt.sym)
		if ok != tt.ok || len(value) != tt.kind.Size() {
			t.Errorf("%+v: %x, %v", tt, value, ok)
			continue
		}
		if got := binary.LittleEndian.Uint64(append(value, 0, 0, 0, 0)[:8]); ok && got != tt.want {
			t.Errorf("%+v: got %#x", tt, got)
		}
	}
}
