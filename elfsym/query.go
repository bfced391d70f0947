package elfsym

import (
	"bytes"
	"fmt"
	"path"
	"strings"

	"hotpatch/internal/fault"
)

// Query is a symbol's name as a person gives it.
type Query struct {
	Module  string // base name, soname or path; "" for any
	File    string // source file of a static symbol, base name or end of path; "" for any
	Name    string // mangled, or demangled with or without parameters
	Version string // symbol version; "" for any
}

// String gives the query in the form that ParseQuery takes.
func (q Query) String() string {
	s := q.Name
	if q.Version != "" {
		s += "@" + q.Version
	}
	if q.File != "" {
		s = q.File + ":" + s
	}
	if q.Module != "" {
		s = q.Module + "!" + s
	}
	return s
}

// ParseQuery splits "name", "module!name", "file.c:name" or
// "module!file.c:name". The name can be mangled or demangled, with spaces,
// templates and operators, so that only a single colon separates a file, and no
// "!" that belongs to an operator or a template argument separates a module. A
// name without spaces can end in "@VERSION" or "@@VERSION". An empty part is
// fault "bad-symbol-name".
func ParseQuery(s string) (Query, error) {
	bad := func(why string) (Query, error) {
		return Query{}, &fault.Error{
			Kind: fault.Usage, Code: "bad-symbol-name", What: fmt.Sprintf("cannot understand the symbol %q", s), Why: why,
			Hint: "write name, module!name, file.c:name or module!file.c:name",
		}
	}
	if len(s) > maxMangled*4 {
		s = s[:64] + "..."
		return bad("it is too long")
	}
	if strings.IndexByte(s, 0) >= 0 {
		return bad("it has a zero byte")
	}
	q := Query{Name: strings.TrimSpace(s)}
	if i := strings.IndexByte(q.Name, '!'); i >= 0 && !partOfName(q.Name[:i]) {
		q.Module, q.Name = strings.TrimSpace(q.Name[:i]), strings.TrimSpace(q.Name[i+1:])
		if q.Module == "" {
			return bad("there is no module in front of the exclamation mark")
		}
	}
	if i := singleColon(q.Name); i >= 0 && !partOfName(q.Name[:i]) {
		q.File, q.Name = strings.TrimSpace(q.Name[:i]), strings.TrimSpace(q.Name[i+1:])
		if q.File == "" {
			return bad("there is no file in front of the colon")
		}
	}
	if i := strings.IndexByte(q.Name, '@'); i > 0 && !strings.ContainsAny(q.Name, " (<") {
		q.Name, q.Version = q.Name[:i], strings.TrimPrefix(q.Name[i+1:], "@")
		if q.Version == "" || strings.Contains(q.Version, "@") {
			return bad("there is no version behind the at sign")
		}
	}
	if q.Name = strings.TrimPrefix(q.Name, "::"); q.Name == "" {
		return bad("there is no name")
	}
	return q, nil
}

// partOfName reports whether what stands in front of a separator shows that it
// belongs to a C++ name.
func partOfName(prefix string) bool {
	prefix = strings.TrimSpace(prefix)
	return prefix != "[vdso]" && (strings.ContainsAny(prefix, "<[{") || strings.Contains(prefix, "::") || strings.Contains(prefix, anonymous) ||
		strings.HasSuffix(prefix, "operator") || strings.HasPrefix(prefix, "operator"))
}

// singleColon finds the first colon that has no colon beside it.
func singleColon(s string) int {
	for i := 0; i < len(s); i++ {
		if s[i] != ':' {
			continue
		}
		j := i
		for j < len(s) && s[j] == ':' {
			j++
		}
		if j == i+1 {
			return i
		}
		i = j
	}
	return -1
}

// matcher tells whether symbols match a query. It demangles only names that
// contain the query's identifier.
type matcher struct {
	q        Query
	name     []byte // as it must stand in the table if mangled
	squeezed string // without white space
	needle   []byte // what a mangled name must contain
}

func newMatcher(q Query) *matcher {
	return &matcher{q: q, name: []byte(q.Name), squeezed: stripSpace(q.Name), needle: []byte(identifier(q.Name))}
}

func (x *matcher) match(s *Sym) bool {
	if x.q.Version != "" && string(s.Version) != x.q.Version {
		return false
	}
	if x.q.File != "" && !fileMatches(s.File, x.q.File) {
		return false
	}
	if bytes.Equal(s.Name, x.name) {
		return true
	}
	if !bytes.HasPrefix(s.Name, []byte("_Z")) || bytes.HasPrefix(x.name, []byte("_Z")) || !bytes.Contains(s.Name, x.needle) {
		return false
	}
	list, n := forms(string(s.Name))
	for _, f := range list[:n] {
		if stripSpace(f) == x.squeezed {
			return true
		}
	}
	return false
}

// fileMatches compares a source file as the compiler wrote it with one of a
// query: by base name, or, if both have directories, by the end of the path.
// (gcc leaves the directories out.)
func fileMatches(have []byte, want string) bool {
	h := string(have)
	if h == "" {
		return false
	}
	if strings.Contains(want, "/") && strings.Contains(h, "/") {
		return h == want || strings.HasSuffix(h, "/"+strings.TrimPrefix(want, "/"))
	}
	return path.Base(h) == path.Base(want)
}

// Find gives every function, variable and IFUNC that matches the query, in the
// order of their modules' addresses, in all modules but patch libraries. C++
// names match mangled, or demangled with or without parameters and template
// functions' return type; white space does not count. A damaged table is a
// fault. Separate debug files are looked into for every module without .symtab.
func (s *Space) Find(q Query) ([]Symbol, error) {
	var found symbolSet
	x := newMatcher(q)
	for _, m := range s.candidates() {
		if q.Module != "" && !m.matches(q.Module) {
			continue
		}
		err := s.scanAll(m, func(t Table, sym *Sym) bool {
			if x.match(sym) {
				found.add(m.symbol(t, sym))
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return found.list, nil
}

// Candidate is one symbol in the details of fault "ambiguous-symbol".
type Candidate struct {
	Module  string `json:"module"`
	File    string `json:"file,omitempty"`
	Address string `json:"address"`
	Name    string `json:"name"`
	Mangled string `json:"mangled"`
	Version string `json:"version,omitempty"`
}

// One gives the one symbol that matches the query and that want (which may be
// nil) accepts. Several names of one address in one module, such as the two
// constructors of a class without virtual bases, count as one; Aliases tells the
// others. None is fault "no-symbol", several are "ambiguous-symbol" with
// []Candidate as its details.
func (s *Space) One(q Query, want func(Symbol) bool) (Symbol, error) {
	all, err := s.Find(q)
	if err != nil {
		return Symbol{}, err
	}
	list := all[:0:0]
	for _, sym := range all {
		if want == nil || want(sym) {
			list = append(list, sym)
		}
	}
	if len(list) == 0 {
		return Symbol{}, s.noSymbol(q, all)
	}
	for _, sym := range list[1:] {
		if sym.Addr != list[0].Addr {
			return Symbol{}, ambiguous(q, list)
		}
	}
	return list[0], nil
}

func ambiguous(q Query, list []Symbol) error {
	const most = 64
	lines := make([]string, 0, len(list))
	details := make([]Candidate, 0, len(list))
	files, modules := map[string]bool{}, map[string]bool{}
	for _, sym := range list {
		if len(lines) < most {
			lines = append(lines, "\n  "+sym.String())
		}
		files[path.Base(sym.File)], modules[sym.Module.Name] = true, true
		details = append(details, Candidate{
			Module: sym.Module.Name, File: sym.File, Address: fmt.Sprintf("%#x", sym.Addr),
			Name: sym.Demangled(), Mangled: sym.Name, Version: sym.Version,
		})
	}
	if n := len(list) - len(lines); n > 0 {
		lines = append(lines, fmt.Sprintf("\n  and %d more", n))
	}
	hint := "give the whole name with its parameters, or the mangled name"
	switch {
	case len(modules) > 1:
		hint = fmt.Sprintf("choose the module, for example %q", list[0].Query())
	case len(files) > 1:
		hint = fmt.Sprintf("choose the source file, for example %q", list[0].Query())
	case list[0].Version != "":
		hint = fmt.Sprintf("choose the version, for example %q", list[0].Query())
	}
	return &fault.Error{
		Kind: fault.Unfit, Code: "ambiguous-symbol", What: fmt.Sprintf("cannot choose the symbol %s", q),
		Why: fmt.Sprintf("%d match:%s", len(list), strings.Join(lines, "")), Hint: hint, Details: details,
	}
}

// noSymbol says what there is instead of the symbol. unwanted are symbols that
// match, but that the caller cannot use.
func (s *Space) noSymbol(q Query, unwanted []Symbol) error {
	e := &fault.Error{Kind: fault.Unfit, Code: "no-symbol", What: fmt.Sprintf("cannot find the symbol %s", q)}
	if q.Module != "" && !s.hasModule(q.Module) {
		e.Why = fmt.Sprintf("no module %q is mapped in process %d", q.Module, s.PID)
		e.Hint = "the names of modules are the base names of the files in /proc/PID/maps"
		return e
	}
	var hints []string
	clones, similar, err := s.alternatives(q)
	switch {
	case len(unwanted) > 0:
		e.Why = fmt.Sprintf("%s is not of the kind that is wanted (%v)", unwanted[0], unwanted[0].Type)
	case len(clones) > 0:
		e.Why = "the compiler made only clones of it: " + strings.Join(clones, ", ")
		hints = append(hints, "name the clone itself; its parameters may differ from the source")
	default:
		e.Why = "no module defines it"
		if len(similar) > 0 {
			hints = append(hints, "similar names: "+strings.Join(similar, ", "))
		}
	}
	if err != nil {
		e.Err = err
	}
	for _, m := range s.Modules {
		if q.Module != "" && !m.matches(q.Module) {
			continue
		}
		if m.Err != nil {
			hints = append(hints, fmt.Sprintf("%s was searched in memory only: %s", m.Name, reason(m.Err)))
		}
		if m.debug != nil {
			hints = append(hints, m.debug.notes...)
			if m.Kind == Executable && m.debug.image == nil && m.Image != nil && !m.Image.HasSymtab() {
				hints = append(hints, m.Name+" is stripped: only the functions that it exports are known; install its debug symbols")
			}
		}
	}
	e.Hint = strings.Join(hints, "; ")
	return e
}

func (s *Space) hasModule(name string) bool {
	for _, m := range s.Modules {
		if m.matches(name) {
			return true
		}
	}
	return false
}
