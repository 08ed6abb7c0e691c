package firmware

import (
	"birthmark/pkg/clock"
	"birthmark/pkg/cms"
)

// Trust is whom this device believes, by its own files: signers whose certificate is for
// signing code, and whose CRLs are not over.
func Trust(c *clock.Clock) (*cms.Trust, error) {
	o := Options{EKU: "codeSigning"}
	return o.trust(c, Folders)
}
