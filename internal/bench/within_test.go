package bench

import (
	"fmt"
	"strconv"
	"testing"
	"time"
)

// BenchmarkWithin looks at pauses from within: the longest step of the clock that a
// running thread of the target sees, while its other threads sleep.
func BenchmarkWithin(b *testing.B) {
	t := newTable("threads", "nothing done", "floor", "apply", "revert", "worse / floor")
	for _, threads := range []int{1, 16, 128, 1024} {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			p := startTarget(b, threads, "watch", 1)
			var nothing, floor, apply, revert samples
			seen := func(s *samples, f func()) {
				p.forget()
				f()
				*s = append(*s, p.gap(0))
			}
			for b.Loop() {
				seen(&nothing, func() { time.Sleep(15 * time.Millisecond) })
				seen(&floor, func() { p.floor(1) })
				seen(&apply, func() { p.apply("stack") })
				seen(&revert, func() { p.revert("stack") })
			}
			worse := max(apply.ratio(floor), revert.ratio(floor))
			t.row(strconv.Itoa(threads), nothing.spread(), floor.spread(), apply.spread(), revert.spread(), times(worse))
			p.Healthy(b)
		})
	}
	report(b, "within", t.String())
}
