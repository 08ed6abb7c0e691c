package sdboot

import (
	"io"

	"birthmark/pkg/fota"
)

// Check says whether the firmware and the boot loader of this device would start a
// release and fall back from it. Its refusals are at [fota.StageBoot], those of [ReadUKI]
// and:
//
//	version    it is of another version, or of none
//	unsigned   Secure Boot is on, and nobody signed it
//	signature  a signature is not right, or not of it
//	foreign    nobody that the firmware knows signed it
//	revoked    the firmware has it, or who signed it, on the list of what is never started
//
// Any other error is trouble with r or with the firmware's variables.
func (l *Loader) Check(r io.ReaderAt, size int64, version string) error {
	uki, err := ReadUKI(r, size)
	if err != nil {
		return err
	}
	if uki.Version != version {
		return fota.Refuse(fota.StageBoot, "version", "its IMAGE_VERSION is %q, want %s", uki.Version, version)
	}
	lists, err := l.vars.lists()
	if err != nil || lists == nil {
		return err
	}
	return lists.check(uki.File)
}
