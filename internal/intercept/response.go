package intercept

import (
	"os"
	"strings"
)

// deepest bounds response files within response files.
const deepest = 10

// expand replaces each @FILE by the words in the file, as compilers do; one that
// cannot be read stays as it is.
func expand(words []string, depth int) []string {
	var list []string
	for _, w := range words {
		if !strings.HasPrefix(w, "@") || depth == deepest {
			list = append(list, w)
			continue
		}
		text, err := os.ReadFile(w[1:])
		if err != nil {
			list = append(list, w)
			continue
		}
		list = append(list, expand(splitWords(string(text)), depth+1)...)
	}
	return list
}

// splitWords splits the text of a response file: at white space, which quotes and
// backslashes protect.
func splitWords(s string) []string {
	var list []string
	var b strings.Builder
	word := false
	quote := byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
			word = true
		case quote != 0:
			if c == quote {
				quote = 0
			} else {
				b.WriteByte(c)
			}
		case c == '\'' || c == '"':
			quote, word = c, true
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f':
			if word {
				list = append(list, b.String())
				b.Reset()
			}
			word = false
		default:
			b.WriteByte(c)
			word = true
		}
	}
	if word {
		list = append(list, b.String())
	}
	return list
}
