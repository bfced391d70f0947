package inject

import (
	"bytes"
	"debug/elf"
	"flag"
	"fmt"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write stub_amd64.go anew from stub_amd64.S")

// TestStubIsCurrent assembles stub_amd64.S and compares it with stub_amd64.go.
func TestStubIsCurrent(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Fatal("gcc is needed to assemble the stub: ", err)
	}
	dir := t.TempDir()
	out := filepath.Join(dir, "stub")
	cmd := exec.Command(gcc, "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0,--build-id=none", "-o", out, "stub_amd64.S")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("assemble: %v\n%s", err, msg)
	}
	f, err := elf.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text, err := f.Section(".text").Data()
	if err != nil {
		t.Fatal(err)
	}
	syms, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	at := make(map[string]uint64)
	for _, s := range syms {
		at[s.Name] = s.Value
	}

	var b bytes.Buffer
	fmt.Fprintf(&b, "// Code generated from stub_amd64.S by go test ./inject -run TestStubIsCurrent -update. DO NOT EDIT.\n\npackage inject\n\n")
	fmt.Fprintf(&b, "const (\nbootEntry = %#x\nbootSlots = %#x\ncloneEntry = %#x\nagentEntry = %#x\nrunCalls = %#x\nrunCallsEnd = %#x\npersonality = %#x\n)\n\n",
		at["boot_S"], at["boot_slots"], at["clone_S"]-at["code_start"], at["agent_main"]-at["code_start"],
		at["run_calls"]-at["code_start"], at["run_calls_end"]-at["code_start"], at["personality"]-at["code_start"])
	dump := func(name, comment string, code []byte) {
		fmt.Fprintf(&b, "// %s\nvar %s = []byte{", comment, name)
		for i, c := range code {
			if i%16 == 0 {
				b.WriteString("\n")
			}
			fmt.Fprintf(&b, "%#02x, ", c)
		}
		b.WriteString("\n}\n\n")
	}
	dump("bootCode", "bootCode is the bootstrap stub with its slots.", text[:at["boot_end"]])
	dump("regionCode", "regionCode is the beginning of the region's code page.", text[at["code_start"]:at["code_end"]])
	want, err := format.Source(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("stub_amd64.go", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile("stub_amd64.go")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("stub_amd64.go is not what stub_amd64.S assembles to; run: go test ./inject -run TestStubIsCurrent -update")
	}
	// The layout constants of Go and assembler must agree.
	for name, want := range map[string]uint64{
		"SAVED_R15": dSaved, "SAVED_RIP": dRip, "RIP_RESTART": dRipRestart, "RIP_NOHAND": dRipNoHand,
		"MASK_BLOCK": dMaskBlock, "MASK_WORKER": dMaskWorker, "CLONE_FLAGS": dCloneFlags, "CLONE_STACK": dCloneStack,
		"CLONE_TLS": dCloneTLS, "CLONE_CTID": dCloneCTID, "CLONE_RESULT": dCloneResult, "RELEASED": dReleased,
		"MXCSR": dMXCSR, "ZERO_TIME": dZeroTime, "SHORT_TIME": dShortTime, "LONG_TIME": dLongTime, "COMMAND": dCommand,
		"DONE": dDone, "QUIT": dQuit, "GONE": dGone, "SHORT_NAPS": dShortNaps, "LONG_NAPS": dLongNaps,
		"UNWIND_SETGR": dUnwindSetGR, "UNWIND_SETIP": dUnwindSetIP, "AGENT_TID": dAgentTID,
		"WORKER_CALLS": dWorkerCalls, "CALLS": dCalls, "ABANDON_CALLS": dAbandonCalls,
	} {
		if got := at[name] - at["D"]; got != want {
			t.Errorf("%s is D+%#x in stub_amd64.S and D+%#x in layout.go", name, got, want)
		}
	}
	if at["REGION_SIZE"] != regionSize || at["EXEC_SIZE"] != execSize {
		t.Errorf("region %#x/%#x in stub_amd64.S, %#x/%#x in layout.go", at["REGION_SIZE"], at["EXEC_SIZE"], regionSize, execSize)
	}
}
