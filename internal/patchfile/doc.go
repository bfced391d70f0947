// Package patchfile reads what a patch library says of itself, without loading
// it: which functions it carries, what they replace, its name and version, the
// builds it fits, the symbols of the target that it refers to, and its hooks.
//
// Any ELF shared object for x86-64 is a patch library: every function that it
// exports with global binding replaces the function of the same mangled name in
// the target. include/hotpatch.h adds records in the section .hotpatch.records,
// which say more; docs/patch-format.md describes them byte by byte.
//
// Records hold pointers, which the dynamic linker fills at load time. Open
// reads them from the file by applying the relative and symbolic relocations of
// .rela.dyn and the words named by DT_RELR itself, to a copy in memory.
//
// The file is foreign input: it is read once into memory (what was checked is
// what is loaded), every offset is checked, and nothing in it can make Open
// panic or allocate without bound.
package patchfile
