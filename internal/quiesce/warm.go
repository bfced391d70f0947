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
	// The code of the check, too, is near the processor after that.
	if home, ok := c.home(Thread{Main: true}); ok {
		top := Thread{TID: p.PID(), SP: home.end - pageSize, Main: true}
		_ = c.Each(1, func(int) Thread { return top }, func(int) error {
			_, err := c.Check(top, make([]Hit, 0, 1))
			return err
		})
	}
}
