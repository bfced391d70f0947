package elfsym

import (
	"bytes"
	"strings"
)

// Search visits the functions, variables and IFUNCs of all modules but patch
// libraries whose mangled or demangled name matches a pattern, until visit
// returns false. A pattern with "*" (any run of characters) or "?" (any one) must
// match the whole name; one without them must be part of it. A symbol that
// stands in several tables of its module is visited once.
//
// Names are demangled only if they can match; a pattern without any identifier,
// such as "*", demangles all names, which takes about 20 µs each.
func (s *Space) Search(pattern string, visit func(Symbol) bool) error {
	glob := strings.ContainsAny(pattern, "*?")
	if !glob {
		pattern = "*" + pattern + "*"
	}
	needle := []byte(searchNeedle(pattern))
	type place struct {
		addr uint64
		name string
	}
	for _, m := range s.candidates() {
		seen := map[place]bool{}
		more := true
		err := s.scanAll(m, func(t Table, sym *Sym) bool {
			if !bytes.Contains(sym.Name, needle) {
				return true
			}
			name := string(sym.Name)
			if !globMatch(pattern, name) {
				d, ok := demangled(name)
				if !ok || !globMatch(pattern, d) {
					return true
				}
			}
			if p := (place{sym.Value, name}); !seen[p] {
				seen[p] = true
				more = visit(m.symbol(t, sym))
			}
			return more
		})
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// searchNeedle finds the longest run of identifier characters that every
// matching mangled name must contain.
func searchNeedle(pattern string) string {
	best := ""
	for i := 0; i < len(pattern); {
		if !identByte(pattern[i]) {
			i++
			continue
		}
		j := i
		for j < len(pattern) && identByte(pattern[j]) {
			j++
		}
		if word := pattern[i:j]; len(word) > len(best) && !strings.Contains(demanglerWords, word) {
			best = word
		}
		i = j
	}
	return best
}

// demanglerWords are the words that stand in demangled names but not in mangled
// ones. Part of a word in a pattern may be meant for one of them.
const demanglerWords = "std allocator basic_string string basic_istream basic_ostream basic_iostream istream ostream iostream char_traits " +
	"const volatile restrict unsigned signed void bool char short int long float double auto decltype nullptr_t nullptr " +
	"wchar_t char8_t char16_t char32_t __int128 __float128 _Float16 _Float32 _Float64 _Float128 decimal32 decimal64 decimal128 half " +
	"operator new delete co_await sizeof alignof typeid noexcept throw true false this transaction_safe " +
	"dynamic_cast static_cast const_cast reinterpret_cast requires typename template class enum struct union " +
	"vtable VTT typeinfo name for construction in fn covariant return thunk to virtual non guard variable reference temporary hidden alias " +
	"anonymous namespace unnamed type lambda clone abi parameter object TLS init wrapper function java resource initializer module " +
	"initialization constructors destructors keyed global local string literal default arg structured binding symbol imaginary complex vector _Complex _Imaginary __vector " +
	"0123456789 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20"

// globMatch reports whether the whole of name matches a pattern of literal
// characters, "*" and "?". Its time is at most the product of the lengths.
func globMatch(pattern, name string) bool {
	star, mark := -1, 0
	p, n := 0, 0
	for n < len(name) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, n
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == name[n]):
			p++
			n++
		case star >= 0:
			mark++
			p, n = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
