// Package signature checks who made a patch library: signatures of minisign, and that
// a file belongs to root.
//
// What is checked is bytes and open files, never names: whoever can change a file
// between the check and the use changes nothing that is used.
package signature

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"aead.dev/minisign"

	"hotpatch/internal/fault"
)

// Suffix is added to a file's name to get that of its signature, as minisign(1) does.
const Suffix = ".minisig"

// maxText is the greatest size of a key or a signature. minisign's have some hundred
// bytes.
const maxText = 16 << 10

// Key is a public key.
type Key struct {
	key  minisign.PublicKey
	from string // what the user gave
}

// ParseKey reads a public key: the line of text itself, as minisign prints it ("RW…"),
// or the name of a file that minisign has written. Fault: "signature-key".
func ParseKey(arg string) (*Key, error) {
	k := &Key{from: arg}
	if k.key.UnmarshalText([]byte(arg)) == nil {
		return k, nil
	}
	bad := func(why string, err error) error {
		return &fault.Error{Kind: fault.Unfit, Code: "signature-key", What: "cannot use the public key", Where: printable(arg), Why: why, Err: err,
			Hint: "give the file minisign.pub that minisign -G has written, or the line in it that begins with RW"}
	}
	text, err := readText(arg)
	if err != nil {
		return nil, bad("it is neither a key nor a file with one", err)
	}
	if err := k.key.UnmarshalText(text); err != nil {
		return nil, bad("the file has no public key of minisign", nil)
	}
	return k, nil
}

// Check reports whether data, which was read from a file, is signed with the key.
// signature is the file with the signature, or empty for the usual one. Faults:
// "signature-missing", "signature-bad".
func (k *Key) Check(path string, data []byte, signature string) error {
	if signature == "" {
		signature = path + Suffix
	}
	text, err := readText(signature)
	if err != nil {
		return &fault.Error{Kind: fault.Unfit, Code: "signature-missing", What: "cannot use the patch library", Where: printable(path),
			Why: "a signature is required, and " + printable(signature) + " cannot be read", Err: err,
			Hint: "sign it with minisign -S -m " + printable(path) + ", or name the signature with --signature"}
	}
	bad := func(why string) error {
		return &fault.Error{Kind: fault.Unfit, Code: "signature-bad", What: "cannot use the patch library", Where: printable(path),
			Why: why, Hint: "get the patch and its signature again from where they come from; do not apply this one"}
	}
	var s minisign.Signature
	if err := s.UnmarshalText(text); err != nil {
		return bad(printable(signature) + " is no signature of minisign")
	}
	if s.KeyID != k.key.ID() {
		return bad(fmt.Sprintf("it was signed with the key %X, and %X is required", s.KeyID, k.key.ID()))
	}
	if !minisign.Verify(k.key, data, text) {
		return bad("the signature is not of this file")
	}
	return nil
}

// readText reads a small regular file.
func readText(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, shortened(err)
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	text, err := io.ReadAll(io.LimitReader(f, maxText+1))
	if err == nil && len(text) > maxText {
		err = fmt.Errorf("it has more than %d bytes", maxText)
	}
	return text, err
}

// shortened leaves the path out of an error: it is in the message already.
func shortened(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// RootOwned reports whether an open file, and every directory on its path, belongs to
// root and can be written by nobody else, so that only root can have put it there.
// Directories with the sticky bit, such as /tmp, may be writable: in them nobody can
// replace the file of another. Fault: "patch-not-roots".
func RootOwned(f *os.File) error {
	refuse := func(where, why string) error {
		return &fault.Error{Kind: fault.Unfit, Code: "patch-not-roots", What: "cannot use the patch library", Where: printable(where), Why: why,
			Hint: "install it as root, in a directory that only root can write to: install -o root -m 644 PATCH.so /root/"}
	}
	st, err := f.Stat()
	if err != nil {
		return refuse(f.Name(), err.Error())
	}
	if why := others(st, false); why != "" {
		return refuse(f.Name(), "the file "+why)
	}
	// Where the open file is, whatever its name was.
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil || !strings.HasPrefix(path, "/") {
		return refuse(f.Name(), "where the file is cannot be found out")
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		st, err := os.Lstat(dir)
		if err != nil || !st.IsDir() {
			return refuse(f.Name(), "its directory "+printable(dir)+" is gone")
		}
		if why := others(st, true); why != "" {
			return refuse(f.Name(), "its directory "+printable(dir)+" "+why)
		}
		if dir == "/" {
			return nil
		}
	}
}

// others says how somebody else than root could change a file, or nothing.
func others(st fs.FileInfo, sticky bool) string {
	sys, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return "has no owner"
	case sys.Uid != 0:
		return fmt.Sprintf("belongs to user %d", sys.Uid)
	case st.Mode().Perm()&0o022 != 0 && (!sticky || st.Mode()&fs.ModeSticky == 0):
		return fmt.Sprintf("can be written by others than root (mode %#o)", st.Mode().Perm())
	}
	return ""
}

// printable makes a path fit for a message: one line, no control characters.
func printable(path string) string {
	quoted := strconv.Quote(path)
	if inner := quoted[1 : len(quoted)-1]; inner == path {
		return path
	}
	return quoted
}
