package firmware

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

	"birthmark/pkg/fota"
)

// A Report says what was proved about a bundle. Its JSON is for programs: names stay.
type Report struct {
	Accepted bool       `json:"accepted"`
	Stage    fota.Stage `json:"stage,omitempty"` // where it was refused
	Code     string     `json:"code,omitempty"`
	Reason   string     `json:"reason,omitempty"`

	// What a stage has proved, also if a later one has refused.
	Signer   *Signer   `json:"signer,omitempty"`
	Manifest *Manifest `json:"manifest,omitempty"`

	NotChecked []string `json:"not_checked"` // flags that were not given
	Size       int64    `json:"size"`
	BytesRead  int64    `json:"bytes_read"` // again if they were read again
}

// A Signer is who signed, and by whose leave.
type Signer struct {
	Subject  string    `json:"subject"`
	Serial   string    `json:"serial"`
	SHA256   string    `json:"sha256"` // of the certificate
	NotAfter time.Time `json:"not_after"`
	Issuer   string    `json:"issuer"` // the pinned CA
	Anchor   string    `json:"anchor"`
}

// A Manifest is what was signed.
type Manifest struct {
	Compatible      string      `json:"compatible"`
	Version         string      `json:"version"`
	SecurityVersion uint32      `json:"security_version"`
	Description     string      `json:"description,omitempty"`
	Build           string      `json:"build,omitempty"`
	Format          fota.Format `json:"format"`
	RootHash        string      `json:"root_hash,omitempty"` // of the hash tree
	Images          []Image     `json:"images"`
}

// An Image is a file of the bundle and the class of slots that it is for.
type Image struct {
	Slot   string `json:"slot"`
	File   string `json:"file"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

func signerOf(chain []*x509.Certificate) *Signer {
	leaf, sum := chain[0], sha256.Sum256(chain[0].Raw)
	return &Signer{
		Subject: leaf.Subject.String(), Serial: leaf.SerialNumber.Text(16), SHA256: hex.EncodeToString(sum[:]), NotAfter: leaf.NotAfter.UTC(),
		Issuer: leaf.Issuer.String(), Anchor: chain[len(chain)-1].Subject.String(),
	}
}

func manifestOf(m *fota.Manifest) *Manifest {
	r := &Manifest{
		Compatible: m.Compatible, Version: m.Version.String(), SecurityVersion: m.Version.Security,
		Description: m.Description, Build: m.Build, Format: m.Format,
	}
	if m.Format == fota.FormatVerity {
		r.RootHash = hex.EncodeToString(m.Verity.Root[:])
	}
	for _, i := range m.Images {
		r.Images = append(r.Images, Image{Slot: i.Slot, File: i.File, Size: i.Size, SHA256: hex.EncodeToString(i.SHA256[:])})
	}
	return r
}

// notAsked says what it means that a flag was not given.
var notAsked = map[string]string{
	"compatible":      "whether it is for this device (--compatible)",
	"running-version": "whether it is newer than what runs (--running-version)",
	"floor":           "whether it is above the floor (--floor)",
	"slot":            "whether the images fit (--slot)",
}

// Print writes the report of a bundle that was accepted, for people.
func (r *Report) Print(w io.Writer) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	m, s := r.Manifest, r.Signer
	line("signed by", "%s, serial %s, until %s", legible(s.Subject), s.Serial, s.NotAfter.Format(time.DateOnly))
	line("issued by", "%s", legible(s.Issuer))
	line("anchor", "%s", legible(s.Anchor))
	line("compatible", "%s", legible(m.Compatible))
	line("version", "%s, security version %d", m.Version, m.SecurityVersion)
	if m.Description != "" {
		line("description", "%s", legible(m.Description))
	}
	if m.Build != "" {
		line("build", "%s", legible(m.Build))
	}
	line("format", "%s", m.Format)
	for _, i := range m.Images {
		line("image", "%s for slot %s, %d bytes", legible(i.File), legible(i.Slot), i.Size)
	}
	for _, name := range r.NotChecked {
		line("not checked", "%s", notAsked[name])
	}
	line("accepted", "all %d bytes are what was signed", r.Size)
	_, err := io.WriteString(w, b.String())
	return err
}

// legible is a text of somebody else's, quoted if a terminal could take it for more
// than letters.
func legible(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
		return strconv.Quote(s)
	}
	return s
}
