package bench

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// BenchmarkCall compares calls of a function before and after it is patched, and what
// the process has of memory then.
func BenchmarkCall(b *testing.B) {
	header := source(b, "call.h")
	program := testtarget.Build(b, testtarget.Spec{Files: map[string]string{"call.cc": source(b, "call.cc"), "call.h": header}, Flags: []string{"-O2"}})
	patchOf := func(flags ...string) string {
		return testtarget.Build(b, testtarget.Spec{
			Files: map[string]string{"call_patch.cc": source(b, "call_patch.cc"), "call.h": header}, Shared: true, Flags: append(flags, "-O2"),
		})
	}
	patches := map[string]string{"plain": patchOf(), "method": patchOf("-DMETHOD")}
	ways := []struct {
		name, function, method string
		far                    bool
		before, after          samplesOf
	}{
		{name: "entry, by an island", function: "plain", method: "entry"},
		{name: "entry, 14 bytes", function: "plain", method: "entry", far: true},
		{name: "virtual function, by its slot", function: "method", method: "vtable"},
		{name: "virtual function, by its entry", function: "method", method: "entry"},
	}
	targets := map[bool]*target{}
	for _, far := range []bool{false, true} {
		var args []string
		if far {
			args = []string{"far"}
		}
		targets[far] = &target{b: b, threads: 1, Process: testtarget.Start(b, program, testtarget.Args(args...))}
	}
	ask := func(p *target, function string) float64 {
		ns, err := strconv.ParseFloat(strings.TrimSuffix(p.Ask(function, "ns$"), " ns"), 64)
		if err != nil {
			b.Fatal(err)
		}
		return ns
	}
	for b.Loop() {
		for i := range ways {
			w := &ways[i]
			p := targets[w.far]
			w.before = append(w.before, ask(p, w.function))
			p.hotpatch("apply", "--method", w.method, patches[w.function])
			w.after = append(w.after, ask(p, w.function))
			p.revert("stack")
		}
	}
	t := newTable("way", "nanoseconds of a call before", "patched", "more")
	for _, w := range ways {
		more := w.after.median() - w.before.median()
		t.row(w.name, fmt.Sprintf("%.2f", w.before.median()), fmt.Sprintf("%.2f", w.after.median()), fmt.Sprintf("%.2f", more))
		bar(b, "a call, "+w.name, more, callBar, "ns more")
	}
	report(b, "call", t.String())
}

// samplesOf are measurements that are no times.
type samplesOf []float64

func (s samplesOf) median() float64 { return slices.Sorted(slices.Values(s))[len(s)/2] }

// BenchmarkMemory reports what patches cost of the target's memory. It measures once:
// nothing of it varies.
func BenchmarkMemory(b *testing.B) {
	t := newTable("", "private memory, KiB", "addresses, KiB")
	for b.Loop() {
		p := startTarget(b, 1, "sleep", 200)
		before := memoryOf(b, p.PID())
		show := func(what string) {
			now := memoryOf(b, p.PID())
			t.row(what, strconv.Itoa(now.private-before.private), strconv.Itoa(now.size-before.size))
		}
		last := 0
		for _, n := range []int{1, 10, 200} {
			p.patch = patchOf(b, n)
			p.hotpatch("apply", "--name", fmt.Sprintf("patch%d", n), "--patch-version", strconv.Itoa(n), p.patch)
			last += 1
			show(fmt.Sprintf("%d applied, the last one of %s", last, plural(n, "function")))
		}
		p.revert("stack")
		show("all reverted")
		p.Healthy(b)
	}
	report(b, "memory", t.String())
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

type memory struct{ private, size int }

// memoryOf adds up what a process has of memory of its own, and its mappings.
func memoryOf(b testing.TB, pid int) memory {
	b.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	var m memory
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) != 3 {
			continue
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil {
			continue
		}
		switch fields[0] {
		case "Private_Dirty:", "Private_Clean:":
			m.private += n
		case "Size:":
			m.size += n
		}
	}
	return m
}
