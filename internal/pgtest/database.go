// Package pgtest gives tests a database of their own on a real PostgreSQL.
package pgtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/migrations"
)

// Variable names the environment variable that holds the server's URL, of a
// superuser.
const Variable = "RELAY_TEST_POSTGRES_URL"

// Database is a new database that is dropped when the test ends.
type Database struct {
	URL  string
	Pool *pgxpool.Pool
}

// New returns an empty database. It skips the test where no server is named.
func New(t testing.TB) *Database {
	t.Helper()
	server := os.Getenv(Variable)
	if server == "" {
		t.Skip("needs " + Variable + "; `make test` provides it")
	}
	admin, err := pgx.Connect(t.Context(), server)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close(context.Background()) }()
	name := fmt.Sprintf("relay_test_%08x", rand.Uint32())
	if _, err := admin.Exec(t.Context(), "CREATE DATABASE "+name+strategy(admin)); err != nil {
		t.Fatal(err)
	}
	parsed, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	parsed.Path = "/" + name
	database := &Database{URL: parsed.String()}
	t.Cleanup(func() { drop(t, server, name) })
	settings, err := pgxpool.ParseConfig(database.URL)
	if err != nil {
		t.Fatal(err)
	}
	settings.MaxConns = 16
	database.Pool, err = pgxpool.NewWithConfig(t.Context(), settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(database.Pool.Close)
	return database
}

// strategy makes the server copy files instead of writing every page of the new
// database to its log, which takes it three times as long; PostgreSQL 14 and
// older know no other way.
func strategy(admin *pgx.Conn) string {
	major, _, _ := strings.Cut(admin.PgConn().ParameterStatus("server_version"), ".")
	if version, err := strconv.Atoi(major); err != nil || version < 15 {
		return ""
	}
	return " STRATEGY file_copy"
}

func drop(t testing.TB, server, name string) {
	ctx := context.Background()
	admin, err := pgx.Connect(ctx, server)
	if err != nil {
		t.Logf("drop %s: %v", name, err)
		return
	}
	defer func() { _ = admin.Close(ctx) }()
	if _, err := admin.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
		t.Logf("drop %s: %v", name, err)
	}
}

// NewOutbox returns a database with the outbox table public.outbox.
func NewOutbox(t testing.TB) *Database {
	t.Helper()
	database := New(t)
	database.Migrate(t, "public", "outbox")
	return database
}

// Migrate makes an outbox table.
func (d *Database) Migrate(t testing.TB, schema, table string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := (migrations.Target{Schema: schema, Table: table}).Apply(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
}

// Exec runs statements, separated by semicolons.
func (d *Database) Exec(t testing.TB, sql ...string) {
	t.Helper()
	if _, err := d.Pool.Exec(t.Context(), strings.Join(sql, ";"), pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
}

// Int returns the single number that a query yields.
func (d *Database) Int(t testing.TB, sql string) int64 {
	t.Helper()
	var n int64
	if err := d.Pool.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
