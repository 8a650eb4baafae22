package rabbitmq

import (
	"context"
	"errors"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/sinks"
)

// away is a failure that concerns everybody.
func away(reason string, err error) error {
	return &sinks.Error{Scope: sinks.ScopeSink, Reason: reason, Err: err}
}

// destination is a failure that concerns one exchange or queue.
func destination(reason string, err error) error {
	return &sinks.Error{Scope: sinks.ScopeDestination, Reason: reason, Err: err}
}

// errClosed is what calls get once Close was called.
var errClosed = away(reasonClosed, errors.New("the RabbitMQ sink is closed"))

// lost is the failure of what was in flight on a connection that ended.
func lost(address string, cause error) error {
	if cause == nil {
		cause = errors.New("it was closed")
	}
	return away(reasonConnection, fmt.Errorf("RabbitMQ at %s: the connection was lost before the broker confirmed: %w", address, cause))
}

// blocked is what calls get while the broker refuses to read.
func blocked(address, why string) error {
	return away(reasonBlocked, fmt.Errorf("RabbitMQ at %s blocks publishers (%s): free memory or disk space on the broker, or raise its watermark; sending goes on by itself", address, why))
}

// interrupted is the failure of what was unresolved when the context ended.
func interrupted(ctx context.Context, address string, sent bool) error {
	reason := reasonTimeout
	if errors.Is(ctx.Err(), context.Canceled) {
		reason = reasonCancelled
	}
	if sent {
		return away(reason, fmt.Errorf("RabbitMQ at %s did not confirm in time; the message may have arrived: %w", address, ctx.Err()))
	}
	return away(reason, fmt.Errorf("RabbitMQ at %s: not sent in time: %w", address, ctx.Err()))
}

// nacked is the failure of a message that the broker took and gave up.
func nacked(exchange, routingKey string) error {
	return destination(reasonNack, fmt.Errorf("%s, routing key %q: the broker refused the message (nack): a queue is full with x-overflow=reject-publish, or failed", describe(exchange), routingKey))
}

// unroutable is the failure of a message that came back. It is not permanent: a
// queue may be created or bound at any time. On an exchange it can depend on the
// message, on its headers or on a routing key made from {key}; on the default
// exchange all messages to the queue share it, and it counts for each of them all
// the same, so that the policy for refused messages applies.
func unroutable(exchange, routingKey string) error {
	remedy := fmt.Errorf("%s has no binding that takes routing key %q: bind a queue, or set mandatory: false to let such messages be dropped", describe(exchange), routingKey)
	if exchange == "" {
		remedy = fmt.Errorf("queue %q does not exist (default exchange): create it, or correct the route's destination", routingKey)
	}
	return rulings[amqp.NoRoute].of(remedy)
}

// of is an error that the ruling is about.
func (r ruling) of(err error) error {
	return &sinks.Error{Scope: r.scope, Permanent: r.permanent, Reason: r.reason, Err: err}
}

// exchangeRefusal explains a channel that the broker closed, for all messages
// of its exchange.
func exchangeRefusal(exchange, user string, e *amqp.Error) error {
	switch r := judge(e); r.reason {
	case reasonUnknownExchange:
		return r.of(fmt.Errorf("%s does not exist: create it, or correct the exchange of the sink or route (%s)", describe(exchange), e.Reason))
	case reasonAccessRefused:
		return r.of(fmt.Errorf("%s: user %q may not publish to it: grant write permission (%s)", describe(exchange), user, e.Reason))
	}
	return destination(reasonChannel, fmt.Errorf("%s: %w", describe(exchange), e))
}

// messageRefusal explains a channel that the broker closed because of one
// message.
func messageRefusal(exchange, user string, m *sinks.Message, e *amqp.Error) error {
	r := judge(e)
	switch {
	case r.exchange:
		return exchangeRefusal(exchange, user, e)
	case r.reason == reasonAccessRefused:
		return r.of(fmt.Errorf("%s, routing key %q: user %q may not publish with it: grant topic permission (%s)", describe(exchange), m.Destination, user, e.Reason))
	case r.reason == reasonTooLarge:
		return r.of(fmt.Errorf("message %s: its payload has %d bytes: raise the broker's max_message_size, or store less (%s)", messageID(m.ID), len(m.Payload), e.Reason))
	}
	return r.of(fmt.Errorf("message %s to %s, routing key %q: %w", messageID(m.ID), describe(exchange), m.Destination, e))
}

// oversize is the failure of a message whose payload is larger than the broker
// said it takes.
func oversize(m *sinks.Message, limit int64) error {
	return tooLarge.of(fmt.Errorf("message %s: its payload has %d bytes, the broker's max_message_size allows %d: raise that, or store less", messageID(m.ID), len(m.Payload), limit))
}

// describe names an exchange.
func describe(exchange string) string {
	if exchange == "" {
		return "the default exchange"
	}
	return fmt.Sprintf("exchange %q", exchange)
}
