package inbox_test

import (
	"context"
	"database/sql"
	"net"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/outboxrelay/relay/inbox"
)

// wire counts the round trips of all connections dialled through it: how often
// the client sends something after it has received something.
type wire struct {
	mu    sync.Mutex
	trips int
}

func (w *wire) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	return &countedConn{Conn: conn, wire: w, heard: true}, err
}

type countedConn struct {
	net.Conn
	wire  *wire
	heard bool
}

func (c *countedConn) Write(b []byte) (int, error) {
	c.wire.mu.Lock()
	if c.heard {
		c.heard = false
		c.wire.trips++
	}
	c.wire.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.wire.mu.Lock()
		c.heard = true
		c.wire.mu.Unlock()
	}
	return n, err
}

// count returns the round trips of f's third call: by then a connection has
// described and prepared what it will.
func (w *wire) count(t *testing.T, f func() error) int {
	t.Helper()
	var before int
	for range 3 {
		w.mu.Lock()
		before = w.trips
		w.mu.Unlock()
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.trips - before
}

// Claiming costs no round trip with pgx, whatever the mode and however many
// messages, and one with database/sql.
func TestRoundTrips(t *testing.T) {
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			db := newDatabase(t)
			w := &wire{}
			pool := newPool(t, db.URL, func(c *pgxpool.Config) {
				c.ConnConfig.DialFunc = w.dial
				c.ConnConfig.DefaultQueryExecMode = mode
				c.MaxConns = 1
			})
			config := pool.Config().ConnConfig
			sqlDB := stdlib.OpenDB(*config)
			t.Cleanup(func() { sqlDB.Close() })
			sqlDB.SetMaxOpenConns(1)

			ctx := t.Context()
			ordered := &inbox.Inbox{Consumer: "mail", Order: inbox.OrderReport}
			plain := &inbox.Inbox{Consumer: "mail"}
			message := func() inbox.Message {
				m := newMessage()
				m.Sequence = 1
				return m
			}
			own := w.count(t, func() error {
				return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return apply(ctx, tx, message()) })
			})
			if own != 3 {
				t.Errorf("a transaction with one statement takes %d round trips, want 3", own)
			}
			for _, test := range []struct {
				name string
				want int
				f    func() error
			}{
				{"Process", own, func() error { _, err := plain.Process(ctx, pool, message(), apply); return err }},
				{"Process with the order check", own, func() error { _, err := ordered.Process(ctx, pool, message(), apply); return err }},
				{"ProcessBatch of 100", own, func() error {
					messages := make([]inbox.Message, 100)
					for i := range messages {
						messages[i] = message()
					}
					_, err := ordered.ProcessBatch(ctx, pool, messages, func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
						return apply(ctx, tx, fresh[0])
					})
					return err
				}},
				{"ProcessSQL", own + 1, func() error { _, err := plain.ProcessSQL(ctx, sqlDB, message(), applySQL); return err }},
				{"one's own with database/sql", own, func() error {
					tx, err := sqlDB.BeginTx(ctx, &sql.TxOptions{})
					if err != nil {
						return err
					}
					if err := applySQL(ctx, tx, message()); err != nil {
						return err
					}
					return tx.Commit()
				}},
			} {
				if got := w.count(t, test.f); got != test.want {
					t.Errorf("%s takes %d round trips, want %d", test.name, got, test.want)
				}
			}
		})
	}
}
