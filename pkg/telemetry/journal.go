package telemetry

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"sync"
)

const (
	journalName = "outbox.log"
	spareName   = "outbox.new" // the journal while it is rewritten; left over by a power cut at most
	lineLimit   = 2 * PayloadLimit
)

// A journal is the outbox on disk: records, one a line, each the CRC-32C of its
// JSON in hexadecimal, a space and the JSON. A line that does not fit its sum is
// what a power cut left, and is passed over.
//
// Happy path of an append: write, fsync when asked to. Of a rewrite: create the
// spare, write, fsync, rename over the journal, fsync the folder.
//
// After an error nobody knows what of a line is on disk, so the journal is suspect
// until it has been rewritten.
type journal struct {
	dir     string
	disk    disk
	file    file
	size    int64 // bytes in file
	suspect bool  // to be rewritten before anything is appended
}

// A record is one of three things: a message, the end of one (Done), or what the
// next numbers of the streams are at most (Next).
type record struct {
	Topic   string          `json:"topic,omitempty"`
	QoS     byte            `json:"qos,omitempty"`
	Durable bool            `json:"durable,omitempty"`
	Seq     uint64          `json:"seq,omitempty"` // of the message that comes or is done
	Payload json.RawMessage `json:"payload,omitempty"`

	Done string `json:"done,omitempty"` // the stream of a message that is no longer waiting

	Next map[string]uint64 `json:"next,omitempty"` // by stream; overrides what was read before
}

// castagnoli is made at its first use: most verbs of a program keep no journal.
var castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })

func checksum(text []byte) uint32 { return crc32.Checksum(text, castagnoli()) }

// line is the record as it is in the file.
func (r record) line() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // a payload stays as long as it is
	if err := e.Encode(r); err != nil {
		panic("telemetry: a record that cannot be encoded: " + err.Error()) // payloads were checked
	}
	text := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	return fmt.Appendf(nil, "%08x %s\n", checksum(text), text)
}

// parseLine takes a line apart, without its line feed.
func parseLine(line []byte) (r record, err error) {
	sum, text, ok := bytes.Cut(line, []byte(" "))
	if !ok || string(sum) != fmt.Sprintf("%08x", checksum(text)) {
		return r, errors.New("wrong checksum")
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, err
	}
	if r.Payload != nil {
		return r, Message{Topic: r.Topic, QoS: r.QoS, Durable: r.Durable}.check()
	}
	return r, nil
}

// openJournal reads the journal in dir, making the folder (0700) if there is none,
// and hands every record to each, in the order in which they were written. It
// returns how many lines were damaged, a torn last one included.
func openJournal(dir string, d disk, each func(record)) (j *journal, damaged int, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, 0, err
	}
	if err := d.remove(filepath.Join(dir, spareName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, err
	}
	f, err := d.open(filepath.Join(dir, journalName))
	if err != nil {
		return nil, 0, err
	}
	j = &journal{dir: dir, disk: d, file: f}
	whole, damaged, err := readLines(f, each)
	if err == nil {
		j.size = whole
		err = j.settle(damaged > 0)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return j, damaged, nil
}

// settle makes durable what openJournal found: whoever renamed the file was perhaps
// stopped before the folder was synced. The folder's own entry is older than the first
// record in the file, which was not written before both were synced.
func (j *journal) settle(torn bool) error {
	if torn {
		if err := j.file.Truncate(j.size); err != nil {
			return err
		}
	}
	if err := j.disk.syncFolder(j.dir); err != nil || j.size > 0 {
		return err
	}
	return j.disk.syncFolder(filepath.Dir(j.dir))
}

// readLines reads records from r. whole is how many bytes end with a line feed.
// A line over lineLimit is damaged, however long it is.
func readLines(r io.Reader, each func(record)) (whole int64, damaged int, err error) {
	in := bufio.NewReaderSize(r, lineLimit)
	long := false // in a line whose beginning was too much for the buffer
	var tail int64
	for {
		line, err := in.ReadSlice('\n')
		tail += int64(len(line))
		switch {
		case err == bufio.ErrBufferFull:
			long = true
			continue
		case err == io.EOF:
			if tail > 0 {
				damaged++
			}
			return whole, damaged, nil
		case err != nil:
			return whole, damaged, err
		}
		whole, tail = whole+tail, 0
		rec, err := parseLine(line[:len(line)-1])
		if long || err != nil {
			long = false
			damaged++
			continue
		}
		each(rec)
	}
}

// append adds records, and has them on disk when it returns if sync.
func (j *journal) append(sync bool, records ...record) error {
	if j.suspect {
		return errors.New("the journal must be rewritten first")
	}
	var b []byte
	for _, r := range records {
		b = append(b, r.line()...)
	}
	j.suspect = true
	if _, err := j.file.Write(b); err != nil {
		return err
	}
	if sync {
		if err := j.file.Sync(); err != nil {
			return err
		}
	}
	j.suspect = false
	j.size += int64(len(b))
	return nil
}

// rewrite replaces everything in the journal. When it fails, the old one stays.
func (j *journal) rewrite(records iter.Seq[record]) error {
	spare := filepath.Join(j.dir, spareName)
	f, err := j.disk.create(spare)
	if err != nil {
		return err
	}
	size, err := writeAll(f, records)
	if err == nil {
		err = j.disk.rename(spare, filepath.Join(j.dir, journalName))
	}
	if err != nil {
		f.Close()
		_ = j.disk.remove(spare) // or the next rewrite makes it empty
		return err
	}
	j.file.Close() // the old one: nothing in it counts any more
	j.file, j.size = f, size
	// The new file may be in place or not after a power cut as long as this fails.
	err = j.disk.syncFolder(j.dir)
	j.suspect = err != nil
	return err
}

// writeAll writes and syncs the records.
func writeAll(f file, records iter.Seq[record]) (size int64, err error) {
	w := bufio.NewWriter(f)
	for r := range records {
		n, err := w.Write(r.line())
		if err != nil {
			return 0, err
		}
		size += int64(n)
	}
	if err := w.Flush(); err != nil {
		return 0, err
	}
	return size, f.Sync()
}

func (j *journal) close() error { return j.file.Close() }
