package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	labelCount     = 32  // labels of a reading
	labelValueSize = 256 // bytes of a label's value
	brokerCount    = 16  // addresses of a broker
	doorsSize      = 92  // bytes of doors.folder: a socket's path has at most 107, unix(7)
)

const (
	digits    = "0123456789"
	lower     = "abcdefghijklmnopqrstuvwxyz"
	idSet     = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + digits + "_-" // one MQTT topic level, one CN
	labelSet  = lower + digits + "_"                                 // of a label in telemetry; no digit first
	caSet     = idSet + ".~"                                         // one level of a URL's path, RFC 3986 2.3
	nameLimit = 64                                                   // characters of any of them
)

var (
	estPaths  = []string{"", "/", "/.well-known/est", "/.well-known/est/"}
	keyKinds  = []string{"P-256", "P-384", "RSA-2048"}
	logLevels = []string{"debug", "info", "warn", "error"}
)

// Check looks for what cannot work, as far as the configuration and the files that
// it names tell. Each error is an *[Error] that names the place, the cause and what
// to do.
func (l *Loaded) Check() []error {
	c := &checker{Loaded: l}
	c.device()
	c.birth()
	c.est()
	c.broker()
	c.firmware()
	c.telemetry()
	c.local()
	c.oneOf("log.level", l.Config.Log.Level, logLevels)
	return c.faults
}

// A checker collects what is wrong.
type checker struct {
	*Loaded
	faults []error
}

// isName reports whether s is 1 to 64 characters of a set. It is no regular
// expression: to compile one that counts to 64 takes a tenth of the agent's start.
func isName(s, set string) bool {
	return s != "" && len(s) <= nameLimit && strings.Trim(s, set) == ""
}

// fault says what is wrong with the setting name, and what to do.
func (c *checker) fault(name, format string, args ...any) {
	o := c.origins[name]
	c.faults = append(c.faults, &Error{File: o.file, Line: o.line, Msg: name + " " + fmt.Sprintf(format, args...)})
}

func (c *checker) oneOf(name, value string, choices []string) {
	if !slices.Contains(choices, value) {
		c.fault(name, "is %q: choose one of %s", clip(value), strings.Join(choices, ", "))
	}
}

func (c *checker) between(name string, d Duration, least, most time.Duration) {
	if time.Duration(d) < least || time.Duration(d) > most {
		c.fault(name, "is %v: choose from %v to %v", d, Duration(least), Duration(most))
	}
}

func (c *checker) device() {
	d := c.Config.Device
	if d.ID != "" && !isName(d.ID, idSet) {
		c.fault("device.id", "is %q: use 1 to 64 of A-Z a-z 0-9 _ -, or leave it out to derive it from the TPM", clip(d.ID))
	}
	if !filepath.IsAbs(d.State) {
		c.fault("device.state", "is %q: name a folder by its whole path", clip(d.State))
	}
	if !tpmAddress(c.Config.TPM.Address) {
		c.fault("tpm.address", "is %q: write /dev/tpmrm0, unix:PATH or tcp:HOST:PORT", clip(c.Config.TPM.Address))
	}
	c.oneOf("tpm.algorithm", c.Config.TPM.Algorithm, keyKinds)
}

// tpmAddress reports whether a TPM can be at address.
func tpmAddress(address string) bool {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return path != ""
	}
	if host, ok := strings.CutPrefix(address, "tcp:"); ok {
		return hostPort(host)
	}
	return filepath.IsAbs(address)
}

func hostPort(address string) bool {
	host, port, err := net.SplitHostPort(address)
	n, errPort := strconv.ParseUint(port, 10, 16)
	return err == nil && errPort == nil && host != "" && n > 0
}

func (c *checker) birth() {
	b := c.Config.Birth
	c.oneOf("birth.mode", b.Mode, []string{BirthPassword, BirthNone})
	if b.Mode != BirthPassword {
		return
	}
	c.server("birth", "maker", b.Server())
	if b.PasswordFile == "" {
		c.fault("birth.password_file", "is missing: name the file with the one-time password, or set birth.mode to %q", BirthNone)
	}
	c.secret("birth.password_file", b.PasswordFile)
}

func (c *checker) est() {
	e := c.Config.EST
	c.server("est", "owner", e.Server())
	if c.Config.Birth.Mode == BirthNone && e.PasswordFile == "" {
		c.fault("est.password_file", "is missing: with birth.mode %q the device has no certificate to show, so it needs a password", BirthNone)
	}
	c.secret("est.password_file", e.PasswordFile)
}

// server checks what both EST servers have; whose says whose CA it is.
func (c *checker) server(section, whose string, s Server) {
	name := section + ".url"
	u, err := url.Parse(s.URL)
	switch {
	case s.URL == "":
		c.fault(name, "is missing: write the address of the EST server of the %s's CA, https://HOST[:PORT]", whose)
	case err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || !slices.Contains(estPaths, u.Path):
		c.fault(name, "is %q: write https://HOST[:PORT]; a label goes into %s.label", clip(s.URL), section)
	}
	if s.Label != "" && !isName(s.Label, caSet) {
		c.fault(section+".label", "is %q: use 1 to 64 of A-Z a-z 0-9 . _ ~ -", clip(s.Label))
	}
	if s.Anchors == "" && s.AnchorSHA256 == "" {
		c.fault(section+".anchors", "is missing: name the file with the root certificate of the %s's CA, or set %s.anchor_sha256", whose, section)
	}
	if s.AnchorSHA256 != "" {
		if _, err := ParseSHA256(s.AnchorSHA256); err != nil {
			c.fault(section+".anchor_sha256", "cannot be used: %v; `openssl x509 -noout -fingerprint -sha256` prints one", err)
		}
	}
	c.anchors(section+".anchors", s.Anchors)
}

// anchors checks that a file of root certificates can be used.
func (c *checker) anchors(name, path string) {
	if path == "" {
		return
	}
	if _, err := ReadCertificates(path); err != nil {
		c.fault(name, "cannot be used: %v; put the root certificate there, in PEM", err)
	}
}

// secret checks that a file with a password can be used. It need not be there: it
// comes late, and goes when it has been used.
func (c *checker) secret(name, path string) {
	if path == "" {
		return
	}
	if _, err := ReadSecret(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.fault(name, "cannot be used: %v; put the password there, one line, readable by the agent", err)
	}
}

func (c *checker) broker() {
	b := c.Config.Broker
	switch {
	case len(b.URLs) == 0:
		c.fault("broker.urls", "is missing: write the addresses of the owner's broker, [\"mqtts://HOST:PORT\"]")
	case len(b.URLs) > brokerCount:
		c.fault("broker.urls", "has %d addresses: keep at most %d", len(b.URLs), brokerCount)
	}
	for _, address := range b.URLs {
		u, err := url.Parse(address)
		if err != nil || u.Scheme != "mqtts" || !hostPort(u.Host) || u.User != nil || strings.TrimSuffix(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
			c.fault("broker.urls", "has %q: write mqtts://HOST:PORT; the port is mostly 8883", clip(address))
		}
	}
	if b.Anchors == "" {
		c.fault("broker.anchors", "is missing: name the file with the root certificate that the broker's chains to")
	}
	c.anchors("broker.anchors", b.Anchors)
	c.between("broker.keepalive", b.KeepAlive, 5*time.Second, 18*time.Hour)
	c.between("broker.reconnect_window", b.ReconnectWindow, 0, time.Hour)
}

func (c *checker) firmware() {
	f := c.Config.Firmware
	c.anchors("firmware.server_anchors", f.ServerAnchors)
	if f.BytesPerSecond < 0 {
		c.fault("firmware.bytes_per_second", "is %d: write the bytes a second, or 0 for no bound", f.BytesPerSecond)
	}
}

func (c *checker) telemetry() {
	t := c.Config.Telemetry
	c.between("telemetry.interval", t.Interval, time.Second, 24*time.Hour)
	if len(t.Labels) > labelCount {
		c.fault("telemetry.labels", "has %d entries: keep at most %d", len(t.Labels), labelCount)
	}
	for name, value := range t.Labels {
		if !isName(name, labelSet) || strings.Contains(digits, name[:1]) {
			c.fault("telemetry.labels", "has the name %q: use a-z 0-9 _, at most 64", clip(name))
		}
		if len(value) > labelValueSize {
			c.fault("telemetry.labels", "has %d bytes in %q: keep at most %d", len(value), clip(name), labelValueSize)
		}
	}
}

// local checks what programs on the device get to see.
func (c *checker) local() {
	folder, textfile := c.Config.Doors.Folder, c.Config.Metrics.Textfile
	switch {
	case !filepath.IsAbs(folder):
		c.fault("doors.folder", "is %q: name a folder by its whole path", clip(folder))
	case len(folder) > doorsSize:
		c.fault("doors.folder", "has %d bytes: the path of a socket is short, keep at most %d", len(folder), doorsSize)
	}
	if textfile != "" && (!filepath.IsAbs(textfile) || filepath.Ext(textfile) != ".prom") {
		c.fault("metrics.textfile", "is %q: name a file by its whole path, ending in .prom", clip(textfile))
	}
}
