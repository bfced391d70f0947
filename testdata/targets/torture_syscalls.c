// The checks of the torture target that sit in a blocking system call. Each call
// must end as it does without anybody's interference: with its timeout, never
// early and never with EINTR, or with what a second thread or process gives it.
#define _GNU_SOURCE
#include "torture.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TIMEOUT_MS 50
#define FUTEX_WAIT_PRIVATE 128 // linux/futex.h, which musl-gcc does not find

static long milliseconds(void) {
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static struct timespec timeout(void) { return (struct timespec){0, TIMEOUT_MS * 1000000L}; }

static struct timespec deadline(clockid_t clock) {
	struct timespec at;
	clock_gettime(clock, &at);
	at.tv_nsec += TIMEOUT_MS * 1000000L;
	at.tv_sec += at.tv_nsec / 1000000000L;
	at.tv_nsec %= 1000000000L;
	return at;
}

// timed checks how a call with a timeout ended: with this result and, if that is
// -1, this errno, and not early. Some timeouts count ticks of up to 10 ms.
static void timed(struct check *c, long start, long result, long want, int want_errno) {
	int error = errno;
	long took = milliseconds() - start;
	if (result != want || (want == -1 && error != want_errno))
		wrong(c, "result %ld (errno %d: %s) after %ld ms, instead of %ld (errno %d)", result,
		      result == -1 ? error : 0, result == -1 ? strerror(error) : "none", took, want, want_errno);
	else if (took < TIMEOUT_MS - 11)
		wrong(c, "a timeout of %d ms took %ld ms", TIMEOUT_MS, took);
}

static void fed(struct check *c, long result, long want) {
	int error = errno;
	if (result != want)
		wrong(c, "result %ld (errno %d: %s) instead of %ld", result, error, strerror(error), want);
}

// need ends the process where the check itself cannot be set up.
static long need(struct check *c, long result) {
	if (result < 0) {
		wrong(c, "cannot be set up: %s", strerror(errno));
		exit(1);
	}
	return result;
}

// ---- Calls that end with their timeout.

static void round_nanosleep(struct check *c) {
	struct timespec t = timeout();
	long start = milliseconds();
	timed(c, start, nanosleep(&t, NULL), 0, 0);
}
static void round_clock_relative(struct check *c) {
	struct timespec t = timeout();
	long start = milliseconds();
	timed(c, start, clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL), 0, 0);
}
static void round_clock_absolute(struct check *c) {
	struct timespec t = deadline(CLOCK_MONOTONIC);
	long start = milliseconds();
	timed(c, start, clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL), 0, 0);
}
static void round_poll(struct check *c) {
	long start = milliseconds();
	timed(c, start, poll(NULL, 0, TIMEOUT_MS), 0, 0);
}
static void round_ppoll(struct check *c) {
	struct timespec t = timeout();
	long start = milliseconds();
	timed(c, start, ppoll(NULL, 0, &t, NULL), 0, 0);
}
static void round_select(struct check *c) {
	struct timeval t = {0, TIMEOUT_MS * 1000};
	long start = milliseconds();
	timed(c, start, select(0, NULL, NULL, NULL, &t), 0, 0);
}
static void round_pselect(struct check *c) {
	struct timespec t = timeout();
	long start = milliseconds();
	timed(c, start, pselect(0, NULL, NULL, NULL, &t, NULL), 0, 0);
}
static void round_epoll_wait(struct check *c) {
	static int fd;
	struct epoll_event event;
	if (fd == 0)
		fd = need(c, epoll_create1(0));
	long start = milliseconds();
	timed(c, start, epoll_wait(fd, &event, 1, TIMEOUT_MS), 0, 0);
}
static void round_epoll_pwait(struct check *c) {
	static int fd;
	struct epoll_event event;
	if (fd == 0)
		fd = need(c, epoll_create1(0));
	long start = milliseconds();
	timed(c, start, epoll_pwait(fd, &event, 1, TIMEOUT_MS, NULL), 0, 0);
}
static void round_futex(struct check *c) {
	static int word;
	struct timespec t = timeout();
	long start = milliseconds();
	timed(c, start, syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0), -1, ETIMEDOUT);
}
static void round_cond_timedwait(struct check *c) {
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static pthread_cond_t never = PTHREAD_COND_INITIALIZER;
	struct timespec at = deadline(CLOCK_REALTIME);
	long start = milliseconds();
	int result = 0;
	pthread_mutex_lock(&lock);
	while (result == 0) // a condition may wake up for nothing
		result = pthread_cond_timedwait(&never, &lock, &at);
	pthread_mutex_unlock(&lock);
	timed(c, start, result, ETIMEDOUT, 0);
}
static void round_sem_timedwait(struct check *c) {
	static sem_t never;
	struct timespec at = deadline(CLOCK_REALTIME);
	long start = milliseconds();
	timed(c, start, sem_timedwait(&never, &at), -1, ETIMEDOUT);
}
static void round_sigtimedwait(struct check *c) {
	sigset_t set;
	struct timespec t = timeout();
	sigemptyset(&set);
	sigaddset(&set, SIGXCPU); // blocked, and nobody sends it
	long start = milliseconds();
	timed(c, start, sigtimedwait(&set, NULL, &t), -1, EAGAIN);
}
static void round_semtimedop(struct check *c) {
	int id = need(c, semget(IPC_PRIVATE, 1, 0600));
	struct sembuf down = {0, -1, 0};
	struct timespec t = timeout();
	long start = milliseconds();
	long result = semtimedop(id, &down, 1, &t);
	timed(c, start, result, -1, EAGAIN);
	semctl(id, 0, IPC_RMID);
}
static void round_recv_timeout(struct check *c) {
	static int pair[2];
	char byte;
	if (pair[0] == 0) {
		struct timeval t = {0, TIMEOUT_MS * 1000};
		need(c, socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
		need(c, setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
	}
	long start = milliseconds();
	timed(c, start, recv(pair[0], &byte, 1, 0), -1, EAGAIN);
}

// quiet gives a socket on which nothing comes and nothing can be sent, with timeouts.
static int quiet(struct check *c) {
	static __thread int pair[2];
	if (pair[0] == 0) {
		struct timeval t = {0, TIMEOUT_MS * 1000};
		char block[4096] = {0};
		need(c, socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
		need(c, setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
		while (send(pair[0], block, sizeof block, MSG_DONTWAIT) > 0)
			;
		need(c, setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t));
	}
	return pair[0];
}
static void round_read_timeout(struct check *c) {
	char byte;
	int fd = quiet(c);
	long start = milliseconds();
	timed(c, start, read(fd, &byte, 1), -1, EAGAIN);
}
static void round_readv_timeout(struct check *c) {
	char byte;
	struct iovec v = {&byte, 1};
	int fd = quiet(c);
	long start = milliseconds();
	timed(c, start, readv(fd, &v, 1), -1, EAGAIN);
}
static void round_recvmsg_timeout(struct check *c) {
	char byte;
	struct iovec v = {&byte, 1};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
	int fd = quiet(c);
	long start = milliseconds();
	timed(c, start, recvmsg(fd, &m, 0), -1, EAGAIN);
}
static void round_recvmmsg_timeout(struct check *c) {
	char byte;
	struct iovec v = {&byte, 1};
	struct mmsghdr m = {.msg_hdr = {.msg_iov = &v, .msg_iovlen = 1}};
	int fd = quiet(c);
	long start = milliseconds();
	timed(c, start, recvmmsg(fd, &m, 1, 0, NULL), -1, EAGAIN);
}
static void round_send_timeout(struct check *c) {
	char byte = 0;
	int fd = quiet(c);
	long start = milliseconds();
	timed(c, start, send(fd, &byte, 1, 0), -1, EAGAIN);
}
static void round_write_timeout(struct check *c) {
	char byte = 0;
	int fd = quiet(c);
	long start = milliseconds();
	timed(c, start, write(fd, &byte, 1), -1, EAGAIN);
}
static void round_accept_timeout(struct check *c) {
	static int listener;
	if (listener == 0) {
		struct timeval t = {0, TIMEOUT_MS * 1000};
		struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		listener = need(c, socket(AF_INET, SOCK_STREAM, 0));
		need(c, bind(listener, (struct sockaddr *)&address, sizeof address));
		need(c, listen(listener, 8));
		need(c, setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t));
	}
	long start = milliseconds();
	timed(c, start, accept4(listener, NULL, NULL, SOCK_CLOEXEC), -1, EAGAIN);
}
static void round_epoll_pwait2(struct check *c) {
	static int fd;
	struct epoll_event event;
	struct timespec t = timeout();
	if (fd == 0)
		fd = need(c, epoll_create1(0));
	long start = milliseconds();
	long result = syscall(441, fd, &event, 1, &t, NULL, 0);
	if (result == -1 && errno == ENOSYS) // before Linux 5.11
		usleep(TIMEOUT_MS * 1000);
	else
		timed(c, start, result, 0, 0);
}
static void round_io_getevents(struct check *c) {
	static unsigned long context;
	char event[32];
	struct timespec t = timeout();
	if (context == 0)
		need(c, syscall(SYS_io_setup, 4, &context));
	long start = milliseconds();
	timed(c, start, syscall(SYS_io_getevents, context, 1, 1, event, &t), 0, 0);
}
static void round_mq_timedreceive(struct check *c) {
	static int queue;
	char name[32], text[64];
	struct { long flags, maxmsg, msgsize, curmsgs, reserved[4]; } attributes = {.maxmsg = 1, .msgsize = sizeof text};
	if (queue == 0) {
		snprintf(name, sizeof name, "hotpatch-torture-%d", getpid());
		queue = need(c, syscall(SYS_mq_open, name, O_CREAT | O_EXCL | O_RDWR, 0600, &attributes));
		need(c, syscall(SYS_mq_unlink, name));
	}
	struct timespec at = deadline(CLOCK_REALTIME);
	long start = milliseconds();
	timed(c, start, syscall(SYS_mq_timedreceive, queue, text, sizeof text, NULL, &at), -1, ETIMEDOUT);
}
static void round_timerfd(struct check *c) {
	static int fd;
	uint64_t count = 0;
	struct itimerspec t = {{0, 0}, timeout()};
	if (fd == 0)
		fd = need(c, timerfd_create(CLOCK_MONOTONIC, 0));
	long start = milliseconds();
	need(c, timerfd_settime(fd, 0, &t, NULL));
	timed(c, start, read(fd, &count, sizeof count), sizeof count, 0);
	fed(c, count, 1);
}

// ---- Calls that wait for somebody. A child process or a thread of its own gives
// them something a little later.

// later calls f in a new thread after the timeout.
struct later {
	void (*f)(void *);
	void *arg;
};
static void *run_later(void *arg) {
	struct later *l = arg;
	usleep(TIMEOUT_MS * 1000);
	l->f(l->arg);
	return NULL;
}
static pthread_t later(struct check *c, struct later *l) {
	pthread_t thread;
	errno = pthread_create(&thread, NULL, run_later, l);
	need(c, errno == 0 ? 0 : -1);
	return thread;
}
static void write_byte(void *fd) {
	if (write(*(int *)fd, "x", 1) != 1)
		abort();
}

static void round_pipe_read(struct check *c) {
	static int fds[2];
	char byte;
	if (fds[0] == 0)
		need(c, pipe(fds));
	struct later l = {write_byte, &fds[1]};
	pthread_t thread = later(c, &l);
	fed(c, read(fds[0], &byte, 1), 1);
	pthread_join(thread, NULL);
}
static void round_recv(struct check *c) {
	static int fds[2];
	char byte;
	if (fds[0] == 0)
		need(c, socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
	struct later l = {write_byte, &fds[1]};
	pthread_t thread = later(c, &l);
	fed(c, recv(fds[0], &byte, 1, 0), 1);
	pthread_join(thread, NULL);
}
static void round_epoll_forever(struct check *c) {
	static int fds[2], epoll;
	struct epoll_event event = {.events = EPOLLIN};
	char byte;
	if (fds[0] == 0) {
		need(c, pipe(fds));
		epoll = need(c, epoll_create1(0));
		need(c, epoll_ctl(epoll, EPOLL_CTL_ADD, fds[0], &event));
	}
	struct later l = {write_byte, &fds[1]};
	pthread_t thread = later(c, &l);
	fed(c, epoll_wait(epoll, &event, 1, -1), 1);
	fed(c, read(fds[0], &byte, 1), 1);
	pthread_join(thread, NULL);
}
static void add_event(void *fd) {
	if (eventfd_write(*(int *)fd, 3) != 0)
		abort();
}
static void round_eventfd(struct check *c) {
	static int fd;
	uint64_t value = 0;
	if (fd == 0)
		fd = need(c, eventfd(0, 0));
	struct later l = {add_event, &fd};
	pthread_t thread = later(c, &l);
	fed(c, read(fd, &value, sizeof value), sizeof value);
	fed(c, value, 3);
	pthread_join(thread, NULL);
}
static void connect_to(void *address) {
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, address, sizeof(struct sockaddr_in)) != 0)
		abort();
	close(fd);
}
static void round_accept(struct check *c) {
	static int listener;
	static struct sockaddr_in address;
	if (listener == 0) {
		socklen_t size = sizeof address;
		address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		listener = need(c, socket(AF_INET, SOCK_STREAM, 0));
		need(c, bind(listener, (struct sockaddr *)&address, sizeof address));
		need(c, listen(listener, 8));
		need(c, getsockname(listener, (struct sockaddr *)&address, &size));
	}
	struct later l = {connect_to, &address};
	pthread_t thread = later(c, &l);
	int fd = accept(listener, NULL, NULL);
	if (fd < 0)
		fed(c, fd, 0);
	else
		close(fd);
	pthread_join(thread, NULL);
}
static void round_wait4(struct check *c) {
	int status = 0;
	pid_t child = need(c, fork());
	if (child == 0) {
		struct timespec t = timeout();
		nanosleep(&t, NULL);
		_exit(7);
	}
	fed(c, waitpid(child, &status, 0), child);
	fed(c, WIFEXITED(status) ? WEXITSTATUS(status) : -1, 7);
}
static void round_waitid(struct check *c) {
	siginfo_t info = {0};
	pid_t child = need(c, fork());
	if (child == 0) {
		struct timespec t = timeout();
		nanosleep(&t, NULL);
		_exit(8);
	}
	fed(c, waitid(P_PID, child, &info, WEXITED), 0);
	fed(c, info.si_status, 8);
}
// Locks of files belong to open files: one is held and given back through another.
static void unlock(void *fd) {
	if (flock(*(int *)fd, LOCK_UN) != 0)
		abort();
}
static void round_flock(struct check *c) {
	static int fds[2];
	if (fds[0] == 0)
		for (int i = 0; i < 2; i++)
			fds[i] = need(c, open("/proc/self/exe", O_RDONLY));
	// Other processes that run this file are not in the way: it is locked for reading,
	// and for writing only between these two.
	struct later l = {unlock, &fds[1]};
	if (flock(fds[1], LOCK_EX | LOCK_NB) != 0) {
		usleep(TIMEOUT_MS * 1000);
		return;
	}
	pthread_t thread = later(c, &l);
	fed(c, flock(fds[0], LOCK_EX), 0);
	pthread_join(thread, NULL);
	flock(fds[0], LOCK_UN);
}
static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int value;
} box = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
static void fill_box(void *arg) {
	(void)arg;
	pthread_mutex_lock(&box.lock);
	box.value = 1;
	pthread_cond_signal(&box.changed);
	pthread_mutex_unlock(&box.lock);
}
static void round_cond_wait(struct check *c) {
	int result = 0;
	struct later l = {fill_box, NULL};
	pthread_t thread = later(c, &l);
	pthread_mutex_lock(&box.lock);
	while (box.value == 0 && result == 0)
		result = pthread_cond_wait(&box.changed, &box.lock);
	box.value = 0;
	pthread_mutex_unlock(&box.lock);
	fed(c, result, 0);
	pthread_join(thread, NULL);
}
static void signal_waiter(void *thread) {
	if (pthread_kill(*(pthread_t *)thread, SIGNAL_WAITED) != 0)
		abort();
}
static void round_sigwaitinfo(struct check *c) {
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGNAL_WAITED);
	pthread_t self = pthread_self();
	struct later l = {signal_waiter, &self};
	pthread_t thread = later(c, &l);
	fed(c, sigwaitinfo(&set, NULL), SIGNAL_WAITED);
	pthread_join(thread, NULL);
}
static volatile sig_atomic_t suspended_signals;
static void on_suspend(int number) {
	(void)number;
	suspended_signals++;
}
static void signal_suspended(void *thread) {
	if (pthread_kill(*(pthread_t *)thread, SIGNAL_SUSPEND) != 0)
		abort();
}
// sigsuspend does end with EINTR: exactly when the handler has run.
static void round_sigsuspend(struct check *c) {
	if (c->done == 0) {
		struct sigaction action;
		memset(&action, 0, sizeof action);
		action.sa_handler = on_suspend;
		sigaction(SIGNAL_SUSPEND, &action, NULL);
	}
	sigset_t set;
	sigfillset(&set);
	sigdelset(&set, SIGNAL_SUSPEND);
	suspended_signals = 0;
	pthread_t self = pthread_self();
	struct later l = {signal_suspended, &self};
	pthread_t thread = later(c, &l);
	int result = sigsuspend(&set);
	if (result != -1 || errno != EINTR || suspended_signals != 1)
		wrong(c, "result %d, errno %d, %d signals", result, errno, (int)suspended_signals);
	pthread_join(thread, NULL);
}

// Waits for ever: that it returns at all is wrong.
static void round_pause(struct check *c) {
	int result = pause();
	wrong(c, "returned %d, errno %d", result, errno);
}

// System V semaphores and queues outlive a process; main puts this one into an
// IPC namespace of its own, where it may, with which they end.
static void post_semaphore(void *id) {
	struct sembuf up = {0, 1, 0};
	if (semop(*(int *)id, &up, 1) != 0)
		abort();
}
static void round_semop(struct check *c) {
	int id = need(c, semget(IPC_PRIVATE, 1, 0600));
	struct sembuf down = {0, -1, 0};
	struct later l = {post_semaphore, &id};
	pthread_t thread = later(c, &l);
	long result = semop(id, &down, 1);
	fed(c, result, 0);
	pthread_join(thread, NULL);
	semctl(id, 0, IPC_RMID);
}
struct message {
	long type;
	char text[8];
};
static void send_message(void *id) {
	struct message m = {1, "text"};
	if (msgsnd(*(int *)id, &m, sizeof m.text, 0) != 0)
		abort();
}
static void round_msgrcv(struct check *c) {
	int id = need(c, msgget(IPC_PRIVATE, 0600));
	struct message m;
	struct later l = {send_message, &id};
	pthread_t thread = later(c, &l);
	fed(c, msgrcv(id, &m, sizeof m.text, 0, 0), sizeof m.text);
	pthread_join(thread, NULL);
	msgctl(id, IPC_RMID, NULL);
}

#define CALL(n) {.mode = "syscalls", .name = #n, .round = round_##n}
struct check syscall_checks[] = {
    CALL(nanosleep),      CALL(clock_relative), CALL(clock_absolute), CALL(poll),        CALL(ppoll),
    CALL(select),         CALL(pselect),        CALL(epoll_wait),     CALL(epoll_pwait), CALL(futex),
    CALL(cond_timedwait), CALL(sem_timedwait),  CALL(sigtimedwait),   CALL(semtimedop),  CALL(recv_timeout),
    CALL(pipe_read),      CALL(recv),           CALL(epoll_forever),  CALL(eventfd),     CALL(accept),
    CALL(wait4),          CALL(cond_wait),      CALL(sigwaitinfo),    CALL(sigsuspend),  CALL(pause),
    CALL(semop),          CALL(msgrcv),         CALL(read_timeout),   CALL(readv_timeout), CALL(recvmsg_timeout),
    CALL(recvmmsg_timeout), CALL(send_timeout), CALL(write_timeout),  CALL(accept_timeout), CALL(epoll_pwait2),
    CALL(io_getevents),   CALL(mq_timedreceive), CALL(timerfd),       CALL(waitid),       CALL(flock),
    {0},
};
