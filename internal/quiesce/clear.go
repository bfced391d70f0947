package quiesce

import "hotpatch/internal/unwind"

// Clear leaves of a thread's hits those that a walk of its stack does not
// disprove, and adds the frames that the walk itself shows to be in the way.
// Only a complete walk disproves anything, and only for words between its frames:
// such a word is a return address exactly if a frame says so.
func (c *Checker) Clear(hits []Hit, w *unwind.Walk) []Hit {
	if !w.Complete {
		return hits
	}
	kept := hits[:0]
	for _, h := range hits {
		if h.Where == AtPC || !w.Covers(h.At) || w.Returns(h.At) {
			kept = append(kept, h)
		}
	}
	if len(kept) > 0 {
		return kept
	}
	for i := range w.Frames {
		f := &w.Frames[i]
		r := c.stack.find(f.PC)
		if f.Exact {
			r = c.pc.find(f.PC)
		}
		if r != nil && len(kept) < cap(kept) {
			kept = append(kept, Hit{Range: r, Addr: f.PC, Where: OnStack, At: f.At})
		}
	}
	return kept
}
