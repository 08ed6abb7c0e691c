package tpm

import (
	"encoding/hex"

	"github.com/google/go-tpm/tpm2"

	"birthmark/pkg/rot"
)

// Handles of the TCG's registry ("Registry of Reserved TPM 2.0 Handles and
// Localities"; "TPM 2.0 Keys for Device Identity and Attestation", 7.3).
const (
	srkHandle           = tpm2.TPMHandle(0x81000001) // storage root key
	factoryIDevIDHandle = tpm2.TPMHandle(0x81020000) // IDevID that a factory made
	factoryIAKHandle    = tpm2.TPMHandle(0x81020001) // attestation key that a factory made
)

// signer is what all our keys are: made in this TPM, bound to it for ever, able
// to sign. NoDA, because an empty authorization value cannot be guessed, but a
// locked out TPM, after a few unorderly power cuts on some chips, would leave a
// device without its identity.
var signer = tpm2.TPMAObject{
	FixedTPM:            true,
	FixedParent:         true,
	SensitiveDataOrigin: true,
	UserWithAuth:        true,
	NoDA:                true,
	SignEncrypt:         true,
}

// ldevid is the template of an everyday key, a child of the SRK.
func ldevid(a rot.Algorithm) (tpm2.TPMTPublic, bool) {
	switch a {
	case rot.P256:
		return eccKey(tpm2.TPMECCNistP256), true
	case rot.P384:
		return eccKey(tpm2.TPMECCNistP384), true
	case rot.RSA2048:
		return rsaKey(2048), true
	}
	return tpm2.TPMTPublic{}, false
}

func eccKey(curve tpm2.TPMECCCurve) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: signer,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: curve}),
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

// rsaKey has no scheme of its own, so that it can sign both PKCS #1 v1.5 and PSS.
func rsaKey(bits tpm2.TPMKeyBits) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: signer,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: bits}),
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{}),
	}
}

// idevid is the template of the birth key, a primary key of the endorsement
// hierarchy: the TPM makes the same one from it for as long as it lives, also
// after TPM2_Clear. It follows the TCG's IDevID template ("TPM 2.0 Keys for Device
// Identity and Attestation", 7.3.4) but for three things: adminWithPolicy is
// clear and there is no policy, because the TCG's cannot be certified
// (TPM_RC_AUTH_TYPE); noDA is set; and unique is our own.
//
// Not a byte of it may ever change, or devices in the field lose their identity.
func idevid() tpm2.TPMTPublic { return primary(eccKey(tpm2.TPMECCNistP256), "BIRTHMARK IDEVID") }

// ak is the template of the attestation key: restricted, so that it signs only
// what the TPM itself says. In the endorsement hierarchy, because elsewhere a TPM
// obfuscates its reset counter. Not a byte of it may change.
func ak() tpm2.TPMTPublic {
	t := primary(eccKey(tpm2.TPMECCNistP256), "BIRTHMARK AK")
	t.ObjectAttributes.Restricted = true
	t.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
		CurveID: tpm2.TPMECCNistP256,
		Scheme: tpm2.TPMTECCScheme{
			Scheme:  tpm2.TPMAlgECDSA,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
		},
	})
	return t
}

// primary gives an ECC template the text from which, with the hierarchy's seed,
// its primary key follows.
func primary(t tpm2.TPMTPublic, unique string) tpm2.TPMTPublic {
	text := tpm2.TPM2BECCParameter{Buffer: []byte(unique)}
	t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: text, Y: text})
	return t
}

// An ekTemplate says how a TPM makes an endorsement key, and where a chip maker
// puts its certificate (TCG EK Credential Profile 2.5, 2.2.1.4 and B.6).
type ekTemplate struct {
	name        string         // in the profile
	certificate tpm2.TPMHandle // NV index
	persistent  tpm2.TPMHandle // where the key may be kept ready
	public      tpm2.TPMTPublic
}

// ekTemplates in the order of preference: ECC first, since a TPM may take seconds
// to make an RSA key; the commonest first of each. The first is also used, without
// certificate, when the TPM holds no certificate at all. H-5 (SM2) is missing: Go's
// library does not know its curve.
var ekTemplates = []ekTemplate{
	{"L-2", 0x01C0000A, 0x81010002, tpm2.ECCEKTemplate},
	{"H-2", 0x01C00014, 0x81010014, highEK(tpm2.TPMAlgSHA256, 128, policyB256, tpm2.TPMECCNistP256)},
	{"H-3", 0x01C00016, 0x81010016, highEK(tpm2.TPMAlgSHA384, 256, policyB384, tpm2.TPMECCNistP384)},
	{"H-4", 0x01C00018, 0x81010018, highEK(tpm2.TPMAlgSHA512, 256, policyB512, tpm2.TPMECCNistP521)},
	{"L-1", 0x01C00002, 0x81010001, tpm2.RSAEKTemplate},
	{"H-1", 0x01C00012, 0x81010012, highRSAEK(tpm2.TPMAlgSHA256, 128, policyB256, 2048)},
	{"H-6", 0x01C0001C, 0x8101001C, highRSAEK(tpm2.TPMAlgSHA384, 256, policyB384, 3072)},
	{"H-7", 0x01C0001E, 0x8101001E, highRSAEK(tpm2.TPMAlgSHA384, 256, policyB384, 4096)},
}

// PolicyB is PolicyOR(PolicySecret(endorsement), PolicyAuthorizeNV(a vendor's
// index)), EK Credential Profile B.6.
var (
	policyB256 = unhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0")
	policyB384 = unhex("b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419ca" +
		"cb47ba09699646150f9fc000f3f80e12")
	policyB512 = unhex("b8221ca69e8550a4914de3faa6a18c072cc01208073a928d5d66d59ef79e49a4" +
		"29c41a6b269571d57edb25fbdb1838425608b413cd616a5f6db5b6071af99bea")
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// highEK is an ECC template of the high range: empty unique, PolicyB.
func highEK(nameAlg tpm2.TPMAlgID, aesBits int, policy []byte, curve tpm2.TPMECCCurve) tpm2.TPMTPublic {
	t := tpm2.ECCEKTemplate
	t.NameAlg = nameAlg
	t.ObjectAttributes.UserWithAuth = true
	t.AuthPolicy = tpm2.TPM2BDigest{Buffer: policy}
	t.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: aesCFB(aesBits), CurveID: curve})
	t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return t
}

func highRSAEK(nameAlg tpm2.TPMAlgID, aesBits int, policy []byte, bits tpm2.TPMKeyBits) tpm2.TPMTPublic {
	t := tpm2.RSAEKTemplate
	t.NameAlg = nameAlg
	t.ObjectAttributes.UserWithAuth = true
	t.AuthPolicy = tpm2.TPM2BDigest{Buffer: policy}
	t.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: aesCFB(aesBits), KeyBits: bits})
	t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	return t
}

func aesCFB(bits int) tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(bits)),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}
