package ledger

import (
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hotpatch/internal/fault"
)

func FuzzDecode(f *testing.F) {
	rest, txn := full(f)
	for _, l := range []*Ledger{{Areas: rest.Areas}, rest, txn} {
		body, err := Encode(l)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(NewRoot(), body, true)
	}
	f.Add(make([]byte, RootSize), []byte{}, false)
	f.Fuzz(func(t *testing.T, root, body []byte, sign bool) {
		page := make([]byte, RootSize)
		copy(page, root)
		if sign { // as a hostile target would
			off, h := EncodeHeader(1, rootAt+0x30000, body)
			copy(page[off:], h)
		}
		read := func(addr uint64, b []byte) error {
			if len(b) > len(body) {
				return io.ErrUnexpectedEOF
			}
			copy(b, body)
			return nil
		}
		l, committed, err := Decode(page, read)
		if (l == nil) != (err != nil) || committed && (l == nil || l.Txn == nil) {
			t.Fatalf("got %v, %v, %v", l, committed, err)
		}
		if err != nil {
			var e *fault.Error
			if !errors.As(err, &e) || e.Code == "" {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		again, err := Encode(l)
		if err != nil {
			t.Fatalf("decoded and cannot be encoded: %v", err)
		}
		if l.Generation == 0 {
			return // a root with no body
		}
		at := l.Areas[l.Generation&1].Addr
		off, h := EncodeHeader(l.Generation, at, again)
		page = NewRoot()
		copy(page[off:], h)
		l.Areas[l.Generation&1].Len = max(l.Areas[l.Generation&1].Len, uint64(len(again)))
		l2, _, err := Decode(page, func(_ uint64, b []byte) error { copy(b, again); return nil })
		if err != nil {
			if len(again) > len(body) {
				return // the area is now too small, which is what the error says
			}
			t.Fatalf("encoded and cannot be decoded: %v", err)
		}
		l2.Areas = l.Areas
		if diff := cmp.Diff(l, l2, same); diff != "" {
			t.Fatal(diff)
		}
		var ids []uint64
		for i := range l.Patches {
			if l.Patches[i].State == Active {
				ids = append(ids, l.Patches[i].ID)
			}
		}
		if _, err := l.Pop(ids); err != nil || len(l.Sites) != 0 {
			t.Fatalf("popping everything leaves %d sites: %v", len(l.Sites), err)
		}
	})
}
