package csr

import (
	"slices"
	"testing"

	"birthmark/internal/promises"
)

// TestEST keeps the rows of docs/est.md that are about a request.
func TestEST(t *testing.T) {
	promises.Keep(t, "est.md", map[int]func(*testing.T){
		14: TestRenewalRepeatsTheNamesByteForByte,
		15: TestChallengeAddsThePasswordAndNothingElse,
		17: TestChallengeAddsThePasswordAndNothingElse,
		20: func(t *testing.T) {
			for _, tc := range []struct {
				name string
				der  []byte
				want bool
			}{
				{"by name", attrs(oid(attrChallengePassword)), true},
				{"as an attribute", attrs(attr(attrChallengePassword)), true},
				{"in a template", attrs(template(nil, nil, attr(attrChallengePassword))), true},
				{"beside a template", attrs(oid(attrChallengePassword), template(nil, nil)), false},
				{"not at all", attrs(oid("1.2.3")), false},
			} {
				if a, err := ParseAttrs(tc.der); err != nil || a.ChallengePassword != tc.want {
					t.Errorf("%s: wanted %v, %v, want %v", tc.name, a.ChallengePassword, err, tc.want)
				}
			}
		},
		36: func(t *testing.T) {
			TestParseAttrsExamples(t)
			TestParseAttrsPassesOverWhatItDoesNotKnow(t)
		},
		37: func(t *testing.T) {
			TestApplyCopiesValues(t)
			TestParseAttrsRefuses(t)
		},
		38: func(t *testing.T) {
			TestTheTemplateOfTheStandardIsFilled(t)
			TestATemplateMakesWhatStandsBesideItVoid(t)
		},
		48: func(t *testing.T) {
			ca := enc(0x30, enc(0x01, []byte{0xff}))
			sign := enc(0x03, []byte{2, 0x04})
			for _, list := range [][]byte{
				attr(attrExtensionRequest, enc(0x30, extension(basicType, ca), extension(usageType, sign))),
				template(nil, nil, attr(attrExtensionTemplate, enc(0x30, extension(basicType, ca), extension(usageType, sign)))),
			} {
				a, err := ParseAttrs(attrs(list))
				if got := applied(a, Request{Subject: commonName(t, "dev-1")}); err != nil || !slices.Equal(got, nil) {
					t.Errorf("% x: asks for %q, %v, want nothing", list, got, err)
				}
			}
		},
	})
}
