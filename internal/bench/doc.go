// Package bench measures what hotpatch costs: the pause of a process, from its
// outside and from within; the time for which a thread is borrowed; the command; a
// call of a patched function; and how all that grows. It has benchmarks only, and one
// test, which fails if the pause has become much longer than it need be.
//
// What is compared is measured in turns within one run, so that what else the machine
// does meets all of it: a program in C that does the least that could be done
// (testdata/bench), and the built hotpatch, each time in a new process. scripts/bench
// runs everything and makes docs/performance.md of it: each benchmark gives its
// sections of the document to Report.
package bench
