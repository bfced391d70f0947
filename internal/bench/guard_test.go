package bench

import "testing"

// TestPauseIsNearTheFloor fails if a pause takes twice as long as the bars allow in
// comparison with the floor. Both are measured in turns, and what is compared are the
// shortest pauses: what else the machine does can only make them longer. A part that is
// over the bar is measured again, since many rounds may have been disturbed.
func TestPauseIsNearTheFloor(t *testing.T) {
	const (
		rounds, parts = 8, 6
		entry, stack  = 2 * entryBar, 2 * stackBar
	)
	target := startTarget(t, 32, "sleep", 1)
	p := &pauses{}
	for part := range parts {
		for range rounds {
			p.round(target)
		}
		ratio := func(s samples) float64 { return float64(s.least()) / float64(p.floor.least()) }
		e, s := max(ratio(p.apply[0]), ratio(p.revert[0])), max(ratio(p.apply[1]), ratio(p.revert[1]))
		t.Logf("%d rounds: entry %.2f × and stack %.2f × the floor of %v", rounds*(part+1), e, s, p.floor.least())
		if e <= entry && s <= stack {
			target.Healthy(t)
			return
		}
	}
	t.Errorf("a pause of %d threads takes more than %.1f (entry) or %.1f (stack) times the floor", target.threads, entry, stack)
}
