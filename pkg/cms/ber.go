package cms

import (
	"bytes"
	"errors"
	"fmt"
)

// toDER rewrites a message in BER as DER, as far as that can be done without
// knowing types: lengths become definite and short, strings in segments are joined.
// The order of a SET and the contents of primitive elements stay. What is DER
// already comes out as it is.
//
// It takes two passes of linear time. The first lists the pieces of the result, in
// order, and works out lengths; the second writes them down. Nothing is copied
// before its place is known.
func toDER(b []byte) ([]byte, error) {
	var c converter
	size, rest, err := c.element(b, 1)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, errTrailing
	}
	der := make([]byte, 0, size)
	for _, p := range c.pieces {
		if p.tag != 0 {
			der = appendHeader(der, p.tag, p.length)
		}
		der = append(der, p.contents...)
	}
	return der, nil
}

type converter struct {
	pieces []piece
	// While the segments of a string are read: their tag, and of a bit string the
	// octet that says how many bits of its last one are unused.
	segment byte
	unused  []byte
}

// A piece of DER is the header of an element, if it has a tag, and then contents,
// of which there may be more in the pieces that follow.
type piece struct {
	tag      byte
	length   int // in the header
	contents []byte
}

// element lists the first element of b. It returns how many bytes of DER that
// makes, and what follows the element in b.
func (c *converter) element(b []byte, depth int) (size int, rest []byte, err error) {
	if depth > DepthLimit {
		return 0, nil, errDepth
	}
	if len(c.pieces) >= elementLimit {
		return 0, nil, fmt.Errorf("more than %d elements", elementLimit)
	}
	e, rest, err := split(b, true)
	if err != nil {
		return 0, nil, err
	}
	if c.segment != 0 {
		return c.segmentOf(e, rest, depth)
	}
	at := len(c.pieces)
	c.pieces = append(c.pieces, piece{tag: e.tag})
	length := len(e.contents)
	switch {
	case e.tag&constructed == 0:
		c.pieces[at].contents = e.contents
	case isString(e.tag):
		c.pieces[at].tag &^= constructed
		length, rest, err = c.join(e, rest, depth)
	default:
		length, rest, err = c.children(e, rest, depth)
	}
	c.pieces[at].length = length
	return 2 + lengthOctets(uint32(length)) + length, rest, err
}

// children lists the elements within e. An indefinite one ends with two zero octets
// (X.690, 8.1.5), and only then rest begins.
func (c *converter) children(e element, rest []byte, depth int) (size int, _ []byte, err error) {
	inner := e.contents
	for {
		if e.indefinite {
			if after, ended := bytes.CutPrefix(inner, []byte{0, 0}); ended {
				return size, after, nil
			}
		} else if len(inner) == 0 {
			return size, rest, nil
		}
		var n int
		if n, inner, err = c.element(inner, depth+1); err != nil {
			return 0, nil, err
		}
		size += n
	}
}

const (
	tagBitString   = 0x03
	tagOctetString = 0x04
)

// join lists the segments of the string e. They are octet strings, whatever e is,
// except those of a bit string (X.690, 8.6 and 8.7; character strings and times are
// encoded as octet strings).
func (c *converter) join(e element, rest []byte, depth int) (size int, _ []byte, err error) {
	if e.tag&^constructed == tagBitString {
		c.segment, c.unused = tagBitString, []byte{0}
		c.pieces = append(c.pieces, piece{contents: c.unused})
		size = 1
	} else {
		c.segment = tagOctetString
	}
	n, rest, err := c.children(e, rest, depth)
	c.segment = 0
	return size + n, rest, err
}

// segmentOf lists a segment, which may consist of segments itself. Only in the last
// one of a bit string may bits be unused (8.6.4).
func (c *converter) segmentOf(e element, rest []byte, depth int) (size int, _ []byte, err error) {
	if e.tag&^constructed != c.segment {
		return 0, nil, errors.New("a string has a segment of another type")
	}
	if e.tag&constructed != 0 {
		return c.children(e, rest, depth)
	}
	contents := e.contents
	if c.segment == tagBitString {
		if len(contents) == 0 || contents[0] > 7 || c.unused[0] != 0 {
			return 0, nil, errors.New("a bit string has a segment that does not fit")
		}
		c.unused[0], contents = contents[0], contents[1:]
	}
	c.pieces = append(c.pieces, piece{contents: contents})
	return len(contents), rest, nil
}

// isString reports whether tag is of a string that BER may cut into segments. What
// a tag that is not universal stands for cannot be seen.
func isString(tag byte) bool {
	return tag&0xc0 == 0 && segmented>>(tag&0x1f)&1 != 0
}

func appendHeader(b []byte, tag byte, length int) []byte {
	octets := lengthOctets(uint32(length))
	if octets == 0 {
		return append(b, tag, byte(length))
	}
	b = append(b, tag, 0x80|byte(octets))
	for octets--; octets >= 0; octets-- {
		b = append(b, byte(length>>(8*octets)))
	}
	return b
}
