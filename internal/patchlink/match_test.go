package patchlink_test

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hotpatch/internal/objdiff"
	"hotpatch/internal/patchlink"
	"hotpatch/internal/runpre"
	"hotpatch/internal/testtarget"
)

// The whole way: two objects are compared, the older one is placed in a program
// or library that has no symbols, the patch is linked, applied and reverted.
func TestStripped(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		compiler, flags string
		shared          bool
	}{
		{"gcc", "-O2 -fPIE -pie", false},
		{"gcc", "-O2 -fno-pie -no-pie", false},
		{"clang", "-O2 -fPIE -pie", false},
		{"gcc", "-O2 -fPIC", true},
		{"gcc", "-O0 -fPIE -pie", false},
		{"clang", "-O0 -fno-pie -no-pie", false},
		{"clang", "-O2 -fPIC", true},
	} {
		if testing.Short() && tt.compiler != "gcc" {
			continue
		}
		t.Run(tt.compiler+" "+tt.flags, func(t *testing.T) {
			t.Parallel()
			text := patchlink.RowsC
			if tt.shared {
				text = patchlink.Library
			}
			image, pre, post := patchlink.CompileBoth(t, "rows.c", text, tt.shared, tt.compiler, strings.Fields(tt.flags))
			stripped := filepath.Join(t.TempDir(), filepath.Base(image))
			if out, err := exec.Command("strip", "-s", "-o", stripped, image).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			diff, err := objdiff.Compare(pre, post, objdiff.Options{})
			if err != nil {
				t.Fatal(err)
			}
			im, err := runpre.Open(stripped)
			if err != nil {
				t.Fatal(err)
			}
			placed, err := im.Match(pre)
			if err != nil {
				t.Fatal(err)
			}
			out := filepath.Join(t.TempDir(), "fix.so")
			if _, err := patchlink.Link(context.Background(), []patchlink.Input{{Diff: diff, Base: placed}}, patchlink.Meta{Name: "fix", Version: 1}, out); err != nil {
				t.Fatal(err)
			}
			exe := stripped
			if tt.shared {
				exe = testtarget.Build(t, testtarget.Spec{Files: map[string]string{"main.c": "#include <stdio.h>\n#include <stdlib.h>\nint compute(int);\n" + strings.TrimPrefix(patchlink.RowsC, patchlink.Library)}, Libs: []string{stripped}})
			}
			patchlink.RunModel(t, testtarget.Start(t, exe), out)
		})
	}
}
