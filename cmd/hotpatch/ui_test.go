package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"
)

func TestHarmless(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"C::fb(int, std::basic_string_view<char>)": "C::fb(int, std::basic_string_view<char>)",
		"35 µs, 日本語, \ufffd":                       "35 µs, 日本語, \ufffd",
		"a\x1b[31mred":                             `a\x1b[31mred`,
		"two\nlines\r\tand tab":                    `two\nlines\r\tand tab`,
		"\u009b2J clears too":                      `\u009b2J clears too`,
		"evil\u202egnp.exe":                        `evil\u202egnp.exe`,
		"zero\u200bwidth":                          `zero\u200bwidth`,
		"bad \xff\xfe bytes":                       `bad \xff\xfe bytes`,
		"nul\x00 del\x7f":                          `nul\x00 del\x7f`,
		"tag\U000e0041":                            `tag\U000e0041`,
		"":                                         "",
	} {
		if got := harmless(in); got != want {
			t.Errorf("harmless(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzHarmless(f *testing.F) {
	f.Add("a\x1b[0m\xff\u202e\n")
	f.Fuzz(func(t *testing.T, s string) {
		got := harmless(s)
		if harmless(got) != got {
			t.Errorf("%q became %q, which is not harmless", s, got)
		}
		if strings.ContainsAny(got, "\x1b\n\r\t\x00\x7f") {
			t.Errorf("%q became %q", s, got)
		}
	})
}

func TestTable(t *testing.T) {
	t.Parallel()
	long := "ns::Class<std::vector<int>>::method(" + strings.Repeat("int, ", 12) + "int)"
	tab := newTable("FUNCTION", "MODULE", "SITES")
	tab.add("f()", "libshape.so", "3").note("0x%x entry", 0x4000)
	tab.add(long, "prog", "")
	tab.add("with\ttab", "esc\x1b[0m", "1")
	p := &page{}
	p.table(tab)
	want := "" +
		"FUNCTION   MODULE       SITES\n" +
		"f()        libshape.so  3\n" +
		"  0x4000 entry\n" +
		long + "\n" +
		"           prog         -\n" +
		`with\ttab  esc\x1b[0m   1` + "\n"
	if got := p.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Colour changes no text, and foreign text brings none.
func TestColorIsOnlyPaint(t *testing.T) {
	t.Parallel()
	fill := func(p *page) *page {
		p.title("process %s", "x\x1b[5m")
		p.warning("name %s", "y\x1b[5m")
		tab := newTable("A")
		tab.add("z\x1b[5m")
		p.table(tab)
		return p
	}
	without, with := fill(&page{}).String(), fill(&page{color: true}).String()
	if strings.Contains(without, "\x1b") {
		t.Errorf("escapes without colour: %q", without)
	}
	stripped := strings.NewReplacer(bold, "", yellow, "", plain, "").Replace(with)
	if stripped == with || stripped != without {
		t.Errorf("with colour %q\nwithout    %q", with, without)
	}
}

func TestWantsColor(t *testing.T) {
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal: %v", err)
	}
	defer tty.Close()
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	if !wantsColor(tty) {
		t.Error("no colour on a terminal")
	}
	file, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if wantsColor(file) || wantsColor(&bytes.Buffer{}) {
		t.Error("colour without a terminal")
	}
	for _, setting := range [][2]string{{"NO_COLOR", "1"}, {"TERM", "dumb"}, {"TERM", ""}} {
		t.Run(setting[0]+"="+setting[1], func(t *testing.T) {
			t.Setenv(setting[0], setting[1])
			if wantsColor(tty) {
				t.Error("colour")
			}
		})
	}
}

func TestUnits(t *testing.T) {
	t.Parallel()
	for us, want := range map[float64]string{0.4: "0 µs", 35.2: "35 µs", 999: "999 µs", 1234: "1.2 ms", 98_765: "98.8 ms", 250_000: "250 ms", 1_500_000: "1.50 s"} {
		if got := microseconds(us); got != want {
			t.Errorf("microseconds(%v) = %q, want %q", us, got, want)
		}
	}
	if got := count(1, "try", "tries") + ", " + count(0, "try", "tries"); got != "1 try, 0 tries" {
		t.Error(got)
	}
	at := time.Date(2026, 1, 2, 4, 4, 5, 6e8, time.FixedZone("", 3600))
	if got := timestamp(at); got != "2026-01-02T03:04:05Z" {
		t.Error(got)
	}
}
