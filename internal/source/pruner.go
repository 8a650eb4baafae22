package source

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// pruneBatch is the number of rows that one statement deletes at most: few, so
	// that its transaction is short.
	pruneBatch = 1000
	// pruneLook is the number of rows that one statement looks at, at most: where
	// all are too young to delete, more than it would delete.
	pruneLook = 16 * pruneBatch
	// pruneHead is how many rows at the table's head every pass looks at.
	pruneHead = 10 * pruneBatch
	// pruneLimit bounds one statement.
	pruneLimit = time.Minute
	// pruneBusy is how many batches a pass leaves out because of locks, before it
	// ends: each has waited for some seconds.
	pruneBusy = 3
	// maxRefused is how many rows that cannot be deleted a Pruner remembers, and
	// refusedFor how long it does not try them again.
	maxRefused = 100_000
	refusedFor = time.Hour
)

// Pruner deletes published rows that are older than the retention, in small
// batches. Several may run at once, each in one goroutine.
type Pruner struct {
	pool       *pgxpool.Pool
	statements statements
	retention  time.Duration
	// young are the parts of the table that the last pass found nothing in.
	young youngRows
	// refused are the rows that the database did not delete, from refusedSince on.
	refused      map[int64]struct{}
	refusedSince time.Time
}

// NewPruner returns a Pruner for rows whose publication lies further back than
// retention, which must be positive.
func NewPruner(pool *pgxpool.Pool, schema, table string, retention time.Duration) *Pruner {
	return &Pruner{pool: pool, statements: newStatements(schema, table), retention: retention, refused: map[int64]struct{}{}}
}

// KeptError says that rows past their retention stay in the table, because a
// foreign key refers to them or a trigger refuses. All others are deleted.
type KeptError struct {
	// Rows is how many there are.
	Rows int
	// Table is the outbox. Constraint is the first foreign key that was met, of
	// the table Referencing; empty where something else refuses.
	Table, Constraint, Referencing string
	// Err is what the database says of the first row.
	Err error
}

// Error implements error.
func (e *KeptError) Error() string {
	return fmt.Sprintf("%d rows of %s past their retention cannot be removed: %v", e.Rows, e.Table, e.Err)
}

// Unwrap returns what the database says.
func (e *KeptError) Unwrap() error { return e.Err }

// Remedy says what to do.
func (e *KeptError) Remedy() string {
	if e.Constraint == "" {
		return "let the trigger that refuses pass published rows, or set outbox.retention: 0 to keep them"
	}
	return foreignKeyRemedy(e.Referencing, e.Constraint)
}

// foreignKeyRemedy says what to do about a foreign key that keeps rows in the outbox, given the table that it is of, quoted.
func foreignKeyRemedy(table, constraint string) string {
	return fmt.Sprintf("ALTER TABLE %s DROP CONSTRAINT %s and keep the message_id there instead, or make it ON DELETE CASCADE or SET NULL",
		table, pgx.Identifier{constraint}.Sanitize())
}

// Prune makes one pass and returns how many rows it deleted, also beside an
// error. It walks over the table in id order; no index on published_at is needed,
// which would cost every mark a write. What it found to be too young it passes
// over in later passes, until the first row there is old enough. Rows that
// somebody has locked are left to a later pass. Those that the database refuses to
// delete stay, and are not tried again within an hour; a KeptError tells when
// there are new ones.
func (p *Pruner) Prune(ctx context.Context) (int64, error) {
	if time.Since(p.refusedSince) > refusedFor {
		clear(p.refused)
		p.refusedSince = time.Now()
	}
	pass := prunePass{Pruner: p}
	err := pass.walk(ctx)
	if err != nil {
		return pass.deleted, fmt.Errorf("prune %s: %w", p.statements.outbox, err)
	}
	p.young = pass.found
	if pass.kept != nil {
		pass.kept.Table = p.statements.outbox
		return pass.deleted, pass.kept
	}
	return pass.deleted, nil
}

// prunePass is one pass of a Pruner.
type prunePass struct {
	*Pruner
	found   youngRows
	deleted int64
	busy    int
	kept    *KeptError
}

// prunePage is what pageSQL says.
type prunePage struct {
	last int64
	rows int
	past []int64
	// next is when the next row will be past the retention.
	next time.Duration
}

func (p *prunePass) walk(ctx context.Context) error {
	after, looked, size := int64(math.MinInt64), 0, pruneBatch
	for {
		if rest, ok := p.young.at(after, time.Now()); ok && looked >= pruneHead {
			p.found.add(rest)
			after = rest.last
			continue
		}
		page, err := p.look(ctx, after, size)
		if err != nil {
			return err
		}
		left, err := p.delete(ctx, page.past)
		if err != nil {
			return err
		}
		if page.rows < size || len(p.refused) >= maxRefused {
			return nil
		}
		switch {
		case left: // by somebody's lock
			page.next = 0
		case len(page.past) > 0: // some of them may be refused
			page.next = min(page.next, refusedFor)
		}
		p.found.add(youngRange{after: after, last: page.last, rows: page.rows, until: time.Now().Add(page.next)})
		after, looked = page.last, looked+page.rows
		if size = min(2*size, pruneLook); len(page.past) > 0 {
			size = pruneBatch
		}
	}
}

func (p *prunePass) look(ctx context.Context, after int64, rows int) (page prunePage, err error) {
	err = Within(ctx, p.pool, pgx.ReadOnly, pruneLimit, func(tx pgx.Tx) error {
		var last *int64
		var next *float64
		err := tx.QueryRow(ctx, p.statements.expand(pageSQL, "", ""), pgx.QueryExecModeExec, after, p.retention.Seconds(), rows).
			Scan(&last, &page.rows, &page.past, &next)
		if last != nil {
			page.last = *last
		}
		// What is published from now on is past the retention no sooner than this.
		page.next = p.retention
		if next != nil && *next < p.retention.Seconds() {
			page.next = time.Duration(*next * float64(time.Second))
		}
		return err
	})
	return page, err
}

// delete deletes the rows, and reports whether some are left that may go later.
func (p *prunePass) delete(ctx context.Context, ids []int64) (left bool, err error) {
	ids = slices.DeleteFunc(ids, func(id int64) bool { _, refused := p.refused[id]; return refused })
	before, refused := p.deleted, len(p.refused)
	for batch := range slices.Chunk(ids, pruneBatch) {
		if err := p.deleteBatch(ctx, batch); err != nil {
			return false, err
		}
	}
	return p.deleted-before+int64(len(p.refused)-refused) < int64(len(ids)), nil
}

// deleteBatch deletes the rows in one statement or, where the database refuses
// one of them, each half by itself.
func (p *prunePass) deleteBatch(ctx context.Context, ids []int64) error {
	if len(p.refused) >= maxRefused {
		return nil
	}
	var gone int64
	err := Within(ctx, p.pool, pgx.ReadWrite, pruneLimit, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, p.statements.expand(pruneSQL, "", ""), pgx.QueryExecModeExec, ids, p.retention.Seconds())
		gone = tag.RowsAffected()
		return err
	})
	pgErr, _ := errors.AsType[*pgconn.PgError](err)
	switch {
	case err == nil:
		p.deleted += gone
	case pgErr == nil:
		return err
	case (pgErr.Code == "55P03" || pgErr.Code == "40P01") && p.busy < pruneBusy: // lock_not_available, deadlock_detected
		p.busy++
	case !refusesRow(pgErr):
		return err
	case len(ids) > 1:
		half := len(ids) / 2
		if err := p.deleteBatch(ctx, ids[:half]); err != nil {
			return err
		}
		return p.deleteBatch(ctx, ids[half:])
	default:
		p.refuse(ids[0], pgErr)
	}
	return nil
}

// refusesRow reports whether an error may be about what a row is, so that other rows
// may pass: a constraint, data that a column does not take, or a trigger that raises an exception, of any class
// that is not about the server, the transaction or what the statement says.
func refusesRow(err *pgconn.PgError) bool {
	if err.Code == "42501" { // a policy of row level security, or a missing privilege
		return err.Routine == "ExecWithCheckOptions"
	}
	switch class := err.Code[:min(2, len(err.Code))]; class {
	case "08", "0A", "25", "26", "28", "2D", "3B", "3D", "3F", "40", "42", "53", "55", "57", "58", "F0", "HV", "XX", "":
		return false
	}
	return true
}

func (p *prunePass) refuse(id int64, err *pgconn.PgError) {
	p.refused[id] = struct{}{}
	if p.kept == nil {
		p.kept = &KeptError{Err: err}
	}
	p.kept.Rows++
	if foreignKey := err.Code == "23503" || err.Code == "23001"; foreignKey && p.kept.Constraint == "" {
		p.kept.Constraint, p.kept.Referencing = err.ConstraintName, pgx.Identifier{err.SchemaName, err.TableName}.Sanitize()
	}
}

// youngRange is a part of the table that has nothing to delete before a time:
// the rows behind one id up to another.
type youngRange struct {
	after, last int64
	rows        int
	until       time.Time
}

// youngRows are such parts, in ascending order.
type youngRows []youngRange

// at returns what of a range begins behind the id, if nothing can be deleted
// there yet.
func (y youngRows) at(after int64, now time.Time) (youngRange, bool) {
	i, found := slices.BinarySearchFunc(y, after, func(r youngRange, after int64) int {
		switch {
		case r.last <= after:
			return -1
		case r.after > after:
			return 1
		}
		return 0
	})
	if !found || !now.Before(y[i].until) {
		return youngRange{}, false
	}
	rest := y[i]
	rest.after = after
	return rest, true
}

// add appends a range, to the last one where they are small.
func (y *youngRows) add(r youngRange) {
	if n := len(*y); n > 0 {
		last := &(*y)[n-1]
		if last.last == r.after && last.rows+r.rows <= pruneLook {
			last.last, last.rows = r.last, last.rows+r.rows
			if r.until.Before(last.until) {
				last.until = r.until
			}
			return
		}
	}
	*y = append(*y, r)
}
