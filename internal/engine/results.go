package engine

import (
	"debug/elf"
	"encoding/hex"
	"fmt"
	"time"

	"hotpatch/elfsym"
	"hotpatch/internal/ledger"
	"hotpatch/trampoline"
)

// Hex is an address as it is printed and put into JSON.
type Hex uint64

// MarshalText gives 0x….
func (h Hex) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%#x", uint64(h)), nil }

// String gives 0x….
func (h Hex) String() string { return fmt.Sprintf("%#x", uint64(h)) }

// HexBytes is bytes as they are put into JSON.
type HexBytes []byte

// MarshalText gives two digits a byte.
func (b HexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }

// ApplyResult is what apply did, or would do, with one patch.
type ApplyResult struct {
	PID          int             `json:"pid"`
	Program      string          `json:"program"`
	Patch        string          `json:"patch"`
	Version      uint64          `json:"version"`
	File         string          `json:"file"`
	SHA256       string          `json:"sha256"`
	State        string          `json:"state"` // applied, already-applied, would-apply, refused, failed
	Replaced     []ReplacedState `json:"replaced"`
	NewFunctions []string        `json:"new_functions,omitempty"`
	Bound        []BoundState    `json:"bound,omitempty"`
	BoundPlaces  int             `json:"bound_places,omitempty"` // of the library, filled with addresses in the process
	Notes        []string        `json:"notes,omitempty"`
	pauseResult
}

// BoundState is a reference of the patch to the target.
type BoundState struct {
	Symbol  string `json:"symbol"`
	Address Hex    `json:"address"`
}

// pauseResult is how the pause went.
type pauseResult struct {
	PauseMicroseconds float64 `json:"pause_us,omitempty"`
	Tries             int     `json:"tries,omitempty"`
	Threads           int     `json:"threads,omitempty"`
	Seconds           float64 `json:"seconds,omitempty"`
}

func (p *pauseResult) setPause(s pauseStats) {
	p.PauseMicroseconds = float64(s.Pause) / float64(time.Microsecond)
	p.Tries, p.Threads = s.Tries, s.Threads
}

// ReplacedState is one function of a plan.
type ReplacedState struct {
	Function string      `json:"function"` // demangled
	Mangled  []string    `json:"mangled"`
	Module   string      `json:"module"`
	Old      Hex         `json:"old"`
	Size     uint64      `json:"size"`
	New      Hex         `json:"new_offset"` // in the patch library
	Method   string      `json:"method"`
	Sites    []SiteState `json:"sites"`
	Notes    []string    `json:"notes,omitempty"`
}

// SiteState is one place of a plan.
type SiteState struct {
	Address Hex      `json:"address"`
	Kind    string   `json:"kind"`
	Old     HexBytes `json:"old"`
	Where   string   `json:"where,omitempty"`
}

// method says in a word how a function is replaced.
func (r *Replacement) method() string {
	m := ""
	if r.HasEntry {
		m = "entry"
		if r.Jump.Form == trampoline.Pad {
			m = "entry (pad)"
		}
		if r.far() {
			m += " (14 bytes)"
		}
	}
	if n := len(r.Slots); n > 0 {
		if m != "" {
			m += " + "
		}
		m += fmt.Sprintf("%d vtable slot", n)
		if n > 1 {
			m += "s"
		}
	}
	return m
}

// far reports whether the jump holds the destination itself, without an island.
func (r *Replacement) far() bool {
	return r.HasEntry && r.Jump.Writes[0].Len == trampoline.FarSize
}

func (t *target) applyResult(p *Plan, state string) *ApplyResult {
	res := &ApplyResult{
		PID: t.proc.PID(), Program: t.program(), Patch: p.Name, Version: p.Version, File: p.Patch.Path, SHA256: p.Patch.SHA256,
		State: state, Replaced: []ReplacedState{}, NewFunctions: demangled(p.New), BoundPlaces: len(p.Patch.Binds), Notes: p.Notes,
	}
	for _, r := range p.Replacements {
		rs := ReplacedState{Function: r.Name(), Mangled: r.Names, Module: r.Module.Name, Old: Hex(r.Old), Size: r.Size, New: Hex(r.New), Method: r.method(), Notes: r.Notes, Sites: []SiteState{}}
		if r.HasEntry {
			rest := r.Original
			for _, w := range r.Jump.Writes {
				rs.Sites = append(rs.Sites, SiteState{Address: Hex(w.Addr), Kind: "entry", Old: rest[:w.Len]})
				rest = rest[w.Len:]
			}
		}
		for _, s := range r.Slots {
			where := ""
			if s.Table.Name != "" {
				where = fmt.Sprintf("%s+%#x", elfsym.Demangle(s.Table.Name), s.Addr-s.Table.Addr)
			}
			if s.Module != nil {
				where = s.Module.Name + " " + where
			}
			rs.Sites = append(rs.Sites, SiteState{Address: Hex(s.Addr), Kind: "vtable", Old: le64(s.Value), Where: where})
		}
		res.Replaced = append(res.Replaced, rs)
	}
	for _, b := range p.Refs {
		res.Bound = append(res.Bound, BoundState{b.query, Hex(b.addr)})
	}
	return res
}

func demangled(names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, elfsym.Demangle(n))
	}
	return out
}

func le64(v uint64) []byte {
	b := make([]byte, 8)
	for i := range b {
		b[i] = byte(v >> (8 * i))
	}
	return b
}

// RevertResult is what revert did.
type RevertResult struct {
	PID      int          `json:"pid"`
	Program  string       `json:"program"`
	State    string       `json:"state"` // reverted, nothing-applied, would-revert, failed
	Reverted []PatchState `json:"reverted"`
	Sites    int          `json:"sites"` // places that are changed
	Unloaded []string     `json:"unloaded,omitempty"`
	Kept     []KeptState  `json:"kept,omitempty"` // asked to be unloaded, and still mapped
	Notes    []string     `json:"notes,omitempty"`
	pauseResult
}

func (t *target) revertResult(ids []uint64) *RevertResult {
	r := &RevertResult{PID: t.proc.PID(), Program: t.program(), State: "reverted", Reverted: []PatchState{}}
	for _, id := range ids {
		r.Reverted = append(r.Reverted, patchState(t.ledger, t.ledger.Patch(id), false))
	}
	return r
}

// KeptState is a library that could not be unloaded.
type KeptState struct {
	Patch string `json:"patch"`
	Why   string `json:"why"`
}

// HostState is what is known of all processes of a host.
type HostState struct {
	Processes    []*ProcessState `json:"processes"` // those with patches
	Examined     int             `json:"examined"`
	Inaccessible int             `json:"inaccessible"` // may not be looked at
	Damaged      int             `json:"damaged"`      // with a ledger that cannot be read
}

// ProcessState is the patches of one process, compared with its memory.
type ProcessState struct {
	PID         int          `json:"pid"`
	Program     string       `json:"program"`
	Exe         string       `json:"exe"`
	Patches     []PatchState `json:"patches"`
	Differences []Difference `json:"differences,omitempty"`
	Interrupted bool         `json:"interrupted,omitempty"` // a hotpatch was killed; the next apply or revert settles it
	Unpatched   []string     `json:"unpatched,omitempty"`   // verify: functions of a replaced name that are not patched
	Error       string       `json:"error,omitempty"`       // why it could not be looked at
	ErrorCode   string       `json:"error_code,omitempty"`  // the same for programs
}

// Altered reports whether memory is not what the ledger says.
func (s *ProcessState) Altered() bool { return len(s.Differences) > 0 }

// PatchState is one patch in a process.
type PatchState struct {
	Name        string     `json:"name"`
	Version     uint64     `json:"version"`
	State       string     `json:"state"` // active, shadowed, inert, altered
	Description string     `json:"description,omitempty"`
	CVEs        []string   `json:"cves,omitempty"`
	File        string     `json:"file"`
	SHA256      string     `json:"sha256"`
	BuildID     string     `json:"build_id,omitempty"`
	AppliedAt   time.Time  `json:"applied_at"`
	RevertedAt  *time.Time `json:"reverted_at,omitempty"`
	Kept        string     `json:"kept,omitempty"` // why the library of a reverted patch is still mapped
	Functions   []Replaced `json:"functions"`
	Library     Hex        `json:"library"` // where the library is mapped
}

// Replaced is one function of an applied patch.
type Replaced struct {
	Function string `json:"function"` // demangled
	Mangled  string `json:"mangled"`
	Module   string `json:"module"`
	Method   string `json:"method"`
	Old      Hex    `json:"old"`
	New      Hex    `json:"new"`
	InForce  bool   `json:"in_force"` // no later patch has replaced it again
}

// Difference is a site whose memory is not what the ledger says.
type Difference struct {
	Address  Hex      `json:"address"`
	Kind     string   `json:"kind"`
	Function string   `json:"function"` // demangled
	Mangled  string   `json:"mangled"`
	Module   string   `json:"module"`
	Want     HexBytes `json:"want"`
	Have     HexBytes `json:"have"` // empty: unreadable
}

// patchState describes a patch; altered says that one of its sites differs.
func patchState(l *ledger.Ledger, p *ledger.Patch, altered bool) PatchState {
	s := PatchState{Name: p.Name, Version: p.Version, Description: p.Description, CVEs: p.CVEs, File: p.File, SHA256: p.SHA256, BuildID: p.BuildID,
		AppliedAt: p.AppliedAt, Functions: []Replaced{}, Library: Hex(p.Lo)}
	top, stack := false, l.Stacks()
	for _, r := range p.Replaced {
		cur, ok := ledger.Top(stack(r.Old))
		inForce := ok && cur.ID == p.ID && p.State == ledger.Active
		top = top || inForce
		s.Functions = append(s.Functions, Replaced{Function: elfsym.Demangle(r.Function), Mangled: r.Function, Module: r.Module, Method: r.Method, Old: Hex(r.Old), New: Hex(r.New), InForce: inForce})
	}
	switch {
	case p.State == ledger.Inert:
		s.State = "inert"
		at := p.RevertedAt
		s.RevertedAt, s.Kept = &at, p.Kept
	case altered:
		s.State = "altered"
	case top:
		s.State = "active"
	default:
		s.State = "shadowed"
	}
	return s
}

// patchLabel names a patch with its version, as revert takes it.
func patchLabel(name string, version uint64) string { return fmt.Sprintf("%s@%d", name, version) }

func kindOf(s elfsym.Symbol) string {
	switch {
	case s.IsIFunc():
		return "ifunc"
	case s.IsFunc():
		return "function"
	}
	return "object"
}

func bindingOf(s elfsym.Symbol) string {
	switch s.Bind {
	case elf.STB_LOCAL:
		return "local"
	case elf.STB_GLOBAL:
		return "global"
	case elf.STB_WEAK:
		return "weak"
	}
	return "unique"
}
