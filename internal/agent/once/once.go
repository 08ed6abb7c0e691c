// Package once is `birthmark enroll`: one certificate for one new TPM key, for
// factory scripts and first steps, without a daemon and without its state.
//
// Everything happens in one folder, [Options].Out:
//
//	pending/   key, request and, once it came, certificate: what is under way
//	cert.pem   the certificate, then its chain without the root
//	key.pem    the key, wrapped by the TPM ("TSS2 PRIVATE KEY")
//	pub.pem    the public key
//
// The key and the request are on disk before they are sent, and what was issued
// is on disk before an older result is replaced: the same command line, given
// again after a power cut or a "later" of the CA, goes on where it was, with the same
// key. So it does after silence, 5xx and other words of an overloaded server, and
// after an answer that cannot be used. What the CA refused is forgotten: any 4xx about
// the request itself, such as 400 and 403. One about who asks, or where (401, 404, 405,
// 407, 421, a certificate that is not accepted), ends a request that was never sent
// before; one that the CA may have is kept.
//
// A run holds the lock of the folder (flock(2)), and ends at once where another has it.
package once

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/config"
	"birthmark/pkg/clock"
	"birthmark/pkg/csr"
	"birthmark/pkg/enroll"
	"birthmark/pkg/rot"
	"birthmark/pkg/rot/tpm"
)

// The operations of [Options].Op.
const (
	OpEnroll   = "enroll"   // a certificate for a new key
	OpReenroll = "reenroll" // the successor of ClientCert
	OpCACerts  = "cacerts"  // the CA's certificates
	OpCSRAttrs = "csrattrs" // what the CA wishes to see in a request
)

// retryLeast is the shortest pause before a server is asked again.
const retryLeast = 5 * time.Second

// Options are the flags of the command.
type Options struct {
	Op        string
	Server    config.Server // URL, label, anchors, password
	Username  string
	Algorithm rot.Algorithm

	ClientCert string // PEM, leaf first
	ClientKey  string // PEM: a key of this TPM, or an ordinary key to authenticate with
	TPM        string // address of the TPM

	Subject  string        // RFC 4514; empty: CN derived from the EK
	ReuseKey bool          // reenroll: keep the key of ClientKey
	MaxWait  time.Duration // how long to go on asking a CA that is not ready
	Out      string        // folder

	Progress io.Writer // one line a step
}

// A UsageError is a command line that cannot work.
type UsageError struct{ Msg string }

func (e *UsageError) Error() string { return e.Msg }

// Result says what lies in Options.Out now.
type Result struct {
	Files    []string  `json:"files"`
	Subject  string    `json:"subject,omitempty"`
	Serial   string    `json:"serial,omitempty"`
	NotAfter time.Time `json:"not_after,omitzero"`
	Changes  []string  `json:"changes,omitempty"` // differences from the request that were accepted
}

// Run does what o asks. Errors are those of pkg/enroll and pkg/rot, and
// [UsageError].
func Run(ctx context.Context, o Options) (Result, error) {
	if err := o.check(); err != nil {
		return Result{}, err
	}
	j := &job{Options: o, folder: folder(o.Out)}
	defer j.close()
	unlock, err := j.folder.lock()
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	switch o.Op {
	case OpCACerts:
		return j.caCerts(ctx)
	case OpCSRAttrs:
		return j.csrAttrs(ctx)
	}
	return j.certificate(ctx)
}

func (o *Options) check() error {
	switch {
	case o.Op != OpEnroll && o.Op != OpReenroll && o.Op != OpCACerts && o.Op != OpCSRAttrs:
		return &UsageError{fmt.Sprintf("--op %q: want enroll, reenroll, cacerts or csrattrs", o.Op)}
	case o.Server.URL == "":
		return &UsageError{"--est-url is missing: the address of the EST server, https://HOST[:PORT]"}
	case o.Server.Anchors == "" && o.Server.AnchorSHA256 == "":
		return &UsageError{"--anchors is missing: a PEM file with the root certificate of the EST server"}
	case o.Out == "":
		return &UsageError{"--out is missing: the folder for the result"}
	case (o.ClientCert == "") != (o.ClientKey == ""):
		return &UsageError{"--client-cert and --client-key go together"}
	case (o.Username == "") != (o.Server.PasswordFile == ""):
		return &UsageError{"--username and --password-file go together"}
	case o.Op == OpReenroll && o.ClientCert == "":
		return &UsageError{"--op reenroll needs --client-cert and --client-key: the certificate to renew"}
	case o.Op == OpReenroll && o.Subject != "":
		return &UsageError{"--subject: a renewal keeps the subject of --client-cert"}
	case o.Op != OpReenroll && o.ReuseKey:
		return &UsageError{"--reuse-key goes with --op reenroll"}
	case o.MaxWait < 0:
		return &UsageError{"--max-wait cannot be negative"}
	}
	return nil
}

// A job is one run of the command.
type job struct {
	Options
	folder  folder
	root    rot.Root          // nil until a key of the TPM is needed
	present *x509.Certificate // of ClientCert
	auth    crypto.Signer     // of ClientKey
	ca      *enroll.Client
}

func (j *job) close() {
	if k, ok := j.auth.(rot.Key); ok {
		k.Close()
	}
	if j.root != nil {
		j.root.Close()
	}
}

func (j *job) say(format string, args ...any) { fmt.Fprintf(j.Progress, format+"\n", args...) }

// connect prepares the client; nothing is sent yet.
func (j *job) connect(ctx context.Context) error {
	conf := enroll.Config{Username: j.Username, Clock: clock.Host()}
	if j.ClientCert != "" {
		chain, err := config.ReadCertificates(j.ClientCert)
		if err != nil {
			return err
		}
		if j.auth, err = j.clientKey(ctx); err != nil {
			return err
		}
		j.present = chain[0]
		if !agent.SamePublicKey(j.present, j.auth) {
			return &UsageError{fmt.Sprintf("the key in %s is not the key of the certificate in %s", j.ClientKey, j.ClientCert)}
		}
		conf.Certificate = agent.Credential(chain, j.auth)
	}
	var err error
	j.ca, err = agent.EST(j.Server, conf)
	return err
}

// tpm opens the TPM at first use.
func (j *job) tpm(ctx context.Context) (rot.Root, error) {
	if j.root != nil {
		return j.root, nil
	}
	root, err := tpm.Open(ctx, tpm.Config{Address: j.TPM})
	if err != nil {
		return nil, err
	}
	j.root = root
	return root, nil
}

// clientKey opens the key file to authenticate with: a key of the TPM, or an
// ordinary one such as a factory line's credential.
func (j *job) clientKey(ctx context.Context) (crypto.Signer, error) {
	text, err := config.ReadFile(j.ClientKey)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	switch {
	case block == nil:
		return nil, &UsageError{fmt.Sprintf("%s: no key in PEM form in it", j.ClientKey)}
	case block.Type == "TSS2 PRIVATE KEY":
		root, err := j.tpm(ctx)
		if err != nil {
			return nil, err
		}
		return root.Open(ctx, rot.Blob(text))
	case j.ReuseKey:
		return nil, &UsageError{fmt.Sprintf("--reuse-key: the key in %s is not in the TPM; leave the flag out to get one that is", j.ClientKey)}
	}
	pair, err := tls.LoadX509KeyPair(j.ClientCert, j.ClientKey)
	if err != nil {
		return nil, &UsageError{fmt.Sprintf("cannot use %s: %v", j.ClientKey, err)}
	}
	return pair.PrivateKey.(crypto.Signer), nil
}

func (j *job) caCerts(ctx context.Context) (Result, error) {
	if err := j.connect(ctx); err != nil {
		return Result{}, err
	}
	certs, err := j.ca.CACerts(ctx)
	if err != nil {
		return Result{}, err
	}
	path, err := j.folder.put("cacerts.pem", agent.EncodeChain(certs))
	return Result{Files: []string{path}}, err
}

func (j *job) csrAttrs(ctx context.Context) (Result, error) {
	if err := j.connect(ctx); err != nil {
		return Result{}, err
	}
	der, err := j.ca.CSRAttrs(ctx)
	if err != nil {
		return Result{}, err
	}
	if der == nil {
		der = []byte{0x30, 0x00} // an empty CsrAttrs: no wishes
	}
	path, err := j.folder.put("csrattrs.der", der)
	return Result{Files: []string{path}}, err
}

// certificate gets the certificate that is under way, or a new one.
func (j *job) certificate(ctx context.Context) (Result, error) {
	p, err := j.folder.pending(j.fingerprint())
	if err != nil {
		return Result{}, err
	}
	var changes []string
	// What was issued only has to be shown. Until it is, a renewal in the folder of
	// what it renews may have replaced --client-key and not yet --client-cert.
	if p == nil || p.cert == nil {
		if err := j.connect(ctx); err != nil {
			return Result{}, err
		}
		if p, changes, err = j.ask(ctx, p); err != nil {
			return Result{}, err
		}
	}
	files, err := j.folder.publish(p)
	if err != nil {
		return Result{}, err
	}
	leaf, err := config.ParseCertificates(p.cert)
	if err != nil {
		return Result{}, err
	}
	return Result{Files: files, Subject: leaf[0].Subject.String(), Serial: agent.Serial(leaf[0]), NotAfter: leaf[0].NotAfter, Changes: changes}, nil
}

// ask gets p, or if it is nil a new request, answered.
func (j *job) ask(ctx context.Context, p *pending) (_ *pending, changes []string, err error) {
	before := p != nil
	if !before {
		if p, err = j.request(ctx); err != nil {
			j.folder.discard()
			return nil, nil, err
		}
	} else {
		j.say("going on with the request in %s", j.folder.path("pending"))
	}
	changes, err = j.send(ctx, p, before)
	return p, changes, err
}

// fingerprint says which command line a pending request belongs to.
func (j *job) fingerprint() []string {
	return []string{j.Op, j.Server.URL, j.Server.Label, j.Subject, j.ClientCert, fmt.Sprint(j.ReuseKey)}
}

// request makes the key and the request, and puts both into the folder.
func (j *job) request(ctx context.Context) (*pending, error) {
	root, err := j.tpm(ctx)
	if err != nil {
		return nil, err
	}
	wish, err := agent.Wishes(ctx, j.ca)
	if err != nil {
		return nil, err
	}
	req, err := j.subject(root)
	if err != nil {
		return nil, err
	}
	wish.Apply(&req)
	key, ok := j.auth.(rot.Key)
	if !j.ReuseKey {
		if wished, ok := wish.Algorithm(); ok {
			j.Algorithm = rot.Algorithm(wished)
		}
		if key, err = root.Create(ctx, j.Algorithm); err != nil {
			return nil, err
		}
		defer key.Close()
		j.say("key made in the TPM (%s)", j.Algorithm)
	} else if !ok {
		return nil, &UsageError{"--reuse-key: the key of --client-key is not in the TPM"}
	}
	der, err := csr.Build(req, key)
	if err != nil {
		return nil, err
	}
	p := &pending{Asked: j.fingerprint(), Bind: wish.ChallengePassword, key: key.Blob(), csr: der}
	return p, j.folder.start(p)
}

func (j *job) subject(root rot.Root) (csr.Request, error) {
	if j.Op == OpReenroll {
		return csr.Renewal(j.present), nil
	}
	if j.Subject == "" {
		raw, err := csr.CommonName(agent.DeriveID(root.Identity()))
		return csr.Request{Subject: raw}, err
	}
	raw, err := csr.ParseDN(j.Subject)
	if err != nil {
		return csr.Request{}, &UsageError{fmt.Sprintf("--subject: %v", err)}
	}
	return csr.Request{Subject: raw}, nil
}

// send asks the CA, and goes on asking as long as MaxWait allows. What was issued is in
// the folder when it returns, and what was refused is not. Before, it was asked already.
func (j *job) send(ctx context.Context, p *pending, before bool) (changes []string, err error) {
	root, err := j.tpm(ctx)
	if err != nil {
		return nil, err
	}
	key, err := root.Open(ctx, p.key)
	if err != nil {
		return nil, err
	}
	defer key.Close()
	ask := j.ca.Enroll
	req := agent.Request(p.csr, key, p.Bind)
	if j.Op == OpReenroll {
		ask, req.Current = j.ca.Reenroll, j.present
	}
	deadline := time.Now().Add(j.MaxWait)
	for {
		issued, err := ask(ctx, req)
		if err == nil {
			return issued.Changes, j.folder.issued(p, agent.EncodeChain(issued.Chain))
		}
		if final(err, before) {
			j.folder.forget()
		}
		before = true
		wait, again := agent.RetryAfter(err)
		wait = max(wait, retryLeast)
		if !again || time.Now().Add(wait).After(deadline) {
			return nil, err
		}
		j.say("%v; asking again in %v", err, wait.Round(time.Second))
		if !agent.Pause(ctx, wait+rand.N(wait/10+1)) {
			return nil, ctx.Err()
		}
	}
}

// final says whether no certificate can come of a request any more: the CA refused it.
// Before, the request was sent without such an answer, so that the CA may have it.
//
// Whatever else goes wrong may be another way the next time: a full disk, a server that
// is overloaded, somebody else who answers in the CA's place. Nor is an answer that
// cannot be used the last word: the CA may have issued a certificate, and gives it to
// the same request again.
func final(err error, before bool) bool {
	var refused *enroll.RefusedError
	if !errors.As(err, &refused) {
		return false
	}
	switch refused.Status {
	case 0, http.StatusUnauthorized, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusProxyAuthRequired, http.StatusMisdirectedRequest:
		return !before // about who asks, and where: the request itself was not looked at
	}
	return true
}
