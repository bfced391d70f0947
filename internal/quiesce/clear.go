package quiesce

import "hotpatch/internal/unwind"

// Stack gives the memory that Check looks through of the stack that a thread runs on:
// up to the end of the mappings, which may hold much more than the stack. If known is
// true, all of it is in use. Nothing is there if the stack is not known.
func (c *Checker) Stack(t Thread) (start, end uint64, known bool) {
	r, ok := c.find(t.SP)
	if !ok {
		return 0, 0, false
	}
	start = t.SP &^ 7
	if !t.Main && t.SP < t.FS && t.FS < r.end {
		return start, t.FS &^ 7, true
	}
	return start, r.end, r.main
}

// CheckWalked is Check for a thread whose stack was walked completely: its frames
// are judged instead of the words of that stack. Precondition: w.Complete.
func (c *Checker) CheckWalked(t Thread, w *unwind.Walk, hits []Hit) (_ []Hit, err error) {
	hits = c.frames(w, c.checkPC(t, hits))
	current, _ := c.find(t.SP)
	home, ok := c.home(t)
	if !ok || home.start == current.start || len(c.stack.ranges) == 0 {
		return hits, nil
	}
	c.spans = append(c.spans[:0], span{home.start, home.end, nothing})
	for i := 0; i < len(c.spans); i++ {
		if hits, err = c.scanRange(t, c.spans[i], hits); err != nil {
			return hits, err
		}
	}
	return hits, nil
}

// frames appends the frames of a walk that are in the way.
func (c *Checker) frames(w *unwind.Walk, hits []Hit) []Hit {
	for i := range w.Frames {
		f := &w.Frames[i]
		r := c.stack.find(f.PC)
		if f.Exact {
			r = c.pc.find(f.PC)
		}
		if r != nil && len(hits) < cap(hits) {
			hits = append(hits, Hit{Range: r, Addr: f.PC, Where: OnStack, At: f.At})
		}
	}
	return hits
}

// Clear leaves of a thread's hits those that a walk of its stack does not
// disprove, and adds the frames that the walk itself shows to be in the way.
// Only a complete walk disproves anything, and only for words between its frames:
// such a word is a return address exactly if a frame says so. An address in a
// register is one only if a frame says so, too.
func (c *Checker) Clear(hits []Hit, w *unwind.Walk) []Hit {
	if !w.Complete {
		return hits
	}
	kept := hits[:0]
	for _, h := range hits {
		if h.Where == AtPC || h.Where == OnStack && (!w.Covers(h.At) || w.Returns(h.At)) {
			kept = append(kept, h)
		}
	}
	if len(kept) > 0 {
		return kept
	}
	return c.frames(w, kept)
}
