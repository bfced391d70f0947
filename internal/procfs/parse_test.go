package procfs

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hotpatch/internal/fault"
)

func TestParseMaps(t *testing.T) {
	t.Parallel()
	const text = "00400000-00401000 r--p 00000000 fe:01 131          /usr/bin/a b  c\n" +
		"00401000-00402000 r-xp 00001000 fe:01 131          /usr/bin/a b  c\n" +
		"00601000-00602000 rw-s 00000000 00:05 18446744073709551615 /dev/zero (deleted)\n" +
		"01000000-01001000 ---p 00000000 00:00 0 \n" +
		"01001000-01002000 rw-p 00000000 00:00 0                                  [heap]\n" +
		"7f0000000000-7f0000001000 r--p 00000000 103:12 7                         /tmp/new\\012line\\x (deleted)\n" +
		"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n"
	want := []Map{
		{Start: 0x400000, End: 0x401000, Perm: Read, DevMajor: 0xfe, DevMinor: 1, Inode: 131, Path: "/usr/bin/a b  c"},
		{Start: 0x401000, End: 0x402000, Perm: Read | Exec, Offset: 0x1000, DevMajor: 0xfe, DevMinor: 1, Inode: 131, Path: "/usr/bin/a b  c"},
		{Start: 0x601000, End: 0x602000, Perm: Read | Write | Shared, DevMinor: 5, Inode: 1<<64 - 1, Path: "/dev/zero", Deleted: true},
		{Start: 0x1000000, End: 0x1001000},
		{Start: 0x1001000, End: 0x1002000, Perm: Read | Write, Path: "[heap]"},
		{Start: 0x7f0000000000, End: 0x7f0000001000, Perm: Read, DevMajor: 0x103, DevMinor: 0x12, Inode: 7, Path: "/tmp/new\nline\\x", Deleted: true},
		{Start: 0xffffffffff600000, End: 0xffffffffff601000, Perm: Exec, Path: "[vsyscall]"},
	}
	got, err := ParseMaps([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if s := got[1].String(); s != "00401000-00402000 r-xp 00001000 fe:01 131 /usr/bin/a b  c" {
		t.Errorf("String: %q", s)
	}
}

func TestParseMapsDamaged(t *testing.T) {
	t.Parallel()
	good := "1000-2000 r-xp 0 0:0 0\n"
	for _, text := range []string{
		"1000-2000 r-xp 0 0:0 0", // no newline
		"\n",
		"1000-2000 r-xp 0 0:0\n",
		"1000 2000 r-xp 0 0:0 0\n",
		"2000-1000 r-xp 0 0:0 0\n",
		"1000-1000 r-xp 0 0:0 0\n",
		"1000-2000 rxwp 0 0:0 0\n",
		"1000-2000 r-xpp 0 0:0 0\n",
		"1000-2000 r-xp 0 00 0\n",
		"1000-2000 r-xp 0 0:0 1f\n",
		"0x1000-2000 r-xp 0 0:0 0\n",
		"+1000-2000 r-xp 0 0:0 0\n",
		"1000-10000000000000000 r-xp 0 0:0 0\n",
		"1000-2000 r-xp 0 100000000:0 0\n",
		"1000-2000 r-xp 0 0:0 0  (deleted)\n" + good,
		good + "1800-2800 r-xp 0 0:0 0\n",
		"3000-4000 r-xp 0 0:0 0\n" + good,
	} {
		maps, err := ParseMaps([]byte(text))
		if fault.CodeOf(err) != "damaged-maps" || maps != nil {
			t.Errorf("%q: %v, %v", text, maps, err)
		}
	}
}

const statusText = "Name:\ta\\nb\\\\ (x)\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t17\nNgid:\t0\nPid:\t18\nPPid:\t1\nTracerPid:\t5\n" +
	"Uid:\t1\t2\t3\t4294967294\nGid:\t5\t6\t7\t8\nFDSize:\t64\nNSpid:\t18\t3\nKthread:\t0\nVmSize:\t    3060 kB\nThreads:\t2\n" +
	"SigPnd:\t0000000000000001\nShdPnd:\t0000000000000002\nSigBlk:\t0000000000000004\nSigIgn:\t0000000000001000\nSigCgt:\tffffffffffffffff\n" +
	"CapEff:\t000001fffeffffff\nNoNewPrivs:\t1\nSeccomp:\t2\nx86_Thread_features:\tshstk wrss \n" +
	"voluntary_ctxt_switches:\t4294967297\nnonvoluntary_ctxt_switches:\t9\n"

func TestParseStatus(t *testing.T) {
	t.Parallel()
	want := Status{
		Name: "a\nb\\ (x)", State: 'S', Tgid: 17, Pid: 18, PPid: 1, TracerPid: 5,
		Uid: [4]int{1, 2, 3, 4294967294}, Gid: [4]int{5, 6, 7, 8}, NSpid: []int{18, 3}, Threads: 2,
		SigPnd: 1, ShdPnd: 2, SigBlk: 4, SigIgn: 0x1000, SigCgt: 1<<64 - 1, CapEff: 0x1fffeffffff,
		NoNewPrivs: true, Seccomp: 2, HasMemory: true, ShadowStack: true, Switches: 1<<32 + 1,
	}
	got, err := ParseStatus([]byte(statusText))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !got.HasCap(CapSysPtrace) || got.HasCap(24) || got.Dead() {
		t.Errorf("HasCap or Dead is wrong for %+v", got)
	}

	// An old kernel's kernel thread: no Kthread field, no memory.
	old := strings.NewReplacer("Kthread:\t0\n", "", "VmSize:\t    3060 kB\n", "").Replace(statusText)
	if got, err = ParseStatus([]byte(old)); err != nil || !got.Kthread {
		t.Errorf("old kernel thread: %+v, %v", got, err)
	}
	zombie := strings.Replace(old, "S (sleeping)", "Z (zombie)", 1)
	if got, err = ParseStatus([]byte(zombie)); err != nil || got.Kthread || !got.Dead() {
		t.Errorf("zombie: %+v, %v", got, err)
	}
}

func TestParseStatusDamaged(t *testing.T) {
	t.Parallel()
	lines := strings.SplitAfter(statusText, "\n")
	for i, line := range lines[:len(lines)-1] {
		key, _, _ := strings.Cut(line, ":")
		twice := strings.Join(append(append([]string{}, lines[:i+1]...), lines[i:]...), "")
		if _, err := ParseStatus([]byte(twice)); statusFields[key] != 0 && fault.CodeOf(err) != "damaged-status" {
			t.Errorf("%s twice: %v", key, err)
		}
		without := strings.Join(append(append([]string{}, lines[:i]...), lines[i+1:]...), "")
		_, err := ParseStatus([]byte(without))
		if required := statusFields[key]&fieldsRequired != 0; required != (fault.CodeOf(err) == "damaged-status") {
			t.Errorf("without %s: %v", key, err)
		}
	}
	for _, change := range [][2]string{
		{"Tgid:\t17", "Tgid:\t-17"},
		{"Uid:\t1\t2\t3\t4294967294", "Uid:\t1\t2\t3"},
		{"State:\tS (sleeping)", "State:\t"},
		{"SigIgn:\t0000000000001000", "SigIgn:\tx"},
		{"NSpid:\t18\t3", "NSpid:\t"},
		{"NoNewPrivs:\t1", "NoNewPrivs:\t2"},
		{"Name:\ta", "Name:a"},
		{"Umask:\t0022", "Umask"},
	} {
		text := strings.Replace(statusText, change[0], change[1], 1)
		if _, err := ParseStatus([]byte(text)); fault.CodeOf(err) != "damaged-status" {
			t.Errorf("%q: %v", change[1], err)
		}
	}
	if _, err := ParseStatus([]byte(strings.TrimSuffix(statusText, "\n"))); fault.CodeOf(err) != "damaged-status" {
		t.Errorf("cut off: %v", err)
	}
}

func TestParseSyscall(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Syscall{
		"running\n":         {Running: true, Nr: -1},
		"-1 0x7ff0 0x401\n": {Nr: -1, SP: 0x7ff0, PC: 0x401},
		"230 0x1 0x2 0x3 0x4 0x5 0x6 0x7ff0 0x401\n": {Nr: 230, Args: [6]uint64{1, 2, 3, 4, 5, 6}, SP: 0x7ff0, PC: 0x401},
	} {
		got, err := ParseSyscall([]byte(text))
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "running x\n", "0 0x1 0x2\n", "-1 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8\n", "-1 1 0x2\n", "x 0x1 0x2\n", "-1 0x1 0x10000000000000000\n"} {
		if got, err := ParseSyscall([]byte(text)); fault.CodeOf(err) != "damaged-syscall" {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestParseStartTime(t *testing.T) {
	t.Parallel()
	got, err := parseStartTime([]byte("7 (a) S 9 (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20\n"))
	if err != nil || got != 4711 {
		t.Errorf("%d, %v", got, err)
	}
	for _, text := range []string{"", "7 (a)", "7 (a S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20"} {
		if got, err := parseStartTime([]byte(text)); err == nil {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add([]byte("00400000-00401000 r--p 00000000 fe:01 131          /bin/a\n7f00-7f01 rw-s 0 00:05 1 [heap]\n"))
	f.Add([]byte("1000-2000 r-xp 0 0:0 0 /a\\012 b (deleted)\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		maps, err := ParseMaps(data)
		if err != nil {
			if maps != nil {
				t.Fatal("a result with an error")
			}
			return
		}
		// Written again and read again it is the same.
		var b strings.Builder
		for _, m := range maps {
			b.WriteString(m.String() + "\n")
		}
		again, err := ParseMaps([]byte(b.String()))
		if err != nil {
			t.Fatalf("%v\n%q", err, b.String())
		}
		if !slices.Equal(maps, again) {
			t.Fatalf("%v, again %v", maps, again)
		}
	})
}

func FuzzParseStatus(f *testing.F) {
	if data, err := os.ReadFile("/proc/self/status"); err == nil {
		f.Add(data)
	}
	f.Add([]byte(statusText))
	f.Fuzz(func(t *testing.T, data []byte) {
		st, err := ParseStatus(data)
		if err != nil {
			if !cmp.Equal(st, Status{}) {
				t.Fatal("a result with an error")
			}
			return
		}
		if st.Tgid < 0 || st.Pid < 0 || st.PPid < 0 || st.Threads < 0 {
			t.Fatalf("negative numbers: %+v", st)
		}
	})
}

func FuzzParseSyscall(f *testing.F) {
	f.Add([]byte("230 0x1 0x2 0x3 0x4 0x5 0x6 0x7ff0 0x401\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := ParseSyscall(data); err != nil && s != (Syscall{}) {
			t.Fatal("a result with an error")
		}
	})
}
