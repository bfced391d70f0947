// Package engine is what hotpatch does: Plan, Apply, List, Revert and Verify. Its
// functions read top to bottom like the description in docs/ARCHITECTURE.md.
//
// A plan is made while the target runs and touches nothing. Everything after
// that happens in one ptrace.Run: an agent in the target loads the library,
// islands are mapped and filled, base symbols are bound; then, in one pause, the
// edits are written. An edit is a place with the bytes that must be there before
// and the bytes that come after; apply, revert and recovery differ only in where their edits come
// from, and go through the same commit.
//
// The ledger in the target's memory is the only state. All commands that change
// it hold the target's lock.
package engine
