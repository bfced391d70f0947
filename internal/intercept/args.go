package intercept

import (
	"path/filepath"
	"slices"
	"strings"

	"hotpatch/internal/lazy"
)

// step is what a command line asks a compiler for.
type step int

// The steps. Only compileStep and compileLinkStep make objects of sources.
const (
	otherStep       step = iota // probing, preprocessing, assembler text: nothing to keep
	compileStep                 // -c
	compileLinkStep             // sources to a linked file
	linkStep                    // objects to a linked file
)

// kind says what an argument is.
type kind int

const (
	option   kind = iota // anything that compiling may depend on
	source               // a source file
	input                // an object, an archive, a library, a linker script
	linking              // an option of the linker alone
	output               // -o
	depends              // an option about the writing of dependencies
	stepping             // -c
	language             // -x
)

// arg is an argument of a command line with its value, if that is a separate one.
type arg struct {
	kind  kind
	words []string // as they were given
	value string   // file or value
	lang  string   // of a source
}

// Command is a command line of a compiler, taken apart.
type Command struct {
	Step   step
	Output string // as given with -o; may be empty
	args   []arg

	// wants is what the build wants to be told of dependencies: "" for nothing.
	// wantsFile is where; empty means where the compiler puts it.
	wants     string
	wantsFile string
	dashes    bool // there was a "--"
}

// separate are the options that take the next argument as their value, if none is
// joined to them.
var separate = lazy.Words(`-o -x -I -D -U -L -l -A -u -z -T -e -h -B -b -V -G -R -F -J
	-include -imacros -isystem -iquote -idirafter -iprefix -iwithprefix -iwithprefixbefore -isysroot -imultilib -imultiarch
	-MF -MT -MQ -MJ -Xlinker -Xassembler -Xpreprocessor -Xclang -Xanalyzer -mllvm -target -arch -aux-info --param
	-wrapper -dumpbase -dumpdir -dumpbase-ext -Tdata -Ttext -Tbss -rpath -soname --sysroot -gcc-toolchain -framework
	-ivfsoverlay -include-pch -cxx-isystem -c-isystem -idirafter -stdlib++-isystem -fmodule-file -working-directory
	--output --include --define-macro --undefine-macro --include-directory --library-directory --language --assert --entry --for-linker --for-assembler --imacros`)

// joined are the options of those whose value may follow without a space.
var joined = []string{"-o", "-x", "-MF", "-MT", "-MQ", "-MJ", "-L", "-l", "-Xlinker", "-u", "-z", "-T", "-e"}

// linkOnly are options that matter to the linker alone, value included.
var linkOnly = lazy.Words(`-L -l -u -z -T -e -h -R -Xlinker -Tdata -Ttext -Tbss -rpath -soname -framework --library-directory --entry --for-linker
	-s -r -rdynamic -nostartfiles -nodefaultlibs -nostdlib -nolibc -static-libgcc -static-libstdc++ -static-pie -symbolic -export-dynamic`)

// languages are the languages of source files by suffix. An empty one is a source
// that is not C or C++, of which nothing is known.
var languages = map[string]string{
	".c": "c", ".i": "cpp-output", ".cc": "c++", ".cp": "c++", ".cxx": "c++", ".cpp": "c++", ".CPP": "c++", ".c++": "c++", ".C": "c++", ".ii": "c++-cpp-output",
	".m": "objective-c", ".mm": "objective-c++", ".M": "objective-c++", ".mi": "objc-cpp-output", ".mii": "objective-c++-cpp-output",
	".s": "assembler", ".S": "assembler-with-cpp", ".sx": "assembler-with-cpp",
	".h": "c-header", ".H": "c++-header", ".hh": "c++-header", ".hp": "c++-header", ".hxx": "c++-header", ".hpp": "c++-header", ".HPP": "c++-header", ".h++": "c++-header", ".tcc": "c++-header",
	".f": "f77", ".for": "f77", ".F": "f77-cpp-input", ".f90": "f95", ".f95": "f95", ".f03": "f95", ".f08": "f95", ".F90": "f95-cpp-input", ".d": "d", ".go": "go", ".ads": "ada", ".adb": "ada",
}

// Parse takes a command line apart, without the compiler's name and with response
// files expanded.
func Parse(words []string) *Command {
	c := &Command{}
	lang := ""
	var compile, stop, only bool
	rest := words
	for len(rest) > 0 {
		w := rest[0]
		a := arg{words: rest[:1:1]}
		name := w
		if c.dashes || !strings.HasPrefix(w, "-") || w == "-" {
			a.kind, a.value, a.lang = classify(w, lang)
			c.args = append(c.args, a)
			rest = rest[1:]
			continue
		}
		if w == "--" {
			c.dashes = true
			c.args = append(c.args, a)
			rest = rest[1:]
			continue
		}
		switch {
		case separate()[w] && len(rest) > 1:
			a.words, a.value = rest[:2:2], rest[1]
		default:
			for _, j := range joined {
				if strings.HasPrefix(w, j) && len(w) > len(j) && !separate()[w] && !isLong(w, j) {
					name, a.value = j, w[len(j):]
					break
				}
			}
			if n, v, ok := strings.Cut(w, "="); ok && strings.HasPrefix(n, "--") {
				name, a.value = n, v
			}
		}
		rest = rest[len(a.words):]
		switch name {
		case "-o", "--output":
			a.kind, c.Output = output, a.value
		case "-x", "--language":
			a.kind, lang = language, a.value
			if lang == "none" {
				lang = ""
			}
		case "-c", "--compile":
			a.kind, compile = stepping, true
		case "-S", "-E", "-M", "-MM", "--assemble", "--preprocess", "--dependencies", "--user-dependencies", "-fsyntax-only", "-###", "-cc1", "-cc1as", "--version", "--help",
			"--precompile", "--analyze", "-emit-ast", "-module-file-info":
			stop = true
		case "-MD", "-MMD", "--write-dependencies", "--write-user-dependencies":
			a.kind = depends
			if c.wants != "-MD" {
				c.wants = strings.NewReplacer("--write-dependencies", "-MD", "--write-user-dependencies", "-MMD").Replace(name)
			}
		case "-MF":
			a.kind, c.wantsFile = depends, a.value
		case "-MP", "-MG", "-MV", "-MT", "-MQ", "-MJ":
			a.kind = depends
		default:
			switch {
			case strings.HasPrefix(w, "-Wp,"):
				a.words = c.preprocessorDeps(w)
			case linkOnly()[name] || strings.HasPrefix(w, "-Wl,"):
				a.kind = linking
			case strings.HasPrefix(w, "-print-"), strings.HasPrefix(w, "--print-"), strings.HasPrefix(w, "-dump") && !strings.HasPrefix(w, "-dumpb") && !strings.HasPrefix(w, "-dumpdir"), strings.HasPrefix(w, "--help="):
				only = true
			}
		}
		c.args = append(c.args, a)
	}
	sources, inputs := len(c.sources()), 0
	for _, a := range c.args {
		if a.kind == input {
			inputs++
		}
	}
	switch {
	case stop || only || sources+inputs == 0:
	case compile && sources > 0:
		c.Step = compileStep
	case compile:
	case sources > 0:
		c.Step = compileLinkStep
	default:
		c.Step = linkStep
	}
	return c
}

// isLong reports whether a word only looks like an option with its value joined:
// -export-dynamic is not -e, -static is not -s.
func isLong(w, option string) bool {
	switch option {
	case "-e", "-u", "-z", "-T":
		return linkOnly()[w] || strings.HasPrefix(w, "-e") && (strings.HasPrefix(w, "-export") || strings.HasPrefix(w, "-emit") || strings.HasPrefix(w, "-enable")) ||
			strings.HasPrefix(w, "-undef") || strings.HasPrefix(w, "-traditional") || strings.HasPrefix(w, "-Td") || strings.HasPrefix(w, "-Tb") || strings.HasPrefix(w, "-Tt")
	case "-x":
		return false
	case "-o":
		return strings.HasPrefix(w, "-object")
	case "-l":
		return false
	}
	return false
}

// classify says what a file on the command line is.
func classify(w, lang string) (kind, string, string) {
	if lang != "" {
		return source, w, lang
	}
	if l, ok := languages[filepath.Ext(w)]; ok && w != "-" {
		return source, w, l
	}
	return input, w, ""
}

// preprocessorDeps takes the options about dependencies out of -Wp,-MD,FILE and
// the like, and gives what is left.
func (c *Command) preprocessorDeps(w string) []string {
	parts := strings.Split(w, ",")
	left := parts[:1:1]
	for i := 1; i < len(parts); i++ {
		switch p := parts[i]; {
		case (p == "-MD" || p == "-MMD") && i+1 < len(parts):
			c.wants, c.wantsFile = p, parts[i+1]
			i++
		default:
			left = append(left, p)
		}
	}
	if len(left) == 1 {
		return nil
	}
	return []string{strings.Join(left, ",")}
}

func (c *Command) sources() []arg {
	var list []arg
	for _, a := range c.args {
		if a.kind == source {
			list = append(list, a)
		}
	}
	return list
}

// compilable reports whether every source is in C, C++ or assembler, and comes
// from a file or from standard input in a language that was named.
func (c *Command) compilable() bool {
	for _, s := range c.sources() {
		switch s.lang {
		case "c", "c++", "cpp-output", "c++-cpp-output", "objective-c", "objective-c++", "objc-cpp-output", "objective-c++-cpp-output", "assembler", "assembler-with-cpp":
		default:
			return false
		}
	}
	return true
}

// compileArgs gives the arguments that compile one source, without -o and the
// options about dependencies.
func (c *Command) compileArgs(s arg) []string {
	var list []string
	if c.Step == compileLinkStep {
		list = append(list, "-c")
	}
	for _, a := range c.args {
		switch {
		case a.kind == source && !slices.Equal(a.words, s.words), a.kind == input, a.kind == output, a.kind == depends:
		case a.kind == linking && c.Step == compileLinkStep:
		default:
			list = append(list, a.words...)
		}
	}
	return list
}

// targets gives the options that name the target of the build's own dependencies.
func (c *Command) targets() []string {
	var list []string
	for _, a := range c.args {
		if a.kind == depends && a.words[0] != "-MD" && a.words[0] != "-MMD" && !strings.HasPrefix(a.words[0], "-MF") && !strings.HasPrefix(a.words[0], "--") {
			list = append(list, a.words...)
		}
	}
	return list
}

// linkArgs gives the arguments that link, with each source replaced by an object.
func (c *Command) linkArgs(objects []string) []string {
	var list []string
	for _, a := range c.args {
		switch a.kind {
		case source:
			list = append(list, objects[0])
			objects = objects[1:]
		case language, depends:
		default:
			list = append(list, a.words...)
		}
	}
	return list
}

// inputs gives the files that are linked, and the directories and names of -L and
// -l, in order.
func (c *Command) inputs() (list []string) {
	for _, a := range c.args {
		switch {
		case a.kind == input:
			list = append(list, a.value)
		case a.kind == linking && strings.HasPrefix(a.words[0], "-Wl,"):
			for _, p := range strings.Split(a.words[0], ",")[1:] {
				if isLinkFile(p) {
					list = append(list, p)
				}
			}
		case a.kind == linking && a.words[0] == "-Xlinker" && isLinkFile(a.value):
			list = append(list, a.value)
		case a.kind == linking && strings.HasPrefix(a.words[0], "-L"):
			list = append(list, "-L"+a.value)
		case a.kind == linking && strings.HasPrefix(a.words[0], "-l"):
			list = append(list, "-l"+a.value)
		}
	}
	return list
}

// linkOptions gives the options that matter to the linker, without files, -L and -l.
func (c *Command) linkOptions() (list []string) {
	for _, a := range c.args {
		switch {
		case a.kind == linking && strings.HasPrefix(a.words[0], "-Wl,"):
			for _, p := range strings.Split(a.words[0], ",")[1:] {
				if !isLinkFile(p) {
					list = append(list, "-Wl,"+p)
				}
			}
		case a.kind == linking && !strings.HasPrefix(a.words[0], "-L") && !strings.HasPrefix(a.words[0], "-l"):
			list = append(list, strings.Join(a.words, " "))
		case a.kind == option && (slices.Contains([]string{"-shared", "-static", "-pie", "-no-pie"}, a.words[0]) || strings.HasPrefix(a.words[0], "-fuse-ld=")):
			list = append(list, a.words[0])
		}
	}
	return list
}

func isLinkFile(s string) bool {
	return !strings.HasPrefix(s, "-") && (strings.HasSuffix(s, ".a") || strings.HasSuffix(s, ".o") || strings.HasSuffix(s, ".so") || strings.HasSuffix(s, ".lo"))
}

// last gives the last option with a prefix, or "".
func (c *Command) last(match func(string) bool) string {
	for i := len(c.args) - 1; i >= 0; i-- {
		if a := c.args[i]; a.kind == option && len(a.words) > 0 && match(a.words[0]) {
			return a.words[0]
		}
	}
	return ""
}
