package objdiff

import (
	"debug/elf"

	"hotpatch/internal/objfile"
	"hotpatch/trampoline"
)

// contextFunctions are those that save or change a stack: code that returns
// through them does not return as a stack tells.
var contextFunctions = map[string]bool{
	"setjmp": true, "_setjmp": true, "__sigsetjmp": true, "sigsetjmp": true, "longjmp": true, "_longjmp": true, "siglongjmp": true,
	"__longjmp_chk": true, "getcontext": true, "setcontext": true, "makecontext": true, "swapcontext": true,
}

// warnings notes what the author of the patch should know.
func (d *differ) warnings() {
	for _, f := range d.out.Changed {
		switch {
		case f.Post.Name == "main" && f.Post.Bind == elf.STB_GLOBAL:
			d.warn("main", f.Post, "the program enters it once, so a running one never gets into the new code", "move the change into a function that is called again")
		case neverReturns(f.Pre):
			d.warn("never-returns", f.Post, "it loops and has no way to return: a call that runs stays in the old code, and keeps the patch from being applied",
				"move the body of the loop into a function of its own in the next release; apply with --consistency entry if old and new code can mix")
		}
		for _, r := range references(f.Post) {
			if contextFunctions[r.Sym.Name] && !r.Sym.Defined() {
				d.warn("saved-context", f.Post, "it uses "+r.Sym.Name+": a context that was saved in the old code leads back into it", "apply with --scan memory")
				break
			}
		}
	}
	for _, y := range d.out.New {
		if y.Bind == elf.STB_GLOBAL && y.Vis == elf.STV_DEFAULT {
			d.warn("new-global", y, "a new global name: if a library that is loaded has it too, that one does not count here", "")
		}
	}
	d.unstored()
	d.keptTypes()
	kept := d.addressed()
	for _, y := range d.out.Removed {
		if !y.IsFunc() && !byContent(y) && !isStaticLocal(y) && (y.Section == nil || !isReadOnly(y.Section)) {
			d.warn("removed-variable", y, "it is gone from the source; if another variable takes its place, that one begins with its initial value", "")
		}
		if y.IsFunc() && (y.Bind == elf.STB_GLOBAL || kept[y] && len(numberedIn(y.Name)) == 0) {
			d.warn("removed-function", y, "it is gone from the source; the old code stays, and whoever has its address can call it", "")
		}
	}
	if d.info(d.pre).err != nil || d.info(d.post).err != nil {
		d.out.Warnings = append(d.out.Warnings, Finding{
			Code: "no-debug-info", Symbol: "", File: d.post.Path, Why: "there is no debugging information that can be read, so layouts of types were not compared",
			Hint: "compile with -g",
		})
	}
}

// neverReturns reports whether a function has a loop and nothing that leaves it:
// no return, and no jump to elsewhere.
func neverReturns(y *objfile.Symbol) bool {
	insts, err := y.Section.Decode(y.Value, y.Value+y.Size)
	if err != nil {
		return false
	}
	loop := false
	for _, in := range insts {
		switch in.Flow {
		case trampoline.Ret, trampoline.IndirectJump:
			return false
		case trampoline.Jump, trampoline.CondJump:
			if len(in.Refs) > 0 {
				return false
			}
			if _, leaves := target(y, in); leaves {
				return false
			}
			loop = loop || in.Target <= in.Addr
		}
	}
	return loop
}

// unstored warns of variables that the source has had before, but not the object: a
// compiler leaves out what is only written, or only read. What has been written is lost.
func (d *differ) unstored() {
	pre := d.full(d.pre)
	for _, y := range d.out.New {
		if !y.IsFunc() && y.Bind == elf.STB_LOCAL && !byContent(y) && pre.hasVariable(y) {
			d.warn("unstored-variable", y, "the running program does not store it, since nothing has read it or nothing has written to it; it begins with its initial value", "")
		}
	}
}
