package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hotpatch/internal/testtarget"
)

// TestCodesAreDocumented: the codes of errors are part of the command line's
// contract, so docs/limits.md has every one that the sources can give, and no other.
func TestCodesAreDocumented(t *testing.T) {
	t.Parallel()
	codes := faultCodes(t, testtarget.Root(t))
	// These three are made in three different ways. If they are not found, the
	// search has gone blind.
	for _, code := range []string{"no-symbol", "short-function", "memory-read"} {
		if codes[code] == "" {
			t.Errorf("the code %q was not found in the sources", code)
		}
	}
	limits, err := os.ReadFile(filepath.Join(testtarget.Root(t), "docs/limits.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, code := range slices.Sorted(maps.Keys(codes)) {
		if !strings.Contains(string(limits), "`"+code+"`") {
			t.Errorf("docs/limits.md does not list `%s` (%s)", code, codes[code])
		}
	}
	documented := documentedCodes(string(limits))
	if len(documented) < len(codes) {
		t.Errorf("the tables of docs/limits.md have %d codes, and the sources %d", len(documented), len(codes))
	}
	for _, code := range documented {
		if codes[code] == "" {
			t.Errorf("docs/limits.md lists `%s`, which the sources cannot give", code)
		}
	}
}

// documentedCodes gives what the first columns of the tables of codes list.
func documentedCodes(text string) []string {
	var codes []string
	table := false
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "|") {
			table = false
			continue
		}
		if strings.HasPrefix(line, "| code |") {
			table = true
		}
		cell, _, _ := strings.Cut(line[1:], "|")
		for i, part := range strings.Split(cell, "`") {
			if table && i%2 == 1 {
				codes = append(codes, part)
			}
		}
	}
	return codes
}

// faultCodes gives every code of a fault.Error in the sources, with a place
// where it stands.
func faultCodes(t *testing.T, root string) map[string]string {
	t.Helper()
	codes := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if name := d.Name(); path != root && (name == "testdata" || name == "testtarget" || name[0] == '.' || name[0] == '_') {
			return filepath.SkipDir
		}
		p := &codePackage{t: t, fset: token.NewFileSet(), codes: codes, root: root}
		files, err := filepath.Glob(filepath.Join(path, "*.go"))
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(p.fset, file, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			p.files = append(p.files, f)
		}
		p.collect()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return codes
}

// codePackage is the sources of one package, and the codes found so far.
type codePackage struct {
	t     *testing.T
	root  string
	fset  *token.FileSet
	files []*ast.File
	codes map[string]string
}

// collect finds what is ever put into the field Code of a fault.Error: in
// literals of that type, and by assignments to a field of that name.
func (p *codePackage) collect() {
	for _, f := range p.files {
		p.functions(f, func(name string, params *ast.FieldList, body ast.Node) {
			ast.Inspect(body, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CompositeLit:
					if !isFaultError(n.Type) {
						return true
					}
					for _, e := range n.Elts {
						if kv, ok := e.(*ast.KeyValueExpr); ok && isIdent(kv.Key, "Code") {
							p.add(kv.Value, name, params, body)
						}
					}
				case *ast.AssignStmt:
					for i, l := range n.Lhs {
						if s, ok := l.(*ast.SelectorExpr); ok && s.Sel.Name == "Code" && len(n.Lhs) == len(n.Rhs) {
							p.add(n.Rhs[i], name, params, body)
						}
					}
				}
				return true
			})
		})
	}
}

// functions visits the functions of a file, and the function literals that have
// a name, with the outer ones first.
func (p *codePackage) functions(f *ast.File, visit func(name string, params *ast.FieldList, body ast.Node)) {
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Body != nil {
				visit(n.Name.Name, n.Type.Params, n.Body)
			}
		case *ast.AssignStmt:
			for i, r := range n.Rhs {
				lit, ok := r.(*ast.FuncLit)
				if name, isName := n.Lhs[min(i, len(n.Lhs)-1)].(*ast.Ident); ok && isName {
					visit(name.Name, lit.Type.Params, lit.Body)
				}
			}
		}
		return true
	})
}

// add notes every value that an expression in a function can have.
func (p *codePackage) add(e ast.Expr, function string, params *ast.FieldList, body ast.Node) {
	values, ok := p.values(e, function, params, body)
	for _, v := range values {
		if _, known := p.codes[v]; !known {
			pos := p.fset.Position(e.Pos())
			file, _ := filepath.Rel(p.root, pos.Filename)
			p.codes[v] = file + ":" + strconv.Itoa(pos.Line)
		}
	}
	if !ok && !p.isOuter(e, function, params) {
		p.t.Errorf("%s: which codes this can be is not to be seen", p.fset.Position(e.Pos()))
	}
}

// isOuter reports whether an expression is a variable of a function literal
// inside, which is visited by itself.
func (p *codePackage) isOuter(e ast.Expr, function string, params *ast.FieldList) bool {
	id, ok := e.(*ast.Ident)
	if !ok {
		return false
	}
	inner := false
	for _, f := range p.files {
		p.functions(f, func(name string, ps *ast.FieldList, _ ast.Node) {
			inner = inner || name != function && ps != params && paramIndex(ps, id.Name) >= 0
		})
	}
	return inner
}

// values gives the strings that an expression can be: a literal, a sum, a
// variable that is assigned them, or a parameter that callers give them to.
func (p *codePackage) values(e ast.Expr, function string, params *ast.FieldList, body ast.Node) (values []string, ok bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		v, err := strconv.Unquote(e.Value)
		return []string{v}, err == nil
	case *ast.BinaryExpr:
		left, okLeft := p.values(e.X, function, params, body)
		right, okRight := p.values(e.Y, function, params, body)
		for _, l := range left {
			for _, r := range right {
				values = append(values, l+r)
			}
		}
		return values, okLeft && okRight && e.Op == token.ADD
	case *ast.Ident:
		if i := paramIndex(params, e.Name); i >= 0 {
			return p.arguments(function, params, i)
		}
		return assigned(body, e.Name)
	case *ast.SelectorExpr:
		// The code of another error, handed on.
		return nil, strings.HasSuffix(e.Sel.Name, "Code")
	}
	return nil, false
}

// arguments gives the values that the package's calls of a function have for a
// parameter. Methods of one name are told apart by the number of parameters.
func (p *codePackage) arguments(function string, of *ast.FieldList, index int) (values []string, ok bool) {
	ok = true
	for _, f := range p.files {
		p.functions(f, func(name string, params *ast.FieldList, body ast.Node) {
			ast.Inspect(body, func(n ast.Node) bool {
				call, isCall := n.(*ast.CallExpr)
				if !isCall || calledName(call.Fun) != function || index >= len(call.Args) || len(call.Args) != of.NumFields() && !isVariadic(of) {
					return true
				}
				v, known := p.values(call.Args[index], name, params, body)
				values, ok = append(values, v...), ok && known
				return true
			})
		})
	}
	return values, ok && len(values) > 0
}

// assigned gives the literals that a variable is assigned in a function.
func assigned(body ast.Node, variable string) (values []string, ok bool) {
	ast.Inspect(body, func(n ast.Node) bool {
		a, isAssign := n.(*ast.AssignStmt)
		if !isAssign || len(a.Lhs) != len(a.Rhs) {
			return true
		}
		for i, l := range a.Lhs {
			if lit, isLit := a.Rhs[i].(*ast.BasicLit); isIdent(l, variable) && isLit {
				if v, err := strconv.Unquote(lit.Value); err == nil {
					values = append(values, v)
				}
			}
		}
		return true
	})
	return values, len(values) > 0
}

func paramIndex(params *ast.FieldList, name string) int {
	i := 0
	for _, field := range params.List {
		for _, n := range field.Names {
			if n.Name == name {
				return i
			}
			i++
		}
	}
	return -1
}

func isVariadic(params *ast.FieldList) bool {
	_, ok := params.List[len(params.List)-1].Type.(*ast.Ellipsis)
	return ok
}

func calledName(fun ast.Expr) string {
	switch fun := fun.(type) {
	case *ast.Ident:
		return fun.Name
	case *ast.SelectorExpr:
		return fun.Sel.Name
	}
	return ""
}

func isFaultError(e ast.Expr) bool {
	s, ok := e.(*ast.SelectorExpr)
	return ok && s.Sel.Name == "Error" && isIdent(s.X, "fault")
}

func isIdent(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}
