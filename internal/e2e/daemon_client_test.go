package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// loading is a client that runs again and again, until it is stopped.
type loading struct {
	cancel   context.CancelFunc
	begun    atomic.Int64
	finished atomic.Int64
	done     chan struct{}
	failure  string // valid once done
}

// startLoad begins a load. Every run of the command must exit with 0 and print
// what is good.
func startLoad(t *testing.T, good func(output string) bool, command string, args ...string) *loading {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &loading{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for ctx.Err() == nil {
			l.begun.Add(1)
			out, err := exec.Command(command, args...).CombinedOutput()
			if err != nil || !good(string(out)) {
				l.failure = fmt.Sprintf("%s %s: %v\n%s", command, strings.Join(args, " "), err, out)
				return
			}
			l.finished.Add(1)
		}
	}()
	t.Cleanup(func() { l.cancel(); <-l.done })
	return l
}

// rounds waits until so many runs have begun after now, and ended.
func (l *loading) rounds(t *testing.T, n int64) {
	t.Helper()
	want := l.begun.Load() + n
	deadline := time.After(2 * time.Minute)
	for l.finished.Load() < want {
		select {
		case <-l.done:
			t.Fatalf("the load has failed: %s", l.failure)
		case <-deadline:
			t.Fatalf("the load has done %d rounds, and not %d", l.finished.Load(), want)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// stop ends the load after the run that is going on.
func (l *loading) stop(t *testing.T) {
	t.Helper()
	l.cancel()
	<-l.done
	if l.failure != "" {
		t.Fatalf("the load has failed: %s", l.failure)
	}
}

// What a watched client may see.
const (
	onlyOld int32 = 1
	onlyNew int32 = 2
	either        = onlyOld | onlyNew
)

// watched is a client of a daemon that asks one question all the time and looks
// at every answer.
type watched struct {
	t        *testing.T
	client   io.Closer
	question string
	allowed  atomic.Int32
	asked    atomic.Int64
	arm      atomic.Int32       // of a comparison: which of took gets the times
	took     [2][]time.Duration // for an answer; valid once done
	quit     chan struct{}
	once     sync.Once
	done     chan struct{}
	failure  string // valid once done
}

// watch begins to ask, and accepts only the old answer until expect says
// otherwise.
func watch(t *testing.T, client io.ReadWriteCloser, question, before, after string) *watched {
	t.Helper()
	w := &watched{t: t, client: client, question: question, quit: make(chan struct{}), done: make(chan struct{})}
	w.allowed.Store(onlyOld)
	go func() {
		defer close(w.done)
		answers := bufio.NewReader(client)
		for {
			select {
			case <-w.quit:
				return
			default:
			}
			allowed, arm, began := w.allowed.Load(), w.arm.Load(), time.Now()
			if _, err := io.WriteString(client, question+"\n"); err != nil {
				w.failure = err.Error()
				return
			}
			line, err := answers.ReadString('\n')
			w.took[arm] = append(w.took[arm], time.Since(began))
			var got int32
			if line = strings.TrimSpace(line); line == before {
				got |= onlyOld
			}
			if line == after {
				got |= onlyNew
			}
			// The change may come between the question and its answer.
			if allowed |= w.allowed.Load(); err != nil || got&allowed == 0 {
				w.failure = fmt.Sprintf("answer %q (%v) after %d good ones", line, err, w.asked.Load())
				return
			}
			w.asked.Add(1)
		}
	}()
	t.Cleanup(w.end)
	return w
}

// end stops asking, after the answer that is awaited.
func (w *watched) end() {
	w.once.Do(func() { close(w.quit) })
	select {
	case <-w.done:
	case <-time.After(testtarget.Timeout):
	}
	_ = w.client.Close() // ends the wait for an answer; again is fine
	<-w.done
}

// expect says what the clients may see from now on.
func expect(allowed int32, watches ...*watched) {
	for _, w := range watches {
		w.allowed.Store(allowed)
	}
}

// watchesReady waits until every client has had good answers to questions that
// it asked after now.
func watchesReady(watches ...*watched) {
	for _, w := range watches {
		w.t.Helper()
		want := w.asked.Load() + 20
		deadline := time.After(2 * testtarget.Timeout)
		for w.asked.Load() < want {
			select {
			case <-w.done:
				w.t.Fatalf("%q: %s", w.question, w.failure)
			case <-deadline:
				w.t.Fatalf("%q: no answer", w.question)
			case <-time.After(time.Millisecond):
			}
		}
	}
}

// stopWatches ends the clients, which must have seen nothing else than expected.
func stopWatches(watches ...*watched) {
	for _, w := range watches {
		w.t.Helper()
		w.end()
		if w.failure != "" {
			w.t.Errorf("%q: %s", w.question, w.failure)
		}
	}
}

// clientProgram answers each line with a line.
type clientProgram struct {
	io.Reader
	io.Writer
	kill func() error
}

func (c clientProgram) Close() error { return c.kill() }

// startClient starts a client program, which is killed when the test ends.
func startClient(t *testing.T, command string, args ...string) io.ReadWriteCloser {
	t.Helper()
	cmd := exec.Command(command, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints strings.Builder
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		if t.Failed() && complaints.Len() > 0 {
			t.Logf("%s: %s", command, complaints.String())
		}
	})
	return clientProgram{out, in, cmd.Process.Kill}
}

// run runs a program that must succeed, and gives its output.
func run(t *testing.T, command string, args ...string) string {
	t.Helper()
	out, err := exec.Command(command, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", command, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func lookPath(t *testing.T, command string) string {
	t.Helper()
	path, err := exec.LookPath(command)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// own gives a directory to a user.
func own(t *testing.T, dir string, user *syscall.Credential) {
	t.Helper()
	if err := os.Chown(dir, int(user.Uid), int(user.Gid)); err != nil {
		t.Fatal(err)
	}
}

// freePort gives a TCP port of the loopback interface that nobody has.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func dial(t *testing.T, port string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	return c // closed by watch
}
