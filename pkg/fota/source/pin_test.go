package source

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// modified answers without an ETag.
func modified(at time.Time, data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", at, bytes.NewReader(data))
	}
}

func TestAPinLeadsBackToTheSameFile(t *testing.T) {
	old := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		name   string
		server http.HandlerFunc
		want   string
	}{
		{"with an ETag", file(released), `{"url":"https://example.com/release.raucb","size":2097152,"etag":"\"v1\""}`},
		{"with a Last-Modified", modified(old, released), `{"url":"https://example.com/release.raucb","size":2097152,"last_modified":"Fri, 01 Jan 1999 00:00:00 GMT"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, opts := serve(t, tc.server)
				text, err := json.Marshal(mustOpen(t, opts).Pin())
				if err != nil || string(text) != tc.want {
					t.Fatalf("got the pin %s and error %v, want %s", text, err, tc.want)
				}
				var pin Pin
				if err := json.Unmarshal(text, &pin); err != nil {
					t.Fatal(err)
				}
				r, err := Resume(t.Context(), pin, opts)
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				got, err := sum(r, 4096)
				if want := sha256.Sum256(released); err != nil || got != want {
					t.Errorf("got %x and error %v, want %x", got, err, want)
				}
			})
		})
	}
}

func TestAPinRefusesAnotherFile(t *testing.T) {
	old := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	byETag := Pin{URL: address, Size: int64(len(released)), ETag: `"v1"`}
	byDate := Pin{URL: address, Size: int64(len(released)), LastModified: old.Format(http.TimeFormat)}
	for _, tc := range []struct {
		name   string
		pin    Pin
		server http.HandlerFunc
	}{
		{"of another ETag", byETag, version1(`"v2"`, released)},
		{"of another ETag, from a server that does not know If-Range", byETag, headed("ETag", `"v2"`)},
		{"of the same ETag, and longer", byETag, version1(`"v1"`, random(len(released)+1))},
		{"of another date", byDate, modified(old.Add(time.Second), released)},
		{"of another date, from a server that does not know If-Range", byDate, headed("Last-Modified", old.Add(time.Second).Format(http.TimeFormat))},
		{"of the same date, and shorter", byDate, modified(old, released[1:])},
		{"of no length", byETag, version1(`"v1"`, nil)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, opts := serve(t, tc.server)
				if _, err := Resume(t.Context(), tc.pin, opts); kind(err) != "changed" {
					t.Errorf("got %v, want an ErrChanged", err)
				}
				if n := m.Dials(); n != 1 {
					t.Errorf("got %d connections, want 1", n)
				}
			})
		})
	}
}

func TestPinsThatAreNone(t *testing.T) {
	for name, pin := range map[string]Pin{
		"empty":                     {},
		"without a size":            {URL: address, ETag: `"v1"`},
		"of a negative size":        {URL: address, Size: -1, ETag: `"v1"`},
		"without a version":         {URL: address, Size: 1},
		"with two versions":         {URL: address, Size: 1, ETag: `"v1"`, LastModified: "Fri, 01 Jan 1999 00:00:00 GMT"},
		"with a weak ETag":          {URL: address, Size: 1, ETag: `W/"v1"`},
		"with a header in its ETag": {URL: address, Size: 1, ETag: "\"v1\r\nX: y\""},
		"with a long ETag":          {URL: address, Size: 1, ETag: `"` + strings.Repeat("v", 1000) + `"`},
		"with a date that is none":  {URL: address, Size: 1, LastModified: "yesterday"},
		"without an address":        {Size: 1, ETag: `"v1"`},
	} {
		if _, err := Resume(t.Context(), pin, Options{}); kind(err) != "final" {
			t.Errorf("%s: got %v, want an error for good", name, err)
		}
	}
}

func TestOnlyHTTPSAddressesAreOpened(t *testing.T) {
	for _, address := range []string{
		"", "/etc/passwd", "release.raucb", "http://example.com/release.raucb", "file:///release.raucb",
		"https://", "https:///release.raucb", "https://:443/", "https://user@example.com/", "https://user:secret@example.com/",
		"https://[", "https://example.com/%zz?token=secret", "https:example.com",
	} {
		_, err := HTTP(t.Context(), address, Options{})
		if kind(err) != "final" {
			t.Errorf("%s: got %v, want an error for good", address, err)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error tells the secret: %v", address, err)
		}
	}
}

// Dates are whole seconds: what was changed just now may be changed again unseen.
func TestAFileThatWasChangedJustNowIsPinnedAMinuteLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		changed := time.Now()
		_, opts := serve(t, modified(changed, released))
		mustOpen(t, opts)
		if took := time.Since(changed); took < time.Minute || took > time.Minute+time.Second {
			t.Errorf("opened after %v, want a minute and up to a second", took)
		}
	})
}
