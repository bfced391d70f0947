package objfile

import (
	"fmt"

	"hotpatch/internal/fault"
	"hotpatch/trampoline"
)

func unknownInst(s *Section, at uint64, format string, args ...any) error {
	return &fault.Error{
		Kind: fault.Unfit, Code: "unknown-instruction", What: "cannot decode the instruction",
		Where: fmt.Sprintf("%s+0x%x", s.Name, at), Why: fmt.Sprintf(format, args...),
	}
}

func decodeInst(s *Section, at, hi uint64) (Inst, error) {
	if hi > uint64(len(s.Data)) || at >= hi {
		return Inst{}, unknownInst(s, at, "it is outside of the section's %d bytes", len(s.Data))
	}
	in, err := trampoline.Decode(s.Data[at:hi], at)
	if err != nil {
		return Inst{}, unknownInst(s, at, "%v", err)
	}
	return Inst{Inst: in}, nil
}
