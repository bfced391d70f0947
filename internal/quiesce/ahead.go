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

// Each calls look for each of n threads, until it gives an error; thread gives thread i.
// Their stacks are read several at once for the Checks that look makes, if the memory can
// do that: a system call costs more than what it copies. Precondition: all are stopped.
func (c *Checker) Each(n int, thread func(i int) Thread, look func(i int) error) error {
	if c.ahead != nil {
		defer c.ahead.Forget()
	}
	fetched := 0
	for i := range n {
		if i == fetched {
			fetched += c.fetch(n-i, func(k int) Thread { return thread(i + k) })
		}
		if err := look(i); err != nil {
			return err
		}
	}
	return nil
}

// fetch reads the stacks of the first of n threads, and gives of how many, 1 at least.
func (c *Checker) fetch(n int, thread func(i int) Thread) int {
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
