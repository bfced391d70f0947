package engine

import (
	"context"

	"hotpatch/elfsym"
	"hotpatch/internal/ledger"
)

// SymbolState is a symbol of a process.
type SymbolState struct {
	Name      string `json:"name"` // demangled
	Mangled   string `json:"mangled"`
	Module    string `json:"module"`
	File      string `json:"file,omitempty"`
	Address   Hex    `json:"address"`
	Size      uint64 `json:"size"`
	Kind      string `json:"kind"`    // function, ifunc, object
	Binding   string `json:"binding"` // global, weak, local, unique
	Table     string `json:"table"`
	Query     string `json:"query"`                // how to name exactly this one
	PatchedBy string `json:"patched_by,omitempty"` // patch@version in force
}

// Symbols visits the symbols of a process that match a pattern (see
// elfsym.Space.Search). It attaches to nothing.
func Symbols(pid int, pattern string, debugDirs []string, visit func(SymbolState)) error {
	t, err := open(context.Background(), pid, false, nil)
	if err != nil {
		return err
	}
	defer t.close()
	if err := t.resolve(debugDirs); err != nil {
		return err
	}
	stack := t.ledger.Stacks()
	return t.space.Search(pattern, func(s elfsym.Symbol) bool {
		st := SymbolState{Name: s.Demangled(), Mangled: s.Name, Module: s.Module.Name, File: s.File, Address: Hex(s.Addr), Size: s.Size,
			Kind: kindOf(s), Binding: bindingOf(s), Table: s.Table.String(), Query: s.Query()}
		if p, ok := ledger.Top(stack(s.Addr)); ok {
			st.PatchedBy = patchLabel(p.Name, p.Version)
		}
		visit(st)
		return true
	})
}
