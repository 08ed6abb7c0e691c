package api

import (
	"errors"
	"testing"
)

// FuzzOrder: what is sent is an order, or refused with a reason.
func FuzzOrder(f *testing.F) {
	f.Add([]byte(`{"from":"/a","restart":true}`))
	f.Add([]byte(`{"from":{"from":[]}}`))
	f.Add([]byte(`{} {}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		_, err := parse[Install](body)
		var refusal *Refusal
		if err != nil && (!errors.As(err, &refusal) || refusal.Status != 400 || refusal.Reason == "") {
			t.Errorf("%q: %v", body, err)
		}
	})
}
