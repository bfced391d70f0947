package rebuild

import (
	"encoding/binary"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// opened counts how often files are opened by anybody, and directories are read.
type opened struct {
	f     *os.File
	paths map[int32]string
	mu    sync.Mutex
	count map[string]int
	all   bool // events were lost
	done  chan struct{}
}

// watchOpens begins to count. Files that are not there are left out.
func watchOpens(paths []string) (*opened, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	o := &opened{f: os.NewFile(uintptr(fd), "inotify"), paths: make(map[int32]string), count: make(map[string]int), done: make(chan struct{})}
	for _, p := range paths {
		wd, err := unix.InotifyAddWatch(fd, p, unix.IN_OPEN|unix.IN_CLOSE_WRITE|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_DONT_FOLLOW)
		if err == nil {
			o.paths[int32(wd)] = p
		}
	}
	go o.read()
	return o, nil
}

// read reads events until the file is closed (inotify(7)).
func (o *opened) read() {
	defer close(o.done)
	b := make([]byte, 1<<16)
	for {
		n, err := o.f.Read(b)
		if err != nil {
			return
		}
		o.mu.Lock()
		for rest := b[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(rest))
			mask := binary.NativeEndian.Uint32(rest[4:])
			size := binary.NativeEndian.Uint32(rest[12:])
			name := strings.TrimRight(string(rest[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size]), "\x00")
			rest = rest[unix.SizeofInotifyEvent+size:]
			switch {
			case mask&unix.IN_Q_OVERFLOW != 0:
				o.all = true
			case name != "":
				// Something in a directory; what matters is who reads its names.
			case mask&unix.IN_OPEN != 0:
				o.count[o.paths[wd]]++
			case mask&(unix.IN_CLOSE_WRITE|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF) != 0:
				o.count[o.paths[wd]] += 1 << 20 // it is another file now
			}
		}
		o.mu.Unlock()
	}
}

// stop ends the counting.
func (o *opened) stop() {
	_ = o.f.Close()
	<-o.done
}

// times gives how often a file was opened, or many times if that is not known.
func (o *opened) times(path string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all {
		return 1 << 20
	}
	return o.count[path]
}
