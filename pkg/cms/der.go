package cms

import (
	"errors"
	"fmt"
)

// The form bit of an identifier octet: contents are elements (X.690, 8.1.2.5).
const constructed = 0x20

// The universal types of X.690 section 8, one bit a number: those that always are
// constructed, and those that BER may cut into segments. All others always are
// primitive.
const (
	structures = 1<<8 | 1<<11 | 1<<16 | 1<<17 | 1<<29
	segmented  = 1<<3 | 1<<4 | 1<<7 | 1<<12 | 0x7ff<<18 | 1<<30
)

var (
	errTruncated = errors.New("it ends within an element")
	errDepth     = fmt.Errorf("elements nest more than %d deep", DepthLimit)
	errTrailing  = errors.New("bytes after the end")
)

// CheckDER reports whether b is exactly one element, of which everything that can
// be seen without knowing its type is DER: definite lengths in the fewest octets,
// strings in one piece, tag numbers up to 30, nesting up to [DepthLimit]. It takes
// time linear in len(b), which it does not limit.
//
// It does not look at contents of primitive elements, nor at the order of a SET.
func CheckDER(b []byte) error {
	rest, err := checkDER(b, 1)
	if err == nil && len(rest) != 0 {
		err = errTrailing
	}
	if err != nil {
		return fmt.Errorf("not DER: %w", err)
	}
	return nil
}

// checkDER checks the first element of b and returns what follows it.
func checkDER(b []byte, depth int) (rest []byte, err error) {
	if depth > DepthLimit {
		return nil, errDepth
	}
	e, rest, err := split(b, false)
	if err != nil || e.tag&constructed == 0 {
		return rest, err
	}
	for inner := e.contents; len(inner) > 0; {
		if inner, err = checkDER(inner, depth+1); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

// An element is an identifier octet and what it announces.
type element struct {
	tag      byte
	contents []byte
	// indefinite: where the contents end is for the reader to find. Until then they
	// are all that follows.
	indefinite bool
}

// split takes the first element off b; its contents are not looked at. With ber,
// whatever X.690 section 8 allows is let through, else only what section 10 does.
func split(b []byte, ber bool) (e element, rest []byte, err error) {
	if len(b) < 2 {
		return e, nil, errTruncated
	}
	e.tag = b[0]
	if err := checkTag(e.tag, ber); err != nil {
		return e, nil, err
	}
	length, b := uint32(b[1]), b[2:]
	if length == 0x80 {
		if !ber || e.tag&constructed == 0 {
			return e, nil, errors.New("a length is indefinite")
		}
		e.contents, e.indefinite = b, true
		return e, nil, nil
	}
	if length > 0x80 {
		octets := int(length & 0x7f)
		if octets > 4 {
			return e, nil, errors.New("a length has more than four octets")
		}
		if len(b) < octets {
			return e, nil, errTruncated
		}
		length = 0
		for _, c := range b[:octets] {
			length = length<<8 | uint32(c)
		}
		if !ber && lengthOctets(length) != octets {
			return e, nil, errors.New("a length is longer than it needs to be")
		}
		b = b[octets:]
	}
	if uint64(length) > uint64(len(b)) {
		return e, nil, errTruncated
	}
	e.contents = b[:length:length]
	return e, b[length:], nil
}

// checkTag refuses identifier octets that nothing has, or that no certificate and
// no message needs.
func checkTag(tag byte, ber bool) error {
	number := tag & 0x1f
	if number == 0x1f {
		return errors.New("a tag number is above 30")
	}
	if tag&0xc0 != 0 { // not universal: either form may be right
		return nil
	}
	bit := uint32(1) << number
	switch isConstructed := tag&constructed != 0; {
	case number == 0:
		return errors.New("end-of-contents octets where there is nothing to end")
	case !isConstructed && bit&structures != 0:
		return fmt.Errorf("tag %#02x is primitive", tag)
	case isConstructed && bit&segmented != 0 && !ber:
		return fmt.Errorf("a string is in segments (tag %#02x)", tag)
	case isConstructed && bit&(segmented|structures) == 0:
		return fmt.Errorf("tag %#02x is constructed", tag)
	}
	return nil
}

// lengthOctets is how many octets a length takes in DER besides the first.
func lengthOctets(n uint32) (octets int) {
	if n < 0x80 {
		return 0
	}
	for ; n != 0; n >>= 8 {
		octets++
	}
	return octets
}
