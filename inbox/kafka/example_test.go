package kafka_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/kafka"
	"github.com/outboxrelay/relay/inbox/parked"
)

// ship is a handler: what it does through tx happens once for each message.
func ship(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	if m.Type != "OrderPlaced" {
		return nil // not for us: seen, and committed
	}
	var order struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(m.Payload, &order); err != nil {
		return fmt.Errorf("order: %w", err)
	}
	_, err := tx.Exec(ctx, `INSERT INTO shipments (order_id) VALUES ($1)`, order.ID)
	return err
}

// A service that consumes until it is told to stop.
func Example() {
	run := func() error {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		// The pool outlives ctx: running handlers finish.
		pool, err := pgxpool.New(context.Background(), os.Getenv("DATABASE_URL"))
		if err != nil {
			return err
		}
		defer pool.Close()

		consumer, err := kafka.New(kafka.Config{
			Brokers:  strings.Split(os.Getenv("KAFKA_BROKERS"), ","),
			Group:    "shipping",
			Topics:   []string{"orders"},
			Inbox:    &inbox.Inbox{Consumer: "shipping"},
			DB:       pool,
			Handler:  ship,
			OnPoison: kafka.DeadLetter{Topic: "orders.shipping.dead"},
		})
		if err != nil {
			return err
		}
		return consumer.Run(ctx)
	}
	if err := run(); err != nil {
		slog.Error("stopped", "error", err)
	}
}

// Many small effects go faster in one transaction.
func ExampleConfig_batches() {
	var pool *pgxpool.Pool
	config := kafka.Config{
		Brokers: []string{"kafka-1:9092"}, Group: "shipping", Topics: []string{"orders"},
		Inbox: &inbox.Inbox{Consumer: "shipping"},
		DB:    pool,
		BatchHandler: func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
			rows := make([][]any, len(fresh))
			for i, m := range fresh {
				rows[i] = []any{string(m.Key), m.Payload}
			}
			_, err := tx.CopyFrom(ctx, pgx.Identifier{"shipments"}, []string{"order_id", "details"}, pgx.CopyFromRows(rows))
			return err
		},
		BatchSize:   200,
		MaxAttempts: 10,
		Backoff:     kafka.Backoff{Initial: time.Second, Max: time.Minute},
	}
	_ = config
}

// TLS and a user go into the dialer.
func ExampleConfig_security() {
	mechanism, err := scram.Mechanism(scram.SHA512, "shipping", os.Getenv("KAFKA_PASSWORD"))
	if err != nil {
		panic(err)
	}
	config := kafka.Config{
		Brokers: []string{"kafka-1:9093"}, Group: "shipping", Topics: []string{"orders"},
		Dialer: &kafkago.Dialer{
			ClientID:      "shipping",
			TLS:           &tls.Config{MinVersion: tls.VersionTLS12},
			SASLMechanism: mechanism,
		},
	}
	_ = config
}

// What Park put aside is retried when its cause is gone.
func ExamplePark() {
	retry := func(ctx context.Context, pool *pgxpool.Pool) error {
		lot := parked.Lot{Inbox: &inbox.Inbox{Consumer: "shipping"}}
		messages, err := lot.List(ctx, pool, parked.Filter{Topic: "orders"})
		if err != nil {
			return err
		}
		for _, m := range messages {
			fmt.Println(m.Number, m.ID, m.Attempts, m.Error)
		}
		_, err = lot.RetryAll(ctx, pool, parked.Filter{Topic: "orders"}, ship)
		return err
	}
	_ = retry
}
