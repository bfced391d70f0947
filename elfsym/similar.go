package elfsym

import (
	"bytes"
	"slices"
	"strings"
)

// alternatives looks for what a person may have meant with a query that matches
// nothing: compiler clones of the function, and functions with a similar name.
func (s *Space) alternatives(q Query) (clones, similar []string, err error) {
	const most = 8
	want := identifier(q.Name)
	if strings.HasPrefix(q.Name, "_Z") {
		want = identifier(Demangle(q.Name))
	}
	if want == "" {
		return nil, nil, nil
	}
	target := newMatcher(Query{Name: q.Name, File: q.File})
	for _, m := range s.candidates() {
		if q.Module != "" && !m.matches(q.Module) {
			continue
		}
		err = s.scanAll(m, func(t Table, sym *Sym) bool {
			base, suffix, isClone := bytes.Cut(sym.Name, []byte{'.'})
			switch {
			case isClone && len(suffix) > 0 && len(base) > 0:
				whole := *sym
				whole.Name = base
				if len(clones) < most && target.match(&whole) {
					clones = add(clones, string(sym.Name))
				}
			case len(similar) < most && alike(lastIdentifier(sym.Name), want):
				similar = add(similar, m.symbol(t, sym).Query())
			}
			return len(clones) < most || len(similar) < most
		})
		if err != nil {
			break
		}
	}
	return clones, similar, err
}

func add(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// lastIdentifier gives the function's own identifier: of a mangled name the last
// one of the (nested) name at its beginning, else the name.
func lastIdentifier(name []byte) []byte {
	b, ok := bytes.CutPrefix(name, []byte("_Z"))
	if !ok {
		return name
	}
	b = bytes.TrimLeft(b, "NKVL")
	var last []byte
	for len(b) > 0 && '0' <= b[0] && b[0] <= '9' {
		n := 0
		for len(b) > 0 && '0' <= b[0] && b[0] <= '9' && n <= len(name) {
			n = n*10 + int(b[0]-'0')
			b = b[1:]
		}
		if n > len(b) {
			break
		}
		last, b = b[:n], b[n:]
	}
	return last
}

// alike reports whether two identifiers are equal but for case, or one or (from
// six letters on) two typing errors apart.
func alike(have []byte, want string) bool {
	most := 1
	if len(want) >= 6 {
		most = 2
	}
	if len(want) < 3 {
		most = 0
	}
	if len(have) > maxAlike || len(want) > maxAlike || max(len(have)-len(want), len(want)-len(have)) > most {
		return false
	}
	return strings.EqualFold(string(have), want) || distance(have, want) <= most
}

const maxAlike = 64

// distance counts the letters that must be changed, added or removed to turn one
// identifier into the other (Levenshtein distance). Both have at most maxAlike.
func distance(a []byte, b string) int {
	var rows [2][maxAlike + 1]int
	prev, cur := &rows[0], &rows[1]
	for j := range len(b) + 1 {
		prev[j] = j
	}
	for i := range len(a) {
		cur[0] = i + 1
		for j := range len(b) {
			change := prev[j]
			if a[i] != b[j] {
				change++
			}
			cur[j+1] = min(change, prev[j+1]+1, cur[j]+1)
		}
		prev, cur = cur, prev
	}
	return prev[len(b)]
}
