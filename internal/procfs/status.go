package procfs

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"hotpatch/internal/fault"
)

// Status is what /proc/PID/status or /proc/PID/task/TID/status tells of one
// thread (proc_pid_status(5)). Signal sets have bit n-1 for signal n.
type Status struct {
	Name      string // command name, at most 15 bytes for user threads
	State     byte   // R running, S sleeping, D disk sleep, T stopped, t traced, Z zombie, X dead, I idle
	Tgid, Pid int    // process and thread, in the reader's PID namespace
	PPid      int
	TracerPid int    // thread that traces this one; 0 if none
	Uid, Gid  [4]int // real, effective, saved, file system
	NSpid     []int  // thread id in each nested PID namespace, outermost first; nil on kernels without them
	Threads   int

	SigPnd, ShdPnd         uint64 // pending for the thread, for the process
	SigBlk, SigIgn, SigCgt uint64 // blocked, ignored, caught
	CapEff                 uint64 // effective capabilities

	NoNewPrivs bool
	Seccomp    int // 0 off, 1 strict, 2 filter

	// HasMemory says that the thread has an address space: zombies and kernel
	// threads have none.
	HasMemory bool
	// Kthread says that this is a kernel thread. Before Linux 6.8 the kernel
	// does not say so; then it is inferred from the missing address space of a
	// thread that is not a zombie.
	Kthread bool
	// ShadowStack says that the thread runs with a user shadow stack.
	ShadowStack bool
	// Switches is how often the thread has gone to sleep: whoever sleeps as often
	// as before has not moved.
	Switches uint64
}

// Dead reports whether the thread has ended: it is a zombie or being removed.
func (s Status) Dead() bool { return s.State == 'Z' || s.State == 'X' || s.State == 'x' }

// Caps that decide what hotpatch may do (linux/capability.h).
const (
	CapSysPtrace         = 19
	CapSysAdmin          = 21
	CapCheckpointRestore = 40
)

// HasCap reports whether the numbered capability is effective.
func (s Status) HasCap(n uint) bool { return s.CapEff>>n&1 != 0 }

// ParseStatus parses the whole text of a status file. Fields that it does not
// know are passed over; a field that every supported kernel writes and that is
// missing, a field that occurs twice, and a value of another form are errors
// (fault "damaged-status").
func ParseStatus(data []byte) (Status, error) {
	var s Status
	var kthread, seen fieldSet
	for n := 1; len(data) > 0; n++ {
		line, rest, whole := bytes.Cut(data, []byte{'\n'})
		if !whole {
			return Status{}, damagedStatus(line, "the last line is cut off")
		}
		data = rest
		key, value, ok := bytes.Cut(line, []byte{':'})
		if !ok {
			return Status{}, damagedStatus(line, "there is no colon")
		}
		bit, known := statusFields[string(key)]
		if !known {
			continue
		}
		if seen&bit != 0 {
			return Status{}, damagedStatus(line, "the field occurs twice")
		}
		seen |= bit
		if bit == fieldKthread {
			kthread = bit
		}
		if !s.set(bit, value) {
			return Status{}, damagedStatus(line, "the value has an unknown form")
		}
	}
	if missing := fieldsRequired &^ seen; missing != 0 {
		for name, bit := range statusFields {
			if missing&-missing == bit {
				return Status{}, damagedStatus(nil, "the field "+name+" is missing")
			}
		}
	}
	if kthread == 0 {
		s.Kthread = !s.HasMemory && !s.Dead()
	}
	return s, nil
}

func damagedStatus(line []byte, why string) error {
	e := &fault.Error{Kind: fault.Failed, Code: "damaged-status", What: "cannot understand /proc/PID/status", Why: why}
	if line != nil {
		e.Where = fmt.Sprintf("%.200q", line)
	}
	return e
}

type fieldSet uint32

const (
	fieldName fieldSet = 1 << iota
	fieldState
	fieldTgid
	fieldPid
	fieldPPid
	fieldTracerPid
	fieldUid
	fieldGid
	fieldThreads
	fieldSigPnd
	fieldShdPnd
	fieldSigBlk
	fieldSigIgn
	fieldSigCgt
	fieldCapEff
	fieldsRequired = 1<<iota - 1
)

const (
	fieldNSpid fieldSet = 1 << (iota + 20)
	fieldNoNewPrivs
	fieldSeccomp
	fieldKthread
	fieldVMSize
	fieldFeatures
	fieldSwitches
)

var statusFields = map[string]fieldSet{
	"Name": fieldName, "State": fieldState, "Tgid": fieldTgid, "Pid": fieldPid, "PPid": fieldPPid,
	"TracerPid": fieldTracerPid, "Uid": fieldUid, "Gid": fieldGid, "Threads": fieldThreads,
	"SigPnd": fieldSigPnd, "ShdPnd": fieldShdPnd, "SigBlk": fieldSigBlk, "SigIgn": fieldSigIgn,
	"SigCgt": fieldSigCgt, "CapEff": fieldCapEff,
	"NSpid": fieldNSpid, "NoNewPrivs": fieldNoNewPrivs, "Seccomp": fieldSeccomp, "Kthread": fieldKthread,
	"VmSize": fieldVMSize, "x86_Thread_features": fieldFeatures, "voluntary_ctxt_switches": fieldSwitches,
}

// set stores one value and reports whether it had the right form.
func (s *Status) set(field fieldSet, value []byte) bool {
	v := strings.TrimSpace(string(value))
	var err error
	switch field {
	case fieldName:
		// The kernel writes a tab, then the name with newline and backslash
		// escaped; the name may begin or end with spaces.
		name, ok := bytes.CutPrefix(value, []byte{'\t'})
		s.Name = strings.NewReplacer(`\\`, `\`, `\n`, "\n").Replace(string(name))
		return ok
	case fieldState:
		if v == "" {
			return false
		}
		s.State = v[0]
		return 'A' <= v[0] && v[0] <= 'Z' || 'a' <= v[0] && v[0] <= 'z'
	case fieldTgid:
		s.Tgid, err = number(v)
	case fieldPid:
		s.Pid, err = number(v)
	case fieldPPid:
		s.PPid, err = number(v)
	case fieldTracerPid:
		s.TracerPid, err = number(v)
	case fieldThreads:
		s.Threads, err = number(v)
	case fieldUid:
		return ids(v, &s.Uid)
	case fieldGid:
		return ids(v, &s.Gid)
	case fieldSigPnd:
		s.SigPnd, err = strconv.ParseUint(v, 16, 64)
	case fieldShdPnd:
		s.ShdPnd, err = strconv.ParseUint(v, 16, 64)
	case fieldSigBlk:
		s.SigBlk, err = strconv.ParseUint(v, 16, 64)
	case fieldSigIgn:
		s.SigIgn, err = strconv.ParseUint(v, 16, 64)
	case fieldSigCgt:
		s.SigCgt, err = strconv.ParseUint(v, 16, 64)
	case fieldCapEff:
		s.CapEff, err = strconv.ParseUint(v, 16, 64)
	case fieldNSpid:
		for _, f := range strings.Fields(v) {
			n, err := number(f)
			if err != nil {
				return false
			}
			s.NSpid = append(s.NSpid, n)
		}
		return len(s.NSpid) > 0
	case fieldNoNewPrivs:
		s.NoNewPrivs = v == "1"
		return v == "0" || v == "1"
	case fieldSeccomp:
		s.Seccomp, err = number(v)
	case fieldKthread:
		s.Kthread = v == "1"
		return v == "0" || v == "1"
	case fieldSwitches:
		s.Switches, err = strconv.ParseUint(v, 10, 64)
	case fieldVMSize:
		s.HasMemory = true
	case fieldFeatures:
		for _, f := range strings.Fields(v) {
			s.ShadowStack = s.ShadowStack || f == "shstk"
		}
	}
	return err == nil
}

// number parses a non-negative decimal number of a C int. Ids of users can use
// the whole unsigned range.
func number(v string) (int, error) {
	n, err := strconv.ParseUint(v, 10, 32)
	return int(n), err
}

func ids(v string, to *[4]int) bool {
	f := strings.Fields(v)
	if len(f) != len(to) {
		return false
	}
	for i := range f {
		n, err := number(f[i])
		if err != nil {
			return false
		}
		to[i] = n
	}
	return true
}
