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
// away sends it more than once. After stop they end hotpatch as usual.
//
// A signal that was ignored when hotpatch was started (nohup(1)) stays ignored.
// Job control must not stop hotpatch, as it might while the process is stopped.
func (a *app) interruptible(parent context.Context) (ctx context.Context, stop func()) {
	ctx, ready, stop := a.interruptibleSoon(parent)
	ready()
	return ctx, stop
}

// interruptibleSoon is interruptible for those who have something to do until it is so,
// as it is when ready returns: the Go runtime needs a millisecond for it, most of which
// is waiting.
func (a *app) interruptibleSoon(parent context.Context) (ctx context.Context, ready, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	begun, over := make(chan struct{}), make(chan struct{})
	go func() {
		watch := []os.Signal{}
		for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
			if !signal.Ignored(s) {
				watch = append(watch, s)
			}
		}
		caught := make(chan os.Signal, 1)
		if len(watch) > 0 { // Notify without signals would catch all
			signal.Notify(caught, watch...)
		}
		// Last, so that whoever sees it knows that the other signals are caught.
		signal.Ignore(unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
		close(begun)

		select {
		case s := <-caught:
			for _, w := range watch {
				if w != unix.SIGHUP {
					signal.Reset(w)
				}
			}
			a.tell("%s: taking back what is not finished; once more ends hotpatch at once", unix.SignalName(s.(unix.Signal)))
			cancel()
		case <-over:
			// Catching no more takes longer than to do as if none had been caught.
			s := (<-caught).(unix.Signal)
			signal.Reset(s)
			_ = unix.Kill(unix.Getpid(), s)
		}
	}()
	stop = func() {
		cancel()
		close(over)
	}
	return ctx, func() { <-begun }, stop
}

// tell prints a message while a command runs.
func (a *app) tell(format string, args ...any) {
	if a.json {
		return
	}
	// Nobody is left to tell if this cannot be written.
	_, _ = a.stderr.Write([]byte("hotpatch: " + harmless(printf(format, args...)) + "\n"))
}
