package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

const (
	valueLimit = 1 << 10 // bytes of a value
	depthLimit = 4       // of groups in groups
)

// object writes attributes as one JSON object in their order, nil if there are
// none.
func object(attrs []slog.Attr) json.RawMessage {
	if len(attrs) == 0 {
		return nil
	}
	return group(attrs, 0)
}

func group(attrs []slog.Attr, depth int) json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, a := range attrs {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(text(a.Key))
		b.WriteByte(':')
		b.Write(value(a.Value.Resolve(), depth))
	}
	b.WriteByte('}')
	return b.Bytes()
}

// value writes one value: numbers, truth and groups as themselves, the rest as
// text.
func value(v slog.Value, depth int) json.RawMessage {
	switch v.Kind() {
	case slog.KindBool, slog.KindInt64, slog.KindUint64:
		return json.RawMessage(v.String())
	case slog.KindTime:
		return text(v.Time().UTC().Format(time.RFC3339Nano))
	case slog.KindGroup:
		if depth < depthLimit {
			return group(v.Group(), depth+1)
		}
	}
	return text(fmt.Sprint(v))
}

// text writes a string, cut to its limit.
func text(s string) json.RawMessage {
	s = strings.ToValidUTF8(s, "\ufffd")
	if len(s) > valueLimit {
		s = strings.ToValidUTF8(s[:valueLimit], "") + "…"
	}
	b, err := json.Marshal(s)
	if err != nil {
		panic("audit: " + err.Error()) // valid text can always be written
	}
	return b
}
