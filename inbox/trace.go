package inbox

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/inbox/internal/delivery"
)

// scope names this library in spans.
const scope = "github.com/outboxrelay/relay/inbox"

// Attributes by OpenTelemetry's semantic conventions for messaging spans, and
// the inbox's own.
const (
	operationName    = attribute.Key("messaging.operation.name")
	operationType    = attribute.Key("messaging.operation.type")
	messagingSystem  = attribute.Key("messaging.system")
	destinationName  = attribute.Key("messaging.destination.name")
	partitionID      = attribute.Key("messaging.destination.partition.id")
	consumerGroup    = attribute.Key("messaging.consumer.group.name")
	messageID        = attribute.Key("messaging.message.id")
	batchCount       = attribute.Key("messaging.batch.message_count")
	kafkaOffset      = attribute.Key("messaging.kafka.offset")
	kafkaTombstone   = attribute.Key("messaging.kafka.message.tombstone")
	rabbitRoutingKey = attribute.Key("messaging.rabbitmq.destination.routing_key")
	errorType        = attribute.Key("error.type")

	inboxConsumer = attribute.Key("inbox.consumer")
	inboxResult   = attribute.Key("inbox.result")
	inboxAttempt  = attribute.Key("inbox.attempt")
	inboxRetries  = attribute.Key("inbox.retries")
	inboxFresh    = attribute.Key("inbox.batch.fresh_count")
)

func (i *Inbox) tracer() trace.Tracer {
	provider := i.TracerProvider
	if provider == nil {
		provider = otel.GetTracerProvider()
	}
	return provider.Tracer(scope)
}

// startSpan begins the span of one message, a child of the message's own
// context, so that its trace goes on here. It links to that too, as the
// conventions have it, and to the span that the caller was in, which would else
// have no trace of it.
func (i *Inbox) startSpan(ctx context.Context, message Message) (context.Context, trace.Span) {
	caller := trace.SpanContextFromContext(ctx)
	ctx = i.Extract(ctx, message)
	created := trace.SpanContextFromContext(ctx)
	var links []trace.Link
	if created.IsValid() && !created.Equal(caller) {
		links = append(links, trace.Link{SpanContext: created})
		if caller.IsValid() {
			links = append(links, trace.Link{SpanContext: caller})
		}
	}
	attributes := i.attributes(ctx, message)
	attributes = append(attributes, messageID.String(message.ID.String()))
	switch {
	case message.Source.HasOffset:
		attributes = append(attributes, kafkaOffset.Int64(message.Source.Offset))
		if message.Payload == nil {
			attributes = append(attributes, kafkaTombstone.Bool(true))
		}
	case message.Source.Name != "" && message.Topic != "":
		attributes = append(attributes, rabbitRoutingKey.String(message.Topic))
	}
	return i.tracer().Start(ctx, "process "+SourceOf(message), trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(attributes...), trace.WithLinks(links...))
}

// startBatchSpan begins the span of a batch, which links to the messages.
func (i *Inbox) startBatchSpan(ctx context.Context, messages []Message) (context.Context, trace.Span) {
	var links []trace.Link
	for _, m := range messages {
		created := trace.SpanContextFromContext(i.extractTrace(context.Background(), m))
		if created.IsValid() {
			links = append(links, trace.Link{SpanContext: created, Attributes: []attribute.KeyValue{messageID.String(m.ID.String())}})
		}
	}
	attributes := append(i.attributes(ctx, messages[0]), batchCount.Int(len(messages)))
	return i.tracer().Start(ctx, "process "+SourceOf(messages[0]), trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(attributes...), trace.WithLinks(links...))
}

// attributes are those of a message and of the batch that it is the first of.
func (i *Inbox) attributes(ctx context.Context, message Message) []attribute.KeyValue {
	d, _ := delivery.From(ctx)
	attributes := make([]attribute.KeyValue, 0, 12)
	attributes = append(attributes, operationName.String("process"), operationType.String("process"), inboxConsumer.String(i.Consumer))
	source := message.Source
	switch {
	case source.HasOffset:
		attributes = append(attributes, messagingSystem.String("kafka"), destinationName.String(source.Name),
			partitionID.String(strconv.Itoa(int(source.Partition))))
	case source.Name != "":
		attributes = append(attributes, messagingSystem.String("rabbitmq"), destinationName.String(queueDestination(message)))
	case message.Topic != "":
		attributes = append(attributes, destinationName.String(message.Topic))
	}
	if d.Group != "" {
		attributes = append(attributes, consumerGroup.String(d.Group))
	}
	if d.Attempt > 1 {
		attributes = append(attributes, inboxAttempt.Int(d.Attempt))
	}
	return attributes
}

// queueDestination is what the conventions call a RabbitMQ message's
// destination: exchange:routing key:queue, without what is empty or said twice.
func queueDestination(message Message) string {
	parts := []string{message.Source.Exchange, message.Topic, message.Source.Name}
	if message.Topic == message.Source.Name {
		parts = parts[:2]
	}
	parts = slices.DeleteFunc(parts, func(part string) bool { return part == "" })
	return strings.Join(parts, ":")
}

// endSpan ends the span with what became of the messages.
func (o *observation) endSpan(results []Result, reason Reason, err error) {
	defer o.span.End()
	if !o.span.IsRecording() {
		return
	}
	if o.retries > 0 {
		o.span.SetAttributes(inboxRetries.Int(o.retries))
	}
	switch {
	case reason != "":
		description := "the handler panicked"
		if err != nil {
			description = err.Error()
			o.span.RecordError(err)
		}
		o.span.SetStatus(codes.Error, description)
		o.span.SetAttributes(errorType.String(string(reason)))
	case len(o.messages) == 1:
		o.span.SetAttributes(inboxResult.String(results[0].String()))
	default:
		fresh := 0
		for _, result := range results {
			if result.Ran() {
				fresh++
			}
		}
		o.span.SetAttributes(inboxFresh.Int(fresh))
	}
}
