package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"birthmark/internal/lab"
	"birthmark/internal/lab/sign"
	"birthmark/test/qemu/machine"
)

// upLab brings up a lab on the host's loopback interface that a virtual device
// reaches. heard is told of what devices publish; it may be nil.
func upLab(ctx context.Context, dir string, log *slog.Logger, heard func(client, topic string, payload []byte)) (*lab.Lab, error) {
	return lab.Up(ctx, lab.Options{Dir: dir, Hosts: []string{machine.Host}, Log: log, Heard: heard})
}

// birth is what the factory gives a device: where its CAs and its broker are, whom to
// believe, also about firmware, and the password that its first certificate costs.
func birth(l *lab.Lab, id string) (map[string][]byte, error) {
	password, err := l.NewPassword(lab.Maker, id)
	if err != nil {
		return nil, err
	}
	inside := func(url string) string { return strings.Replace(url, "127.0.0.1", machine.Host, 1) }
	files := map[string][]byte{
		"password": []byte(password + "\n"),
		"birthmark.toml": fmt.Appendf(nil, `[device]
id = %q

[birth]
url = %q
anchors = "/run/lab/maker-root.pem"
password_file = "credential:birth-password"

[est]
url = %q
anchors = "/run/lab/owner-root.pem"

[broker]
urls = [%q]
anchors = "/run/lab/owner-root.pem"
reconnect_window = "2s"

[telemetry]
interval = "5s"
`, id, inside(l.MakerURL()), inside(l.OwnerURL()), inside(l.BrokerURL())),
	}
	firmware, err := sign.Lab(l.Dir())
	if err != nil {
		return nil, err
	}
	device := filepath.Join(l.Dir(), "device")
	for name, path := range map[string]string{
		"maker-root.pem": filepath.Join(device, "maker-root.pem"), "owner-root.pem": filepath.Join(device, "owner-root.pem"),
		"anchors.pem": firmware.Anchors, "signing-cas.pem": firmware.SigningCAs, "crls.pem": firmware.CRLs,
	} {
		if files[name], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	return files, nil
}
