package kafka

import (
	"errors"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/outboxrelay/relay/sinks"
)

// action is what a lane does with a batch that was not acknowledged.
type action uint8

const (
	// actionFail: the lane's messages fail with the verdict's scope, and its
	// caller backs off.
	actionFail action = iota
	// actionReconnect: the connection broke; once, at once, by a new one.
	actionReconnect
	// actionWait: the broker or its cluster is about to change; again after a
	// short pause.
	actionWait
	// actionRenew: the broker does not know this producer any more; again under
	// a new producer id.
	actionRenew
	// actionRefuse: the broker refused a record; find it and fail it alone.
	actionRefuse
)

// verdict is what an error means for a batch.
type verdict struct {
	action action
	// scope is whom the error concerns when the lane gives up.
	scope sinks.Scope
	// reason is the error's word in metrics.
	reason string
	// appended: the broker may have appended the batch all the same.
	appended bool
}

// patience is how long to wait within one Publish: for as long as Kafka may
// take to elect a leader, or for a topic's creation to get round.
func (v verdict) patience() time.Duration {
	if v.scope == sinks.ScopeDestination {
		return grace
	}
	return 10 * time.Second
}

// moved reports whether newer metadata may help: the partition is elsewhere.
func (v verdict) moved() bool {
	return v.reason == "not_leader" || v.reason == "no_leader" || v.reason == "unknown_topic"
}

// judge is the one place that says what an error of a produce request means. It
// says nothing about who is innocent: the lane does.
func judge(err error) verdict {
	if code, ok := errors.AsType[kafkago.Error](err); ok {
		return judgeCode(code)
	}
	switch {
	// kafka-go's own, from its copy of the metadata; nothing was sent.
	case errors.Is(err, protocol.ErrNoTopic), errors.Is(err, protocol.ErrNoPartition):
		return verdict{actionWait, sinks.ScopeDestination, "unknown_topic", false}
	case errors.Is(err, protocol.ErrNoLeader):
		return verdict{actionWait, sinks.ScopeSink, "no_leader", false}
	case isHandshakeFailure(err):
		return verdict{actionFail, sinks.ScopeSink, "tls", false}
	case isTimeout(err):
		return verdict{actionReconnect, sinks.ScopeSink, "timeout", true}
	}
	return verdict{actionReconnect, sinks.ScopeSink, "connection", true}
}

// judgeCode judges an error code of the broker. Unknown codes are retriable by
// the caller, and may have been appended.
func judgeCode(code kafkago.Error) verdict {
	switch code {
	case kafkago.MessageSizeTooLarge, kafkago.RecordListTooLarge:
		return verdict{actionRefuse, sinks.ScopeMessage, "message_too_large", false}
	case kafkago.InvalidTimestamp, kafkago.InvalidRecord,
		kafkago.UnsupportedForMessageFormat, kafkago.UnsupportedCompressionType:
		// The last two are about the topic's settings more than the record, but
		// none of the topic's messages can ever succeed as they are, and the
		// policy for refused messages must be able to get them out of the way.
		return verdict{actionRefuse, sinks.ScopeMessage, "invalid_message", false}

	case kafkago.UnknownTopicOrPartition, kafkago.UnknownTopicID:
		// Also for a moment after the topic was created, until the leader knows.
		return verdict{actionWait, sinks.ScopeDestination, "unknown_topic", false}
	case kafkago.InvalidTopic:
		// The name, not the message, is invalid, and a name comes from a route as
		// often as from a row: a mistake in a route must hold its messages back
		// until it is corrected, not move thousands of them to the dead letters.
		return verdict{actionFail, sinks.ScopeDestination, "invalid_topic", false}
	case kafkago.TopicAuthorizationFailed, kafkago.ClusterAuthorizationFailed, kafkago.TransactionalIDAuthorizationFailed:
		return verdict{actionFail, sinks.ScopeDestination, "unauthorized", false}
	case kafkago.PolicyViolation:
		return verdict{actionFail, sinks.ScopeDestination, "policy", false}

	case kafkago.SASLAuthenticationFailed, kafkago.UnsupportedSASLMechanism, kafkago.IllegalSASLState:
		return verdict{actionFail, sinks.ScopeSink, "authentication", false}

	case kafkago.OutOfOrderSequenceNumber, kafkago.DuplicateSequenceNumber, kafkago.InvalidProducerEpoch,
		kafkago.InvalidProducerIDMapping, kafkago.UnknownProducerId, kafkago.ProducerFenced:
		return verdict{actionRenew, sinks.ScopeSink, "producer_id", false}

	case kafkago.LeaderNotAvailable, kafkago.NotLeaderForPartition, kafkago.BrokerNotAvailable, kafkago.ReplicaNotAvailable,
		kafkago.FencedLeaderEpoch, kafkago.UnknownLeaderEpoch, kafkago.ListenerNotFound:
		return verdict{actionWait, sinks.ScopeSink, "not_leader", false}
	case kafkago.NotEnoughReplicas:
		return verdict{actionWait, sinks.ScopeSink, "not_enough_replicas", false}
	case kafkago.NotEnoughReplicasAfterAppend:
		return verdict{actionWait, sinks.ScopeSink, "not_enough_replicas", true}
	case kafkago.RequestTimedOut:
		return verdict{actionWait, sinks.ScopeSink, "timeout", true}
	case kafkago.NetworkException, kafkago.KafkaStorageError,
		kafkago.GroupLoadInProgress, kafkago.GroupCoordinatorNotAvailable, kafkago.NotCoordinatorForGroup,
		kafkago.ConcurrentTransactions, kafkago.ThrottlingQuotaExceeded:
		return verdict{actionWait, sinks.ScopeSink, "broker", true}
	}
	return verdict{actionFail, sinks.ScopeSink, "broker", true}
}
