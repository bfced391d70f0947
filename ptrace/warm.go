package ptrace

import (
	"os"
	"sync"

	"hotpatch/internal/procfs"
)

// warmUp has the program's own code mapped before anything is stopped: code that runs for
// the first time in a pause would have each of its pages mapped then, which takes longer
// than the system calls of the pause. Without it nothing else changes.
var warmUp = sync.OnceFunc(func() {
	p, err := procfs.Open(os.Getpid())
	if err != nil {
		return
	}
	defer p.Close()
	maps, err := p.Maps()
	if err != nil {
		return
	}
	at := codeAddress()
	for i, m := range maps {
		if !m.Contains(at) {
			continue
		}
		populate(m.Start, m.End)
		// The constants of the program follow its code.
		if i+1 < len(maps) && maps[i+1].Start == m.End && maps[i+1].Inode == m.Inode {
			populate(maps[i+1].Start, maps[i+1].End)
		}
	}
})
