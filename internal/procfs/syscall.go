package procfs

import (
	"strconv"
	"strings"

	"hotpatch/internal/fault"
)

// Syscall is what a thread is doing, from /proc/PID/task/TID/syscall
// (proc_pid_syscall(5)).
type Syscall struct {
	Running bool      // on a processor or ready to run; nothing else is known then
	Nr      int64     // number of the system call; -1: blocked, but not in one
	Args    [6]uint64 // its arguments, if Nr is not -1
	SP, PC  uint64    // user stack pointer and program counter
}

// ParseSyscall parses the text of a syscall file (fault "damaged-syscall").
func ParseSyscall(data []byte) (Syscall, error) {
	bad := func(why string) (Syscall, error) {
		if len(data) > 200 {
			data = data[:200]
		}
		return Syscall{}, &fault.Error{
			Kind: fault.Failed, Code: "damaged-syscall",
			What: "cannot understand /proc/PID/task/TID/syscall", Where: strconv.Quote(string(data)), Why: why,
		}
	}
	f := strings.Fields(string(data))
	if len(f) == 1 && f[0] == "running" {
		return Syscall{Running: true, Nr: -1}, nil
	}
	if len(f) != 3 && len(f) != 9 {
		return bad("there are neither 1, 3 nor 9 fields")
	}
	var s Syscall
	var err error
	if s.Nr, err = strconv.ParseInt(f[0], 10, 64); err != nil {
		return bad("the system call is not a number")
	}
	if (s.Nr == -1) != (len(f) == 3) {
		return bad("the number of fields does not go with the system call")
	}
	values := make([]uint64, len(f)-1)
	for i := range values {
		hex, ok := strings.CutPrefix(f[i+1], "0x")
		if values[i], err = strconv.ParseUint(hex, 16, 64); err != nil || !ok {
			return bad("a value is not a hexadecimal number")
		}
	}
	n := copy(s.Args[:], values[:len(values)-2])
	s.SP, s.PC = values[n], values[n+1]
	return s, nil
}
