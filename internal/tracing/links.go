package tracing

import (
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/internal/uuid"
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
	// places has where the origin of each context is.
	places map[identity]place
	// last is the context of the message before.
	last identity
	at   place
}

// place is an index of origins.sampled or of origins.others; nowhere is of what
// exceeds the limit.
type place struct {
	sampled bool
	index   int32
}

const nowhere = -1

// reset empties the origins for other messages.
func (o *origins) reset(limit int) {
	if o.places == nil {
		o.places = map[identity]place{}
	}
	clear(o.places)
	*o = origins{limit: limit, sampled: o.sampled[:0], others: o.others[:0], places: o.places}
}

// distinct counts all contexts.
func (o *origins) distinct() int { return len(o.places) }

// add takes the context of message i.
func (o *origins) add(i int, context trace.SpanContext) {
	if !context.IsValid() {
		return
	}
	id := identity{context.TraceID(), context.SpanID()}
	if id != o.last { // neighbours are often of one transaction
		at, known := o.places[id]
		if !known {
			at = o.place(origin{context: context, first: i})
			o.places[id] = at
		}
		o.last, o.at = id, at
	}
	switch {
	case o.at.index == nowhere:
	case o.at.sampled:
		o.sampled[o.at.index].messages++
	default:
		o.others[o.at.index].messages++
	}
}

// place finds a place for a new origin.
func (o *origins) place(from origin) place {
	to := &o.others
	if from.context.IsSampled() {
		to = &o.sampled
	}
	at := place{sampled: to == &o.sampled, index: nowhere}
	if len(*to) < o.limit {
		at.index = int32(len(*to)) // no batch has as many messages
		*to = append(*to, from)
	}
	return at
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
				about = semconv.MessagingMessageID(uuid.String(m.ID))
			}
			links = append(links, trace.Link{SpanContext: from.context, Attributes: []attribute.KeyValue{about}})
		}
	}
	return links
}
