package drivers

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"

	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/migrations"
	"github.com/outboxrelay/relay/outbox"
)

// database makes a database with an outbox and returns its URL.
func database(t *testing.T) *url.URL {
	t.Helper()
	server := os.Getenv(servers.PostgresVariable)
	if server == "" {
		t.Skipf("needs %s; `make test` provides it", servers.PostgresVariable)
	}
	admin := connect(t, server, pgx.QueryExecModeExec)
	name := "drivers_" + strings.ReplaceAll(outbox.NewUUID().String(), "-", "")
	if _, err := admin.Exec(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = connect(t, server, pgx.QueryExecModeExec).Exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)")
	})
	u, err := url.Parse(server)
	if err != nil {
		t.Fatalf("%s is not a URL", servers.PostgresVariable)
	}
	u.Path = "/" + name
	target := migrations.Target{Schema: "public", Table: "outbox"}
	if err := target.Apply(t.Context(), connect(t, u.String(), pgx.QueryExecModeExec), nil); err != nil {
		t.Fatal(err)
	}
	return u
}

func connect(t *testing.T, url string, mode pgx.QueryExecMode) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.DefaultQueryExecMode = mode
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// bouncer puts PgBouncer in transaction mode before the database.
func bouncer(t *testing.T, direct *url.URL) *url.URL {
	t.Helper()
	port, err := strconv.Atoi(direct.Port())
	if err != nil {
		t.Fatal(err)
	}
	// One server connection: every transaction meets what the last one left.
	pool, err := servers.StartPgBouncer(t.Context(), servers.PgBouncerOptions{PostgresPort: port, PoolSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, pool)
	u, err := url.Parse(pool.URL(strings.TrimPrefix(direct.Path, "/")))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// with returns the URL with one more parameter.
func with(u *url.URL, name, value string) string {
	c := *u
	query := c.Query()
	query.Set(name, value)
	c.RawQuery = query.Encode()
	return c.String()
}

func messages() []outbox.Message {
	binary := make([]byte, 256)
	for i := range binary {
		binary[i] = byte(i)
	}
	return []outbox.Message{
		{Topic: "a", Key: `"\{},' $1`, Payload: binary, Headers: map[string]string{`"`: `\`}},
		{Topic: "a", EmptyKey: true, Payload: []byte{}, AvailableAt: time.Date(2031, 1, 2, 3, 4, 5, 678901000, time.UTC)},
		{Topic: "ключ", JSON: map[string]int{"n": 1}},
		{Topic: "tombstone", Key: "k"},
	}
}

// check compares the last rows with the messages, through pgx.
func check(t *testing.T, conn *pgx.Conn, receipts []outbox.Receipt) {
	t.Helper()
	want := messages()
	if len(receipts) != len(want) {
		t.Fatalf("%d receipts", len(receipts))
	}
	for i, r := range receipts {
		var topic string
		var key *string
		var payload []byte
		var headers map[string]string
		var at *time.Time
		err := conn.QueryRow(t.Context(), "SELECT topic, key, coalesce(payload, convert_to(payload_json::text, 'UTF8')), headers, available_at FROM outbox WHERE id = $1 AND message_id = $2", r.ID, r.MessageID.String()).
			Scan(&topic, &key, &payload, &headers, &at)
		if err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		m := want[i]
		if m.JSON != nil {
			m.Payload = []byte(`{"n":1}`)
		}
		if topic != m.Topic || (key != nil) != (m.Key != "" || m.EmptyKey) || key != nil && *key != m.Key ||
			!bytes.Equal(payload, m.Payload) || (payload == nil) != (m.Payload == nil) ||
			fmt.Sprint(headers) != fmt.Sprint(m.Headers) || (at != nil) == m.AvailableAt.IsZero() || at != nil && !at.Equal(m.AvailableAt) {
			t.Errorf("message %d arrived as %q %v %x %v %v", i, topic, key, payload, headers, at)
		}
	}
	if !slices.IsSortedFunc(receipts, func(a, b outbox.Receipt) int { return int(a.ID - b.ID) }) {
		t.Errorf("the ids do not ascend: %v", receipts)
	}
}

// insertSQL inserts three times, on connections as the driver has them.
func insertSQL(t *testing.T, db *sql.DB, conn *pgx.Conn) {
	t.Helper()
	defer func() { _ = db.Close() }()
	for range 3 {
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		writer := outbox.Writer{Notify: true}
		receipts, err := writer.InsertSQL(t.Context(), tx, messages()...)
		if err != nil {
			_ = tx.Rollback()
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		check(t, conn, receipts)
	}
}

func TestPQ(t *testing.T) {
	u := database(t)
	conn := connect(t, u.String(), pgx.QueryExecModeExec)
	for _, dsn := range []string{with(u, "sslmode", "disable"), with(u, "sslmode", "disable") + "&binary_parameters=yes"} {
		db, err := sql.Open("postgres", dsn)
		if err != nil {
			t.Fatal(err)
		}
		insertSQL(t, db, conn)
	}
	db, err := sql.Open("postgres", with(u, "sslmode", "disable"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	writer := outbox.Writer{Table: "missing"}
	if _, err := writer.InsertSQL(t.Context(), tx, messages()...); err == nil || !strings.Contains(err.Error(), "relay migrate") {
		t.Errorf("the remedy is not in %v", err)
	}
}

func TestPgBouncer(t *testing.T) {
	direct := database(t)
	pooled := bouncer(t, direct)
	conn := connect(t, direct.String(), pgx.QueryExecModeExec)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			for range 3 {
				var receipts []outbox.Receipt
				err := pgx.BeginFunc(t.Context(), connect(t, pooled.String(), mode), func(tx pgx.Tx) (err error) {
					receipts, err = outbox.Insert(t.Context(), tx, messages()...)
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				check(t, conn, receipts)
			}
			config, err := pgx.ParseConfig(pooled.String())
			if err != nil {
				t.Fatal(err)
			}
			config.DefaultQueryExecMode = mode
			insertSQL(t, stdlib.OpenDB(*config), conn)
		})
	}
	t.Run("pq", func(t *testing.T) {
		db, err := sql.Open("postgres", with(pooled, "sslmode", "disable")+"&binary_parameters=yes")
		if err != nil {
			t.Fatal(err)
		}
		insertSQL(t, db, conn)
	})
}
