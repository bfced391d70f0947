package quiesce

// ahead is memory of which several ranges can be read with one system call, for the
// reads that follow; ptrace.Memory is.
type ahead interface {
	Plan(addr uint64, n int) bool // false: there is no room for it
	Fetch()
	Forget()
}

// maxAhead is how much of one stack is read ahead.
const maxAhead = 64 << 10

// Fetch reads the stacks of the first of n threads at once, if the memory can do that:
// a system call costs more than what it copies. It gives of how many threads, 1 at least;
// Check of these, in their order, is to follow. thread gives thread i.
func (c *Checker) Fetch(n int, thread func(i int) Thread) int {
	if c.ahead == nil {
		return n
	}
	c.ahead.Forget()
	defer c.ahead.Fetch()
	for i := range n {
		start, end, known := c.Stack(thread(i))
		if known && end-start <= maxAhead && !c.ahead.Plan(start, int(end-start)) {
			return max(i, 1)
		}
	}
	return n
}

// Forget drops what Fetch has read. It must be called before the threads run again.
func (c *Checker) Forget() {
	if c.ahead != nil {
		c.ahead.Forget()
	}
}
