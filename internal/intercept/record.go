package intercept

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Compile is one compilation of one source file that a build has made. All paths
// are absolute.
type Compile struct {
	Compiler string   // the real one
	Name     string   // what it was called as: argv[0]
	Args     []string // all of them but -o and those about dependencies
	Dir      string
	Env      []string
	Source   string // empty: standard input
	Lang     string // as for -x
	Output   string // where the build wanted the object
	Object   string // the copy that was kept
	Deps     []Dep
	Start    int64 // nanoseconds since the epoch
	End      int64
}

// Dep is a file that a compilation has read.
type Dep struct {
	Path string
	Sum  string // of the content; empty for files of the system
}

// Assembler reports whether the source is in assembler.
func (c *Compile) Assembler() bool { return strings.HasPrefix(c.Lang, "assembler") }

// Linking is a step of linking: the files and libraries that a build has linked, in order, as
// they were given (relative to Dir; "-LDIR" and "-lNAME" among them).
type Linking struct {
	Dir     string
	Inputs  []string
	Output  string   // absolute
	Driver  string   // the name of the compiler
	Options []string // of the linker, without files, -L and -l
	Folds   bool     // equal functions become one (--icf)
	Start   int64
}

// Sum gives the sum of a file's content, or "" if it cannot be read.
func Sum(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return ""
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// key identifies what a compilation was asked for.
func (c *Compile) key() string {
	h := sha256.New()
	for _, s := range append([]string{c.Compiler, c.Dir, c.Source, c.Output}, c.Args...) {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// write puts a record into a directory, whole or not at all.
func write(dir, kind string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = cmp.Or(err, f.Close()); err == nil {
		name := kind + "-" + strconv.FormatInt(time.Now().UnixNano(), 10) + strings.TrimPrefix(filepath.Base(f.Name()), ".new")
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}

// read gives all records of a kind, in the order in which they began.
func read[T any](dir, kind string, start func(*T) int64) ([]*T, error) {
	files, err := filepath.Glob(filepath.Join(dir, kind+"-*"))
	if err != nil {
		return nil, err
	}
	var list []*T
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		one := new(T)
		if err := json.Unmarshal(data, one); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		list = append(list, one)
	}
	slices.SortStableFunc(list, func(a, b *T) int { return cmp.Compare(start(a), start(b)) })
	return list, nil
}

// SumOf is Sum of bytes.
func SumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16])
}
