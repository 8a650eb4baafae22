package scenario

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/e2e/servers"
)

// poolSize bounds a test's own connections.
const poolSize = 16

// Database is a database of the test's own.
type Database struct {
	// URL is a superuser's.
	URL string
	// Name is the database's.
	Name string
	// Pool reconnects by itself.
	Pool *pgxpool.Pool
}

// NewDatabase makes a database on the shared PostgreSQL. It is dropped when the
// test ends.
func NewDatabase(t testing.TB) *Database {
	t.Helper()
	return NewDatabaseOn(t, servers.FromEnvironment().PostgresURL)
}

// NewDatabaseOn makes a database on the server that the superuser's URL names.
func NewDatabaseOn(t testing.TB, server string) *Database {
	t.Helper()
	d := &Database{Name: fmt.Sprintf("scenario_%08x", rand.Uint32())}
	if err := create(t.Context(), server, d.Name); err != nil {
		t.Fatalf("create database %s: %v", d.Name, err)
	}
	t.Cleanup(func() {
		// A server of the test's own may be gone.
		_ = execute(context.Background(), server, "DROP DATABASE IF EXISTS "+d.Name+" WITH (FORCE)")
	})
	d.URL = withDatabase(t, server, d.Name)
	settings, err := pgxpool.ParseConfig(d.URL)
	if err != nil {
		t.Fatal(err)
	}
	settings.MaxConns = poolSize
	settings.ConnConfig.RuntimeParams["application_name"] = "scenario"
	if d.Pool, err = pgxpool.NewWithConfig(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Pool.Close)
	return d
}

// create makes a database, by copying files where the server can: writing every
// page of it to the log takes three times as long.
func create(ctx context.Context, server, name string) error {
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	strategy := ""
	major, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), ".")
	if version, err := strconv.Atoi(major); err == nil && version >= 15 {
		strategy = " STRATEGY file_copy"
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE template0"+strategy)
	return err
}

func withDatabase(t testing.TB, server, name string) string {
	t.Helper()
	parsed, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	parsed.Path = "/" + name
	return parsed.String()
}

func execute(ctx context.Context, url, sql string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// Exec runs statements, separated by semicolons if there are no arguments.
func (d *Database) Exec(t testing.TB, sql string, arguments ...any) int64 {
	t.Helper()
	if len(arguments) == 0 {
		arguments = append(arguments, pgx.QueryExecModeSimpleProtocol)
	}
	tag, err := d.Pool.Exec(t.Context(), sql, arguments...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return tag.RowsAffected()
}

// One returns the single value that a query yields.
func One[T any](t testing.TB, d *Database, sql string, arguments ...any) T {
	t.Helper()
	var value T
	if err := d.Pool.QueryRow(t.Context(), sql, arguments...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}
