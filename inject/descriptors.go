package inject

import (
	"bytes"
	"debug/elf"
	"errors"
	"slices"

	"hotpatch/elfsym"
)

// separate gives the agent a table of file descriptors of its own, close_range(2) with
// CLOSE_RANGE_UNSHARE, which holds only the standard ones. What the agent and the loader
// open there is nowhere to be seen in the program's table: a program that closes all
// descriptors cannot take them away, the loader cannot close one of the program's that has
// got the same number meanwhile, a program that has none left loses nothing, and all of
// them end with the agent.
//
// Code that is not the loader's must have the program's own table, since what it opens
// stays; so the agent does not do it where dlopen runs such code: constructors of
// libraries that the program has not loaded yet, and auditors (rtld-audit(7)). Patch code
// comes later, see join. A kernel before 5.9 cannot do it, and the table is shared.
func (a *Agent) separate(im *elfsym.Image) error {
	if a.separated || a.l.notMapped(im.Needed()) != "" || a.l.audited() {
		return nil
	}
	res, err := a.Do(Call{Fn: sysCloseRange, Args: [6]uint64{firstOther, lastDescriptor, closeRangeUnshare}, Syscall: true})
	if err != nil {
		return err
	}
	a.separated = int64(res[0]) == 0
	return nil
}

const (
	sysCloseRange     = 436
	firstOther        = 3         // after those of standard input, output and error
	lastDescriptor    = 1<<32 - 1 // ~0U
	closeRangeUnshare = 1 << 1    // CLOSE_RANGE_UNSHARE of <linux/close_range.h>
)

// join makes the agent one that has the program's descriptors: another thread, since
// none can go back to a table that it has left.
func (a *Agent) join() error {
	if !a.separated {
		return nil
	}
	if err := errors.Join(a.CleanStack(a.tracer), a.Close()); err != nil {
		return err
	}
	next, err := a.l.Start(a.tracer)
	if err != nil {
		return err
	}
	next.deadline = a.deadline
	abandon := a.abandon
	*a = *next
	return a.OnAbandon(abandon...)
}

// notMapped gives one of the libraries that is not in the process, or "".
func (l *Loader) notMapped(needed []string) string {
	for _, n := range needed {
		if !slices.ContainsFunc(l.space.Modules, func(m *elfsym.Module) bool { return m.Soname() == n }) {
			return n
		}
	}
	return ""
}

// audited reports whether the loader may tell auditors of what it loads.
func (l *Loader) audited() bool {
	if env, err := l.proc.Environ(); err != nil || slices.ContainsFunc(env, func(v []byte) bool { return bytes.HasPrefix(v, []byte("LD_AUDIT=")) }) {
		return true
	}
	exe := l.space.Executable()
	if exe == nil || exe.Image == nil {
		return true
	}
	_, audit := exe.Image.DynTag(elf.DT_AUDIT)
	_, dependencies := exe.Image.DynTag(elf.DT_DEPAUDIT)
	return audit || dependencies
}
