// Command hotpatch replaces functions in a running C or C++ process.
//
// This package turns flags into one call of internal/engine, and what comes back
// into text or JSON. It decides nothing about processes.
//
//	main.go        the root command, and the one place that gives the exit status
//	ui.go          the rules of output; lines, tables, foreign text made harmless
//	problem.go     errors as text and as JSON
//	help.go        help texts, and the meaning of every exit status
//	man.go         man pages, from the same material
//	signals.go     what interrupts a change to a process, and what must not
//	one file a command
package main
