package rabbitmq_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/rabbitmq"
)

// ship is a handler: what it does through tx happens once for each message.
func ship(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	if m.Type != "OrderPlaced" {
		return nil // not for us: seen, and acknowledged
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

		consumer, err := rabbitmq.New(rabbitmq.Config{
			URLs:        []string{os.Getenv("RABBITMQ_URL")},
			Queue:       "shipping.orders",
			Inbox:       &inbox.Inbox{Consumer: "shipping"},
			DB:          pool,
			Handler:     ship,
			Concurrency: 4,
			OnPoison:    rabbitmq.DeadLetter{RoutingKey: "shipping.dead"},
			Declare: func(channel *amqp.Channel) error {
				for _, queue := range []string{"shipping.orders", "shipping.dead"} {
					arguments := amqp.Table{"x-queue-type": "quorum", "x-single-active-consumer": queue == "shipping.orders"}
					if _, err := channel.QueueDeclare(queue, true, false, false, false, arguments); err != nil {
						return err
					}
				}
				return channel.QueueBind("shipping.orders", "orders", "events", false, nil)
			},
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
	config := rabbitmq.Config{
		URLs:  []string{"amqps://shipping:secret@rabbit-1:5671/shop", "amqps://shipping:secret@rabbit-2:5671/shop"},
		Queue: "shipping.orders",
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
		Backoff:     rabbitmq.Backoff{Initial: time.Second, Max: time.Minute},
	}
	_ = config
}
