// Package rabbitmq publishes to RabbitMQ over AMQP 0-9-1 with publisher
// confirms.
//
// # What is guaranteed
//
// A message is reported as sent only after the broker confirmed it positively
// and, with mandatory, did not return it as unroutable. A returned message
// arrives before its confirm, so the channel that reads both looks at every
// return that came before a confirm before it believes the confirm.
//
// With order strict, at most one message of an (exchange, routing key, key) is
// unresolved at any time: the next one leaves after the confirm of the one
// before, so no failure can put a later one first. The window of max_in_flight
// fills with messages of different keys. With order pipelined the messages of
// a key leave back to back, which is faster when there are few keys; when the
// broker refuses one of them (a nack of a full queue, a return), those behind
// it may already be in the queue. They are reported as failed with it and sent
// again after it: a consumer sees them early, and then again in order.
//
// Confirms that are lost with a connection are failures, so what was in flight
// may be sent twice.
//
// # How it is built
//
//   - Publisher owns at most one connection, made again when the last one ended.
//   - connection is one connection to the broker: its channels, and whether the broker blocks it.
//   - stream is the connection's socket: writes are handed to a goroutine of
//     its own, which writes many frames with one system call and bounds every
//     write, so that a stalled broker cannot hang a caller.
//   - channel is one channel in confirm mode for one exchange, with the queue of
//     messages that await their confirm. The broker answers a refused publish
//     (missing exchange, no permission, too large a message) by closing the
//     channel, so exchanges do not share one.
//   - sender is a stream of batches, and Publish one of a single batch: it groups
//     the messages into parts, one for each exchange, sends what order allows and
//     settles each key as a prefix.
//   - call is one batch of a stream.
//
// A channel that the broker closed does not say which message it refused. The
// sender then sends its own unresolved messages one at a time on a private channel:
// the one that closes it is the culprit, the others are innocent.
package rabbitmq
