package outbox

import (
	"context"
	"errors"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
)

// hasJSONSQL asks whether JSON may be written to payload_json of the table $1:
// the column is there, this role may write it, and neither the database nor the
// session has an encoding that would make other bytes of it.
const hasJSONSQL = `SELECT EXISTS (
    SELECT FROM pg_attribute a
    WHERE a.attrelid = to_regclass($1::text) AND a.attname = 'payload_json' AND NOT a.attisdropped
      AND has_column_privilege(a.attrelid, a.attnum, 'INSERT')
) AND getdatabaseencoding() = 'UTF8' AND current_setting('client_encoding') = 'UTF8'`

// hasJSONKey is where a connection remembers hasJSONSQL's answer for the table.
func (w *Writer) hasJSONKey() string { return "outbox/payload_json/" + w.identifier() }

// hasJSON reports whether JSON goes into payload_json; else it goes into payload,
// as every message does where the table is older than the column. It asks once
// per connection: a Writer may be used with several databases, of which not all
// are migrated yet.
func (w *Writer) hasJSON(ctx context.Context, tx pgx.Tx) (bool, error) {
	conn := tx.Conn()
	if conn == nil {
		return false, nil // somebody's own pgx.Tx
	}
	known := conn.PgConn().CustomData()
	if has, ok := known[w.hasJSONKey()].(bool); ok {
		return has, nil
	}
	var has bool
	if err := tx.QueryRow(ctx, hasJSONSQL, w.identifier()).Scan(&has); err != nil {
		return false, w.explain(err)
	}
	known[w.hasJSONKey()] = has
	return has, nil
}

// doubtJSON has the connection ask again after an error that says that the table
// has other columns than was thought.
func (w *Writer) doubtJSON(tx pgx.Tx, err error) {
	var state interface{ SQLState() string }
	if conn := tx.Conn(); conn != nil && errors.As(err, &state) && state.SQLState() == "42703" { // undefined_column
		delete(conn.PgConn().CustomData(), w.hasJSONKey())
	}
}

// storable reports whether PostgreSQL's json takes what encoding/json made, which
// lets other bytes than UTF-8 of a json.RawMessage pass.
func storable(json []byte) bool { return utf8.Valid(json) }
