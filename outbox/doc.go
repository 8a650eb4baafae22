// Package outbox writes messages to the outbox table inside the caller's own
// transaction, so that a message is published if, and only if, the
// transaction that caused it commits.
//
//	tx, err := pool.Begin(ctx)
//	if err != nil {
//		return err
//	}
//	defer tx.Rollback(ctx)
//
//	// … what the service does to its own tables …
//
//	_, err = outbox.Insert(ctx, tx, outbox.Message{
//		Topic: "orders",
//		Key:   order.ID,
//		Type:  "OrderPlaced",
//		JSON:  order,
//	})
//	if err != nil {
//		return err
//	}
//	return tx.Commit(ctx)
//
// # Guarantees
//
// A message of a transaction that commits is published at least once; a
// message of a transaction, or of a savepoint, that rolls back never is. The
// package reaches no broker and starts no goroutine: Insert is one INSERT, in
// one round trip, for one message or for thousands. The first JSON of a
// connection takes one more, to find out whether the table has payload_json.
//
// # Order
//
// Within a topic and key, messages are published in ascending id. Ids are
// drawn when Insert runs, not when its transaction commits: two transactions
// that write for one key at the same time may commit in the other order, and
// nobody can tell which one was meant to come first. Where the order matters,
// hold a lock on the thing that the key names from before Insert until the
// commit. An UPDATE of the order's own row, or SELECT … FOR UPDATE, is such a
// lock, and most services take it anyway.
//
// # Answers
//
// With the context of an inbox's handler (package inbox) a message is an answer
// to the one that is handled: header causation-id is that one's id, and
// correlation-id is the same for all messages that one led to, be it over any
// number of services. docs/writing.md has more.
//
// # Requirements
//
// The table is made by `relay migrate`. The role that inserts needs
//
//	GRANT USAGE ON SCHEMA public TO app;
//	GRANT INSERT, SELECT (id) ON public.outbox TO app;
//
// (SELECT of the id alone is what returning the ids takes.) Every query mode
// of pgx works, and every driver of database/sql. Insert needs no state of the
// session, so it works through PgBouncer in transaction mode too, as long as
// the driver does: with pgx set default_query_exec_mode to exec,
// cache_describe or simple_protocol unless PgBouncer keeps track of prepared
// statements (1.21, max_prepared_statements).
package outbox
