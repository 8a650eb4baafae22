// Package kafka consumes Kafka topics as a member of a consumer group, through
// the inbox, so that each message has its effect in the database once.
//
//	consumer, err := kafka.New(kafka.Config{
//		Brokers: []string{"kafka-1:9092", "kafka-2:9092"},
//		Group:   "shipping",
//		Topics:  []string{"orders"},
//		Inbox:   &inbox.Inbox{Consumer: "shipping"},
//		DB:      pool,
//		Handler: ship,
//	})
//	if err != nil {
//		return err
//	}
//	return consumer.Run(ctx) // until ctx ends
//
// # Guarantees
//
// An offset is committed only after the transactions of all messages below it
// have committed, with their ids and the handlers' effects, or after a message
// was put aside by OnPoison: parked in the database, or acknowledged by all
// in-sync replicas of the dead-letter topic. What is not committed comes again,
// and the inbox recognises what had its effect: whatever is killed, cut or
// restarted, each message has one effect, or is put aside, and none is lost.
//
// The messages of a partition are processed one after another in the order of
// their offsets, and a failed one is retried in its place; where Concurrency is
// more than 1 this holds for those of a key. Partitions do not wait for each
// other. The order of the effects also holds while partitions
// change hands, and where a member goes on for a moment with a partition that
// the group has given to another one: both claim the same ids in the same
// order, each effect is committed by one of them, and the other one waits for
// that. What was put aside is overtaken; see Inbox.Order.
//
// # What a failure is, and how often it is tried
//
// An attempt counts when the handler returned an error, panicked or took longer
// than HandlerTimeout, or its transaction could not be committed for a reason
// of its own (a deferred constraint). Nothing else counts: while the database
// is away, restarts, became a standby or refuses connections, while other
// transactions are in the way (lock_timeout, deadlocks, serialization failures),
// while it is slow to begin or to commit, and while the inbox's own table is
// missing or not accessible, messages wait, for as long as it takes. Where an error leaves that open, such as a timeout,
// the database is asked whether it answers.
//
// After MaxAttempts a message goes where OnPoison says; one without an id goes
// there at once, as no further attempt could succeed (see Inbox.IDOf and
// Config.Decoder), and so does one whose handler returned inbox.Permanent.
// Attempts are counted in memory, by message id: when the process ends counting
// begins again. A very large MaxAttempts holds the message until it succeeds.
// Several messages in a row that fail alike are kept: see
// Config.BreakerThreshold.
//
// # Rebalances and stops
//
// When the group rebalances a member begins no further message, lets the
// handlers that run finish, commits, and only then joins again; it sends
// heartbeats meanwhile. The group waits for it, RebalanceTimeout long. A stop
// is the same, and leaves the group, so that the others take over at once.
// Neither has a message delivered twice, but for those processed ahead of another
// key's where Concurrency is more than 1.
//
// A member that says nothing for SessionTimeout loses its partitions. Handlers
// are bounded by HandlerTimeout, so no partition is held for ever; a handler
// that ignores its context is named in the log, and nothing of its partition
// is processed before it returns.
//
// With CooperativeSticky as the only balancer members go on with their partitions
// meanwhile, and give up only those that move. With InstanceID a member that is
// restarted has its partitions again, and the group does not rebalance.
//
// # Memory
//
// A partition is read when what was read before is being processed. Responses
// stay in memory as the broker sent them, and are decompressed while they are
// read, one record at a time. Config.MaxBytes bounds what all partitions together
// have in memory of them and of the messages that wait or are at work.
//
// # Why not kafka.Reader
//
// kafka-go's Reader gives all partitions through one queue, so that one slow
// handler holds up all; keeps messages of partitions that it has lost
// (segmentio/kafka-go#1398), commits what belongs to an older generation in the
// name of the newer one, which sets the offset back (#1308), and with
// LastOffset passes over what was published before its first commit (#904,
// #1319). Its ConsumerGroup, below it, stops sending heartbeats when a
// rebalance begins, so that handlers would have to finish within the session's
// timeout; cannot be stopped while it joins, and then does not leave. Neither
// knows static members or cooperative rebalancing. So this package is a group
// member of its own, by the same classic protocol (balancers range, roundrobin
// and CooperativeSticky, or any kafka.GroupBalancer), on kafka-go's encoding of
// requests: commits carry their generation, which the broker checks, and
// offsets of kafka.LastOffset are committed before anything is read.
//
// Fetch, Metadata and Heartbeat are encoded here, in the versions that know
// topics' ids, racks and static members. So are record batches: kafka-go
// decompresses a whole response at once, and panics on formats 0 and 1.
package kafka
