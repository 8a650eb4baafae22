package inbox

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Process claims the message's id and runs the handler, in one transaction,
// unless the consumer has processed the message before. An error means that
// nothing was committed and the message is unseen, with one exception: when
// the connection breaks while it commits nobody knows, and the next delivery
// of the message finds out.
//
// The handler's errors are returned as they are. An error that is ErrNoID
// concerns the message, and would be the same the next time.
//
// With a pool or a connection the transaction is its own, and the claim costs
// no round trip: it goes with the BEGIN. With a pgx.Tx the message is
// processed within the caller's transaction, in a savepoint: what Process
// returns holds once that commits, and an error undoes only what the handler
// and the claim did. A transaction of its own that fails by a serialization
// error or a deadlock is run again, see Inbox.Retries.
//
// While another transaction processes the same message Process waits for its
// end. Bound that, and the handler, by the context: when it ends, the
// transaction is rolled back. When the handler panics the transaction is
// rolled back and the panic goes on.
func (i *Inbox) Process(ctx context.Context, db Beginner, message Message, handler Handler) (result Result, err error) {
	message, err = i.prepare(ctx, message)
	if err != nil {
		return Unprocessed, err
	}
	ctx, o := i.observe(ctx, false, message)
	defer func() { o.end(err, result) }()
	run := func() (err error) {
		result, err = i.process(ctx, db, o, message, handler)
		return err
	}
	if _, callers := db.(pgx.Tx); callers {
		err = run()
	} else {
		err = i.retry(ctx, o, run)
	}
	return result, err
}

// prepare checks all that can be checked before the database is asked, and
// returns the message with its identity.
func (i *Inbox) prepare(ctx context.Context, message Message) (Message, error) {
	if err := i.check(); err != nil {
		return message, err
	}
	id, err := i.Identify(message)
	if err != nil {
		i.refused(ctx, message)
	}
	if i.IDOf != nil {
		message.former = ID{}
	}
	message.ID = id
	return message, err
}

func (i *Inbox) process(ctx context.Context, db Beginner, o *observation, message Message, handler Handler) (Result, error) {
	var claimed bool
	var previous []int64
	order := i.newOrder(message)
	tx, err := begin(ctx, db, func(batch *pgx.Batch) {
		sql, arguments, rows := i.claim(message)
		batch.Queue(sql, arguments...).Exec(func(tag pgconn.CommandTag) error {
			claimed = tag.RowsAffected() >= rows
			return nil
		})
		i.queueOrder(batch, order, &previous)
	})
	if err != nil {
		return Unprocessed, i.explain("claim in", err)
	}
	committed := false
	defer func() { // also when the handler panics
		if !committed {
			rollback(ctx, tx)
		}
	}()
	if !claimed {
		committed = i.release(ctx, db, tx, order)
		return Duplicate, nil
	}
	result := i.verdict(order.late([]Message{message}, []bool{true}, previous)[0])
	if result.Ran() {
		if err := o.handle(func() error { return handler(ctx, tx, message) }); err != nil {
			return Unprocessed, err
		}
	}
	if err := commit(ctx, tx); err != nil {
		return Unprocessed, i.explain("commit with a claim in", err)
	}
	committed = true
	return result, nil
}

// release ends a savepoint in which nothing was written, and reports whether it
// did: one that is rolled back to stays, and a long transaction with many
// duplicates would gather them.
func (i *Inbox) release(ctx context.Context, db Beginner, tx pgx.Tx, order order) bool {
	_, callers := db.(pgx.Tx)
	return callers && len(order.streams) == 0 && tx.Commit(ctx) == nil
}

// commit does not begin what the context no longer wants.
func commit(ctx context.Context, tx pgx.Tx) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return tx.Commit(ctx)
}

// claim is the statement that claims a message, and how many rows it writes for
// one that is new.
func (i *Inbox) claim(message Message) (sql string, arguments []any, rows int64) {
	if message.former.IsZero() {
		return fmt.Sprintf(claimSQL, i.identifier("")), i.claimArguments(message), 1
	}
	return fmt.Sprintf(claimBatchSQL, i.identifier("")), i.claimBatchArguments([]Message{message}), 2
}

// claimArguments are claimSQL's.
func (i *Inbox) claimArguments(message Message) []any {
	arguments := []any{i.Consumer, message.ID.String(), nil, nil, nil, nil}
	if !message.ReceivedAt.IsZero() {
		arguments[2] = message.ReceivedAt
	}
	if source := message.Source; source.Name != "" {
		arguments[3] = storable(source.Name)
		if source.HasOffset {
			arguments[4], arguments[5] = source.Partition, source.Offset
		}
	}
	return arguments
}

// storable is text as PostgreSQL can hold it: it never fails on a name that a
// broker allows.
func storable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
