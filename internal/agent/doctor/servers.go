package doctor

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"

	"birthmark/internal/agent"
	"birthmark/internal/config"
	"birthmark/pkg/enroll"
	"birthmark/pkg/lifecycle"
)

// est asks both EST servers for their CA's certificates, as anybody may.
func (x *examination) est(ctx context.Context) []Check {
	ctx, cancel := context.WithTimeoutCause(ctx, serverLimit, fmt.Errorf("no answer within %v", serverLimit))
	defer cancel()
	checks := []Check{{Name: "est maker", Result: OK, Found: "none: this fleet has no birth CA"}, {}}
	var both sync.WaitGroup
	if x.Birth.Mode == config.BirthPassword {
		both.Go(func() { checks[0] = x.estServer(ctx, "est maker", x.Birth.Server()) })
	}
	both.Go(func() { checks[1] = x.estServer(ctx, "est owner", x.EST.Server()) })
	both.Wait()
	if c := &checks[0]; c.Result == Fail && x.device.State != lifecycle.Blank {
		c.Result, c.Unreachable = Warn, false
		c.Found += "; it is not needed any more: the device is born"
	}
	return checks
}

func (x *examination) estServer(ctx context.Context, name string, s config.Server) Check {
	s.PasswordFile = "" // it is none of a doctor's business
	client, err := agent.EST(s, enroll.Config{Clock: x.clock})
	if err != nil {
		return Check{Name: name, Result: Fail, Found: err.Error(), Do: "correct the configuration"}
	}
	certs, err := client.CACerts(ctx)
	if err != nil {
		return failed(name, err)
	}
	return Check{Name: name, Result: OK, Found: fmt.Sprintf("%s is trusted, and sends %d CA certificates", s.URL, len(certs))}
}

// brokers makes a TLS handshake with every broker. One that works is enough for the
// device, all of them should.
func (x *examination) brokers(ctx context.Context) []Check {
	ctx, cancel := context.WithTimeoutCause(ctx, serverLimit, fmt.Errorf("no answer within %v", serverLimit))
	defer cancel()
	urls := x.Broker.URLs
	if len(urls) == 0 {
		return []Check{{Name: "broker", Result: Fail, Found: "none is configured", Do: "set broker.urls"}}
	}
	errs := make([]error, len(urls))
	var all sync.WaitGroup
	for i := range urls {
		all.Go(func() { errs[i] = x.broker(ctx, urls[i]) })
	}
	all.Wait()
	var checks []Check
	works := false
	for i, err := range errs {
		c := Check{Name: "broker", Result: OK, Found: urls[i] + " is trusted"}
		if err != nil {
			c = failed("broker", fmt.Errorf("cannot connect to %s: %w", urls[i], err))
			c.Do = cmp.Or(c.Do, "is the address right, and does an MQTT broker with TLS listen there?")
		}
		works = works || err == nil
		checks = append(checks, c)
	}
	for i := range checks {
		if works && checks[i].Result == Fail {
			checks[i].Result, checks[i].Unreachable = Warn, false
		}
	}
	return checks
}

// broker makes a TLS handshake with the broker at address, without a certificate of
// ours. Whether the broker then hangs up, because it wants one, makes no difference.
func (x *examination) broker(ctx context.Context, address string) error {
	anchors, err := config.ReadCertificates(x.Broker.Anchors)
	if err != nil {
		return err
	}
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	plain, err := new(net.Dialer).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return err
	}
	defer plain.Close()
	conf := x.clock.TLS(anchors, u.Hostname())
	verify, verified := conf.VerifyConnection, false
	conf.VerifyConnection = func(s tls.ConnectionState) error {
		err := verify(s)
		verified = err == nil
		return err
	}
	err = tls.Client(plain, conf).HandshakeContext(ctx)
	if verified {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var notTLS tls.RecordHeaderError
	if errors.As(err, &notTLS) {
		return fmt.Errorf("it does not speak TLS: %s", strings.TrimPrefix(notTLS.Msg, "tls: "))
	}
	return err
}
