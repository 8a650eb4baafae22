package tracing

import (
	"errors"
	"slices"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/sinks"
)

// maxDestinations bounds the spans of what is sent to one sink at a time; what
// goes to more destinations than that has one span together.
const maxDestinations = 16

// Sink is what there is to say of a sink. The zero value is one of which
// nothing is known.
type Sink struct {
	// RabbitMQ: destinations are exchanges and routing keys; else Kafka's topics.
	RabbitMQ bool
	// Exchange is the one of messages that name none.
	Exchange string
	// Attributes are about its server and client.
	Attributes []attribute.KeyValue
}

// system names the sink's system and what it calls sending.
func (s Sink) system() (system attribute.KeyValue, operation string) {
	if s.RabbitMQ {
		return semconv.MessagingSystemRabbitMQ, "publish"
	}
	return semconv.MessagingSystemKafka, "send"
}

// destination names a destination as the conventions do.
func (s Sink) destination(exchange, name string) string {
	if !s.RabbitMQ {
		return name
	}
	if exchange == "" {
		exchange = s.Exchange
	}
	switch {
	case exchange == "" && name == "":
		return "amq.default"
	case exchange == "":
		return name
	case name == "":
		return exchange
	}
	return exchange + ":" + name
}

// Sending is one call of a sink; nil where it is not traced.
type Sending struct {
	parts []part
	// of says to which part a message belongs, nil when there is one.
	of []uint8
}

// part is what goes to one destination, in a span of its own.
type part struct {
	exchange, name, template string
	// mixed: its messages go to different destinations.
	mixed    bool
	messages int
	span     trace.Span
	failed   int
	cause    error
}

// Send begins the spans of messages that are about to be published to a sink in
// one call, one for each destination. Template says of what template message
// i's destination is made, and nothing where the destinations are few; it may
// be nil.
func (b *Batch) Send(sink string, messages []sinks.Message, template func(i int) string) *Sending {
	if b == nil {
		return nil
	}
	s := sort(messages, template)
	found := make([]*origins, len(s.parts))
	for i := range found {
		limit := b.tracer.options.MaxLinks
		if limit < 0 {
			limit = len(messages)
		}
		found[i] = b.tracer.origins.Get().(*origins) // nothing else is in it
		found[i].reset(limit)
	}
	for i := range messages {
		found[s.part(i)].add(i, Stored(&messages[i]))
	}
	about := b.tracer.options.Sinks[sink]
	for i := range s.parts {
		s.parts[i].span = b.start(about, &s.parts[i], messages, found[i])
		b.tracer.origins.Put(found[i])
	}
	return s
}

// sort finds the destinations of messages.
func sort(messages []sinks.Message, template func(i int) string) *Sending {
	s := &Sending{}
	last := 0
	for i := range messages {
		m := &messages[i]
		p := part{exchange: m.Exchange, name: m.Destination}
		if template != nil {
			p.template = template(i)
		}
		same := func(other part) bool {
			if p.template != "" {
				return p.template == other.template && p.exchange == other.exchange
			}
			return other.template == "" && p.name == other.name && p.exchange == other.exchange
		}
		if last >= len(s.parts) || !same(s.parts[last]) {
			last = slices.IndexFunc(s.parts, same)
		}
		switch {
		case last >= 0:
		case len(s.parts) <= maxDestinations:
			last = len(s.parts)
			if last == maxDestinations { // the part of all others
				p = part{mixed: true}
			}
			s.parts = append(s.parts, p)
		default:
			last = maxDestinations
		}
		if last > 0 && s.of == nil {
			s.of = make([]uint8, len(messages))
		}
		if s.of != nil {
			s.of[i] = uint8(last) // at most maxDestinations
		}
		to := &s.parts[last]
		to.mixed = to.mixed || to.name != m.Destination
		to.messages++
	}
	return s
}

func (s *Sending) part(i int) int {
	if s.of == nil {
		return 0
	}
	return int(s.of[i])
}

// start begins the span of one destination.
func (b *Batch) start(sink Sink, p *part, messages []sinks.Message, found *origins) trace.Span {
	system, operation := sink.system()
	name := operation
	attributes := append([]attribute.KeyValue{
		system, semconv.MessagingOperationTypeSend, semconv.MessagingOperationName(operation),
		semconv.MessagingBatchMessageCount(p.messages), attributeContexts.Int(found.distinct()),
	}, sink.Attributes...)
	if p.template != "" {
		template := sink.destination(p.exchange, p.template)
		name += " " + template
		attributes = append(attributes, semconv.MessagingDestinationTemplate(template))
	}
	if !p.mixed {
		destination := sink.destination(p.exchange, p.name)
		if p.template == "" {
			name += " " + destination
		}
		attributes = append(attributes, semconv.MessagingDestinationName(destination))
		if sink.RabbitMQ && p.name != "" {
			attributes = append(attributes, semconv.MessagingRabbitMQDestinationRoutingKey(p.name))
		}
	}
	_, span := b.tracer.options.Tracer.Start(b.ctx, name, trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(attributes...), trace.WithLinks(found.links(messages)...))
	return span
}

// End ends the spans with the sink's results, nil when all were acknowledged.
func (s *Sending) End(results []error) {
	if s == nil {
		return
	}
	for i, err := range results {
		if err == nil {
			continue
		}
		p := &s.parts[s.part(i)]
		p.failed++
		if p.cause == nil || sinks.ScopeOf(p.cause) == sinks.ScopeSkipped {
			p.cause = err
		}
	}
	for _, p := range s.parts {
		if p.cause != nil {
			p.span.SetAttributes(attributeFailed.Int(p.failed), errorType(p.cause))
			p.span.SetStatus(codes.Error, p.cause.Error())
		}
		p.span.End()
	}
}

// errorType is a failure's reason, as the metrics have it.
func errorType(err error) attribute.KeyValue {
	if e, ok := errors.AsType[*sinks.Error](err); ok && e.Reason != "" {
		return semconv.ErrorTypeKey.String(e.Reason)
	}
	return semconv.ErrorTypeOther
}
