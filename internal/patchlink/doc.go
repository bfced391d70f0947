// Package patchlink makes a patch library out of the objects that a change of
// the source has brought about, and of what is known of where everything else is
// in the images that run.
//
// Of each object after the change it writes an edited one, with the sections to
// be shipped and nothing else. A reference from there is one of three things:
//
//   - to something that is shipped too: an ordinary relocation, for the linker;
//   - to something of the base image, which no dynamic linker could find: a bind
//     record (docs/patch-format.md), with the address in the image; hotpatch
//     fills it in when the patch is applied;
//   - to a library's function or variable that the base does not use yet: an
//     ordinary relocation against an undefined symbol, for the dynamic linker.
//
// A reference to a function that the patch replaces leads to the base's entry
// all the same: so pointers to it stay equal, and later patches of it hold for
// the code of this one too. Only a function's own pieces refer to each other.
//
// The objects are linked by the compiler's driver into a shared object without
// exports. Nothing of it can be interposed, and it interposes nothing.
package patchlink
