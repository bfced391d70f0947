package inject

import (
	"bytes"
	"fmt"
	"time"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
)

// Loader knows how to get into one process. It is made by Prepare before the
// process is touched.
type Loader struct {
	proc  *procfs.Proc
	mem   *procfs.Mem
	space *elfsym.Space
	libc  *libc

	region Region // zero until there is one
	self   uint64 // the process's id as it sees itself
	nested bool   // its threads have other ids in its own PID namespace
	slack  uint64 // where the bootstrap stub goes, zero until it is needed

	// mustLeave are threads that may still be in code that is to be rewritten.
	mustLeave []leaving

	patience  time.Duration // for one step in the target
	stopLimit time.Duration // for one thread to stop
}

// Prepare finds everything that is needed to load a library into the process,
// without touching it. Faults of kind NoAccess: "static-executable",
// "unknown-libc", "no-slack".
func Prepare(p *procfs.Proc, mem *procfs.Mem, space *elfsym.Space) (*Loader, error) {
	l := &Loader{proc: p, mem: mem, space: space, patience: 5 * time.Second, stopLimit: 500 * time.Millisecond}
	st, err := p.Status(0)
	if err != nil {
		return nil, err
	}
	l.self = uint64(p.PID())
	if n := len(st.NSpid); n > 0 {
		l.self, l.nested = uint64(st.NSpid[n-1]), n > 1
	}
	if l.libc, err = findLibc(space); err != nil {
		return nil, err
	}
	if l.libc.pthreadCreate == 0 {
		if err := l.oneArena(); err != nil {
			return nil, err
		}
	}
	if r, ok := Find(space.Maps, mem); ok {
		l.region = r
	} else if _, _, err := l.findSlack(); err != nil {
		return nil, err
	}
	return l, nil
}

// oneArena refuses a program without a thread library whose allocator is
// confined to one arena: it uses that arena without a lock, and the agent would
// use it too.
func (l *Loader) oneArena() error {
	env, err := l.proc.Environ()
	if err != nil {
		return err
	}
	for _, v := range env {
		if bytes.HasPrefix(v, []byte("MALLOC_ARENA_MAX=")) || bytes.HasPrefix(v, []byte("GLIBC_TUNABLES=")) && bytes.Contains(v, []byte("arena_max")) {
			return &fault.Error{
				Kind: fault.NoAccess, Code: "one-arena", What: "cannot load a library into the process", Where: string(v),
				Why:  "the program has no thread library, and its allocator must not make an arena for another thread",
				Hint: "start it without that setting",
			}
		}
	}
	return nil
}

// Musl reports whether the process uses musl, whose dlclose does nothing and
// whose running threads get no storage for a new library's thread-locals.
func (l *Loader) Musl() bool { return l.libc.musl }

// NoThreadLocals says why a library with thread-local storage cannot be
// loaded, or gives "".
func (l *Loader) NoThreadLocals() string {
	if l.libc.musl {
		return "musl would give storage for new thread-local variables to none of the program's threads"
	}
	return ""
}

// Region gives hotpatch's region in the process, once there is one.
func (l *Loader) Region() (Region, bool) { return l.region, l.region.Base != 0 }

// near is where the region is wanted: at the C library.
func (l *Loader) near() uint64 {
	for _, m := range l.space.Modules {
		if libraryRole(m) != "" {
			return m.Lo
		}
	}
	return highestAddr
}

// poll asks done again and again until it says so, for as long as the loader has
// patience: at first every 20 µs, later every millisecond.
func (l *Loader) poll(what string, done func() (bool, error)) error {
	deadline := time.Now().Add(l.patience)
	for pause := 20 * time.Microsecond; ; pause = min(pause+pause/4, time.Millisecond) {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		if time.Now().After(deadline) {
			return l.late(fmt.Sprintf("%s within %v", what, l.patience))
		}
		time.Sleep(pause)
	}
}

// late is noAgent where more time may help.
func (l *Loader) late(why string) error {
	return &fault.Error{
		Kind: fault.Busy, Code: "no-agent",
		What: fmt.Sprintf("cannot run code in process %d now", l.proc.PID()), Why: why,
		Hint: "the process goes on unharmed; it may be starved of processor time: try again, give it more time with --timeout, or give hotpatch a higher priority (chrt --fifo 1)",
	}
}

func (l *Loader) noAgent(why string) error {
	return &fault.Error{
		Kind: fault.Failed, Code: "no-agent",
		What: fmt.Sprintf("cannot run code in process %d", l.proc.PID()), Why: why,
		Hint: "the process goes on unharmed; it may be stopped, starved of processor time or out of memory or threads",
	}
}

// lcGlobalLocale is LC_GLOBAL_LOCALE of <locale.h>.
const lcGlobalLocale = ^uint64(0)
