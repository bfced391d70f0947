package sourcetree

import (
	"bytes"
	"fmt"
	"strconv"

	"hotpatch/internal/lazy"
)

// Renumber gives a changed C or C++ file with #line directives after which lines that
// are unchanged have the numbers that they had; directives that are there already
// count. Where one would be inside of something else (a comment, a string, a continued
// line, parentheses, which may be the arguments of a macro) it comes at the next line
// where it is not.
func Renumber(pre, post []byte) []byte {
	was, now := splitLines(pre), splitLines(post)
	numbers := make([]int, len(was)) // as a compiler counts
	for i, number := 0, 1; i < len(was); i++ {
		numbers[i] = number
		number = after(was[i], number)
	}
	old := unchanged(was, now)
	var b bytes.Buffer
	var s scanner
	number := 1 // of the line that comes next
	for i, line := range now {
		if old[i] > 0 && numbers[old[i]-1] != number && s.free() {
			number = numbers[old[i]-1]
			fmt.Fprintf(&b, "#line %d\n", number)
		}
		b.Write(line)
		s.line(line)
		number = after(line, number)
	}
	return b.Bytes()
}

// lineDirective matches #line N, and # N as preprocessors write it.
var lineDirective = lazy.Regexp(`^[ \t]*#[ \t]*(?:line[ \t]+)?([0-9]{1,9})\b`)

// after gives the number of the line after one with this number.
func after(line []byte, number int) int {
	if m := lineDirective().FindSubmatch(line); m != nil {
		if n, err := strconv.Atoi(string(m[1])); err == nil {
			return n
		}
	}
	return number + 1
}

// splitLines splits a text into lines that keep their newline.
func splitLines(text []byte) [][]byte {
	lines := bytes.SplitAfter(text, []byte("\n"))
	if n := len(lines); len(lines[n-1]) == 0 {
		lines = lines[:n-1]
	}
	return lines
}

// unchanged gives for each line of now its number in was, from 1 up, or 0 if it is a
// changed one. Numbers ascend.
func unchanged(was, now [][]byte) []int {
	old := make([]int, len(now))
	head := 0
	for head < len(was) && head < len(now) && bytes.Equal(was[head], now[head]) {
		old[head] = head + 1
		head++
	}
	end := 0
	for end < len(was)-head && end < len(now)-head && bytes.Equal(was[len(was)-1-end], now[len(now)-1-end]) {
		old[len(now)-1-end] = len(was) - end
		end++
	}
	a, b := was[head:len(was)-end], now[head:len(now)-end]
	for _, m := range common(a, b) {
		old[head+m[1]] = head + m[0] + 1
	}
	return old
}

// mostEdits bounds the work of common: changes with more differing lines than that
// are taken as one.
const mostEdits = 2000

// common gives the pairs of a longest common subsequence (Myers, "An O(ND)
// Difference Algorithm and Its Variations", 1986).
func common(a, b [][]byte) (pairs [][2]int) {
	n, m := len(a), len(b)
	most := min(n+m, mostEdits)
	v := make([]int, 2*most+2)
	var trace [][]int
	for d := 0; d <= most; d++ {
		for k := -d; k <= d; k += 2 {
			x := 0
			switch {
			case d == 0:
			case k == -d || k != d && v[most+k-1] < v[most+k+1]:
				x = v[most+k+1]
			default:
				x = v[most+k-1] + 1
			}
			for x < n && x-k < m && x-k >= 0 && bytes.Equal(a[x], b[x-k]) {
				x++
			}
			v[most+k] = x
			if x >= n && x-k >= m {
				return backtrack(trace, a, b, d, most)
			}
		}
		// Only the diagonals in use are kept.
		lo, hi := max(0, most-d-1), min(len(v), most+d+2)
		trace = append(trace, append([]int(nil), v[lo:hi]...))
	}
	return nil
}

// backtrack goes the way back that common has found.
func backtrack(trace [][]int, a, b [][]byte, d, most int) (pairs [][2]int) {
	x, y := len(a), len(b)
	for ; d > 0; d-- {
		v := trace[d-1]
		lo := max(0, most-(d-1)-1)
		at := func(k int) int { return v[most+k-lo] }
		k := x - y
		from := k - 1
		if k == -d || k != d && at(k-1) < at(k+1) {
			from = k + 1
		}
		px := at(from)
		py := px - from
		for x > px && y > py {
			x, y = x-1, y-1
			pairs = append(pairs, [2]int{x, y})
		}
		x, y = px, py
	}
	for x > 0 && y > 0 {
		x, y = x-1, y-1
		pairs = append(pairs, [2]int{x, y})
	}
	return pairs
}
