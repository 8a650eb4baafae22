package inbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/inbox"
)

// The shipment and the message's id are committed together, or not at all.
func ExampleInbox_Process() {
	box := &inbox.Inbox{Consumer: "shipping"}

	ship := func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		_, err := tx.Exec(ctx, `INSERT INTO shipments (order_id) VALUES ($1)`, string(m.Key))
		return err
	}
	receive := func(ctx context.Context, pool *pgxpool.Pool, m inbox.Message, acknowledge func()) error {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		result, err := box.Process(ctx, pool, m, ship)
		if err != nil {
			return err // unseen: the broker delivers it again
		}
		slog.InfoContext(ctx, "received an order", "message", m.ID, "result", result)
		acknowledge()
		return nil
	}
	_ = receive
}

// The same with database/sql, whatever the driver.
func ExampleInbox_ProcessSQL() {
	box := &inbox.Inbox{Consumer: "shipping"}

	receive := func(ctx context.Context, db *sql.DB, m inbox.Message) (inbox.Result, error) {
		return box.ProcessSQL(ctx, db, m, func(ctx context.Context, tx *sql.Tx, m inbox.Message) error {
			_, err := tx.ExecContext(ctx, `INSERT INTO shipments (order_id) VALUES ($1)`, string(m.Key))
			return err
		})
	}
	_ = receive
}

// A whole batch in one transaction. When it fails, one message is to blame,
// and the others need not wait for it.
func ExampleInbox_ProcessBatch() {
	box := &inbox.Inbox{Consumer: "shipping"}

	shipAll := func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
		orders := make([]string, len(fresh))
		for i, m := range fresh {
			orders[i] = string(m.Key)
		}
		_, err := tx.Exec(ctx, `INSERT INTO shipments (order_id) SELECT unnest($1::text[])`, orders)
		return err
	}
	receive := func(ctx context.Context, pool *pgxpool.Pool, batch []inbox.Message) (failed []inbox.Message) {
		if _, err := box.ProcessBatch(ctx, pool, batch, shipAll); err == nil {
			return nil
		}
		for _, m := range batch {
			_, err := box.Process(ctx, pool, m, func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
				return shipAll(ctx, tx, []inbox.Message{m})
			})
			if err != nil {
				failed = append(failed, m)
			}
		}
		return failed
	}
	_ = receive
}

// Ids are removed once the broker cannot deliver their messages again.
func ExampleInbox_Prune() {
	box := &inbox.Inbox{Consumer: "shipping", Retention: 14 * 24 * time.Hour}

	pruneHourly := func(ctx context.Context, pool *pgxpool.Pool) {
		for tick := time.Tick(time.Hour); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick:
			}
			if removed, err := box.Prune(ctx, pool); err != nil {
				slog.ErrorContext(ctx, "pruning the inbox failed", "removed", removed, "error", err)
			}
		}
	}
	_ = pruneHourly
}

// A message as the relay writes it, and one of a producer that numbers its
// messages.
func ExampleDecoder() {
	shop := inbox.ID{0x3f, 0x0a, 0x6c, 0x11, 0x58, 0xd2, 0x4e, 0x0c, 0x9b, 0x7e, 0x21, 0x64, 0x8d, 0x0f, 0x35, 0xc1}
	decoder := inbox.Decoder{IDHeader: "order-number", Namespace: shop}

	relayed := inbox.Message{Topic: "orders", Key: []byte("o-17")}
	decoder.Kafka(&relayed, []inbox.Header{
		{Name: "message-id", Value: []byte("0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f")},
		{Name: "message-type", Value: []byte("OrderPlaced")},
		{Name: "message-sequence", Value: []byte("4")},
	})
	fmt.Println(relayed.ID, relayed.Type, relayed.Sequence)

	foreign := inbox.Message{Topic: "orders"}
	decoder.Kafka(&foreign, []inbox.Header{{Name: "order-number", Value: []byte("17")}})
	fmt.Println(foreign.ID == inbox.IDFrom(shop, "17"))
	// Output:
	// 0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f OrderPlaced 4
	// true
}

// A message without an id never gets one: it belongs to the dead letters.
func ExampleErrNoID() {
	box := &inbox.Inbox{Consumer: "shipping"}

	_, err := box.Identify(inbox.Message{Topic: "orders"})
	fmt.Println(errors.Is(err, inbox.ErrNoID))
	// Output: true
}

// A function for each type of message, which gets what its JSON says.
func ExampleRouter() {
	type OrderPlaced struct {
		OrderID string `json:"order_id"`
	}
	router := inbox.NewRouter()
	inbox.Handle(router, "OrderPlaced", func(ctx context.Context, _ pgx.Tx, event OrderPlaced) error {
		message, _ := inbox.MessageFrom(ctx)
		fmt.Println("ship", event.OrderID, "of topic", message.Topic)
		return nil
	})
	router.Default(inbox.Ignore)
	router.Use(func(next inbox.Handler) inbox.Handler {
		return func(ctx context.Context, tx pgx.Tx, message inbox.Message) error {
			fmt.Println("received", message.Type)
			return next(ctx, tx, message)
		}
	})

	handler := router.Handler() // for box.Process, or a consumer's Config
	for _, message := range []inbox.Message{
		{Type: "OrderPlaced", Topic: "orders", Payload: []byte(`{"order_id": "o-17"}`)},
		{Type: "OrderArchived", Topic: "orders"},
	} {
		if err := handler(context.Background(), nil, message); err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// received OrderPlaced
	// ship o-17 of topic orders
	// received OrderArchived
}
