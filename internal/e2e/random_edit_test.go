package e2e

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var randomLiteral = regexp.MustCompile(`\b[0-9]+u\b`)

// folded reports whether the change writes a part of a static variable that nothing has
// written: compilers put its value into the old code, so after a revert that does not know
// what has been written, and rightly so.
func (p *randomProgram) folded() bool {
	was, is := p.reached(before), p.reached(after)
	return slices.ContainsFunc(p.vars, func(v *randomVar) bool {
		if !v.static || !v.in[before] {
			return false
		}
		parts := []string{""}
		if v.sort == "pair" {
			parts = []string{`\.x`, `\.y`}
		}
		return slices.ContainsFunc(parts, func(part string) bool {
			// What was written under a condition may never have been.
			writes := fmt.Sprintf(`@v%d@%s(\[[^;]*\])? [+^]?= `, v.id, part)
			return !regexp.MustCompile(`(?m)^`+statementStart+writes).MatchString(was) && regexp.MustCompile(writes).MatchString(is)
		})
	})
}

// statementStart is in front of each statement of a function that is in no other one.
const statementStart = "; "

// reached gives the text of all functions of a version that the program can come to.
func (p *randomProgram) reached(version int) string {
	var all strings.Builder
	seen := make(map[string]bool)
	var visit func(text string)
	visit = func(text string) {
		all.WriteString(text)
		for _, m := range randomToken.FindAllStringSubmatch(text, -1) {
			if seen[m[0]] || m[1] != "v" && m[1] != "f" {
				continue
			}
			seen[m[0]] = true
			id, _ := strconv.Atoi(m[2])
			if m[1] == "v" {
				visit(p.vars[id].init)
			} else {
				visit(statementStart + strings.Join(p.funcs[id].body[version], "\n"+statementStart) + "\n")
			}
		}
	}
	for _, f := range p.funcs {
		if f.entry {
			visit(fmt.Sprintf("@f%d@", f.id))
		}
	}
	return all.String()
}

// edit makes one change.
func (p *randomProgram) edit() {
	var list []*randomFunc
	for _, f := range p.funcs {
		if f.in[before] && f.in[after] {
			list = append(list, f)
		}
	}
	f := pick(p, list...)
	body := f.body[after]
	at := p.IntN(len(body) + 1)
	note := func(s string) { p.edits = append(p.edits, s+" in "+f.name) }
	insert := func(s string) { f.body[after] = slices.Insert(slices.Clone(body), at, s) }
	switch p.IntN(15) {
	case 0, 1, 2:
		if at < len(body) {
			if m := randomLiteral.FindAllStringIndex(body[at], -1); m != nil {
				i := pick(p, m...)
				f.body[after] = slices.Clone(body)
				f.body[after][at] = body[at][:i[0]] + p.literal() + body[at][i[1]:]
				note("literal")
				return
			}
		}
		insert(p.statement(f, 2, true))
		note("statement")
	case 3, 4:
		insert(p.statement(f, 2, true))
		note("statement")
	case 5:
		if at < len(body) && len(body) > 1 {
			f.body[after] = slices.Delete(slices.Clone(body), at, at+1)
			note("removal")
		}
	case 6:
		if f.unit >= 0 {
			v := p.addVar(f.unit, f, false)
			insert(p.write(f, v, "r", "a", true) + "\nr += " + p.read(f, v, "r") + ";")
			note("new static local " + v.name)
		}
	case 7:
		if f.unit >= 0 {
			v := p.addVar(f.unit, nil, false)
			insert(p.write(f, v, "r", "a", true) + "\nr += " + p.read(f, v, "r") + ";")
			note("new " + v.sort + " " + v.name)
		}
	case 8, 9:
		if f.unit >= 0 {
			g := p.addFunc(f.unit, false, false, f.id)
			insert(p.callOf(f, g, true))
			note("new function " + g.name)
		}
	case 10:
		c := pick(p, p.tables...)
		c.values[after] = slices.Clone(c.values[after])
		c.values[after][p.IntN(8)] = map[bool]string{false: p.literal(), true: `"another"`}[c.texts]
		p.edits = append(p.edits, fmt.Sprintf("table %d", c.id))
	case 11:
		if f.unit >= 0 && !f.entry && f.sort != "varargs" {
			linkage, _, _ := strings.Cut(f.how[before], " ")
			f.how[after] = linkage + pick(p, "", " __attribute__((noinline))", " inline __attribute__((always_inline))", " __attribute__((cold))")
			if linkage == "" {
				f.how[after] = pick(p, "", "__attribute__((noinline))", "__attribute__((cold))")
			}
			note("attributes")
		}
	case 12:
		if len(body) > 1 && at+1 < len(body) {
			f.body[after] = slices.Clone(body)
			f.body[after][at], f.body[after][at+1] = body[at+1], body[at]
			note("swap")
		}
	case 13:
		if f.static() && f.unit >= 0 && !f.pointed && f.sort != "varargs" && !f.more {
			f.more = true
			insert("r ^= more;")
			note("parameter")
		}
	case 14: // what wrote a variable is gone
		if len(p.vars) > 0 {
			v := pick(p, p.vars...)
			writes := regexp.MustCompile(fmt.Sprintf(`@v%d@(\.[xy]|\[[^;]*\])? [+^]?= `, v.id))
			for _, g := range p.funcs {
				if g.in[before] {
					g.body[after] = slices.DeleteFunc(slices.Clone(g.body[after]), func(s string) bool { return writes.MatchString(s) })
				}
			}
			p.edits = append(p.edits, "no writes to "+v.name)
		}
	}
}
