package firmware

import (
	"errors"
	"io/fs"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/source"
)

// hints are the next steps, by stage and code, where there is one that the reason does
// not name itself.
var hints = map[fota.Stage]map[string]string{
	fota.StageContainer: {
		"trailer":  "is it a bundle, and did all of it arrive?",
		"unsigned": "make it with rauc bundle --cert --key",
	},
	fota.StageChain: {
		"anchors":   "put the root certificates of the maker's code-signing CA there, or name them with --anchors",
		"issuers":   "put the CA certificates there that issue the signers of releases, or name them with --signing-cas",
		"issuer":    "whoever signed it must have a certificate from one of --signing-cas",
		"untrusted": "the chain of --signing-cas must end at one of --anchors, and bundles need rauc's --intermediate for each CA in between",
		"eku":       "the signer needs a certificate with extendedKeyUsage=codeSigning, or --eku",
		"crl":       "give the CRLs of all CAs in the chain with --crls",
		"stale":     "fetch a new CRL, or bear with the old one by --crl-grace",
		"expired":   "sign it anew, with a certificate that is good now",
	},
	fota.StagePolicy: {
		"plain":     "make it with format=verity, or let it pass with --allow-plain",
		"downgrade": "a device takes an older release only with its owner's word",
	},
	fota.StagePayload: {
		"block":   damaged,
		"tree":    damaged,
		"digest":  damaged,
		"changed": "somebody writes to it",
	},
}

const damaged = "it was damaged, or forged: fetch it anew from its maker"

// Hint is the next step after an error of [Verify]; "" where there is none to say.
func Hint(err error) string {
	var refusal *fota.Refusal
	var unread *UnavailableError
	var stranger *source.UntrustedError
	var path *fs.PathError
	switch {
	case errors.As(err, &refusal):
		return hints[refusal.Stage][refusal.Code]
	case !errors.As(err, &unread):
		return ""
	case errors.As(err, &stranger):
		return "is the server's root certificate one of the system's, or named by --tls-anchors?"
	case errors.As(err, &path):
		return "is the path right, and may this user read it?"
	}
	return ""
}
