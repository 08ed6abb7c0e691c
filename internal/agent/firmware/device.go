package firmware

import (
	"time"

	"birthmark/pkg/clock"
	"birthmark/pkg/cms"
)

// CRLGrace is for devices that nobody brings new CRLs for a while. Without a bound a CRL
// could be kept from a device for ever.
const CRLGrace = 30 * 24 * time.Hour

// Trust is whom this device believes, by its own files: signers whose certificate is for
// signing code.
func Trust(c *clock.Clock) (*cms.Trust, error) {
	o := Options{EKU: "codeSigning", CRLGrace: CRLGrace}
	return o.trust(c, Folders)
}
