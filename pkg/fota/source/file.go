package source

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// A Local is a source in a file.
type Local struct {
	file *os.File
	size int64
}

// File opens a regular file. A symbolic link as the last part of the path is refused:
// whoever may write to a folder, as to one for removable media, could lead a process with
// more rights to any file.
func File(path string) (*Local, error) {
	// Without O_NONBLOCK, opening a FIFO would wait for a writer. What was opened is what
	// is looked at: no second look at the path.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("cannot open %s: it is a symbolic link", path)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("cannot open %s: it is not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Local{file: f, size: info.Size()}, nil
}

// Size is the size that the file had when it was opened.
func (l *Local) Size() int64 { return l.size }

// ReadAt reads within the size that the file had when it was opened. Bytes that are there
// no longer are an [ErrChanged]; bytes that were added do not exist.
func (l *Local) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("cannot read before the beginning")
	}
	within := p[:min(int64(len(p)), max(0, l.size-off))]
	n, err := l.file.ReadAt(within, off)
	if err == io.EOF {
		return n, fmt.Errorf("cannot read byte %d of %d: %w", off+int64(n), l.size, ErrChanged)
	}
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// Close closes the file.
func (l *Local) Close() error { return l.file.Close() }
