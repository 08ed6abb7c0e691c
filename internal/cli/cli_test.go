package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/spf13/cobra"
)

var errPending = errors.New("not yet")

// program has one verb, which ends with err.
func program(err error) Program {
	root := &cobra.Command{Use: "prog"}
	root.AddCommand(&cobra.Command{Use: "verb", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return err }})
	return Program{
		Command: root,
		Hint: func(err error) string {
			if errors.Is(err, errPending) {
				return "come back"
			}
			return ""
		},
		ExitCode: func(err error) int {
			if errors.Is(err, errPending) {
				return Unavailable
			}
			return Refused
		},
	}
}

func TestHowARunEnds(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		err  error
		code int
		says string
	}{
		{"done", []string{"verb"}, nil, Done, ""},
		{"an error has a line", []string{"verb"}, errors.New("no"), Refused, "prog: no\n"},
		{"and its next step", []string{"verb"}, errPending, Unavailable, "prog: not yet (come back)\n"},
		{"several have a line each", []string{"verb"}, Errors{errors.New("one"), errPending}, Unavailable, "prog: one\nprog: not yet (come back)\n"},
		{"nothing reaches the terminal", []string{"verb"}, errors.New("a\x1b[2Jb\r\nc\u202e"), Refused, "prog: a [2Jb c\n"},
		{"an unknown verb", []string{"word"}, nil, Usage, "prog: unknown command \"word\" for \"prog\"\n"},
		{"an unknown flag", []string{"verb", "--flag"}, nil, Usage, "prog: unknown flag: --flag\n"},
		{"an argument too many", []string{"verb", "word"}, nil, Usage, "prog: unknown command \"word\" for \"prog verb\"\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var stderr bytes.Buffer
			code := program(tc.err).run(t.Context(), tc.args, &stderr)
			if code != tc.code || stderr.String() != tc.says {
				t.Errorf("exit code %d, said %q; want %d, %q", code, stderr.String(), tc.code, tc.says)
			}
		})
	}
}

func TestJSONHasNothingForTheTerminal(t *testing.T) {
	var out bytes.Buffer
	in := map[string]string{"text": "Gerät\n\x1b[2J\x7f\u009b2J\u202eexe.\U000e0041<&>"}
	if err := PrintJSON(&out, in); err != nil {
		t.Fatal(err)
	}
	want := "{\n  \"text\": \"Gerät\\n\\u001b[2J\\u007f\\u009b2J\\u202eexe.\\udb40\\udc41<&>\"\n}\n"
	if got := out.String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	var back map[string]string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back["text"] != in["text"] {
		t.Errorf("read again it is %q (%v), want %q", back["text"], err, in["text"])
	}
}
