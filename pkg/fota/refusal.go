package fota

import "fmt"

// A Stage says where a bundle was refused. A bundle passes them in this order, and
// what is done at one stands on the ones before.
type Stage string

const (
	StageContainer Stage = "container" // sizes, trailer: where the parts are
	StageCMS       Stage = "cms"       // the signature, and what exactly was signed
	StageChain     Stage = "chain"     // who signed, and whether he may
	StageManifest  Stage = "manifest"  // what the signed text says
	StagePolicy    Stage = "policy"    // whether this device wants it now
	StagePayload   Stage = "payload"   // the bytes behind the signature
	StageSquashfs  Stage = "squashfs"  // the file system made of them
	StageImage     Stage = "image"     // the images in it
	StageSlot      Stage = "slot"      // where an image is written to
	StageBoot      Stage = "boot"      // what shall start it
)

// A Refusal says no to a bundle; whatever ran before it runs on. A refusal is for good:
// the same bytes are refused again, on the same device. Trouble on the way to the bytes
// (a file that cannot be read, a server that is gone) is never a Refusal.
type Refusal struct {
	Stage Stage
	Code  string // one lower-case word a reason, which stays the same over releases: "downgrade"
	Err   error  // the reason, for people
}

// Refuse returns a *[Refusal], its reason formatted as by [fmt.Errorf].
func Refuse(stage Stage, code, format string, args ...any) error {
	return &Refusal{Stage: stage, Code: code, Err: fmt.Errorf(format, args...)}
}

func (r *Refusal) Error() string { return string(r.Stage) + ": " + r.Err.Error() }

func (r *Refusal) Unwrap() error { return r.Err }
