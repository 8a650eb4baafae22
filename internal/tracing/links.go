package tracing

import (
	"github.com/jackc/pgx/v5/pgtype"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/sinks"
)

// origin is a context that messages have in common.
type origin struct {
	context trace.SpanContext
	// first is the first message that has it, and messages how many have.
	first, messages int
}

// identity is what makes two contexts the same.
type identity struct {
	trace trace.TraceID
	span  trace.SpanID
}

// origins are the distinct contexts of messages: the sampled ones and the
// others, at most limit of each, in the messages' order.
type origins struct {
	limit           int
	sampled, others []origin
	// places says where the origin of a context is, or that it is nowhere.
	places map[identity]place
	// distinct counts all of them.
	distinct int
	last     identity
}

type place struct {
	of    *[]origin
	index int
}

func newOrigins(limit int) *origins {
	return &origins{limit: limit, places: map[identity]place{}}
}

// add takes the context of message i.
func (o *origins) add(i int, context trace.SpanContext) {
	if !context.IsValid() {
		return
	}
	id := identity{context.TraceID(), context.SpanID()}
	at, known := o.places[id]
	if !known {
		o.distinct++
		at.of = &o.others
		if context.IsSampled() {
			at.of = &o.sampled
		}
		at.index = len(*at.of)
		if at.index >= o.limit {
			at.of = nil
		} else {
			*at.of = append(*at.of, origin{context: context, first: i})
		}
		o.places[id] = at
	}
	if at.of != nil {
		(*at.of)[at.index].messages++
	}
}

// links returns a link for each origin, those of sampled traces first: only
// they lead somewhere.
func (o *origins) links(messages []sinks.Message) []trace.Link {
	links := make([]trace.Link, 0, min(len(o.sampled)+len(o.others), o.limit))
	for _, some := range [][]origin{o.sampled, o.others} {
		for _, from := range some[:min(len(some), o.limit-len(links))] {
			m := &messages[from.first]
			about := semconv.MessagingBatchMessageCount(from.messages)
			if from.messages == 1 {
				about = semconv.MessagingMessageID(uuid(m.ID))
			}
			links = append(links, trace.Link{SpanContext: withState(from.context, m), Attributes: []attribute.KeyValue{about}})
		}
	}
	return links
}

// uuid is an id as it is written.
func uuid(id [16]byte) string { return pgtype.UUID{Bytes: id, Valid: true}.String() }
