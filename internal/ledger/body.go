package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"hotpatch/internal/fault"
)

// maxDepth is how deep a body nests: ledger, transaction, its ledger, list of
// patches, patch, list of replacements, replacement.
const maxDepth = 7

// The least number of bytes that Encode makes of one element of a list. Decode
// refuses shorter ones, so that a list in memory is never much larger than its
// text.
const (
	minPatch    = len(`{"id":,"name":"","version":,"description":"","cves":[],"sha256":"","buildId":"","file":"","tool":"","base":,"lo":,"hi":,"handle":,"state":"","appliedAt":"","revertedAt":"","kept":"","hooks":{"beforeApply":[],"afterApply":[],"beforeRevert":[],"afterRevert":[]},"replaced":[]}`)
	minReplaced = len(`{"function":"","module":"","old":,"new":,"method":""}`)
	minIsland   = len(`{"module":"","buildId":"","code":,"data":,"used":}`)
	minFunction = len(`{"name":"","module":"","buildId":"","entry":,"slot":,"size":}`)
	minSite     = len(`{"addr":,"kind":"","function":,"original":"","layers":[]}`)
	minLayer    = len(`{"patch":,"bytes":""}`)
	minEdit     = len(`{"addr":,"kind":"","old":"","new":""}`)
)

// Encode gives the body of l. The errors are those of Validate, and
// "ledger-full" if it is longer than MaxBody.
func Encode(l *Ledger) ([]byte, error) {
	c := l.Clone()
	c.normalise()
	if l.Txn != nil {
		t := *l.Txn
		t.Patches, t.Edits = orEmpty(t.Patches), orEmpty(t.Edits)
		if t.After != nil {
			t.After = t.After.Clone()
			t.After.normalise()
		}
		c.Txn = &t
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	body, err := json.Marshal(c)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Failed, Code: "ledger-invalid", What: "cannot write the ledger", Err: err}
	}
	if len(body) > MaxBody {
		return nil, &fault.Error{Kind: fault.Failed, Code: "ledger-full", What: "cannot write the ledger",
			Why: fmt.Sprintf("it has %d bytes, and at most %d are supported", len(body), MaxBody)}
	}
	return body, nil
}

// normalise sets the format and makes every list that is nil empty: a body has
// no null in it.
func (l *Ledger) normalise() {
	l.Format = Format
	l.Patches, l.Islands = orEmpty(l.Patches), orEmpty(l.Islands)
	l.Functions, l.Sites = orEmpty(l.Functions), orEmpty(l.Sites)
	for i := range l.Patches {
		p := &l.Patches[i]
		h := &p.Hooks
		p.CVEs, p.Replaced = orEmpty(p.CVEs), orEmpty(p.Replaced)
		h.BeforeApply, h.AfterApply = orEmpty(h.BeforeApply), orEmpty(h.AfterApply)
		h.BeforeRevert, h.AfterRevert = orEmpty(h.BeforeRevert), orEmpty(h.AfterRevert)
	}
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// Decode reads the ledger in force. root is the root page; read fills b with
// the target's memory at addr, whole or not at all. A root with no body gives
// an empty ledger of generation 0.
//
// committed says of a ledger with a Txn that all its edits were written and
// that only the ledger to come is left to be put in force.
//
// The errors are those of ReadRoot, "ledger-damaged" for everything in the body
// that is not as Encode makes it, and "ledger-format".
func Decode(root []byte, read func(addr uint64, b []byte) error) (l *Ledger, committed bool, err error) {
	r, err := ReadRoot(root)
	if err != nil {
		return nil, false, err
	}
	h := r.InForce()
	if h.Generation == 0 {
		return &Ledger{Format: Format}, false, nil
	}
	where := fmt.Sprintf("generation %d at %#x", h.Generation, h.Addr)
	body := make([]byte, h.Len)
	if err := read(h.Addr, body); err != nil {
		e := damaged(where, "its %d bytes cannot be read", h.Len)
		e.Err = err
		return nil, false, e
	}
	if crc := crc32.Checksum(body, castagnoli()); crc != h.CRC {
		return nil, false, damaged(where, "its checksum is %08x instead of %08x", crc, h.CRC)
	}
	if err := checkShape(body); err != nil {
		return nil, false, damaged(where, "%v", err)
	}
	var version struct {
		Format uint64 `json:"format"`
	}
	if err := json.Unmarshal(body, &version); err != nil {
		return nil, false, damaged(where, "%v", err)
	}
	if version.Format != Format {
		return nil, false, otherFormat(version.Format)
	}
	l = new(Ledger)
	if err := strict(body, l); err != nil {
		return nil, false, damaged(where, "%v", err)
	}
	if err := l.Validate(); err != nil {
		return nil, false, damaged(where, "%v", err)
	}
	if a := l.Areas[h.Generation&1]; a.Addr != h.Addr || a.Len < h.Len {
		return nil, false, damaged(where, "its area is %#x+%#x", a.Addr, a.Len)
	}
	l.Generation = h.Generation
	return l, l.Txn != nil && r.Commit == h.Generation, nil
}

// Load reads the root page at address root and decodes the ledger in force, as
// Decode does. If it finds damage and the root page has changed meanwhile, then
// somebody was writing, and it reads again.
func Load(root uint64, read func(addr uint64, b []byte) error) (l *Ledger, committed bool, err error) {
	page, again := make([]byte, RootSize), make([]byte, RootSize)
	if err := read(root, page); err != nil {
		e := damaged("root page", "its %d bytes at %#x cannot be read", RootSize, root)
		e.Err = err
		return nil, false, e
	}
	for range 10 {
		l, committed, err = Decode(page, read)
		if !errors.Is(err, &fault.Error{Code: "ledger-damaged"}) {
			return l, committed, err
		}
		if read(root, again) != nil || bytes.Equal(page, again) {
			break
		}
		page, again = again, page
	}
	return nil, false, err
}

// checkShape refuses what Encode never makes and what would be dear to decode:
// nesting deeper than maxDepth, and null.
func checkShape(body []byte) error {
	depth, inString := 0, false
	for i := 0; i < len(body); i++ {
		c := body[i]
		switch {
		case inString:
			if c == '\\' {
				i++
			}
			inString = c != '"'
		case c == '"':
			inString = true
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return fmt.Errorf("it nests deeper than %d", maxDepth)
			}
		case c == '}' || c == ']':
			depth--
		case c == 'n':
			return errors.New("there is a null in it")
		}
	}
	return nil
}

// strict decodes one JSON value that is all of text and has no unknown fields:
// what is not understood would be lost when the ledger is written again.
func strict(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("there is more after its end")
	}
	return nil
}

// list decodes a JSON list, one element after the other, and refuses an element
// of less than least bytes.
func list[T any](text json.RawMessage, least int) ([]T, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return nil, errors.New("there is no list where one should be")
	}
	s := []T{}
	for d.More() {
		var element json.RawMessage
		if err := d.Decode(&element); err != nil {
			return nil, err
		}
		if len(element) < least {
			return nil, fmt.Errorf("a list element has only %d bytes, %.60s", len(element), element)
		}
		var v T
		if err := strict(element, &v); err != nil {
			return nil, err
		}
		s = append(s, v)
	}
	return s, nil
}

// UnmarshalJSON decodes a ledger's lists with the limits of list.
func (l *Ledger) UnmarshalJSON(text []byte) error {
	type plain Ledger // without this method
	var w struct {
		*plain
		Patches   json.RawMessage `json:"patches"`
		Islands   json.RawMessage `json:"islands"`
		Functions json.RawMessage `json:"functions"`
		Sites     json.RawMessage `json:"sites"`
	}
	w.plain = (*plain)(l)
	if err := strict(text, &w); err != nil {
		return err
	}
	var err [4]error
	l.Patches, err[0] = list[Patch](w.Patches, minPatch)
	l.Islands, err[1] = list[Island](w.Islands, minIsland)
	l.Functions, err[2] = list[Function](w.Functions, minFunction)
	l.Sites, err[3] = list[Site](w.Sites, minSite)
	return errors.Join(err[:]...)
}

// UnmarshalJSON decodes a patch's lists with the limits of list.
func (p *Patch) UnmarshalJSON(text []byte) error {
	type plain Patch
	var w struct {
		*plain
		Replaced json.RawMessage `json:"replaced"`
	}
	w.plain = (*plain)(p)
	err := strict(text, &w)
	if err == nil {
		p.Replaced, err = list[Replaced](w.Replaced, minReplaced)
	}
	return err
}

// UnmarshalJSON decodes a site's layers with the limits of list.
func (s *Site) UnmarshalJSON(text []byte) error {
	type plain Site
	var w struct {
		*plain
		Layers json.RawMessage `json:"layers"`
	}
	w.plain = (*plain)(s)
	err := strict(text, &w)
	if err == nil {
		s.Layers, err = list[Layer](w.Layers, minLayer)
	}
	return err
}

// UnmarshalJSON decodes a transaction's edits with the limits of list.
func (t *Txn) UnmarshalJSON(text []byte) error {
	type plain Txn
	var w struct {
		*plain
		Edits json.RawMessage `json:"edits"`
	}
	w.plain = (*plain)(t)
	err := strict(text, &w)
	if err == nil {
		t.Edits, err = list[Edit](w.Edits, minEdit)
	}
	return err
}
