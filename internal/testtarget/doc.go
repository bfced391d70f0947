// Package testtarget builds and runs the C and C++ programs that the tests
// patch, and the hotpatch binary itself. Only tests use it.
//
// The programs are real: real compilers make them from the sources below
// testdata/targets, and they run as processes that belong to the test. Every
// process is killed when its test ends, however it ends: by t.Cleanup, and by
// the kernel (PR_SET_PDEATHSIG) if the test binary itself dies.
//
// A tool that is missing on this machine skips the test that needs it. If $CI
// is set, or $HOTPATCH_TEST_ALL is 1, it fails the test instead: nothing can
// fall silent there.
package testtarget
