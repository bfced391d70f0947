package inject

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"hotpatch/elfsym"
	"hotpatch/internal/testtarget"
)

// moving has all that rebase changes.
const moving = `
#include <stdio.h>
int value = 1;
int *pointer = &value;
static int hidden;
static int *const own[] = {&hidden, &hidden, &value};
__thread int local = 5;
int get(void) { printf("%d", local); return **own + *pointer; }
`

func movable(t testing.TB) [][]byte {
	t.Helper()
	var all [][]byte
	for _, flags := range []string{"-O1", "-O1 -Wl,-z,pack-relative-relocs", "-O1 -s -Wl,-z,lazy -Wl,--hash-style=both", "-O1 -mtls-dialect=gnu2"} {
		data, err := os.ReadFile(testtarget.Build(t, testtarget.Spec{Files: map[string]string{"moving.c": moving}, Shared: true, Flags: strings.Fields(flags)}))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data)
	}
	return all
}

func image(data []byte) (*elfsym.Image, error) {
	return elfsym.NewImage(bytes.NewReader(data), int64(len(data)))
}

// A library that is moved and moved back is what it was; in between, all of its
// addresses are other ones.
func TestRebaseBackAndForth(t *testing.T) {
	t.Parallel()
	for i, data := range movable(t) {
		moved := bytes.Clone(data)
		for _, by := range []uint64{0x555500000000, ^uint64(0x555500000000) + 1} {
			im, err := image(bytes.Clone(moved))
			if err != nil {
				t.Fatal(err)
			}
			if err := rebase(im, moved, by); err != nil {
				t.Fatal(err)
			}
			again, err := image(moved)
			if err != nil {
				t.Fatal(err)
			}
			lo, _, _ := span(again)
			before, _, _ := span(im)
			if lo != before+by {
				t.Errorf("library %d: it begins at %#x, not at %#x", i, lo, before+by)
			}
		}
		if !bytes.Equal(moved, data) {
			t.Errorf("library %d is not what it was", i)
		}
	}
}

// No file makes rebase do anything but refuse.
func FuzzRebase(f *testing.F) {
	for _, data := range movable(f) {
		f.Add(data, uint64(0x400000))
	}
	f.Fuzz(func(t *testing.T, data []byte, by uint64) {
		im, err := image(bytes.Clone(data))
		if err != nil {
			return
		}
		n := len(data)
		_, _, align := span(im)
		if align&(align-1) != 0 {
			t.Errorf("alignment %#x", align)
		}
		if err := rebase(im, data, by&^0xfff); len(data) != n {
			t.Errorf("%d bytes have become %d: %v", n, len(data), err)
		}
	})
}
