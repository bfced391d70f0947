// Package objfile reads ELF relocatable objects for x86-64, as compilers write
// them: sections, symbols, COMDAT groups, relocations, the frames of .eh_frame,
// and debugging information with its relocations applied.
//
// An object is pure data: nothing is linked, nothing is guessed. Every pointer
// in it leads to another part of the same object, and every offset has been
// checked to lie within what it is an offset of, so that those who use it need
// no checks of their own. The bytes of the file are hostile until Parse has
// accepted them.
//
// What a reference means is more than its relocation says. In code the addend
// of a PC-relative relocation counts from the end of the field and not of the
// instruction, and compilers name a place of their own file by its section
// symbol. Decode and Resolve give the symbol and offset that were meant.
//
// Formats: System V ABI, chapter 4 (object files, groups); x86-64 psABI 1.0,
// chapter 4 (relocations); LSB Core 5.0, chapter 10 (.eh_frame); DWARF 5.
package objfile
