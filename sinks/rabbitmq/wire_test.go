package rabbitmq

import (
	"bytes"
	"io"
	"maps"
	"net"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/sinks"
)

// written is a message with everything in it.
func written() sinks.Message {
	return sinks.Message{
		ID:       [16]byte{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0x4d, 0xef, 0x81, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef},
		Sequence: 1 << 40, Topic: "orders", Destination: "orders", Key: []byte("order-1"),
		Type: "OrderPlaced", ContentType: "application/json", Payload: []byte("{}"),
		Headers:   []sinks.Header{{Name: "traceparent", Value: "00-1-2-01"}, {Name: "message-key", Value: "theirs"}},
		CreatedAt: time.Date(2026, 2, 3, 4, 5, 6, 789012000, time.UTC),
	}
}

func TestWire(t *testing.T) {
	const id = "01234567-89ab-4def-8123-456789abcdef"
	plain := amqp.Table{"traceparent": "00-1-2-01", "message-key": "order-1", "message-sequence": int64(1 << 40)}
	for _, test := range []struct {
		name   string
		style  sinks.Style
		change func(*sinks.Message)
		want   amqp.Table
	}{
		{"plain", sinks.StylePlain, nil, plain},
		{"cloudevents", sinks.StyleCloudEvents, nil, amqp.Table{
			"traceparent": "00-1-2-01", "message-key": "order-1",
			"cloudEvents_specversion": "1.0", "cloudEvents_id": id, "cloudEvents_source": "/shop",
			"cloudEvents_type": "OrderPlaced", "cloudEvents_time": "2026-02-03T04:05:06.789012Z", "cloudEvents_subject": "order-1",
		}},
		{"debezium", sinks.StyleDebezium, nil, amqp.Table{
			"traceparent": "00-1-2-01", "message-key": "order-1", "id": id, "eventType": "OrderPlaced",
		}},
		{"null key", sinks.StyleCloudEvents, func(m *sinks.Message) { m.Key, m.Headers = nil, nil }, amqp.Table{
			"cloudEvents_specversion": "1.0", "cloudEvents_id": id, "cloudEvents_source": "/shop",
			"cloudEvents_type": "OrderPlaced", "cloudEvents_time": "2026-02-03T04:05:06.789012Z",
		}},
		{"empty key", sinks.StylePlain, func(m *sinks.Message) { m.Key, m.Headers = []byte{}, nil }, amqp.Table{
			"message-key": "", "message-sequence": int64(1 << 40),
		}},
		{"passed on", sinks.StyleCloudEvents, func(m *sinks.Message) {
			m.Key, m.Type, m.Headers = nil, "", []sinks.Header{
				{Name: "message-key", Value: "theirs"}, {Name: "message-replayed", Value: "true"},
				{Name: "cloudEvents_subject", Value: "theirs"}, {Name: "cloudEvents_sequence", Value: "1"}, {Name: "id", Value: "1"},
			}
		}, amqp.Table{
			"cloudEvents_specversion": "1.0", "cloudEvents_id": id, "cloudEvents_source": "/shop", "cloudEvents_type": "orders",
			"cloudEvents_time": "2026-02-03T04:05:06.789012Z", "cloudEvents_sequence": "1", "id": "1",
		}},
		{"replayed", sinks.StylePlain, func(m *sinks.Message) { m.Replayed, m.Key, m.Headers = true, nil, nil }, amqp.Table{
			"message-replayed": "true", "message-sequence": int64(1 << 40),
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := written()
			if test.change != nil {
				test.change(&m)
			}
			e := encoder{envelope: sinks.Envelope{Style: test.style, Source: "/shop"}, persistent: true}
			p := e.publishing(&m)
			if !maps.Equal(p.Headers, test.want) {
				t.Errorf("headers\n%v, want\n%v", p.Headers, test.want)
			}
			if p.MessageId != id || p.Type != m.Type || p.ContentType != m.ContentType || !p.Timestamp.Equal(m.CreatedAt) || p.DeliveryMode != 2 || !bytes.Equal(p.Body, m.Payload) {
				t.Errorf("properties: %+v", p)
			}
		})
	}
}

// Infinity has no time, and AMQP none before 1970.
func TestTimesThatCannotBeSent(t *testing.T) {
	for at, style := range map[time.Time]sinks.Style{
		{}: sinks.StyleCloudEvents, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC): sinks.StyleCloudEvents, time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC): sinks.StylePlain,
	} {
		m := written()
		m.CreatedAt = at
		e := encoder{envelope: sinks.Envelope{Style: style, Source: "/shop"}}
		p := e.publishing(&m)
		if sent, ok := p.Headers["cloudEvents_time"]; ok || !p.Timestamp.IsZero() {
			t.Errorf("%s is sent as %v, %v", at, p.Timestamp, sent)
		}
	}
}

func TestCheck(t *testing.T) {
	long := strings.Repeat("x", 256)
	for name, change := range map[string]func(*sinks.Message){
		"routing key":  func(m *sinks.Message) { m.Destination = long },
		"type":         func(m *sinks.Message) { m.Type = long },
		"content type": func(m *sinks.Message) { m.ContentType = long },
		"header name":  func(m *sinks.Message) { m.Headers[0].Name = long },
	} {
		m := written()
		if err := check("orders", &m); err != nil {
			t.Fatal(err)
		}
		change(&m)
		err := check("orders", &m)
		if sinks.ScopeOf(err) != sinks.ScopeMessage || !sinks.IsPermanent(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s of 256 bytes: %v", name, err)
		}
	}
}

// TestHeaderFrame compares the computed size with what amqp091 writes.
func TestHeaderFrame(t *testing.T) {
	for _, style := range []sinks.Style{sinks.StylePlain, sinks.StyleCloudEvents, sinks.StyleDebezium} {
		for _, change := range []func(*sinks.Message){
			func(*sinks.Message) {},
			func(m *sinks.Message) { m.Type, m.ContentType, m.Key, m.Headers = "", "", nil, nil },
			func(m *sinks.Message) {
				m.Headers = append(m.Headers, sinks.Header{Name: "ž", Value: strings.Repeat("ž", 5000)})
			},
		} {
			m := written()
			change(&m)
			e := encoder{envelope: sinks.Envelope{Style: style, Source: "/shop"}}
			p := e.publishing(&m)
			if got, want := headerFrame(&p), writtenHeaderFrame(t, p); got != want {
				t.Errorf("%s: computed %d bytes, amqp091 writes %d", style, got, want)
			}
		}
	}
}

// writtenHeaderFrame lets amqp091 write a publishing to a connection whose
// other end plays the broker's part of the handshake, and measures the content
// header's frame. A real broker does not tell the size.
func writtenHeaderFrame(t *testing.T, p amqp.Publishing) int {
	t.Helper()
	ours, theirs := net.Pipe()
	sizes := make(chan int, 1)
	go func() { sizes <- playBroker(theirs) }()
	connection, err := amqp.Open(ours, amqp.Config{SASL: []amqp.Authentication{&amqp.PlainAuth{}}, Vhost: "/", Locale: "en_US"})
	if err != nil {
		t.Fatal(err)
	}
	channel, err := connection.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := channel.Publish("", "q", false, false, p); err != nil {
		t.Fatal(err)
	}
	size := <-sizes
	_ = theirs.Close()
	return size
}

// playBroker answers the handshake and returns the size of the first content
// header's frame, or 0.
func playBroker(conn net.Conn) int {
	if _, err := io.ReadFull(conn, make([]byte, 8)); err != nil {
		return 0
	}
	send := func(channel byte, payload ...byte) {
		frame := []byte{1, 0, channel, 0, 0, 0, byte(len(payload))}
		_, _ = conn.Write(append(append(frame, payload...), 0xce))
	}
	send(0, 0, 10, 0, 10, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 'P', 'L', 'A', 'I', 'N', 0, 0, 0, 5, 'e', 'n', '_', 'U', 'S') // start
	head := make([]byte, 7)
	for {
		if _, err := io.ReadFull(conn, head); err != nil {
			return 0
		}
		size := int(head[3])<<24 | int(head[4])<<16 | int(head[5])<<8 | int(head[6])
		payload := make([]byte, size+1)
		if _, err := io.ReadFull(conn, payload); err != nil {
			return 0
		}
		switch {
		case head[0] == 2:
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			return size + frameOverhead
		case head[0] != 1:
		case payload[1] == 10 && payload[3] == 11: // start-ok
			send(0, 0, 10, 0, 30, 0, 0, 0, 2, 0, 0, 0, 0) // tune
		case payload[1] == 10 && payload[3] == 40: // open
			send(0, 0, 10, 0, 41, 0) // open-ok
		case payload[1] == 20 && payload[3] == 10: // channel.open
			send(head[2], 0, 20, 0, 11, 0, 0, 0, 0) // open-ok
		}
	}
}

func TestMessageID(t *testing.T) {
	id := [16]byte{1, 2, 3, 0xff, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	if got, ok := parseMessageID(messageID(id)); !ok || got != id {
		t.Errorf("%s is read as %x, %t", messageID(id), got, ok)
	}
	for _, text := range []string{"", "x", messageID(id)[1:], "x" + messageID(id)[1:]} {
		if _, ok := parseMessageID(text); ok {
			t.Errorf("%q passes for an id", text)
		}
	}
}
