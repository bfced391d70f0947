package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hotpatch/internal/engine"
	"hotpatch/internal/patchfile"
	"hotpatch/internal/procfs"
	"hotpatch/internal/quiesce"
	"hotpatch/internal/testtarget"
	"hotpatch/ptrace"
)

// BenchmarkPause compares pauses of a process whose threads all have deep stacks:
// of stopping and resuming it and nothing else, and of applies and reverts under
// the two consistencies. They are measured in turns, so that what else the machine
// does meets all of them; each iteration is one of each. scripts/bench-consistency
// makes a table of it.
//
// The results are medians, in microseconds. checked is the bare stop with the check
// of all stacks in it, and nothing written; added/stop is what the check adds, as a
// part of the bare stop.
func BenchmarkPause(b *testing.B) {
	const frames, bytes = 100, 16 << 10
	path := testtarget.Build(b, testtarget.Spec{Sources: []string{"consistent_deep.c"}, Flags: []string{"-O2"}})
	patch, err := patchfile.Open(calcPatch(b, "replaced", 1, "deep", 1))
	if err != nil {
		b.Fatal(err)
	}
	for _, threads := range []int{16, 128} {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			p := testtarget.Start(b, path, testtarget.Args(strconv.Itoa(threads), strconv.Itoa(frames), strconv.Itoa(bytes)))
			pauses := make(map[string][]time.Duration)
			took := func(what string, us float64) {
				pauses[what] = append(pauses[what], time.Duration(us*float64(time.Microsecond)))
			}
			req := engine.Request{PID: p.PID(), Timeout: time.Minute}
			for b.Loop() {
				pauses["stop"] = append(pauses["stop"], stopOnly(b, p.PID(), threads+1, false))
				pauses["checked"] = append(pauses["checked"], stopOnly(b, p.PID(), threads+1, true))
				for _, c := range []engine.Consistency{engine.AtEntry, engine.Stack} {
					results, err := engine.Apply(context.Background(), req, engine.Options{Method: engine.Auto, Consistency: c}, []*patchfile.Patch{patch})
					if err != nil || len(results) != 1 || results[0].State != "applied" || results[0].Threads <= threads {
						b.Fatalf("%+v, %v", *results[0], err)
					}
					took("apply "+string(c), results[0].PauseMicroseconds)
					undo := req
					undo.Consistency = c
					result, err := engine.Revert(context.Background(), undo, nil, true)
					if err != nil || result.State != "reverted" {
						b.Fatalf("%+v, %v", result, err)
					}
					took("revert "+string(c), result.PauseMicroseconds)
				}
			}
			stop, checked := median(pauses["stop"]), median(pauses["checked"])
			for what, list := range pauses {
				b.ReportMetric(us(median(list)), "µs-"+strings.ReplaceAll(what, " ", "-"))
			}
			b.ReportMetric(us(checked-stop)/us(stop), "added/stop")
			p.Healthy(b)
		})
	}
}

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func median(list []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[len(sorted)/2]
}

// stopOnly stops all threads of a process and lets them go. check looks through
// their stacks meanwhile.
func stopOnly(b *testing.B, pid, threads int, check bool) (pause time.Duration) {
	b.Helper()
	proc, err := procfs.Open(pid)
	if err != nil {
		b.Fatal(err)
	}
	defer proc.Close()
	look := func([]*ptrace.Thread) error { return nil }
	if check {
		mem, err := proc.Mem(false)
		if err != nil {
			b.Fatal(err)
		}
		defer mem.Close()
		maps, err := proc.Maps()
		if err != nil {
			b.Fatal(err)
		}
		nowhere := []quiesce.Range{{Start: 0x6000_0000_0000, End: 0x6000_0000_1000, Name: "nowhere", EndsInCall: true}}
		stacks := ptrace.Paused(pid, mem)
		stacks.Reserve()
		checker, hits := quiesce.New(nowhere, nowhere, maps, stacks), make([]quiesce.Hit, 0, 16)
		checker.Warm(proc) // as before each pause of an apply
		look = func(threads []*ptrace.Thread) error { return lookThrough(checker, hits, pid, threads) }
	}
	err = ptrace.Run(proc, func(tr *ptrace.Tracer) error {
		world, err := tr.StopAll(10 * time.Second)
		if err != nil {
			return err
		}
		defer world.Resume()
		if err := look(world.Threads); err != nil {
			return err
		}
		n := len(world.Threads)
		pause = world.Resume()
		if n != threads {
			return fmt.Errorf("%d threads were stopped, want %d", n, threads)
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return pause
}

// lookThrough is what the engine does to all threads in a pause.
func lookThrough(checker *quiesce.Checker, hits []quiesce.Hit, pid int, threads []*ptrace.Thread) error {
	at := func(i int) quiesce.Thread {
		th := threads[i]
		r := &th.Regs
		return quiesce.Thread{TID: th.TID, PC: r.Rip, SP: r.Rsp, FS: r.FsBase, Main: th.TID == pid, InSyscall: r.InSyscall()}
	}
	return checker.Each(len(threads), at, func(i int) error {
		found, err := checker.Check(at(i), hits)
		if len(found) > 0 {
			return fmt.Errorf("%d threads are nowhere", len(found))
		}
		return err
	})
}
