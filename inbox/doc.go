// Package inbox makes the database effect of a message happen once, however
// often the broker delivers it. The message's id is claimed in the transaction
// of the effect: who claims it first does the work, and everybody later finds
// it done.
//
//	box := &inbox.Inbox{Consumer: "shipping"}
//
//	result, err := box.Process(ctx, pool, message,
//		func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
//			_, err := tx.Exec(ctx, `INSERT INTO shipments (order_id) VALUES ($1)`, string(m.Key))
//			return err
//		})
//	if err != nil {
//		return err // the message is unseen: let the broker deliver it again
//	}
//	// result is inbox.Processed or inbox.Duplicate: acknowledge either way
//
// # Guarantees
//
// For each consumer and message id at most one transaction commits with the
// handler's effect, for as long as the inbox remembers the id
// (Inbox.Retention). When the handler returns an error or panics, its context
// ends, or the process dies, nothing is committed and the message is unseen,
// so acknowledge only what Process returned without an error: then the effect
// happens exactly once.
//
// Only what the handler does through its transaction is part of this. A mail
// that it sends may be sent again; insert a message into an outbox instead.
//
// When two transactions have the same message at the same time, the second
// waits for the first, and then is a duplicate, or does the work if the first
// rolled back.
//
// # Retention
//
// The inbox recognises a duplicate only as long as it keeps the first one's
// id. Inbox.Prune removes ids that are older than Inbox.Retention, 15 days
// unless set. Keep them longer than the broker can deliver a message again:
// longer than a Kafka topic's retention.ms and segment.ms together where a consumer group's offsets may
// be reset, longer than messages may wait in a queue, a dead-letter queue
// included, and longer than the outbox keeps published rows that
// `relay replay` can send again.
//
// # Metrics and traces
//
// Each transaction is an OpenTelemetry span, a child of the trace context that
// the message carries, where the application has a tracer provider. An
// Inbox.Observer is told what becomes of messages: package metrics makes
// Prometheus metrics of that. docs/inbox.md has attributes and metrics.
//
// # Requirements
//
// `relay migrate --only inbox` makes the table; in the database where the
// effects are, since they share a transaction. The role that consumes needs
//
//	GRANT USAGE ON SCHEMA public TO app;
//	GRANT SELECT, INSERT ON public.inbox TO app;
//	GRANT SELECT, INSERT, UPDATE ON public.inbox_order TO app; -- for Inbox.Order
//
// Every query mode of pgx works, and every driver of database/sql. No state of
// the session is needed, so PgBouncer in transaction mode works too, as long as
// the driver does: with pgx set default_query_exec_mode to exec,
// cache_describe or simple_protocol unless PgBouncer keeps track of prepared
// statements (1.21, max_prepared_statements).
package inbox
