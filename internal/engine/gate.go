package engine

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"hotpatch/elfsym"
	"hotpatch/internal/quiesce"
	"hotpatch/internal/unwind"
	"hotpatch/ptrace"
)

// gate decides in a pause who is in the way, and remembers between the pauses
// what it needs to say so.
type gate struct {
	t      *target
	c      change
	memory bool // also look through memory for stacks that are nobody's current one
	stacks limited

	threads   int // of the target, when the pause was prepared
	check     *quiesce.Checker
	hits      []quiesce.Hit
	strangers int              // tries that met a stack which was not in the mappings
	walker    *unwind.Unwinder // made when a thread has to be walked for the first time
	since     map[int]time.Time
	words     *wordSearch
	pagemap   *os.File
	pages     *ptrace.Pages // which of the target's exist
}

// suspect is a thread in the way, as the pause leaves it.
type suspect struct {
	tid  int // 0: a word of memory
	hit  quiesce.Hit
	walk *unwind.Walk // nil if it was not walked
	call int64        // the system call that it was in, or -1
}

// Blocker is a thread that stood in the way, with the evidence.
type Blocker struct {
	TID      int       `json:"thread"` // 0: a suspended stack that is no thread's
	Thread   string    `json:"name"`
	Function string    `json:"function"`
	Addr     Hex       `json:"address"`           // that was found
	Where    string    `json:"where"`             // pc, register, stack or memory
	At       Hex       `json:"at,omitempty"`      // where the address stands
	Since    time.Time `json:"since"`             // when it was first seen there
	Chain    []Call    `json:"chain,omitempty"`   // its call chain, innermost first
	Walk     string    `json:"walk,omitempty"`    // why the call chain is not complete
	Hint     string    `json:"hint,omitempty"`    // what would help
	InCall   string    `json:"in_call,omitempty"` // what it is doing: a system call, or running
}

// Call is one frame of a call chain.
type Call struct {
	Function string `json:"function"`
	Module   string `json:"module"`
	Offset   uint64 `json:"offset"` // from the function; from the module if the function is not known
	PC       Hex    `json:"pc"`
	Signal   bool   `json:"signal,omitempty"` // a signal interrupted it here
}

// maxHits is how many words of one thread's stack are judged; a thread with more
// counts as in the way.
const maxHits = 256

func (t *target) newGate(c change) (*gate, error) {
	pagemap, err := t.pagemap()
	if err != nil {
		return nil, err
	}
	stacks := limited{Memory: ptrace.Paused(t.proc.PID(), t.mem), over: t.tooLong(c.maxPause)}
	stacks.Reserve()
	return &gate{t: t, c: c, memory: c.memory, stacks: stacks, hits: make([]quiesce.Hit, 0, maxHits), since: make(map[int]time.Time), pagemap: pagemap, pages: ptrace.NewPages(pagemap)}, nil
}

// limited is the target's memory, until a pause has taken too long: a stack may lie
// in a mapping of any size.
type limited struct {
	*ptrace.Memory
	until time.Time // zero: no limit
	over  error
}

// ReadAt reads memory.
func (l *limited) ReadAt(b []byte, addr uint64) error {
	if !l.until.IsZero() && time.Now().After(l.until) {
		return l.over
	}
	return l.Memory.ReadAt(b, addr)
}

// ready prepares the next pause, while the target runs.
func (g *gate) ready() error {
	tids, err := g.t.proc.Tasks()
	if err != nil {
		return err
	}
	slices.Sort(tids)
	g.threads = len(tids)
	maps, err := g.t.proc.Maps()
	if err != nil {
		return err
	}
	g.check = quiesce.New(g.c.pc, g.c.stack, maps, &g.stacks)
	g.check.Known(tids)
	g.pages.Forget()
	g.check.Sparse(g.pages)
	if g.walker != nil {
		g.walker.SetMaps(maps)
	}
	g.check.Warm(g.t.proc)
	if !g.memory {
		return nil
	}
	if g.words == nil {
		if g.words, err = g.t.newWordSearch(); err != nil {
			return err
		}
	}
	return g.words.ready(g.check)
}

// close lets go of what ready opened.
func (g *gate) close() {
	if g.words != nil {
		g.words.pages.close()
	}
	g.pagemap.Close()
}

// learn reads the unwind tables of all modules: some thread has to be walked.
func (g *gate) learn() error {
	space, err := elfsym.Read(g.t.proc) // with what was loaded meanwhile
	if err != nil {
		return err
	}
	if g.t.space != nil {
		g.t.space.Close()
	}
	g.t.space = space
	g.walker = unwind.New(space, g.t.mem)
	g.walker.Stub = g.t.isSlot
	g.walker.Prepare() // modules without tables end a walk, which says so
	g.walker.SetMaps(space.Maps)
	return nil
}

// isSlot reports whether an address is a slot of an island.
func (t *target) isSlot(pc uint64) bool {
	for i := range t.ledger.Islands {
		if is := &t.ledger.Islands[i]; pc >= is.Code && pc < is.Data {
			return true
		}
	}
	return false
}

// judge looks at all stopped threads, and appends those that are in the way to
// suspects, as far as there is capacity. unsure says that only a walk of one of them could
// tell, and that there is no walker yet.
func (g *gate) judge(world *ptrace.World, suspects []suspect) (_ []suspect, unsure bool, err error) {
	if g.c.maxPause > 0 {
		g.stacks.until = world.Began.Add(g.c.maxPause)
	}
	defer func() { g.stacks.until = time.Time{} }()
	threads := world.Threads
	err = g.check.Each(len(threads), func(i int) quiesce.Thread { return g.t.thread(threads[i]) }, func(i int) error {
		s, need, err := g.judgeOne(threads[i])
		if err == nil && s != nil && len(suspects) < cap(suspects) {
			suspects = append(suspects, *s)
			unsure = unsure || need
		}
		return err
	})
	return suspects, unsure, err
}

// rehearse judges a thread that does not exist, on the last page of the main stack, and
// forgets what came out: code and memory that have been in use lately are near the
// processor, and the first use of a page of them takes as long as judging several threads.
func (g *gate) rehearse() {
	end, ok := g.check.MainStack()
	if !ok {
		return
	}
	const page = 4096
	nobody := &ptrace.Thread{TID: g.t.proc.PID(), Regs: ptrace.Regs{Rsp: end - page}}
	before := g.strangers
	_, _, _ = g.judge(&ptrace.World{Threads: []*ptrace.Thread{nobody}, Began: time.Now()}, make([]suspect, 0, 1))
	g.strangers = before
}

// judgeOne looks at one of them. It gives nil if the thread is not in the way.
func (g *gate) judgeOne(th *ptrace.Thread) (s *suspect, unsure bool, err error) {
	r := &th.Regs
	if start, end, _ := g.check.Stack(g.t.thread(th)); end-start > bigStack {
		return g.judgeBig(th)
	}
	hits, err := g.check.Check(g.t.thread(th), g.hits[:0])
	if err != nil && errors.Is(err, quiesce.ErrUnknownStack) { // code that is not run is not fetched
		// Threads may begin so fast that every try meets a new one: then
		// looking at the mappings within the pause is the lesser evil.
		const enough = 3
		if g.strangers++; g.strangers > enough {
			if err := g.ready(); err != nil {
				return nil, false, err
			}
			g.check.Exact()
			hits, err = g.check.Check(g.t.thread(th), g.hits[:0])
		}
	}
	if err != nil || len(hits) == 0 {
		return nil, false, err
	}
	s = &suspect{tid: th.TID, hit: hits[0], call: -1}
	if r.InSyscall() {
		s.call = int64(r.OrigRax)
	}
	if g.walker == nil {
		return s, hits[0].Where != quiesce.AtPC, nil
	}
	walk := g.walker.Walk(unwindRegs(r), maxFrames)
	s.walk = &walk
	if len(hits) == cap(g.hits) {
		return s, false, nil
	}
	left := g.check.Clear(hits, &walk)
	if len(left) == 0 {
		return nil, false, nil
	}
	s.hit = left[0]
	return s, false, nil
}

// bigStack is how much of a stack is looked through before it is rather walked:
// the mapping may be much larger than the stack, one that holds thousands of
// coroutines say.
const bigStack = 256 << 10

// judgeBig is judgeOne for a thread whose stack is in a large mapping. If it can be
// walked, that says all; else it is looked through in the end.
func (g *gate) judgeBig(th *ptrace.Thread) (s *suspect, unsure bool, err error) {
	if g.walker == nil {
		any := quiesce.Hit{Range: &quiesce.Range{Name: "(not known before its stack is walked)"}, Addr: th.Regs.Rip, Where: quiesce.OnStack}
		return &suspect{tid: th.TID, hit: any}, true, nil
	}
	walk := g.walker.Walk(unwindRegs(&th.Regs), maxFrames)
	check := func() ([]quiesce.Hit, error) { return g.check.Check(g.t.thread(th), g.hits[:0]) }
	if walk.Complete {
		check = func() ([]quiesce.Hit, error) { return g.check.CheckWalked(g.t.thread(th), &walk, g.hits[:0]) }
	}
	hits, err := check()
	if err != nil || len(hits) == 0 {
		return nil, false, err
	}
	return &suspect{tid: th.TID, hit: hits[0], walk: &walk}, false, nil
}

// maxFrames is how many frames a walk has at the most.
const maxFrames = 4096

// thread is what quiesce needs to know of a stopped thread.
func (t *target) thread(th *ptrace.Thread) quiesce.Thread {
	return threadOf(th.TID, t.proc.PID(), &th.Regs)
}

func threadOf(tid, pid int, r *ptrace.Regs) quiesce.Thread {
	return quiesce.Thread{TID: tid, PC: r.Rip, SP: r.Rsp, FS: r.FsBase, Main: tid == pid, InSyscall: r.InSyscall(),
		Regs: [15]uint64{r.Rax, r.Rbx, r.Rcx, r.Rdx, r.Rsi, r.Rdi, r.Rbp, r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15}}
}

func unwindRegs(r *ptrace.Regs) unwind.Regs {
	return unwind.Regs{
		RAX: r.Rax, RBX: r.Rbx, RCX: r.Rcx, RDX: r.Rdx, RSI: r.Rsi, RDI: r.Rdi, RBP: r.Rbp, RSP: r.Rsp,
		R8: r.R8, R9: r.R9, R10: r.R10, R11: r.R11, R12: r.R12, R13: r.R13, R14: r.R14, R15: r.R15, RIP: r.Rip,
	}
}

// describe turns suspects into what a person or a program can use. The target
// runs again.
func (g *gate) describe(suspects []suspect) []Blocker {
	now := time.Now()
	seen := make(map[int]time.Time, len(suspects))
	blockers := make([]Blocker, 0, len(suspects))
	for i := range suspects {
		s := &suspects[i]
		b := Blocker{TID: s.tid, Function: s.hit.Range.Name, Addr: Hex(s.hit.Addr), Where: string(s.hit.Where), At: Hex(s.hit.At), Since: now}
		if s.tid != 0 {
			if since, ok := g.since[s.tid]; ok {
				b.Since = since
			}
			seen[s.tid] = b.Since
			b.Thread, _ = g.t.proc.Comm(s.tid)
			b.InCall = g.doing(s)
		}
		if s.walk != nil {
			g.walker.Describe(s.walk)
			b.Chain = chainOf(s.walk)
			b.Walk = s.walk.Why
		}
		b.Hint = b.advice()
		blockers = append(blockers, b)
	}
	g.since = seen
	return blockers
}

func chainOf(w *unwind.Walk) []Call {
	calls := make([]Call, 0, len(w.Frames))
	for i := range w.Frames {
		f := &w.Frames[i]
		c := Call{Function: f.Function, Offset: f.Offset, PC: Hex(f.PC), Signal: f.Signal}
		if f.Module != nil {
			c.Module = f.Module.Name
			if f.Function == "" {
				c.Offset = f.Module.Vaddr(f.PC)
			}
		}
		calls = append(calls, c)
	}
	return calls
}

// doing says what a thread was doing when it was stopped.
func (g *gate) doing(s *suspect) string {
	if s.call >= 0 {
		return fmt.Sprintf("in system call %d", s.call)
	}
	if sys, err := g.t.proc.Syscall(s.tid); err == nil && !sys.Running && sys.Nr < 0 {
		return "blocked"
	}
	return "running"
}

// advice says what would help against a blocker.
func (b *Blocker) advice() string {
	switch {
	case b.Where == string(quiesce.InMemory):
		return "a suspended coroutine or saved context returns there; let it finish"
	case b.Walk != "":
		return "its stack cannot be walked to the end (" + b.Walk + "), so a word that only looks like a return address counts as one"
	case b.InCall != "" && b.InCall != "running":
		return "it waits inside the function; whatever wakes it, such as a request or a connection, lets it leave"
	}
	return "it returns there when its work is done; a function that never returns cannot be replaced while it runs"
}
