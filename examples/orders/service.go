package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/outbox"
)

// Order is an order as the service keeps it, and as its events show it.
type Order struct {
	ID         string `json:"id"`
	Customer   string `json:"customer"`
	TotalCents int64  `json:"total_cents"`
	Status     string `json:"status"`
}

// The reasons for which the service refuses.
var (
	ErrCreditExceeded = errors.New("the customer's credit does not cover the order")
	ErrVoucherUsed    = errors.New("the voucher was used before")
	ErrWrongStatus    = errors.New("the order's status does not allow it")
)

// Service keeps orders and tells the world about them. It may be used
// concurrently.
type Service struct {
	pool   *pgxpool.Pool
	outbox *outbox.Writer
}

// NewService returns a service that wakes the relay with every commit.
func NewService(pool *pgxpool.Pool) *Service {
	return &Service{pool: pool, outbox: &outbox.Writer{Notify: true}}
}

//go:embed schema.sql
var schema string

// Prepare makes the service's tables where they are missing. It may run in
// several processes at once.
func (s *Service) Prepare(ctx context.Context) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtext('examples/orders'))`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, schema)
		return err
	})
}

// OpenAccount lets a customer order on credit.
func (s *Service) OpenAccount(ctx context.Context, customer string, creditCents int64) error {
	_, err := s.pool.Exec(ctx, `INSERT INTO accounts (customer, credit_cents) VALUES ($1, $2)
		ON CONFLICT (customer) DO UPDATE SET credit_cents = excluded.credit_cents`, customer, creditCents)
	return err
}

// Place records a new order and its event OrderPlaced in one transaction, and
// nothing of either when the customer's credit does not cover it.
//
// A voucher, unless empty, is redeemed with the order; one that was used
// before is ignored and the order placed without it.
func (s *Service) Place(ctx context.Context, order Order, voucher string) error {
	order.Status = "placed"
	placed := event("OrderPlaced", order)
	redeemed := event("VoucherRedeemed", order)
	voucherUsed := false

	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO orders (id, customer, total_cents, status) VALUES ($1, $2, $3, $4)`,
			order.ID, order.Customer, order.TotalCents, order.Status)
		if err != nil {
			return err
		}
		if err := s.publish(ctx, tx, placed); err != nil {
			return err
		}
		if voucher != "" {
			// A savepoint: what fails inside it takes its own event along, but
			// not the order.
			err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
				return s.redeem(ctx, tx, voucher, order, redeemed)
			})
			if voucherUsed = errors.Is(err, ErrVoucherUsed); err != nil && !voucherUsed {
				return err
			}
		}
		// The event is in the outbox already. If this fails it is gone again,
		// with the order: nobody ever hears of an order that was not placed.
		return changeCredit(ctx, tx, order.Customer, -order.TotalCents)
	})

	switch {
	case errors.Is(err, ErrCreditExceeded):
		undone := []outbox.Message{placed}
		if voucher != "" {
			undone = append(undone, redeemed)
		}
		return errors.Join(err, s.recordUndone(ctx, "credit exceeded", undone...))
	case err == nil && voucherUsed:
		return s.recordUndone(ctx, "voucher used before", redeemed)
	}
	return err
}

func (s *Service) redeem(ctx context.Context, tx pgx.Tx, voucher string, order Order, redeemed outbox.Message) error {
	if err := s.publish(ctx, tx, redeemed); err != nil {
		return err
	}
	tag, err := tx.Exec(ctx, `INSERT INTO vouchers (code, order_id) VALUES ($1, $2) ON CONFLICT DO NOTHING`, voucher, order.ID)
	if err == nil && tag.RowsAffected() == 0 {
		return ErrVoucherUsed
	}
	return err
}

// Pay records the payment of an order that was placed.
func (s *Service) Pay(ctx context.Context, id string) error {
	return s.advance(ctx, id, "placed", "paid", "OrderPaid", releaseCredit)
}

// Cancel ends an order that was placed and not paid.
func (s *Service) Cancel(ctx context.Context, id string) error {
	return s.advance(ctx, id, "placed", "cancelled", "OrderCancelled", releaseCredit)
}

// Ship records that an order which was paid left the house.
func (s *Service) Ship(ctx context.Context, id string) error {
	return s.advance(ctx, id, "paid", "shipped", "OrderShipped", nil)
}

// advance moves an order to its next status and publishes the event. then,
// unless nil, does what else belongs to the step, in the same transaction.
//
// The UPDATE comes before the outbox, on purpose: it locks the order's row
// until the commit, so that of two transactions for one order the second waits
// here, and their events get their places in the outbox in the order in which
// they commit.
func (s *Service) advance(ctx context.Context, id, from, to, eventType string, then func(context.Context, pgx.Tx, Order) error) error {
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		order := Order{ID: id, Status: to}
		err := tx.QueryRow(ctx, `UPDATE orders SET status = $3 WHERE id = $1 AND status = $2 RETURNING customer, total_cents`,
			id, from, to).Scan(&order.Customer, &order.TotalCents)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("order %s cannot become %s: %w: it is not %s", id, to, ErrWrongStatus, from)
		}
		if err != nil {
			return err
		}
		if err := s.publish(ctx, tx, event(eventType, order)); err != nil {
			return err
		}
		if then == nil {
			return nil
		}
		return then(ctx, tx, order)
	})
}

func releaseCredit(ctx context.Context, tx pgx.Tx, order Order) error {
	return changeCredit(ctx, tx, order.Customer, order.TotalCents)
}

func changeCredit(ctx context.Context, tx pgx.Tx, customer string, cents int64) error {
	_, err := tx.Exec(ctx, `UPDATE accounts SET credit_cents = credit_cents + $2 WHERE customer = $1`, customer, cents)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.ConstraintName == "within_credit" {
		return ErrCreditExceeded
	}
	return err
}

// event makes the message of something that happened to the order. The
// order's id is the key: events of one order arrive in order.
func event(eventType string, order Order) outbox.Message {
	return outbox.Message{
		// Insert would make the ID too. This service wants to know it even if
		// the transaction rolls back, for recordUndone.
		ID:    outbox.NewUUID(),
		Topic: "orders",
		Key:   order.ID,
		Type:  eventType,
		JSON:  order,
	}
}

// publish writes the message to the outbox, in the caller's transaction. In a
// service of yours it is the one call of Insert.
func (s *Service) publish(ctx context.Context, tx pgx.Tx, message outbox.Message) error {
	receipts, err := s.outbox.Insert(ctx, tx, message)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `INSERT INTO order_events (message_id, outbox_id, order_id, type) VALUES ($1, $2, $3, $4)`,
		receipts[0].MessageID.String(), receipts[0].ID, message.Key, message.Type)
	return err
}

// recordUndone remembers messages whose transaction or savepoint rolled back,
// so that the demo can name one that arrives nevertheless.
func (s *Service) recordUndone(ctx context.Context, reason string, messages ...outbox.Message) error {
	for _, m := range messages {
		_, err := s.pool.Exec(ctx, `INSERT INTO undone_events (message_id, order_id, type, reason) VALUES ($1, $2, $3, $4)`,
			outbox.UUID(m.ID).String(), m.Key, m.Type, reason)
		if err != nil {
			return err
		}
	}
	return nil
}
