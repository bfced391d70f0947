package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// What other live patchers' own tests ask for, and what was seen to go wrong with them,
// with the tests here that show it for hotpatch. Where something cannot arise, a line of
// docs/limits.md says why: its bold words stand here instead.

// peerScenario is one of them.
type peerScenario struct {
	name   string
	tests  string // names, separated by spaces
	limits string // the bold words of a line
}

// libcareScenarios are those of libcare's tests, under their names there.
var libcareScenarios = []peerScenario{
	{"simplest", "TestReferencesOfPatches TestSeed", ""},
	{"both", "TestProgramAndLibraryTogether", ""},
	{"shared", "TestReferencesOfPatches", ""},
	{"shared_ref_glibc", "TestReferencesOfPatches", ""},
	{"ref_glibc", "TestReferencesOfPatches", ""},
	{"ref_glibc_data", "TestReferencesOfPatches", ""},
	{"ref_orig_single", "TestReferencesOfPatches", ""},
	{"ref_orig_threads", "TestOneOfTwoThreads", ""},
	{"ref_rodata", "TestReferencesOfPatches", ""},
	{"new_func", "TestReferencesOfPatches", ""},
	{"ifunc", "TestReferencesOfPatches TestIFunc", ""},
	{"tls_simple", "TestReferencesOfPatches", ""},
	{"tls_shared", "TestReferencesOfPatches", ""},
	{"frame_finish", "TestBusyFinishes", ""},
	{"fail_busy_single", "TestBusyFunctions TestBusyByDefault", ""},
	{"fail_busy_single_top", "TestBusyFunctions TestBusySpinning", ""},
	{"fail_busy_threads", "TestBusyOneOfTwoThreads", ""},
	{"fail_coro", "TestCoroutines", ""},
	{"fail_coro_listed", "TestCoroutines", ""},
	{"fail_threading", "TestBusyBreeding", ""},
	{"fail_unpatch", "TestBusyUnpatch", ""},
	{"patchlevel", "TestProgramAndLibraryTogether", "Directories of patch levels"},
	{"startup, and through the loader", "", "Patching from the start of a process"},
	{"random patch and unpatch", "TestManyRounds TestHammer TestSoak", ""},
}

// libpulpScenarios are those of libpulp's tests, under their names there.
var libpulpScenarios = []peerScenario{
	{"numserv", "TestTwoLibraries", ""},
	{"numserv_bsymbolic", "TestTwoLibraries", ""},
	{"parameters", "TestReferences", ""},
	{"recursion", "TestRecursiveFunctions", ""},
	{"recursion2", "TestRecursiveFunctions", ""},
	{"blocked", "TestBusyUnlessEntry TestEntryMixesVersions", ""},
	{"contract", "TestNoOperationMixesVersions", ""},
	{"deadlock", "TestAtWork", ""},
	{"asunsafe_conversion", "TestAtWork TestBusySignal", ""},
	{"redzone", "TestTorture", ""},
	{"revert", "TestStackAndRevertInAnyOrder", ""},
	{"pagecross", "TestEntryAlignment", ""},
	{"terminal", "TestParentHearsNothing", ""},
	{"syscall_restart", "TestTorture", ""},
	{"hidden", "TestStaticFunctions", ""},
	{"memory_protection", "TestAtWork", ""},
	{"constructor", "TestReferencesBeforeConstructors TestOwnAllocator", ""},
	{"cancel", "TestAtWork", ""},
	{"exception_handling", "TestExceptionsKeepTheirFastPath", ""},
	{"missing_function", "TestBadPatchFirst TestRefuseWhileLoading", ""},
	{"access", "TestReferences", ""},
	{"access2", "TestReferencesKeepState", ""},
	{"tls", "TestReferencesOfPatches", ""},
	{"buildid", "TestBases", ""},
	{"libpulp_messages", "", "A log in the target"},
	{"relative_path", "TestPathsAndLeftovers", ""},
	{"revert_all", "TestPathsAndLeftovers TestStackAndRevertInAnyOrder", ""},
	{"revert_all_target1", "TestOnlyHigherVersions", "Revert and apply in one pause"},
	{"revert_all_target2", "TestPathsAndLeftovers", "Revert and apply in one pause"},
	{"revert_and_patch", "TestPathsAndLeftovers", ""},
	{"revert_with_invalid", "TestPathsAndLeftovers", ""},
	{"process", "TestSeed", ""},
	{"process_revert", "TestSeed", ""},
	{"process_access", "TestReferencesKeepState TestBuildsOfPrograms", ""},
	{"livepatchable", "TestDryRun", "A checker of prepared libraries"},
	{"manyprocesses", "TestManyProcesses", "One command for many processes"},
	{"endbr64", "TestEntryNear TestBuildsOfPrograms", ""},
	{"prefix", "TestNamespaces", "A prefix for the patch's path"},
	{"dlsym_lock", "TestAtWork TestTorture", ""},
	{"stress", "TestManyProcesses", "One command for many processes"},
	{"tempfiles", "TestPathsAndLeftovers TestSoak", ""},
	{"pcqueue", "", "Parts of other tools"},
	{"comments", "TestHeaderSaysWhatItIs", ""},
	{"nolibpulp", "TestRefuseStatic TestRefuse32Bit", ""},
	{"set_patchable", "", "Opting out"},
	{"path_disable", "", "Opting out"},
	{"user_disable", "", "Opting out"},
	{"group_disable", "", "Opting out"},
	{"mprotect_patch", "TestRefuseSeccomp TestOneConfinedThread TestLateSeccomp TestSoak", "Seccomp:"},
	{"seccomp_disable", "TestRefuseSeccomp", "Seccomp:"},
	{"patches", "TestRefusePID", ""},
	{"insn_queue", "", "Parts of other tools"},
	{"chroot", "TestChrootIntoProc TestChrootWithoutProc TestSeedInTrees", ""},
	{"visibility", "TestBadPatchFirst", ""},
	{"notes", "TestNotesInAnyOrder", ""},
	{"textrel", "TestRefusePatchFile", "Parts of other tools"},
	{"glibc_private", "", "Parts of other tools"},
	{"run_libc", "", "Parts of other tools"},
	{"dlopen", "", "Parts of other tools"},
	{"example: method", "TestSeed", ""},
	{"example: private function", "TestStaticFunctions", ""},
	{"example: call of a private method", "TestReferences", ""},
	{"example: globals under a mutex", "TestAtWork", ""},
	{"example: template method", "TestWeak TestCopies", ""},
}

// peerFailures are what was seen to go wrong with libcare, libpulp, the program that the
// seed scenario comes from, hook libraries and injectors; and what their tests lack.
var peerFailures = []peerScenario{
	{"libcare: link-time optimisation", "TestBuildsOfPrograms", ""},
	{"libcare: C++ that throws; an exception out of a patched function ends the program", "TestExceptionsKeepTheirFastPath", ""},
	{"libcare: templates and functions of four bytes", "TestWeak TestEntryNear TestEntryFar", ""},
	{"libcare: a static program", "TestRefuseStatic", ""},
	{"libcare: a target stopped by SIGSTOP", "TestStoppedTarget", ""},
	{"libcare: where the walk of a stack ends counts as safe", "TestBusyWithoutUnwindInformation", ""},
	{"libcare: a thread returns into what was unmapped", "TestRevertUnderThread TestUnloadUnderThread TestBusyUnpatch", ""},
	{"libcare: exits with the target attached, mappings stay behind", "TestRefuseWhileLoading TestManyRounds", ""},
	{"libcare: exit status 0 or a count for failures", "TestOnlyHigherVersions TestBases TestRefusePID TestRefusedRevert", ""},
	{"libcare: TERM=dumb", "TestPathsAndLeftovers", ""},
	{"libcare: everybody is frozen while one thread is busy", "TestBusyWaiting", ""},
	{"libcare: does not know its C library", "TestLibraries", ""},
	{"libpulp: half-applied patch that cannot be undone", "TestRefuseAllAtOnce TestRefuseUnfit TestSeveralPatches", ""},
	{"libpulp: exit status 0 on failure", "TestRefusePID TestRefuseTraced TestRefuseUnfit TestRefusePatchFile", ""},
	{"libpulp: signals lost", "TestSignals TestSoak", ""},
	{"libpulp: success without a patch", "TestTortureIsPatched TestAtWork", ""},
	{"libpulp: a stopped target said to be patched", "TestStoppedTarget TestDisturbed", ""},
	{"libpulp: killed, and so is the target", "TestKilledAtEverySystemCall TestKilledHotpatch TestBoundKilled TestSoak", ""},
	{"libpulp: threads that come and go", "TestThreadsThatComeAndGo TestBusyBreeding TestTorture", ""},
	{"libpulp: EINTR from epoll_wait, semtimedop, sigtimedwait", "TestTorture TestSoak", ""},
	{"libpulp: a busy thread that is not named", "TestWaitingInVain TestBusyFunctions", ""},
	{"libpulp: two at once", "TestTwoAtOnce TestSecondWaits TestSoak", ""},
	{"libpulp: reverted patches stay mapped", "TestUnload TestUnloadRounds", ""},
	{"libpulp: its tests pass with nothing patched", "TestTortureIsPatched TestEntryMixesVersions", ""},
	{"seed: no patch at -O1 to -O3", "TestSeed", ""},
	{"seed: vtables are never patched", "TestVTables TestCallForms", ""},
	{"seed: an entry across a page", "TestEntryAlignment", ""},
	{"seed: protection of pages is not restored", "TestSeed TestAtWork", ""},
	{"seed: an older version", "TestOnlyHigherVersions TestSeed", ""},
	{"injectors: dispositions of ignored SIGTRAP and SIGSEGV lost", "TestDispositions TestTorture TestSoak", ""},
	{"injectors: deadlock in the allocator or the loader", "TestTorture TestOwnAllocator TestAtWork", ""},
	{"injectors: registers, vector state, red zone, errno", "TestTorture TestSoak", ""},
	{"injectors: SIGCONT sent to a stopped target", "TestStoppedTarget", ""},
	{"hook libraries: a branch into the overwritten bytes", "TestSecondEntry TestEntryNear", ""},
	{"hook libraries: a return into the overwritten bytes", "TestBusyReturning", ""},
	{"lacking: swapcontext, fibers, Go", "TestCoroutines TestCoroutineInLargeMapping TestSoak", ""},
	{"lacking: a function that never returns", "TestBusyFunctions TestBusyUnlessEntry", ""},
	{"lacking: a zombie leader", "TestLeaderless", ""},
	{"lacking: traced by gdb or strace", "TestRefuseTraced TestDisturbed", ""},
	{"lacking: more than a hundred threads", "TestStacks TestOddStates", ""},
	{"lacking: fork after and during a patch", "TestForkedChild TestForkedMeanwhile TestPostgres", ""},
	{"lacking: seccomp", "TestRefuseSeccomp TestOneConfinedThread TestLateSeccomp", ""},
	{"lacking: namespaces, chroot", "TestNamespaces TestSeedInTrees TestChrootWithoutProc", ""},
	{"lacking: deleted program, replaced patch file", "TestReplacedFiles TestSwappedPatch", ""},
	{"lacking: the bytes are read back", "TestForeignWrites TestRefusedRevert", ""},
	{"lacking: cold parts, clones, folded functions", "TestClones TestIdenticalCodeFolding TestFolded", ""},
	{"lacking: musl", "TestLibraries TestMuslStack", ""},
	{"lacking: endbr64, short functions", "TestEntryNear TestEntryFar TestPatchableEntry", ""},
	{"lacking: opened libraries, several copies of one", "TestResolveLibraries TestReopenedPlugin TestClosedPlugin TestBoundAmbiguous", ""},
	{"lacking: two patches, one over the other", "TestStackAndRevertInAnyOrder TestSecondPatch", ""},
}

// TestPeersAreAnswered: every scenario has a test that exists, or a line in limits.md.
func TestPeersAreAnswered(t *testing.T) {
	t.Parallel()
	tests := testNames(t)
	content, err := os.ReadFile(filepath.Join(testtarget.Root(t), "docs/limits.md"))
	if err != nil {
		t.Fatal(err)
	}
	limits := string(content)
	seen := make(map[string]bool)
	for tool, list := range map[string][]peerScenario{"libcare": libcareScenarios, "libpulp": libpulpScenarios, "failures": peerFailures} {
		for _, s := range list {
			if key := tool + ": " + s.name; seen[key] {
				t.Errorf("%s is there twice", key)
			} else {
				seen[key] = true
			}
			if s.tests == "" && s.limits == "" {
				t.Errorf("%s: nothing answers %q", tool, s.name)
			}
			for _, name := range strings.Fields(s.tests) {
				if !slices.Contains(tests, name) {
					t.Errorf("%s: %q names %s, which is no test", tool, s.name, name)
				}
			}
			if s.limits != "" && !strings.Contains(limits, "\n* **"+s.limits) {
				t.Errorf("%s: %q names a line %q, which docs/limits.md has not", tool, s.name, s.limits)
			}
		}
	}
	if len(libcareScenarios) != 22+2 || len(libpulpScenarios) != 59+5 {
		t.Errorf("libcare has %d scenarios here, and libpulp %d", len(libcareScenarios), len(libpulpScenarios))
	}
}

// testNames gives the names of the tests of this package.
func testNames(t *testing.T) (names []string) {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if d, ok := d.(*ast.FuncDecl); ok && d.Recv == nil && strings.HasPrefix(d.Name.Name, "Test") {
				names = append(names, d.Name.Name)
			}
		}
	}
	return names
}
