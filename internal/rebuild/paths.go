package rebuild

import (
	"cmp"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// real gives the path of a file without symbolic links, or the cleaned path if it is
// not there.
func real(path string) string {
	if r, err := filepath.EvalSymlinks(path); err == nil {
		return r
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(dir, filepath.Base(path))
	}
	return filepath.Clean(path)
}

func absolute(dir, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return dir + "/" + name
}

// within gives the path of a file relative to the tree, if it is in there.
func within(tree, path string) string {
	if rel, ok := strings.CutPrefix(path, tree+"/"); ok {
		return rel
	}
	return path
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
