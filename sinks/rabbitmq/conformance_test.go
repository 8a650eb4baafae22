package rabbitmq_test

import (
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
	"github.com/outboxrelay/relay/sinks/sinktest"
)

func TestConformanceStrict(t *testing.T) {
	sinktest.Run(t, conformance{newBroker(t)})
}

func TestConformancePipelined(t *testing.T) {
	b := newBroker(t)
	b.order = rabbitmq.OrderPipelined
	sinktest.Run(t, conformance{b})
}

// conformance tells the suite about RabbitMQ: destinations are queues on the
// default exchange.
type conformance struct{ broker }

func (b conformance) Publisher(t *testing.T) sinks.Streamer { return b.publisher(t, nil) }

func (b conformance) NewDestination(t *testing.T) sinks.Destination {
	return sinks.Destination{Name: b.queue(t, nil)}
}

func (b conformance) MissingDestination(*testing.T) sinks.Destination {
	return sinks.Destination{Exchange: unique("missing"), Name: "orders"}
}

func (b conformance) Refuse(m *sinks.Message) { m.Type = strings.Repeat("x", 256) }

func (b conformance) Traits() sinktest.Traits { return sinktest.Traits{NullKey: true} }

func (b conformance) Read(t *testing.T, d sinks.Destination, n int, timeout time.Duration) []sinktest.Received {
	var all []sinktest.Received
	for _, m := range b.read(t, d.Name, n, timeout) {
		r := sinktest.Received{
			Payload: m.Body, MessageID: m.MessageId, Type: m.Type, ContentType: m.ContentType,
			Sequence: sequenceOf(m), CreatedAt: m.Timestamp.UTC(), Headers: map[string]string{},
		}
		for name, value := range m.Headers {
			text, ok := value.(string)
			switch {
			case name == "message-key":
				r.Key = []byte(text)
			case ok:
				r.Headers[name] = text
			}
		}
		all = append(all, r)
	}
	return all
}
