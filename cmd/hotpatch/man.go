package main

// Man pages are made by the binary itself, from what --help prints: about a
// hundred lines, where cobra's generator would bring three Markdown packages
// with it. Whoever packages hotpatch needs nothing but the binary.

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"hotpatch/internal/fault"
)

func newMan(a *app) *cobra.Command {
	return &cobra.Command{
		Use:         "man DIR",
		Short:       "write the man pages into a directory",
		Long:        "Write the man pages of hotpatch and of all its commands into a directory, which\nmust exist: hotpatch.1, hotpatch-apply.1 and so on.",
		Example:     "  hotpatch man /usr/local/share/man/man1",
		Annotations: exits(0, 1, 2),
		Hidden:      true,
		Args:        oneArg("directory"),
		RunE: a.start(func(cmd *cobra.Command, args []string) error {
			return writeManPages(cmd.Root(), args[0])
		}),
	}
}

// writeManPages writes the page of a command and those of the commands below it.
func writeManPages(cmd *cobra.Command, dir string) error {
	path := filepath.Join(dir, manName(cmd)+".1")
	if err := os.WriteFile(path, []byte(manPage(cmd)), 0o644); err != nil {
		return &fault.Error{Kind: fault.Failed, Code: "man-page", What: "cannot write the man page", Err: err}
	}
	for _, c := range commandsOf(cmd) {
		if err := writeManPages(c, dir); err != nil {
			return err
		}
	}
	return nil
}

func manName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// manPage gives the man page of a command, in the language of man(7).
func manPage(cmd *cobra.Command) string {
	cmd.InitDefaultHelpFlag()
	var b strings.Builder
	request := func(words ...string) { b.WriteString(strings.Join(words, " ") + "\n") }
	text := func(s string) { b.WriteString(roff(s) + "\n") }

	name := manName(cmd)
	request(".TH", strings.ToUpper(roff(name)), "1", `""`, `"hotpatch `+roff(build().short())+`"`, `"User Commands"`)
	request(".SH NAME")
	request(roff(name), `\-`, roff(cmd.Short))
	request(".SH SYNOPSIS")
	request(".nf")
	text(synopsis(cmd))
	request(".fi")
	request(".SH DESCRIPTION")
	for i, paragraph := range strings.Split(cmd.Long, "\n\n") {
		if i > 0 {
			request(".PP")
		}
		text(paragraph)
	}
	if list := commandsOf(cmd); len(list) > 0 {
		request(".SH COMMANDS")
		for _, c := range list {
			request(".TP")
			request(".BR", roff(manName(c)), "(1)")
			text(c.Short)
		}
	}
	request(".SH OPTIONS")
	for _, f := range flagsOf(cmd) {
		form, meaning := flagText(f)
		request(".TP")
		request(".B", roff(form))
		text(meaning)
	}
	request(".SH EXIT STATUS")
	status, meaning := exitStatuses(cmd)
	for i := range status {
		request(".TP")
		request(".B", status[i])
		text(meaning[i])
	}
	request(".SH EXAMPLES")
	request(".nf")
	text(cmd.Example)
	request(".fi")
	request(".SH SEE ALSO")
	related := cmd.Commands()
	if cmd.HasParent() {
		related = []*cobra.Command{cmd.Parent()}
	}
	var see []string
	for _, c := range related {
		if !c.Hidden {
			see = append(see, `\fB`+roff(manName(c))+`\fR(1)`)
		}
	}
	request(strings.Join(see, ",\n"))
	return b.String()
}

// roff escapes text for man(7): backslashes, dashes, and the dots and quotes at
// the beginning of a line that would make it a request.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, `"`, `\(dq`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
