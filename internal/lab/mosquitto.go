package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"birthmark/internal/lab/broker"
	"birthmark/pkg/store"
)

// Mosquitto writes what mosquitto 2 needs to be the broker of the lab in the folder
// dir, which is made if it is not there: DIR/mosquitto with mosquitto.conf, acl and a
// folder for its data. It returns the path of mosquitto.conf and the address that is
// in it. The lab may be up, without a broker of its own.
func Mosquitto(ctx context.Context, dir string) (conf, url string, err error) {
	conf, url, err = writeMosquitto(ctx, dir)
	if err != nil {
		return "", "", fmt.Errorf("cannot set up mosquitto in %s: %w", dir, err)
	}
	return conf, url, nil
}

func writeMosquitto(ctx context.Context, dir string) (conf, url string, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", "", err
	}
	// A lab that is up has written all that is needed here.
	f, err := openFolder(ctx, dir)
	if err == nil {
		err = f.close()
	}
	if err != nil && !errors.Is(err, ErrInUse) {
		return "", "", err
	}
	p, err := readPorts(filepath.Join(dir, "lab.json"))
	if err != nil {
		return "", "", err
	}
	place := filepath.Join(dir, "mosquitto")
	conf = filepath.Join(place, "mosquitto.conf")
	certAndKey := filepath.Join(dir, Owner, "server-"+brokerName+".pem")
	m := broker.Mosquitto{
		Port: p.Broker,
		CA:   filepath.Join(dir, "device", "owner-root.pem"),
		Cert: certAndKey, Key: certAndKey,
		ACL:  filepath.Join(place, "acl"),
		Data: filepath.Join(place, "data"),
	}
	if os.Geteuid() == 0 {
		// Its own user could not read the key.
		m.User = "root"
	}
	text, err := broker.MosquittoConfig(m)
	if err != nil {
		return "", "", err
	}
	if err := os.MkdirAll(m.Data, 0o700); err != nil {
		return "", "", err
	}
	if err := store.WriteFile(m.ACL, []byte(broker.ACL()), 0o600); err != nil {
		return "", "", err
	}
	return conf, p.brokerURL(), store.WriteFile(conf, []byte(text), 0o600)
}
