package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Problem is what is wrong with the database, in words for an operator.
type Problem struct {
	// Kind is a short, fixed word; the same kind twice is no news.
	Kind string
	// Remedy says what to do; empty where waiting is all.
	Remedy string
}

// Explain finds out what an error of the database means. An unknown one has the
// kind "other".
func Explain(err error) Problem {
	if version, ok := errors.AsType[*VersionError](err); ok {
		return Problem{"server_version", version.Remedy()}
	}
	if kept, ok := errors.AsType[*KeptError](err); ok {
		return Problem{"rows_kept", kept.Remedy()}
	}
	if problem, ok := explainTLS(err); ok {
		return problem
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		if problem, ok := explainCode(pgErr); ok {
			return problem
		}
		return Problem{Kind: "sqlstate_" + pgErr.Code}
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return Problem{"host_not_found", "check the host in database.url"}
	}
	if strings.Contains(err.Error(), "read only connection") {
		// target_session_attrs asks before anything can be set.
		return Problem{readOnly.Kind, readOnly.Remedy + "; where it is the primary, its role or database has default_transaction_read_only: use target_session_attrs=primary"}
	}
	if strings.Contains(err.Error(), "server is in hot standby") {
		return readOnly
	}
	if _, ok := errors.AsType[net.Error](err); ok || errors.Is(err, context.DeadlineExceeded) || pgconn.Timeout(err) {
		return Problem{"unreachable", "check that the server in database.url runs and can be reached from here"}
	}
	if pgconn.SafeToRetry(err) || strings.Contains(err.Error(), "unexpected EOF") || strings.Contains(err.Error(), "conn closed") {
		return Problem{Kind: "connection_lost"}
	}
	return Problem{Kind: "other"}
}

var readOnly = Problem{"read_only", "the server is a standby or read-only: point database.url at the primary, or name all hosts and add target_session_attrs=read-write"}

func explainCode(err *pgconn.PgError) (Problem, bool) {
	switch err.Code {
	case "28P01", "28000":
		return Problem{"authentication", "check the user and the password in database.url, and the server's pg_hba.conf"}, true
	case "3D000":
		return Problem{"missing_database", "create the database, or correct its name in database.url"}, true
	case "3F000", "42P01":
		return Problem{"missing_table", "run `relay migrate`, or correct outbox.schema and outbox.table"}, true
	case "42703":
		return Problem{"missing_column", "run `relay migrate`; the table was not made by it, or by an older one"}, true
	case "42501":
		if err.Routine == "aclcheck_error" && strings.Contains(err.Message, " function ") {
			return Problem{"missing_grant", "GRANT EXECUTE ON the function that the error names to the relay's role"}, true
		}
		return Problem{"missing_grant", "GRANT SELECT, UPDATE, DELETE on the outbox table, SELECT, INSERT, UPDATE, DELETE on its _parked table, SELECT, INSERT, UPDATE on its _dead_letters table, and USAGE on their schema to the relay's role"}, true
	case "25006":
		return readOnly, true
	case "0A000":
		// "cannot set transaction read-write mode during recovery"
		if strings.Contains(err.Routine, "transaction_read_only") || strings.Contains(err.Message, "recovery") {
			return readOnly, true
		}
	case "53300":
		return Problem{"too_many_connections", "raise the server's max_connections, or lower database.max_connections"}, true
	case "57P01", "57P02", "57P03":
		return Problem{Kind: "restarting"}, true
	case "57P05":
		return Problem{"idle_session_timeout", "the server ends connections that are idle: ALTER ROLE … SET idle_session_timeout = 0 for the relay's role, or raise it where the pooler connects"}, true
	case "25P03", "25P04":
		return Problem{"transaction_timeout", "the server ends transactions that take long: where it happens again, lower outbox.publish_timeout or find out why the broker is slow"}, true
	case "57014":
		return Problem{"statement_timeout", "the server ended a statement that took long: ALTER ROLE … SET statement_timeout = 0 for the relay's role, and look for what makes it slow"}, true
	case "22021", "22P05":
		return Problem{"encoding", "a row holds text that is not valid in the database's encoding, or that UTF-8 does not have: correct the row"}, true
	case "23503", "23001":
		if err.ConstraintName != "" {
			return Problem{"foreign_key", foreignKeyRemedy(pgx.Identifier{err.SchemaName, err.TableName}.Sanitize(), err.ConstraintName)}, true
		}
	case "P0001":
		return Problem{"trigger", "let the trigger that raises this pass the relay's changes"}, true
	case "08P01":
		return Problem{"protocol", "a pooler refused a startup parameter; remove it from database.url"}, true
	}
	return Problem{}, false
}

// oldestVersion is the oldest PostgreSQL that the relay works with.
const oldestVersion = 14

// VersionError says that the server is too old.
type VersionError struct {
	Version string
}

// Error implements error.
func (e *VersionError) Error() string {
	return fmt.Sprintf("PostgreSQL %s is not supported", e.Version)
}

// Remedy says what to do.
func (e *VersionError) Remedy() string {
	return fmt.Sprintf("upgrade the server to PostgreSQL %d or newer", oldestVersion)
}

// CheckVersion returns a VersionError when the server is too old. It asks
// nobody: servers report their version when a connection begins. It fits
// pgxpool.Config.AfterConnect.
func CheckVersion(_ context.Context, conn *pgx.Conn) error {
	version := conn.PgConn().ParameterStatus("server_version")
	var major int
	// A server that does not tell gets its chance.
	if _, err := fmt.Sscanf(version, "%d", &major); err == nil && major < oldestVersion {
		return &VersionError{Version: version}
	}
	return nil
}
