package rabbitmq_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/rabbitmq"
)

// TestDatabaseSQL takes the connection away, and fails for one message, with
// handlers of database/sql.
func TestDatabaseSQL(t *testing.T) {
	for _, batches := range []bool{false, true} {
		t.Run(fmt.Sprintf("batches=%v", batches), func(t *testing.T) {
			b := newBench(t)
			dead := b.broker.queue(t, nil)
			b.send(1, 60, keys(5))
			db, err := sql.Open("pgx", b.database.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = db.Close() }()
			killed := 0
			handler := func(ctx context.Context, tx *sql.Tx, m inbox.Message) error {
				switch m.Sequence {
				case 10:
					if killed++; killed <= 3 {
						_, err := tx.ExecContext(ctx, `SELECT pg_terminate_backend(pg_backend_pid())`)
						return err
					}
				case 20:
					return errors.New("no such customer")
				}
				_, err := tx.ExecContext(ctx, `INSERT INTO effects (n, key) VALUES ($1, $2)`, m.Sequence, string(m.Key))
				return err
			}
			config := b.config()
			config.DB, config.Handler, config.SQL, config.MaxAttempts = nil, nil, db, 2
			config.OnPoison = rabbitmq.DeadLetter{RoutingKey: dead}
			if config.SQLHandler = handler; batches {
				config.SQLHandler, config.BatchSize = nil, 10
				config.SQLBatchHandler = func(ctx context.Context, tx *sql.Tx, fresh []inbox.Message) error {
					for _, m := range fresh {
						if err := handler(ctx, tx, m); err != nil {
							return err
						}
					}
					return nil
				}
			}
			c := b.start(config)
			b.checkKeyOrder(b.awaitEffects(59), 5)
			b.take(t, dead, 1)
			c.mustStop(t)
			if s := c.Stats(); s.Failures != 2 || s.Poisoned != 1 {
				t.Errorf("%+v, want two failures and one message put aside", s)
			}
			b.checkEmpty()
		})
	}
}
