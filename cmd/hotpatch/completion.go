package main

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"hotpatch/internal/engine"
)

var shells = []string{"bash", "zsh", "fish"}

func newCompletion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "print a script that completes commands in a shell",
		Long: `Print a script that makes a shell (bash, zsh or fish) complete the commands, flags
and patch names of hotpatch.`,
		Example: `  source <(hotpatch completion bash)
  hotpatch completion zsh >"${fpath[1]}/_hotpatch"
  hotpatch completion fish >~/.config/fish/completions/hotpatch.fish`,
		Annotations: exits(0, 1, 2),
		ValidArgs:   shells,
		Args:        oneArg("shell"),
		RunE: a.start(func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(a.stdout)
			case "fish":
				return cmd.Root().GenFishCompletion(a.stdout, true)
			}
			return usage("no completion for the shell %q: there are bash, zsh and fish", args[0])
		}),
	}
}

// completeLibraries completes names of shared objects.
func completeLibraries(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return []string{"so"}, cobra.ShellCompDirectiveFilterFileExt
}

// completeFlag completes a flag with fixed values.
func completeFlag(cmd *cobra.Command, flag string, values ...string) {
	must(cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)))
}

// completePID completes --pid; with the processes that have patches, if those
// are the ones that the command is about.
func completePID(cmd *cobra.Command, patched bool) {
	must(cmd.RegisterFlagCompletionFunc("pid", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var pids []string
		if patched {
			h, err := engine.ListAll(false)
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			for _, s := range h.Processes {
				pids = append(pids, strconv.Itoa(s.PID)+"\t"+harmless(s.Program))
			}
		}
		return pids, cobra.ShellCompDirectiveNoFileComp
	}))
}

// patchesOf gives the names of a process's patches that are in force and not in
// used.
func patchesOf(pid int, used []string) []string {
	if pid == 0 {
		return nil
	}
	s, err := engine.List(pid)
	if err != nil {
		return nil
	}
	var names []string
	for _, k := range s.Patches {
		if k.State == "inert" || slices.Contains(used, k.Name) || slices.Contains(names, k.Name) {
			continue
		}
		names = append(names, harmless(k.Name))
	}
	return names
}

// must is for what can fail only by a mistake in this package.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("hotpatch: %v", err))
	}
}
