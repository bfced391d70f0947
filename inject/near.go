package inject

import (
	"bytes"
	"fmt"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
	"hotpatch/internal/procfs"
)

// Near says where a library is to be mapped.
type Near struct {
	Lo, Hi uint64 // all of it within [Lo, Hi)
	Below  uint64 // at the first free place below this address; if there is none, at the highest place
	Must   bool   // refuse rather than map it elsewhere
}

// NearTries is the greatest number of times that LoadNear loads a library: another
// thread of the target can take the place between looking and mapping.
const NearTries = 4

// LoadNear is Load for a library that is to lie near what it changes. It takes the
// serials from serial to serial+NearTries-1.
//
// Fault, in addition to those of Load: "no-place-near" (NoAccess) if there is no
// room, or the target's loader puts the library elsewhere. Only with near.Must:
// otherwise the library is loaded anywhere.
func (a *Agent) LoadNear(name string, data []byte, serial uint64, near Near) (*Library, error) {
	im, err := elfsym.NewImage(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, err
	}
	lo, hi, align := span(im)
	if hi <= lo || hi-lo > near.Hi-near.Lo {
		return a.elsewhere(name, data, serial, near, refuseNear(near, "it has %d bytes", hi-lo))
	}
	room := hi - lo
	if align > 0x1000 {
		room = max(room+align, 2*align) // what glibc from 2.35 asks for; it gives back what it does not need
	}
	steered := false
	for try := uint64(0); try < NearTries; try++ {
		maps, err := a.l.proc.Maps()
		if err != nil {
			return nil, err
		}
		at, ok := near.hole(maps, room, align)
		if !ok {
			return a.elsewhere(name, data, serial+try, near, refuseNear(near, "there is no room for its %d bytes", room))
		}
		by, address := at-lo&^(align-1), uint64(0)
		if steered {
			by, address = 0, at
		} else if err := rebase(im, bytes.Clone(data), by); err != nil {
			if !near.Must {
				return a.load(name, data, serial+try, 0, 0)
			}
			steered, by, address = true, 0, at
		}
		lib, err := a.load(name, data, serial+try, by, address)
		if err != nil || !near.Must || lib.Lo >= near.Lo && lib.Hi <= near.Hi {
			return lib, err
		}
		landed := lib.Lo
		if _, err := a.Unload(lib); err != nil {
			return nil, err
		}
		if maps, err = a.l.proc.Maps(); err != nil {
			return nil, err
		}
		if again, ok := Hole(maps, at, at-0x1000, at+room+0x1000, room, align); ok && again == at {
			if steered {
				return nil, refuseNear(near, "%#x is free, but the loader of %s maps libraries where it likes, this one at %#x", at, a.l.libc.name, landed)
			}
			steered = true // this loader does not look at the library's addresses
		}
	}
	return nil, refuseNear(near, "the process has taken each of %d places before the library was there", NearTries)
}

// hole finds a place. Above a program that is not position-independent its heap
// grows, so what lies there is better far away.
func (n Near) hole(maps []procfs.Map, room, align uint64) (uint64, bool) {
	if at, ok := Hole(maps, n.Below, n.Lo, min(n.Below, n.Hi), room, align); ok {
		return at, true
	}
	return Hole(maps, n.Hi, n.Lo, n.Hi, room, align)
}

// elsewhere loads a library anywhere, unless it must be near: why says why it
// cannot be.
func (a *Agent) elsewhere(name string, data []byte, serial uint64, near Near, why error) (*Library, error) {
	if near.Must {
		return nil, why
	}
	return a.load(name, data, serial, 0, 0)
}

func refuseNear(near Near, format string, args ...any) error {
	return &fault.Error{Kind: fault.NoAccess, Code: "no-place-near", What: "cannot map the patch library near what it changes",
		Where: fmt.Sprintf("between %#x and %#x", near.Lo, near.Hi), Why: fmt.Sprintf(format, args...)}
}
