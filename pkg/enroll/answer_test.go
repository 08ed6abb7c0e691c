package enroll

import (
	"bytes"
	"compress/gzip"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

const rightType = "application/pkcs7-mime"

// respond answers with a status, a media type and a body.
func respond(status int, mediaType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil
		if mediaType != "" {
			w.Header().Set("Content-Type", mediaType)
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

// byHand answers with bytes that net/http would not write.
func byHand(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { hijack(w, text) }
}

// withHeader lets h answer, under one more header line.
func withHeader(name, value string, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(name, value)
		h(w, r)
	}
}

// forOurKey is a good certificate, for the key that ask asks with.
var forOurKey = issuing.device(deviceKey)

// Each row is an answer to simpleenroll that a trusted server may give. What is
// accepted is so because of a server that does it.
func TestAnswers(t *testing.T) {
	good := base64Of(certsOnly(raw(forOurKey)...))
	head := "HTTP/1.1 200 OK\r\nContent-Type: application/pkcs7-mime\r\n"
	for _, tc := range []struct {
		name   string
		answer http.HandlerFunc
		kind   string
		says   string
	}{
		// The media type (RFC 7030, 4.2.3; RFC 8951, 5).
		{"the media type alone", respond(200, rightType, good), "no error", ""},
		{"the media type in capitals", respond(200, "Application/PKCS7-MIME", good), "no error", ""},
		{"smime-type in quotes", respond(200, rightType+`; smime-type="certs-only"`, good), "no error", ""},
		{"a charset and a name", respond(200, rightType+"; charset=UTF-8; name=smime.p7c", good), "no error", ""},
		{"a parameter that cannot be read", respond(200, rightType+"; smime-type", good), "no error", ""},
		{"Content-Transfer-Encoding: base64", withHeader("Content-Transfer-Encoding", "base64", respond(200, rightType, good)), "no error", ""},
		{"Content-Transfer-Encoding: binary", withHeader("Content-Transfer-Encoding", "binary", respond(200, rightType, good)), "no error", ""},
		{"a header line Status: 200 OK", withHeader("Status", "200 OK", respond(200, rightType, good)), "no error", ""},
		{"no media type, since it is an error's text", respond(200, "", "CA\x1b[31m is closed\ntoday"), "answer", `"CA [31m is closed today"`},
		{"HTML", respond(200, "text/html", "<p>login</p>"), "answer", "text/html"},
		{"a media type that is none", respond(200, "/;;", good), "answer", "Content-Type"},
		{"a key of the server's, in two parts", respond(200, "multipart/mixed; boundary=x", good), "answer", "multipart/mixed"},
		{"the media type of a request", respond(200, "application/pkcs10", good), "answer", "want application/pkcs7-mime"},

		// Base64 (RFC 8951, 3.1).
		{"base64 in lines of 64", respond(200, rightType, wrapped(good, "\n")), "no error", ""},
		{"base64 in lines that end in CR LF", respond(200, rightType, wrapped(good, "\r\n")), "no error", ""},
		{"base64 in lines that begin with blanks", respond(200, rightType, wrapped(good, "\n \t")), "no error", ""},
		{"a NUL at the end", respond(200, rightType, good+"\x00"), "no error", ""},
		{"a NUL after the last line's end", respond(200, rightType, good+"\n\x00"), "no error", ""},
		{"a NUL in the middle", respond(200, rightType, good[:40]+"\x00"+good[40:]), "answer", "base64"},
		{"another character in the middle", respond(200, rightType, good[:40]+"*"+good[40:]), "answer", "base64"},
		{"base64 without its last character", respond(200, rightType, strings.TrimRight(good, "=")[:len(good)-5]), "answer", "base64"},
		{"base64 with something after its end", respond(200, rightType, good+"\x00AAAA"), "answer", "base64"},
		{"DER, not base64", respond(200, rightType, string(certsOnly(raw(forOurKey)...))), "answer", "base64"},
		{"nothing at all", respond(200, rightType, ""), "answer", "certs-only"},

		// The message (RFC 5652, 5.1).
		{"PEM of a PKCS7", respond(200, rightType, armoured("PKCS7", certsOnly(raw(forOurKey)...))), "no error", ""},
		{"PEM of a certificate", respond(200, rightType, armoured("CERTIFICATE", forOurKey.Raw)), "answer", "CERTIFICATE"},
		{"PEM of a private key", respond(200, rightType, armoured("PRIVATE KEY", forOurKey.Raw)), "answer", "PRIVATE KEY"},
		{"PEM with text after it", respond(200, rightType, armoured("PKCS7", certsOnly(raw(forOurKey)...))+"x"), "answer", "after the end"},
		{"PEM that breaks off", respond(200, rightType, "-----BEGIN PKCS7-----\nMIA"), "answer", "PEM"},
		{"a certificate without a message around it", respond(200, rightType, base64Of(forOurKey.Raw)), "answer", "certs-only"},
		{"a message without certificates", respond(200, rightType, base64Of(certsOnly())), "answer", "no certificates"},
		{"a message that breaks off", respond(200, rightType, base64Of(certsOnly(raw(forOurKey)...)[:200])), "answer", "certs-only"},
		{"a message with bytes after its end", respond(200, rightType, base64Of(append(certsOnly(raw(forOurKey)...), 0))), "answer", "after the end"},
		{"a message that nests without end", respond(200, rightType, base64Of(bytes.Repeat([]byte{0x30, 0x80}, 100_000))), "answer", "nest"},

		// Size.
		{"a body that breaks off", byHand(head + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(good)+1) + good), "unavailable", "unexpected EOF"},
		{"chunks that break off", byHand(head + fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s", len(good), good)), "unavailable", "unexpected EOF"},
		{"a body without a length, ended by hanging up", byHand(head + "\r\n" + good), "no error", ""},
		{"two lengths", byHand(head + "Content-Length: 1\r\nContent-Length: 2\r\n\r\n" + good), "unavailable", "Content-Length"},
		{"a body without end", endless(http.StatusOK), "answer", "more than 512 KiB"},
		{"an error without end", endless(http.StatusForbidden), "refused", "403"},
		{"a header without end", byHand(head + "X: " + strings.Repeat("x", 1<<20)), "unavailable", "header"},
		{"a thousand times more, compressed", withHeader("Content-Encoding", "gzip", respond(200, rightType, bomb())), "answer", "base64"},

		// HTTP itself.
		{"a status that is none", byHand("HTTP/1.1 OK\r\n\r\n"), "unavailable", "malformed"},
		{"not HTTP", byHand("SSH-2.0-OpenSSH_9.2\r\n\r\n"), "unavailable", "malformed"},
		{"another protocol", byHand("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: mqtt\r\n\r\n"), "answer", "101"},
		{"hanging up", byHand(""), "unavailable", "EOF"},
		{"no content", respond(204, "", ""), "answer", "204"},
		{"several choices", respond(300, "", ""), "answer", "300"},
		{"not modified", respond(304, "", ""), "answer", "304"},
		{"a status beyond all", respond(700, "", ""), "answer", "700"},

		// The server says no (RFC 7030, 4.2.3).
		{"bad request, in plain text", respond(400, "text/plain", "no such\r\n\x07profile"), "refused", "status 400: no such profile"},
		{"bad request, in JSON", respond(400, "application/problem+json", `{"detail":"no"}`), "refused", `{"detail":"no"}`},
		{"bad request, without a word", respond(400, "", ""), "refused", "status 400: Bad Request"},
		{"bad request, in a book", respond(400, "text/plain", strings.Repeat("wor ", 100_000)), "refused", "…"},
		{"bad request, written from right to left", respond(400, "text/plain", "a\u202ebc"), "refused", "400: a bc"},
		{"bad request, not in UTF-8", respond(400, "text/plain", "a\xff\xfeb"), "refused", "400: a b"},
		{"unauthorized", withHeader("WWW-Authenticate", `Basic realm="est"`, respond(401, "", "")), "refused", "status 401: Unauthorized"},
		{"unauthorized, header only", byHand("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"), "refused", "status 401"},
		{"unauthorized, wants Digest", withHeader("WWW-Authenticate", `Digest qop="auth", realm="r", nonce="n"`, respond(401, "", "")), "refused", "wants Digest"},
		{"unauthorized, for a proof of possession", respond(401, "text/plain", "Proof of Possession Mismatch."), "refused", "Proof of Possession Mismatch."},
		{"forbidden", respond(403, "", ""), "refused", "status 403: Forbidden"},
		{"not found", respond(404, "", ""), "refused", "status 404"},
		{"a status of four hundred and some", respond(499, "", ""), "refused", "status 499: no reason given"},

		// The server says: not now.
		{"too many requests", withHeader("Retry-After", "7", respond(429, "", "")), "unavailable", "status 429"},
		{"internal error", respond(500, "text/plain", "stack\ntrace"), "unavailable", "status 500: stack trace"},
		{"out of service", withHeader("Retry-After", "120", respond(503, "", "")), "unavailable", "status 503"},
		{"a gateway without a server", respond(502, "text/html", "<h1>Bad Gateway"), "unavailable", "status 502"},

		// Not decided yet.
		{"accepted", withHeader("Retry-After", "60", respond(202, "", "")), "pending", "1m0s"},
		{"accepted, with a certificate", respond(202, rightType, good), "pending", "1m0s"},
		{"accepted, without end", endless(http.StatusAccepted), "pending", "1m0s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t)
			s.handle[opEnroll] = tc.answer
			issued, err := s.client(t).Enroll(t.Context(), ask())
			check(t, err, tc.kind, tc.says)
			if (err == nil) != (len(issued.Chain) == 2) {
				t.Errorf("got a chain of %d with error %v", len(issued.Chain), err)
			}
			var posts int
			for _, r := range s.requests() {
				if r.Method == http.MethodPost {
					posts++
				}
			}
			if posts != 1 {
				t.Errorf("asked %d times, want once: the caller decides about more", posts)
			}
		})
	}
}

func armoured(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func wrapped(text, end string) string {
	var b strings.Builder
	for len(text) > 64 {
		b.WriteString(text[:64] + end)
		text = text[64:]
	}
	return b.String() + text + end
}

// endless writes until the client has had enough.
func endless(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", rightType)
		w.WriteHeader(status)
		block := bytes.Repeat([]byte("AAAA"), 4<<10)
		for r.Context().Err() == nil {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}
}

// bomb is 64 MiB, packed.
func bomb() string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	block := make([]byte, 1<<20)
	for range 64 {
		z.Write(block)
	}
	must(z.Close())
	return b.String()
}

// Each row is a Retry-After of an answer with status 202.
func TestRetryAfter(t *testing.T) {
	date := now.Add(10 * time.Minute).UTC()
	for _, tc := range []struct {
		name, value, date string
		want              time.Duration
	}{
		{"seconds", "300", "", 5 * time.Minute},
		{"seconds with blanks", " 300 ", "", 5 * time.Minute},
		{"an HTTP-date", date.Format(http.TimeFormat), "", 10 * time.Minute},
		{"an HTTP-date of RFC 850", date.Format("Monday, 02-Jan-06 15:04:05 GMT"), "", 10 * time.Minute},
		{"an HTTP-date of asctime", date.Format(time.ANSIC), "", 10 * time.Minute},
		{"an HTTP-date, by the server's clock, which is a day ahead",
			date.Add(day).Format(http.TimeFormat), now.Add(day).UTC().Format(http.TimeFormat), 10 * time.Minute},
		{"an HTTP-date in the past", now.Add(-time.Hour).UTC().Format(http.TimeFormat), "", waitLeast},
		{"an HTTP-date in a thousand years", now.AddDate(1000, 0, 0).UTC().Format(http.TimeFormat), "", waitMost},
		{"none", "", "", waitDefault},
		{"words", "soon", "", waitDefault},
		{"a fraction", "1.5", "", waitDefault},
		{"zero", "0", "", waitLeast},
		{"negative", "-60", "", waitLeast},
		{"a year", "31536000", "", waitMost},
		{"more than fits", strings.Repeat("9", 100), "", waitMost},
		{"less than fits", "-" + strings.Repeat("9", 100), "", waitLeast},
		{"more nanoseconds than fit", "9223372036854775807", "", waitMost},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t)
			s.handle[opEnroll] = func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Date"] = nil
				if tc.date != "" {
					w.Header().Set("Date", tc.date)
				}
				if tc.value != "" {
					w.Header().Set("Retry-After", tc.value)
				}
				w.WriteHeader(http.StatusAccepted)
			}
			_, err := s.client(t).Enroll(t.Context(), ask())
			check(t, err, "pending", "")
			if got := pendingFor(err); got != tc.want {
				t.Errorf("%q: got %v, want %v", tc.value, got, tc.want)
			}
		})
	}
}

// Each row is an answer to csrattrs (RFC 7030, 4.5.2).
func TestCSRAttrs(t *testing.T) {
	const attrs = "application/csrattrs"
	challenge := []byte{0x30, 0x0b, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x07}
	for _, tc := range []struct {
		name   string
		answer http.HandlerFunc
		want   []byte
		kind   string
		says   string
	}{
		{"a wish", respond(200, attrs, base64Of(challenge)), challenge, "no error", ""},
		{"a wish that ends in NUL", respond(200, attrs, base64Of(challenge)+"\x00"), challenge, "no error", ""},
		{"an empty list", respond(200, attrs, "MAA="), nil, "no error", ""},
		{"an empty body", respond(200, attrs, ""), nil, "no error", ""},
		{"an empty body of no type", respond(200, "", ""), nil, "no error", ""},
		{"no content", respond(204, "", ""), nil, "no error", ""},
		{"not found", respond(404, "text/html", "<h1>Not Found"), nil, "no error", ""},
		{"a wish of another type", respond(200, rightType, base64Of(challenge)), nil, "answer", "want application/csrattrs"},
		{"an OID without a list", respond(200, attrs, base64Of(challenge[2:])), nil, "answer", "SEQUENCE"},
		{"bytes after the list", respond(200, attrs, base64Of(append(challenge, 0x05, 0x00))), nil, "answer", "SEQUENCE"},
		{"a list that breaks off", respond(200, attrs, base64Of(challenge[:9])), nil, "answer", "DER"},
		{"a list in BER", respond(200, attrs, base64Of([]byte{0x30, 0x80, 0x00, 0x00})), nil, "answer", "DER"},
		{"internal error", respond(500, "", ""), nil, "unavailable", "500"},
		{"unauthorized", respond(401, "", ""), nil, "refused", "401"},
		{"accepted", respond(202, "", ""), nil, "answer", "202"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t)
			s.handle[opCSRAttrs] = tc.answer
			got, err := s.client(t).CSRAttrs(t.Context())
			check(t, err, tc.kind, tc.says)
			if !bytes.Equal(got, tc.want) || (got == nil) != (tc.want == nil) {
				t.Errorf("got %x, want %x", got, tc.want)
			}
		})
	}
}
