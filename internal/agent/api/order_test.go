package api_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"birthmark/internal/agent/api"
)

// TestOrdersAreTakenOrRefused sends orders through the door as programs would.
func TestOrdersAreTakenOrRefused(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "run")
	var got []api.Install
	var verdicts []api.Verdict
	doors, err := api.Open(folder, nil, api.Agent{
		Install: func(_ context.Context, o api.Install) (string, error) {
			got = append(got, o)
			switch o.From {
			case "/forged":
				return "", &api.Refusal{Status: http.StatusUnprocessableEntity, Stage: "cms", Code: "signature", Reason: "the signature is not right"}
			case "/trouble":
				return "", errors.New("input/output error")
			}
			return "1.1.0+sv1", nil
		},
		Judge: func(v api.Verdict) error { verdicts = append(verdicts, v); return nil },
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer doors.Close()

	body, err := api.Post(t.Context(), folder, "/v1/firmware/install", api.Install{From: "/good", Restart: true})
	if err != nil || !strings.Contains(string(body), `"1.1.0+sv1"`) || len(got) != 1 || !got[0].Restart {
		t.Errorf("a good order: %s, %v; the agent got %+v", body, err, got)
	}
	if _, err := api.Post(t.Context(), folder, "/v1/firmware/verdict", api.Verdict{Unwell: "x"}); err != nil || len(verdicts) != 1 || verdicts[0].Unwell != "x" {
		t.Errorf("a verdict: %v; the agent got %+v", err, verdicts)
	}
	for _, c := range []struct {
		name, path string
		order      any
		status     int
		want       string
	}{
		{"what the agent refuses comes back whole", "/v1/firmware/install", api.Install{From: "/forged"}, 422, "cms: the signature is not right"},
		{"trouble is told", "/v1/firmware/install", api.Install{From: "/trouble"}, 500, "input/output error"},
		{"a member that is not known", "/v1/firmware/install", map[string]any{"from": "/a", "force": true}, 400, "force"},
		{"a member of another kind", "/v1/firmware/install", map[string]any{"from": 1}, 400, "cannot be read"},
		{"no object", "/v1/firmware/install", []string{"/a"}, 400, "cannot be read"},
		{"objects in it", "/v1/firmware/install", map[string]any{"from": map[string]any{}}, 400, "without others in it"},
		{"one that is too long", "/v1/firmware/install", api.Install{From: "/" + strings.Repeat("x", 9000)}, 413, "at most 8192 bytes"},
		{"a path that nobody has", "/v1/firmware/erase", struct{}{}, 404, "no such path"},
		{"an order where something is only told", "/v1/status", struct{}{}, 405, "only GET"},
	} {
		_, err := api.Post(t.Context(), folder, c.path, c.order)
		var refusal *api.Refusal
		if !errors.As(err, &refusal) || refusal.Status != c.status || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want status %d and %q", c.name, err, c.status, c.want)
		}
	}
	if _, err := api.Get(t.Context(), folder, api.Control, "/v1/firmware/install"); err == nil || !strings.Contains(err.Error(), "405") {
		t.Errorf("an order by GET: %v, want status 405", err)
	}
	if _, err := api.Post(t.Context(), t.TempDir(), "/v1/firmware/install", api.Install{}); !errors.Is(err, api.ErrNobody) {
		t.Errorf("where no agent is: %v, want %v", err, api.ErrNobody)
	}
	if len(got) != 3 {
		t.Errorf("the agent got %d orders, want only those that can be read", len(got))
	}
}
