package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/outboxrelay/relay/sinks"
)

// maxError bounds the error that an entry or a dead letter keeps, in bytes.
const maxError = 4 << 10

// UnrecordedError says that what was published is recorded, and that what became of refused messages
// could not be recorded as it was asked for.
type UnrecordedError struct {
	Err error
	// Rows are the messages of which nothing is recorded, by their ids: they will be tried again
	// at once. Nil: all that were refused but those in Kept.
	Rows map[int64]error
	// Kept are messages that the database did not let go, each with the reason. They are parked instead.
	Kept map[int64]error
}

// Lost reports whether nothing is recorded of a refused message.
func (e *UnrecordedError) Lost(id int64) bool {
	if e == nil {
		return false
	}
	if e.Rows != nil {
		return e.Rows[id] != nil
	}
	return e.Kept[id] == nil
}

// Error implements error.
func (e *UnrecordedError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *UnrecordedError) Unwrap() error { return e.Err }

// Settle implements Batch. Where all is well it marks or deletes, and commits,
// in one round trip.
func (b *rowBatch) Settle(ctx context.Context, outcomes []Outcome) error {
	defer b.end()
	changes := b.changes(outcomes)
	if len(b.ids) < len(b.messages) {
		b.forgetDelayed()
	}
	if len(b.ids) == 0 && b.held == nil && changes.none() {
		return nil
	}
	err := b.settle(ctx, &changes)
	if pgconn.Timeout(err) {
		b.claimer.pool.Reset() // see Claim
	}
	if _, recorded := errors.AsType[*UnrecordedError](err); err == nil || recorded {
		return err
	}
	b.forgetDelayed()
	return b.remember(ctx, err)
}

// remember keeps in mind what was published and not settled, so that it is not published again, and settles
// what of it can be.
func (b *rowBatch) remember(ctx context.Context, err error) error {
	if len(b.ids) == 0 {
		return err
	}
	c := b.claimer
	var ids []int64
	var messages [][16]byte
	marked := b.ids
	for i := range b.messages {
		m := &b.messages[i]
		if len(marked) == 0 || m.Sequence != marked[0] {
			continue
		}
		marked = marked[1:]
		c.unsettled.add(m.Sequence, m.ID)
		ids, messages = append(ids, m.Sequence), append(messages, m.ID)
	}
	conn := b.conn.Conn().PgConn()
	if conn.IsClosed() || ctx.Err() != nil {
		return c.unsettledError(len(ids), 0, Fails, err)
	}
	if conn.TxStatus() != 'I' {
		if _, rollback := conn.Exec(ctx, "ROLLBACK").ReadAll(); rollback != nil {
			return c.unsettledError(len(ids), 0, Fails, err)
		}
	}
	order := slices.IsSorted(ids)
	if !order {
		sortTogether(ids, messages)
	}
	return c.resettle(ctx, conn, ids, messages, false)
}

// sortTogether sorts ids, and messages like them.
func sortTogether(ids []int64, messages [][16]byte) {
	of := make(map[int64][16]byte, len(ids))
	for i, id := range ids {
		of[id] = messages[i]
	}
	slices.Sort(ids)
	for i, id := range ids {
		messages[i] = of[id]
	}
}

func (b *rowBatch) settle(ctx context.Context, changes *changes) error {
	pg := b.conn.Conn().PgConn()
	batch := &pgconn.Batch{}
	marks := 0
	if len(b.ids) > 0 {
		preparedOn(pg).add(batch, b.claimer.settle, [][]byte{idArray(b.ids)}, nil)
		marks = 1
	}
	var unrecorded *UnrecordedError
	var marked int64
	if changes.none() {
		results, err := commitWith(ctx, pg, batch)
		if err != nil {
			return fmt.Errorf("mark %d rows of %s: %w", len(b.ids), b.claimer.table.outbox, err)
		}
		marked = affected(results[:marks])
	} else {
		// Behind a savepoint, so that a missing privilege on the tables of failures, say,
		// does not take back the marks of what was published.
		batch.ExecParams(recordWaitSQL, nil, nil, nil, nil)
		results, err := pg.ExecBatch(ctx, batch).ReadAll()
		if err != nil {
			return fmt.Errorf("mark %d rows of %s: %w", len(b.ids), b.claimer.table.outbox, err)
		}
		marked = affected(results[:marks])
		if _, unrecorded, err = recordAll(ctx, pg, &b.statements, b.held != nil, changes); err == nil {
			_, err = commitWith(ctx, pg, &pgconn.Batch{})
		}
		if err != nil {
			return fmt.Errorf("mark %d rows of %s: %w", len(b.ids), b.claimer.table.outbox, err)
		}
	}
	if next, any := changes.next(time.Now()); any || b.held != nil {
		b.claimer.agenda.add(next)
	}
	// They are locked, so only a trigger, a rule or a policy can be in the way.
	if marked != int64(len(b.ids)) {
		return fmt.Errorf("mark rows of %s: %w", b.claimer.table.outbox, hinderedError(marked, len(b.ids)))
	}
	if unrecorded != nil {
		unrecorded.Err = fmt.Errorf("record refused messages of %s: %w", b.claimer.table.outbox, unrecorded.Err)
		return unrecorded
	}
	return nil
}

func affected(results []*pgconn.Result) (n int64) {
	for _, result := range results {
		n += result.CommandTag.RowsAffected()
	}
	return n
}

// commitWith runs the batch and commits. COMMIT of a transaction that failed is
// no error, so its answer is looked at.
func commitWith(ctx context.Context, pg *pgconn.PgConn, batch *pgconn.Batch) ([]*pgconn.Result, error) {
	batch.ExecParams(`COMMIT`, nil, nil, nil, nil)
	results, err := pg.ExecBatch(ctx, batch).ReadAll()
	if err != nil {
		return nil, err
	}
	if tag := results[len(results)-1].CommandTag.String(); tag != "COMMIT" {
		return nil, fmt.Errorf("the server answered %s to COMMIT", tag)
	}
	return results, nil
}

// entryID is the id of a message's entry; one that has none yet gets its own.
func entryID(e *entry, m *sinks.Message) int64 {
	if e == nil {
		return m.Sequence
	}
	return e.id
}

// changes sorts the messages by what became of them, those that were published
// into b.ids.
func (b *rowBatch) changes(outcomes []Outcome) (c changes) {
	b.ids = b.ids[:0]
	taken := map[Key]bool{} // keys with a refused message
	touched := map[*entry]bool{}
	left := map[*entry]bool{} // entries with a message that stays
	for i := range b.messages {
		m := &b.messages[i]
		o := Outcome{Verdict: Published}
		if outcomes != nil {
			o = outcomes[i]
		}
		var e *entry
		head := false
		if b.held != nil {
			e, head = b.held.of(m)
		}
		if o.refused() && b.claimer.options.Ordering != OrderNone {
			key := Key{Topic: m.Topic, Key: string(m.Key)}
			if b.claimer.options.Ordering == OrderTotal {
				key = Key{}
			}
			if ordered := m.Key != nil || b.claimer.options.Ordering == OrderTotal; ordered {
				if taken[key] {
					o = Outcome{}
				}
				taken[key] = true
			}
		}
		switch o.Verdict {
		case Published:
			b.ids = append(b.ids, m.Sequence)
		case Dead:
			c.dead.add(entryID(e, m), m.Sequence, &o)
		case Dropped:
			c.dropped.add(entryID(e, m), m.Sequence, &o)
		case Retrying, Parked:
			if e == nil {
				c.parked.add(m.Sequence, m.Sequence, &o)
			} else {
				c.failed.add(e.id, m.Sequence, &o)
				touched[e], left[e] = true, true
			}
			continue
		case GivenBack:
			left[e] = true
			if e != nil && !touched[e] && o.RetryIn > 0 {
				c.postpone(e.id, o.RetryIn)
				touched[e] = true
			}
			continue
		}
		if head {
			b.claimer.free(e, e.id, &c.entryChanges)
		}
	}
	if b.held != nil {
		for _, e := range b.held.keys {
			if e.last && !left[e] {
				b.claimer.let(e.id, &c.entryChanges)
			}
		}
	}
	return c
}
