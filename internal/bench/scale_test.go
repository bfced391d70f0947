package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// series is the data of one picture: a line of CSV with the names, then one for each
// size.
type series struct {
	strings.Builder
	table *table
}

func newSeries(names ...string) *series {
	s := &series{table: newTable(names...)}
	fmt.Fprintln(s, strings.Join(names, ","))
	return s
}

func (s *series) add(x int, values ...float64) {
	cells := []string{strconv.Itoa(x)}
	for _, v := range values {
		cells = append(cells, strconv.FormatFloat(v, 'f', 3, 64))
	}
	fmt.Fprintln(s, strings.Join(cells, ","))
	for i, v := range values {
		cells[i+1] = fmt.Sprintf("%.2f", v)
	}
	s.table.row(cells...)
}

func (s *series) report(b testing.TB, name string) {
	b.Helper()
	write(b, name+".csv", s.String())
	report(b, name, s.table.String())
}

func msOf(s samples) float64 { return inMS(s.median()) }

// BenchmarkScaleThreads: the pause by the number of threads.
func BenchmarkScaleThreads(b *testing.B) {
	s := newSeries("threads", "floor ms", "apply ms", "revert ms")
	for _, threads := range []int{1, 64, 256, 512, 1024, 2048, 3072, 4096} {
		b.Run(strconv.Itoa(threads), func(b *testing.B) {
			p := startTarget(b, threads, "sleep", 1)
			var floor, apply, revert samples
			for b.Loop() {
				floor = append(floor, p.floor(1)[0].pause)
				apply = append(apply, p.apply("stack").pause)
				revert = append(revert, p.revert("stack").pause)
			}
			s.add(threads, msOf(floor), msOf(apply), msOf(revert))
			p.Healthy(b)
		})
	}
	s.report(b, "scale-threads")
}

// BenchmarkScaleFunctions: the pause and the command by the number of functions in the
// patch.
func BenchmarkScaleFunctions(b *testing.B) {
	s := newSeries("functions", "floor ms", "pause ms", "command ms")
	for _, n := range []int{1, 500, 1000, 2000, 4000, 7000, 10000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			p := startTarget(b, 1, "sleep", n)
			var floor, pause, wall samples
			for b.Loop() {
				floor = append(floor, p.floor(1)[0].pause)
				r := p.apply("stack")
				pause, wall = append(pause, r.pause), append(wall, r.wall)
				p.revert("stack")
			}
			s.add(n, msOf(floor), msOf(pause), msOf(wall))
			p.Healthy(b)
		})
	}
	s.report(b, "scale-functions")
}

// BenchmarkScaleModules: the command by the number of modules of the process.
func BenchmarkScaleModules(b *testing.B) {
	library, err := os.ReadFile(testtarget.Build(b, testtarget.Spec{Files: map[string]string{"module.c": functions(20, 0)}, Shared: true, Flags: []string{"-O1", "-fvisibility=hidden"}}))
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	exe := testtarget.Build(b, testtarget.Spec{
		Files: map[string]string{"modules.c": source(b, "modules.c") + "__attribute__((noinline)) long function_of_the_large_program(long x) { return x * 3; }\n"}, Flags: []string{"-O1"},
	})
	patch := startSymbols(b, 1).patch
	s := newSeries("modules", "apply ms", "revert ms")
	for _, n := range []int{0, 50, 100, 200, 300, 400} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			for i := range n {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.so", i)), library, 0o755); err != nil {
					b.Fatal(err)
				}
			}
			p := &target{b: b, threads: 1, patch: patch}
			p.Process = testtarget.Start(b, exe, testtarget.Args(dir, strconv.Itoa(n)))
			var apply, revert samples
			for b.Loop() {
				apply = append(apply, p.apply("stack").wall)
				revert = append(revert, p.revert("stack").wall)
			}
			s.add(n, msOf(apply), msOf(revert))
			p.Healthy(b)
		})
	}
	s.report(b, "scale-modules")
}

// BenchmarkScaleSymbols: the command by the number of symbols of the program.
func BenchmarkScaleSymbols(b *testing.B) {
	s := newSeries("symbols", "apply ms", "revert ms")
	for _, n := range []int{1, 50_000, 100_000, 150_000, 200_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			p := startSymbols(b, n)
			var apply, revert samples
			for b.Loop() {
				apply = append(apply, p.apply("stack").wall)
				revert = append(revert, p.revert("stack").wall)
			}
			s.add(n, msOf(apply), msOf(revert))
			p.Healthy(b)
		})
	}
	s.report(b, "scale-symbols")
}
