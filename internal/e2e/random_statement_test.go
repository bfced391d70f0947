package e2e

import (
	"fmt"
	"strings"
)

// expr gives an expression of type u32 that calls nothing.
func (p *randomProgram) expr(f *randomFunc, depth int, fresh bool) string {
	if depth == 0 || p.IntN(4) == 0 {
		switch p.IntN(3) {
		case 0:
			return p.literal()
		case 1:
			return "r"
		}
		return string("abc"[p.IntN(f.params)])
	}
	e := func() string { return p.expr(f, depth-1, fresh) }
	switch p.IntN(9) {
	case 0, 1:
		return fmt.Sprintf("(%s %s %s)", e(), pick(p, "+", "-", "*", "^", "|", "&"), e())
	case 2:
		return fmt.Sprintf("(%s %s 0x%x)", e(), pick(p, "<<", ">>"), 1+p.IntN(15))
	case 3:
		return fmt.Sprintf("(%s %s (%s | 1u))", e(), pick(p, "/", "%"), e())
	case 4:
		return fmt.Sprintf("(%s %s %s ? %s : %s)", e(), pick(p, "<", ">", "==", "!="), e(), e(), e())
	case 5:
		if c := p.table(f.unit); c != nil {
			if c.texts {
				return fmt.Sprintf("text(@c%d@[%s & 0x7])", c.id, e())
			}
			return fmt.Sprintf("@c%d@[%s & 0x7]", c.id, e())
		}
	case 6, 7:
		if v := p.usable(f, fresh); v != nil {
			return p.read(f, v, e())
		}
	case 8:
		return fmt.Sprintf("text(%q)", pick(p, "red", "green", "blue", "rather long, this one")+pick(p, "", "", "er"))
	}
	return p.literal()
}

func (p *randomProgram) table(unit int) *randomTable {
	if c := pick(p, p.tables...); c.unit == unit {
		return c
	}
	return nil
}

// usable gives a variable that a function can use, or nil.
func (p *randomProgram) usable(f *randomFunc, fresh bool) *randomVar {
	var list []*randomVar
	for _, v := range p.vars {
		if (v.owner == f || v.owner == nil && v.unit == f.unit || !v.static && f.unit >= 0) && (v.in[before] || fresh) && v.in[after] {
			list = append(list, v)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return pick(p, list...)
}

func (p *randomProgram) read(f *randomFunc, v *randomVar, e string) string {
	switch v.sort {
	case "array":
		return fmt.Sprintf("@v%d@[%s & 0x7]", v.id, e)
	case "pair":
		return fmt.Sprintf("@v%d@.%s", v.id, pick(p, "x", "y"))
	case "double":
		return fmt.Sprintf("(u32)@v%d@", v.id)
	case "pointer":
		return fmt.Sprintf("*@v%d@", v.id)
	case "function":
		if g := p.pointee(f.unit); g != nil {
			return fmt.Sprintf("(u32)(@v%d@ == @f%d@)", v.id, g.id)
		}
		return "3u"
	}
	return fmt.Sprintf("@v%d@", v.id)
}

// statement gives a statement.
func (p *randomProgram) statement(f *randomFunc, depth int, fresh bool) string {
	e := func() string { return p.expr(f, 2, fresh) }
	f.cost++
	switch p.IntN(20) {
	case 0, 1, 2, 3:
		if v := p.usable(f, fresh); v != nil {
			return p.write(f, v, e(), e(), fresh)
		}
	case 4, 5, 6, 7:
		if s := p.call(f, fresh); s != "" {
			return s
		}
	case 8, 9:
		if depth > 0 {
			s := fmt.Sprintf("if (%s & 1u) {\n%s\n}", e(), p.statement(f, depth-1, fresh))
			if p.IntN(2) == 0 {
				s += fmt.Sprintf(" else {\n%s\n}", p.statement(f, depth-1, fresh))
			}
			return s
		}
	case 10:
		if depth > 0 {
			cost := f.cost
			body := p.statement(f, depth-1, fresh)
			f.cost += 7 * (f.cost - cost)
			return fmt.Sprintf("for (u32 i = 0; i < (%s & 0x7); i++) {\nr += i;\n%s\n}", e(), body)
		}
	case 11:
		if depth > 0 {
			s := fmt.Sprintf("switch (%s & 0x7) {\n", e())
			for i := range 4 + p.IntN(4) {
				s += fmt.Sprintf("case %d:\n%s\nbreak;\n", i, p.statement(f, 0, fresh))
			}
			return s + "default:\nr ^= 5u;\n}"
		}
	case 12:
		s := fmt.Sprintf("switch (%s & 0x7) {\n", e())
		for i := range 6 {
			s += fmt.Sprintf("case %d: r += %s; break;\n", i, p.literal())
		}
		return s + "default: r += 1u;\n}"
	case 13:
		return fmt.Sprintf("{ char buf[64]; snprintf(buf, sizeof buf, \"%s %%u %%u\", %s, %s); r = mix(r, text(buf)); }", pick(p, "at", "from", "a longer way to"), e(), e())
	case 14:
		return fmt.Sprintf("if (__builtin_expect((%s & 0x1f) == %d, 0)) {\nnote(\"%s\", r);\n%s\n}", e(), p.IntN(32), pick(p, "odd", "even so", "never"), p.statement(f, 0, fresh))
	case 15:
		return fmt.Sprintf("if (r == 123456789u && %s == 77u) die(\"%s\");", e(), pick(p, "bad", "worse"))
	case 16:
		if v := p.varOf(f.unit, "array", fresh); v != nil {
			return fmt.Sprintf("for (u32 *q = @v%d@; q != @v%d@ + 8; q++) r = mix(r, *q);", v.id, v.id)
		}
	case 17:
		return fmt.Sprintf("{ u32 t[4] = {%s, %s, %s, %s}; qsort(t, 4, sizeof t[0], ascending); r = mix(r, t[%s & 0x3]); }", p.literal(), e(), p.literal(), e(), e())
	case 18:
		return fmt.Sprintf("{ struct pair t = {%s, %s}; t.x += r; r = mix(t.x, t.y); }", p.literal(), p.literal())
	case 19:
		if p.cxx {
			return fmt.Sprintf("try { if ((%s & 0x3) == %d) throw Odd{r}; r += %s; } catch (const Odd &odd) { r = mix(odd.n, %s); }", e(), p.IntN(4), p.literal(), p.literal())
		}
		return fmt.Sprintf("errno = (int)(%s & 0x3f); r = mix(r, (u32)errno);", e())
	}
	return fmt.Sprintf("r = mix(r, %s);", e())
}

func (p *randomProgram) write(f *randomFunc, v *randomVar, e, e2 string, fresh bool) string {
	if v.still && !fresh {
		return fmt.Sprintf("r = mix(r, @v%d@);", v.id)
	}
	switch v.sort {
	case "array":
		return fmt.Sprintf("@v%d@[%s & 0x7] %s %s;", v.id, e, pick(p, "=", "+=", "^="), e2)
	case "pair":
		return fmt.Sprintf("@v%d@.%s %s %s;", v.id, pick(p, "x", "y"), pick(p, "=", "+="), e)
	case "double":
		return fmt.Sprintf("@v%d@ = @v%d@ * 0.5 + %d.25 + (double)(%s & 0xff);", v.id, v.id, p.IntN(9), e)
	case "pointer":
		if array := p.varOf(f.unit, "array", fresh); array != nil && p.IntN(2) == 0 {
			return fmt.Sprintf("@v%d@ = &@v%d@[%s & 0x7];", v.id, array.id, e)
		}
		return fmt.Sprintf("*@v%d@ += %s;", v.id, e)
	case "function":
		if g := p.pointee(f.unit); g != nil {
			return fmt.Sprintf("if (%s & 1u) @v%d@ = @f%d@;", e, v.id, g.id)
		}
		return "r += 4u;"
	}
	return fmt.Sprintf("@v%d@ %s %s;", v.id, pick(p, "=", "+=", "^="), e)
}

// call gives a statement with a call, or "".
func (p *randomProgram) call(f *randomFunc, fresh bool) string {
	var list []*randomFunc
	for _, g := range p.funcs {
		near := g.unit == f.unit || g.unit < 0 || !g.static() && f.unit >= 0
		if g.id < f.below && near && !g.entry && (g.in[before] || fresh) && g.in[after] && g.cost+f.cost < 400 {
			list = append(list, g)
		}
	}
	if p.IntN(5) == 0 {
		if v := p.varOf(f.unit, "function", fresh); v != nil && f.cost < 200 && f.entry { // what pointers lead to must not call by one
			f.cost += 200
			return fmt.Sprintf("r = mix(r, @v%d@(%s));", v.id, p.expr(f, 1, fresh))
		}
	}
	if len(list) == 0 {
		return ""
	}
	return p.callOf(f, pick(p, list...), fresh)
}

func (p *randomProgram) callOf(f, g *randomFunc, fresh bool) string {
	f.cost += g.cost
	var args []string
	for range g.params {
		args = append(args, p.expr(f, 1, fresh))
	}
	list := strings.Join(args, ", ")
	switch g.sort {
	case "u64":
		return fmt.Sprintf("r = mix(r, (u32)(@f%d@(%s@x%d@) >> 0x7));", g.id, list, g.id)
	case "double":
		return fmt.Sprintf("r = mix(r, (u32)@f%d@(%s@x%d@));", g.id, list, g.id)
	case "pair":
		return fmt.Sprintf("{ struct pair t = @f%d@(%s@x%d@); r = mix(t.x, t.y); }", g.id, list, g.id)
	case "out":
		return fmt.Sprintf("{ u32 t = r; @f%d@(&t, %s@x%d@); r = mix(r, t); }", g.id, list, g.id)
	case "varargs":
		n := p.IntN(3)
		for range n {
			list += ", " + p.literal()
		}
		return fmt.Sprintf("r = mix(r, @f%d@(%d, %s));", g.id, n, list)
	}
	return fmt.Sprintf("r = mix(r, @f%d@(%s@x%d@));", g.id, list, g.id)
}
