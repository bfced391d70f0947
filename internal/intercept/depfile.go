package intercept

import "strings"

// ParseDeps gives the files that the first rule of a file of dependencies names, in
// order, as compilers write it for make: spaces after a backslash, "$$" for "$".
func ParseDeps(text string) []string {
	var list []string
	var b strings.Builder
	begun := false // behind the colon
	end := func() {
		if b.Len() > 0 && begun {
			list = append(list, b.String())
		}
		b.Reset()
	}
	for i := 0; i < len(text); i++ {
		next := byte(0)
		if i+1 < len(text) {
			next = text[i+1]
		}
		switch c := text[i]; {
		case c == '\\' && next == '\r' && i+2 < len(text) && text[i+2] == '\n':
			end()
			i += 2
		case c == '\\' && next == '\n':
			end()
			i++
		case c == '\\' && (next == ' ' || next == '\t' || next == '#' || next == ':'):
			if next == ' ' || next == '\t' {
				// Of 2n+1 backslashes n are meant, and the space; of 2n, n, and the
				// name ends.
				name := strings.TrimRight(b.String(), `\`)
				n := b.Len() - len(name)
				b.Reset()
				b.WriteString(name + strings.Repeat(`\`, (n+1)/2))
				if n%2 == 1 {
					continue
				}
			}
			b.WriteByte(next)
			i++
		case c == '$' && next == '$':
			b.WriteByte('$')
			i++
		case c == ':' && !begun && (next == ' ' || next == '\t' || next == '\n' || next == '\\' || next == 0 || next == '\r'):
			b.Reset()
			begun = true
		case c == ' ' || c == '\t' || c == '\r':
			end()
		case c == '\n':
			end()
			if begun {
				return list
			}
		default:
			b.WriteByte(c)
		}
	}
	end()
	return list
}
