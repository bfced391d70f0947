package inject

import "encoding/binary"

// The region: one mapping of 1 MiB, aligned to 1 MiB, of which the first two
// pages are r-x (the code page, and the root page for the ledger) and the rest
// is rw-. Pages that are not touched cost nothing.
const (
	regionSize  = 0x100000
	regionAlign = 0x100000
	execSize    = 0x2000 // code page and root page

	rootOffset    = 0x1000 // the ledger's root page
	dataOffset    = 0x2000 // D: slots, tables of calls
	scratchOffset = 0x3000 // strings and results of calls
	scratchSize   = 0x4000
	frameOffset   = 0x7000  // unwind information of run_calls
	tlsOffset     = 0x8000  // zeros below the worker's thread pointer
	tpOffset      = 0xc0000 // the worker's thread control block
	tcbSize       = 0x1000
	stackTop      = 0xffff0 // the worker's stack grows down from here to tpOffset+tcbSize
)

// Offsets in D, as stub_amd64.S has them.
const (
	dSaved        = 0x00 // r15 … rdi
	dRip          = 0x78
	dRipRestart   = 0x80
	dRipNoHand    = 0x88
	dMaskBlock    = 0x90
	dMaskWorker   = 0xa0
	dCloneFlags   = 0xa8
	dCloneStack   = 0xb0
	dCloneTLS     = 0xb8
	dCloneCTID    = 0xc0
	dCloneResult  = 0xc8
	dReleased     = 0xd0
	dMXCSR        = 0xd8
	dZeroTime     = 0xe0
	dShortTime    = 0xf0
	dLongTime     = 0x100
	dCommand      = 0x110
	dDone         = 0x118
	dQuit         = 0x120
	dGone         = 0x128
	dShortNaps    = 0x130
	dLongNaps     = 0x138
	dUnwindSetGR  = 0x140
	dUnwindSetIP  = 0x148
	dAgentTID     = 0x150 // of the agent, as it sees it
	dOwner        = 0x160 // the process, as it sees itself: a forked child inherits the page, but none of the threads
	dBorrowed     = 0x158 // the thread that was sent to the clone stub, as it sees it
	dPthread      = 0x180 // pthread_t of the agent
	dAttr         = 0x190 // pthread_attr_t of the agent, 56 bytes
	dWorkerCalls  = 0x200
	dCalls        = 0x400
	dAbandonCalls = 0xa00
	dSize         = 0x1000

	callSize   = 80
	callFlags  = 56
	callIf     = 64
	callResult = 72
	maxCalls   = (dAbandonCalls-dCalls)/callSize - 1
)

const (
	// blockMask is what a borrowed thread blocks while it is away: everything
	// but the faults, which reset a handler when they come while blocked.
	blockMask = ^uint64(1<<3 | 1<<4 | 1<<6 | 1<<7 | 1<<10 | 1<<30)
	// workerMask is what our own threads block: in addition to the faults it
	// leaves the two signals open by which the C library reaches every thread (cancellation and setuid).
	workerMask = blockMask &^ (1<<31 | 1<<32)

	// cloneFlags: a thread of the process, with its own TLS; the kernel writes the
	// thread's id where child_tid points, and clears it when the thread ends.
	// VM|FS|FILES|SIGHAND|THREAD|SYSVSEM|SETTLS|CHILD_CLEARTID|CHILD_SETTID
	cloneFlags = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x80000 | 0x200000 | 0x1000000

	mxcsrDefault = 0x1f80

	// agentStack is how much stack the agent gets: what the loader, constructors and
	// hooks need in any program, also in one whose own threads have very little
	// (RLIMIT_STACK, pthread_setattr_default_np) or too much to be mapped. It is less
	// than a large page, which the kernel would give to it whole.
	agentStack = 1 << 20
)

var le = binary.LittleEndian

func put64(b []byte, off int, v uint64) { le.PutUint64(b[off:], v) }
