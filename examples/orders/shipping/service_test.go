package main

import (
	"context"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/migrations"
	"github.com/outboxrelay/relay/outbox"
)

var testBox = &inbox.Inbox{Consumer: "shipping"}

// newService makes a database with an inbox and the service's tables.
func newService(t *testing.T) *Service {
	t.Helper()
	server := os.Getenv("RELAY_TEST_POSTGRES_URL")
	if server == "" {
		t.Skip("needs RELAY_TEST_POSTGRES_URL; `make test` provides it")
	}
	admin, err := pgx.Connect(t.Context(), server)
	if err != nil {
		t.Fatal(err)
	}
	name := "shipping_" + strings.ReplaceAll(outbox.NewUUID().String(), "-", "")
	if _, err := admin.Exec(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, _ = admin.Exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)")
		_ = admin.Close(context.Background())
	})
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal("RELAY_TEST_POSTGRES_URL is not a URL")
	}
	u.Path = "/" + name
	conn, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := (migrations.Target{Set: migrations.Inbox, Schema: "public", Table: "inbox"}).Apply(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	service := &Service{pool}
	for range 2 { // as two instances would
		if err := service.Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return service
}

// shipped are the shipments, in their order.
func shipped(t *testing.T, s *Service) string {
	t.Helper()
	rows, err := s.pool.Query(t.Context(), `SELECT order_id || ' to ' || customer FROM shipments ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(list, ", ")
}

func message(eventType, payload string) inbox.Message {
	return inbox.Message{ID: inbox.ID(outbox.NewUUID()), Type: eventType, Payload: []byte(payload)}
}

func TestPaidOrdersAreShippedOnce(t *testing.T) {
	t.Parallel()
	s := newService(t)
	a := message("OrderPaid", `{"id": "a", "customer": "alice", "total_cents": 900, "status": "paid"}`)
	b := message("OrderPaid", `{"id": "b", "customer": "bob"}`)
	for _, m := range []inbox.Message{message("OrderPlaced", `{"id": "c"}`), a, a, b, a, b} {
		if _, err := testBox.Process(t.Context(), s.pool, m, s.Handle); err != nil {
			t.Error(err)
		}
	}
	if got, want := shipped(t, s), "a to alice, b to bob"; got != want {
		t.Errorf("shipped %s, want %s", got, want)
	}
}

func TestWhatIsNoOrderFails(t *testing.T) {
	t.Parallel()
	s := newService(t)
	broken := message("OrderPaid", `{"id": `)
	for range 2 {
		if result, err := testBox.Process(t.Context(), s.pool, broken, s.Handle); err == nil {
			t.Errorf("the result is %v, want an error each time", result)
		}
	}
	if got := shipped(t, s); got != "" {
		t.Errorf("shipped %s", got)
	}
}

func TestRefusalsAreRecorded(t *testing.T) {
	t.Parallel()
	s := newService(t)
	var count atomic.Int64
	a := newAudit(s.pool, count.Load)
	recorded := func() (n int64) {
		if err := s.pool.QueryRow(t.Context(), `SELECT coalesce(sum(messages), 0)::bigint FROM refusals`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	count.Store(3)
	for recorded() != 3 && t.Context().Err() == nil { // the test's timeout bounds it
		time.Sleep(10 * time.Millisecond)
	}
	count.Store(5)
	a.stop()
	if n := recorded(); n != 5 {
		t.Errorf("recorded %d, want 5", n)
	}
}

func TestOneBrokerIsNamed(t *testing.T) {
	t.Parallel()
	s := &Service{new(pgxpool.Pool)}
	log := slog.New(slog.DiscardHandler)
	for _, test := range []struct {
		brokers, url string
		ok           bool
	}{{"", "", false}, {"localhost:9092", "amqp://localhost/", false}, {"localhost:9092", "", true}, {"", "amqp://localhost/", true}} {
		if _, err := newConsumer(s, testBox, test.brokers, test.url, 45*time.Second, log); (err == nil) != test.ok {
			t.Errorf("with KAFKA_BROKERS=%s RABBITMQ_URL=%s the error is %v", test.brokers, test.url, err)
		}
	}
}
