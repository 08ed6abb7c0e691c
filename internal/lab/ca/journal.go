package ca

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// A Record is one line of issued.jsonl.
type Record struct {
	Subject     string // as RFC 2253 writes it: "CN=dev-1"
	Serial      string // hex
	SPKI        string // SHA-256 of the SubjectPublicKeyInfo, hex
	NotAfter    time.Time
	Profile     string // birth, device, operator, server or signer
	Certificate []byte // DER, base64
}

const recordLimit = 64 << 10 // bytes of a line

// A journal is a file of records that is only appended to. Many that append at
// once share an fsync: while one batch is on its way to the disk, the next one
// grows, and its first member takes it there.
type journal struct {
	file journalFile

	mu   sync.Mutex
	next *batch // that may still grow

	writing sync.Mutex // held while a batch is written
	size    int64      // of what is durable
	broken  error      // why nothing can be appended any more
}

// A journalFile is what a journal does to its file. The tests stand in between.
type journalFile interface {
	io.Writer
	Sync() error
	Truncate(size int64) error
	Close() error
}

// A batch is written by one write and one fsync.
type batch struct {
	text []byte
	done chan struct{}
	err  error // set when done is closed
}

// openJournal opens, or makes, the journal at path, locks it and hands every
// record in it to each. A torn end, which a power cut leaves when nobody has been
// told yet that it was written, is cut off.
func openJournal(path string, each func(*Record) error) (*journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	j := &journal{file: f}
	if err := j.load(f, each); err != nil {
		f.Close()
		return nil, err
	}
	return j, nil
}

func (j *journal) load(f *os.File, each func(*Record) error) error {
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		return errors.New("in use by another process")
	} else if err != nil {
		return fmt.Errorf("cannot lock %s: %w", f.Name(), err)
	}
	if err := syncFolder(filepath.Dir(f.Name())); err != nil {
		return err
	}
	size, err := readRecords(f, each)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(f.Name()), err)
	}
	j.size = size
	return j.cut()
}

// readRecords hands every whole record to each. It returns the size of what is
// whole; a damage that is followed by something whole is no torn end, and an error.
func readRecords(r io.Reader, each func(*Record) error) (size int64, err error) {
	lines := bufio.NewReaderSize(r, recordLimit)
	var damage error
	for offset := int64(0); ; {
		line, readErr := lines.ReadSlice('\n')
		if readErr != nil && readErr != io.EOF && readErr != bufio.ErrBufferFull {
			return 0, readErr
		}
		rec := new(Record)
		bad := json.Unmarshal(line, rec)
		if bad == nil && (readErr != nil || len(rec.Certificate) == 0) {
			bad = errors.New("incomplete")
		}
		switch {
		case bad == nil && damage != nil:
			return 0, fmt.Errorf("%w, and there is more after it", damage)
		case bad == nil:
			if err := each(rec); err != nil {
				return 0, fmt.Errorf("record at byte %d: %w", offset, err)
			}
			size = offset + int64(len(line))
		case damage == nil:
			damage = fmt.Errorf("record at byte %d: %w", offset, bad)
		}
		if readErr == io.EOF {
			return size, nil
		}
		offset += int64(len(line))
	}
}

// append returns when the record is on disk.
func (j *journal) append(r *Record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if len(line) > recordLimit {
		return fmt.Errorf("record of %d bytes, limit %d", len(line), recordLimit)
	}
	j.mu.Lock()
	b := j.next
	first := b == nil
	if first {
		b = &batch{done: make(chan struct{})}
		j.next = b
	}
	b.text = append(b.text, line...)
	j.mu.Unlock()
	if first {
		j.write(b)
	}
	<-b.done
	return b.err
}

// write takes a batch to the disk, after the one before it.
func (j *journal) write(b *batch) {
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mu.Lock()
	j.next = nil // from here on it does not grow
	j.mu.Unlock()
	b.err = j.writeLocked(b.text)
	close(b.done)
}

func (j *journal) writeLocked(text []byte) error {
	if j.broken != nil {
		return j.broken
	}
	if _, err := j.file.Write(text); err != nil {
		// The disk may be full, and have room again later.
		if cutErr := j.cut(); cutErr != nil {
			j.broken = fmt.Errorf("the journal is of no use until it is opened again: %w", cutErr)
		}
		return err
	}
	if err := j.file.Sync(); err != nil {
		// What is on disk is unknown now, and a second fsync would not tell.
		j.broken = fmt.Errorf("the journal is of no use until it is opened again: %w", err)
		return err
	}
	j.size += int64(len(text))
	return nil
}

// cut takes away what is not durable.
func (j *journal) cut() error {
	if err := j.file.Truncate(j.size); err != nil {
		return err
	}
	return j.file.Sync()
}

func (j *journal) close() error {
	j.writing.Lock()
	defer j.writing.Unlock()
	if j.broken == nil {
		j.broken = os.ErrClosed
	}
	return j.file.Close()
}
