package build

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"

	"hotpatch/internal/rebuild"
)

// lines knows the source before and after a change. After it, lines that the change leaves alone
// are compiled under their old numbers.
type lines struct {
	tree  string            // as compilers see it
	at    string            // where it can be read, as it was before the change
	after map[string]string // files with what changes, by path in the tree
	known map[string]states
}

// states are the lines of a file before the change, and how often each is there in either state.
type states struct {
	text          []string
	before, after map[string]int
}

func newLines(req rebuild.Request) *lines {
	l := &lines{tree: req.Tree, at: cmp.Or(req.Origin, req.Tree), after: make(map[string]string), known: make(map[string]states)}
	for _, c := range req.Changes {
		l.after[c.Path] = c.Post
	}
	return l
}

// same reports whether a line is in the source before and after the change, once in each: a line
// of which there are several may have been taken for another where the states were compared.
func (l *lines) same(file string, line int) bool {
	s, ok := l.known[file]
	if !ok {
		s = l.read(file)
		l.known[file] = s
	}
	if line < 1 || line > len(s.text) {
		return false
	}
	text := s.text[line-1]
	return s.before[text] == 1 && s.after[text] == 1
}

// read gives nothing for files outside of the tree, and for those that the build makes.
func (l *lines) read(file string) (s states) {
	rel, err := filepath.Rel(l.tree, file)
	if err != nil || !filepath.IsLocal(rel) {
		return s
	}
	path := filepath.Join(l.at, rel)
	before, err := os.ReadFile(path)
	if err != nil {
		return s
	}
	after := before
	if changed, ok := l.after[rel]; ok {
		if after, err = os.ReadFile(changed); err != nil {
			return s
		}
	}
	s.text, s.before = count(before)
	_, s.after = count(after)
	return s
}

func count(content []byte) (text []string, times map[string]int) {
	times = make(map[string]int)
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSpace(line)
		text = append(text, line)
		times[line]++
	}
	return text, times
}
