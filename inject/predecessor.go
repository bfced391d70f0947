package inject

import "bytes"

// predecessor sees to it that nothing of an earlier run is left that uses the
// region: the borrowed thread, the worker, the agent. After a run that ended in
// order this is nothing but a look.
func (l *Loader) predecessor(tcbTID uint64) error {
	d := l.region.data()
	var b [dPthread]byte
	if err := l.mem.ReadAt(b[:], d); err != nil {
		return err
	}
	if le.Uint64(b[dCommand:]) == 0 {
		return nil // the region has never been used
	}
	if l.inherited(le.Uint64(b[dOwner:])) {
		return nil
	}
	if tid := int(le.Uint64(b[dBorrowed:])); tid != 0 {
		l.mustLeave = append(l.mustLeave, leaving{inner: tid, lo: l.region.Base, hi: l.region.Base + rootOffset})
	}
	if err := l.dismiss(tcbTID); err != nil {
		return err
	}
	return l.poll("the worker thread of an earlier hotpatch did not end", func() (bool, error) { return l.workerGone(tcbTID) })
}

// workerGone reports whether the worker has ended: the kernel then clears the
// word where its id was. In a forked child the word is a copy, and there is no
// such thread.
func (l *Loader) workerGone(tcbTID uint64) (bool, error) {
	v, err := read64(l.mem, tcbTID)
	if err != nil || uint32(v) == 0 {
		return true, err
	}
	return l.threadGone(int(uint32(v)))
}

// inherited reports whether the region was last used in another process, of
// which this one is a forked child: it has the memory, but none of the threads.
func (l *Loader) inherited(owner uint64) bool { return owner != 0 && owner != l.self }

// dismiss ends an agent whose hotpatch was killed: it is told to do at once what
// it would do by itself some seconds later.
func (l *Loader) dismiss(tcbTID uint64) error {
	d := l.region.data()
	told := false
	return l.poll("the agent of an earlier hotpatch is still busy with a constructor or hook that has not returned", func() (bool, error) {
		var b [dSize]byte
		if err := l.mem.ReadAt(b[:], d); err != nil {
			return false, err
		}
		if le.Uint64(b[dGone:]) != 0 {
			return true, nil
		}
		tid := int(le.Uint64(b[dAgentTID:]))
		if tid == 0 {
			// It has not begun: its thread was made this moment, or never will.
			if le.Uint64(b[l.workerResult():]) != 0 || int64(le.Uint64(b[dCloneResult:])) <= 0 {
				return true, nil
			}
			gone, err := l.workerGone(tcbTID)
			return gone && l.libc.pthreadCreate == 0, err
		}
		if gone, err := l.threadGone(tid); gone || err != nil {
			return gone, err
		}
		if told || le.Uint64(b[dDone:]) != le.Uint64(b[dCommand:]) {
			return false, nil // busy with its last batch
		}
		told = true
		if err := l.mem.WriteAt(movedCalls(b[dAbandonCalls:], d, b[dCalls:]), d+dCalls); err != nil {
			return false, err
		}
		var w [8]byte
		put64(w[:], 0, le.Uint64(b[dCommand:])+1)
		if err := l.mem.WriteAt(w[:], d+dQuit); err != nil {
			return false, err
		}
		return false, l.mem.WriteAt(w[:], d+dCommand)
	})
}

// movedCalls gives the calls that undo a hotpatch's work as a batch, in which what they
// say of their own results is of the batch. last is the last batch, whose first two
// results they may be about: those stay until the first of them is done.
func movedCalls(calls []byte, d uint64, last []byte) []byte {
	moved := bytes.Clone(calls)
	for at := 0; at+callSize <= len(moved) && le.Uint64(moved[at:]) != 0; at += callSize {
		if word := le.Uint64(moved[at+callIf:]); word >= d+dAbandonCalls && word < d+dSize {
			put64(moved, at+callIf, word-(dAbandonCalls-dCalls))
		}
	}
	for _, at := range []int{callResult, callSize + callResult} {
		copy(moved[at:at+8], last[at:])
	}
	return moved
}

// Dismiss ends what is left of a hotpatch that was killed: its agent undoes its
// work and ends. It touches nothing else, and does nothing if there is no agent.
func (l *Loader) Dismiss() error {
	if l.region.Base == 0 {
		return nil
	}
	command, err := read64(l.mem, l.region.data()+dCommand)
	if err != nil || command == 0 {
		return err
	}
	owner, err := read64(l.mem, l.region.data()+dOwner)
	if err != nil {
		return err
	}
	if l.inherited(owner) {
		return nil
	}
	return l.dismiss(l.region.Base + tpOffset + l.libc.tidOffset)
}
