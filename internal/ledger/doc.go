// Package ledger encodes and decodes the record of applied patches that lives
// in the memory of the patched process. It is the one source of truth: nothing
// is stored outside the process. The package is pure: it turns a Ledger into
// bytes and bytes into a Ledger; who reads and writes them is not its business.
//
// The bytes come from a process that may be hostile or damaged. Decoding never
// panics, allocates no more than a small multiple of its input, and checks
// every checksum and every cross-reference before it returns anything.
//
// # Model
//
// A ledger is a list of patches and a list of sites. A site remembers the bytes
// that it had before any patch, and one layer of bytes for each patch that
// wants it changed, the oldest at the bottom. The top layer is in force. Push
// puts a patch's layers on top, Pop takes them out wherever they are; both tell
// which bytes in memory change because of it, and neither touches memory.
//
// # Layout
//
// The root is one page at a fixed place in hotpatch's region of the target:
//
//	offset size
//	0      8    magic, "hotpatch"
//	8      4    format, little endian; the size of this page is part of it
//	12     4    zero
//	64     32   header of the bodies with even generations
//	128    32   header of the bodies with odd generations
//	192    8    commit word
//
// A header is, in little endian words: address, length, generation (8 bytes
// each), CRC of the body, CRC of the header's first 28 bytes (4 bytes each).
// Both are CRC-32C. Everything else in the page is zero.
//
// A body is a JSON document (the Ledger type describes it). There are two body
// areas, and the generation's lowest bit says which one a body is in. An update
// writes the new body into the area that is not in force, then its header. The
// header with the right checksum and the highest generation is the one in
// force, so a writer that is killed at any moment leaves the old ledger or the
// new one. If the body of that header has the wrong checksum, then this is
// damage, and not an interrupted update: the body is complete before its header
// is begun. A reader that runs at the same time as a writer may see it, and
// reads again (Load does).
//
// # Transactions
//
// A body may hold a Txn: the edits that are about to be written, with the bytes
// before and after, and the ledger to come. While the threads are stopped, only
// one aligned 8-byte store, of that body's generation into the root's commit
// word, turns "about to" into "done". Whoever finds a transaction that is not
// committed undoes it; one that is committed is finished by writing the ledger
// to come as the next body.
package ledger
