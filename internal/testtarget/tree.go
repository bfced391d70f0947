package testtarget

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Trees are the Debian releases that scripts/trees makes a root file system of.
// The machine that runs the tests is the third C library and compiler.
var Trees = []string{"bullseye", "trixie"}

// Tree gives the path of the root file system of a Debian release, made by
// scripts/trees. It ends the test (see Unavailable) if it is not there or if
// the test does not run as root, which chroot needs.
func Tree(t testing.TB, release string) string {
	t.Helper()
	NeedRoot(t)
	Need(t, "unshare")
	dir := os.Getenv("HOTPATCH_TREES")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			t.Fatalf("no cache directory, set HOTPATCH_TREES: %v", err)
		}
		dir = filepath.Join(base, "hotpatch", "trees")
	}
	tree := filepath.Join(dir, release)
	if _, err := os.Stat(filepath.Join(tree, "etc/hotpatch-tree")); err != nil {
		Unavailable(t, "there is no tree of %s at %s; scripts/trees makes it", release, tree)
	}
	return tree
}

// treeStamp says which recipe a tree was made with.
func treeStamp(t testing.TB, tree string) string {
	t.Helper()
	stamp, err := os.ReadFile(filepath.Join(tree, "etc/hotpatch-tree"))
	if err != nil {
		t.Fatal(err)
	}
	return string(stamp)
}

// enterTree is the shell script between the test and a program in a tree. It
// runs in a mount namespace of its own and replaces itself with the program, so
// that the process keeps its number.
const enterTree = `set -e
tree=$1 dir=$2 binds=$3
shift 3
mount -t proc proc "$tree/proc"
IFS=:
for bind in $binds; do
	mkdir -p "$tree$bind"
	mount --bind "$bind" "$tree$bind"
done
unset IFS
exec chroot "$tree" /bin/sh -c 'cd "$0" && exec "$@"' "$dir" "$@"
`

// treeCommand gives the command that runs argv in dir inside a tree: chrooted,
// in its own mount namespace, with /proc, and with the directories of binds
// visible under the same paths as outside.
func treeCommand(tree, dir string, binds []string, argv ...string) *exec.Cmd {
	args := []string{"--mount", "--", "sh", "-c", enterTree, "sh", tree, dir, strings.Join(binds, ":")}
	cmd := exec.Command("unshare", append(args, argv...)...)
	cmd.Env = append(cleanEnv(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	return cmd
}

// cleanEnv gives the environment for everything that is built or started: no
// translated messages, and nothing that makes a program load or allocate
// differently from one run to the next.
func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case name == "LANG", name == "LANGUAGE", name == "PATH", strings.HasPrefix(name, "LC_"):
		case strings.HasPrefix(name, "LD_"), strings.HasPrefix(name, "MALLOC_"), name == "GLIBC_TUNABLES":
		default:
			env = append(env, kv)
		}
	}
	return append(env, "LC_ALL=C", "PATH="+os.Getenv("PATH"))
}
