// Package lazy makes values when they are needed for the first time. Most commands need
// none of them, and every command pays for what is made at its start.
package lazy

import (
	"regexp"
	"strings"
	"sync"
)

// Regexp gives a regular expression, which must be valid.
func Regexp(pattern string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
}

// Words gives a set of words, which are separated by spaces.
func Words(words string) func() map[string]bool {
	return sync.OnceValue(func() map[string]bool {
		set := make(map[string]bool)
		for w := range strings.FieldsSeq(words) {
			set[w] = true
		}
		return set
	})
}
