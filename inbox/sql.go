package inbox

import (
	"context"
	"database/sql"
	"fmt"
)

// SQLBeginner begins transactions: *sql.DB or *sql.Conn.
type SQLBeginner interface {
	BeginTx(ctx context.Context, options *sql.TxOptions) (*sql.Tx, error)
}

// ProcessSQL is Process for database/sql, with any PostgreSQL driver, in a
// transaction of its own. It takes one round trip more than the handler's own
// transaction: database/sql cannot send the claim along with the BEGIN.
func (i *Inbox) ProcessSQL(ctx context.Context, db SQLBeginner, message Message, handler SQLHandler) (result Result, err error) {
	message, err = i.prepare(ctx, message)
	if err != nil {
		return Unprocessed, err
	}
	ctx, o := i.observe(ctx, false, message)
	defer func() { o.end(err, result) }()
	err = i.retry(ctx, o, func() (err error) {
		result, err = i.processSQL(ctx, db, o, message, handler)
		return err
	})
	return result, err
}

func (i *Inbox) processSQL(ctx context.Context, db SQLBeginner, o *observation, message Message, handler SQLHandler) (Result, error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return Unprocessed, i.explain("begin a claim in", err)
	}
	defer func() { _ = tx.Rollback() }() // does nothing after the commit
	result, err := i.handleSQL(ctx, tx, o, message, handler)
	if err != nil || result == Duplicate {
		return result, err
	}
	if err := tx.Commit(); err != nil {
		return Unprocessed, i.explain("commit with a claim in", err)
	}
	return result, nil
}

// ProcessSQLTx processes the message within the caller's transaction, in a
// savepoint: what it returns holds once that commits, and an error undoes only
// what the handler and the claim did. A handler may call it for another message:
// when the outer one fails, both are undone. An Observer is told before the
// caller's transaction commits.
func (i *Inbox) ProcessSQLTx(ctx context.Context, tx *sql.Tx, message Message, handler SQLHandler) (result Result, err error) {
	message, err = i.prepare(ctx, message)
	if err != nil {
		return Unprocessed, err
	}
	ctx, o := i.observe(ctx, false, message)
	defer func() { o.end(err, result) }()
	if _, err := tx.ExecContext(ctx, savepointSQL); err != nil {
		return Unprocessed, i.explain("set a savepoint for a claim in", err)
	}
	released := false
	defer func() { // also when the handler panics
		if released {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
		defer cancel()
		// What is rolled back to stays, and would hide the savepoint of the same
		// name that a handler around this one has.
		for _, statement := range [...]string{rollbackSavepointSQL, releaseSavepointSQL} {
			_, undone := tx.ExecContext(ctx, statement)
			if undone == nil {
				continue
			}
			if err == nil {
				result, err = Unprocessed, i.explain("roll back to the savepoint of a claim in", undone)
			}
			break // to release it now would keep what it was to undo
		}
	}()
	result, err = i.handleSQL(ctx, tx, o, message, handler)
	if err != nil || result == Duplicate {
		return result, err
	}
	if _, err := tx.ExecContext(ctx, releaseSavepointSQL); err != nil {
		return Unprocessed, i.explain("release the savepoint of a claim in", err)
	}
	released = true
	return result, nil
}

// handleSQL claims the message and runs the handler.
func (i *Inbox) handleSQL(ctx context.Context, tx *sql.Tx, o *observation, message Message, handler SQLHandler) (Result, error) {
	statement, arguments, rows := i.claim(message)
	claim, err := tx.ExecContext(ctx, statement, arguments...)
	if err != nil {
		return Unprocessed, i.explain("claim in", err)
	}
	claimed, err := claim.RowsAffected()
	if err != nil {
		return Unprocessed, i.explain("claim in", err)
	}
	if claimed < rows {
		return Duplicate, nil
	}
	var previous []int64
	order := i.newOrder(message)
	if len(order.streams) > 0 {
		previous = make([]int64, 1)
		sql, arguments := order.statement(i)
		row := tx.QueryRowContext(ctx, sql, arguments...)
		if err := row.Scan(&previous[0]); err != nil {
			return Unprocessed, i.explain("check the order with", err)
		}
	}
	result := i.verdict(order.late([]Message{message}, []bool{true}, previous)[0])
	if result.Ran() {
		if err := o.handle(func() error { return handler(ctx, tx, message) }); err != nil {
			return Unprocessed, err
		}
	}
	if ctx.Err() != nil {
		return Unprocessed, context.Cause(ctx)
	}
	return result, nil
}

// ProcessSQLBatch is ProcessBatch for database/sql, in a transaction of its own. It
// takes a round trip more than ProcessBatch, and one more with the order check.
func (i *Inbox) ProcessSQLBatch(ctx context.Context, db SQLBeginner, messages []Message, handler SQLBatchHandler) (results []Result, err error) {
	prepared, err := i.prepareAll(ctx, messages)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	ctx, o := i.observe(ctx, true, prepared...)
	defer func() { o.end(err, results...) }()
	err = i.retry(ctx, o, func() (err error) {
		results, err = i.processSQLBatch(ctx, db, o, prepared, handler)
		return err
	})
	return results, err
}

func (i *Inbox) processSQLBatch(ctx context.Context, db SQLBeginner, o *observation, messages []Message, handler SQLBatchHandler) ([]Result, error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return nil, i.explain("begin claims in", err)
	}
	defer func() { _ = tx.Rollback() }() // does nothing after the commit
	var claimed map[ID]bool
	texts, err := query[string](ctx, tx, fmt.Sprintf(claimBatchSQL, i.identifier("")), i.claimBatchArguments(messages))
	if err == nil {
		claimed, err = idsOf(texts)
	}
	if err != nil {
		return nil, i.explain("claim in", err)
	}
	order := i.newOrder(messages...)
	var previous []int64
	if len(order.streams) > 0 {
		statement, arguments := order.statement(i)
		previous, err = query[int64](ctx, tx, statement, arguments)
		if err == nil {
			err = i.checkOrder(order, previous)
		}
		if err != nil {
			return nil, i.explain("check the order with", err)
		}
	}
	results, fresh := i.sift(messages, claimed, order, previous)
	if len(claimed) == 0 {
		return results, nil
	}
	if len(fresh) > 0 {
		if err := o.handle(func() error { return handler(ctx, tx, fresh) }); err != nil {
			return nil, err
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := tx.Commit(); err != nil {
		return nil, i.explain("commit with claims in", err)
	}
	return results, nil
}

// sqlQuerier is a *sql.DB or *sql.Tx.
type sqlQuerier interface {
	QueryContext(ctx context.Context, statement string, arguments ...any) (*sql.Rows, error)
}

// query returns the values of the one column that a statement returns.
func query[T any](ctx context.Context, db sqlQuerier, statement string, arguments []any) (values []T, err error) {
	rows, err := db.QueryContext(ctx, statement, arguments...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var value T
		if err := rows.Scan(&value); err != nil {
			return nil, err
		}
		values = append(values, value)
	}
	return values, rows.Err()
}
