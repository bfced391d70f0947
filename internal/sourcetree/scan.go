package sourcetree

import "bytes"

// scanner follows the text of a C or C++ file line by line, as far as is needed to
// say whether a directive may stand between two lines.
type scanner struct {
	comment   bool   // within /* */
	raw       []byte // what ends the raw string that is open
	quote     byte   // of a string that goes on in the next line
	continued bool   // the line before ended with a backslash
	directive bool   // the continued line is a directive
	slashes   bool   // the continued line ends in a // comment
	depth     int    // of parentheses
	branches  []int  // depth at each #if that is open
}

// free reports whether a directive may stand here.
func (s *scanner) free() bool {
	return !s.comment && s.raw == nil && s.quote == 0 && !s.continued && s.depth == 0
}

// line reads the next line.
func (s *scanner) line(text []byte) {
	body := bytes.TrimRight(text, "\r\n")
	directive := s.directive && s.continued
	if !s.comment && s.raw == nil && s.quote == 0 && !s.continued {
		trimmed := bytes.TrimLeft(body, " \t\f\v")
		directive = bytes.HasPrefix(trimmed, []byte("#")) || bytes.HasPrefix(trimmed, []byte("%:"))
		if directive {
			s.branch(trimmed)
		}
		// Whatever was counted wrong before: nothing goes on behind this.
		if len(body) > 0 && body[0] == '}' {
			s.depth = 0
		}
	}
	s.directive = directive
	depth := s.depth
	if s.slashes = s.slashes && s.continued; !s.slashes {
		s.text(body)
	}
	s.continued = s.raw == nil && bytes.HasSuffix(bytes.TrimRight(body, " \t"), []byte(`\`))
	if directive {
		s.depth = depth // those of a macro are its own affair
	}
	if s.quote != 0 && !s.continued {
		s.quote = 0 // an apostrophe in text that is not compiled
	}
}

// branch keeps the depth of parentheses the same in all branches of an #if.
func (s *scanner) branch(directive []byte) {
	word := bytes.TrimLeft(bytes.TrimPrefix(bytes.TrimPrefix(directive, []byte("#")), []byte("%:")), " \t")
	n := 0
	for n < len(word) && word[n] >= 'a' && word[n] <= 'z' {
		n++
	}
	last := len(s.branches) - 1
	switch string(word[:n]) {
	case "if", "ifdef", "ifndef":
		s.branches = append(s.branches, s.depth)
	case "else", "elif", "elifdef", "elifndef":
		if last >= 0 {
			s.depth = s.branches[last]
		}
	case "endif":
		if last >= 0 {
			s.branches = s.branches[:last]
		}
	}
}

// text reads the characters of a line.
func (s *scanner) text(b []byte) {
	for i := 0; i < len(b); i++ {
		rest := b[i:]
		switch {
		case s.comment:
			end := bytes.Index(rest, []byte("*/"))
			if end < 0 {
				return
			}
			s.comment = false
			i += end + 1
		case s.raw != nil:
			end := bytes.Index(rest, s.raw)
			if end < 0 {
				return
			}
			i += end + len(s.raw) - 1
			s.raw = nil
		case s.quote != 0:
			if b[i] == '\\' {
				i++
			} else if b[i] == s.quote {
				s.quote = 0
			}
		case bytes.HasPrefix(rest, []byte("//")):
			s.slashes = true
			return
		case bytes.HasPrefix(rest, []byte("/*")):
			s.comment = true
			i++
		case b[i] == '"' && rawPrefix(b[:i]):
			open := bytes.IndexByte(rest, '(')
			if open < 0 || open > 17 { // the delimiter has at most 16 characters
				s.quote = '"'
				break
			}
			s.raw = append(append([]byte(")"), rest[1:open]...), '"')
			i += open
		case b[i] == '"':
			s.quote = '"'
		case b[i] == '\'' && !digitSeparator(b, i):
			s.quote = '\''
		case b[i] == '(':
			s.depth++
		case b[i] == ')' && s.depth > 0:
			s.depth--
		}
	}
}

// rawPrefix reports whether text ends with the prefix of a raw string.
func rawPrefix(text []byte) bool {
	n := len(text)
	for n > 0 && isWord(text[n-1]) {
		n--
	}
	switch string(text[n:]) {
	case "R", "LR", "uR", "UR", "u8R":
		return true
	}
	return false
}

// digitSeparator reports whether the apostrophe at i is within a number (C++14, C23).
func digitSeparator(b []byte, i int) bool {
	if i == 0 || i+1 == len(b) || !isWord(b[i-1]) || !isWord(b[i+1]) {
		return false
	}
	n := i
	for n > 0 && (isWord(b[n-1]) || b[n-1] == '\'' || b[n-1] == '.') {
		n--
	}
	return b[n] >= '0' && b[n] <= '9'
}

func isWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
