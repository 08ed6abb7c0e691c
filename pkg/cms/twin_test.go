package cms

import (
	"fmt"
	"testing"

	"birthmark/internal/twins"
)

// sites are those of all checks. The files themselves know nothing of it.
var sites = []twins.Site{
	{"size", "signed.go", `len(der) > SignedLimit`, ""},
	{"trailing", "signed.go", `	if err := CheckDER(der); errors.Is(err, errTrailing) {`,
		"	if err := CheckDER(der); errors.Is(err, errTrailing) && off(\"trailing\") {\n		_ = err\n	} else if errors.Is(err, errTrailing) {"},
	{"der", "signed.go", `	} else if err != nil {
		return nil, refuse("der",`, `	} else if err != nil && !off("der") {
		return nil, refuse("der",`},
	{"content type", "signed.go", `!bytes.Equal(contentType, idSignedData)`, ""},
	{"eContentType", "signed.go", `!bytes.Equal(eContentType, about.id)`, ""},
	{"version", "signed.go", `!bytes.Equal(version, []byte{1})`, ""},
	{"digest algorithms", "signed.go", `r.end(digests, "digestAlgorithms")`, twins.Skip},
	{"end of SignedData", "signed.go", `r.end(signed, "SignedData")`, twins.Skip},
	{"end of eContent", "signed.go", `r.end(octets, "eContent")`, twins.Skip},
	{"crls", "signed.go", `if len(signed) > 0 && signed[0] == tagContext1 {`,
		"if off(\"crls\") {\n		r.optional(&signed, tagContext1, \"crls\")\n	} else if len(signed) > 0 && signed[0] == tagContext1 {"},
	{"certificates", "signed.go", `n > signedCertificateLimit`, ""},
	{"twice", "signed.go", `slices.ContainsFunc(certs, cert.Equal)`, ""},
	{"key", "signed.go", `err := checkKey(cert.PublicKey); err != nil`, `err := checkKey(cert.PublicKey); err != nil && !off("key")`},
	{"one signer", "signed.go", `		return p, refuse("signers", "more than one signed it")`, "		if !off(\"one signer\") {\n			return p, refuse(\"signers\", \"more than one signed it\")\n		}"},
	{"same digest", "signed.go", `err != nil || h != info.hash`, ""},
	{"digest", "signed.go", `subtle.ConstantTimeCompare(digest, s.Digest) != 1`, ""},
	{"opinion", "signed.go", `err := agree(der, s, info); err != nil`, `err := agree(der, s, info); err != nil && !off("opinion")`},

	{"version of SignerInfo", "signer.go", `r.err == nil && !bytes.Equal(version, []byte{1})`, ""},
	{"unsigned", "signer.go", `if r.err == nil && len(b) > 0 && b[0] == tagUnsigned {`,
		"if off(\"unsigned\") {\n		r.optional(&b, tagUnsigned, \"unsignedAttrs\")\n	} else if r.err == nil && len(b) > 0 && b[0] == tagUnsigned {"},
	{"digest length", "signer.go", `len(s.digest) != s.hash.Size()`, ""},
	{"value", "signer.go", `r.err == nil && len(values) == 0`, ""},
	{"attribute twice", "signer.go", `case seen[string(id)]:`, `case seen[string(id)] && !off("attribute twice"):`},
	{"order", "signer.go", `case bytes.Compare(before, whole) > 0:`, `case bytes.Compare(before, whole) > 0 && !off("order"):`},
	{"contentType", "signer.go", `r.err == nil && !bytes.Equal(got, about.id)`, ""},
	{"one contentType", "signer.go", `r.end(values, "contentType")`, twins.Skip},
	{"one messageDigest", "signer.go", `r.end(values, "messageDigest")`, twins.Skip},
	{"mandatory", "signer.go", `!seen[string(idContentType)] || !seen[string(idMessageDigest)]`, ""},
	{"one signer's certificate", "signer.go", `signer != nil`, ""},

	{"hash", "algorithm.go", `for _, a := range algorithms {`, `for _, a := range accepted() {`},
	{"hash", "algorithm.go", `algorithms[slices.IndexFunc(algorithms, `, `accepted()[slices.IndexFunc(accepted(), `},
	{"digest parameters", "algorithm.go", `!absentOrNull(identifier)`, ""},
	{"PSS", "algorithm.go", `			if err != nil {
				return refuse("signature",`, `			if err != nil && !off("PSS") {
				return refuse("signature",`},
	{"RSA", "algorithm.go", `rsa.VerifyPKCS1v15(key, s.hash, sum, s.signature); err != nil`, `rsa.VerifyPKCS1v15(key, s.hash, sum, s.signature); err != nil && !off("RSA")`},
	{"ECDSA", "algorithm.go", `!ecdsa.VerifyASN1(key, sum, s.signature)`, ""},
	{"RSA algorithm", "algorithm.go", `(bytes.Equal(s.algorithm, idRSA) || bytes.Equal(s.algorithm, with.rsa)) && absentOrNull(s.parameters)`,
		`off("RSA algorithm") || (bytes.Equal(s.algorithm, idRSA) || bytes.Equal(s.algorithm, with.rsa)) && absentOrNull(s.parameters)`},
	{"ECDSA algorithm", "algorithm.go", `bytes.Equal(s.algorithm, with.ecdsa) && len(s.parameters) == 0`, `off("ECDSA algorithm") || bytes.Equal(s.algorithm, with.ecdsa) && len(s.parameters) == 0`},
	{"PSS hash", "algorithm.go", `} else if h != with.hash {`, `} else if h != with.hash && !off("PSS hash") {`},
	{"MGF1", "algorithm.go", `r.oid(&mgf, idMGF1, "maskGenAlgorithm")`, "if off(\"MGF1\") {\n		r.open(&mgf, tagOID, \"maskGenAlgorithm\")\n	} else {\n		r.oid(&mgf, idMGF1, \"maskGenAlgorithm\")\n	}"},
	{"PSS trailer", "algorithm.go", `r.end(pss, "parameters")`, twins.Skip},
	{"salt", "algorithm.go", `; salt < least || salt > most {`, `; (salt < least || salt > most) && !off("salt") {`},

	{"anchors", "trust.go", `len(t.Anchors) == 0`, ""},
	{"issuers", "trust.go", `len(t.Issuers) == 0`, ""},
	{"pin", "trust.go", `above == nil`, ""},
	{"its own signature", "trust.go", `s.Signer.CheckSignatureFrom(ca) == nil`, `(off("its own signature") || s.Signer.CheckSignatureFrom(ca) == nil)`},
	{"what is offered", "trust.go", `!bytes.Equal(c.RawSubject, s.Signer.RawIssuer)`, `(off("what is offered") || !bytes.Equal(c.RawSubject, s.Signer.RawIssuer))`},
	{"chain", "trust.go", `t.Build(s.Signer, above,`, `builder(t.Build)(s.Signer, above,`},
	{"purpose of the chain", "trust.go", `t.Anchors, usage)`, `t.Anchors, purpose(usage))`},
	{"pin in the chain", "trust.go", `len(chain) < 2 || !slices.ContainsFunc(t.Issuers, chain[1].Equal)`, ""},
	{"no CA", "trust.go", `case leaf.IsCA:`, `case leaf.IsCA && !off("no CA"):`},
	{"for signatures", "trust.go", `case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:`, `case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 && !off("for signatures"):`},
	{"no key of a CA", "trust.go", `case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:`,
		`case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 && !off("no key of a CA"):`},
	{"purpose", "trust.go", `case !slices.Contains(leaf.ExtKeyUsage, usage):`, `case !slices.Contains(leaf.ExtKeyUsage, usage) && !off("purpose"):`},
	{"no any", "trust.go", `case slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny):`, `case slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) && !off("no any"):`},
	{"keys of the chain", "trust.go", `err := checkKey(c.PublicKey); err != nil`, `err := checkKey(c.PublicKey); err != nil && !off("keys of the chain")`},
	{"key of the anchor", "trust.go", `err := checkKey(anchor.PublicKey); err != nil`, `err := checkKey(anchor.PublicKey); err != nil && !off("key of the anchor")`},
	{"signatures of the chain", "trust.go", `!signedWithSHA2(c.SignatureAlgorithm)`, ""},

	{"now", "crl.go", `t.Now.IsZero()`, ""},
	{"no CRL", "crl.go", `good.IsZero()`, ""},
	{"CRL signature", "crl.go", `err := crl.CheckSignatureFrom(issuer); err != nil`, `err := crl.CheckSignatureFrom(issuer); err != nil && !off("CRL signature")`},
	{"CRL algorithm", "crl.go", `!signedWithSHA2(crl.SignatureAlgorithm)`, ""},
	{"delta", "crl.go", `e.Id.Equal(idDeltaCRL)`, ""},
	{"critical", "crl.go", `critical(crl.Extensions)`, ""},
	{"critical entry", "crl.go", `critical(e.Extensions)`, ""},
	{"revoked", "crl.go", `e.SerialNumber.Cmp(c.SerialNumber) == 0`, ""},
	{"over", "crl.go", `now.After(c.NotAfter)`, ""},
	{"stale", "crl.go", `now.After(until[i])`, ""},
}

// switches is what the build has besides.
const switches = `package cms

import (
	"crypto"
	_ "crypto/md5"
	_ "crypto/sha1"
	"crypto/x509"
)

func accepted() []algorithm {
	if !off("hash") {
		return algorithms
	}
	return append([]algorithm{
		{crypto.SHA1, []byte{0x2b, 0x0e, 0x03, 0x02, 0x1a}, pkcs1(5), nil},
		{crypto.MD5, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x05}, pkcs1(4), nil},
	}, algorithms...)
}

type build = func(*x509.Certificate, []*x509.Certificate, []*x509.Certificate, ...x509.ExtKeyUsage) ([]*x509.Certificate, error)

// builder looks at nothing when it is off.
func builder(b build) build {
	if !off("chain") {
		return b
	}
	return func(leaf *x509.Certificate, intermediates, roots []*x509.Certificate, _ ...x509.ExtKeyUsage) ([]*x509.Certificate, error) {
		return []*x509.Certificate{leaf, intermediates[0], roots[0]}, nil
	}
}

func purpose(usage x509.ExtKeyUsage) x509.ExtKeyUsage {
	if off("purpose of the chain") {
		return x509.ExtKeyUsageAny
	}
	return usage
}
`

func TestEveryForgeryHasATwin(t *testing.T) {
	if without != nil {
		return // this is the build with the switches
	}
	var all []twins.Attack
	for _, x := range forgeries() {
		all = append(all, twins.Attack{Name: x.name, Checks: x.checks})
	}
	twins.Run(t, "cms", sites, all, switches, "TestForgeriesAreRefused", fmt.Sprintf("%d forgeries, each with its twin", len(all)))
}
