package main

import (
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// exitMeanings says what every exit status means, the same for all commands.
var exitMeanings = map[int]string{
	0: "done, or already so",
	1: "failed; the process is as it was",
	2: "wrong usage",
	3: "not now: threads stayed in the code until the timeout; try again",
	4: "does not fit: a symbol is missing or ambiguous, a function too short, the build or the version another one, the file no patch",
	5: "no access: no such process, no permission, traced by another, not a 64-bit dynamic x86-64 process",
	6: "memory is not what was recorded",
}

const exitAnnotation = "hotpatch-exit"

// exits gives the annotations of a command that can end with these statuses.
func exits(status ...int) map[string]string {
	var list []string
	for _, s := range status {
		list = append(list, strconv.Itoa(s))
	}
	return map[string]string{exitAnnotation: strings.Join(list, " ")}
}

// exitStatuses gives the exit statuses of a command with their meanings.
func exitStatuses(cmd *cobra.Command) (status []string, meaning []string) {
	for _, s := range strings.Fields(cmd.Annotations[exitAnnotation]) {
		n, _ := strconv.Atoi(s) // exits has written it
		status = append(status, s)
		meaning = append(meaning, exitMeanings[n])
	}
	return status, meaning
}

// argument names the argument of a flag in the help.
func argument(cmd *cobra.Command, flag, name string) {
	if f := cmd.Flags().Lookup(flag); f != nil {
		f.Usage = "`" + name + "`" + f.Usage
	}
}

// flagText gives how a flag is written and what it does.
func flagText(f *pflag.Flag) (form, text string) {
	name, text := pflag.UnquoteUsage(f)
	if f.Shorthand != "" {
		form = "-" + f.Shorthand + ", "
	}
	form += "--" + f.Name
	if f.Value.Type() != "bool" && name != "" {
		form += " " + name
	}
	text = strings.TrimPrefix(text, name)
	if d := f.DefValue; f.Value.Type() != "bool" && d != "" && d != "[]" {
		text += " (default " + d + ")"
	}
	return form, text
}

// flagsOf gives the flags of a command that are shown.
func flagsOf(cmd *cobra.Command) []*pflag.Flag {
	var list []*pflag.Flag
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			list = append(list, f)
		}
	})
	return list
}

// commandsOf gives the commands below a command that are shown.
func commandsOf(cmd *cobra.Command) []*cobra.Command {
	return slices.DeleteFunc(slices.Clone(cmd.Commands()), func(c *cobra.Command) bool { return c.Hidden })
}

// synopsis gives how a command is called.
func synopsis(cmd *cobra.Command) string {
	if cmd.HasParent() {
		return cmd.Parent().CommandPath() + " " + cmd.Use
	}
	return cmd.Use
}

// help prints the help of a command.
func (a *app) help(cmd *cobra.Command) {
	p := &page{color: wantsColor(a.stdout)}
	p.WriteString(cmd.Long + "\n")
	p.gap()
	p.title("Usage:")
	p.line("  %s", synopsis(cmd))
	if list := commandsOf(cmd); len(list) > 0 {
		p.gap()
		p.title("Commands:")
		for _, c := range list {
			p.line("  %-12s%s", c.Name(), c.Short)
		}
	}
	p.gap()
	p.title("Flags:")
	const column = 26
	for _, f := range flagsOf(cmd) {
		form, text := flagText(f)
		if f.Shorthand == "" {
			form = "    " + form
		}
		for i, line := range strings.Split(text, "\n") {
			switch {
			case i > 0:
				form = ""
			case len(form) > column-4:
				p.line("  %s", form)
				form = ""
			}
			p.line("  %-*s%s", column-2, form, line)
		}
	}
	p.gap()
	p.title("Examples:")
	p.WriteString(cmd.Example + "\n")
	p.gap()
	p.title("Exit status:")
	status, meaning := exitStatuses(cmd)
	for i := range status {
		for k, line := range wrap(meaning[i], 72) {
			head := ""
			if k == 0 {
				head = status[i]
			}
			p.line("  %-3s%s", head, line)
		}
	}
	_, _ = a.stdout.Write(p.Bytes()) // help is not worth an error
}

// wrap breaks text into lines of at most width characters.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

func newHelp(a *app) *cobra.Command {
	return &cobra.Command{
		Use:         "help [COMMAND]",
		Short:       "show the help of a command",
		Long:        "Show the help of a command, as its flag --help does.",
		Example:     `  hotpatch help apply`,
		Annotations: exits(0, 2),
		RunE: a.start(func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return usage("there is no command %q", strings.Join(args, " "))
			}
			about.InitDefaultHelpFlag()
			a.help(about)
			return nil
		}),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var names []string
			for _, c := range commandsOf(cmd.Root()) {
				if len(args) == 0 {
					names = append(names, c.Name()+"\t"+c.Short)
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
}
