package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/outbox"
)

// Order is what the service of the examples is about.
type Order struct {
	ID    string  `json:"id"`
	Total float64 `json:"total"`
}

// The order and its event become visible together, or not at all.
func ExampleInsert() {
	place := func(ctx context.Context, pool *pgxpool.Pool, order Order) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO orders (id, total) VALUES ($1, $2)`, order.ID, order.Total)
			if err != nil {
				return err
			}
			_, err = outbox.Insert(ctx, tx, outbox.Message{
				Topic: "orders",
				Key:   order.ID,
				Type:  "OrderPlaced",
				JSON:  order,
			})
			return err
		})
	}
	_ = place
}

// The same with database/sql, whatever the driver.
func ExampleInsertSQL() {
	place := func(ctx context.Context, db *sql.DB, order Order) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }() // does nothing after the commit
		_, err = tx.ExecContext(ctx, `INSERT INTO orders (id, total) VALUES ($1, $2)`, order.ID, order.Total)
		if err != nil {
			return err
		}
		_, err = outbox.InsertSQL(ctx, tx, outbox.Message{Topic: "orders", Key: order.ID, Type: "OrderPlaced", JSON: order})
		if err != nil {
			return err
		}
		return tx.Commit()
	}
	_ = place
}

// Events of one order stay in order because each transaction holds a lock on
// the order's row from before Insert until it commits.
func ExampleInsert_order() {
	pay := func(ctx context.Context, pool *pgxpool.Pool, id string) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			tag, err := tx.Exec(ctx, `UPDATE orders SET status = 'paid' WHERE id = $1 AND status = 'placed'`, id)
			if err != nil {
				return err
			}
			if tag.RowsAffected() == 0 {
				return fmt.Errorf("order %s is not waiting for a payment", id)
			}
			_, err = outbox.Insert(ctx, tx, outbox.Message{Topic: "orders", Key: id, Type: "OrderPaid"})
			return err
		})
	}
	_ = pay
}

// A writer is for another table, for waking idle relays at commit, or for
// another propagator.
func ExampleWriter() {
	writer := &outbox.Writer{Schema: "billing", Notify: true}

	remind := func(ctx context.Context, tx pgx.Tx, invoice string) error {
		_, err := writer.Insert(ctx, tx, outbox.Message{
			Topic:       "mail.reminders",
			Type:        "InvoiceOverdue",
			Payload:     []byte(invoice),
			ContentType: "text/plain",
			Headers:     map[string]string{"tenant": "acme"},
			AvailableAt: time.Now().Add(14 * 24 * time.Hour),
		})
		return err
	}
	_ = remind
}

// A message that cannot be written is refused before the database sees it.
func ExampleFieldError() {
	var tx pgx.Tx // a message that is not valid does not reach it
	_, err := outbox.Insert(context.Background(), tx, outbox.Message{Topic: "orders"}, outbox.Message{Key: "order-1"})

	if field, ok := errors.AsType[*outbox.FieldError](err); ok {
		fmt.Println(field.Index, field.Field)
	}
	fmt.Println(err)
	// Output:
	// 1 topic
	// outbox: message 1: topic: must not be empty
}

func ExampleParseUUID() {
	id, err := outbox.ParseUUID("0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f")
	if err != nil {
		fmt.Println(err)
		return
	}
	message := outbox.Message{ID: id, Topic: "orders"} // any [16]byte will do
	fmt.Println(outbox.UUID(message.ID))
	// Output: 0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f
}
