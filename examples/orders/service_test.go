package main

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/migrations"
	"github.com/outboxrelay/relay/outbox"
)

// newService makes a database with an outbox and the service's tables.
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
	name := "orders_" + strings.ReplaceAll(outbox.NewUUID().String(), "-", "")
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
	if err := (migrations.Target{Schema: "public", Table: "outbox"}).Apply(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	service := NewService(pool)
	var preparing sync.WaitGroup
	for range 3 {
		preparing.Go(func() {
			if err := service.Prepare(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	preparing.Wait()
	if err := service.OpenAccount(t.Context(), "alice", 1000); err != nil {
		t.Fatal(err)
	}
	return service
}

// list runs a query of one text column and joins its rows.
func list(t *testing.T, s *Service, sql string) string {
	t.Helper()
	rows, err := s.pool.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	values, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(values, " ")
}

const outboxTypes = `SELECT key || ':' || type FROM outbox ORDER BY id`

func TestOrderLife(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, step := range []error{
		s.Place(t.Context(), Order{ID: "a", Customer: "alice", TotalCents: 900}, "WELCOME"),
		s.Pay(t.Context(), "a"),
		s.Place(t.Context(), Order{ID: "b", Customer: "alice", TotalCents: 900}, "WELCOME"), // used before
		s.Ship(t.Context(), "a"),
		s.Cancel(t.Context(), "b"),
	} {
		if step != nil {
			t.Error(step)
		}
	}
	want := "a:OrderPlaced a:VoucherRedeemed a:OrderPaid b:OrderPlaced a:OrderShipped b:OrderCancelled"
	if got := list(t, s, outboxTypes); got != want {
		t.Errorf("the outbox holds\n%s, want\n%s", got, want)
	}
	if got := list(t, s, `SELECT order_id || ':' || type FROM order_events JOIN outbox USING (message_id, type) WHERE outbox_id = id ORDER BY id`); got != want {
		t.Errorf("the events are\n%s, want\n%s", got, want)
	}
	if got := list(t, s, `SELECT order_id || ':' || type || ':' || reason FROM undone_events`); got != "b:VoucherRedeemed:voucher used before" {
		t.Errorf("undone: %s", got)
	}
}

func TestDeclinedOrderLeavesNothing(t *testing.T) {
	t.Parallel()
	s := newService(t)
	err := s.Place(t.Context(), Order{ID: "a", Customer: "alice", TotalCents: 1001}, "WELCOME")
	if !errors.Is(err, ErrCreditExceeded) {
		t.Errorf("error %v", err)
	}
	if err := s.Pay(t.Context(), "a"); !errors.Is(err, ErrWrongStatus) {
		t.Errorf("error %v", err)
	}
	for _, table := range []string{"outbox", "orders", "vouchers", "order_events"} {
		if n := list(t, s, "SELECT count(*)::text FROM "+table); n != "0" {
			t.Errorf("%s has %s rows", table, n)
		}
	}
	if got := list(t, s, `SELECT type FROM undone_events ORDER BY type`); got != "OrderPlaced VoucherRedeemed" {
		t.Errorf("undone: %s", got)
	}
}

// TestCustomers shows that events of one order get ascending ids in the order
// in which they happened, however the workers meet.
func TestCustomers(t *testing.T) {
	t.Parallel()
	s := newService(t)
	customers := &Customers{service: s, log: slog.New(slog.DiscardHandler), rate: 2000, workers: 8}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() {
		if err := customers.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	for customers.committed.Load() < 1000 && t.Context().Err() == nil && !t.Failed() {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	running.Wait()
	if n := customers.failed.Load(); n > 0 {
		t.Errorf("%d transactions failed", n)
	}
	if customers.declined.Load() == 0 {
		t.Error("none was declined")
	}
	allowed := map[string]bool{}
	for _, life := range []string{"OrderPaid OrderShipped", "OrderPaid", "OrderCancelled", ""} {
		for _, start := range []string{"OrderPlaced", "OrderPlaced VoucherRedeemed"} {
			allowed[strings.TrimSpace(start+" "+life)] = true
		}
	}
	for _, life := range strings.Split(list(t, s, `SELECT string_agg(type, ' ' ORDER BY id) || ';' FROM outbox GROUP BY key`), ";") {
		if life = strings.TrimSpace(life); life != "" && !allowed[life] {
			t.Errorf("an order went through %q", life)
		}
	}
	if list(t, s, `SELECT count(*)::text FROM outbox`) != list(t, s, `SELECT count(*)::text FROM order_events`) {
		t.Error("the events are not the outbox's")
	}
}
