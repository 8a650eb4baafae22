package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"strings"

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
var errClosed = away("closed", errors.New("the RabbitMQ sink is closed"))

// lost is the failure of what was in flight on a connection that ended.
func lost(address string, cause error) error {
	if cause == nil {
		cause = errors.New("it was closed")
	}
	return away("connection", fmt.Errorf("RabbitMQ at %s: the connection was lost before the broker confirmed: %w", address, cause))
}

// blocked is what calls get while the broker refuses to read.
func blocked(address, why string) error {
	return away("blocked", fmt.Errorf("RabbitMQ at %s blocks publishers (%s): free memory or disk space on the broker, or raise its watermark; sending goes on by itself", address, why))
}

// interrupted is the failure of what was unresolved when the context ended.
func interrupted(ctx context.Context, address string, sent bool) error {
	reason := "timeout"
	if errors.Is(ctx.Err(), context.Canceled) {
		reason = "canceled"
	}
	if sent {
		return away(reason, fmt.Errorf("RabbitMQ at %s did not confirm in time; the message may have arrived: %w", address, ctx.Err()))
	}
	return away(reason, fmt.Errorf("RabbitMQ at %s: not sent in time: %w", address, ctx.Err()))
}

// nacked is the failure of a message that the broker took and gave up.
func nacked(exchange, routingKey string) error {
	return destination("nack", fmt.Errorf("%s, routing key %q: the broker refused the message (nack): a queue is full with x-overflow=reject-publish, or failed", describe(exchange), routingKey))
}

// unroutable is the failure of a message that came back. On the default
// exchange the routing key is a queue's name, so all messages of this
// destination share the fate. On another exchange it may depend on the
// message: a headers exchange looks at its headers, and a routing key made
// from {key} is one entity's. Neither is permanent: a queue may be created or
// bound at any time.
func unroutable(exchange, routingKey string) error {
	if exchange == "" {
		return destination("unroutable", fmt.Errorf("queue %q does not exist (default exchange): create it, or correct the route's destination", routingKey))
	}
	return &sinks.Error{Scope: sinks.ScopeMessage, Reason: "unroutable", Err: fmt.Errorf(
		"%s has no binding that takes routing key %q: bind a queue, or set mandatory: false to let such messages be dropped", describe(exchange), routingKey)}
}

// concernsExchange reports whether a channel was closed for a reason that all
// messages of its exchange share.
func concernsExchange(e *amqp.Error) bool {
	switch e.Code {
	case amqp.NotFound:
		return true
	case amqp.AccessRefused:
		// "access to topic '…' in exchange '…' refused" is about one routing key.
		return !strings.Contains(e.Reason, "access to topic")
	}
	return false
}

// exchangeRefusal explains a channel that the broker closed, for all messages
// of its exchange.
func exchangeRefusal(exchange, user string, e *amqp.Error) error {
	switch e.Code {
	case amqp.NotFound:
		return destination("unknown_exchange", fmt.Errorf("%s does not exist: create it, or correct the exchange of the sink or route (%s)", describe(exchange), e.Reason))
	case amqp.AccessRefused:
		return destination("access_refused", fmt.Errorf("%s: user %q may not publish to it: grant write permission (%s)", describe(exchange), user, e.Reason))
	}
	return destination("channel", fmt.Errorf("%s: %w", describe(exchange), e))
}

// messageRefusal explains a channel that the broker closed because of one
// message.
func messageRefusal(exchange, user string, m *sinks.Message, e *amqp.Error) error {
	switch {
	case concernsExchange(e):
		return exchangeRefusal(exchange, user, e)
	case e.Code == amqp.AccessRefused:
		return destination("access_refused", fmt.Errorf("%s, routing key %q: user %q may not publish with it: grant topic permission (%s)", describe(exchange), m.Destination, user, e.Reason))
	case e.Code == amqp.PreconditionFailed && strings.Contains(e.Reason, "larger than"):
		return refused("message_too_large", fmt.Errorf("message %s: its payload has %d bytes: raise the broker's max_message_size, or store less (%s)", messageID(m.ID), len(m.Payload), e.Reason))
	case e.Code == amqp.PreconditionFailed, e.Code == amqp.ContentTooLarge:
		return refused("refused", fmt.Errorf("message %s to %s, routing key %q: %s", messageID(m.ID), describe(exchange), m.Destination, e.Reason))
	}
	return &sinks.Error{Scope: sinks.ScopeMessage, Reason: "refused", Err: fmt.Errorf("message %s to %s, routing key %q: %w", messageID(m.ID), describe(exchange), m.Destination, e)}
}

// describe names an exchange.
func describe(exchange string) string {
	if exchange == "" {
		return "the default exchange"
	}
	return fmt.Sprintf("exchange %q", exchange)
}
