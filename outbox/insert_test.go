package outbox_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/outboxrelay/relay/migrations"
	"github.com/outboxrelay/relay/outbox"
)

// modes are all of pgx's; a driver must not make a difference.
var modes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
	pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
}

// everything holds one message for each difference that a column can have.
func everything() []outbox.Message {
	binary := make([]byte, 256)
	for i := range binary {
		binary[i] = byte(i)
	}
	return []outbox.Message{
		{Topic: "minimal"},
		{Topic: "keys", Key: "order-1"},
		{Topic: "keys", EmptyKey: true},
		{Topic: "keys", Key: "NULL"},
		{Topic: "keys", Key: `{"a","b"}`},
		{Topic: "keys", Key: `back\slash "quote" 'single' , {} $1 ?`},
		{Topic: "keys", Key: " leading and trailing "},
		{Topic: "ключ", Key: "鍵 🔑", Type: "Größe\n\t\r"},
		{Topic: "payloads", Payload: []byte{}},
		{Topic: "payloads", Payload: binary, ContentType: "application/octet-stream"},
		{Topic: "payloads", Payload: []byte(`\x00`), ContentType: "text/plain"},
		{Topic: "payloads", Payload: bytes.Repeat([]byte{0, 0xff, '\'', '\\'}, 225_000), ContentType: "application/octet-stream"},
		{Topic: "json", JSON: map[string]any{"id": 7, "text": "<é & \" \\ \x00>"}},
		{Topic: "json", JSON: json.RawMessage(`{"raw": [1, 2]}`)},
		{Topic: "json", JSON: json.RawMessage("\"not UTF-8: \xff\"")},
		{Topic: "json", JSONText: ` {"path": "C:\\temp", "quote":"\"", "a,b{}": "NULL", "n": 1.0, "n": 1e2} `},
		{Topic: "json", JSONText: `null`},
		{Topic: "headers", Headers: map[string]string{"a": "1", "empty": "", `"`: `\`, "ünï": "{\"x\": 'y'}\x01\u2028"}},
		{Topic: "headers", Headers: manyHeaders(100)},
		{Topic: "given", ID: [16]byte{1, 2, 3, 15: 255}},
		{Topic: "later", AvailableAt: time.Date(2031, 12, 31, 23, 59, 59, 123456789, time.FixedZone("", -5400))},
		{Topic: "early", AvailableAt: time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC)},
	}
}

func manyHeaders(n int) map[string]string {
	headers := make(map[string]string, n)
	for i := range n {
		headers[fmt.Sprintf("x-header-%03d", i)] = strings.Repeat("v", i)
	}
	return headers
}

// checkRows compares what the database holds with what was inserted.
func checkRows(t *testing.T, got []row, want []outbox.Message, receipts []outbox.Receipt) {
	t.Helper()
	if len(got) != len(want) || len(receipts) != len(want) {
		t.Fatalf("%d messages became %d rows and %d receipts", len(want), len(got), len(receipts))
	}
	for i, m := range want {
		g, r := got[i], receipts[i]
		if r.ID != g.ID || r.MessageID != outbox.UUID(g.MessageID) {
			t.Errorf("message %d: receipt %d %s, row %d %s", i, r.ID, r.MessageID, g.ID, outbox.UUID(g.MessageID))
		}
		if i > 0 && r.ID <= receipts[i-1].ID {
			t.Errorf("message %d: id %d after %d", i, r.ID, receipts[i-1].ID)
		}
		if m.ID != [16]byte{} && m.ID != g.MessageID {
			t.Errorf("message %d: id is %x, want %x", i, g.MessageID, m.ID)
		}
		if g.Topic != m.Topic || g.Type != m.Type {
			t.Errorf("message %d: topic %q type %q, want %q %q", i, g.Topic, g.Type, m.Topic, m.Type)
		}
		switch {
		case m.Key == "" && !m.EmptyKey:
			if g.Key != nil {
				t.Errorf("message %d: key %q, want null", i, *g.Key)
			}
		case g.Key == nil || *g.Key != m.Key:
			t.Errorf("message %d: key is not %q", i, m.Key)
		}
		payload := m.Payload
		if m.JSON != nil {
			payload, _ = json.Marshal(m.JSON)
		} else if m.JSONText != "" {
			payload = []byte(m.JSONText)
		}
		if !bytes.Equal(g.Payload, payload) || (g.Payload == nil) != (payload == nil) {
			t.Errorf("message %d: payload of %d bytes differs, want %d bytes", i, len(g.Payload), len(payload))
		}
		contentType := m.ContentType
		if contentType == "" {
			contentType = "application/json"
		}
		if g.ContentType != contentType {
			t.Errorf("message %d: content type %q, want %q", i, g.ContentType, contentType)
		}
		if !maps.Equal(g.Headers, m.Headers) {
			t.Errorf("message %d: headers %v, want %v", i, g.Headers, m.Headers)
		}
		if m.AvailableAt.IsZero() != (g.AvailableAt == nil) || g.AvailableAt != nil && !g.AvailableAt.Equal(m.AvailableAt.Truncate(time.Microsecond)) {
			t.Errorf("message %d: available at %v, want %v", i, g.AvailableAt, m.AvailableAt)
		}
	}
}

func TestInsertRoundTrip(t *testing.T) {
	t.Parallel()
	url := database(t, defaultTarget)
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			config, err := pgx.ParseConfig(url)
			if err != nil {
				t.Fatal(err)
			}
			config.DefaultQueryExecMode = mode
			conn, err := pgx.ConnectConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close(context.Background()) }()
			execute(t, conn, "TRUNCATE outbox")
			var receipts []outbox.Receipt
			err = pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
				receipts, err = outbox.Insert(t.Context(), tx, everything()...)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			checkRows(t, rows(t, conn, "outbox"), everything(), receipts)
		})
		t.Run("sql/"+mode.String(), func(t *testing.T) {
			config, err := pgx.ParseConfig(url)
			if err != nil {
				t.Fatal(err)
			}
			config.DefaultQueryExecMode = mode
			db := stdlib.OpenDB(*config)
			defer func() { _ = db.Close() }()
			conn := connect(t, url)
			execute(t, conn, "TRUNCATE outbox")
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			receipts, err := outbox.InsertSQL(t.Context(), tx, everything()...)
			if err != nil {
				t.Fatal(err)
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			checkRows(t, rows(t, conn, "outbox"), everything(), receipts)
		})
	}
}

// TestInsertOrder has so many rows that the server's plan could well be
// another one, in a table with statistics that mislead it.
func TestInsertOrder(t *testing.T) {
	t.Parallel()
	conn := connect(t, database(t, defaultTarget))
	execute(t, conn, "ANALYZE outbox")
	execute(t, conn, "SET work_mem = '64kB'") // the sort spills
	for range 3 {
		execute(t, conn, "TRUNCATE outbox")
		messages := make([]outbox.Message, 20_000)
		for i := range messages {
			messages[i] = outbox.Message{Topic: "t", Key: fmt.Sprint(i % 7), Payload: fmt.Append(nil, i)}
		}
		var receipts []outbox.Receipt
		err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) (err error) {
			receipts, err = outbox.Insert(t.Context(), tx, messages...)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		checkRows(t, rows(t, conn, "outbox"), messages, receipts)
	}
}

// TestInsertIsOneRoundTrip counts what asks the server for an answer.
func TestInsertIsOneRoundTrip(t *testing.T) {
	t.Parallel()
	config, err := pgx.ParseConfig(database(t, defaultTarget))
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		config.DefaultQueryExecMode = mode
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(context.Background()) }()
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		writer := outbox.Writer{Notify: true}
		// The first call prepares the statement, where the mode does, and asks for
		// the column of JSON.
		if _, err := writer.Insert(t.Context(), tx, outbox.Message{Topic: "t", JSON: 1}); err != nil {
			t.Fatal(err)
		}
		var wire strings.Builder
		conn.PgConn().Frontend().Trace(&wire, pgproto3.TracerOptions{SuppressTimestamps: true})
		if _, err := writer.Insert(t.Context(), tx, append(make1000(), outbox.Message{Topic: "t", JSON: 1})...); err != nil {
			t.Fatal(err)
		}
		conn.PgConn().Frontend().Untrace()
		if n := strings.Count(wire.String(), "F\tSync") + strings.Count(wire.String(), "F\tQuery"); n != 1 {
			t.Errorf("mode %s: %d round trips", mode, n)
		}
	}
}

func make1000() []outbox.Message {
	messages := make([]outbox.Message, 1000)
	for i := range messages {
		messages[i] = outbox.Message{Topic: "orders", Key: fmt.Sprintf("order-%d", i%100), Type: "OrderPlaced", Payload: bytes.Repeat([]byte("x"), 200)}
	}
	return messages
}

func TestInsertNothing(t *testing.T) {
	t.Parallel()
	receipts, err := outbox.Insert(t.Context(), nil)
	if receipts != nil || err != nil {
		t.Error(receipts, err)
	}
	receipts, err = outbox.InsertSQL(t.Context(), nil)
	if receipts != nil || err != nil {
		t.Error(receipts, err)
	}
}

func TestRollback(t *testing.T) {
	t.Parallel()
	url := database(t, defaultTarget)
	conn := connect(t, url)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	insert := func(tx pgx.Tx, topic string) {
		t.Helper()
		if _, err := outbox.Insert(t.Context(), tx, outbox.Message{Topic: topic}); err != nil {
			t.Fatal(err)
		}
	}
	insert(tx, "before")
	aborted, err := tx.Begin(t.Context()) // a savepoint
	if err != nil {
		t.Fatal(err)
	}
	insert(aborted, "aborted")
	if err := aborted.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	released, err := tx.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	insert(released, "released")
	if err := released.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}

	db := openSQL(t, url)
	sqlTx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := outbox.InsertSQL(t.Context(), sqlTx, outbox.Message{Topic: "rolled back"}); err != nil {
		t.Fatal(err)
	}
	if err := sqlTx.Rollback(); err != nil {
		t.Fatal(err)
	}

	var topics []string
	for _, r := range rows(t, conn, "outbox") {
		topics = append(topics, r.Topic)
	}
	if fmt.Sprint(topics) != "[before released]" {
		t.Errorf("the table holds %v", topics)
	}
}

func TestCustomTable(t *testing.T) {
	t.Parallel()
	target := migrations.Target{Schema: `Sche"ma`, Table: `My 'out' box%s`}
	url := database(t, target)
	conn := connect(t, url)
	writer := outbox.Writer{Schema: target.Schema, Table: target.Table, Notify: true}
	err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		_, err := writer.Insert(t.Context(), tx, outbox.Message{Topic: "t"})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := rows(t, conn, pgx.Identifier{target.Schema, target.Table}.Sanitize()); len(got) != 1 {
		t.Errorf("%d rows", len(got))
	}
}

func TestNotify(t *testing.T) {
	t.Parallel()
	url := database(t, defaultTarget)
	listener := connect(t, url)
	execute(t, listener, "LISTEN outbox")
	db := openSQL(t, url)
	writer := outbox.Writer{Notify: true}

	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := writer.InsertSQL(t.Context(), tx, outbox.Message{Topic: "a"}, outbox.Message{Topic: "b"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	// A fence after it: whatever comes before the fence is what Insert sent.
	execute(t, connect(t, url), "NOTIFY outbox, 'fence'")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	received := 0
	for {
		n, err := listener.WaitForNotification(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if n.Payload == "fence" {
			break
		}
		received++
	}
	if received != 1 {
		t.Errorf("%d notifications of one transaction", received)
	}
}

// TestPoolIsNoTransaction stands for a compile error: what does not implement
// the interface cannot be passed.
func TestPoolIsNoTransaction(t *testing.T) {
	t.Parallel()
	for _, value := range []any{new(pgxpool.Pool), new(pgxpool.Conn), new(pgx.Conn)} {
		if _, ok := value.(pgx.Tx); ok {
			t.Errorf("a %T passes as a transaction", value)
		}
	}
	var _ func(context.Context, *sql.Tx, ...outbox.Message) ([]outbox.Receipt, error) = outbox.InsertSQL
}
