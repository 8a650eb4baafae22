// Package rabbitmq consumes a RabbitMQ queue through the inbox, so that each
// message has its effect in the database once.
//
//	consumer, err := rabbitmq.New(rabbitmq.Config{
//		URLs:     []string{os.Getenv("RABBITMQ_URL")},
//		Queue:    "shipping.orders",
//		Inbox:    &inbox.Inbox{Consumer: "shipping"},
//		DB:       pool,
//		Handler:  ship,
//		OnPoison: rabbitmq.DeadLetter{RoutingKey: "shipping.dead"},
//	})
//	if err != nil {
//		return err
//	}
//	return consumer.Run(ctx) // until ctx ends
//
// # Guarantees
//
// A message is acknowledged only after the transaction committed that holds
// its id and the handler's effect, or after it was put aside by OnPoison,
// which for a DeadLetter means that the broker confirmed it and did not return
// it. What is not acknowledged comes again, and the inbox recognises what had
// its effect: whatever is killed, cut or restarted, each message has one
// effect, or is put aside, and none is lost.
//
// The messages of one key (header message-key) are processed one after another
// in the order of their arrival, whatever Concurrency is, and a failed one is
// retried in its place. That is the order of the queue as long as one consumer
// reads it. With several, and to keep the order when a connection is lost (the
// broker may see the lost consumer and the new one for a moment), declare the
// queue with x-single-active-consumer, or
// give each its own queue (a consistent-hash exchange, or a super stream):
// RabbitMQ hands a queue's messages to its consumers in turn, whatever their
// key.
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
// Attempts are counted in this process, by message id, so that they survive a
// lost connection; a restart begins anew. With RetryRequeue a message may fail
// in several processes: quorum queues count deliveries (x-delivery-count), and
// the greater number counts. With RetryInPlace that header is not looked at,
// since a lost connection raises it for innocent messages too, and so is
// x-death: a message that an operator moved back from a dead-letter queue
// begins anew.
//
// A message whose handler returned inbox.Permanent goes to OnPoison at once.
// Several messages in a row that fail alike are kept: see
// Config.BreakerThreshold.
//
// With RetryInPlace a message that fails for a while holds back those behind
// it, of its key, or with a Concurrency of 1 all; MaxAttempts with Backoff bounds
// that. RetryRequeue lets them pass, and so gives up the
// order.
//
// # Limits of the broker
//
// RabbitMQ takes a message back that is not acknowledged in time
// (consumer_timeout, 30 minutes by default, counted from when it was sent to
// the consumer) by closing the channel, or from 4.3 on by cancelling the
// consumer. The messages come again; but if all of them always take so long
// none is ever finished. Keep Prefetch / Concurrency times HandlerTimeout,
// with its retries, well below it.
//
// Quorum queues drop a message, or dead-letter it, that was delivered too often
// (x-delivery-limit, 20 by default from RabbitMQ 4.0 on). Stops and lost
// connections count there, for every message that was prefetched, and so do
// requeues. Give the queue a dead-letter exchange, and a limit well above
// MaxAttempts. While the database is away for longer than a minute the consumer
// gives its messages back, once, and subscribes again when the database
// answers.
//
// A dead letter may be published twice, when the connection is lost between its
// confirm and the acknowledgement; both copies have the same message id.
//
// # Connections
//
// The consumer has one connection, and another one while there are dead
// letters: RabbitMQ stops reading from connections that publish when it runs
// out of memory or disk space, and acknowledgements must not be stuck behind.
// Heartbeats (10 s, or the URL's heartbeat parameter) find a dead peer within
// three intervals, and every write is bounded, so that a frozen network ends
// the connection too. When it is lost, the channel closed or the consumer
// cancelled because the queue was deleted or moved, Run lets the running
// handlers finish and subscribes again, at the next of URLs, with Backoff.
//
// On a stop the channel is closed only after the running handlers were
// acknowledged, and nothing is cancelled before: when a consumer is cancelled
// while it still holds messages, a quorum queue with a single active consumer
// gives later messages to the next one first.
package rabbitmq
