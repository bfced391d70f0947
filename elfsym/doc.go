// Package elfsym answers what is where in a running process: which ELF images
// are mapped, at which load bias, with which build-id, and at which addresses
// their functions, variables and vtables are.
//
// An Image is one ELF file, parsed and pure: it is the same on any machine. A
// Module is an Image as it is mapped in one process. A Space is all modules of
// one process at one moment.
//
// The file read is always the one that is mapped: /proc/PID/map_files first,
// then the path below /proc/PID/root, then the plain path; the last two only if
// device and inode agree with the mapping and the build-id agrees with the one
// in the process's memory. So a target whose binary was replaced or deleted on
// disk, or that lives in a container, is resolved from what it really runs.
//
// Symbols come from .symtab, from .dynsym, from the separate debug file (found
// by build-id, or by .gnu_debuglink with its CRC), and from the xz-compressed
// mini symbol table in .gnu_debugdata. Tables are scanned in place: one pass,
// linear in the size of the table, and no allocation for a symbol that nobody
// asked for. Who asks for a few functions gets them, and what is made of them or
// lies around them, without the table being loaded. Names are demangled only when
// they match.
//
// ELF: System V ABI, chapter 4 and 5, and the x86-64 psABI. Vtable and thunk
// names: Itanium C++ ABI, sections 5.1.4 and 2.5.
package elfsym
