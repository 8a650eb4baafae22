package outbox_test

import (
	"context"
	"database/sql"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/outboxrelay/relay/migrations"
	"github.com/outboxrelay/relay/outbox"
)

// database makes a database with an outbox in it and returns its URL.
func database(tb testing.TB, target migrations.Target) string {
	tb.Helper()
	server := os.Getenv("RELAY_TEST_POSTGRES_URL")
	if server == "" {
		tb.Skip("needs RELAY_TEST_POSTGRES_URL; `make test` provides it")
	}
	name := "outbox_" + strings.ReplaceAll(outbox.NewUUID().String(), "-", "")
	admin := connect(tb, server)
	execute(tb, admin, "CREATE DATABASE "+name)
	tb.Cleanup(func() {
		execute(tb, connect(tb, server), "DROP DATABASE "+name+" WITH (FORCE)")
	})
	u, err := url.Parse(server)
	if err != nil {
		tb.Fatal("RELAY_TEST_POSTGRES_URL is not a URL")
	}
	u.Path = "/" + name
	if err := target.Apply(tb.Context(), connect(tb, u.String()), nil); err != nil {
		tb.Fatal(err)
	}
	return u.String()
}

var defaultTarget = migrations.Target{Schema: "public", Table: "outbox"}

func connect(tb testing.TB, url string) *pgx.Conn {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func openSQL(tb testing.TB, url string) *sql.DB {
	tb.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = db.Close() })
	return db
}

func execute(tb testing.TB, conn *pgx.Conn, sql string, args ...any) {
	tb.Helper()
	if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
		tb.Fatal(err)
	}
}

// row is what the database holds of a message; Payload is what it sends.
type row struct {
	ID          int64
	MessageID   [16]byte
	Topic       string
	Key         *string
	Type        string
	Payload     []byte
	PayloadJSON *string
	ContentType string
	Headers     map[string]string
	AvailableAt *time.Time
}

func rows(tb testing.TB, conn *pgx.Conn, table string) []row {
	tb.Helper()
	result, err := conn.Query(tb.Context(), "SELECT id, message_id, topic, key, type, coalesce(payload, convert_to(payload_json::text, 'UTF8')), payload_json::text, content_type, headers, available_at FROM "+table+" ORDER BY id")
	if err != nil {
		tb.Fatal(err)
	}
	all, err := pgx.CollectRows(result, pgx.RowToStructByPos[row])
	if err != nil {
		tb.Fatal(err)
	}
	return all
}
