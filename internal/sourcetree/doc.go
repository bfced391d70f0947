// Package sourcetree deals with the text of a program: a copy of its source tree to
// work on, the changes that patches make in it, and line numbers.
//
// A line that a change has moved has another number, and so other code where the
// number is used (__LINE__, assert). Renumber puts #line directives into a changed
// file after which every unchanged line has its old number (C17 6.10.4).
package sourcetree
