package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	orderLimit = 8 << 10          // bytes of an order
	orderTime  = 15 * time.Second // for an order to be taken, or not
)

// An Install is an order to install a bundle.
type Install struct {
	From    string `json:"from"`    // the absolute path of a file, or an https address
	Restart bool   `json:"restart"` // start the system anew for it
}

// A Verdict is what was found of a start of the system.
type Verdict struct {
	Unwell string `json:"unwell"` // what is not well; "" if all is
}

// A Refusal is why an order was not taken.
type Refusal struct {
	Status int    `json:"-"`               // of HTTP
	Stage  string `json:"stage,omitempty"` // of a bundle that was refused
	Code   string `json:"code,omitempty"`
	Reason string `json:"error"`
}

func (r *Refusal) Error() string {
	if r.Stage == "" {
		return r.Reason
	}
	return r.Stage + ": " + r.Reason
}

// orders answers POST at its paths with what comes of it, and leaves all else to others.
type orders struct {
	orders map[string]func(ctx context.Context, body []byte) (any, error)
	others http.Handler
}

func (o orders) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	order, ok := o.orders[r.URL.EscapedPath()]
	switch {
	case !ok:
		o.others.ServeHTTP(w, r)
		return
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed, "only POST is answered here")
		return
	case r.URL.RawQuery != "":
		refuse(w, http.StatusBadRequest, "no query is understood here")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, orderLimit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		refuse(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("an order has at most %d bytes", orderLimit))
		return
	case err != nil:
		refuse(w, http.StatusBadRequest, "the body did not arrive whole")
		return
	}
	ctx, cancel := context.WithTimeoutCause(r.Context(), orderTime, fmt.Errorf("it took more than %v", orderTime))
	defer cancel()
	result, err := order(ctx, body)
	status := http.StatusAccepted
	if err != nil {
		var refusal *Refusal
		if !errors.As(err, &refusal) {
			refusal = &Refusal{Status: http.StatusInternalServerError, Reason: err.Error()}
		}
		status, result = refusal.Status, refusal
	}
	contentType, text, err := inJSON(result)
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(text) // who asked has gone
}

// parse reads an order: one object, and no member that is not known.
func parse[T any](body []byte) (order T, err error) {
	if depth(body) > 1 {
		return order, &Refusal{Status: http.StatusBadRequest, Reason: "an order is one object without others in it"}
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	err = d.Decode(&order)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errors.New("there is something behind it")
		}
	}
	if err != nil {
		return order, &Refusal{Status: http.StatusBadRequest, Reason: "the order cannot be read: " + err.Error()}
	}
	return order, nil
}

func (d *Doors) install(ctx context.Context, body []byte) (any, error) {
	order, err := parse[Install](body)
	if err != nil {
		return nil, err
	}
	version, err := d.agent.Install(ctx, order)
	return struct {
		Version string `json:"version"`
	}{version}, err
}

func (d *Doors) judge(_ context.Context, body []byte) (any, error) {
	verdict, err := parse[Verdict](body)
	if err != nil {
		return nil, err
	}
	return struct{}{}, d.agent.Judge(verdict)
}
