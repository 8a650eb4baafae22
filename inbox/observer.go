package inbox

import "time"

// Observer is told what becomes of messages, so that it can be counted: package
// metrics has one for Prometheus. Its methods may be called concurrently, and
// keep messages waiting until they return. One that is a ConsumerObserver too
// is told what the consumers of packages kafka and rabbitmq do.
//
// Methods may be added to it in a minor version: embed Unobserved in an
// implementation of yours.
//
// A source is the Kafka topic or RabbitMQ queue that a message was read from
// (Message.Source), or its Topic where that is not known.
type Observer interface {
	// Began tells that a transaction with messages begins; Ended follows, also
	// when the handler panics.
	Began(consumer string, messages []Message)
	// Ended tells how a transaction ended. In a transaction of the caller's it
	// is told before that commits.
	Ended(Outcome)
	// Failed tells that messages of a source, one or a batch, could not be
	// processed, once for each time.
	Failed(consumer, source string, reason Reason)
	// Retried tells that a transaction, or a message, is tried again.
	Retried(consumer, source string)
	// Pruned tells that Prune removed ids.
	Pruned(ids int64)
}

// ConsumerObserver is an Observer's part for the consumers of packages kafka and
// rabbitmq, of which Inbox.Observer is asked whether it has it.
type ConsumerObserver interface {
	// PutAside tells that a message was given up and is safe elsewhere,
	// PutAsideFailed that it could not be put there, which is tried again.
	PutAside(consumer, source string, to Aside)
	PutAsideFailed(consumer, source string)
	// AcknowledgementFailed tells that the broker could not be told what was
	// processed: an offset's commit, or an acknowledgement. It comes again.
	AcknowledgementFailed(consumer, source string)
	// DatabaseUp tells whether the database can be used, BrokerUp whether a
	// source can be read; first, before anything is known, that it cannot.
	DatabaseUp(consumer string, up bool)
	BrokerUp(consumer, source string, up bool)
	// BreakerOpen tells whether messages wait because several in a row failed
	// alike, Paused whether the application has paused the consumer, or a part of
	// it; both first when the consumer begins.
	BreakerOpen(consumer string, open bool)
	Paused(consumer string, paused bool)
	// Assigned and Revoked tell that a Kafka partition is this consumer's, and
	// no more. In between Lag tells how many messages are yet to be processed.
	Assigned(consumer, topic string, partition int32)
	Revoked(consumer, topic string, partition int32)
	Lag(consumer, topic string, partition int32, messages int64)
}

// Outcome is how a transaction ended.
type Outcome struct {
	Consumer string
	// Messages are those of the transaction, duplicates included, and Results
	// what became of them. Without Results it failed.
	Messages []Message
	Results  []Result
	// Took is the time from the call of Process to its end, the wait for a
	// connection, for the database and for another transaction with the same
	// message included, and all runs where it was run again. Handler is the
	// handler's part, HandlerRan whether there is one.
	Took, Handler time.Duration
	HandlerRan    bool
}

// Reason is why messages could not be processed, fit for a metric's label.
type Reason string

// The reasons.
const (
	// HandlerFailed: the handler returned an error.
	HandlerFailed Reason = "handler"
	// HandlerPanicked: it panicked.
	HandlerPanicked Reason = "panic"
	// TimedOut: its time was over.
	TimedOut Reason = "timeout"
	// CommitFailed: the transaction could not be committed, such as for a
	// deferred constraint.
	CommitFailed Reason = "commit"
	// WithoutID: the message has no id.
	WithoutID Reason = "no_id"
	// DatabaseFailed: the database could not be used: it is away, or the inbox
	// cannot be written. The message is not to blame.
	DatabaseFailed Reason = "database"
	// Contention: other transactions were in the way, by a lock that was not free
	// in time, a deadlock or a serialization failure, more often than
	// Inbox.Retries. The message is not to blame.
	Contention Reason = "contention"
	// Interrupted: the caller's context was canceled.
	Interrupted Reason = "interrupted"
)

// Reasons are all of them.
func Reasons() []Reason {
	return []Reason{HandlerFailed, HandlerPanicked, TimedOut, CommitFailed, WithoutID, DatabaseFailed, Contention, Interrupted}
}

// Aside is where a message is that could not be processed, fit for a metric's
// label.
type Aside string

// The places.
const (
	// Parked is the table beside the inbox: package parked.
	Parked Aside = "parked"
	// DeadLettered is a topic or queue for dead letters.
	DeadLettered Aside = "dead_lettered"
)

// Unobserved is an Observer and a ConsumerObserver that does nothing.
type Unobserved struct{}

// Began implements Observer, as do all others.
func (Unobserved) Began(string, []Message) {}

// Ended implements Observer.
func (Unobserved) Ended(Outcome) {}

// Failed implements Observer.
func (Unobserved) Failed(string, string, Reason) {}

// Retried implements Observer.
func (Unobserved) Retried(string, string) {}

// Pruned implements Observer.
func (Unobserved) Pruned(int64) {}

// PutAside implements ConsumerObserver.
func (Unobserved) PutAside(string, string, Aside) {}

// PutAsideFailed implements ConsumerObserver.
func (Unobserved) PutAsideFailed(string, string) {}

// AcknowledgementFailed implements ConsumerObserver.
func (Unobserved) AcknowledgementFailed(string, string) {}

// DatabaseUp implements ConsumerObserver.
func (Unobserved) DatabaseUp(string, bool) {}

// BrokerUp implements ConsumerObserver.
func (Unobserved) BrokerUp(string, string, bool) {}

// BreakerOpen implements ConsumerObserver.
func (Unobserved) BreakerOpen(string, bool) {}

// Paused implements ConsumerObserver.
func (Unobserved) Paused(string, bool) {}

// Assigned implements ConsumerObserver.
func (Unobserved) Assigned(string, string, int32) {}

// Revoked implements ConsumerObserver.
func (Unobserved) Revoked(string, string, int32) {}

// Lag implements ConsumerObserver.
func (Unobserved) Lag(string, string, int32, int64) {}

// SourceOf names where a message was read: the topic or queue, as far as it is
// known, else the message's Topic.
func SourceOf(message Message) string {
	if message.Source.Name != "" {
		return message.Source.Name
	}
	return message.Topic
}
