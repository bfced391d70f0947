package bench

import (
	"fmt"
	"strconv"
	"testing"
)

// BenchmarkPause compares the pauses of apply and revert with the floor, for
// processes of different sizes. An iteration is one of each, in turns.
func BenchmarkPause(b *testing.B) {
	t := newPauseTable()
	for _, mode := range []string{"sleep", "spin"} {
		for _, n := range []int{1, 200} {
			for _, threads := range []int{1, 16, 128, 1024} {
				if mode == "sleep" || threads < manySpinning {
					t.measure(b, mode, n, threads)
				}
			}
		}
	}
	report(b, "pause", t.String())
}

// BenchmarkCrowded is BenchmarkPause for a process whose threads leave no processor to
// others. Whoever measures must have a real-time priority.
func BenchmarkCrowded(b *testing.B) {
	t := newPauseTable()
	for _, n := range []int{1, 200} {
		t.measure(b, "spin", n, 1024)
	}
	report(b, "crowded", t.String())
}

type pauseTable struct {
	*table
	note string
}

func newPauseTable() *pauseTable {
	return &pauseTable{table: newTable("threads", "functions", "floor", "apply, entry", "revert, entry", "apply, stack", "revert, stack", "entry / floor", "stack / floor")}
}

func (t *pauseTable) String() string { return t.table.String() + t.note }

// measure adds a row.
func (t *pauseTable) measure(b *testing.B, mode string, n, threads int) {
	b.Run(fmt.Sprintf("%s/functions=%d/threads=%d", mode, n, threads), func(b *testing.B) {
		p := measurePauses(b, mode, n, threads)
		if p.refused > 0 {
			t.note += fmt.Sprintf("\nWith %d threads (%s, %s), %d of %d commands gave up: \"not now\", exit status 3.\n",
				threads, mode, plural(n, "function"), p.refused, p.commands)
		}
		if len(p.apply[0]) == 0 || len(p.revert[0]) == 0 || len(p.apply[1]) == 0 || len(p.revert[1]) == 0 {
			return
		}
		t.row(strconv.Itoa(threads)+" "+mode, strconv.Itoa(n), p.floor.spread(), p.apply[0].spread(), p.revert[0].spread(),
			p.apply[1].spread(), p.revert[1].spread(), times(p.entry()), times(p.stack()))
		what := fmt.Sprintf("pause, %s, %s, %s", plural(threads, "thread"), mode, plural(n, "function"))
		bar(b, what+", entry", p.entry(), entryBar, "× floor")
		bar(b, what+", stack", p.stack(), stackBar, "× floor")
	})
}

// pauses are those of one target. The first of apply and revert is for the
// consistency entry, the second for stack.
type pauses struct {
	floor         samples
	apply, revert [2]samples

	commands, refused int
}

// entry and stack give the worse of the ratios of apply and revert to the floor.
func (p *pauses) entry() float64 { return max(p.apply[0].ratio(p.floor), p.revert[0].ratio(p.floor)) }
func (p *pauses) stack() float64 { return max(p.apply[1].ratio(p.floor), p.revert[1].ratio(p.floor)) }

var consistencies = [2]string{"entry", "stack"}

// round takes every pause once. It gives up if hotpatch does.
func (p *pauses) round(t *target) {
	t.b.Helper()
	for i, c := range consistencies {
		p.floor = append(p.floor, t.floor(1)[0].pause)
		if r := t.apply(c); p.keep(r, &p.apply[i]) {
			p.keep(t.revert(c), &p.revert[i])
		}
	}
}

func (p *pauses) keep(r ran, list *samples) bool {
	p.commands++
	if r.refused {
		p.refused++
		return false
	}
	*list = append(*list, r.pause)
	return true
}

// manyRounds is how often a target is paused whose commands take many seconds.
const manyRounds = 4

// manyForFew is how often a process of one thread is paused more than others.
const manyForFew = 4

func measurePauses(b *testing.B, mode string, n, threads int) *pauses {
	target := startTarget(b, threads, mode, n)
	p := &pauses{}
	rounds := 0
	for b.Loop() {
		// Where threads wait a second for a processor, so does the one that is borrowed, several
		// times; and what is refused takes the whole timeout.
		if rounds++; rounds > manyRounds && target.crowded || p.refused >= 3 {
			continue
		}
		p.round(target)
		for range manyForFew / threads { // where the processors are is chance, and it is soon over
			p.round(target)
		}
	}
	target.Healthy(b)
	return p
}
