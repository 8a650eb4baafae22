package kafka

import (
	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/sinks"
)

// ruling is what one error code means, and why. The page docs/failures.md shows
// all of them, which a test compares.
type ruling struct {
	// name is Kafka's own.
	name    string
	verdict verdict
	why     string
}

// unlisted is the ruling on a code that nobody classified: retried, never
// counted, and possibly appended. It was given for one partition, and may have to
// do with what is sent there, so that it holds nobody else up.
var unlisted = ruling{"any other", verdict{action: actionFail, scope: sinks.ScopePartition, reason: reasonBroker, appended: true},
	"not known to concern anybody else; retrying is safe, giving up is not"}

// rulings are the codes that a broker may answer a produce request with, or the
// requests that prepare one: metadata, authentication, producer ids. What is
// missing is of requests that this sink never makes.
var rulings = map[kafkago.Error]ruling{
	kafkago.Unknown: {"UNKNOWN_SERVER_ERROR", verdict{action: actionFail, scope: sinks.ScopePartition, reason: reasonBroker, appended: true},
		"an exception in the broker, about this partition; what it did before is unknown"},

	// The message: the same bytes fail whenever they are sent again, however the
	// clocks, the network and the client are set.

	kafkago.MessageSizeTooLarge: {"MESSAGE_TOO_LARGE", verdict{action: actionRefuse, scope: sinks.ScopeMessage, reason: reasonTooLarge, permanent: true},
		"larger than the topic's max.message.bytes: found by halving the batch"},
	kafkago.RecordListTooLarge: {"RECORD_LIST_TOO_LARGE", verdict{action: actionRefuse, scope: sinks.ScopeMessage, reason: reasonTooLarge, permanent: true},
		"larger than the topic's segment.bytes: found by halving the batch"},
	kafkago.InvalidTopic: {"INVALID_TOPIC_EXCEPTION", verdict{action: actionFail, scope: sinks.ScopeMessage, reason: reasonInvalidTopic, permanent: true},
		"no topic of this name can ever exist"},
	kafkago.InvalidRecord: {"INVALID_RECORD", verdict{action: actionRefuse, scope: sinks.ScopeMessage, reason: reasonInvalidMessage, permanent: true},
		"refused by the broker's validation, a null key in a compacted topic for example; the broker names the record"},

	// The destination.

	kafkago.UnknownTopicOrPartition: {"UNKNOWN_TOPIC_OR_PARTITION", verdict{action: actionWait, scope: sinks.ScopeDestination, reason: reasonUnknownTopic, moved: true},
		"missing, after it was waited for 2 s: leaders learn of a new topic a moment later"},
	kafkago.UnknownTopicID: {"UNKNOWN_TOPIC_ID", verdict{action: actionWait, scope: sinks.ScopeDestination, reason: reasonUnknownTopic, moved: true},
		"deleted, or created again under the same name"},
	kafkago.InconsistentTopicID: {"INCONSISTENT_TOPIC_ID", verdict{action: actionWait, scope: sinks.ScopeDestination, reason: reasonUnknownTopic, moved: true},
		"created again under the same name, and the leader does not know it yet"},
	kafkago.TopicAuthorizationFailed: {"TOPIC_AUTHORIZATION_FAILED", verdict{action: actionFail, scope: sinks.ScopeDestination, reason: reasonUnauthorized},
		"this user may not write to the topic, or not see it"},
	kafkago.UnsupportedForMessageFormat: {"UNSUPPORTED_FOR_MESSAGE_FORMAT", verdict{action: actionFail, scope: sinks.ScopeDestination, reason: reasonUnsupported},
		"the topic's format is older than record headers: its configuration, and no message's fault"},
	kafkago.UnsupportedCompressionType: {"UNSUPPORTED_COMPRESSION_TYPE", verdict{action: actionFail, scope: sinks.ScopeDestination, reason: reasonCompression},
		"the broker or topic does not take the sink's compression: configuration, and no message's fault"},
	kafkago.PolicyViolation: {"POLICY_VIOLATION", verdict{action: actionFail, scope: sinks.ScopeDestination, reason: reasonPolicy},
		"a policy of the broker's owner is against it"},

	// The partition.

	kafkago.InvalidMessage: {"CORRUPT_MESSAGE", verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonInvalidMessage},
		"damaged on the way, so that the same message can succeed; but brokers before 2.4 say it to a null key in a compacted topic, so that a record without key that is refused alone is a message's, and counted"},
	kafkago.LeaderNotAvailable: {"LEADER_NOT_AVAILABLE", verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonNoLeader, moved: true},
		"a leader is being elected, or none of the replicas is there"},
	kafkago.NotLeaderForPartition: {"NOT_LEADER_OR_FOLLOWER", verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonNotLeader, moved: true},
		"the leader has changed"},
	kafkago.RequestTimedOut: {"REQUEST_TIMED_OUT", verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonTimeout, appended: true},
		"appended by the leader, and not by the replicas in time"},
	kafkago.BrokerNotAvailable: {"BROKER_NOT_AVAILABLE", verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonNoLeader, moved: true},
		"the leader is not among the brokers that are there"},
	kafkago.ReplicaNotAvailable: {"REPLICA_NOT_AVAILABLE", verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonNotLeader, moved: true},
		"the partition has left this broker"},
	kafkago.NetworkException: {"NETWORK_EXCEPTION", verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonConnection, appended: true, moved: true},
		"the brokers lost each other"},
	kafkago.NotEnoughReplicas: {"NOT_ENOUGH_REPLICAS", verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonReplicas},
		"fewer replicas in sync than min.insync.replicas; not appended"},
	kafkago.NotEnoughReplicasAfterAppend: {"NOT_ENOUGH_REPLICAS_AFTER_APPEND", verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonReplicas, appended: true},
		"the same, and appended by the leader"},
	kafkago.KafkaStorageError: {"KAFKA_STORAGE_ERROR", verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonStorage, appended: true, moved: true},
		"the leader's disk failed; another broker takes over"},
	kafkago.ListenerNotFound: {"LISTENER_NOT_FOUND", verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonNoLeader, moved: true},
		"the leader lacks the listener that the relay came by"},
	kafkago.FencedLeaderEpoch: {"FENCED_LEADER_EPOCH", verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonNotLeader, moved: true},
		"the leader has changed"},
	kafkago.UnknownLeaderEpoch: {"UNKNOWN_LEADER_EPOCH", verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonNotLeader, moved: true},
		"the leader has changed, and this broker does not know yet"},
	kafkago.ThrottlingQuotaExceeded: {"THROTTLING_QUOTA_EXCEEDED", verdict{action: actionWait, scope: sinks.ScopePartition, reason: reasonBroker, appended: true},
		"over a quota for now"},

	// The producer id, which the writer renews; nobody notices unless that fails.

	kafkago.OutOfOrderSequenceNumber: {"OUT_OF_ORDER_SEQUENCE_NUMBER", verdict{action: actionRenew, scope: sinks.ScopePartition, reason: reasonProducerID},
		"the partition lost what this producer wrote before, by an unclean election for example"},
	kafkago.DuplicateSequenceNumber: {"DUPLICATE_SEQUENCE_NUMBER", verdict{action: actionRenew, scope: sinks.ScopePartition, reason: reasonProducerID},
		"acknowledged if the batch may have been appended before, for then it was"},
	kafkago.InvalidProducerEpoch: {"INVALID_PRODUCER_EPOCH", verdict{action: actionRenew, scope: sinks.ScopePartition, reason: reasonProducerID},
		"the partition has seen a newer epoch of this producer"},
	kafkago.InvalidProducerIDMapping: {"INVALID_PRODUCER_ID_MAPPING", verdict{action: actionRenew, scope: sinks.ScopePartition, reason: reasonProducerID},
		"the producer id is not this producer's any more"},
	kafkago.UnknownProducerId: {"UNKNOWN_PRODUCER_ID", verdict{action: actionRenew, scope: sinks.ScopePartition, reason: reasonProducerID},
		"retention has removed all that this producer wrote (brokers before 2.5)"},
	kafkago.ProducerFenced: {"PRODUCER_FENCED", verdict{action: actionRenew, scope: sinks.ScopePartition, reason: reasonProducerID},
		"the same as INVALID_PRODUCER_EPOCH, from newer brokers"},

	// Everybody.

	kafkago.InvalidTimestamp: {"INVALID_TIMESTAMP", verdict{action: actionFail, scope: sinks.ScopeSink, reason: reasonTimestamp},
		"the relay's clock and the broker's differ by more than message.timestamp.after.max.ms (or before) allows: the same messages succeed once the clocks are right"},
	kafkago.ClusterAuthorizationFailed: {"CLUSTER_AUTHORIZATION_FAILED", verdict{action: actionDowngrade, scope: sinks.ScopeDestination, reason: reasonUnauthorized},
		"this user may not produce idempotently: said once in the log, and sent without a producer id; if it comes again then, the destination's"},
	kafkago.TransactionalIDAuthorizationFailed: {"TRANSACTIONAL_ID_AUTHORIZATION_FAILED", verdict{action: actionDowngrade, scope: sinks.ScopeDestination, reason: reasonUnauthorized},
		"the same, from some brokers that only speak Kafka's protocol"},
	kafkago.UnsupportedSASLMechanism: {"UNSUPPORTED_SASL_MECHANISM", verdict{action: actionFail, scope: sinks.ScopeSink, reason: reasonAuthentication},
		"sasl.mechanism is not enabled on this listener"},
	kafkago.IllegalSASLState: {"ILLEGAL_SASL_STATE", verdict{action: actionFail, scope: sinks.ScopeSink, reason: reasonAuthentication},
		"the listener does not use SASL"},
	kafkago.SASLAuthenticationFailed: {"SASL_AUTHENTICATION_FAILED", verdict{action: actionFail, scope: sinks.ScopeSink, reason: reasonAuthentication},
		"wrong user or password: no message can be sent until that is corrected"},
	kafkago.UnsupportedVersion: {"UNSUPPORTED_VERSION", verdict{action: actionFail, scope: sinks.ScopeSink, reason: reasonUnsupported},
		"the broker is too old or too new for this request"},
	kafkago.InvalidRequest: {"INVALID_REQUEST", verdict{action: actionFail, scope: sinks.ScopeSink, reason: reasonUnsupported},
		"the broker cannot read the request"},
	kafkago.InvalidRequiredAcks: {"INVALID_REQUIRED_ACKS", verdict{action: actionFail, scope: sinks.ScopeSink, reason: reasonUnsupported},
		"the broker does not know acks=all"},
	kafkago.GroupLoadInProgress: {"COORDINATOR_LOAD_IN_PROGRESS", verdict{action: actionWait, scope: sinks.ScopeSink, reason: reasonBroker},
		"no producer id for now: the broker starts"},
	kafkago.GroupCoordinatorNotAvailable: {"COORDINATOR_NOT_AVAILABLE", verdict{action: actionWait, scope: sinks.ScopeSink, reason: reasonBroker},
		"no producer id for now: the controller is away"},
	kafkago.NotCoordinatorForGroup: {"NOT_COORDINATOR", verdict{action: actionWait, scope: sinks.ScopeSink, reason: reasonBroker},
		"no producer id for now: the controller has moved"},
	kafkago.NotController: {"NOT_CONTROLLER", verdict{action: actionWait, scope: sinks.ScopeSink, reason: reasonBroker},
		"no producer id for now: the controller has moved"},
	kafkago.ConcurrentTransactions: {"CONCURRENT_TRANSACTIONS", verdict{action: actionWait, scope: sinks.ScopeSink, reason: reasonBroker},
		"no producer id for now"},
	kafkago.PrincipalDeserializationFailure: {"PRINCIPAL_DESERIALIZATION_FAILURE", verdict{action: actionFail, scope: sinks.ScopeSink, reason: reasonAuthentication},
		"the brokers do not understand each other about who this user is"},
	kafkago.InconsistentClusterID: {"INCONSISTENT_CLUSTER_ID", verdict{action: actionFail, scope: sinks.ScopeSink, reason: reasonUnsupported},
		"brokers of two clusters share an address"},
	rebootstrapRequired: {"REBOOTSTRAP_REQUIRED", verdict{action: actionWait, scope: sinks.ScopeSink, reason: reasonBroker, moved: true},
		"the metadata is of another cluster; it is read again from the brokers"},
}

// rebootstrapRequired is newer than kafka-go's list.
const rebootstrapRequired kafkago.Error = 129 //nolint:errname // named like its siblings
