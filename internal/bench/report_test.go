package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// outDir is where sections of the document and series for pictures go, if it is set:
// files NAME.md and NAME.csv.
var outDir = os.Getenv("HOTPATCH_BENCH_DIR")

// report gives a section of the document.
func report(b testing.TB, name, text string) {
	b.Helper()
	b.Logf("%s:\n%s", name, text)
	write(b, name+".md", text)
}

func write(b testing.TB, name, text string) {
	b.Helper()
	if outDir == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(outDir, name), []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
}

// table makes a table of Markdown.
type table struct{ strings.Builder }

func newTable(heads ...string) *table {
	t := &table{}
	t.row(heads...)
	t.row(slices.Repeat([]string{"---"}, len(heads))...)
	return t
}

func (t *table) row(cells ...string) {
	fmt.Fprintf(t, "| %s |\n", strings.Join(cells, " | "))
}

// samples are measurements of one thing.
type samples []time.Duration

func (s samples) at(part float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(s))[int(part*float64(len(s)-1)+0.5)]
}

func (s samples) median() time.Duration { return s.at(0.5) }
func (s samples) least() time.Duration  { return s.at(0) }

// ratio compares the medians.
func (s samples) ratio(floor samples) float64 {
	return float64(s.median()) / float64(max(floor.median(), 1))
}

// spread gives the median and the quartiles in microseconds.
func (s samples) spread() string {
	return fmt.Sprintf("%s [%s–%s]", micros(s.median()), micros(s.at(0.25)), micros(s.at(0.75)))
}

// millis is spread in milliseconds.
func (s samples) millis() string {
	ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 }
	return fmt.Sprintf("%.1f [%.1f–%.1f]", ms(s.median()), ms(s.at(0.25)), ms(s.at(0.75)))
}

func micros(d time.Duration) string {
	us := float64(d) / float64(time.Microsecond)
	switch {
	case us < 9.95:
		return fmt.Sprintf("%.1f", us)
	default:
		return fmt.Sprintf("%.0f", us)
	}
}

func times(x float64) string { return fmt.Sprintf("%.2f ×", x) }

// The bars: what is allowed.
const (
	entryBar   = 1.25 // times the floor
	stackBar   = 1.5
	borrowBar  = 1.5 // times the bare stub
	commandBar = 15  // milliseconds
	ownBar     = 3
	coldBar    = 100
	warmBar    = 40
	listBar    = 50
	callBar    = 1 // nanosecond
)

// bar says whether something is within what is allowed; scripts/bench makes a table of
// these.
func bar(b *testing.B, what string, value, most float64, unit string) {
	b.Helper()
	b.ReportMetric(value, strings.ReplaceAll(what, " ", "-"))
	if outDir == "" {
		return
	}
	f, err := os.OpenFile(filepath.Join(outDir, "bars"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		b.Fatal(err)
	}
	met := "yes"
	if value > most {
		met = "**no**"
	}
	fmt.Fprintf(f, "| %s | %.2f %s | %g %s | %s |\n", what, value, unit, most, unit, met)
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
}

func inMS(d time.Duration) float64 { return d.Seconds() * 1e3 }
