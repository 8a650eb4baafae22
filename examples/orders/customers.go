package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/outboxrelay/relay/outbox"
)

const (
	accounts    = 100
	creditCents = 2_000_000
	// openOrders is how many orders are under way at most; it is small, so
	// that workers meet at the same order.
	openOrders = 200
	// vouchers is how many codes there are; most attempts find theirs used.
	vouchers = 500
)

// Customers play the part of the world: they place, pay and cancel orders, as
// several workers at once.
type Customers struct {
	service *Service
	log     *slog.Logger
	// Rate is the number of transactions per second that all workers together
	// attempt.
	rate    float64
	workers int

	mu   sync.Mutex
	open []*openOrder

	committed, declined, failed atomic.Int64
}

// register makes the counts metrics.
func (c *Customers) register(registry *prometheus.Registry) {
	for result, count := range map[string]*atomic.Int64{"committed": &c.committed, "declined": &c.declined, "failed": &c.failed} {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "orders_transactions_total", Help: "Transactions of the customers, by how they ended.",
			ConstLabels: prometheus.Labels{"result": result},
		}, func() float64 { return float64(count.Load()) }))
	}
}

// openOrder is what a customer remembers of an order; the service knows better.
type openOrder struct {
	id   string
	paid bool
}

// Run works until ctx ends and returns when the last transaction has ended.
// Errors of the database are logged and do not end it.
func (c *Customers) Run(ctx context.Context) error {
	for i := range accounts {
		if err := c.service.OpenAccount(ctx, customer(i), creditCents); err != nil {
			return fmt.Errorf("open the accounts: %w", err)
		}
	}
	var workers sync.WaitGroup
	for range c.workers {
		workers.Go(func() { c.work(ctx) })
	}
	workers.Wait()
	return nil
}

// work keeps to its share of the rate. What it missed while the database was
// slow it does not make up for.
func (c *Customers) work(ctx context.Context) {
	interval := time.Duration(float64(c.workers) / c.rate * float64(time.Second))
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.step(ctx)
		}
	}
}

// step is one transaction. It is not cut off when ctx ends, so that a stop is
// a clean one.
func (c *Customers) step(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	var err error
	if order := c.pick(); order != nil {
		err = c.advance(ctx, order)
	} else {
		err = c.place(ctx)
	}
	switch {
	case err == nil:
		c.committed.Add(1)
	case errors.Is(err, ErrCreditExceeded), errors.Is(err, ErrWrongStatus):
		c.declined.Add(1) // the second: two customers' clicks met
	default:
		c.failed.Add(1)
		c.log.Error("transaction failed", "error", err)
		select { // the database may need a moment
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// place places an order; every eighth is too dear, every fifth has a voucher.
func (c *Customers) place(ctx context.Context) error {
	order := Order{ID: outbox.NewUUID().String(), Customer: customer(rand.IntN(accounts)), TotalCents: 500 + rand.Int64N(10_000)}
	if rand.IntN(8) == 0 {
		order.TotalCents += creditCents
	}
	voucher := ""
	if rand.IntN(5) == 0 {
		voucher = fmt.Sprintf("WELCOME-%03d", rand.IntN(vouchers))
	}
	if err := c.service.Place(ctx, order, voucher); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = append(c.open, &openOrder{id: order.ID})
	return nil
}

// pick returns an order to go on with, nil when a new one is due.
func (c *Customers) pick() *openOrder {
	c.mu.Lock()
	defer c.mu.Unlock()
	if rand.IntN(openOrders) >= len(c.open) {
		return nil
	}
	return c.open[rand.IntN(len(c.open))]
}

// advance pays an order, or cancels it, or ships it.
func (c *Customers) advance(ctx context.Context, order *openOrder) error {
	c.mu.Lock()
	paid := order.paid
	c.mu.Unlock()
	switch {
	case paid:
		defer c.forget(order)
		return c.service.Ship(ctx, order.id)
	case rand.IntN(10) == 0:
		defer c.forget(order)
		return c.service.Cancel(ctx, order.id)
	}
	err := c.service.Pay(ctx, order.id)
	if err == nil {
		c.mu.Lock()
		order.paid = true
		c.mu.Unlock()
	}
	return err
}

func (c *Customers) forget(order *openOrder) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, o := range c.open {
		if o == order {
			c.open[i] = c.open[len(c.open)-1]
			c.open = c.open[:len(c.open)-1]
			return
		}
	}
}

func customer(i int) string { return fmt.Sprintf("customer-%02d", i) }
