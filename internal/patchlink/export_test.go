package patchlink

import (
	"testing"

	"hotpatch/internal/objfile"
	"hotpatch/internal/testtarget"
)

// For the tests with runpre, which depends on this package.
const (
	RowsC   = rowsC + mainC
	Library = rowsC
)

// CompileBoth is compileBoth.
func CompileBoth(t testing.TB, name, text string, shared bool, compiler string, flags []string) (image string, pre, post *objfile.Object) {
	t.Helper()
	c := compileBoth(t, name, text, shared, compiler, flags)
	return c.image, c.pre, c.post
}

// RunModel applies a patch of RowsC to a process, and reverts it.
func RunModel(t *testing.T, p *testtarget.Process, patch string) {
	t.Helper()
	runModel(t, p, patch)
}
