package patchlink

import (
	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/objfile"
)

// Base tells where symbols of an object before the change are in the images that
// run. Errors are refusals (*fault.Error), which are collected, but for
// NotInImage.
type Base interface {
	// Find gives where a symbol of the object before the change is. One that is
	// in no image, because it is another library's, was inlined everywhere or
	// is not used, is fault NotInImage.
	Find(pre *objfile.Symbol) (Target, error)
	// Named gives where the symbol is that an undefined one of the object after
	// the change means, and the object before the change does not have; ok is
	// false if the images do not tell.
	Named(post *objfile.Symbol) (t Target, ok bool, err error)
	// Vague tells whether the program has a definition of its own of a symbol that only
	// the object after the change defines, and where. With Unsure and Lost comes a fault
	// that says why.
	Vague(post *objfile.Symbol) (Target, Presence, error)
	// Elsewhere tells whether another object of the image defines a function or variable
	// that only the object after the change defines.
	Elsewhere(post *objfile.Symbol) (Elsewhere, error)
	// Libraries are the sonames of what the images need (DT_NEEDED): symbols that
	// are left to the dynamic linker get their versions from there.
	Libraries() []string
}

// NotInImage is the code of the fault by which a Base says that it has no such
// symbol.
const NotInImage = "not-in-image"

// Kind says how a Base knows a symbol.
type Kind int

// The kinds.
const (
	Addr  Kind = iota // it is at Vaddr
	PLT               // an entry of the procedure linkage table at Vaddr leads to it
	GOT               // a slot of the global offset table at Vaddr holds its address
	TPOff             // thread-local, Offset bytes from the thread pointer, in the program itself
	TLS               // thread-local, Offset bytes within its module's variables, in a library; see Slots
)

// Target is where something of an image is.
type Target struct {
	Image  *elfsym.Image
	Module string // the image's file name, for people
	Kind   Kind
	Vaddr  uint64 // link-time address in the image
	Offset int64
	Own    uint64 // of GOT: where the image has a definition of its own, which another module's may stand in for; 0 if it has none
	Size   uint64 // bytes, 0 if that is not known
	Slots  TLSSlots
}

// Elsewhere is what other objects of an image, before the change, have to do with a symbol.
type Elsewhere struct {
	Target
	Presence Presence        // Present, Absent, Unsure or Lost
	Why      string          // of Unsure and Lost
	Old      *objfile.Symbol // of Present: the definition in the other object; nil if that is not known
	Wanted   string          // an object that refers to it, if none of the image defines it; else empty
}

// TLSSlots are the link-time addresses of the slots of the image's global offset
// table by which its code gets at a thread-local variable; 0 if there is none.
type TLSSlots struct {
	TPOff  uint64 // holds its offset from the thread pointer
	Pair   uint64 // two of them: module and offset, as __tls_get_addr takes them
	Module uint64 // two of them: module and 0
}

// target is a Target with the image's number in the patch.
type target struct {
	Target
	image *image
}

// find asks the base for a symbol of the object before the change.
func (u *unit) find(pre *objfile.Symbol) (target, error) {
	t, err := u.base.Find(pre)
	if err != nil {
		return target{}, err
	}
	return u.l.target(t)
}

// named asks it for a symbol that only the object after the change refers to.
func (u *unit) named(post *objfile.Symbol) (target, bool, error) {
	t, ok, err := u.base.Named(post)
	if err != nil || !ok {
		return target{}, false, err
	}
	r, err := u.l.target(t)
	return r, true, err
}

func (l *linker) target(t Target) (target, error) {
	im, err := l.use(t.Image, t.Module)
	return target{t, im}, err
}

func isNotInImage(err error) bool { return fault.CodeOf(err) == NotInImage }
