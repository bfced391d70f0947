package rebuild

import (
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// Plain is a file that a build without watched compilers has made, and that an image
// of the request may have been once.
type Plain struct {
	Image   int    `json:"image"` // index
	Path    string `json:"path"`  // relative to the tree
	BuildID string `json:"buildId"`
	Equal   bool   `json:"equal"` // its build-id is the image's
	Kept    string `json:"kept"`  // a copy of it, which has symbols; only if it is equal
}

// plain builds the tree as its distributor did, without watching, looks which images
// come out of it, and makes the tree clean again. What is watched has other options,
// and so other build-ids.
func (b *rebuilder) plain(ctx context.Context) error {
	if err := b.execute(ctx, b.Command, b.Env, "build-plain.log", func() string { return "without watching" }); err != nil {
		return err
	}
	if err := b.comparePlain(); err != nil {
		return workFault(err)
	}
	if err := b.renew(ctx); err != nil {
		return workFault(err)
	}
	return nil
}

// comparePlain gives each image at most one file: of the same build-id, or else the
// first of the same name.
func (b *rebuilder) comparePlain() error {
	store := filepath.Join(b.Work, "plain")
	if err := os.Mkdir(store, 0o755); err != nil {
		return err
	}
	found := make(map[int]Plain)
	err := filepath.WalkDir(b.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		mine := Describe(path)
		if mine.BuildID == "" {
			return nil
		}
		for _, i := range Describe(path).corresponding(b.Images) {
			one := Plain{Image: i, Path: within(b.root, path), BuildID: mine.BuildID, Equal: mine.BuildID == b.Images[i].BuildID}
			if was, there := found[i]; there && (was.Equal || !one.Equal) {
				continue
			}
			if one.Equal {
				one.Kept = filepath.Join(store, strconv.Itoa(i))
				if err := copyFile(path, one.Kept); err != nil {
					return err
				}
			}
			found[i] = one
		}
		return nil
	})
	for _, i := range sortedKeys(found) {
		b.report.Plain = append(b.report.Plain, found[i])
	}
	return err
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}
