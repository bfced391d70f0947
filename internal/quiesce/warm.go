package quiesce

import (
	"time"

	"hotpatch/internal/procfs"
)

const (
	maxWarm = 50 * time.Millisecond // for all threads
	warmed  = 64 << 10              // bytes of one stack
)

// Warm reads the stacks of the threads that sleep, while the process runs, and
// forgets what it has read. Most of what a check costs in the pause is fetching
// stacks into the processor's caches and the kernel's tables of their pages; after
// Warm they are there. It may be left out, and whatever it meets is no error.
func (c *Checker) Warm(p *procfs.Proc) {
	tids, err := p.Tasks()
	if err != nil {
		return
	}
	for began, i := time.Now(), 0; i < len(tids) && time.Since(began) < maxWarm; i++ {
		sys, err := p.Syscall(tids[i])
		if err != nil || sys.Running {
			continue
		}
		sp := sys.SP &^ 7
		if r, ok := c.find(sp); ok && sp >= r.start {
			_ = c.mem.ReadAt(c.buf[:min(uint64(len(c.buf)), warmed, r.end-sp)], sp)
		}
	}
}

// MainStack gives where the stack of the main thread ends, if there is one.
func (c *Checker) MainStack() (end uint64, ok bool) {
	home, ok := c.home(Thread{Main: true})
	return home.end, ok
}
