package sdboot

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/sdboot/pe"
)

const sectionTextLimit = 64 << 10 // bytes of a section with text

// Check says whether the firmware and the boot loader of this device would start a
// release and fall back from it. Its refusals are at [fota.StageBoot]:
//
//	pe         it is no program that package pe reads
//	uki        it is no unified kernel image
//	version    it is of another version, or of none
//	init       its command line has no init=: a kernel that finds no init gives a shell to the console
//	unsigned   Secure Boot is on, and nobody signed it
//	signature  a signature is not right, or not of it
//	foreign    nobody that the firmware knows signed it
//	revoked    the firmware has it, or who signed it, on the list of what is never started
//
// Any other error is trouble with r or with the firmware's variables.
func (l *Loader) Check(r io.ReaderAt, size int64, version string) error {
	f, err := pe.Parse(r, size)
	if err != nil {
		return refusedFormat(err)
	}
	if err := checkSections(f, version); err != nil {
		return err
	}
	lists, err := l.vars.lists()
	if err != nil || lists == nil {
		return err
	}
	return lists.check(f)
}

func refusedFormat(err error) error {
	var format *pe.FormatError
	if errors.As(err, &format) {
		return fota.Refuse(fota.StageBoot, "pe", "%w", err)
	}
	return err
}

// checkSections holds a unified kernel image against what the boot loader needs to sort
// it, and the device to fall back from it.
func checkSections(f *pe.File, version string) error {
	if _, ok := f.Section(".linux"); !ok {
		return fota.Refuse(fota.StageBoot, "uki", "it has no section .linux")
	}
	release, err := sectionText(f, ".osrel")
	if err != nil {
		return err
	}
	var got string
	for line := range strings.Lines(release) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "IMAGE_VERSION="); ok {
			got = strings.Trim(value, `"'`)
		}
	}
	if got != version && !strings.HasPrefix(got, version+"+sv") {
		return fota.Refuse(fota.StageBoot, "version", "its IMAGE_VERSION is %q, want %s", got, version)
	}
	line, err := sectionText(f, ".cmdline")
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(strings.Fields(line), func(s string) bool { return strings.HasPrefix(s, "init=/") }) {
		return fota.Refuse(fota.StageBoot, "init", "its command line has no init=")
	}
	return nil
}

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
