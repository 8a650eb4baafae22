package metrics_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/metrics"
	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/migrations"
)

var errHandler = errors.New("no such customer")

// newMessage is one of topic orders, written a minute ago.
func newMessage(n int) inbox.Message {
	return inbox.Message{
		ID: inbox.IDFrom(inbox.ForeignIDs, fmt.Sprint(n)), Key: []byte("k"), Sequence: int64(n), Topic: "orders",
		Source: inbox.KafkaSource("orders", 0, int64(n)), Time: time.Now().Add(-time.Minute),
	}
}

func newInbox(t *testing.T, registry *prometheus.Registry) (*inbox.Inbox, *pgtest.Database) {
	t.Helper()
	db := pgtest.New(t)
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := (migrations.Target{Schema: "public", Table: "inbox", Set: migrations.Inbox}).Apply(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
	return &inbox.Inbox{Consumer: "shipping", Observer: metrics.New(registry), Retries: -1}, db
}

// expect compares those of the series that the text names, without HELP.
func expect(t *testing.T, registry *prometheus.Registry, want string, names ...string) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, family := range families {
		for _, name := range names {
			if family.GetName() != name {
				continue
			}
			for _, m := range family.GetMetric() {
				var labels []string
				for _, l := range m.GetLabel() {
					labels = append(labels, fmt.Sprintf("%s=%s", l.GetName(), l.GetValue()))
				}
				value := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
				fmt.Fprintf(&got, "%s{%s} %v\n", name, strings.Join(labels, ","), value)
			}
		}
	}
	if strings.TrimSpace(got.String()) != strings.TrimSpace(want) {
		t.Errorf("the metrics are\n%s\nwant\n%s", got.String(), strings.TrimSpace(want))
	}
}

func nothing(context.Context, pgx.Tx, inbox.Message) error { return nil }

// TestTheTruth lets messages be processed in all ways, and fail in all ways.
func TestTheTruth(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	box, db := newInbox(t, registry)
	box.Order = inbox.OrderRefuse
	ctx := t.Context()
	process := func(n int, handler inbox.Handler) {
		_, _ = box.Process(ctx, db.Pool, newMessage(n), handler)
	}
	process(5, nothing)
	process(5, nothing)                                                                                        // a duplicate
	process(4, nothing)                                                                                        // stale
	process(6, func(context.Context, pgx.Tx, inbox.Message) error { return errHandler })                       // handler
	process(6, func(context.Context, pgx.Tx, inbox.Message) error { return pgx.ErrNoRows })                    // handler
	process(6, func(ctx context.Context, tx pgx.Tx, _ inbox.Message) error { return raise(ctx, tx, "40001") }) // contention
	func() {
		defer func() { _ = recover() }()
		process(6, func(context.Context, pgx.Tx, inbox.Message) error { panic("at the disco") })
	}()
	late, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	_, _ = box.Process(late, db.Pool, newMessage(6), func(ctx context.Context, tx pgx.Tx, _ inbox.Message) error {
		_, err := tx.Exec(ctx, `SELECT pg_sleep(60)`)
		return err
	})
	cancel()
	stopped, stop := context.WithCancel(ctx)
	_, _ = box.Process(stopped, db.Pool, newMessage(6), func(ctx context.Context, tx pgx.Tx, _ inbox.Message) error {
		stop()
		_, err := tx.Exec(ctx, `SELECT 1`)
		return err
	})
	anonymous := newMessage(6)
	anonymous.ID = inbox.ID{}
	_, _ = box.Process(ctx, db.Pool, anonymous, nothing)
	db.Exec(t, `CREATE TABLE parents (id int PRIMARY KEY)`, `CREATE TABLE children (id int REFERENCES parents DEFERRABLE INITIALLY DEFERRED)`)
	process(6, func(ctx context.Context, tx pgx.Tx, _ inbox.Message) error {
		_, err := tx.Exec(ctx, `INSERT INTO children VALUES (1)`)
		return err
	})
	_, err := box.ProcessBatch(ctx, db.Pool, []inbox.Message{newMessage(5), newMessage(6), newMessage(7)}, func(context.Context, pgx.Tx, []inbox.Message) error {
		expect(t, registry, `inbox_in_flight_messages{consumer=shipping,source=orders} 3`, "inbox_in_flight_messages")
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	pool, err := sql.Open("pgx", db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pool.Close() }()
	if _, err := box.ProcessSQL(ctx, pool, newMessage(8), func(context.Context, *sql.Tx, inbox.Message) error { return nil }); err != nil {
		t.Error(err)
	}
	replayed := newMessage(9)
	replayed.Replayed = true
	if _, err := box.Process(ctx, db.Pool, replayed, nothing); err != nil {
		t.Error(err)
	}
	db.Exec(t, `ALTER TABLE inbox RENAME TO gone`)
	process(10, nothing)
	db.Exec(t, `ALTER TABLE gone RENAME TO inbox`, `UPDATE inbox SET processed_at = now() - interval '30 days'`)
	if n, err := box.Prune(ctx, db.Pool); n != 6 || err != nil {
		t.Errorf("%d pruned, %v", n, err)
	}
	expect(t, registry, `
inbox_end_to_end_latency_seconds{consumer=shipping,source=orders} 4
inbox_failures_total{consumer=shipping,reason=commit,source=orders} 1
inbox_failures_total{consumer=shipping,reason=contention,source=orders} 1
inbox_failures_total{consumer=shipping,reason=database,source=orders} 1
inbox_failures_total{consumer=shipping,reason=handler,source=orders} 2
inbox_failures_total{consumer=shipping,reason=interrupted,source=orders} 1
inbox_failures_total{consumer=shipping,reason=no_id,source=orders} 1
inbox_failures_total{consumer=shipping,reason=panic,source=orders} 1
inbox_failures_total{consumer=shipping,reason=timeout,source=orders} 1
inbox_handler_duration_seconds{consumer=shipping,source=orders} 11
inbox_in_flight_messages{consumer=shipping,source=orders} 0
inbox_messages_total{consumer=shipping,result=dead_lettered,source=orders} 0
inbox_messages_total{consumer=shipping,result=duplicate,source=orders} 2
inbox_messages_total{consumer=shipping,result=late,source=orders} 0
inbox_messages_total{consumer=shipping,result=parked,source=orders} 0
inbox_messages_total{consumer=shipping,result=processed,source=orders} 5
inbox_messages_total{consumer=shipping,result=stale,source=orders} 1
inbox_pruned_ids_total{} 6
inbox_retries_total{consumer=shipping,source=orders} 0
inbox_transaction_duration_seconds{consumer=shipping,source=orders} 14
`, "inbox_messages_total", "inbox_failures_total", "inbox_retries_total", "inbox_in_flight_messages", "inbox_end_to_end_latency_seconds",
		"inbox_handler_duration_seconds", "inbox_transaction_duration_seconds", "inbox_pruned_ids_total")
}

// raise makes the server fail the transaction.
func raise(ctx context.Context, tx pgx.Tx, state string) error {
	_, err := tx.Exec(ctx, fmt.Sprintf(`DO $$ BEGIN RAISE EXCEPTION SQLSTATE '%s'; END $$`, state))
	return err
}

// TestReruns counts a transaction that is run again once as a message.
func TestReruns(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	box, db := newInbox(t, registry)
	box.Retries = 3
	runs := 0
	_, err := box.Process(t.Context(), db.Pool, newMessage(1), func(ctx context.Context, tx pgx.Tx, _ inbox.Message) error {
		if runs++; runs < 3 {
			return raise(ctx, tx, "40P01")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	expect(t, registry, `
inbox_handler_duration_seconds{consumer=shipping,source=orders} 1
inbox_retries_total{consumer=shipping,source=orders} 2
inbox_transaction_duration_seconds{consumer=shipping,source=orders} 1
`, "inbox_retries_total", "inbox_transaction_duration_seconds", "inbox_handler_duration_seconds")
}

// TestSourcesAreBounded gives sources without end one label.
func TestSourcesAreBounded(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := metrics.New(registry)
	for _, consumer := range []string{"a", "b"} {
		for n := range metrics.MaxSources + 50 {
			m.Retried(consumer, fmt.Sprint("topic-", n))
		}
	}
	n, err := testutil.GatherAndCount(registry, "inbox_retries_total")
	if want := 2 * (metrics.MaxSources + 1); err != nil || n != want {
		t.Errorf("%d series, %v; want %d", n, err, want)
	}
	last := 0.0
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, series := range family.GetMetric() {
			for _, label := range series.GetLabel() {
				if family.GetName() == "inbox_retries_total" && label.GetValue() == metrics.OtherSources {
					last += series.GetCounter().GetValue()
				}
			}
		}
	}
	if last != 100 {
		t.Errorf("%v retries of other sources, want 100", last)
	}
}

// TestPartitionsComeAndGo leaves no lag of a partition that is somebody else's.
func TestPartitionsComeAndGo(t *testing.T) {
	registry := prometheus.NewRegistry()
	m := metrics.New(registry)
	m.Assigned("shipping", "orders", 0)
	m.Assigned("shipping", "orders", 1)
	m.Lag("shipping", "orders", 0, 7)
	m.Lag("shipping", "orders", 1, 9)
	m.Revoked("shipping", "orders", 1)
	expect(t, registry, `
inbox_assigned_partitions{consumer=shipping,source=orders} 1
inbox_lag_messages{consumer=shipping,partition=0,source=orders} 7
`, "inbox_assigned_partitions", "inbox_lag_messages")
}

// TestConsumersState shows what keeps a consumer's messages waiting.
func TestConsumersState(t *testing.T) {
	registry := prometheus.NewRegistry()
	var observer inbox.ConsumerObserver = metrics.New(registry)
	observer.BreakerOpen("shipping", true)
	observer.BreakerOpen("billing", false)
	observer.Paused("shipping", false)
	observer.Paused("billing", true)
	expect(t, registry, `
inbox_breaker_open{consumer=billing} 0
inbox_breaker_open{consumer=shipping} 1
inbox_paused{consumer=billing} 1
inbox_paused{consumer=shipping} 0
`, "inbox_breaker_open", "inbox_paused")
}
