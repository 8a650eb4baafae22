package main

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/examples/saga/events"
	"github.com/outboxrelay/relay/examples/saga/internal/service"
	"github.com/outboxrelay/relay/inbox"
)

//go:embed schema.sql
var schema string

// Place records an order and starts its saga, in one transaction. An order that
// is there already is left as it is, so that a client may ask again.
func Place(ctx context.Context, tx pgx.Tx, order events.OrderPlaced) error {
	tag, err := tx.Exec(ctx, `INSERT INTO orders (id, customer, total_cents, item, quantity) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (id) DO NOTHING`, order.OrderID, order.Customer, order.TotalCents, order.Item, order.Quantity)
	if err != nil || tag.RowsAffected() == 0 {
		return err
	}
	return publish(ctx, tx, order.OrderID, "OrderPlaced", order)
}

func newRouter() *inbox.Router {
	r := inbox.NewRouter()
	inbox.Handle(r, "PaymentTaken", func(ctx context.Context, tx pgx.Tx, e events.PaymentTaken) error {
		return recordPayment(ctx, tx, e.OrderID, "taken")
	})
	inbox.Handle(r, "PaymentRefused", func(ctx context.Context, tx pgx.Tx, e events.PaymentRefused) error {
		return recordPayment(ctx, tx, e.OrderID, "refused")
	})
	inbox.Handle(r, "PaymentRefunded", func(ctx context.Context, tx pgx.Tx, e events.PaymentRefunded) error {
		return recordPayment(ctx, tx, e.OrderID, "refunded")
	})
	inbox.Handle(r, "StockReserved", func(ctx context.Context, tx pgx.Tx, e events.StockReserved) error {
		return recordStock(ctx, tx, e.OrderID, "reserved")
	})
	inbox.Handle(r, "StockRefused", func(ctx context.Context, tx pgx.Tx, e events.StockRefused) error {
		return recordStock(ctx, tx, e.OrderID, "refused")
	})
	inbox.Handle(r, "StockReleased", func(ctx context.Context, tx pgx.Tx, e events.StockReleased) error {
		return recordStock(ctx, tx, e.OrderID, "released")
	})
	r.Default(inbox.Ignore) // a topic may have new types at any time
	return r
}

func recordPayment(ctx context.Context, tx pgx.Tx, orderID, payment string) error {
	return record(ctx, tx, orderID, `UPDATE orders SET payment = $2 WHERE id = $1 RETURNING status, payment, stock`, payment)
}

func recordStock(ctx context.Context, tx pgx.Tx, orderID, stock string) error {
	return record(ctx, tx, orderID, `UPDATE orders SET stock = $2 WHERE id = $1 RETURNING status, payment, stock`, stock)
}

// record notes what one of the other services said of the order, and decides as
// soon as that can be done: the first refusal cancels, the second consent
// confirms. What comes after the decision is noted and changes nothing.
//
// The UPDATE locks the order's row until the commit. The answers come from two
// topics and may be handled at the same moment; the second one waits here, and
// then sees what the first one wrote.
func record(ctx context.Context, tx pgx.Tx, orderID, update, said string) error {
	var status, payment, stock string
	if err := tx.QueryRow(ctx, update, orderID, said).Scan(&status, &payment, &stock); err != nil {
		return fmt.Errorf("record that order %s is %s: %w", orderID, said, err)
	}
	switch {
	case status != "placed":
		return nil
	case payment == "refused" || stock == "refused":
		reason := "out of stock"
		if payment == "refused" {
			reason = "payment refused"
		}
		return decide(ctx, tx, orderID, "cancelled", "OrderCancelled", events.OrderCancelled{OrderID: orderID, Reason: reason})
	case payment == "taken" && stock == "reserved":
		return decide(ctx, tx, orderID, "confirmed", "OrderConfirmed", events.OrderConfirmed{OrderID: orderID})
	}
	return nil
}

func decide(ctx context.Context, tx pgx.Tx, orderID, status, eventType string, event any) error {
	if _, err := tx.Exec(ctx, `UPDATE orders SET status = $2 WHERE id = $1`, orderID, status); err != nil {
		return err
	}
	return publish(ctx, tx, orderID, eventType, event)
}

func publish(ctx context.Context, tx pgx.Tx, orderID, eventType string, event any) error {
	return service.Publish(ctx, tx, "orders", orderID, eventType, event)
}
