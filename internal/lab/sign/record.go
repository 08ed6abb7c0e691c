package sign

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"time"

	"birthmark/pkg/fota/bundle"
	"birthmark/pkg/store"
)

// A Record says what a release is made of, for whoever has to recognise it later: in
// the bundle, in a slot, or in what a device attests of its start. It lies beside the
// bundle, as BUNDLE.json. Names stay; what is added later is absent in older ones.
//
// A record is signed by nobody. Whoever believes it has made it, or has verified the
// bundle that it describes.
type Record struct {
	Schema      int           `json:"schema"` // 1
	Compatible  string        `json:"compatible"`
	Version     string        `json:"version"` // X.Y.Z+svN
	Description string        `json:"description,omitempty"`
	Build       string        `json:"build,omitempty"`
	Built       time.Time     `json:"built"` // SOURCE_DATE_EPOCH, if it was set
	Bundle      BundleRecord  `json:"bundle"`
	Signer      CertRecord    `json:"signer"`
	Images      []ImageRecord `json:"images"`
	UKI         *UKIRecord    `json:"uki,omitempty"` // if there is an image for the slot uki
}

// A BundleRecord is about the bundle as a file.
type BundleRecord struct {
	File   string `json:"file"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // as all digests here: 64 hexadecimal digits
}

// A CertRecord is about a certificate.
type CertRecord struct {
	Subject  string    `json:"subject"`
	NotAfter time.Time `json:"not_after"` // until then devices can install the bundle
	SHA256   string    `json:"sha256"`    // of its DER
}

// An ImageRecord is about a file in the bundle.
type ImageRecord struct {
	Slot   string `json:"slot"`
	File   string `json:"file"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// record describes a bundle that was verified, as file f.
func (r Release) record(f *os.File, b *bundle.Bundle) (*Record, error) {
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return nil, err
	}
	signer := b.Chain[0]
	sum := sha256.Sum256(signer.Raw)
	record := &Record{
		Schema: 1, Compatible: b.Manifest.Compatible, Version: b.Manifest.Version.String(),
		Description: b.Manifest.Description, Build: b.Manifest.Build, Built: r.Time.UTC().Truncate(time.Second),
		Bundle: BundleRecord{Size: size, SHA256: hex.EncodeToString(h.Sum(nil))},
		Signer: CertRecord{signer.Subject.String(), signer.NotAfter, hex.EncodeToString(sum[:])},
	}
	for _, i := range b.Manifest.Images {
		record.Images = append(record.Images, ImageRecord{i.Slot, i.File, i.Size, hex.EncodeToString(i.SHA256[:])})
	}
	return record, nil
}

func (r *Record) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return store.WriteFile(path, append(text, '\n'), 0o644)
}
