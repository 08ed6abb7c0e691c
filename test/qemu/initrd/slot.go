package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	slotWait = 20 * time.Second // for a disk to appear
	lookWait = 10 * time.Millisecond
)

// A partition is one that has a name.
type partition struct {
	name    string
	node    string // in /dev
	number  string // MAJOR:MINOR
	sectors uint64 // of 512 bytes
}

// findSlot waits for the partition that holds the release of v. There is no udev to
// ask yet; the kernel tells the names itself.
func findSlot(v verity) (partition, error) {
	for start := time.Now(); ; time.Sleep(lookWait) {
		parts := partitions("/sys/class/block")
		for _, p := range parts {
			if (p.name == "root-a" || p.name == "root-b") && v.rootOf(p) {
				return p, noteFirstBoot(parts)
			}
		}
		if time.Since(start) > slotWait {
			return partition{}, errors.New("no slot holds this release")
		}
	}
}

// rootOf reports whether the hash tree in p has the root of v.
func (v verity) rootOf(p partition) bool {
	f, err := os.Open("/dev/" + p.node)
	if err != nil {
		return false
	}
	defer f.Close()
	top := make([]byte, blockSize)
	if _, err := f.ReadAt(top, int64(v.blocks)*blockSize); err != nil {
		return false
	}
	sum := sha256.Sum256(append(v.salt[:len(v.salt):len(v.salt)], top...))
	return bytes.Equal(sum[:], v.hash)
}

// partitions lists those that the kernel knows, from its folder of block devices. One
// that goes away meanwhile, or cannot be read, is none.
func partitions(class string) (found []partition) {
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		read := func(name string) string {
			text, err := os.ReadFile(filepath.Join(class, e.Name(), name))
			if err != nil {
				return ""
			}
			return strings.TrimSpace(string(text))
		}
		p := partition{node: e.Name(), number: read("dev")}
		for line := range strings.Lines(read("uevent")) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "PARTNAME="); ok {
				p.name = name
			}
		}
		p.sectors, err = strconv.ParseUint(read("size"), 10, 64)
		if err == nil && p.name != "" && p.number != "" {
			found = append(found, p)
		}
	}
	return found
}

// noteFirstBoot leaves a note if there is no data partition yet.
func noteFirstBoot(parts []partition) error {
	for _, p := range parts {
		if p.name == "data" {
			return nil
		}
	}
	return os.WriteFile(firstBoot, nil, 0o644)
}
