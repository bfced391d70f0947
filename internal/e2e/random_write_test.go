package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// randomHeader is in front of every file.
const randomHeader = `#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
typedef uint32_t u32;
typedef uint64_t u64;
struct pair { u32 x, y; };
#ifdef __cplusplus
struct Odd { u32 n; };
extern "C" {
#endif
extern u32 (*const entries[])(u32, u32);
extern const u32 entry_count;
u32 text(const char *s);
void note(const char *s, u32 x) __attribute__((cold));
void die(const char *s) __attribute__((cold, noreturn));
int ascending(const void *a, const void *b);
#ifdef __cplusplus
}
#endif
static inline u32 mix(u32 h, u32 x) { return (h ^ x) * 2654435761u + (h >> 0x3); }
`

// randomTools is linked to the files.
const randomTools = `
u32 text(const char *s) { u32 h = 17; while (*s) h = h * 31 + (unsigned char)*s++; return h; }
static u32 noted;
void note(const char *s, u32 x) { noted = noted * 31 + text(s) + x; }
void die(const char *s) { puts(s); abort(); }
int ascending(const void *a, const void *b) { u32 x = *(const u32 *)a, y = *(const u32 *)b; return x < y ? -1 : x > y; }
`

// randomMain answers "run N SEED" with N calls and what they gave; the reference
// is told its version by "version V".
const randomMain = `
#include <string.h>
#include <unistd.h>
extern int version;
u32 note_sum(void);
int main(void)
{
	char line[100];
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("READY %d\n", getpid());
	while (fgets(line, sizeof line, stdin)) {
		unsigned n, seed, sum = 0;
		if (sscanf(line, "version %d", &version) == 1) {
			printf("version %d\n", version);
			continue;
		}
		if (sscanf(line, "run %u %u", &n, &seed) != 2)
			continue;
		for (unsigned i = 0; i < n; i++) {
			u32 (*f)(u32, u32) = entries[seed % entry_count];
			sum = mix(sum, f(seed >> 3, seed >> 17 & 0xff));
			seed = seed * 1664525u + 1013904223u;
		}
		printf("sum %u %u\n", sum, note_sum());
	}
	return 0;
}
`

// form is how a version of the program is written.
type form struct {
	version int
	unit    int // the file, or -1 for the reference
}

var randomToken = regexp.MustCompile(`@([vfcx])([0-9]+)@`)

// say puts names into a text.
func (p *randomProgram) say(s string, f form) string {
	reference := f.unit < 0
	return randomToken.ReplaceAllStringFunc(s, func(token string) string {
		m := randomToken.FindStringSubmatch(token)
		id, _ := strconv.Atoi(m[2])
		switch m[1] {
		case "v":
			if reference {
				return "var" + m[2]
			}
			return p.vars[id].name
		case "f":
			if reference {
				return "fun" + m[2]
			}
			return p.funcs[id].name
		case "c":
			if reference {
				return fmt.Sprintf("table%s_%d", m[2], f.version)
			}
			return "table" + m[2]
		}
		switch { // one more argument
		case !p.funcs[id].more, !reference && f.version == before:
			return ""
		}
		return ", 9u"
	})
}

func (v *randomVar) declare(name string) string {
	switch v.sort {
	case "array":
		return "u32 " + name + "[8]"
	case "pair":
		return "struct pair " + name
	case "double":
		return "double " + name
	case "pointer":
		return "u32 *" + name
	case "function":
		return "u32 (*" + name + ")(u32)"
	}
	return "u32 " + name
}

// define gives the definition of a variable.
func (p *randomProgram) define(v *randomVar, f form) string {
	name, how := v.name, ""
	if f.unit < 0 {
		name, how = fmt.Sprintf("var%d", v.id), "static "
	} else if v.static {
		how = "static "
	}
	if v.sort == "own" {
		how += "__thread "
	}
	if v.init == "0" && v.id%2 == 0 {
		return how + v.declare(name) + ";\n"
	}
	return how + v.declare(name) + " = " + p.say(v.init, f) + ";\n"
}

// head gives the head of a function.
func (f *randomFunc) head(how, name string, more bool) string {
	result := map[string]string{"u32": "u32", "u64": "u64", "double": "double", "pair": "struct pair", "out": "void", "varargs": "u32"}[f.sort]
	var params []string
	switch f.sort {
	case "out":
		params = append(params, "u32 *out")
	case "varargs":
		params = append(params, "int n")
	}
	for i := range f.params {
		params = append(params, "u32 "+string("abc"[i]))
	}
	if f.sort == "varargs" {
		params = append(params, "...")
	}
	if more {
		params = append(params, "u32 more")
	}
	return strings.TrimSpace(fmt.Sprintf("%s %s %s(%s)", how, result, name, strings.Join(params, ", ")))
}

// text gives a function's body.
func (p *randomProgram) text(f *randomFunc, w form) string {
	var b strings.Builder
	b.WriteString("{\n")
	if w.unit >= 0 {
		for _, v := range p.vars {
			if v.owner == f && v.in[w.version] {
				b.WriteString(p.define(v, w))
			}
		}
	}
	b.WriteString("u32 r = a;\n")
	if f.sort == "varargs" {
		b.WriteString("va_list list;\nva_start(list, " + string("abc"[f.params-1]) + ");\nfor (int i = 0; i < n; i++) r = mix(r, va_arg(list, u32));\nva_end(list);\n")
	}
	for _, s := range f.body[w.version] {
		b.WriteString(p.say(s, w) + "\n")
	}
	b.WriteString(map[string]string{"u32": "return r;", "u64": "return (u64)r << 0x9 | a;", "double": "return (double)(r & 0xffff) * 0.5;",
		"pair": "{ struct pair t = {r, a}; return t; }", "out": "*out ^= r;", "varargs": "return r;"}[f.sort])
	b.WriteString("\n}\n")
	return b.String()
}

// file gives one file of a version.
func (p *randomProgram) file(version, unit int) string {
	w := form{version: version, unit: unit}
	var b strings.Builder
	b.WriteString(randomHeader)
	declared := func(f *randomFunc) bool {
		return f.in[version] && (f.unit == unit || f.unit < 0 || !f.static())
	}
	for _, f := range p.funcs {
		if declared(f) {
			how := f.how[version]
			if f.unit != unit && f.unit >= 0 {
				how = ""
			}
			b.WriteString(f.head(how, f.name, f.more && version == after) + ";\n")
		}
	}
	for _, c := range p.tables {
		if c.unit != unit {
			continue
		}
		sort := "u32 "
		if c.texts {
			sort = "char *const "
		}
		fmt.Fprintf(&b, "static const %stable%d[] = {%s};\n", sort, c.id, strings.Join(c.values[version], ", "))
	}
	for _, v := range p.vars {
		switch {
		case !v.in[version] || v.owner != nil:
		case v.unit == unit:
			b.WriteString(p.define(v, w))
		case !v.static:
			own := map[bool]string{true: "__thread "}[v.sort == "own"]
			b.WriteString("extern " + own + v.declare(v.name) + ";\n")
		}
	}
	for _, id := range p.order[version] {
		if f := p.funcs[id]; f.in[version] && (f.unit == unit || f.unit < 0) {
			b.WriteString(f.head(f.how[version], f.name, f.more && version == after) + "\n" + p.text(f, w))
		}
	}
	if unit == 0 {
		b.WriteString(p.entries(func(f *randomFunc) string { return f.name }))
	}
	return b.String()
}

// entries gives the table of what the program calls.
func (p *randomProgram) entries(name func(*randomFunc) string) string {
	var list []string
	for _, f := range p.funcs {
		if f.entry {
			list = append(list, name(f))
		}
	}
	return fmt.Sprintf("u32 (*const entries[])(u32, u32) = {%s};\nconst u32 entry_count = %d;\n", strings.Join(list, ", "), len(list))
}

// reference gives the program that has both versions.
func (p *randomProgram) reference() string {
	var b strings.Builder
	b.WriteString(randomHeader + "int version;\n" + randomTools + "u32 note_sum(void) { return noted; }\n")
	name := func(f *randomFunc) string { return fmt.Sprintf("fun%d", f.id) }
	for _, f := range p.funcs {
		b.WriteString(f.head("static", name(f), f.more) + ";\n")
	}
	for _, c := range p.tables {
		sort := "u32 "
		if c.texts {
			sort = "char *const "
		}
		for version := range 2 {
			fmt.Fprintf(&b, "static const %stable%d_%d[] = {%s};\n", sort, c.id, version, strings.Join(c.values[version], ", "))
		}
	}
	for _, v := range p.vars {
		b.WriteString(p.define(v, form{unit: -1}))
	}
	for _, f := range p.funcs {
		for version := range 2 {
			if f.in[version] {
				b.WriteString(f.head("static", fmt.Sprintf("%s_%d", name(f), version), f.more) + "\n" + p.text(f, form{version: version, unit: -1}))
			}
		}
		if f.sort == "varargs" { // which cannot pass on what it got
			b.WriteString(p.variadic(f, name(f)))
			continue
		}
		args := ""
		if f.sort == "out" {
			args = "out, "
		}
		args += strings.Join(strings.Split("abc"[:f.params], ""), ", ")
		if f.more {
			args += ", more"
		}
		what := map[bool]string{true: "", false: "return "}[f.sort == "out"]
		call := func(version int) string { return fmt.Sprintf("%s%s_%d(%s);", what, name(f), version, args) }
		b.WriteString(f.head("static", name(f), f.more) + "\n{\n")
		if f.in[before] {
			fmt.Fprintf(&b, "if (!version) { %s }\nelse ", call(before))
		}
		b.WriteString(call(after) + "\n}\n")
	}
	b.WriteString(p.entries(name))
	return b.String() + randomMain
}

// variadic gives the function that calls a version of one with variable arguments, of
// which there are at most two.
func (p *randomProgram) variadic(f *randomFunc, name string) string {
	args := strings.Join(strings.Split("abc"[:f.params], ""), ", ")
	s := f.head("static", name, false) + "\n{\nu32 t[2] = {0, 0};\nva_list list;\nva_start(list, " + string("abc"[f.params-1]) + ");\nfor (int i = 0; i < n; i++) t[i] = va_arg(list, u32);\nva_end(list);\n"
	if f.in[before] {
		s += fmt.Sprintf("if (!version) return %s_0(n, %s, t[0], t[1]);\n", name, args)
	}
	return s + fmt.Sprintf("return %s_1(n, %s, t[0], t[1]);\n}\n", name, args)
}
