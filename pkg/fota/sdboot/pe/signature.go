package pe

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
)

// alignment is that of signatures, in bytes.
const alignment = 8

// Digest is the Authenticode digest of a program: see [File.Digest].
func Digest(r io.ReaderAt, size int64) ([sha256.Size]byte, error) {
	f, err := Parse(r, size)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return f.Digest()
}

// Digest is the SHA-256 over what a signature is about: the whole file but the check
// sum, the directory entry of the signatures, and the signatures. That is what the
// Authenticode specification comes to where sections lie as Parse wants them. Firmware
// measures it into PCR 4, too, as an EV_EFI_BOOT_SERVICES_APPLICATION (TCG PC Client
// Platform Firmware Profile).
//
// Signers lengthen a file to a multiple of eight bytes before they sign it. The digest
// of one whose length is another is therefore not the one that it will be signed with.
func (f *File) Digest() (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	for _, span := range [][2]int64{
		{0, f.checksumAt},
		{f.checksumAt + 4, f.securityAt},
		{f.securityAt + directorySize, f.end},
	} {
		n, err := io.Copy(h, io.NewSectionReader(f.r, span[0], span[1]-span[0]))
		if err != nil {
			return sum, err
		}
		if n < span[1]-span[0] {
			return sum, io.ErrUnexpectedEOF // it was said to be longer
		}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// Signatures are the messages of PKCS #7 in which somebody signed the program, in their
// order; none when nobody did.
func (f *File) Signatures() [][]byte { return f.signatures }

// readSignatures reads the attribute certificate table ("PE Format") at the end of the
// file, to which the directory entry leads: signatures, each a WIN_CERTIFICATE
//
//	dwLength          uint32   with this header
//	wRevision         uint16   0x0200
//	wCertificateType  uint16   0x0002: PKCS #7
//	bCertificate      ...
//
// and padded with zeros to a multiple of eight bytes. Some signers count the padding in
// the length.
func (f *File) readSignatures(entry [2]uint32, size int64) error {
	const header, revision, pkcs7 = 8, 0x0200, 0x0002
	at, length := int64(entry[0]), int64(entry[1])
	if at == 0 && length == 0 {
		return nil
	}
	switch {
	case length > signaturesLimit:
		return bad("limit", "its signatures have %d bytes, limit %d", length, signaturesLimit)
	case at%alignment != 0 || length%alignment != 0 || length == 0:
		return bad("signature", "its signatures are %d bytes at %d, want multiples of %d", length, at, alignment)
	case at+length != size:
		return bad("signature", "its signatures end at %d, and it at %d", at+length, size)
	}
	table, err := f.read(at, int(length))
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	for len(table) > 0 {
		if len(f.signatures) == signatureLimit {
			return bad("limit", "it has more than %d signatures", signatureLimit)
		}
		n := int64(le.Uint32(table)) // the table has a multiple of eight bytes, so there are eight
		if n <= header || n > int64(len(table)) {
			return bad("signature", "a signature has %d bytes, and there are %d", n, len(table))
		}
		if r, kind := le.Uint16(table[4:]), le.Uint16(table[6:]); r != revision || kind != pkcs7 {
			return bad("signature", "a signature has revision %#04x and type %#04x, want %#04x and %#04x", r, kind, revision, pkcs7)
		}
		padded := (n + alignment - 1) &^ (alignment - 1)
		message, err := cutDER(table[header:padded])
		if err != nil {
			return err
		}
		f.signatures = append(f.signatures, message)
		table = table[padded:]
	}
	f.end = at
	return nil
}

// cutDER returns the SEQUENCE that b begins with. Less than eight bytes of zeros may
// follow.
func cutDER(b []byte) ([]byte, error) {
	length, header := 0, 2
	switch {
	case len(b) < 4 || b[0] != 0x30:
		return nil, bad("signature", "a signature is no message of PKCS #7")
	case b[1] < 0x80:
		length = int(b[1])
	case b[1] == 0x81:
		length, header = int(b[2]), 3
	case b[1] == 0x82:
		length, header = int(b[2])<<8|int(b[3]), 4
	default: // indefinite, or 64 KiB and more
		return nil, bad("signature", "a signature has a length that none has")
	}
	if header+length > len(b) {
		return nil, bad("signature", "a signature ends within itself")
	}
	message, rest := b[:header+length:header+length], b[header+length:]
	if len(rest) >= alignment {
		return nil, bad("signature", "%d bytes follow a signature", len(rest))
	}
	for _, c := range rest {
		if c != 0 {
			return nil, bad("signature", "a signature is padded with other bytes than zeros")
		}
	}
	return message, nil
}
