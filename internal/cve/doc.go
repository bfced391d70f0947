// Command cve makes patches out of real security fixes, applies them to processes that
// run the code before the fix, and writes what came out as a table (docs/cve.md).
// scripts/cve runs it, with the sources at hand.
//
// For each fix of testdata/cve/fixes.tsv: the state before it is the source package with
// its series of patches up to the one before. It is built with the distribution's flags,
// and stripped. hotpatch build makes the patch from that tree and the fix. A process that
// runs the stripped image is observed, patched, observed, reverted, and observed again.
//
// The judge is independent of all that: both states are built in clean trees of their own
// with a section for each function, and the functions whose code differs are compared with
// those that the patch replaces.
package main
