// Package source reads the bytes of a firmware bundle from where they lie: a file, or a
// server that they are fetched from piece by piece. Nothing is stored on the way.
//
// [File] opens a file, [HTTP] an address, [Resume] an address that was opened before a
// reboot. What comes of it is an [io.ReaderAt] of a known size either way, so the code
// that verifies and installs a bundle does not know which one it has.
//
// # What is promised
//
// The bytes are of one file. A file that was cut short, and an address at which there
// is another file now, end in [ErrChanged]; bytes of two releases are never mixed. That
// is for the sake of the update, not of its security: a server that lies with the same
// ETag is found out by the bundle's signature and hash tree, and by nothing here.
//
// A loss on the way is made good where it happened: by a new range, after a pause,
// as long as something comes in between. When that is in vain for too long, the error is
// an [*UnavailableError], and the same read may be tried again later. Every other error is
// for good, and is remembered: the address, the server or the file has to become another
// one. A server that is not believed is such an error, an [*UntrustedError]. Only what ends a source itself, its context or Close, says nothing about those.
//
// # What a server must do
//
// It must speak HTTPS, verified as the caller's [tls.Config] says, with the device's own
// certificate if that has one. It must answer ranges (RFC 9110, 14) and name the file's
// version by a strong ETag, or by a Last-Modified that is a minute old: less is no strong
// validator (8.8.2.2), and a weak ETag never is. It may redirect within its own origin.
// Another origin is not followed: the device would show its certificate to somebody who
// was not named in the job, and a job can name the right address.
//
// An answer that is not exactly what was asked for (other bytes, another total, another
// version, a coding) is not used. A server that sends the whole file instead of a
// range is hung up on.
//
// # What is read
//
// The order in which bundles are read is known: trailer and signature at the end, the hash
// tree before them, then the blocks rising, with looks at the tree in between. So a
// few places are remembered at which somebody reads on. At each, a request asks for 64 KiB
// first and for twice as much every time, up to 1 MiB; where 4 MiB were read without
// going elsewhere, one answer of all the rest takes over. Memory is bounded by that, and
// does not depend on the size of the bundle or on what the server sends.
package source

import (
	"errors"
	"io"
)

// A Source holds the bytes of a bundle. ReadAt may be called by many at once, and after an
// error again.
type Source interface {
	io.ReaderAt
	io.Closer
	// Size is the number of bytes, fixed when the source was opened.
	Size() int64
}

var (
	_ Source = (*Local)(nil)
	_ Source = (*Remote)(nil)
)

// ErrChanged says that the file is not the one that was opened. What was read of it is
// worth nothing any more; it has to be opened anew, without a [Pin].
var ErrChanged = errors.New("the file is not the one that was opened")
