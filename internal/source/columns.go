package source

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// payloadJSONSQL is the payload of a table with the column payload_json, in
	// UTF-8 whatever the database's encoding is. SQL_ASCII has none: its bytes
	// leave as the writer sent them.
	payloadJSONSQL = `coalesce(o.payload, convert_to(o.payload_json::text, CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END))`

	// hasJSONSQL: the table has the column payload_json.
	hasJSONSQL = `EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = to_regclass({regclass}) AND a.attname = 'payload_json' AND NOT a.attisdropped)`

	// lockedHasJSONSQL asks that of a table that cannot change until the
	// transaction ends.
	lockedHasJSONSQL = `SELECT ` + hasJSONSQL + ` OR EXISTS (SELECT FROM {outbox} o WHERE false)`
)

// LockedHasJSONSQL is a query for whether the outbox has the column
// payload_json, which stays true or false until the transaction ends.
func LockedHasJSONSQL(schema, table string) string {
	return newStatements(schema, table).expand(lockedHasJSONSQL, "", "")
}

// PayloadSQL is a message's payload in bytes, nil for a tombstone, of row o of an
// outbox that has the column payload_json or not.
func PayloadSQL(hasJSON bool) string {
	if hasJSON {
		return payloadJSONSQL
	}
	return `o.payload`
}

// flushed asks for the flushed log position, and whether the statements are for
// another table than there is. A claim's transaction holds a lock on the table,
// so that what it answers held when the rows were read: a row whose payload_json
// was not looked at must never leave as a tombstone.
func (s statements) flushed(position string) string {
	if s.hasJSON {
		return `SELECT ` + position + `, false` // without the column the rows could not be read
	}
	return s.expand(`SELECT `+position+`, `+hasJSONSQL, "", "")
}

// errMigrated says that the table has got a column that was not read.
var errMigrated = errors.New("the table was migrated a moment ago; the next claim reads its new columns")

// learnColumns asks once which columns the table has.
func (c *Claimer) learnColumns(ctx context.Context, conn *pgconn.PgConn) error {
	if c.columnsKnown {
		return nil
	}
	result := conn.ExecParams(ctx, c.statements.expand(`SELECT `+hasJSONSQL, "", ""), nil, nil, nil, nil).Read()
	if result.Err != nil {
		return fmt.Errorf("look at the columns of %s: %w", c.statements.outbox, result.Err)
	}
	if len(result.Rows) != 1 || len(result.Rows[0]) != 1 {
		return errShape
	}
	c.columnsKnown = true
	c.setStatements(string(result.Rows[0][0]) == "t")
	return nil
}

// doubtColumns has the next claim ask again if err says that the table has other
// columns than was thought.
func (c *Claimer) doubtColumns(err error) {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if errors.Is(err, errMigrated) || ok && pgErr.Code == "42703" { // undefined_column
		c.columnsKnown = false
	}
}
