package rebuild

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"hotpatch/internal/intercept"
)

// relinked says what the change does to how the images are linked, besides files that are new or gone
// and libraries. A patch does not carry that.
func (b *rebuilder) relinked(after *graph) (list []string) {
	explained := make(map[string]bool)
	for _, w := range b.gone {
		explained[b.called(w)] = true
	}
	for _, u := range b.fresh {
		for _, path := range []string{u.Source, u.Output} {
			explained[real(absolute(b.root, path))] = true
		}
	}
	for _, was := range b.graph.outputs {
		if len(was.images) == 0 {
			continue
		}
		i := slices.IndexFunc(after.outputs, func(o *linked) bool { return o.path == was.path })
		if i < 0 {
			continue // under another name, or not at all
		}
		now := after.outputs[i]
		var how []string
		how = append(how, b.apart("without", b.outputs(was), b.outputs(now), explained)...)
		how = append(how, b.apart("with", b.outputs(now), b.outputs(was), explained)...)
		how = append(how, b.apart("without", was.options, now.options, nil)...)
		how = append(how, b.apart("with", now.options, was.options, nil)...)
		if len(how) > 0 {
			list = append(list, fmt.Sprintf("%s is linked %s", within(b.root, was.path), strings.Join(how, ", ")))
		}
	}
	return list
}

// apart gives what only the first of two lists has.
func (b *rebuilder) apart(word string, list, other []string, explained map[string]bool) (how []string) {
	for _, x := range list {
		if !slices.Contains(other, x) && !explained[x] {
			how = append(how, word+" "+within(b.root, x))
		}
	}
	return how
}

// outputs gives the objects that are in what was linked.
func (b *rebuilder) outputs(l *linked) (list []string) {
	for c := range l.objects {
		list = append(list, b.called(c))
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// called gives the path of an object, or of its source if that was compiled and linked by one command.
func (b *rebuilder) called(c *intercept.Compile) string {
	if strings.HasPrefix(c.Output, filepath.Join(b.Work, "watch")+"/") {
		return real(c.Source)
	}
	return real(c.Output)
}
