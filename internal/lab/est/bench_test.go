package est

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"
)

// BenchmarkEnrolments measures docs/numbers.md, lab-enrolments: devices that come
// with an IDevID, each over a connection of its own with mutual TLS, and go with a
// certificate that is on disk. The devices run on the same machine.
func BenchmarkEnrolments(b *testing.B) {
	dir := b.TempDir()
	w := newWorld(b, dir, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(io.Discard, nil)) })
	born := newDevice(b, "dev-1")
	born.pass = w.password(b, w.maker, "dev-1")
	idevid := born.mustEnrol(b, w.makerEST, "simpleenroll")
	b.SetParallelism(4)
	start := time.Now()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			dev := born.holding(b, idevid, w.maker.Issuing())
			req, err := http.NewRequest(http.MethodPost, w.ownerEST.URL()+root+"simpleenroll", strings.NewReader(string(encode(dev.csr(b)))))
			if err != nil {
				b.Error(err)
				return
			}
			req.Header.Set("Content-Type", "application/pkcs10")
			transport := &http.Transport{TLSClientConfig: dev.tls(w.owner.Root()), DisableKeepAlives: true}
			resp, err := transport.RoundTrip(req)
			if err != nil {
				b.Error(err)
				return
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
				b.Errorf("%s, %v", resp.Status, err)
			}
			resp.Body.Close()
		}
	})
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "lab-enrolments")
}
