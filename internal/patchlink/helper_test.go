package patchlink

import (
	"context"
	"debug/elf"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/objdiff"
	"hotpatch/internal/objfile"
	"hotpatch/internal/testtarget"
)

// table is a base that believes the symbol table of an image which has one.
type table struct {
	path string
	file *elfsym.Image
	syms map[string][]elf.Symbol
	got  map[string]uint64 // slots that dynamic relocations fill with a symbol
	tp   map[any]uint64    // slots that they fill with the offset from the thread pointer of a symbol, or of an offset
	pair map[any]uint64    // pairs for __tls_get_addr
	plt  map[string]uint64 // entries that stand for functions of libraries in a program that is not position-independent
	tls  *elf.Prog
}

func openTable(t testing.TB, path string) *table {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	im, err := elfsym.NewImage(strings.NewReader(string(data)), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := &table{path: path, file: im, syms: make(map[string][]elf.Symbol), got: make(map[string]uint64), plt: make(map[string]uint64), tp: make(map[any]uint64), pair: make(map[any]uint64)}
	list, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if typ := elf.ST_TYPE(s.Info); s.Section != elf.SHN_UNDEF && typ != elf.STT_FILE && typ != elf.STT_SECTION {
			name, _, _ := strings.Cut(s.Name, "@")
			b.syms[stem(name)] = append(b.syms[stem(name)], s)
		}
	}
	dynamic, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range dynamic {
		if s.Section == elf.SHN_UNDEF && s.Value != 0 {
			b.plt[s.Name] = s.Value
		}
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_TLS {
			b.tls = p
		}
	}
	err = im.Relocs(func(r elfsym.Reloc) bool {
		name := ""
		if r.Sym != 0 {
			s, err := im.DynSym(r.Sym)
			if err != nil {
				t.Fatal(err)
			}
			name = string(s.Name)
		}
		switch r.Type {
		case elf.R_X86_64_GLOB_DAT:
			b.got[name] = r.Off
		case elf.R_X86_64_TPOFF64:
			b.tp[name] = r.Off
			if name == "" {
				b.tp[uint64(r.Addend)] = r.Off
			}
		case elf.R_X86_64_DTPMOD64:
			b.pair[name] = r.Off
			if name == "" {
				second := make([]byte, 8)
				if err := im.ReadVaddr(second, r.Off+8); err != nil {
					t.Fatal(err)
				}
				b.pair[le.Uint64(second)] = r.Off
			}
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var numbers = regexp.MustCompile(`\.[0-9]+`)

// stem is a name without the numbers that compilers append.
func stem(name string) string { return numbers.ReplaceAllString(name, "") }

func (b *table) Libraries() []string { return b.file.Needed() }

func (b *table) Vague(y *objfile.Symbol) (Target, Presence, error) {
	t, ok, err := b.Named(y)
	if !ok {
		return t, Absent, err
	}
	return t, Present, err
}

func (b *table) Elsewhere(*objfile.Symbol) (Elsewhere, error) {
	return Elsewhere{Presence: Absent}, nil
}

func (b *table) Find(y *objfile.Symbol) (Target, error) {
	t, ok, err := b.Named(y)
	if err == nil && !ok {
		err = &fault.Error{Kind: fault.Unfit, Code: NotInImage, What: "no such symbol", Where: y.Name}
	}
	return t, err
}

func (b *table) Named(y *objfile.Symbol) (Target, bool, error) {
	t := Target{Image: b.file, Module: filepath.Base(b.path)}
	list := b.syms[stem(y.Name)]
	if len(list) > 1 {
		return t, false, &fault.Error{Kind: fault.Unfit, Code: "ambiguous-symbol", What: y.Name}
	}
	if at, ok := b.got[y.Name]; ok && (len(list) == 0 || elf.ST_BIND(list[0].Info) == elf.STB_GLOBAL && b.file.Type() == elf.ET_DYN && b.file.Interp() == "") && y.Type != elf.STT_TLS {
		if len(list) == 0 || !y.IsFunc() {
			t.Kind, t.Vaddr = GOT, at
			return t, true, nil
		}
	}
	if len(list) == 0 {
		if at, ok := b.plt[y.Name]; ok {
			t.Kind, t.Vaddr = PLT, at
			return t, true, nil
		}
		return t, false, nil
	}
	s := list[0]
	t.Size = s.Size
	if elf.ST_TYPE(s.Info) != elf.STT_TLS {
		t.Vaddr = s.Value
		return t, true, nil
	}
	if b.file.Interp() != "" {
		size := (b.tls.Memsz + b.tls.Align - 1) &^ (b.tls.Align - 1)
		t.Kind, t.Offset = TPOff, int64(s.Value)-int64(size)
		return t, true, nil
	}
	t.Kind, t.Offset = TLS, int64(s.Value)
	t.Slots = TLSSlots{TPOff: b.tp[y.Name], Pair: b.pair[y.Name], Module: b.pair[uint64(0)]}
	if t.Slots.TPOff == 0 {
		t.Slots.TPOff = b.tp[s.Value]
	}
	if t.Slots.Pair == 0 {
		t.Slots.Pair = b.pair[s.Value]
	}
	return t, true, nil
}

// compare gives the difference of two objects, in which these functions must be
// the changed ones.
func compare(t testing.TB, pre, post *objfile.Object, changed ...string) *objdiff.Diff {
	t.Helper()
	d, err := objdiff.Compare(pre, post, objdiff.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range d.Changed {
		got = append(got, f.Post.Name)
	}
	slices.Sort(got)
	slices.Sort(changed)
	if !slices.Equal(got, changed) {
		t.Fatalf("%v have changed, want %v", got, changed)
	}
	return d
}

// byHand makes a diff of two objects whose changed functions are given, for what
// objdiff refuses: what has no twin of its name and is referred to is new.
func byHand(t testing.TB, pre, post *objfile.Object, changed ...string) *objdiff.Diff {
	t.Helper()
	d := &objdiff.Diff{Pre: pre, Post: post, Twin: make(map[*objfile.Symbol]*objfile.Symbol)}
	old := make(map[string]*objfile.Symbol)
	for _, y := range pre.Symbols {
		if y.Name != "" && y.Type != elf.STT_FILE && y.Type != elf.STT_SECTION && !strings.HasPrefix(y.Name, ".L") {
			old[stem(y.Name)] = y
		}
	}
	for _, y := range post.Symbols {
		if twin := old[stem(y.Name)]; twin != nil && y.Type != elf.STT_FILE && y.Type != elf.STT_SECTION {
			d.Twin[y] = twin
		}
	}
	for _, name := range changed {
		found := false
		for _, y := range post.Symbols {
			if y.Name == name && y.Section != nil && d.Twin[y] != nil {
				f := objdiff.Function{Pre: d.Twin[y], Post: y}
				for _, c := range post.Symbols {
					if c.Section != nil && strings.HasPrefix(c.Name, name+".cold") {
						f.Parts = append(f.Parts, objdiff.Part{Name: c.Name, Post: c})
					}
				}
				d.Changed = append(d.Changed, f)
				found = true
			}
		}
		if !found {
			t.Fatalf("%s is not in both objects", name)
		}
	}
	shipped := make(map[*objfile.Section]bool)
	var ship func(s *objfile.Section)
	follow := func(refs []objfile.Ref) {
		for _, r := range refs {
			to := r.Sym.Section
			if to != nil && (d.Twin[r.Sym] == nil || to.Flags&(elf.SHF_WRITE|elf.SHF_EXECINSTR) == 0) {
				ship(to)
			}
		}
	}
	ship = func(s *objfile.Section) {
		if shipped[s] || s.Flags&elf.SHF_ALLOC == 0 {
			return
		}
		shipped[s] = true
		d.Ship = append(d.Ship, s)
		refs, err := references(s)
		if err != nil {
			t.Fatal(err)
		}
		follow(refs)
		for _, f := range post.Frames {
			if f.Code == s && f.LSDA != nil {
				ship(f.LSDA)
			}
		}
	}
	for _, f := range d.Changed {
		ship(f.Post.Section)
		for _, p := range f.Parts {
			ship(p.Post.Section)
		}
	}
	return d
}

// compiled is a program before a change, and its object files before and after.
type compiled struct {
	image     string
	pre, post *objfile.Object
}

// compileBoth compiles a source before and after a change. In the source, a line
// that begins with "-" is there before only, one with "+" after only.
func compileBoth(t testing.TB, name, text string, shared bool, compiler string, flags []string, link ...string) compiled {
	t.Helper()
	var old, fresh strings.Builder
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "-"):
			old.WriteString(line[1:])
		case strings.HasPrefix(line, "+"):
			fresh.WriteString(line[1:])
		default:
			old.WriteString(line)
			fresh.WriteString(line)
		}
	}
	spec := func(text string, more ...string) testtarget.Spec {
		return testtarget.Spec{Files: map[string]string{name: text}, Compiler: compiler, Flags: append(append([]string{}, flags...), more...)}
	}
	object := func(text string) *objfile.Object {
		s := spec(text, "-ffunction-sections", "-fdata-sections", "-c")
		s.Name = "unit.o"
		o, err := objfile.Open(testtarget.Build(t, s))
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	s := spec(old.String(), link...)
	s.Shared = shared
	return compiled{testtarget.Build(t, s), object(old.String()), object(fresh.String())}
}

func (c compiled) patch(t testing.TB, d *objdiff.Diff) (string, *Report) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "fix.so")
	r, err := Link(context.Background(), []Input{{d, openTable(t, c.image)}}, Meta{Name: "fix", Version: 1}, out)
	if err != nil {
		t.Fatal(err)
	}
	return out, r
}
