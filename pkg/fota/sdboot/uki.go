package sdboot

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/sdboot/pe"
)

const sectionTextLimit = 64 << 10 // bytes of a section with text

// A UKI is a unified kernel image that a boot loader can sort, and from which a device can
// fall back.
type UKI struct {
	*pe.File
	Version     string // IMAGE_VERSION of its os-release
	CommandLine string
}

// ReadUKI reads a UKI. It is refused at [fota.StageBoot]:
//
//	pe       it is no program that package pe reads
//	uki      it is no unified kernel image
//	version  it says of two versions that it is of them
//	init     its command line has no init=: a kernel that finds no init gives a shell to the console
func ReadUKI(r io.ReaderAt, size int64) (*UKI, error) {
	f, err := pe.Parse(r, size)
	if err != nil {
		return nil, refusedFormat(err)
	}
	if _, ok := f.Section(".linux"); !ok {
		return nil, fota.Refuse(fota.StageBoot, "uki", "it has no section .linux")
	}
	text, err := sectionText(f, ".osrel")
	if err != nil {
		return nil, err
	}
	release, err := fota.ParseOSRelease(text)
	if err != nil {
		return nil, fota.Refuse(fota.StageBoot, "version", "section .osrel: %w", err)
	}
	line, err := sectionText(f, ".cmdline")
	if err != nil {
		return nil, err
	}
	init := "" // the last one counts
	for _, word := range strings.Fields(line) {
		if path, ok := strings.CutPrefix(word, "init="); ok {
			init = path
		}
	}
	if !strings.HasPrefix(init, "/") {
		return nil, fota.Refuse(fota.StageBoot, "init", "its command line has no init=: a kernel that finds no init gives a shell to whoever is at the console")
	}
	return &UKI{f, release.Version, line}, nil
}

func refusedFormat(err error) error {
	var format *pe.FormatError
	if errors.As(err, &format) {
		return fota.Refuse(fota.StageBoot, "pe", "%w", err)
	}
	return err
}

// sectionText is a section, without the zeros that may end it.
func sectionText(f *pe.File, name string) (string, error) {
	r, ok := f.Section(name)
	if !ok || r.Size() > sectionTextLimit {
		return "", fota.Refuse(fota.StageBoot, "uki", "it has no section %s of at most %d bytes", name, sectionTextLimit)
	}
	text := make([]byte, r.Size())
	if _, err := io.ReadFull(r, text); err == io.EOF {
		return "", io.ErrUnexpectedEOF // it was said to be longer
	} else if err != nil {
		return "", err
	}
	return string(bytes.TrimRight(text, "\x00")), nil
}
