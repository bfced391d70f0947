package ledger

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"hotpatch/internal/fault"
)

const (
	pageSize = 4096

	// userEnd is the end of the address space of a process with four-level
	// page tables, less the guard page (Linux, TASK_SIZE_MAX). Addresses above
	// 47 bits are only given to a process that asks for them with a hint.
	userEnd = 1<<47 - pageSize

	maxName = 256     // bytes of names of patches and of identifiers
	maxText = 1 << 16 // of everything else
)

// invalid is a ledger that cannot be: a mistake of the caller where it was just
// made, damage where it was just decoded.
func invalid(what, format string, args ...any) *fault.Error {
	return &fault.Error{Kind: fault.Failed, Code: "ledger-invalid", What: "cannot " + what,
		Why: fmt.Sprintf(format, args...)}
}

func quote(s string) string { return strconv.Quote(s) }

// Validate checks everything that a ledger can be checked for without looking
// into memory: that ranges lie in user space, that no two sites overlap, that
// every index and ID refers to something, that layers lie in the order in which
// their patches were applied, that hooks and replacements point into their own
// library, and that a transaction's edits are the difference between before and
// after. The error is "ledger-invalid" or "site-overlap".
func (l *Ledger) Validate() error {
	if err := l.checkState(); err != nil {
		return err
	}
	if l.Txn != nil {
		return l.checkTxn()
	}
	return nil
}

func (l *Ledger) checkState() error {
	order := make(map[uint64]int, len(l.Patches))
	for i := range l.Patches {
		p := &l.Patches[i]
		if err := p.check(); err != nil {
			return err
		}
		if _, dup := order[p.ID]; dup {
			return invalid("use the ledger", "two patches have the ID %d", p.ID)
		}
		order[p.ID] = i
	}
	for i, a := range l.Areas {
		if a != (Area{}) && (!inUser(a.Addr, a.Len) || a.Addr%pageSize != 0) {
			return invalid("use the ledger", "body area %d is %#x+%#x", i, a.Addr, a.Len)
		}
	}
	if a, b := l.Areas[0], l.Areas[1]; a.Len > 0 && b.Len > 0 && a.Addr < b.Addr+b.Len && b.Addr < a.Addr+a.Len {
		return invalid("use the ledger", "the body areas %#x+%#x and %#x+%#x overlap", a.Addr, a.Len, b.Addr, b.Len)
	}
	data, err := l.checkIslands()
	if err != nil {
		return err
	}
	return l.checkSites(order, data)
}

func (p *Patch) check() error {
	bad := func(format string, args ...any) error {
		return invalid(fmt.Sprintf("use the ledger's patch %d", p.ID), format, args...)
	}
	switch {
	case p.ID == 0:
		return bad("IDs begin with 1")
	case p.State != Loading && p.State != Active && p.State != Inert:
		return bad("its state is %q", p.State)
	case p.Name == "" || !printable(p.Name, maxName):
		return bad("its name is empty, longer than %d bytes or not printable", maxName)
	case !printable(p.Description, maxText) || !printable(p.File, maxText) || !printable(p.Tool, maxName):
		return bad("its description, file or tool is too long or not printable")
	case p.SHA256 != "" && !isHex(p.SHA256, 32) || p.BuildID != "" && !isHex(p.BuildID, 0):
		return bad("its checksum or build-id is not a hexadecimal number of the right length")
	case p.State == Loading && p.Lo == 0 && p.Hi == 0: // not mapped yet
	case p.Lo >= p.Hi || !inUser(p.Lo, p.Hi-p.Lo):
		return bad("its library is at %#x-%#x", p.Lo, p.Hi)
	}
	for _, c := range p.CVEs {
		if !printable(c, maxName) {
			return bad("a CVE identifier is too long or not printable")
		}
	}
	for _, hooks := range [][]uint64{p.Hooks.BeforeApply, p.Hooks.AfterApply, p.Hooks.BeforeRevert, p.Hooks.AfterRevert} {
		for _, h := range hooks {
			if h < p.Lo || h >= p.Hi {
				return bad("a hook at %#x is outside its library, %#x-%#x", h, p.Lo, p.Hi)
			}
		}
	}
	for _, r := range p.Replaced {
		if r.New < p.Lo || r.New >= p.Hi || !inUser(r.Old, 1) {
			return bad("it replaces the function at %#x by %#x, and its library is at %#x-%#x", r.Old, r.New, p.Lo, p.Hi)
		}
		if !printable(r.Function, maxText) || !printable(r.Module, maxText) || !printable(r.Method, maxName) {
			return bad("a name in a replacement is too long or not printable")
		}
	}
	return nil
}

// checkIslands also gives the set of islands' data pages.
func (l *Ledger) checkIslands() (data map[uint64]bool, err error) {
	code, data := make(map[uint64]bool), make(map[uint64]bool)
	for _, is := range l.Islands {
		switch {
		case is.Code%pageSize != 0 || is.Data%pageSize != 0 || !inUser(is.Code, pageSize) || !inUser(is.Data, pageSize):
			return nil, invalid("use the ledger", "an island has its code at %#x and its data at %#x", is.Code, is.Data)
		case max(is.Code, is.Data)-min(is.Code, is.Data) > 1<<31-2*pageSize:
			return nil, invalid("use the ledger", "an island's code at %#x cannot reach its data at %#x", is.Code, is.Data)
		case is.Used < 0 || is.Used > pageSize/8:
			return nil, invalid("use the ledger", "%d slots of the island at %#x are used", is.Used, is.Code)
		case !printable(is.Module, maxText) || is.BuildID != "" && !isHex(is.BuildID, 0):
			return nil, invalid("use the ledger", "the island at %#x has a bad module name or build-id", is.Code)
		case code[is.Code] || data[is.Code] || code[is.Data] || data[is.Data] || is.Code == is.Data:
			return nil, invalid("use the ledger", "the island at %#x shares a page with another", is.Code)
		}
		code[is.Code], data[is.Data] = true, true
	}
	entries, slots := make(map[uint64]bool), make(map[uint64]bool)
	for _, f := range l.Functions {
		switch {
		case !inUser(f.Entry, f.Size) || f.Entry == 0 || entries[f.Entry]:
			return nil, invalid("use the ledger", "a function at %#x is out of range or there twice", f.Entry)
		case !printable(f.Name, maxText) || !printable(f.Module, maxText) || f.BuildID != "" && !isHex(f.BuildID, 0):
			return nil, invalid("use the ledger", "the function at %#x has a bad name, module or build-id", f.Entry)
		case f.Slot != 0 && (!code[f.Slot&^(pageSize-1)] || slots[f.Slot]):
			return nil, invalid("use the ledger", "the slot %#x of the function at %#x is in no island or taken", f.Slot, f.Entry)
		}
		entries[f.Entry], slots[f.Slot] = true, true
	}
	return data, nil
}

func (l *Ledger) checkSites(order map[uint64]int, data map[uint64]bool) error {
	var end uint64
	for i := range l.Sites {
		s := &l.Sites[i]
		n := uint64(len(s.Original))
		bad := func(format string, args ...any) error {
			return invalid(fmt.Sprintf("use the ledger's site %#x", s.Addr), format, args...)
		}
		switch s.Kind {
		case Entry, Pad:
		case VTable, SlotWord:
			if n != 8 || s.Addr%8 != 0 {
				return bad("a %s of %d bytes", s.Kind, n)
			}
			if s.Kind == SlotWord && !data[s.Addr&^(pageSize-1)] {
				return bad("a slot word in no island")
			}
		default:
			return bad("its kind is %q", s.Kind)
		}
		if n < 1 || n > MaxSite || s.Addr == 0 || !inUser(s.Addr, n) {
			return bad("%d bytes", n)
		}
		if s.Function < 0 || s.Function >= len(l.Functions) {
			return bad("its function is %d of %d", s.Function, len(l.Functions))
		}
		if s.Addr < end {
			return &fault.Error{Kind: fault.Unfit, Code: "site-overlap",
				What:  fmt.Sprintf("cannot rewrite %d bytes at %#x", n, s.Addr),
				Where: l.Functions[s.Function].Name,
				Why:   fmt.Sprintf("another site reaches to %#x", end)}
		}
		end = s.Addr + n
		if len(s.Layers) == 0 {
			return bad("it has no layers")
		}
		last := -1
		for _, y := range s.Layers {
			at, ok := order[y.Patch]
			switch {
			case !ok || l.Patches[at].State != Active:
				return bad("patch %d has a layer and is not applied", y.Patch)
			case at <= last:
				return bad("the layer of patch %d is out of order", y.Patch)
			case len(y.Bytes) != len(s.Original):
				return bad("patch %d has a layer of %d bytes, and the site has %d", y.Patch, len(y.Bytes), n)
			}
			last = at
		}
	}
	return nil
}

func (l *Ledger) checkTxn() error {
	t := l.Txn
	bad := func(format string, args ...any) error {
		return invalid("use the ledger's transaction", format, args...)
	}
	if t.Verb != Apply && t.Verb != Revert {
		return bad("its verb is %q", t.Verb)
	}
	if t.After == nil || t.After.Txn != nil || t.After.Areas != l.Areas {
		return bad("the ledger to come is missing, has a transaction or other body areas")
	}
	if err := t.After.checkState(); err != nil {
		return err
	}
	for _, id := range t.Patches {
		if t.After.Patch(id) == nil {
			return bad("patch %d is not in the ledger to come", id)
		}
	}
	before := make(map[uint64]*Site, len(l.Sites))
	for i := range l.Sites {
		before[l.Sites[i].Addr] = &l.Sites[i]
	}
	for i := range t.After.Sites {
		s := &t.After.Sites[i]
		if o := before[s.Addr]; o != nil && (o.Kind != s.Kind || !bytes.Equal(o.Original, s.Original)) {
			return bad("site %#x has another kind or other original bytes before than after", s.Addr)
		}
	}
	edits := slices.Clone(t.Edits)
	slices.SortFunc(edits, func(a, b Edit) int { return cmp.Compare(a.Addr, b.Addr) })
	same := func(a, b Edit) bool {
		return a.Addr == b.Addr && a.Kind == b.Kind && bytes.Equal(a.Old, b.Old) && bytes.Equal(a.New, b.New)
	}
	if want := Diff(l, t.After); !slices.EqualFunc(edits, want, same) {
		return bad("its %d edits are not the %d differences between before and after", len(edits), len(want))
	}
	return nil
}

// inUser reports whether [addr, addr+n) lies in user space.
func inUser(addr, n uint64) bool {
	return addr < userEnd && n <= userEnd-addr
}

// isHex reports whether s is a hexadecimal number of n bytes, or of any number
// up to 64 if n is 0.
func isHex(s string, n int) bool {
	b, err := hex.DecodeString(s)
	return err == nil && (len(b) == n || n == 0 && len(b) > 0 && len(b) <= 64)
}

// Clean gives s as a ledger can hold it: the same if it is printable, else in
// quotes and with escapes, and cut to 65536 bytes. Whoever puts names that the
// target chose (of modules, files, symbols) into a ledger passes them through
// it.
func Clean(s string) string {
	if !printable(s, maxText) {
		s = strconv.Quote(s[:min(len(s), maxText)])
		s = strings.ToValidUTF8(s[:min(len(s), maxText)], "")
	}
	return s
}

// printable reports whether s is valid UTF-8 of at most limit bytes and safe to
// print on a terminal: no control, formatting or unassigned characters.
func printable(s string, limit int) bool {
	if len(s) > limit || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
