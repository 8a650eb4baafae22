package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/inbox"
)

// Service ships the orders that were paid. It may be used concurrently.
type Service struct{ pool *pgxpool.Pool }

//go:embed schema.sql
var schema string

// Prepare makes the service's tables where they are missing. It may run in
// several processes at once.
func (s *Service) Prepare(ctx context.Context) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtext('examples/orders/shipping'))`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, schema)
		return err
	})
}

// Handle ships an order when its message says that it was paid, in the
// transaction in which the inbox remembers the message. Either both are
// committed or neither is, so the order is shipped once however often the
// message arrives.
func (s *Service) Handle(ctx context.Context, tx pgx.Tx, message inbox.Message) error {
	if message.Type != "OrderPaid" {
		return nil
	}
	var order struct {
		ID       string `json:"id"`
		Customer string `json:"customer"`
	}
	if err := json.Unmarshal(message.Payload, &order); err != nil {
		return fmt.Errorf("the payload is no order: %w", err)
	}
	_, err := tx.Exec(ctx, `INSERT INTO shipments (order_id, customer) VALUES ($1, $2)`, order.ID, order.Customer)
	return err
}
