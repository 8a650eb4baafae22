package main

import (
	"context"
	_ "embed"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/examples/saga/events"
	"github.com/outboxrelay/relay/examples/saga/internal/service"
	"github.com/outboxrelay/relay/inbox"
)

//go:embed schema.sql
var schema string

func newRouter() *inbox.Router {
	r := inbox.NewRouter()
	inbox.Handle(r, "OrderPlaced", take)
	inbox.Handle(r, "OrderCancelled", refund)
	r.Default(inbox.Ignore) // a topic may have new types at any time
	return r
}

// take takes the money for an order, unless the customer has too little of it.
// Either way the order service gets an answer: a refusal is a result like any
// other, and no error.
func take(ctx context.Context, tx pgx.Tx, order events.OrderPlaced) error {
	tag, err := tx.Exec(ctx, `UPDATE accounts SET balance_cents = balance_cents - $2 WHERE customer = $1 AND balance_cents >= $2`,
		order.Customer, order.TotalCents)
	if err != nil {
		return err
	}
	if tag.RowsAffected() == 0 {
		return publish(ctx, tx, order.OrderID, "PaymentRefused",
			events.PaymentRefused{OrderID: order.OrderID, Reason: "the balance is too low"})
	}
	if err := book(ctx, tx, order.OrderID, order.Customer, order.TotalCents); err != nil {
		return err
	}
	return publish(ctx, tx, order.OrderID, "PaymentTaken", events.PaymentTaken{OrderID: order.OrderID, Cents: order.TotalCents})
}

// refund is the compensation of take. The order's events arrive in order, so
// take was there before: what it has not taken was refused, and stays so.
func refund(ctx context.Context, tx pgx.Tx, order events.OrderCancelled) error {
	var customer string
	var cents int64
	err := tx.QueryRow(ctx, `SELECT customer, cents FROM payments WHERE order_id = $1 AND cents > 0`, order.OrderID).Scan(&customer, &cents)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `UPDATE accounts SET balance_cents = balance_cents + $2 WHERE customer = $1`, customer, cents); err != nil {
		return err
	}
	if err := book(ctx, tx, order.OrderID, customer, -cents); err != nil {
		return err
	}
	return publish(ctx, tx, order.OrderID, "PaymentRefunded", events.PaymentRefunded{OrderID: order.OrderID, Cents: cents})
}

func book(ctx context.Context, tx pgx.Tx, orderID, customer string, cents int64) error {
	_, err := tx.Exec(ctx, `INSERT INTO payments (order_id, customer, cents) VALUES ($1, $2, $3)`, orderID, customer, cents)
	return err
}

func publish(ctx context.Context, tx pgx.Tx, orderID, eventType string, event any) error {
	return service.Publish(ctx, tx, "payments", orderID, eventType, event)
}
