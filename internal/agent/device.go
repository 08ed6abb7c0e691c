package agent

import (
	"time"

	"birthmark/internal/agent/update"
	"birthmark/pkg/lifecycle"
	"birthmark/pkg/rot"
)

// schema is the version of Device that this agent writes. A field is only ever
// added, and its absence is harmless, so that after a rollback the older agent
// reads what the newer one wrote.
const schema = 1

// A Device is everything the agent remembers across restarts. It is stored as
// one file, so that a key, its certificate and the state they led to can only
// change together. Nothing in it is believed because it is there: keys are
// checked by the TPM, certificates by their chain.
type Device struct {
	Schema int             `json:"schema"`
	State  lifecycle.State `json:"state"`
	// ID is the device's name for life: CN of its certificates, MQTT client id.
	ID string `json:"id,omitempty"`
	// Root is the root of trust that holds the keys; fixed at the first boot.
	Root  rot.Identity `json:"root,omitzero"`
	Birth Birth        `json:"birth,omitzero"`
	Owner Owner        `json:"owner,omitzero"`
	// Asking is a request on its way to a CA: saved before it is sent, so that a
	// power cut or a "202, later" asks again with the same key and request.
	Asking Asking `json:"asking,omitzero"`
	// Update is the last update of the firmware. It is not a state of its own: the device
	// stays in service.
	Update update.State `json:"update,omitzero"`
	// Floor is a moment that is certainly past (see pkg/clock).
	Floor time.Time `json:"floor,omitzero"`
}

// Birth is what the maker's CA said about the IDevID. The zero Birth, in a state
// after blank, means that this fleet has no birth CA.
type Birth struct {
	Chain string `json:"chain,omitempty"` // PEM, IDevID certificate first
}

// Owner is the credential of everyday use.
type Owner struct {
	Key        string        `json:"key,omitempty"`   // LDevID in its TSS2 key file
	Chain      string        `json:"chain,omitempty"` // PEM, LDevID certificate first
	Generation int           `json:"generation,omitempty"`
	Assurance  rot.Assurance `json:"assurance,omitempty"`
}

// Asking is a certificate request that has no answer yet.
type Asking struct {
	Key     string    `json:"key,omitempty"`  // of an LDevID; empty for the IDevID
	CSR     []byte    `json:"csr,omitempty"`  // DER
	Bind    bool      `json:"bind,omitempty"` // the CA wants it bound to its connection
	Since   time.Time `json:"since,omitzero"`
	RetryAt time.Time `json:"retry_at,omitzero"` // the CA said: not before
	Tries   int       `json:"tries,omitempty"`
}
