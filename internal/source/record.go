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

// recordStatements bounds the tries to record the rest of what could not be recorded together, by halving.
const recordStatements = 256

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

// of returns those of some entries, given in ascending order.
func (r *refusals) of(entries []int64) (part refusals) {
	for i, id := range r.ids {
		if _, ok := slices.BinarySearch(entries, id); ok {
			part.ids, part.rows = append(part.ids, id), append(part.rows, r.rows[i])
			part.states, part.attempts = append(part.states, r.states[i]), append(part.attempts, r.attempts[i])
			part.reasons, part.errors = append(part.reasons, r.reasons[i]), append(part.errors, r.errors[i])
			part.pauses = append(part.pauses, r.pauses[i])
		}
	}
	return part
}

// parkedFor returns the same refusals of messages that are parked, for one reason more.
func (r refusals) parkedFor(why string) refusals {
	r.states, r.errors = slices.Clone(r.states), slices.Clone(r.errors)
	for i := range r.ids {
		r.states[i] = stateParked
		r.errors[i] = storable(r.errors[i] + "; " + why)
	}
	return r
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
	parked, failed, dead, dropped refusals
}

func (c *changes) none() bool {
	return len(c.parked.ids)+len(c.failed.ids)+len(c.dead.ids)+len(c.dropped.ids)+
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

// of returns the changes of some entries, given in ascending order. Changes of one entry belong together: it must
// not go while its message stays.
func (c *changes) of(entries []int64) changes {
	pick := func(ids []int64) []int64 {
		return slices.DeleteFunc(slices.Clone(ids), func(id int64) bool {
			_, ok := slices.BinarySearch(entries, id)
			return !ok
		})
	}
	part := changes{parked: c.parked.of(entries), failed: c.failed.of(entries), dead: c.dead.of(entries), dropped: c.dropped.of(entries)}
	part.drain, part.forget, part.release = pick(c.drain), pick(c.forget), pick(c.release)
	for i, id := range c.postponed {
		if _, ok := slices.BinarySearch(entries, id); ok {
			part.postpone(id, c.pauses[i])
		}
	}
	return part
}

// entries returns the entries that change or are made, in ascending order.
func (c *changes) entries() []int64 {
	all := slices.Concat(c.parked.ids, c.failed.ids, c.dead.ids, c.dropped.ids, c.drain, c.forget, c.release, c.postponed)
	slices.Sort(all)
	return slices.Compact(all)
}

// rows returns the messages that were refused.
func (c *changes) rows() []int64 {
	return slices.Concat(c.parked.rows, c.failed.rows, c.dead.rows, c.dropped.rows)
}

// record writes the changes down behind a savepoint, to which a failure leaves it to the caller to go back. It
// returns how many rows that changed.
func (c *changes) record(ctx context.Context, pg *pgconn.PgConn, s *statements) (int64, error) {
	batch := &pgconn.Batch{}
	batch.ExecParams(savepointSQL, nil, nil, nil, nil)
	type expectation struct {
		what            string
		statement, rows int
	}
	var expected []expectation
	statement := 1
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
	run("deleted", dropSQL, len(c.dropped.ids), idArray(c.dropped.rows))
	c.add(batch, s)
	results, err := pg.ExecBatch(ctx, batch).ReadAll()
	if err != nil {
		return 0, err
	}
	for _, e := range expected {
		if n := results[e.statement].CommandTag.RowsAffected(); n != int64(e.rows) {
			return 0, &hinderedRowsError{what: e.what, n: n, of: e.rows}
		}
	}
	return affected(results), nil
}

// hinderedRowsError says that the database took a statement and left out rows of it.
type hinderedRowsError struct {
	what string
	n    int64
	of   int
}

// Error implements error.
func (e *hinderedRowsError) Error() string {
	return fmt.Sprintf("%s of %d refused rows could be %s: a trigger, a rule or row level security hinders the others",
		strconv.FormatInt(e.n, 10), e.of, e.what)
}

// concernsRow reports whether an error may be about what a row is, so that others may pass.
func concernsRow(err error) bool {
	if _, ok := errors.AsType[*hinderedRowsError](err); ok {
		return true
	}
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && refusesRow(pgErr)
}

// recording records changes as far as the database lets it.
type recording struct {
	pg         *pgconn.PgConn
	statements *statements
	// held: the changes are of entries that there are.
	held bool
	left int
	// changed is how many rows were changed.
	changed int64
	// unrecorded is what could not be recorded; its Err is the first reason.
	unrecorded UnrecordedError
}

// recordAll records the changes in the transaction, which goes on: those that the database refuses for what
// the row is are left out, and what cannot be moved or deleted is parked. It returns how many rows that
// changed, and what could not be recorded.
func recordAll(ctx context.Context, pg *pgconn.PgConn, s *statements, held bool, all *changes) (changed int64, unrecorded *UnrecordedError, err error) {
	r := recording{pg: pg, statements: s, held: held, left: recordStatements}
	reason, err := r.try(ctx, all)
	switch {
	case err != nil || reason == nil:
		return r.changed, nil, err
	case !concernsRow(reason):
		return 0, &UnrecordedError{Err: reason}, nil
	}
	r.unrecorded.Rows, r.unrecorded.Kept = map[int64]error{}, map[int64]error{}
	if err := r.halve(ctx, all, all.entries(), reason); err != nil {
		return 0, nil, err
	}
	return r.changed, &r.unrecorded, nil
}

// try records changes, or nothing of them for a reason; err ends the recording.
func (r *recording) try(ctx context.Context, c *changes) (reason, err error) {
	changed, reason := c.record(ctx, r.pg, r.statements)
	if reason == nil {
		r.changed += changed
		return nil, nil
	}
	if r.pg.IsClosed() {
		return nil, reason
	}
	if _, err := r.pg.Exec(ctx, toSavepointSQL).ReadAll(); err != nil {
		return nil, errors.Join(reason, err)
	}
	return reason, nil
}

// halve records the changes of entries that were refused together, each half by itself.
func (r *recording) halve(ctx context.Context, all *changes, entries []int64, reason error) error {
	if len(entries) == 1 {
		return r.alone(ctx, all.of(entries), reason)
	}
	half := len(entries) / 2
	for _, entries := range [][]int64{entries[:half], entries[half:]} {
		part := all.of(entries)
		if r.left <= 0 {
			r.lose(&part, reason)
			continue
		}
		r.left--
		reason, err := r.try(ctx, &part)
		if err == nil && reason != nil {
			if err = r.halve(ctx, all, entries, reason); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// alone parks a message that the database does not let go.
func (r *recording) alone(ctx context.Context, c changes, reason error) error {
	given, what := c.dead, "moved to the dead letters"
	if len(given.ids) == 0 {
		given, what = c.dropped, "deleted"
	}
	if len(given.ids) == 0 {
		r.lose(&c, reason)
		return nil
	}
	why := fmt.Errorf("it cannot be %s: %w", what, reason)
	if remedy := Explain(reason).Remedy; remedy != "" {
		why = fmt.Errorf("%w: %s", why, remedy)
	}
	parked := changes{parked: given.parkedFor(why.Error())}
	if r.held {
		parked.parked, parked.failed = refusals{}, parked.parked
	}
	refused, err := r.try(ctx, &parked)
	switch {
	case err != nil:
		return err
	case refused != nil:
		r.lose(&c, errors.Join(reason, refused))
	default:
		r.note(given.rows, reason)
		r.unrecorded.Kept[given.rows[0]] = why
	}
	return nil
}

// lose takes note of changes that are not recorded.
func (r *recording) lose(c *changes, reason error) {
	r.note(c.rows(), reason)
	for _, row := range c.rows() {
		r.unrecorded.Rows[row] = reason
	}
}

// note keeps the first reason.
func (r *recording) note(rows []int64, reason error) {
	switch {
	case r.unrecorded.Err != nil:
	case len(rows) > 0:
		r.unrecorded.Err = fmt.Errorf("row %d: %w", rows[0], reason)
	default:
		r.unrecorded.Err = reason
	}
}
