package elfsym

import (
	"strings"

	"github.com/ianlancetaylor/demangle"
)

// Limits for demangling foreign names, which recurses as deeply as a name nests.
const (
	maxMangled      = 16 << 10 // bytes
	maxDemangledPow = 16       // as a power of two: 64 KiB
)

// Demangle gives the C++ source form of a mangled name (Itanium C++ ABI,
// section 5.1), or the name itself if it is none, or is longer than 16 KiB.
func Demangle(name string) string {
	if d, ok := demangled(name); ok {
		return d
	}
	return name
}

func demangled(name string, options ...demangle.Option) (d string, ok bool) {
	if !strings.HasPrefix(name, "_Z") || len(name) > maxMangled {
		return "", false
	}
	// The demangler is written for well-formed names.
	defer func() {
		if recover() != nil {
			d, ok = "", false
		}
	}()
	d, err := demangle.ToString(name, append(options, demangle.MaxLength(maxDemangledPow))...)
	return d, err == nil
}

// forms gives the ways in which a mangled name can be written in source: whole,
// without the return type that templates have, and without parameters. Those of
// compiler clones are only written whole.
func forms(name string) (list [3]string, n int) {
	full, ok := demangled(name)
	if !ok {
		return list, 0
	}
	list[0] = full
	if strings.Contains(name, ".") {
		return list, 1
	}
	short, ok := demangled(name, demangle.NoParams)
	if !ok || short == full {
		return list, 1
	}
	list[1] = short
	if i := strings.Index(full, " "+short); i > 0 {
		list[2] = full[i+1:]
		return list, 3
	}
	return list, 2
}

// stripSpace takes all white space out of a name.
func stripSpace(s string) string {
	return strings.Map(func(r rune) rune {
		if r == ' ' || r == '\t' || r == '\n' || r == '\r' {
			return -1
		}
		return r
	}, s)
}

// identifier finds the part of a query or pattern in source form that every
// matching mangled name must contain: the last identifier of the qualified name,
// in front of the parameters. It gives "" if there is none that can be relied
// on, such as for operators.
func identifier(name string) string {
	if strings.HasPrefix(name, "_Z") {
		return name
	}
	var last string
	depth := 0
	for i := 0; i < len(name); {
		c := name[i]
		switch {
		case strings.HasPrefix(name[i:], anonymous):
			i += len(anonymous)
		case depth == 0 && c == '(':
			return last
		case strings.IndexByte("<([{", c) >= 0:
			depth++
			i++
		case strings.IndexByte(">)]}", c) >= 0:
			depth = max(depth-1, 0)
			i++
		case identByte(c):
			j := i
			for j < len(name) && identByte(name[j]) {
				j++
			}
			word := name[i:j]
			if word == "operator" {
				return last
			}
			if depth == 0 && !abbreviated[word] && !('0' <= c && c <= '9') {
				last = word
			}
			i = j
		default:
			i++
		}
	}
	return last
}

const anonymous = "(anonymous namespace)"

// abbreviated names are not spelled out in mangled names (Itanium C++ ABI,
// 5.1.10), or are words of descriptions and types.
var abbreviated = map[string]bool{
	"std": true, "allocator": true, "basic_string": true, "string": true,
	"basic_istream": true, "basic_ostream": true, "basic_iostream": true,
	"istream": true, "ostream": true, "iostream": true,
	"const": true, "volatile": true, "unsigned": true, "signed": true, "void": true, "bool": true, "char": true,
	"short": true, "int": true, "long": true, "float": true, "double": true, "auto": true, "decltype": true,
}

func identByte(c byte) bool {
	return c == '_' || c == '$' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c >= 0x80
}
