package source_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

// A pooler's session keeps what the role has set.
func TestLockedRowBesideAReadOnlyDefault(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `ALTER DATABASE `+pgx.Identifier{db.Pool.Config().ConnConfig.Database}.Sanitize()+` SET default_transaction_read_only = on`)
	pool := poolOf(t, db.URL, "", func(c *pgxpool.Config) {
		c.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
			conn.PgConn().CustomData()["outbox-relay/direct"] = false // as through a pooler
			return nil
		}
	})
	c := claimer(pool, nil)
	t.Cleanup(c.Close)
	db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'a'), ('t', 'b')`)
	tx := begin(t, db)
	execTx(t, tx, `SELECT FROM outbox WHERE id = 1 FOR UPDATE`)
	var got []int64
	for i := range 60 {
		if i == 30 {
			commit(t, tx)
		}
		b, err := c.Claim(t.Context(), source.Exclusion{})
		if err != nil {
			if !source.IsTransient(err) {
				t.Log(i, err)
			}
		} else if b != nil {
			got = append(got, sequences(b)...)
			settle(t, b, all)
		}
		time.Sleep(50 * time.Millisecond)
	}
	expect(t, "got", got, []int64{2, 1})
}
