package broker

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// A hook is what the lab adds to mochi-mqtt: who a client is, what it may do, and
// the journal.
type hook struct {
	mqtt.HookBase
	onPublish func(client, topic string, payload []byte)
	journal   *journal
}

func (h *hook) ID() string { return "lab" }

// Provides tells which of the methods below mochi-mqtt is to call.
func (h *hook) Provides(event byte) bool {
	switch event {
	case mqtt.OnConnectAuthenticate, mqtt.OnConnect, mqtt.OnSessionEstablished, mqtt.OnDisconnect,
		mqtt.OnACLCheck, mqtt.OnPublish, mqtt.OnWillSent:
		return true
	}
	return false
}

// partyOf is who is at the other end of a connection, by its certificate.
func partyOf(conn net.Conn) (party, error) {
	secured, ok := conn.(*tls.Conn)
	if !ok {
		return "", errors.New("no TLS connection")
	}
	chains := secured.ConnectionState().VerifiedChains
	if len(chains) == 0 {
		return "", errors.New("no certificate")
	}
	p := party(chains[0][0].Subject.CommonName)
	if !nameForm.MatchString(string(p)) {
		return p, fmt.Errorf("the name %q in the certificate is no device id", p)
	}
	return p, nil
}

// OnConnectAuthenticate is asked about a CONNECT, before it does anything to a
// session of the same client id.
func (h *hook) OnConnectAuthenticate(cl *mqtt.Client, pk packets.Packet) bool {
	p, err := partyOf(cl.Net.Conn)
	if err == nil {
		err = admit(p, cl, pk.Connect)
	}
	if err != nil {
		h.journal.add(entry{Client: string(p), Event: "denied", Reason: err.Error()})
		return false
	}
	return true
}

// admit says what is wrong with a CONNECT of p, and names an operator's client that
// has no name.
func admit(p party, cl *mqtt.Client, connect packets.ConnectParams) error {
	if p == operatorName && connect.ClientIdentifier == "" {
		cl.ID = operatorName + "." + cl.ID // what mochi-mqtt made up
		cl.Properties.Props.AssignedClientID = cl.ID
	}
	if cl.ID != string(p) && !(p == operatorName && strings.HasPrefix(cl.ID, operatorName+".")) {
		return fmt.Errorf("client id %q is not the name in the certificate", cl.ID)
	}
	// mochi-mqtt sends a last will without asking again.
	if connect.WillFlag && !p.may(publish, connect.WillTopic) {
		return fmt.Errorf("last will on the topic %q, where the client may not publish", connect.WillTopic)
	}
	return nil
}

// clientsNumbers are the packet identifiers that are the client's alone.
const clientsNumbers = 1 << 15

// OnConnect has the broker number its own messages from clientsNumbers on. Each side
// counts by itself (MQTT 3.1.1, 2.3.1), but mochi-mqtt takes a number that both use for one
// thing: it then refuses a SUBSCRIBE, or forgets the message. Clients begin with 1.
func (h *hook) OnConnect(cl *mqtt.Client, _ packets.Packet) error {
	for range clientsNumbers {
		if _, err := cl.NextPacketID(); err != nil {
			return err
		}
	}
	return nil
}

// OnACLCheck is asked about topics of messages, both ways, and about filters of
// subscriptions.
func (h *hook) OnACLCheck(cl *mqtt.Client, topic string, write bool) bool {
	do := read
	if write {
		do = publish
	}
	p, err := partyOf(cl.Net.Conn)
	if err == nil && p.may(do, topic) {
		return true
	}
	h.journal.add(entry{Client: cl.ID, Event: "denied", Topic: topic, Reason: "no right to " + string(do)})
	return false
}

func (h *hook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	h.journal.add(entry{Client: cl.ID, Event: "connect"})
}

func (h *hook) OnDisconnect(cl *mqtt.Client, err error, _ bool) {
	e := entry{Client: cl.ID, Event: "disconnect"}
	if err != nil {
		e.Reason = err.Error()
	}
	h.journal.add(e)
}

// OnPublish sees a message that may be published, before it is acknowledged.
func (h *hook) OnPublish(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	h.published(cl, pk, "")
	return pk, nil
}

// OnWillSent sees a last will, which does not come by OnPublish.
func (h *hook) OnWillSent(cl *mqtt.Client, pk packets.Packet) { h.published(cl, pk, "last will") }

func (h *hook) published(cl *mqtt.Client, pk packets.Packet, reason string) {
	h.journal.add(entry{Client: cl.ID, Event: "publish", Topic: pk.TopicName, Payload: string(pk.Payload), Reason: reason})
	if h.onPublish != nil {
		h.onPublish(cl.ID, pk.TopicName, bytes.Clone(pk.Payload))
	}
}
