package outbox

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// FieldError is a message that Insert refused before it reached the database.
// The transaction is still usable.
type FieldError struct {
	// Index is the message's place among those of the call.
	Index int
	// Field is the column that the message would have been written to (topic,
	// key, type, payload, content_type, available_at, message_id), or json,
	// json_text, headers, or headers["name"].
	Field string
	// Err says what is wrong. It names the value, but never a payload or the
	// value of a header that is valid.
	Err error
}

// Error implements error.
func (e *FieldError) Error() string {
	return fmt.Sprintf("outbox: message %d: %s: %v", e.Index, e.Field, e.Err)
}

// Unwrap returns what is wrong.
func (e *FieldError) Unwrap() error { return e.Err }

// explain names the table, and the remedy where the error has one. It wraps
// the driver's error.
func (w *Writer) explain(err error) error {
	wrapped := fmt.Errorf("outbox: insert into %s: %w", w.identifier(), err)
	// *pgconn.PgError and lib/pq's *Error both have it.
	var state interface {
		error
		SQLState() string
	}
	if !errors.As(err, &state) {
		return wrapped
	}
	switch state.SQLState() {
	case "42P01", "3F000": // undefined_table, invalid_schema_name
		return fmt.Errorf("%w: run `relay migrate` on this database, or set the writer's Schema and Table to where the outbox is", wrapped)
	case "42703": // undefined_column
		return fmt.Errorf("%w: the table is not an outbox, or older than this library: run `relay migrate`", wrapped)
	case "42501": // insufficient_privilege
		return fmt.Errorf("%w: as the owner, GRANT USAGE ON SCHEMA %s and GRANT INSERT, SELECT (id) ON %s to this role",
			wrapped, pgx.Identifier{w.schema()}.Sanitize(), w.identifier())
	case "25006": // read_only_sql_transaction
		return fmt.Errorf("%w: the transaction is read-only, or the server a standby: connect to the primary (target_session_attrs=read-write)", wrapped)
	case "25P02": // in_failed_sql_transaction
		return fmt.Errorf("%w: an earlier statement of this transaction failed: roll it back", wrapped)
	}
	return wrapped
}
