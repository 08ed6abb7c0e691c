package csr

import (
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"birthmark/pkg/cms"
)

// A template is a request with holes in it (RFC 9908, 3.4):
//
//	CertificationRequestInfoTemplate ::= SEQUENCE {
//	  version       INTEGER { v1(0) },
//	  subject       RDNSequenceTemplate OPTIONAL,              -- values may be absent
//	  subjectPKInfo [0] SubjectPublicKeyInfoTemplate OPTIONAL, -- the key may be absent
//	  attributes    [1] Attributes }                           -- IMPLICIT tags
type (
	nameTemplate []relativeSET
	relativeSET  []attributeTemplate // a SET, by the end of its name
	// Types are as they come: their numbers may be larger than encoding/asn1 takes.
	attributeTemplate struct {
		Type  asn1.RawValue
		Value asn1.RawValue `asn1:"optional"`
	}
)

const (
	commonNameType   = "2.5.4.3"
	serialNumberType = "2.5.4.5"
)

// parseTemplate reads the one template among the values of an attribute.
func parseTemplate(values []asn1.RawValue) (a Attrs, err error) {
	if len(values) != 1 {
		return a, fmt.Errorf("%d templates in one attribute", len(values))
	}
	var fields []asn1.RawValue
	if _, err := asn1.Unmarshal(values[0].FullBytes, &fields); err != nil {
		return a, fmt.Errorf("template: %w", err)
	}
	next := func(class, tag int) (asn1.RawValue, bool) {
		if len(fields) == 0 || fields[0].Class != class || fields[0].Tag != tag {
			return asn1.RawValue{}, false
		}
		field := fields[0]
		fields = fields[1:]
		return field, true
	}
	version, ok := next(asn1.ClassUniversal, asn1.TagInteger)
	if !ok || len(version.Bytes) != 1 || version.Bytes[0] != 0 {
		return a, errors.New("template: its version is not 1")
	}
	if subject, ok := next(asn1.ClassUniversal, asn1.TagSequence); ok {
		if a.subject, err = parseNameTemplate(subject.FullBytes); err != nil {
			return a, fmt.Errorf("template: subject: %w", err)
		}
	}
	if key, ok := next(asn1.ClassContextSpecific, 0); ok {
		kind, err := kindOf(key.Bytes)
		if err != nil {
			return a, fmt.Errorf("template: key: %w", err)
		}
		a.keys = []string{kind}
	}
	attributes, ok := next(asn1.ClassContextSpecific, 1)
	if !ok || len(fields) > 0 {
		return a, errors.New("template: other fields than those of RFC 9908, 3.4")
	}
	if err := a.addTemplateAttributes(attributes.Bytes); err != nil {
		return a, fmt.Errorf("template: %w", err)
	}
	return a, nil
}

func parseNameTemplate(der []byte) (name nameTemplate, err error) {
	if len(der) > dnLimit {
		return nil, fmt.Errorf("%d bytes, limit %d", len(der), dnLimit)
	}
	if _, err := asn1.Unmarshal(der, &name); err != nil {
		return nil, err
	}
	n := 0
	for _, relative := range name {
		n += len(relative)
		for _, a := range relative {
			if !isOID(a.Type) {
				return nil, errors.New("a type that is no object identifier")
			}
		}
	}
	if n > rdnLimit {
		return nil, fmt.Errorf("%d attributes, limit %d", n, rdnLimit)
	}
	return name, nil
}

// kindOf is the kind of key that a SubjectPublicKeyInfoTemplate asks for. Of an RSA
// key, the size is that of a key which nobody has.
func kindOf(content []byte) (string, error) {
	var algorithm attributeTemplate // of the same shape
	rest, err := asn1.Unmarshal(content, &algorithm)
	if err != nil {
		return another, err
	}
	switch parameters := algorithm.Value; dotted(algorithm.Type) {
	case keyEC:
		if isOID(parameters) {
			return curves[dotted(parameters)], nil
		}
		return anyEC, nil
	case keyRSA:
		if len(rest) == 0 {
			return rsa2048, nil
		}
		var bits asn1.BitString
		var key struct {
			N *big.Int
			E asn1.RawValue
		}
		if rest, err = asn1.Unmarshal(rest, &bits); err != nil || len(rest) > 0 {
			return another, errors.New("what follows the algorithm is no key")
		}
		if err := cms.CheckDER(bits.Bytes); err != nil {
			return another, err
		}
		if _, err := asn1.Unmarshal(bits.Bytes, &key); err != nil {
			return another, err
		}
		if bytes := (key.N.BitLen() + 7) / 8; bytes == 2048/8 {
			return rsa2048, nil
		}
	}
	return another, nil
}

// addTemplateAttributes notes what is in the attributes of a template. Of lists of
// extensions there is one at most, of either kind.
func (a *Attrs) addTemplateAttributes(content []byte) error {
	listed := false
	for n := 1; len(content) > 0; n++ {
		var item asn1.RawValue
		rest, err := asn1.Unmarshal(content, &item)
		if err != nil {
			return err
		}
		if content = rest; n > attrsLimit {
			return fmt.Errorf("more than %d attributes", attrsLimit)
		}
		w, err := parseWish(item)
		if err != nil {
			return err
		}
		switch w.kind {
		case attrChallengePassword:
			a.ChallengePassword = true
		case attrExtensionRequest, attrExtensionTemplate:
			if listed || len(w.values) != 1 {
				return errors.New("more or less than one list of extensions")
			}
			listed = true
			if a.extensions, err = harmlessExtensions(w.values[0].FullBytes, w.kind == attrExtensionTemplate); err != nil {
				return err
			}
		}
	}
	return nil
}

// fill is the template of a name with its holes filled from subject, the name that the
// device has. A common name is the device's own, whatever stands in the template: it is
// the id by which everybody knows the device. A device without a serial number fills in
// its common name. What it cannot fill it leaves out.
func (t nameTemplate) fill(subject []byte) ([]byte, error) {
	var own nameTemplate
	if _, err := asn1.Unmarshal(subject, &own); err != nil {
		return nil, err
	}
	ours := map[string]attributeTemplate{}
	for _, relative := range own {
		for _, a := range relative {
			if _, has := ours[dotted(a.Type)]; !has {
				ours[dotted(a.Type)] = a
			}
		}
	}
	name, isNamed := ours[commonNameType]
	if _, has := ours[serialNumberType]; isNamed && !has {
		if value, err := asn1.MarshalWithParams(string(name.Value.Bytes), "printable"); err == nil {
			ours[serialNumberType] = attributeTemplate{Value: asn1.RawValue{FullBytes: value}}
		}
	}
	filled, said := nameTemplate{}, false
	for _, relative := range t {
		var full relativeSET
		for _, a := range relative {
			switch kind := dotted(a.Type); {
			case kind == commonNameType && isNamed && said: // a second would be another name
				continue
			case kind == commonNameType && isNamed:
				a.Value, said = name.Value, true
			case a.Value.FullBytes == nil:
				a.Value = ours[kind].Value
			}
			if a.Value.FullBytes != nil {
				full = append(full, a)
			}
		}
		if len(full) > 0 {
			filled = append(filled, full)
		}
	}
	if isNamed && !said {
		filled = append(filled, relativeSET{name})
	}
	return asn1.Marshal(filled)
}
