package rebuild

import (
	"bytes"
	"debug/elf"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"hotpatch/elfsym"
	"hotpatch/internal/intercept"
)

// linked is a file that the build has linked.
type linked struct {
	path    string
	objects map[*intercept.Compile]bool
	unknown []string // objects that compilers made, of which there is no record
	open    bool     // something in it could not be looked at
	images  []int    // that it corresponds to
	program bool
	folds   bool     // equal functions of all objects become one
	libs    []string // what else it is linked with, as for -l, or paths

	options []string // of the linker
	read    bool     // defined is known, see names
	defined map[string]bool
}

// graph says which compilations are in what was linked.
type graph struct {
	outputs  []*linked
	byOutput map[string][]*intercept.Compile // by path of the object, in order
	bySum    map[string]*intercept.Compile
	marks    map[*intercept.Compile][]string // see mark
}

func newGraph(compiles []*intercept.Compile, links []*intercept.Linking, images []Image) *graph {
	g := &graph{byOutput: make(map[string][]*intercept.Compile), bySum: make(map[string]*intercept.Compile), marks: make(map[*intercept.Compile][]string)}
	for _, c := range compiles {
		g.byOutput[real(c.Output)] = append(g.byOutput[real(c.Output)], c)
	}
	made := make(map[string]*linked)
	for _, l := range links {
		out := &linked{path: real(l.Output), objects: make(map[*intercept.Compile]bool)}
		var dirs []string
		for _, in := range l.Inputs {
			switch {
			case strings.HasPrefix(in, "-L"):
				dirs = append(dirs, absolute(l.Dir, in[2:]))
			case strings.HasPrefix(in, "-l"):
				found := false
				for _, d := range dirs {
					lib := filepath.Join(d, "lib"+in[2:])
					if _, err := os.Stat(lib + ".so"); err == nil {
						out.libs, found = append(out.libs, real(lib+".so")), true
						break
					}
					if _, err := os.Stat(lib + ".a"); err == nil {
						g.add(out, made, lib+".a", l.Start, compiles)
						found = true
						break
					}
				}
				if !found {
					out.libs = append(out.libs, in[2:])
				}
			default:
				if strings.HasSuffix(in, ".so") {
					out.libs = append(out.libs, real(absolute(l.Dir, in)))
				}
				g.add(out, made, absolute(l.Dir, in), l.Start, compiles)
			}
		}
		if strings.Contains(l.Driver, "++") {
			out.libs = append(out.libs, "stdc++", "m")
		}
		out.folds, out.options = l.Folds, l.Options
		made[out.path] = out
	}
	for _, path := range sortedKeys(made) {
		out := made[path]
		mine := Describe(path)
		out.images, out.program = mine.corresponding(images), mine.Program
		g.outputs = append(g.outputs, out)
	}
	return g
}

// add adds what a linked file brings.
func (g *graph) add(out *linked, made map[string]*linked, path string, at int64, compiles []*intercept.Compile) {
	path = real(path)
	var last *intercept.Compile
	for _, c := range g.byOutput[path] {
		if c.Start <= at {
			last = c
		}
	}
	if last != nil {
		out.objects[last] = true
		return
	}
	if m := made[path]; m != nil && m != out && isRelocatable(path) {
		for c := range m.objects {
			out.objects[c] = true
		}
		out.unknown = append(out.unknown, m.unknown...)
		out.open = out.open || m.open
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		out.open = true
		return
	}
	switch {
	case bytes.HasPrefix(data, []byte("!<arch>\n")), bytes.HasPrefix(data, []byte("!<thin>\n")):
		members, ok := archive(data, filepath.Dir(path))
		out.open = out.open || !ok
		for _, m := range members {
			g.object(out, path+"("+m.name+")", m.data, compiles)
		}
	case bytes.HasPrefix(data, []byte(elf.ELFMAG)):
		g.object(out, path, data, compiles)
	}
}

// object adds an object by its content.
func (g *graph) object(out *linked, name string, data []byte, compiles []*intercept.Compile) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return
	}
	if f.Type != elf.ET_REL {
		return
	}
	if len(g.bySum) == 0 {
		for _, c := range compiles {
			g.bySum[intercept.Sum(c.Object)] = c
		}
	}
	if c := g.bySum[intercept.SumOf(data)]; c != nil {
		out.objects[c] = true
		return
	}
	// What assemblers and other languages' compilers make has read no header.
	if s := f.Section(".comment"); s != nil {
		if text, err := s.Data(); err == nil && (bytes.Contains(text, []byte("GCC: ")) || bytes.Contains(text, []byte("clang version"))) {
			out.unknown = append(out.unknown, name)
		}
	}
}

func isRelocatable(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return f.Type == elf.ET_REL
}

// member is an object in an archive.
type member struct {
	name string
	data []byte
}

// archive gives the members of an archive (ar(5), the variant of GNU, thin ones
// included). ok is false if some could not be read.
func archive(data []byte, dir string) (list []member, ok bool) {
	thin := bytes.HasPrefix(data, []byte("!<thin>\n"))
	var names []byte
	ok = true
	for at := 8; at+60 <= len(data); {
		h := data[at : at+60]
		at += 60
		size, err := strconv.Atoi(strings.TrimSpace(string(h[48:58])))
		if err != nil || size < 0 {
			return list, false
		}
		name := strings.TrimRight(string(h[:16]), " ")
		special := name == "/" || name == "//" || name == "/SYM64/" || strings.HasPrefix(name, "__.SYMDEF")
		if !special && len(name) > 1 && name[0] == '/' {
			if off, err := strconv.Atoi(name[1:]); err == nil && off >= 0 && off < len(names) {
				name = string(names[off:])
				name, _, _ = strings.Cut(name, "\n")
			}
		}
		name = strings.TrimSuffix(name, "/")
		if thin && !special {
			content, err := os.ReadFile(absolute(dir, name))
			ok = ok && err == nil
			list = append(list, member{name, content})
			continue
		}
		if size > len(data)-at {
			return list, false
		}
		body := data[at : at+size]
		at += size + size&1
		if string(bytes.TrimRight(h[:16], " ")) == "//" {
			names = body
		}
		if !special {
			list = append(list, member{name, body})
		}
	}
	return list, ok
}

// corresponding gives the images that a linked file became: by build-id, or else by
// name. An installed file may be stripped and have another suffix of version.
func (mine Image) corresponding(images []Image) (list []int) {
	for i, im := range images {
		if mine.BuildID != "" && mine.BuildID == im.BuildID {
			return []int{i}
		}
		if mine.Soname != "" && im.Soname != "" {
			if mine.Soname == im.Soname {
				list = append(list, i)
			}
		} else if mine.Soname == im.Soname && (mine.Name == im.Name || mine.Name == "lt-"+im.Name) {
			list = append(list, i)
		}
	}
	return list
}

// Describe says what an image is called.
func Describe(path string) Image {
	im := Image{Name: filepath.Base(path)}
	f, err := os.Open(path)
	if err != nil {
		return im
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return im
	}
	if e, err := elfsym.NewImage(f, st.Size()); err == nil {
		im.Soname, im.BuildID, im.Program = e.Soname(), e.BuildID().String(), e.IsProgram()
	}
	return im
}

// of gives the files that an object is linked into, and the images they became.
func (g *graph) of(c *intercept.Compile) (paths []string, images []int, known bool) {
	for _, out := range g.outputs {
		if out.objects[c] {
			paths = append(paths, out.path)
			for _, i := range out.images {
				if !slices.Contains(images, i) {
					images = append(images, i)
				}
			}
		}
	}
	return paths, images, len(paths) > 0
}

// covers reports whether everything that an image was linked of is known, so that what
// is not in there is not in the image. Images that the tree may have nothing to do with
// count only if it has.
func (g *graph) covers(images []Image) bool {
	covered := make([]bool, len(images))
	for _, out := range g.outputs {
		for _, i := range out.images {
			covered[i] = true
			if out.open {
				return false
			}
		}
	}
	any := false
	for i, im := range images {
		any = any || covered[i]
		if !covered[i] && !im.Maybe {
			return false
		}
	}
	return any
}

// libraries gives by image what else it is linked with, without what is in the tree.
func (g *graph) libraries(images []Image, tree string) [][]string {
	list := make([][]string, len(images))
	for i := range images {
		for _, out := range g.outputs {
			for _, lib := range out.libs {
				if slices.Contains(out.images, i) && !slices.Contains(list[i], lib) && !strings.HasPrefix(lib, tree+"/") {
					list[i] = append(list[i], lib)
				}
			}
		}
	}
	return list
}

// folded tells of which images equal functions were made one.
func (g *graph) folded(images []Image) []bool {
	list := make([]bool, len(images))
	for _, out := range g.outputs {
		for _, i := range out.images {
			list[i] = list[i] || out.folds
		}
	}
	return list
}

// whole tells of which images everything that they were linked of is recorded.
func (g *graph) whole(images []Image) []bool {
	list := make([]bool, len(images))
	for i := range images {
		for _, out := range g.outputs {
			if slices.Contains(out.images, i) {
				list[i] = true
			}
		}
		for _, out := range g.outputs {
			if slices.Contains(out.images, i) && (out.open || len(out.unknown) > 0) {
				list[i] = false
			}
		}
	}
	return list
}
