package source

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	backendSQL = `SELECT pg_backend_pid()`

	// readWriteSQL begins a transaction that depends on no default of the role's.
	// Only BEGIN can: a query, even one that changes settings, is too late to make
	// a transaction read-write.
	readWriteSQL = `BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE NOT DEFERRABLE`

	// asciiSQL turns the check and the conversion of text off. A database whose
	// encoding is SQL_ASCII may hold bytes that are no UTF-8: asked for UTF8, the
	// server would refuse all rows of a statement for one of them.
	asciiEncoding = "SQL_ASCII"
	asciiSQL      = `SET client_encoding = ` + asciiEncoding
)

// sessionSettings are what a role or a database may have bounded or changed, and
// what the relay's statements are written for: PostgreSQL's defaults.
var sessionSettings = []struct{ name, value string }{
	// Bounds. Those of a transaction that holds locks are set with it.
	{"statement_timeout", "0"},
	{"lock_timeout", "0"},
	{"transaction_timeout", "0"}, // PostgreSQL 17's
	{"idle_session_timeout", "0"},
	{"exit_on_error", "off"},
	// A statement outside of BEGIN takes these.
	{"default_transaction_read_only", "off"},
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_deferrable", "off"},
	// What statements and results mean.
	{"row_security", "on"},
	{"standard_conforming_strings", "on"},
	{"array_nulls", "on"},
	{"bytea_output", "hex"},
	{"DateStyle", "ISO, MDY"},
	{"IntervalStyle", "postgres"},
	{"extra_float_digits", "1"},
	// The indexes exist so that nothing reads the whole table.
	{"enable_indexscan", "on"},
	{"enable_indexonlyscan", "on"},
	{"enable_nestloop", "on"},
}

// settingsOf is the statement that makes the settings, for the session or for
// the transaction. Settings that the server does not know are left out.
func settingsOf(local bool) string {
	var values []string
	for _, s := range sessionSettings {
		values = append(values, fmt.Sprintf("('%s', '%s')", s.name, s.value))
	}
	return fmt.Sprintf(`SELECT set_config(s.name, s.value, %t) FROM (VALUES %s) AS s(name, value) WHERE current_setting(s.name, true) IS NOT NULL`,
		local, strings.Join(values, ", "))
}

var (
	sessionSQL = settingsOf(false)
	// transactionSQL is sessionSQL for a session that is a pooler's.
	transactionSQL = settingsOf(true)
)

// directKey is where a connection remembers whether a pooler stands in between.
const directKey = "outbox-relay/direct"

// SetUp checks the server's version, and makes a new connection independent of
// what ALTER ROLE or ALTER DATABASE have set, unless a pooler stands in between:
// there the next transaction may be another server session's, and this one
// another client's. It fits pgxpool.Config.AfterConnect.
func SetUp(ctx context.Context, conn *pgx.Conn) error {
	if err := CheckVersion(ctx, conn); err != nil {
		return err
	}
	_, err := setUp(ctx, conn.PgConn())
	return err
}

// setUp does it once for each connection, and reports whether the connection
// leads to the server itself.
func setUp(ctx context.Context, conn *pgconn.PgConn) (direct bool, err error) {
	if direct, ok := conn.CustomData()[directKey].(bool); ok {
		return direct, nil
	}
	// Poolers know this setting, and keep it for each client.
	if conn.ParameterStatus("server_encoding") == asciiEncoding {
		if _, err := conn.Exec(ctx, asciiSQL).ReadAll(); err != nil {
			return false, fmt.Errorf("turn the conversion of text off: %w", err)
		}
	}
	result := conn.ExecParams(ctx, backendSQL, nil, nil, nil, nil).Read()
	if result.Err != nil {
		return false, fmt.Errorf("ask for the server process: %w", result.Err)
	}
	// A pooler makes up the process that it tells a client at the start.
	direct = string(result.Rows[0][0]) == strconv.FormatUint(uint64(conn.PID()), 10)
	if direct {
		if result := conn.ExecParams(ctx, sessionSQL, nil, nil, nil, nil).Read(); result.Err != nil {
			return false, fmt.Errorf("set the session's settings: %w", result.Err)
		}
	}
	conn.CustomData()[directKey] = direct
	return direct, nil
}

// addSettings puts the relay's settings into a batch, for its transaction, where
// setUp could not make them for the session. Without BEGIN the batch is a
// transaction up to its end. It returns how many results that makes.
func addSettings(conn *pgconn.PgConn, batch *pgconn.Batch) int {
	if direct, _ := conn.CustomData()[directKey].(bool); direct {
		return 0
	}
	batch.ExecParams(transactionSQL, nil, nil, nil, nil)
	return 1
}
