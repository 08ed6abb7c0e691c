package telemetry

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// packetLimit is the largest packet taken from a broker, in bytes after its fixed
// header. A command has at most 64 KiB; MQTT itself would allow 256 MB.
const packetLimit = 256 << 10

// Control packet types of MQTT 3.1.1 section 2.2.1, as far as they are met here.
const (
	typeConnect     = 1
	typeConnack     = 2
	typePublish     = 3
	typePuback      = 4
	typeSubscribe   = 8
	typeSuback      = 9
	typeUnsubscribe = 10
	typeUnsuback    = 11
	typePingreq     = 12
	typePingresp    = 13
)

// A lead is the first byte of a packet.
type lead byte

func (l lead) kind() byte  { return byte(l >> 4) }
func (l lead) flags() byte { return byte(l & 0x0f) }
func (l lead) qos() byte   { return byte(l >> 1 & 3) } // of a PUBLISH

// A header is the fixed header of a packet (MQTT 3.1.1 section 2.2).
type header struct {
	lead
	raw  []byte
	size int // bytes that follow
}

// A packet is one whole MQTT control packet.
type packet struct {
	lead
	raw  []byte // as it is on the wire
	body []byte // the end of raw, after the fixed header
}

var errLength = errors.New("a remaining length of more than four bytes")

// readHeader reads one fixed header, byte by byte: nothing after it is touched.
func readHeader(r io.ByteReader) (h header, err error) {
	for shift := 0; shift < 28; shift += 7 {
		if h.raw == nil {
			first, err := r.ReadByte()
			if err != nil {
				return h, err // io.EOF: the end between two packets
			}
			h.lead, h.raw = lead(first), append(make([]byte, 0, 5), first)
		}
		b, err := r.ReadByte()
		if err != nil {
			return h, noEOF(err)
		}
		h.raw = append(h.raw, b)
		h.size |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			return h, nil
		}
	}
	return h, errLength
}

// readPacket reads one packet that a broker may send, and judges everything of it
// that can be judged without knowing what came before. A type, a flag or a length
// that is wrong is told from the header alone: the body is not read, nor is
// memory taken for it. All rules hold but one.
func readPacket(r interface {
	io.Reader
	io.ByteReader
}, without rule) (packet, error) {
	h, err := readHeader(r)
	if err != nil {
		return packet{}, err
	}
	if err := judge(headerRules, h, without); err != nil {
		return packet{}, err
	}
	raw := append(h.raw, make([]byte, h.size)...)
	p := packet{h.lead, raw, raw[len(h.raw):]}
	if _, err := io.ReadFull(r, p.body); err != nil {
		return packet{}, noEOF(err)
	}
	return p, judge(bodyRules, p, without)
}

// cutString splits off a string with its length in front (MQTT 3.1.1 section 1.5.3).
func cutString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, b, false
	}
	n := int(binary.BigEndian.Uint16(b))
	if len(b) < 2+n {
		return nil, b, false
	}
	return b[2 : 2+n], b[2+n:], true
}

// A question is a packet that will be answered: by which type, under which
// identifier. A ping has none.
type question struct {
	answer byte
	id     uint16
}

// parseSent takes apart a packet of our own and finds the question in it, if it
// is one, and how many filters it subscribes to.
func parseSent(raw []byte) (p packet, q question, filters int, err error) {
	h, err := readHeader(bytes.NewReader(raw))
	if err != nil || len(h.raw)+h.size != len(raw) {
		return p, q, 0, errors.New("the MQTT library did not write one whole packet")
	}
	p = packet{h.lead, raw, raw[len(h.raw):]}
	rest := p.body
	switch {
	case p.kind() == typePublish && p.qos() == 1:
		q.answer = typePuback
		_, rest, _ = cutString(rest)
	case p.kind() == typeSubscribe:
		q.answer = typeSuback
	case p.kind() == typeUnsubscribe:
		q.answer = typeUnsuback
	case p.kind() == typePingreq:
		return p, question{answer: typePingresp}, 0, nil
	default:
		return p, q, 0, nil
	}
	if len(rest) < 2 {
		return p, q, 0, errors.New("the MQTT library wrote a packet without its identifier")
	}
	q.id = binary.BigEndian.Uint16(rest)
	if p.kind() == typeSubscribe {
		filters = countFilters(rest[2:])
	}
	return p, q, filters, nil
}

// countFilters counts the filters of a SUBSCRIBE (MQTT 3.1.1 section 3.8.3).
func countFilters(b []byte) (n int) {
	for {
		_, rest, ok := cutString(b)
		if !ok || len(rest) < 1 {
			return n
		}
		b = rest[1:]
		n++
	}
}

// question is the one that an acknowledgement answers; ok is false for packets
// that are none.
func (p packet) question() (q question, ok bool) {
	switch p.kind() {
	case typePuback, typeSuback, typeUnsuback:
		return question{p.kind(), binary.BigEndian.Uint16(p.body)}, true
	case typePingresp:
		return question{answer: typePingresp}, true
	}
	return q, false
}

// noEOF makes an end within a packet differ from one between two.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
