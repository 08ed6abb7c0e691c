package cms

import "bytes"

// 1.3.6.1.4.1.311.2.1.4 and 15.
var (
	idIndirectData = []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x04} // SPC_INDIRECT_DATA_OBJID
	idPEImageData  = []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x0f} // SPC_PE_IMAGE_DATAOBJ
)

// indirectData is content that is a SEQUENCE. PKCS #7 (RFC 2315, 9.3), other than its
// successor, hashes what is in it: the same bytes that [Signed] has as content.
var indirectData = kind{idIndirectData, tagSequence, "indirect data"}

// ReadAuthenticode reads the signature of a program ("Windows Authenticode Portable
// Executable Signature Format", Microsoft) as [ReadSigned] reads a message, with the
// same rules. What it returns is about the program: it has no content, and
// [Signed.Check] wants to hear the program's own digest, by its Hash.
func ReadAuthenticode(der []byte) (*Signed, error) {
	s, err := readSigned(der, indirectData)
	if err != nil {
		return nil, err
	}
	if s.Content == nil {
		return nil, refuse("structure", "it does not say what was signed")
	}
	// SpcIndirectDataContent ::= SEQUENCE {
	//   data           SEQUENCE {
	//     type         OBJECT IDENTIFIER,     SPC_PE_IMAGE_DATAOBJ
	//     value        ANY },                 flags, and a link to nothing
	//   messageDigest  SEQUENCE {
	//     algorithm    SEQUENCE,              that of the message
	//     digest       OCTET STRING } }
	var r reader
	content := s.Content
	data := r.open(&content, tagSequence, "data")
	about := r.open(&data, tagOID, "type of data")
	info := r.open(&content, tagSequence, "messageDigest")
	r.end(content, "SpcIndirectDataContent")
	algorithm := r.open(&info, tagSequence, "digestAlgorithm")
	digest := r.open(&info, tagOctetString, "digest")
	r.end(info, "messageDigest")
	if r.err != nil {
		return nil, &Refusal{"structure", r.err}
	}
	if !bytes.Equal(about, idPEImageData) {
		return nil, refuse("type", "it is not about a program")
	}
	if h, err := digestAlgorithm(algorithm); err != nil || h != s.Hash || len(digest) != h.Size() {
		return nil, refuse("algorithm", "the digest of the program is not by the algorithm of the message")
	}
	s.Content, s.Digest = nil, digest
	return s, nil
}
