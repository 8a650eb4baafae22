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
	inbox.Handle(r, "OrderPlaced", reserve)
	inbox.Handle(r, "OrderCancelled", release)
	r.Default(inbox.Ignore) // a topic may have new types at any time
	return r
}

// reserve puts an order's goods by, unless there are too few of them.
func reserve(ctx context.Context, tx pgx.Tx, order events.OrderPlaced) error {
	tag, err := tx.Exec(ctx, `UPDATE items SET available = available - $2 WHERE item = $1 AND available >= $2`, order.Item, order.Quantity)
	if err != nil {
		return err
	}
	if tag.RowsAffected() == 0 {
		return publish(ctx, tx, order.OrderID, "StockRefused", events.StockRefused{OrderID: order.OrderID, Reason: "out of stock"})
	}
	if err := book(ctx, tx, order.OrderID, order.Item, order.Quantity); err != nil {
		return err
	}
	return publish(ctx, tx, order.OrderID, "StockReserved",
		events.StockReserved{OrderID: order.OrderID, Item: order.Item, Quantity: order.Quantity})
}

// release is the compensation of reserve, which was there before it: see refund
// of the payment service.
func release(ctx context.Context, tx pgx.Tx, order events.OrderCancelled) error {
	var item string
	var quantity int64
	err := tx.QueryRow(ctx, `SELECT item, quantity FROM reservations WHERE order_id = $1 AND quantity > 0`, order.OrderID).Scan(&item, &quantity)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `UPDATE items SET available = available + $2 WHERE item = $1`, item, quantity); err != nil {
		return err
	}
	if err := book(ctx, tx, order.OrderID, item, -quantity); err != nil {
		return err
	}
	return publish(ctx, tx, order.OrderID, "StockReleased", events.StockReleased{OrderID: order.OrderID, Item: item, Quantity: quantity})
}

func book(ctx context.Context, tx pgx.Tx, orderID, item string, quantity int64) error {
	_, err := tx.Exec(ctx, `INSERT INTO reservations (order_id, item, quantity) VALUES ($1, $2, $3)`, orderID, item, quantity)
	return err
}

func publish(ctx context.Context, tx pgx.Tx, orderID, eventType string, event any) error {
	return service.Publish(ctx, tx, "stock", orderID, eventType, event)
}
