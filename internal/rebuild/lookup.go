package rebuild

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"hotpatch/internal/fault"
	"hotpatch/internal/intercept"
)

// A compilation depends on more than the files that it has read: on those that it would have read,
// had they been there, and on what its assembler reads.

// unseen gives changed files that a compilation may depend on although it has not read them: a new
// file that has the name of one that it has read, and may be found before that; a new file, if
// something that it has read asks what files there are (__has_include); and a file that something
// opened, if what it has read makes the assembler include files (.incbin).
func (b *rebuilder) unseen(c *intercept.Compile) (because []string) {
	for _, ch := range b.Changes {
		path := filepath.Join(b.root, ch.Path)
		name := []byte(filepath.Base(ch.Path))
		for _, d := range c.Deps {
			hit := false
			switch {
			case ch.New:
				text := b.text(d.Path)
				hit = filepath.Base(d.Path) == string(name) || text.asks && (d.Sum != "" || bytes.Contains(text.content, name))
			case d.Sum != "":
				hit = b.text(d.Path).binary && b.opens.times(path) > 0
			}
			if hit && real(d.Path) != real(path) {
				because = append(because, path)
				break
			}
		}
	}
	return because
}

// text is what matters here of a file that compilers have read.
type text struct {
	asks    bool   // __has_include, __has_embed
	binary  bool   // .incbin, #embed
	content []byte // if it asks
}

func (b *rebuilder) text(path string) text {
	t, ok := b.texts[path]
	if !ok {
		content, err := os.ReadFile(path)
		if err == nil {
			t.asks = bytes.Contains(content, []byte("__has_include")) || bytes.Contains(content, []byte("__has_embed"))
			t.binary = bytes.Contains(content, []byte("incbin")) || bytes.Contains(content, []byte("#embed")) || bytes.Contains(content, []byte("# embed"))
		}
		if t.asks {
			t.content = content
		}
		if b.texts == nil {
			b.texts = make(map[string]text)
		}
		b.texts[path] = t
	}
	return t
}

// standardInput refuses a change of files that something else than a compiler has read, if a part
// of the images was compiled from standard input: nobody knows what that was made of.
func (b *rebuilder) standardInput() *fault.Error {
	var opened []string
	for _, rel := range b.report.Unread {
		if b.opens.times(filepath.Join(b.root, rel)) > 0 {
			opened = append(opened, rel)
		}
	}
	if len(opened) == 0 {
		return nil
	}
	for _, c := range b.compiles {
		if _, images, linked := b.graph.of(c); c.Source == "" && (len(images) > 0 || linked && !b.covered) {
			return &fault.Error{Kind: fault.Unfit, Code: "source-from-stdin", What: "cannot tell what has to be compiled", Where: within(b.root, c.Output),
				Why:  fmt.Sprintf("its source came from standard input, and something else than a compiler has read %s", strings.Join(opened, ", ")),
				Hint: "let the build write the source to a file and compile that"}
		}
	}
	return nil
}
