// Package config reads how an agent is to behave: TOML files in layers, then the
// environment.
//
// Layers, each over the one before; tables merge, values and lists replace:
//
//	/usr/lib/birthmark/birthmark.toml      the image's maker
//	/usr/lib/birthmark/conf.d/*.toml       in the order of their names
//	/etc/birthmark/birthmark.toml          the administrator
//	/etc/birthmark/conf.d/*.toml
//	BIRTHMARK_SECTION__KEY=value           the environment, for containers and tests
//
// A symlink to /dev/null in /etc/birthmark, or in its conf.d, masks the file of
// the same name in /usr/lib/birthmark, or in its conf.d. With a file named on the
// command line, that file alone is read, and the environment.
//
// People write these files, so reading is strict: a setting that does not exist is
// an error with file, line and the nearest name that does. Names of files in a
// file are relative to it. Secrets are never settings, only files named by them.
// Where certificates or a password are read from, "credential:NAME" is a credential that
// systemd passes to the agent.
//
// [Load] reads and remembers where each value came from, [Loaded.Check] looks for
// what cannot work, [Loaded.Show] prints what is in force, and [Doc] the reference,
// which is kept as docs/configuration.md.
package config

import (
	"fmt"
	"time"
)

// A Config is all settings. Each has its name and its documentation in a tag; a
// path tag marks names of files.
type Config struct {
	Device    Device    `toml:"device" doc:"The device itself."`
	TPM       TPM       `toml:"tpm" doc:"The root of trust, which holds all private keys."`
	Birth     Birth     `toml:"birth" doc:"The maker's CA. It certifies, once, the key that the device is born with (IDevID)."`
	EST       EST       `toml:"est" doc:"The owner's CA. It certifies the keys of everyday use (LDevID), over EST (RFC 7030)."`
	Broker    Broker    `toml:"broker" doc:"The owner's MQTT broker."`
	Firmware  Firmware  `toml:"firmware" doc:"Updates of the firmware. Whose releases are installed is no setting: it is in files of the image, see docs/operating.md."`
	Telemetry Telemetry `toml:"telemetry" doc:"What the device tells of itself."`
	Doors     Doors     `toml:"doors" doc:"The Unix sockets at which the agent answers programs on the device. The groups of their files decide who may."`
	Metrics   Metrics   `toml:"metrics" doc:"The agent's numbers, beside those that GET /v1/metrics on control.sock answers with."`
	Log       Log       `toml:"log" doc:"The agent's log, on standard error."`
}

type Device struct {
	ID    string `toml:"id" doc:"Name of the device for life: CN of its certificates and MQTT client id. 1 to 64 of A–Z a–z 0–9 _ -. When empty it is derived from the TPM's endorsement key."`
	State string `toml:"state" path:"yes" doc:"Folder for all that the agent remembers. Nothing is kept elsewhere."`
}

type TPM struct {
	Address   string `toml:"address" doc:"A device such as /dev/tpmrm0, unix:PATH or tcp:HOST:PORT."`
	Algorithm string `toml:"algorithm" doc:"Kind of key where the CA has no wish: P-256, P-384 or RSA-2048."`
}

// How a device is born.
const (
	BirthPassword = "password" // certified for a one-time password
	BirthNone     = "none"     // not at all: the fleet has no birth CA
)

type Birth struct {
	Mode         string `toml:"mode" doc:"password: certified by the maker's CA for a one-time password. none: this fleet has no such CA; a device whose everyday certificate was lost then has no way home."`
	URL          string `toml:"url" doc:"EST server of the maker's CA: https://HOST[:PORT]."`
	Label        string `toml:"label" doc:"Label of the CA at that server, if it has several."`
	Anchors      string `toml:"anchors" path:"yes" doc:"PEM file with the root certificates that the server and its answers must chain to."`
	AnchorSHA256 string `toml:"anchor_sha256" doc:"SHA-256 of the root certificate, in hex: without anchors, the root is fetched from the server and must have it."`
	PasswordFile string `toml:"password_file" path:"yes" doc:"File with the one-time password, one line. It is needed until the device is born."`
}

type EST struct {
	URL          string `toml:"url" doc:"EST server of the owner's CA: https://HOST[:PORT]."`
	Label        string `toml:"label" doc:"Label of the CA at that server, if it has several."`
	Anchors      string `toml:"anchors" path:"yes" doc:"PEM file with the root certificates that the server and its answers must chain to."`
	AnchorSHA256 string `toml:"anchor_sha256" doc:"SHA-256 of the root certificate, in hex: without anchors, the root is fetched from the server and must have it."`
	Username     string `toml:"username" doc:"User name for HTTP Basic where the device has no certificate to show; the device's id when empty."`
	PasswordFile string `toml:"password_file" path:"yes" doc:"File with the password for HTTP Basic, one line. Needed where birth.mode is none."`
}

type Broker struct {
	URLs            []string `toml:"urls" doc:"Addresses, tried in turn: mqtts://HOST:PORT."`
	Anchors         string   `toml:"anchors" path:"yes" doc:"PEM file with the root certificates that the broker must chain to."`
	KeepAlive       Duration `toml:"keepalive" doc:"Longest silence on the connection, 5s to 18h."`
	ReconnectWindow Duration `toml:"reconnect_window" doc:"After a lost connection, the first try comes at a random moment within this time, so that a fleet does not come back at once. At most 1h."`
}

type Firmware struct {
	ServerAnchors  string `toml:"server_anchors" path:"yes" doc:"PEM file with the root certificates that a server with bundles must chain to. It is shown the device's everyday certificate. When empty, bundles are installed from files only."`
	BytesPerSecond int64  `toml:"bytes_per_second" doc:"How fast bundles are read from a server, at most; 0 is no bound."`
}

type Telemetry struct {
	Interval Duration          `toml:"interval" doc:"Time between two readings of the system, 1s to 24h."`
	Labels   map[string]string `toml:"labels" doc:"Copied into every reading, for example { site = \"berlin\" }. At most 32; names of a–z 0–9 _, values of at most 256 bytes."`
}

type Doors struct {
	Folder string `toml:"folder" path:"yes" doc:"Folder of status.sock (everybody), control.sock (group birthmark-admin) and telemetry.sock (group birthmark-telemetry). It is made if it is not there; nobody but its owner may be able to write to it."`
}

type Metrics struct {
	Textfile string `toml:"textfile" path:"yes" doc:"File for the textfile collector of node_exporter, replaced every minute and removed when the agent stops. Its name ends in .prom. None when empty."`
}

type Log struct {
	Level string `toml:"level" doc:"debug, info, warn or error."`
}

// Default is what holds where nothing is configured.
func Default() Config {
	return Config{
		Device:    Device{State: "/var/lib/birthmark"},
		TPM:       TPM{Address: "/dev/tpmrm0", Algorithm: "P-256"},
		Birth:     Birth{Mode: BirthPassword},
		Broker:    Broker{KeepAlive: Duration(time.Minute), ReconnectWindow: Duration(time.Minute)},
		Telemetry: Telemetry{Interval: Duration(time.Minute)},
		Doors:     Doors{Folder: "/run/birthmark"},
		Log:       Log{Level: "info"},
	}
}

// A Server is an EST server and what is needed to trust it and to be believed by
// it.
type Server struct {
	URL, Label            string
	Anchors, AnchorSHA256 string // one of them is enough
	PasswordFile          string
	// Timeout is for one operation; zero leaves it to the client.
	Timeout time.Duration
}

// Server is the maker's.
func (b Birth) Server() Server {
	return Server{URL: b.URL, Label: b.Label, Anchors: b.Anchors, AnchorSHA256: b.AnchorSHA256, PasswordFile: b.PasswordFile}
}

// Server is the owner's.
func (e EST) Server() Server {
	return Server{URL: e.URL, Label: e.Label, Anchors: e.Anchors, AnchorSHA256: e.AnchorSHA256, PasswordFile: e.PasswordFile}
}

// A Duration is written as text, a number with its unit: "90s", "5m", "1h30m".
type Duration time.Duration

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes d so that UnmarshalText reads it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a number with its unit.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is no duration: write a number with its unit in quotes, such as \"60s\" or \"5m\"", text)
	}
	*d = Duration(parsed)
	return nil
}

// An Error is a mistake in the configuration, for whoever wrote it.
type Error struct {
	File string // or the name of a variable of the environment; "" if neither
	Line int    // 0 if not known
	Msg  string
}

func (e *Error) Error() string {
	switch {
	case e.File == "":
		return e.Msg
	case e.Line == 0:
		return e.File + ": " + e.Msg
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg)
}
