// Package unwind turns the registers and the memory of a stopped thread into its
// call frames, and says whether these are all of them.
//
// # Complete, or why not
//
// A walk is complete only if it ended at a frame that is marked as the
// outermost one: its unwind information says that the return address is
// undefined (the way in which _start and clone of glibc are marked), it is the
// entry point of the program or of the dynamic linker, or it is code that ends
// the thread with the exit system call. A walk that ends for any other reason is
// incomplete and says where and why. In particular the end of what is known is
// never taken for the end of the stack: a function without unwind information
// can have callers.
//
// Each step is checked: the stack pointer only grows, within the same stack,
// but where a signal handler returns; a return address lies in executable
// memory of a module and is preceded by a call instruction.
//
// Unwind information itself is not always true. Two cases were found by
// executing programs instruction by instruction, and end a walk as incomplete for
// the moments that they last: epilogue.go and exception.go describe them.
//
// What a complete walk says, it says of the stack that it walked. Words of
// memory that belong to none of its frames (see Walk.Covers) are not explained
// by it: the stacks of coroutines, or the thread's own stack while it runs on
// another one.
//
// # Unwind information
//
// It is read from .eh_frame (found by its section, else by the segment
// PT_GNU_EH_FRAME) and .debug_frame, in the module or its debug file. The
// formats: LSB Core, "Exception Frames"; DWARF 5, section 6.4; register numbers:
// x86-64 psABI, figure 3.36; signal frames: the augmentation 'S', or the
// instructions of a sigreturn.
//
// The interpreter is our own. The existing one for Go (delve's pkg/dwarf/frame)
// agrees with readelf on well-formed tables, but refuses a whole module for one
// unknown augmentation, does not tell signal frames, knows 32-bit DWARF and two
// pointer encodings only, panics on damaged tables, and allocates maps for each
// frame, while a walk happens with the whole process stopped. Here one record
// that is not understood makes only the functions that it describes unknown,
// and a walk allocates nothing but its result.
//
// # Hostile input
//
// Files and memory can hold anything. No input makes the package panic, loop or
// allocate without bound: tables, records, programs, expressions and the work of
// one walk have limits.
package unwind
