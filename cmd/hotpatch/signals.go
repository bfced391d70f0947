package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// ignoreLostReaders keeps the death of whoever reads the output from killing
// hotpatch (Go ends a program that gets SIGPIPE on its standard streams, see
// os/signal): writing fails instead, and the work goes on.
func ignoreLostReaders() { signal.Ignore(unix.SIGPIPE) }

// interruptible gives the context for a change to a process. SIGINT, SIGTERM and
// SIGHUP cancel it: the engine then takes back what is not committed. A second
// SIGINT or SIGTERM ends hotpatch at once, which is as safe as SIGKILL: the next
// hotpatch settles what was begun. SIGHUP does not, since a terminal that goes
// away sends it more than once.
//
// A signal that was ignored when hotpatch was started (nohup(1)) stays ignored.
// Job control must not stop hotpatch, as it might while the process is stopped.
func (a *app) interruptible(parent context.Context) (ctx context.Context, stop func()) {
	// Last, so that whoever sees it knows that the other signals are caught.
	defer signal.Ignore(unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	ctx, cancel := context.WithCancel(parent)
	caught := make(chan os.Signal, 1)
	watch := []os.Signal{}
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		if !signal.Ignored(s) {
			watch = append(watch, s)
		}
	}
	if len(watch) == 0 {
		return ctx, cancel // Notify without signals would catch all
	}
	signal.Notify(caught, watch...)
	go func() {
		select {
		case <-ctx.Done():
			return
		case s := <-caught:
			for _, w := range watch {
				if w != unix.SIGHUP {
					signal.Reset(w)
				}
			}
			a.tell("%s: taking back what is not finished; once more ends hotpatch at once", unix.SignalName(s.(unix.Signal)))
			cancel()
		}
	}()
	return ctx, func() {
		cancel()
		signal.Stop(caught)
	}
}

// tell prints a message while a command runs.
func (a *app) tell(format string, args ...any) {
	if a.json {
		return
	}
	// Nobody is left to tell if this cannot be written.
	_, _ = a.stderr.Write([]byte("hotpatch: " + harmless(printf(format, args...)) + "\n"))
}
