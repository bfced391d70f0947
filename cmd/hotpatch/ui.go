package main

// The rules of output.
//
//   - Results go to standard output; everything else goes to standard error and
//     begins with "hotpatch: " or "hint: ".
//   - Messages begin with a lower-case letter, have no full stop, and carry their
//     code in brackets.
//   - With --json, standard output gets exactly one object, also for errors, and
//     standard error stays empty unless the command line itself is wrong.
//   - Nothing is ever asked.
//   - Colour is for terminals only, and never with NO_COLOR or TERM=dumb. No
//     meaning is in colour alone.
//   - Text from a process or a file never reaches the terminal unchecked: page
//     and printProblems pass every line through harmless.

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Control sequences (ECMA-48, SGR).
const (
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	plain  = "\x1b[0m"
)

// wantsColor reports whether w is a terminal on which colour is wanted
// (no-color.org).
func wantsColor(w io.Writer) bool {
	if os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" || os.Getenv("TERM") == "" {
		return false
	}
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func paint(on bool, color, s string) string {
	if !on {
		return s
	}
	return color + s + plain
}

// harmless makes control, formatting and undecodable characters of foreign text
// visible as escapes, so that no name can move the cursor, hide other text or
// begin a line of its own.
func harmless(s string) string {
	clean := func(r rune) bool { return r != utf8.RuneError && unicode.IsPrint(r) }
	if strings.IndexFunc(s, func(r rune) bool { return !clean(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
		s = s[n:]
	}
	return b.String()
}

func printf(format string, args ...any) string { return fmt.Sprintf(format, args...) }

// page collects the text for standard output.
type page struct {
	bytes.Buffer
	color bool
}

// line adds one line.
func (p *page) line(format string, args ...any) {
	p.WriteString(harmless(printf(format, args...)))
	p.WriteByte('\n')
}

// title adds a line that begins a part of the page.
func (p *page) title(format string, args ...any) {
	p.WriteString(paint(p.color, bold, harmless(printf(format, args...))))
	p.WriteByte('\n')
}

// warning adds a line about something that needs a look.
func (p *page) warning(format string, args ...any) {
	p.WriteString(paint(p.color, yellow, "warning:") + " " + harmless(printf(format, args...)))
	p.WriteByte('\n')
}

// gap adds an empty line, except at the top.
func (p *page) gap() {
	if p.Len() > 0 {
		p.WriteByte('\n')
	}
}

// table is rows under a header.
type table struct {
	header []string
	rows   []row
}

type row struct {
	cells []string
	below []string // lines under the row, indented
}

func newTable(header ...string) *table { return &table{header: header} }

// add adds a row, of as many cells as the header has; an empty one is shown as
// a dash.
func (t *table) add(cells ...string) *row {
	t.rows = append(t.rows, row{cells: cells})
	return &t.rows[len(t.rows)-1]
}

// note adds a line under the row.
func (r *row) note(format string, args ...any) { r.below = append(r.below, printf(format, args...)) }

// widestName is how many characters the first cell of a row may have before it
// gets a line of its own: names of C++ functions would push everything else out
// of sight.
const widestName = 56

// table adds a table. Columns are aligned with spaces.
func (p *page) table(t *table) {
	var aligned bytes.Buffer
	w := tabwriter.NewWriter(&aligned, 0, 0, 2, ' ', 0)
	put := func(cells []string) {
		fmt.Fprintln(w, strings.Join(cells, "\t")) // a bytes.Buffer takes everything
	}
	put(t.header)
	above := make([]string, len(t.rows))
	for i, r := range t.rows {
		cells := make([]string, len(r.cells))
		for k, c := range r.cells {
			if c == "" {
				c = "-"
			}
			cells[k] = harmless(c)
		}
		if utf8.RuneCountInString(cells[0]) > widestName {
			above[i], cells[0] = cells[0], ""
		}
		put(cells)
	}
	_ = w.Flush()
	lines := strings.Split(strings.TrimSuffix(aligned.String(), "\n"), "\n")
	p.title("%s", strings.TrimRight(lines[0], " "))
	for i, text := range lines[1:] {
		if above[i] != "" {
			p.line("%s", above[i])
		}
		p.line("%s", strings.TrimRight(text, " "))
		for _, b := range t.rows[i].below {
			p.line("  %s", b)
		}
	}
}

// count gives a number with its noun: "1 patch", "2 patches".
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// microseconds gives a duration with two or three digits.
func microseconds(us float64) string {
	switch {
	case us < 1000:
		return printf("%.0f µs", us)
	case us < 100_000:
		return printf("%.1f ms", us/1000)
	case us < 1_000_000:
		return printf("%.0f ms", us/1000)
	}
	return printf("%.2f s", us/1_000_000)
}

// timestamp gives a time as ISO 8601 has it, in UTC.
func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// hexBytes gives bytes as two digits each, apart.
func hexBytes(b []byte) string { return printf("% x", b) }

// isBrokenPipe reports whether nobody reads the output any more, which is how
// "hotpatch symbols ... | head" ends.
func isBrokenPipe(err error) bool { return errors.Is(err, unix.EPIPE) }
