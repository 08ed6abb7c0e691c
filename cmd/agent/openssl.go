package main

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"birthmark/internal/config"
)

func configOpensslCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "openssl", Short: "print an OpenSSL configuration with which other programs use a key in the TPM", Args: cobra.NoArgs,
		Long: `Print a configuration for OpenSSL 3 with which curl, mosquitto_pub, openssl and
other programs on this device authenticate with a key file that birthmark wrote:
they hand it to the provider of Debian's package tpm2-openssl, which lets the TPM
sign. What else they need to know stands in the comments.`,
		Example: `  birthmark config openssl --key /var/lib/factory/dev-1/key.pem > /etc/birthmark/openssl.cnf
  OPENSSL_CONF=/etc/birthmark/openssl.cnf TPM2OPENSSL_TCTI=device:/dev/tpmrm0 \
      curl --cert dev-1/cert.pem --key dev-1/key.pem https://example.com`,
	}
	key := cmd.Flags().String("key", "key.pem", "the key `file`, for the examples in the comments")
	address := cmd.Flags().String("tpm", "/dev/tpmrm0", "`address` of the TPM: /dev/tpmrm0 or, for swtpm, tcp:HOST:PORT")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		text, err := opensslConfig(*key, *address)
		if err != nil {
			return err
		}
		_, err = cmd.OutOrStdout().Write([]byte(text))
		return err
	}
	return cmd
}

// opensslConfig is the configuration, with examples for a key file and advice for
// a TPM.
func opensslConfig(key, address string) (string, error) {
	if strings.ContainsFunc(key+address, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return "", &config.Error{Msg: "--key and --tpm must be printable: they become comments"}
	}
	tcti, advice := "device:"+address, deviceAdvice
	if !filepath.IsAbs(address) {
		network, where, _ := strings.Cut(address, ":")
		host, port, err := net.SplitHostPort(where)
		if network != "tcp" || err != nil {
			return "", &config.Error{Msg: fmt.Sprintf("--tpm %s: OpenSSL reaches a TPM at a device (/dev/tpmrm0) or at tcp:HOST:PORT", address)}
		}
		tcti, advice = "tabrmd:bus_type=session", fmt.Sprintf(socketAdvice, host, port)
	}
	cert := filepath.Join(filepath.Dir(key), "cert.pem")
	return fmt.Sprintf(opensslHead, tcti, cert, key, advice) + opensslBody, nil
}

const opensslHead = `# OpenSSL 3 with a key in the TPM. Needs Debian's package tpm2-openssl.
#
#   export OPENSSL_CONF=(this file) TPM2OPENSSL_TCTI=%[1]s
#   curl --cert %[2]s --key %[3]s https://...
#   mosquitto_pub --cert %[2]s --key %[3]s --cafile ... -h ... -t ... -m ...
#   openssl req -new -key %[3]s -subj /CN=...
#
%[4]s`

// The provider's default is /dev/tpm0, which one process at a time may open, and
// whose three slots its copies of a key soon fill.
const deviceAdvice = `# TPM2OPENSSL_TCTI has to be set: without it the provider opens /dev/tpm0, which
# has no resource manager (and makes everybody else wait).
`

// Until swtpm is left, a resource manager is a program of its own.
const socketAdvice = `# A TPM behind a socket has no resource manager, without which the provider runs
# out of room in it. Package tpm2-abrmd is one; it wants to be the only client:
#
#   dbus-run-session -- sh      (in this shell:)
#   tpm2-abrmd --session --tcti=swtpm:host=%s,port=%s &      (root: --allow-root)
`

// Of the property queries that one can think of, this one alone works with the
// provider 1.1.1 (Debian 12) for curl and mosquitto, RSA and ECDSA. With
// ?provider=tpm2, as documented elsewhere, also random numbers, digests and the
// ephemeral keys of TLS are asked of the TPM: a thousand commands for a handshake,
// or none that succeeds. Without a query the private key is taken out of the
// provider, which fails.
const opensslBody = `
openssl_conf = openssl_init

[openssl_init]
providers = providers
alg_section = algorithms

[providers]
default = default_provider
tpm2 = tpm2_provider

[default_provider]
activate = 1

[tpm2_provider]
activate = 1

# Signatures by the TPM, everything else by OpenSSL itself. Not "?provider=tpm2":
# it would ask the TPM for random numbers and the ephemeral keys of TLS, too.
[algorithms]
default_properties = ?tpm2.signature=yes

# What "openssl req" cannot do without; -subj says the rest.
[req]
distinguished_name = name
string_mask = utf8only

[name]
`
