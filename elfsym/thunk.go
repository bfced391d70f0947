package elfsym

import "strings"

// Thunks gives the thunks of a virtual function in a module: the symbols _ZTh…,
// _ZTv… and _ZTc… (Itanium C++ ABI, 5.1.4.1 "Virtual Override Thunks") whose
// encoding is that of name, which is mangled. Each of them adjusts "this", and a
// covariant one the result too, and then runs the function or a copy of its
// body. A name that is not mangled has none.
func (s *Space) Thunks(m *Module, name string) ([]Symbol, error) {
	encoding, ok := strings.CutPrefix(name, "_Z")
	if !ok {
		return nil, nil
	}
	d, err := s.derivedFrom(m, name)
	if err != nil {
		return nil, err
	}
	var found symbolSet
	for _, i := range d.thunks[encoding] {
		found.add(d.list[i])
	}
	return found.list, nil
}

// ThunkOf gives the mangled name of the function that a thunk's mangled name is
// for; ok is false if name is not that of a thunk.
func ThunkOf(name string) (function string, ok bool) {
	e, ok := thunkEncoding([]byte(name))
	if !ok {
		return "", false
	}
	return "_Z" + string(e), true
}

// thunkEncoding parses
//
//	<special-name> ::= T <call-offset> <encoding>
//	               ::= Tc <call-offset> <call-offset> <encoding>
//	<call-offset>  ::= h <number> _  |  v <number> _ <number> _
func thunkEncoding(name []byte) (encoding []byte, ok bool) {
	if len(name) < 4 || string(name[:3]) != "_ZT" {
		return nil, false
	}
	b, offsets := name[3:], 1
	if b[0] == 'c' {
		b, offsets = b[1:], 2
	}
	for ; offsets > 0; offsets-- {
		if len(b) == 0 || b[0] != 'h' && b[0] != 'v' {
			return nil, false
		}
		numbers := 1
		if b[0] == 'v' {
			numbers = 2
		}
		for b = b[1:]; numbers > 0; numbers-- {
			i := 0
			if i < len(b) && b[i] == 'n' { // negative
				i++
			}
			digits := i
			for i < len(b) && '0' <= b[i] && b[i] <= '9' {
				i++
			}
			if i == digits || i == len(b) || b[i] != '_' {
				return nil, false
			}
			b = b[i+1:]
		}
	}
	return b, len(b) > 0
}
