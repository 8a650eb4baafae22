package inbox_test

import (
	"context"
	"database/sql"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/migrations"
	"github.com/outboxrelay/relay/outbox"
)

// newAnsweringDatabase has an outbox beside the inbox.
func newAnsweringDatabase(t *testing.T) *pgtest.Database {
	t.Helper()
	db := newDatabase(t)
	migrate(t, db, migrations.Target{Schema: "public", Table: "outbox", Set: migrations.Outbox})
	return db
}

// answer is what the handlers here publish.
var answer = outbox.Message{Topic: "payments", Type: "PaymentTaken"}

// answers are the headers of what was written to the outbox, in its order.
func answers(t *testing.T, db *pgtest.Database) []map[string]string {
	t.Helper()
	rows, err := db.Pool.Query(t.Context(), `SELECT headers FROM outbox ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	headers, err := pgx.CollectRows(rows, pgx.RowTo[map[string]string])
	if err != nil {
		t.Fatal(err)
	}
	return headers
}

// TestAnswers has every kind of handler answer a message, and the answer name
// it.
func TestAnswers(t *testing.T) {
	t.Parallel()
	db := newAnsweringDatabase(t)
	sqlDB := openSQL(t, db.URL)
	box := &inbox.Inbox{Consumer: "payments"}
	pgxHandler := func(ctx context.Context, tx pgx.Tx, _ inbox.Message) error {
		_, err := outbox.Insert(ctx, tx, answer)
		return err
	}
	sqlHandler := func(ctx context.Context, tx *sql.Tx, _ inbox.Message) error {
		_, err := outbox.InsertSQL(ctx, tx, answer)
		return err
	}
	for _, test := range []struct {
		name    string
		process func(context.Context, inbox.Message) error
	}{
		{"Process", func(ctx context.Context, m inbox.Message) error {
			_, err := box.Process(ctx, db.Pool, m, pgxHandler)
			return err
		}},
		{"Process in the caller's transaction", func(ctx context.Context, m inbox.Message) error {
			return pgx.BeginFunc(ctx, db.Pool, func(tx pgx.Tx) error {
				_, err := box.Process(ctx, tx, m, pgxHandler)
				return err
			})
		}},
		{"ProcessSQL", func(ctx context.Context, m inbox.Message) error {
			_, err := box.ProcessSQL(ctx, sqlDB, m, sqlHandler)
			return err
		}},
		{"ProcessSQLTx", func(ctx context.Context, m inbox.Message) error {
			tx, err := sqlDB.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer func() { _ = tx.Rollback() }() // does nothing after the commit
			if _, err := box.ProcessSQLTx(ctx, tx, m, sqlHandler); err != nil {
				return err
			}
			return tx.Commit()
		}},
		{"ProcessBatch", func(ctx context.Context, m inbox.Message) error {
			batch := []inbox.Message{m, newMessage()}
			_, err := box.ProcessBatch(ctx, db.Pool, batch, func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
				return pgxHandler(box.Extract(ctx, fresh[0]), tx, fresh[0])
			})
			return err
		}},
	} {
		db.Exec(t, `TRUNCATE outbox`)
		first, later := newMessage(), traced(newMessage())
		later.Headers["correlation-id"] = "checkout-17"
		for _, m := range []inbox.Message{first, later} {
			if err := test.process(t.Context(), m); err != nil {
				t.Fatal(err)
			}
		}
		want := []map[string]string{
			{"correlation-id": first.ID.String(), "causation-id": first.ID.String()},
			{"correlation-id": "checkout-17", "causation-id": later.ID.String(), "traceparent": traceparent},
		}
		if got := answers(t, db); !slices.EqualFunc(got, want, maps.Equal[map[string]string]) {
			t.Errorf("%s: the answers have %v, want %v", test.name, got, want)
		}
	}
}

// TestAnswersOfTheApplicationsOwn keeps what a handler says itself, and hands
// on nothing that PostgreSQL or a broker would refuse.
func TestAnswersOfTheApplicationsOwn(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, correlation string
		own               map[string]string
		want              func(id string) map[string]string
	}{
		{"its own correlation", "c", map[string]string{"correlation-id": "mine"}, func(id string) map[string]string {
			return map[string]string{"correlation-id": "mine", "causation-id": id}
		}},
		{"both its own", "c", map[string]string{"correlation-id": "mine", "causation-id": "none"}, func(string) map[string]string {
			return map[string]string{"correlation-id": "mine", "causation-id": "none"}
		}},
		{"beside others", "c", map[string]string{"tenant": "acme"}, func(id string) map[string]string {
			return map[string]string{"correlation-id": "c", "causation-id": id, "tenant": "acme"}
		}},
		{"a NUL byte", "a\x00b", nil, func(id string) map[string]string {
			return map[string]string{"correlation-id": "a\uFFFDb", "causation-id": id}
		}},
		{"far too long", strings.Repeat("x", 2000), nil, func(id string) map[string]string {
			return map[string]string{"correlation-id": id, "causation-id": id}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db := newAnsweringDatabase(t)
			m := newMessage()
			m.Headers = map[string]string{"correlation-id": test.correlation}
			own := maps.Clone(test.own)
			_, err := (&inbox.Inbox{Consumer: "payments"}).Process(t.Context(), db.Pool, m, func(ctx context.Context, tx pgx.Tx, _ inbox.Message) error {
				_, err := outbox.Insert(ctx, tx, outbox.Message{Topic: "payments", Headers: own})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := answers(t, db); len(got) != 1 || !maps.Equal(got[0], test.want(m.ID.String())) {
				t.Errorf("the answer has %v, want %v", got, test.want(m.ID.String()))
			}
			if !maps.Equal(own, test.own) {
				t.Errorf("the handler's map became %v", own)
			}
		})
	}
}

// TestChainOfAnswers follows a message over three services: all that it led to
// has its id and its trace, and each names the one before.
func TestChainOfAnswers(t *testing.T) {
	t.Parallel()
	db := newAnsweringDatabase(t)
	provider := sdktrace.NewTracerProvider()
	root := traced(newMessage())
	next := root
	for _, consumer := range []string{"payments", "stock", "orders"} {
		box := &inbox.Inbox{Consumer: consumer, TracerProvider: provider}
		var receipts []outbox.Receipt
		_, err := box.Process(t.Context(), db.Pool, next, func(ctx context.Context, tx pgx.Tx, _ inbox.Message) (err error) {
			receipts, err = outbox.Insert(ctx, tx, answer)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		written := answers(t, db)
		headers := written[len(written)-1]
		if headers["correlation-id"] != root.ID.String() || headers["causation-id"] != next.ID.String() {
			t.Errorf("%s answered with %v, want correlation %s and causation %s", consumer, headers, root.ID, next.ID)
		}
		if parent := headers["traceparent"]; parent == next.Headers["traceparent"] || !strings.HasPrefix(parent, traceparent[:36]) {
			t.Errorf("%s answered in the trace %s, want a span of its own in %s", consumer, parent, traceparent)
		}
		next = newMessage()
		next.ID, next.Headers = inbox.ID(receipts[0].MessageID), headers
	}
}

// TestNothingIsAnswered keeps the headers of a message that no handler wrote.
func TestNothingIsAnswered(t *testing.T) {
	t.Parallel()
	db := newAnsweringDatabase(t)
	err := pgx.BeginFunc(t.Context(), db.Pool, func(tx pgx.Tx) error {
		_, err := outbox.Insert(t.Context(), tx, answer)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := answers(t, db); len(got) != 1 || len(got[0]) != 0 {
		t.Errorf("the message has %v, want no headers", got)
	}
}
