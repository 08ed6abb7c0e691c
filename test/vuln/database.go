package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// A database is a folder in the layout of vuln.go.dev: index/db.json and its
// neighbours, and a file for each entry below ID.
type database struct {
	folder   string // absolute
	modified time.Time
}

func (d database) url() string {
	return (&url.URL{Scheme: "file", Path: d.folder}).String()
}

// openDatabase finds the database in place: a folder, or a tar in any compression
// that tar knows, which is unpacked into tmp.
func openDatabase(place, tmp string) (database, error) {
	info, err := os.Stat(place)
	if err != nil {
		return database{}, fmt.Errorf("%w (%w)", errNoDatabase, err)
	}
	folder := place
	if !info.IsDir() {
		folder = filepath.Join(tmp, "db")
		if err := os.Mkdir(folder, 0o700); err != nil {
			return database{}, err
		}
		if out, err := exec.Command("tar", "-C", folder, "-xf", place).CombinedOutput(); err != nil {
			return database{}, fmt.Errorf("cannot unpack %s: %w: %s", place, err, out)
		}
	}
	// A tar may hold a folder that holds the database.
	var index string
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && filepath.Base(path) == "db.json" && filepath.Base(filepath.Dir(path)) == "index" {
			index = path
			return fs.SkipAll
		}
		return err
	})
	if err == nil && index == "" {
		err = errors.New("it has no index/db.json")
	}
	if err != nil {
		return database{}, fmt.Errorf("%s is no vulnerability database: %w", place, err)
	}
	text, err := os.ReadFile(index)
	if err != nil {
		return database{}, err
	}
	var said struct{ Modified time.Time }
	if err = json.Unmarshal(text, &said); err == nil && said.Modified.IsZero() {
		err = errors.New("it does not say when it was made")
	}
	if err != nil {
		return database{}, fmt.Errorf("cannot read %s: %w", index, err)
	}
	folder, err = filepath.Abs(filepath.Dir(filepath.Dir(index)))
	return database{folder, said.Modified}, err
}
