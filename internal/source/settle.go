package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// maxError bounds the error that an entry or a dead letter keeps, in bytes.
const maxError = 4 << 10

// UnrecordedError says that what was published is recorded, and that it could
// not be recorded which messages were refused: they will be tried again at once.
type UnrecordedError struct {
	Err error
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
	var unrecorded error
	var marked int64
	if changes.none() {
		results, err := commitWith(ctx, pg, batch)
		if err != nil {
			return fmt.Errorf("mark %d rows of %s: %w", len(b.ids), b.claimer.table.outbox, err)
		}
		marked = affected(results[:marks])
	} else {
		// A savepoint, so that a missing privilege on the tables of failures, say,
		// does not take back the marks of what was published.
		batch.ExecParams(savepointSQL, nil, nil, nil, nil)
		batch.ExecParams(recordWaitSQL, nil, nil, nil, nil)
		results, err := pg.ExecBatch(ctx, batch).ReadAll()
		if err != nil {
			return fmt.Errorf("mark %d rows of %s: %w", len(b.ids), b.claimer.table.outbox, err)
		}
		marked = affected(results[:marks])
		end := &pgconn.Batch{}
		if unrecorded = changes.record(ctx, pg, &b.statements); unrecorded != nil {
			end.ExecParams(toSavepointSQL, nil, nil, nil, nil)
		}
		if _, err := commitWith(ctx, pg, end); err != nil {
			return fmt.Errorf("mark %d rows of %s: %w", len(b.ids), b.claimer.table.outbox, errors.Join(err, unrecorded))
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
		return &UnrecordedError{Err: fmt.Errorf("record refused messages of %s: %w", b.claimer.table.outbox, unrecorded)}
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

// refusals are the parameters of a statement about refused rows.
type refusals struct {
	ids, rows       []int64
	states          []string
	attempts        []int
	reasons, errors []string
	pauses          []time.Duration
}

// add takes over a refused row and its entry; they are the same where there is
// no entry yet.
func (r *refusals) add(entry, row int64, o *Outcome) {
	state := stateRetrying
	if o.Verdict == Parked {
		state = stateParked
	}
	r.ids, r.rows = append(r.ids, entry), append(r.rows, row)
	r.states = append(r.states, state)
	r.attempts = append(r.attempts, o.Attempts)
	r.reasons = append(r.reasons, storable(o.Reason))
	r.errors = append(r.errors, storable(o.Error))
	r.pauses = append(r.pauses, o.RetryIn)
}

func (r *refusals) parameters() [][]byte {
	return [][]byte{idArray(r.ids), textArray(r.states), intArray(r.attempts), textArray(r.reasons), textArray(r.errors), secondsArray(r.pauses)}
}

// storable returns what a text column takes of a text.
func storable(text string) string {
	if len(text) > maxError {
		text = text[:maxError]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(text, "�"), "\x00", "�")
}

// changes are what a batch's outcomes ask for besides marking what was
// published.
type changes struct {
	entryChanges
	parked, failed, dead refusals
	dropped              []int64
}

func (c *changes) none() bool {
	return len(c.parked.ids)+len(c.failed.ids)+len(c.dead.ids)+len(c.dropped)+
		len(c.drain)+len(c.forget)+len(c.release)+len(c.postponed) == 0
}

// next is when the first entry is due that changed.
func (c *changes) next(now time.Time) (next time.Time, any bool) {
	any = len(c.drain)+len(c.parked.ids)+len(c.failed.ids)+len(c.postponed) > 0
	if len(c.drain) > 0 {
		return now, any
	}
	var least time.Duration
	first := true
	for _, pauses := range [][]time.Duration{c.parked.pauses, c.failed.pauses, c.pauses} {
		for _, pause := range pauses {
			if first || pause < least {
				least, first = pause, false
			}
		}
	}
	return now.Add(least), any
}

// record writes the changes down.
func (c *changes) record(ctx context.Context, pg *pgconn.PgConn, s *statements) error {
	batch := &pgconn.Batch{}
	type expectation struct {
		what            string
		statement, rows int
	}
	var expected []expectation
	statement := 0
	run := func(what, sql string, rows int, parameters ...[]byte) {
		if rows == 0 {
			return
		}
		batch.ExecParams(s.expand(sql, "", ""), parameters, nil, nil, nil)
		expected = append(expected, expectation{what, statement, rows})
		statement++
	}
	run("parked", parkSQL, len(c.parked.ids), c.parked.parameters()...)
	if !slices.Equal(c.failed.ids, c.failed.rows) {
		batch.ExecParams(s.expand(absorbSQL, "", ""), [][]byte{idArray(c.failed.ids), idArray(c.failed.rows)}, nil, nil, nil)
		statement++
	}
	run("parked", failSQL, len(c.failed.ids), append(c.failed.parameters(), idArray(c.failed.rows))...)
	run("moved to the dead letters", buryHeldSQL, len(c.dead.ids), idArray(c.dead.rows), intArray(c.dead.attempts), textArray(c.dead.reasons), textArray(c.dead.errors))
	run("deleted", dropSQL, len(c.dropped), idArray(c.dropped))
	c.add(batch, s)
	results, err := pg.ExecBatch(ctx, batch).ReadAll()
	if err != nil {
		return err
	}
	for _, e := range expected {
		if n := results[e.statement].CommandTag.RowsAffected(); n != int64(e.rows) {
			return fmt.Errorf("%s of %d refused rows could be %s: a trigger, a rule or row level security hinders the others",
				strconv.FormatInt(n, 10), e.rows, e.what)
		}
	}
	return nil
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
			c.dead.add(m.Sequence, m.Sequence, &o)
		case Dropped:
			c.dropped = append(c.dropped, m.Sequence)
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
