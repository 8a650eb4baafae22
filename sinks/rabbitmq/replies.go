package rabbitmq

import (
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/sinks"
)

// The words of errors in metrics. They are part of the interface, and few.
const (
	reasonAuthentication  = "authentication"
	reasonTLS             = "tls"
	reasonConnection      = "connection"
	reasonTimeout         = "timeout"
	reasonBlocked         = "blocked"
	reasonCancelled       = "cancelled"
	reasonClosed          = "closed"
	reasonNack            = "nack"
	reasonUnknownExchange = "unknown_exchange"
	reasonUnknownQueue    = "unknown_queue"
	reasonAccessRefused   = "access_refused"
	reasonChannel         = "channel"
	reasonUnroutable      = "unroutable"
	reasonTooLarge        = "message_too_large"
	reasonRefused         = "refused"
	reasonTooLong         = "too_long"
	reasonHeadersTooLarge = "headers_too_large"
	reasonInvalid         = "invalid"
)

// ruling is what one of AMQP's reply codes means for a publish, and why. The page
// docs/failures.md shows all of them, which a test compares.
type ruling struct {
	// name is AMQP's own, with what tells the code's meanings apart.
	name      string
	scope     sinks.Scope
	permanent bool
	reason    string
	// exchange: all messages of the exchange share the fate, so that none of them
	// needs to be tried alone.
	exchange bool
	why      string
}

// rulings are the codes by which the broker closes a channel, or returns a
// message. Those that close the connection concern everybody, whatever they say:
// what was in flight cannot be told apart, and is sent again.
var rulings = map[int]ruling{
	amqp.ContentTooLarge: {"CONTENT_TOO_LARGE", sinks.ScopeMessage, true, reasonTooLarge, false,
		"larger than the broker takes"},
	amqp.NoRoute: {"NO_ROUTE", sinks.ScopeMessage, false, reasonUnroutable, false,
		"returned: no queue takes it now; a queue can be created or bound at any time, and routing can depend on the message"},
	amqp.NoConsumers: {"NO_CONSUMERS", sinks.ScopeMessage, false, reasonUnroutable, false,
		"returned by brokers that know immediate delivery, which this sink never asks for"},
	amqp.AccessRefused: {"ACCESS_REFUSED", sinks.ScopeDestination, false, reasonAccessRefused, true,
		"no write permission on the exchange, or it is internal"},
	amqp.NotFound: {"NOT_FOUND", sinks.ScopeDestination, false, reasonUnknownExchange, true,
		"the exchange does not exist"},
	amqp.ResourceLocked: {"RESOURCE_LOCKED", sinks.ScopeDestination, false, reasonChannel, false,
		"somebody else has it for himself"},
	amqp.PreconditionFailed: {"PRECONDITION_FAILED", sinks.ScopeDestination, false, reasonChannel, false,
		"a condition that this sink does not know, which the same message may meet later"},
}

var (
	// topicRefused is AccessRefused about a routing key.
	topicRefused = ruling{"ACCESS_REFUSED, to a routing key", sinks.ScopeDestination, false, reasonAccessRefused, false,
		"a topic permission denies this routing key; other keys of the exchange may go"}
	// tooLarge is PreconditionFailed about the size.
	tooLarge = ruling{"PRECONDITION_FAILED, for the size", sinks.ScopeMessage, true, reasonTooLarge, false,
		"larger than the broker's max_message_size"}
	// invalid is PreconditionFailed about what the message consists of.
	invalid = ruling{"PRECONDITION_FAILED, for an invalid message", sinks.ScopeMessage, true, reasonRefused, false,
		"a property or header that the broker never takes"}
	// unlisted is the ruling on all other codes that may close a channel.
	unlisted = ruling{"any other", sinks.ScopeDestination, false, reasonChannel, false,
		"not known to concern anybody else; retrying is safe, giving up is not"}
)

// judge says what the broker's words mean.
func judge(e *amqp.Error) ruling {
	switch r, listed := rulings[e.Code]; {
	case !listed:
		return unlisted
	case e.Code == amqp.AccessRefused && strings.Contains(e.Reason, "access to topic"):
		return topicRefused
	case e.Code == amqp.PreconditionFailed && strings.Contains(e.Reason, "larger than"):
		return tooLarge
	case e.Code == amqp.PreconditionFailed && strings.Contains(e.Reason, "invalid message"):
		return invalid
	default:
		return r
	}
}

// sizeLimit returns the bound in "message size 150000 is larger than configured
// max size 100000".
func sizeLimit(e *amqp.Error) (int64, bool) {
	if judge(e).reason != reasonTooLarge {
		return 0, false
	}
	limit, err := strconv.ParseInt(e.Reason[strings.LastIndexByte(e.Reason, ' ')+1:], 10, 64)
	return limit, err == nil && limit > 0
}
