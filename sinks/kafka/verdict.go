package kafka

import (
	"errors"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/outboxrelay/relay/sinks"
)

// action is what a writer does with a batch that was not acknowledged.
type action uint8

const (
	// actionFail: the writer's messages fail with the verdict's scope, and its
	// caller backs off.
	actionFail action = iota
	// actionReconnect: the connection broke; again by a new one, for as long as
	// the cluster answers.
	actionReconnect
	// actionWait: the broker or its cluster is about to change; again after a
	// short pause.
	actionWait
	// actionRenew: the broker does not know this producer any more; again under
	// a new producer id.
	actionRenew
	// actionDowngrade: the broker does not let this user produce idempotently;
	// again without a producer id.
	actionDowngrade
	// actionRefuse: the broker refused a record; find it and fail it alone.
	actionRefuse
)

// verdict is what an error means for a batch.
type verdict struct {
	action action
	// scope is whom the error concerns when the writer gives up.
	scope sinks.Scope
	// reason is the error's word in metrics.
	reason string
	// permanent: the same record can never succeed.
	permanent bool
	// appended: the broker may have appended the batch all the same.
	appended bool
	// moved: newer metadata may help, since the partition is elsewhere.
	moved bool
}

// The words of errors in metrics, beside "closed" and "cancelled". They are part
// of the interface, and few.
const (
	reasonTooLarge       = "message_too_large"
	reasonInvalidMessage = "invalid_message"
	reasonInvalidTopic   = "invalid_topic"
	reasonUnknownTopic   = "unknown_topic"
	reasonUnauthorized   = "unauthorized"
	reasonPolicy         = "policy"
	reasonAuthentication = "authentication"
	reasonProducerID     = "producer_id"
	reasonNotLeader      = "not_leader"
	reasonNoLeader       = "no_leader"
	reasonReplicas       = "not_enough_replicas"
	reasonStorage        = "storage"
	reasonTimeout        = "timeout"
	reasonConnection     = "connection"
	reasonTLS            = "tls"
	reasonUnsupported    = "unsupported"
	reasonCompression    = "compression"
	reasonTimestamp      = "invalid_timestamp"
	reasonThrottled      = "throttled"
	reasonBroker         = "broker"
)

// doubtPatience is how long a batch that may have been appended is sent again
// within one Publish: sent by anybody else it is a duplicate, and a leader is
// elected within that time, mostly.
const doubtPatience = 10 * time.Second

// patience is how long to wait within one Publish. Who waits holds its call's
// other messages up too, so a batch that is surely not in the log, and can as
// well be sent by a later call, waits only for as long as it takes to hand
// leadership over in order, or for a topic's creation to get round.
func patience(inDoubt bool) time.Duration {
	if inDoubt {
		return doubtPatience
	}
	return grace
}

// waits reports whether the batch may be sent again as it is, in a while.
func (v verdict) waits() bool { return v.action == actionWait || v.action == actionReconnect }

// judge is the one place that says what an error of a produce request means. It
// says nothing about who is innocent: the writer does.
func judge(err error) verdict {
	if code, ok := errors.AsType[kafkago.Error](err); ok {
		return judgeCode(code)
	}
	switch {
	// kafka-go's own, from its copy of the metadata; nothing was sent.
	case errors.Is(err, protocol.ErrNoTopic), errors.Is(err, protocol.ErrNoPartition):
		return verdict{action: actionWait, scope: sinks.ScopeDestination, reason: reasonUnknownTopic, moved: true}
	case errors.Is(err, protocol.ErrNoLeader):
		return verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonNoLeader, moved: true}
	case isHandshakeFailure(err):
		return verdict{action: actionFail, scope: sinks.ScopeSink, reason: reasonTLS}
	case isTimeout(err):
		return verdict{action: actionReconnect, scope: sinks.ScopeSink, reason: reasonTimeout, appended: true, moved: true}
	}
	return verdict{action: actionReconnect, scope: sinks.ScopeSink, reason: reasonConnection, appended: true, moved: true}
}

// judgeCode judges an error code of the broker.
func judgeCode(code kafkago.Error) verdict {
	if r, ok := rulings[code]; ok {
		return r.verdict
	}
	return unlisted.verdict
}
