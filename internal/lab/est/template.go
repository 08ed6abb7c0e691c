package est

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
)

var (
	oidTemplate          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 61} // RFC 9908 3.4
	oidExtensionTemplate = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 62}
)

// A Template says what a request is to look like (RFC 9908 3.4). Where it leaves a
// value out, the client fills in its own.
type Template struct {
	Subject    []TemplateName            // one RDN each; nil if any subject will do
	Key        *pkix.AlgorithmIdentifier // with the curve as parameter; nil if any key will do
	Extensions []pkix.Extension          // those with a nil Value are for the client to fill in
	Challenge  bool                      // the request is to be bound to its connection (RFC 7030 3.5)
}

// A TemplateName is an attribute of a subject.
type TemplateName struct {
	Type  asn1.ObjectIdentifier
	Value string // empty: the client's
}

// CSRAttrs is t as an answer to csrattrs.
func (t Template) CSRAttrs() ([]byte, error) {
	type attribute struct {
		Type   asn1.ObjectIdentifier
		Values []any `asn1:"set"`
	}
	type extension struct {
		ID       asn1.ObjectIdentifier
		Critical bool          `asn1:"optional"`
		Value    asn1.RawValue `asn1:"optional"`
	}
	type name struct {
		Type  asn1.ObjectIdentifier
		Value string `asn1:"optional,utf8"`
	}
	type relativeSET []name
	type keyInfo struct{ Algorithm pkix.AlgorithmIdentifier } // and no key
	var info struct {
		Version    int
		Subject    []relativeSET `asn1:"omitempty"`
		Key        keyInfo       `asn1:"optional,tag:0"`
		Attributes []attribute   `asn1:"set,tag:1"`
	}
	for _, n := range t.Subject {
		info.Subject = append(info.Subject, relativeSET{name(n)})
	}
	if t.Key != nil {
		info.Key.Algorithm = *t.Key
	}
	if t.Challenge {
		info.Attributes = append(info.Attributes, attribute{oidChallenge, []any{}})
	}
	var list []extension
	for _, e := range t.Extensions {
		made := extension{ID: e.Id, Critical: e.Critical}
		if e.Value != nil {
			made.Value = asn1.RawValue{Tag: asn1.TagOctetString, Bytes: e.Value}
		}
		list = append(list, made)
	}
	if list != nil {
		info.Attributes = append(info.Attributes, attribute{oidExtensionTemplate, []any{list}})
	}
	der, err := asn1.Marshal([]attribute{{oidTemplate, []any{info}}})
	if err != nil {
		return nil, fmt.Errorf("cannot encode a template: %w", err)
	}
	return der, nil
}

// wantsChallenge reports whether CSR attributes ask for the channel binding: by name
// (RFC 7030 4.5.2), or within a template, beside which nothing counts (RFC 9908 4).
func wantsChallenge(csrAttrs []byte) bool {
	var elements []asn1.RawValue
	if _, err := asn1.Unmarshal(csrAttrs, &elements); err != nil {
		return false
	}
	named := false
	for _, e := range elements {
		kind, values := attributeOf(e)
		switch {
		case kind.Equal(oidTemplate) && len(values) == 1:
			var fields []asn1.RawValue
			if _, err := asn1.Unmarshal(values[0].FullBytes, &fields); err != nil || len(fields) == 0 {
				return false
			}
			return setNames(fields[len(fields)-1].Bytes, oidChallenge)
		case kind.Equal(oidChallenge):
			named = true
		}
	}
	return named
}

// attributeOf reads an AttrOrOID: an attribute, or its type alone.
func attributeOf(e asn1.RawValue) (kind asn1.ObjectIdentifier, values []asn1.RawValue) {
	var attr struct {
		Type   asn1.ObjectIdentifier
		Values []asn1.RawValue `asn1:"set"`
	}
	if _, err := asn1.Unmarshal(e.FullBytes, &attr); err == nil {
		return attr.Type, attr.Values
	}
	_, _ = asn1.Unmarshal(e.FullBytes, &kind) // what is neither has no kind
	return kind, nil
}

// setNames reports whether there is an attribute of a kind in the content of a SET.
func setNames(content []byte, want asn1.ObjectIdentifier) bool {
	for len(content) > 0 {
		var e asn1.RawValue
		rest, err := asn1.Unmarshal(content, &e)
		if err != nil {
			return false
		}
		if kind, _ := attributeOf(e); kind.Equal(want) {
			return true
		}
		content = rest
	}
	return false
}
