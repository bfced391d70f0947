// Package build makes a patch from what a change of the source has done to object
// files: it compares each pair of objects (objdiff), finds in which of the images that
// run each one is, and where everything in it is (runpre), and links what has to be
// shipped (patchlink). Nothing of it looks at names of programs or packages.
package build
