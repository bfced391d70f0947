package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"hotpatch/internal/testtarget"
)

// soakServers are real servers under the load of their usual clients, patched and
// reverted all the time.
func soakServers() []soakClass {
	server := func(name string, start func(*testing.T) (*served, []int), after func(*testing.T, *served)) soakClass {
		return soakClass{name: name, long: 1000, short: 4, run: func(t *testing.T, b budget) figures {
			return soakServer(t, b, start, after)
		}}
	}
	one := func(start func(*testing.T) *served) func(*testing.T) (*served, []int) {
		return func(t *testing.T) (*served, []int) {
			s := start(t)
			return s, []int{s.d.PID()}
		}
	}
	return []soakClass{
		server("redis: one thread, event loop", one(redis), noErrorsOfRedis),
		server("mariadbd: C++, many threads", one(mariadb), nil),
		server("nginx: processes, event loops", func(t *testing.T) (*served, []int) {
			s := nginx(t)
			return s, childrenOf(s.d.PID())
		}, nil),
		server("postgres: a process for each client", func(t *testing.T) (*served, []int) {
			s, _, _ := postgres(t)
			watchesReady(s.watches...)
			backends := childrenOf(s.d.PID())
			s.load.rounds(t, 1) // whose backends come and go
			now := childrenOf(s.d.PID())
			pids := []int{s.d.PID()}
			for _, pid := range backends {
				line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				if err == nil && strings.Contains(string(line), "[local]") && slices.Contains(now, pid) {
					pids = append(pids, pid)
				}
			}
			if len(pids) < 1+len(s.watches) {
				t.Fatalf("of the backends of %d clients, %v are there", len(s.watches), pids)
			}
			return s, pids
		}, nil),
	}
}

// soakServer compares times in which a server is patched and reverted all the time with
// times in which it is not, in turns. Every answer is looked at in both.
func soakServer(t *testing.T, b budget, start func(*testing.T) (*served, []int), after func(*testing.T, *served)) (f figures) {
	s, pids := start(t)
	watchesReady(s.watches...)
	s.load.rounds(t, 1)
	expect(either, s.watches...)
	last := pids[len(pids)-1]
	apply(t, last, s.patch)
	calls := patchVariable(t, last, s.patch, s.name, "calls")
	s.load.rounds(t, 1)
	watchesReady(s.watches...)
	if calls() == 0 {
		t.Errorf("the new function of %s is never called", s.name)
	}
	revert(t, last, s.name)
	turns := 10
	if !b.long {
		turns = 4 // the short soak: TestRedis and its like do the rest
	}
	window := 500 * time.Millisecond
	for turn := 0; turn < turns || b.more(f.trials); turn++ {
		arm(0, s.watches...)
		time.Sleep(window)
		arm(1, s.watches...)
		began := time.Now()
		for range max(b.least/turns, 1) {
			pid := pids[f.trials%len(pids)]
			f.trials++
			f.does(t, "apply", "--pid", strconv.Itoa(pid), "--timeout", "1m", s.patch)
			f.does(t, "revert", "--pid", strconv.Itoa(pid), "--timeout", "1m", s.name)
			f.survived++
		}
		window = time.Since(began)
	}
	arm(0, s.watches...)
	expect(onlyOld, s.watches...)
	watchesReady(s.watches...)
	s.load.rounds(t, 1)
	s.d.unharmed(t)
	for _, pid := range pids {
		testtarget.CheckHealthy(t, pid)
	}
	if after != nil {
		after(t, s)
	}
	s.load.stop(t)
	stopWatches(s.watches...)
	var took [2][]time.Duration
	for _, w := range s.watches {
		f.counted += int(w.asked.Load())
		for arm := range took {
			took[arm] = append(took[arm], w.took[arm]...)
		}
	}
	quiet, patched := percentile(took[0], 0.999), percentile(took[1], 0.999)
	f.note = fmt.Sprintf("answers of a client that looks at each, besides %d runs of the load without an error; 99.9 %% within %.1f ms without, %.1f ms while patching (× %.2f)",
		s.load.finished.Load(), quiet.Seconds()*1000, patched.Seconds()*1000, float64(patched)/float64(quiet))
	return f
}

// arm says to which side of a comparison the next answers belong.
func arm(arm int32, watches ...*watched) {
	for _, w := range watches {
		w.arm.Store(arm)
	}
}

func percentile(list []time.Duration, p float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[min(int(p*float64(len(list))), len(list)-1)]
}

// nginx starts a master with two workers, with a patch of the function that prints the
// length of each answer.
func nginx(t *testing.T) *served {
	t.Helper()
	for _, tool := range []string{"nginx", "wrk"} {
		testtarget.Need(t, tool)
	}
	patch := patchOf(t, "nginx.c", `#include "hotpatch.h"
#include <stdarg.h>
HOTPATCH_NAME("nginx-sprintf", 1)
unsigned long calls;
unsigned char *ngx_vslprintf(unsigned char *buf, unsigned char *last, const char *fmt, va_list args);
unsigned char *ngx_sprintf(unsigned char *buf, const char *fmt, ...);
unsigned char *ngx_sprintf(unsigned char *buf, const char *fmt, ...) {
	va_list args;
	__atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
	va_start(args, fmt);
	unsigned char *p = ngx_vslprintf(buf, (unsigned char *)-1, fmt, args);
	va_end(args);
	return p;
}
`)
	port, dir := freePort(t), publicDir(t)
	config := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off;
worker_processes 2;
pid %[1]s/pid;
error_log stderr notice;
events { worker_connections 256; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	keepalive_requests 1000000000;
	server {
		listen 127.0.0.1:%[2]s;
		location / { return 200 "the answer\n"; }
	}
}
`, dir, port)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	d := startDaemon(t, daemonSpec{
		path: lookPath(t, "nginx"), dir: dir, ready: "start worker process [0-9]+$", stop: syscall.SIGTERM,
		args: []string{"-p", dir, "-e", "stderr", "-c", config},
	})
	for deadline := time.Now().Add(testtarget.Timeout); len(childrenOf(d.PID())) < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nginx has no two workers")
		}
	}
	d.port = port
	var watches []*watched
	for range 2 {
		watches = append(watches, watch(t, &httpClient{Conn: dial(t, port)}, "GET", "the answer", "the answer"))
	}
	load := startLoad(t, func(out string) bool {
		return strings.Contains(out, "Requests/sec") && !strings.Contains(out, "Socket errors") && !strings.Contains(out, "Non-2xx")
	}, "wrk", "-t1", "-c16", "-d2s", "http://127.0.0.1:"+port+"/")
	return &served{d, patch, "nginx-sprintf", []string{"ngx_sprintf"}, load, watches}
}

// httpClient makes a request of each line that is written to it, and gives the
// bodies of the answers to read.
type httpClient struct {
	net.Conn
	answers *bufio.Reader
	body    []byte
}

func (c *httpClient) Write(line []byte) (int, error) {
	_, err := io.WriteString(c.Conn, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	return len(line), err
}

func (c *httpClient) Read(b []byte) (int, error) {
	if c.answers == nil {
		c.answers = bufio.NewReader(c.Conn)
	}
	if len(c.body) == 0 {
		answer, err := http.ReadResponse(c.answers, nil)
		if err != nil {
			return 0, err
		}
		defer answer.Body.Close()
		if c.body, err = io.ReadAll(answer.Body); err != nil {
			return 0, err
		}
		if answer.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("status %s", answer.Status)
		}
	}
	n := copy(b, c.body)
	c.body = c.body[n:]
	return n, nil
}
