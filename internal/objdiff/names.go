package objdiff

import (
	"debug/elf"
	"slices"
	"strings"

	"hotpatch/internal/objfile"
)

// baseName drops from a name what compilers append to tell names apart and may
// number otherwise the next time: ".3" of a clone or a static variable, ".llvm.8213",
// the name of a file's first symbol in that of its constructor, and the
// discriminator of a C++ static variable ("_ZZ1fvE1n_0"; Itanium C++ ABI 5.1.6).
func baseName(name string) string {
	for _, p := range []string{"_GLOBAL__sub_I_", "_GLOBAL__sub_D_"} {
		if strings.HasPrefix(name, p) {
			return p
		}
	}
	parts := strings.Split(name, ".")
	parts = append(parts[:1], slices.DeleteFunc(parts[1:], func(s string) bool { return s == "llvm" || digits(s) })...)
	name = strings.Join(parts, ".")
	if strings.HasPrefix(name, "_ZZ") || strings.HasPrefix(name, "_ZGVZ") {
		if i := strings.LastIndexByte(name, '_'); i > 0 && digits(name[i+1:]) {
			name = strings.TrimSuffix(name[:i], "_")
		}
	}
	return name
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// parentOf gives the function of which a name is a part that is never called:
// its cold code.
func parentOf(name string) (string, bool) {
	i := strings.LastIndex(name, ".cold")
	if i <= 0 {
		return "", false
	}
	if rest := name[i+len(".cold"):]; rest != "" && (rest[0] != '.' || !digits(rest[1:])) {
		return "", false
	}
	return name[:i], true
}

// isClassData reports whether a name is that of a vtable, VTT, construction
// vtable, typeinfo or its name (Itanium C++ ABI 5.1.4).
func isClassData(name string) bool {
	for _, p := range []string{"_ZTV", "_ZTT", "_ZTC", "_ZTI", "_ZTS"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// isConstructorName reports whether a function is one that compilers make to
// initialise or destroy the variables of a file.
func isConstructorName(name string) bool {
	for _, p := range []string{"_GLOBAL__", "__cxx_global_var_init", "__cxx_global_array_dtor", "_Z41__static_initialization_and_destruction_0"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// isStaticLocal reports whether a local variable's name is that of a static
// variable of a function: gcc's "n.0", clang's "f.n", C++'s "_ZZ1fvE1n", and
// their guards.
func isStaticLocal(y *objfile.Symbol) bool {
	if strings.HasPrefix(y.Name, "_ZZ") || strings.HasPrefix(y.Name, "_ZGVZ") {
		return true
	}
	return y.Bind == elf.STB_LOCAL && strings.Contains(y.Name, ".")
}

// namesOwner reports whether the name of a static variable tells its function, as
// those of clang and C++ do.
func namesOwner(name string) bool {
	if strings.HasPrefix(name, "_ZZ") || strings.HasPrefix(name, "_ZGVZ") {
		return true
	}
	_, rest, ok := strings.Cut(name, ".")
	first, _, _ := strings.Cut(rest, ".")
	return ok && !digits(first)
}

// isReadOnly reports whether a section holds what cannot change while the
// program runs: read-only data, and data that is read-only after relocation.
func isReadOnly(s *objfile.Section) bool {
	if s.Flags&elf.SHF_ALLOC == 0 || s.Flags&(elf.SHF_EXECINSTR|elf.SHF_TLS) != 0 || s.Type == elf.SHT_NOBITS {
		return false
	}
	return s.Flags&elf.SHF_WRITE == 0 || strings.HasPrefix(s.Name, ".data.rel.ro")
}

func isCode(s *objfile.Section) bool {
	return s != nil && s.Flags&elf.SHF_ALLOC != 0 && s.Flags&elf.SHF_EXECINSTR != 0
}

// isInitArray reports whether a section lists functions to be called at the
// start or the end of the program.
func isInitArray(s *objfile.Section) bool {
	switch s.Type {
	case elf.SHT_INIT_ARRAY, elf.SHT_FINI_ARRAY, elf.SHT_PREINIT_ARRAY:
		return true
	}
	for _, p := range []string{".init_array", ".fini_array", ".preinit_array", ".ctors", ".dtors"} {
		if s.Name == p || strings.HasPrefix(s.Name, p+".") {
			return true
		}
	}
	return false
}

// byContent reports whether a symbol has no identity but its content: the local
// constants, and the cells that C++ exception tables use to reach type
// information. Address and state of such a thing do not matter. The type
// information of a class in an unnamed namespace is local and has an identity.
func byContent(y *objfile.Symbol) bool {
	if y.Section == nil {
		return false
	}
	if strings.HasPrefix(y.Name, "DW.ref.") {
		return true
	}
	return isReadOnly(y.Section) && y.Bind == elf.STB_LOCAL && !isClassData(y.Name)
}

// sectionClass gives a section's name without what -fdata-sections and
// -ffunction-sections append, for the sections that compilers make.
func sectionClass(name string) string {
	for _, p := range []string{
		".data.rel.ro.local", ".data.rel.ro", ".data.rel.local", ".data.rel", ".data", ".bss", ".tdata", ".tbss",
		".rodata", ".ldata", ".lbss", ".lrodata", ".text.startup", ".text.exit", ".text.unlikely", ".text.hot", ".text",
	} {
		if name == p || strings.HasPrefix(name, p+".") {
			return p
		}
	}
	return name
}

// Stem gives the name of a function or variable without what compilers append to it, and
// may number otherwise the next time.
func Stem(name string) string { return baseName(name) }
