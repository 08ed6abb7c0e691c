// Package audit keeps a log of what happened to a device, in which no line can be
// changed, removed or slipped in between others without it showing.
//
// The log is a file of JSON lines, for people and tools to read:
//
//	{"seq":7,"time":"2027-03-01T12:00:00Z","event":"state","attrs":{"to":"born"},"prev":"9f86…"}
//
// prev is the SHA-256, in hex, of the line before without its line feed; the first
// line of all, seq 1, has none. [Verify] follows that chain. time is what the
// device believed; the order is seq's.
//
// [Log.Append] returns when its line is durable. A line that a power cut tore is
// cut off by the next [Open]. A log that was damaged in any other way is kept
// aside, and the new one begins with a line that holds its SHA-256.
//
// Files in the folder, all bounded:
//
//	audit.log            at most 1 MiB; then it becomes
//	audit.log.1          the part before, in place of the one that was; the chain goes on
//	audit.log.damaged-N  at most four, the first ones and the last
//	audit.log.new        while a damaged log is put aside
//
// What this does not do: who can write the folder can remove lines from the end, or
// write the whole log anew. That shows only to those who have seen a later line:
// send the last hash away now and then. Nor does the log lock its folder; the
// agent's store does.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	fileName     = "audit.log"
	fileLimit    = 1 << 20  // bytes of audit.log
	lineLimit    = 16 << 10 // bytes of a line
	damagedLimit = 4        // files kept aside
)

// An entry is one line.
type entry struct {
	Seq   uint64          `json:"seq"`
	Time  time.Time       `json:"time"`
	Event string          `json:"event"`
	Attrs json.RawMessage `json:"attrs,omitempty"`
	Prev  string          `json:"prev,omitempty"`
}

// A Log is an open log. It is safe for concurrent use.
type Log struct {
	dir   string
	disk  disk
	limit int64 // bytes of audit.log

	mu    sync.Mutex
	file  file   // nil when there is none, or none yet after a rotation
	size  int64  // bytes of file that are lines
	torn  bool   // file may hold more than that
	dirty bool   // the folder was changed and is not synced
	seq   uint64 // of the last line
	last  string // its hash
}

// Open opens the log in the folder dir, which is made, for its owner only, if it is not
// there.
func Open(dir string) (*Log, error) { return open(dir, realDisk{}, fileLimit) }

func open(dir string, d disk, limit int64) (*Log, error) {
	l := &Log{dir: dir, disk: d, limit: limit}
	if err := l.load(); err != nil {
		if l.file != nil {
			l.file.Close()
		}
		return nil, fmt.Errorf("cannot open the audit log in %s: %w", dir, err)
	}
	return l, nil
}

// load finds the end of the chain: in audit.log, or, if that is empty or not there,
// in audit.log.1.
func (l *Log) load() error {
	if err := l.disk.mkdir(l.dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	text, err := readFile(l.path())
	if errors.Is(err, fs.ErrNotExist) {
		// The folder's own entry may be as new as this, unless it is not ours to sync:
		// then it was there before us.
		if err := l.disk.syncFolder(filepath.Dir(l.dir)); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		// Without a draft there is no log yet, or none since a rotation.
		if err := l.adoptDraft(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		text, err = readFile(l.path())
	}
	if errors.Is(err, errTooBig) {
		return l.startAnew()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s := scan(text, "")
	switch {
	case s.err != nil && !s.torn:
		return l.startAnew()
	case s.n == 0:
		l.loadPart()
	default:
		l.seq, l.last = s.seq, s.last
	}
	if err == nil {
		if l.file, err = l.disk.open(l.path()); err != nil {
			return err
		}
		l.size, l.torn = int64(s.good), s.torn
		return l.repairLocked()
	}
	return nil
}

// loadPart finds the end of the chain in audit.log.1. Without that file, or
// without sense in it, a chain begins.
func (l *Log) loadPart() {
	text, err := readFile(l.path() + ".1")
	if err != nil {
		return
	}
	if s := scan(text, ""); s.err == nil && s.n > 0 {
		l.seq, l.last = s.seq, s.last
	}
}

// startAnew keeps a damaged audit.log aside and begins a chain that names it. The
// new log is on disk before the old one is moved, and the old one before the new
// one takes its name: whenever the power fails, Open can go on from there.
func (l *Log) startAnew() error {
	aside := ""
	for n := 1; n <= damagedLimit; n++ {
		aside = fmt.Sprintf("%s.damaged-%d", l.path(), n)
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	sum, err := hashFile(l.path())
	if err != nil {
		return err
	}
	if l.file, err = l.disk.open(l.draft()); err != nil {
		return err
	}
	l.torn, l.dirty = true, true // the draft may be left over
	if err := l.Append("audit-damaged", slog.String("kept", filepath.Base(aside)), slog.String("sha256", sum)); err != nil {
		return err
	}
	if err := l.disk.rename(l.path(), aside); err != nil {
		return err
	}
	if err := l.syncLocked(); err != nil {
		return err
	}
	return l.adoptDraft()
}

// adoptDraft makes the draft of a new log the log.
func (l *Log) adoptDraft() error {
	if err := l.disk.rename(l.draft(), l.path()); err != nil {
		return err
	}
	return l.syncLocked()
}

// Append adds a line about event, and returns when it is durable. After an error,
// a full disk for example, the log is as it was, and can be appended to. Long
// values are cut to 1 KiB.
func (l *Log) Append(event string, attrs ...slog.Attr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.appendLocked(event, attrs); err != nil {
		return fmt.Errorf("cannot append to %s: %w", l.path(), err)
	}
	return nil
}

func (l *Log) appendLocked(event string, attrs []slog.Attr) error {
	if l.disk == nil {
		return fs.ErrClosed
	}
	line, err := json.Marshal(entry{l.seq + 1, time.Now().UTC(), event, object(attrs), l.last})
	if err != nil {
		return err
	}
	if len(line) >= lineLimit {
		return fmt.Errorf("a line of %d bytes, limit %d", len(line), lineLimit)
	}
	if err := l.prepareLocked(len(line) + 1); err != nil {
		return err
	}
	l.torn = true
	if _, err = l.file.Write(append(line, '\n')); err == nil {
		err = l.file.Sync()
	}
	if err == nil && l.dirty {
		err = l.syncLocked()
	}
	if err != nil {
		return errors.Join(err, l.repairLocked())
	}
	l.torn = false
	l.size += int64(len(line)) + 1
	l.seq, l.last = l.seq+1, hash(line)
	return nil
}

// prepareLocked sees to it that a file is open that n more bytes fit in.
func (l *Log) prepareLocked(n int) error {
	if err := l.repairLocked(); err != nil {
		return err
	}
	if l.file != nil && l.size+int64(n) > l.limit {
		if err := l.disk.rename(l.path(), l.path()+".1"); err != nil {
			return err
		}
		// All of it is synced: closing cannot lose any.
		_ = l.file.Close()
		l.file, l.size, l.dirty = nil, 0, true
	}
	if l.file != nil {
		return nil
	}
	// A new file of the name of one that was renamed: first the one, then the other.
	if l.dirty {
		if err := l.syncLocked(); err != nil {
			return err
		}
	}
	f, err := l.disk.open(l.path())
	if err != nil {
		return err
	}
	l.file, l.dirty = f, true
	return nil
}

// repairLocked cuts off what is no whole line.
func (l *Log) repairLocked() error {
	if !l.torn {
		return nil
	}
	err := l.file.Truncate(l.size)
	if err == nil {
		err = l.file.Sync()
	}
	l.torn = err != nil
	return err
}

func (l *Log) syncLocked() error {
	err := l.disk.syncFolder(l.dir)
	l.dirty = err != nil
	return err
}

// Close closes the log. It cannot be appended to any more.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.disk = nil
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}

func (l *Log) path() string  { return filepath.Join(l.dir, fileName) }
func (l *Log) draft() string { return l.path() + ".new" }

// hash is what the line after this one says in prev.
func hash(line []byte) string {
	sum := sha256.Sum256(bytes.TrimSuffix(line, []byte{'\n'}))
	return hex.EncodeToString(sum[:])
}
