// Package procfs reads what the kernel tells of a process under /proc: its
// mappings, its threads, their states, and its memory. It never changes
// anything except through Mem.WriteAt.
//
// All files are read through one Proc, which holds an open directory of
// /proc/PID: once it is open, a process that ends and whose number is given to
// another is noticed (reads give ESRCH), never confused with its successor.
//
// A process whose main thread has ended (a zombie leader) has unusable maps,
// mem and exe files in its own directory, while those of its other threads
// work. Proc therefore reads maps and mem through the directory of a live
// thread. See proc(5).
package procfs
