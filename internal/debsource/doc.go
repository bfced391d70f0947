// Package debsource deals with source packages of Debian (dpkg-source(1), Debian Policy
// 4 and 5): it unpacks them, says what is missing to build them and how that is done,
// where the distribution has built a program, and makes of a patch the two states of
// the source before and after it, also if the package has the patch already.
package debsource
