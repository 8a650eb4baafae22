package outbox

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/propagation"
)

// Writer inserts messages into one outbox table. The zero value writes to
// public.outbox, which is the relay's default too. A Writer may be used
// concurrently as long as nobody changes its fields.
type Writer struct {
	// Schema and Table name the outbox as they are in the database, unquoted;
	// empty means "public" and "outbox".
	Schema, Table string
	// Notify wakes idle relays at commit (NOTIFY on a channel with the table's
	// name) instead of leaving the messages to the relay's next poll, which an
	// idle relay does every 100 ms. PostgreSQL sends it once per transaction,
	// however often Insert is called. It has a price: transactions that notify
	// commit one at a time in their whole cluster, so leave it off where
	// thousands commit in a second. A relay that is busy needs no waking.
	Notify bool
	// Propagator adds the trace of Insert's context to the headers, so that a
	// consumer can continue it; names that the message has already are left
	// alone. Nil means propagation.TraceContext: traceparent and tracestate.
	Propagator propagation.TextMapPropagator
}

// Receipt says what became of a message.
type Receipt struct {
	// ID is the row's id: the message's place in the order of its key, and
	// what consumers see as message-sequence.
	ID int64
	// MessageID is the message's identity, given or made by Insert.
	MessageID UUID
}

// Insert writes the messages to public.outbox in the transaction. See
// Writer.Insert.
func Insert(ctx context.Context, tx pgx.Tx, messages ...Message) ([]Receipt, error) {
	return new(Writer).Insert(ctx, tx, messages...)
}

// InsertSQL writes the messages to public.outbox in the transaction. See
// Writer.InsertSQL.
func InsertSQL(ctx context.Context, tx *sql.Tx, messages ...Message) ([]Receipt, error) {
	return new(Writer).InsertSQL(ctx, tx, messages...)
}

// Insert writes the messages in the transaction, all in one round trip (one more
// for the first JSON of a connection, see Message.JSON), and returns one receipt for each, in the messages' order, with ascending ids.
// Without messages it does nothing. The messages are published once the
// transaction has committed, and never if it, or the savepoint that tx may
// be, rolls back; so receipts mean something only after the commit.
//
// A message that cannot be written is refused before the database sees any of
// them, with a *FieldError; the transaction goes on as if Insert had not been
// called. After any other error the transaction can only be rolled back, as
// after every failed statement; the error wraps the driver's.
//
// The messages, their maps and slices may be used again when Insert returned.
func (w *Writer) Insert(ctx context.Context, tx pgx.Tx, messages ...Message) ([]Receipt, error) {
	if len(messages) == 0 {
		return nil, nil
	}
	columns, messageIDs, err := newColumns(messages, w.contextHeaders(ctx))
	if err != nil {
		return nil, err
	}
	var more []any
	statement := insertSQL
	if len(columns.json) > 0 {
		has, err := w.hasJSON(ctx, tx)
		if err != nil {
			return nil, err
		}
		if has {
			statement, more = insertJSONSQL, []any{columns.takeJSON()}
		}
	}
	statement, arguments := w.complete(statement, append(columns.arguments(columns.payloads), more...))
	rows, err := tx.Query(ctx, statement, arguments...)
	if err != nil {
		w.doubtJSON(tx, err)
		return nil, w.explain(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		w.doubtJSON(tx, err)
		return nil, w.explain(err)
	}
	return w.receipts(ids, messageIDs)
}

// InsertSQL is Insert for database/sql, with any PostgreSQL driver. Payloads
// travel as text of twice their size; pgx's own interface is the better
// choice for large ones. JSON goes into the column payload: a *sql.Tx does not
// say which database it is of, and whether that has payload_json.
func (w *Writer) InsertSQL(ctx context.Context, tx *sql.Tx, messages ...Message) ([]Receipt, error) {
	if len(messages) == 0 {
		return nil, nil
	}
	columns, messageIDs, err := newColumns(messages, w.contextHeaders(ctx))
	if err != nil {
		return nil, err
	}
	statement, arguments := w.complete(insertSQL, columns.arguments(columns.payloadLiteral()))
	rows, err := tx.QueryContext(ctx, statement, arguments...)
	if err != nil {
		return nil, w.explain(err)
	}
	defer func() { _ = rows.Close() }() // rows.Err below reports what matters
	ids := make([]int64, 0, len(messages))
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, w.explain(err)
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		return nil, w.explain(err)
	}
	return w.receipts(ids, messageIDs)
}

// complete puts the table into the statement, and the notification if any.
func (w *Writer) complete(statement string, arguments []any) (string, []any) {
	notify := ""
	if w.Notify {
		arguments = append(arguments, w.table())
		notify = fmt.Sprintf(notifySQL, len(arguments))
	}
	return fmt.Sprintf(statement, w.identifier(), notify), arguments
}

// receipts pairs what the database returned with what was sent.
func (w *Writer) receipts(ids []int64, messageIDs []UUID) ([]Receipt, error) {
	if len(ids) != len(messageIDs) {
		return nil, fmt.Errorf("outbox: insert into %s: %d messages became %d rows: roll the transaction back; a trigger or rule of the table interferes", w.identifier(), len(messageIDs), len(ids))
	}
	receipts := make([]Receipt, len(ids))
	for i, id := range ids {
		receipts[i] = Receipt{ID: id, MessageID: messageIDs[i]}
	}
	return receipts, nil
}

func (w *Writer) schema() string {
	if w.Schema == "" {
		return "public"
	}
	return w.Schema
}

func (w *Writer) table() string {
	if w.Table == "" {
		return "outbox"
	}
	return w.Table
}

// identifier is the table's name, quoted for SQL.
func (w *Writer) identifier() string {
	return pgx.Identifier{w.schema(), w.table()}.Sanitize()
}
