package bench

import (
	"fmt"
	"strconv"
	"testing"
)

// BenchmarkPause compares the pauses of apply and revert with the floor, for
// processes of different sizes. An iteration is one of each, in turns.
func BenchmarkPause(b *testing.B) {
	t := newTable("threads", "functions", "floor", "apply, entry", "revert, entry", "apply, stack", "revert, stack", "entry / floor", "stack / floor")
	for _, mode := range []string{"sleep", "spin"} {
		for _, n := range []int{1, 200} {
			for _, threads := range []int{1, 16, 128, 1024} {
				b.Run(fmt.Sprintf("%s/functions=%d/threads=%d", mode, n, threads), func(b *testing.B) {
					p := measurePauses(b, mode, n, threads)
					t.row(strconv.Itoa(threads)+" "+mode, strconv.Itoa(n), p.floor.spread(), p.apply[0].spread(), p.revert[0].spread(),
						p.apply[1].spread(), p.revert[1].spread(), times(p.entry()), times(p.stack()))
					what := fmt.Sprintf("pause, %s, %s, %s", plural(threads, "thread"), mode, plural(n, "function"))
					bar(b, what+", entry", p.entry(), entryBar, "× floor")
					bar(b, what+", stack", p.stack(), stackBar, "× floor")
				})
			}
		}
	}
	report(b, "pause", t.String())
}

// pauses are those of one target. The first of apply and revert is for the
// consistency entry, the second for stack.
type pauses struct {
	floor         samples
	apply, revert [2]samples
}

// entry and stack give the worse of the ratios of apply and revert to the floor.
func (p *pauses) entry() float64 { return max(p.apply[0].ratio(p.floor), p.revert[0].ratio(p.floor)) }
func (p *pauses) stack() float64 { return max(p.apply[1].ratio(p.floor), p.revert[1].ratio(p.floor)) }

var consistencies = [2]string{"entry", "stack"}

func (p *pauses) round(t *target) {
	t.b.Helper()
	for i, c := range consistencies {
		p.floor = append(p.floor, t.floor(1)[0].pause)
		p.apply[i] = append(p.apply[i], t.apply(c).pause)
		p.revert[i] = append(p.revert[i], t.revert(c).pause)
	}
}

func measurePauses(b *testing.B, mode string, n, threads int) *pauses {
	target := startTarget(b, threads, mode, n)
	p := &pauses{}
	for b.Loop() {
		p.round(target)
	}
	target.Healthy(b)
	return p
}
