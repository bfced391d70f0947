package inject

import (
	"fmt"

	"github.com/ianlancetaylor/demangle"

	"hotpatch/elfsym"
	"hotpatch/internal/fault"
)

// unwinder is what is needed of the C++ runtime to survive an exception that
// leaves code of a patch. All zero where the target has none: then nothing can throw.
type unwinder struct {
	register, deregister, setGR, setIP uint64
	beginCatch, endCatch, currentType  uint64
}

func (l *Loader) findUnwinder() (*unwinder, error) {
	space, err := elfsym.Read(l.proc)
	if err != nil {
		return nil, err
	}
	defer space.Close()
	u := &unwinder{}
	slots := map[string]*uint64{
		"__register_frame": &u.register, "__deregister_frame": &u.deregister,
		"_Unwind_SetGR": &u.setGR, "_Unwind_SetIP": &u.setIP,
		"__cxa_begin_catch": &u.beginCatch, "__cxa_end_catch": &u.endCatch,
		"__cxa_current_exception_type": &u.currentType,
	}
	names := make([]string, 0, len(slots))
	for n := range slots {
		names = append(names, n)
	}
	found, err := space.Lookup(names)
	if err != nil {
		return nil, err
	}
	for name, slot := range slots {
		for _, s := range found[name] {
			// The unwinder that libstdc++ uses is the shared one.
			if so := s.Module.Image.Soname(); s.IsFunc() && (so == "libgcc_s.so.1" || so == "libstdc++.so.6") {
				*slot = s.Addr
			}
		}
	}
	return u, nil
}

func (u *unwinder) complete() bool {
	return u.register != 0 && u.deregister != 0 && u.setGR != 0 && u.setIP != 0
}

// frame encodes a CIE and an FDE for run_calls (LSB Core, .eh_frame): the frame
// is found from rbp, and every exception ends at the personality.
func frame(code uint64) []byte {
	abs := func(b []byte, v uint64) []byte { return le.AppendUint64(b, v) }
	pad := func(b []byte) []byte {
		for (len(b)+4)%8 != 0 {
			b = append(b, 0) // DW_CFA_nop
		}
		return b
	}
	cie := []byte{
		0, 0, 0, 0, // a CIE
		1, 'z', 'P', 'R', 0, // version, augmentation
		1, 0x78, // code alignment 1, data alignment -8
		16, // return address register
		10, // augmentation length
		0,  // personality: absolute pointer
	}
	cie = abs(cie, code+personality)
	cie = append(cie,
		0,           // FDE pointers: absolute
		0x0c, 6, 24, // DW_CFA_def_cfa rbp, 24
		0x80|16, 1, // return address at CFA-8
		0x80|14, 2, // r14 at CFA-16
		0x80|6, 3, // rbp at CFA-24
	)
	cie = pad(cie)
	out := le.AppendUint32(nil, uint32(len(cie)))
	out = append(out, cie...)

	fde := le.AppendUint32(nil, uint32(len(out)+4)) // distance back to the CIE
	fde = abs(fde, code+runCalls)
	fde = abs(fde, runCallsEnd-runCalls)
	fde = append(fde, 0) // augmentation length
	fde = pad(fde)
	out = le.AppendUint32(out, uint32(len(fde)))
	out = append(out, fde...)
	return le.AppendUint32(out, 0)
}

const flagThrew = 1 << 16

// guarded makes calls of patch code, one after the other until one throws. It
// gives the results, and which one threw (-1: none) with the type of the
// exception.
func (a *Agent) guarded(calls []Call) (results []uint64, threw int, what string, err error) {
	u, err := a.l.findUnwinder()
	if err != nil {
		return nil, -1, "", err
	}
	guard := u.complete()
	if guard {
		d, frameAt := a.l.region.data(), a.l.region.Base+frameOffset
		var b [16]byte
		put64(b[:], 0, u.setGR)
		put64(b[:], 8, u.setIP)
		if err := a.l.mem.WriteAt(b[:], d+dUnwindSetGR); err != nil {
			return nil, -1, "", err
		}
		if err := a.l.mem.WriteAt(frame(a.l.region.Base), frameAt); err != nil {
			return nil, -1, "", err
		}
		if _, err := a.Do(Call{Fn: u.register, Args: [6]uint64{frameAt}}); err != nil {
			return nil, -1, "", err
		}
		defer func() {
			if _, derr := a.Do(Call{Fn: u.deregister, Args: [6]uint64{frameAt}}); err == nil {
				err = derr
			}
		}()
	}
	for i, c := range calls {
		res, err := a.Do(c)
		if err != nil {
			return nil, -1, "", err
		}
		flags, err := read64(a.l.mem, a.l.region.data()+dCalls+callFlags)
		if err != nil {
			return nil, -1, "", err
		}
		if flags&flagThrew != 0 {
			return results, i, a.exceptionType(u, res[0]), nil
		}
		results = append(results, res[0])
	}
	return results, -1, "", nil
}

// exceptionType catches an exception properly, so that it is freed, and gives
// the name of its type.
func (a *Agent) exceptionType(u *unwinder, exception uint64) string {
	const unknown = "an exception"
	if u.beginCatch == 0 || u.endCatch == 0 || u.currentType == 0 {
		return unknown
	}
	res, err := a.Do(Call{Fn: u.beginCatch, Args: [6]uint64{exception}}, Call{Fn: u.currentType})
	if err != nil {
		return unknown
	}
	name := unknown
	if res[1] != 0 {
		if at, err := read64(a.l.mem, res[1]+8); err == nil { // std::type_info::__name
			if s, err := ReadString(a.l.mem, at, 512); err == nil {
				name = "an exception of type " + demangle.Filter("_ZTI"+s, demangle.NoParams)
			}
		}
	}
	if _, err := a.Do(Call{Fn: u.endCatch}); err != nil {
		return unknown
	}
	return name
}

// startCode are functions that gcc puts into every library, of crti.o (_init) and
// crtbegin.o (register_tm_clones, to which frame_dummy jumps); -1 stands for any byte.
// They do nothing unless the process is profiled or has transactional memory.
var startCode = struct{ init, registerClones []int }{
	init: []int{0x48, 0x83, 0xec, 0x08, 0x48, 0x8b, 0x05, -1, -1, -1, -1, 0x48, 0x85, 0xc0, 0x74, 0x02, 0xff, 0xd0, 0x48, 0x83, 0xc4, 0x08, 0xc3},
	registerClones: []int{0x48, 0x8d, 0x3d, -1, -1, -1, -1, 0x48, 0x8d, 0x35, -1, -1, -1, -1, 0x48, 0x29, 0xfe, 0x48, 0x89, 0xf0,
		0x48, 0xc1, 0xee, 0x3f, 0x48, 0xc1, 0xf8, 0x03, 0x48, 0x01, 0xc6, 0x48, 0xd1, 0xfe, 0x74, 0x14, 0x48, 0x8b, 0x05, -1, -1, -1, -1,
		0x48, 0x85, 0xc0, 0x74, 0x08, 0xff, 0xe0},
}

// ofTheCompiler reports whether a constructor is one that every library has. Such a one
// throws nothing, and must not be guarded: libgcc before version 13 takes a lock for
// every exception of the process from the first __register_frame on, for ever.
func (a *Agent) ofTheCompiler(fn uint64) bool {
	is := func(at uint64, pattern []int) bool {
		code := make([]byte, len(pattern))
		if a.l.mem.ReadAt(code, at) != nil {
			return false
		}
		for i, want := range pattern {
			if want >= 0 && code[i] != byte(want) {
				return false
			}
		}
		return true
	}
	endbr := []int{0xf3, 0x0f, 0x1e, 0xfa}
	if is(fn, endbr) {
		fn += uint64(len(endbr))
	}
	if is(fn, startCode.init) {
		return true
	}
	jump := make([]byte, 5)
	if a.l.mem.ReadAt(jump, fn) != nil {
		return false
	}
	switch jump[0] {
	case 0xe9:
		fn += 5 + uint64(int64(int32(le.Uint32(jump[1:]))))
	case 0xeb:
		fn += 2 + uint64(int64(int8(jump[1])))
	default:
		return false
	}
	return is(fn, startCode.registerClones)
}

// Construct runs the constructors of a library that was loaded, as the loader
// would: DT_INIT, then DT_INIT_ARRAY in order. They get no program arguments
// (argc is 0). Fault "constructor" (Unfit) if one throws; a crash
// in a constructor is a crash of the target.
func (a *Agent) Construct(lib *Library) error {
	var calls []Call
	if lib.init != 0 {
		calls = append(calls, Call{Fn: lib.Bias + lib.init})
	}
	for i := uint64(0); i < lib.initCount; i++ {
		fn, err := read64(a.l.mem, lib.Bias+lib.initArray+8*i)
		if err != nil {
			return err
		}
		if fn == 0 || fn == ^uint64(0) {
			continue
		}
		calls = append(calls, Call{Fn: fn})
	}
	if len(calls) == 0 {
		return nil
	}
	empty, err := a.text(0xc00, "\x00\x00\x00\x00\x00\x00\x00\x00") // argv and envp: no entry
	if err != nil {
		return err
	}
	ours := true // all of them are of the library's author's compiler, and none of the author's own
	for i := range calls {
		calls[i].Args = [6]uint64{0, empty, empty}
		ours = ours && a.ofTheCompiler(calls[i].Fn)
	}
	if ours {
		for _, c := range calls {
			if _, err := a.Do(c); err != nil {
				return err
			}
		}
		return nil
	}
	if err := a.join(); err != nil {
		return err
	}
	_, threw, what, err := a.guarded(calls)
	if err != nil {
		return err
	}
	if threw >= 0 {
		return &fault.Error{
			Kind: fault.Unfit, Code: "constructor", What: "cannot load the patch",
			Where: fmt.Sprintf("constructor %d of %d", threw+1, len(calls)), Why: "it threw " + what,
			Hint: "nothing was replaced, and the library was unloaded again",
		}
	}
	return nil
}

// Hook calls a function of a patch that takes nothing and returns an int. Fault
// "hook" (Failed) if it throws.
func (a *Agent) Hook(addr uint64) (int32, error) {
	if err := a.join(); err != nil {
		return 0, err
	}
	res, threw, what, err := a.guarded([]Call{{Fn: addr}})
	if err != nil {
		return 0, err
	}
	if threw >= 0 {
		return 0, &fault.Error{Kind: fault.Failed, Code: "hook", What: "cannot run a hook of the patch", Where: fmt.Sprintf("%#x", addr), Why: "it threw " + what}
	}
	return int32(res[0]), nil
}
