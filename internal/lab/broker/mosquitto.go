package broker

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"
	"unicode"
)

// Mosquitto is what a mosquitto.conf needs to know. All files by their whole path.
type Mosquitto struct {
	Port               int
	CA, Cert, Key, ACL string // clients' roots, the broker's chain and key, the rules
	Data               string // folder for queued and retained messages
	User               string // whom to run as when started as root; "" for mosquitto's own choice
}

// MosquittoConfig is a mosquitto.conf, for mosquitto 2, that holds clients to the
// same rules and, as far as mosquitto has them, the same limits as this broker.
func MosquittoConfig(m Mosquitto) (string, error) {
	for _, path := range []string{m.CA, m.Cert, m.Key, m.ACL, m.Data} {
		if !filepath.IsAbs(path) || strings.ContainsFunc(path, unicode.IsControl) {
			return "", fmt.Errorf("cannot write %q into a mosquitto.conf: it must be a whole path on one line", path)
		}
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# One listener, one set of rules. With per_listener_settings true mosquitto would")
	line("# not know after a restart which rules hold for clients that are away.")
	line("per_listener_settings false")
	line("allow_anonymous false")
	line("acl_file %s", m.ACL)
	line("log_dest stderr")
	if m.User != "" {
		line("user %s", m.User)
	}
	line("")
	line("persistence true")
	line("persistence_location %s/", strings.TrimSuffix(m.Data, "/"))
	line("persistent_client_expiration %dd", sessionLife/(24*time.Hour))
	line("max_queued_messages %d", queueLimit)
	line("max_inflight_messages %d", inflightLimit)
	line("max_packet_size %d", packetLimit)
	line("set_tcp_nodelay true")
	line("")
	line("listener %d 127.0.0.1", m.Port)
	line("cafile %s", m.CA)
	line("certfile %s", m.Cert)
	line("keyfile %s", m.Key)
	line("tls_version tlsv1.2")
	line("require_certificate true")
	line("# These two belong below the listener line; above it they would be another")
	line("# listener's. Without the second, whoever has a certificate can take any device's")
	line("# session by its client id.")
	line("use_identity_as_username true")
	line("use_username_as_clientid true")
	return b.String(), nil
}
