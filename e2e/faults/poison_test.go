package faults_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// poisonFaults are rows that a broker cannot take. The soak has them.
var poisonFaults = []fault{{"poisoned", poisonRow}}

// kafkaLimit is what the relays send to Kafka at most.
const kafkaLimit = 20_000

// poison is what a row has that its broker cannot take: one of them.
type poison struct {
	typ, payload string
	unroutable   bool
	topic        string
}

func (p *play) poisons() []poison {
	if p.rabbit == nil {
		return []poison{{payload: strings.Repeat("x", kafkaLimit+1)}}
	}
	return []poison{{typ: strings.Repeat("t", 256)}, {unroutable: true}}
}

// poisonSQL commits a row and the truth about it.
func poisonSQL(table string) string {
	return `
WITH o AS (INSERT INTO ` + table + ` (topic, key, type, payload) VALUES ($1, $2, $3, $4) RETURNING id, message_id, topic, key)
INSERT INTO truth (message_id, id, topic, key, digest) SELECT message_id, id, topic, key, $5 FROM o`
}

// poisonRow commits a row that the broker refuses and one behind it, of a key of
// their own. Both wait until the first is cancelled; then the other one arrives.
func poisonRow(ctx context.Context, p *play, random *rand.Rand) (int, error) {
	poisons := p.poisons()
	bad := poisons[random.IntN(len(poisons))]
	key := fmt.Sprintf("poisoned-%d", random.Uint64())
	if bad.unroutable {
		bad.topic = "nowhere-" + key
	} else {
		bad.topic = p.topic
	}
	_ = pgx.BeginFunc(ctx, p.stage.Database.Pool, func(tx pgx.Tx) error {
		for _, row := range []poison{bad, {topic: bad.topic}} {
			_, err := tx.Exec(ctx, poisonSQL(p.stage.Table), row.topic, key, row.typ, []byte(row.payload), scenario.Digest([]byte(row.payload)))
			if err != nil {
				return err
			}
		}
		return nil
	})
	// The session may have ended before, in or after its commit.
	var rows []scenario.Row
	if err := await(ctx, "what became of the poison", func(ctx context.Context) (bool, string) {
		var err error
		rows, err = p.rowsOf(ctx, key)
		return err == nil, fmt.Sprint(err)
	}); err != nil {
		return 0, err
	}
	if len(rows) == 0 {
		return 0, p.unlessTogether(errors.New("the poison was not committed"))
	}
	refused, err := p.refused(ctx, rows)
	if err != nil {
		return 0, err
	}
	if refused != len(rows) {
		return 0, fmt.Errorf("M: of a poisoned row and the one behind it, ids %d and %d, %d are pending", rows[0].ID, rows[1].ID, refused)
	}
	cancelled := rows
	if !bad.unroutable {
		cancelled = rows[:1]
	}
	for _, row := range cancelled {
		p.stage.Undo(row.MessageID, "it was cancelled, as the broker refused it")
		if err := p.cancel(ctx, row); err != nil {
			return 0, err
		}
	}
	if bad.unroutable {
		return 0, nil
	}
	return 0, p.arrives(ctx, rows[1])
}

// rowsOf are the committed rows of a key.
func (p *play) rowsOf(ctx context.Context, key string) ([]scenario.Row, error) {
	rows, err := p.stage.Database.Pool.Query(ctx, `SELECT id, message_id FROM truth WHERE key = $1 ORDER BY id`, key)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (r scenario.Row, err error) {
		return r, row.Scan(&r.ID, (*[16]byte)(&r.MessageID))
	})
}

// refused waits until a relay recorded that the first row was refused, and
// returns how many of the rows are pending then.
func (p *play) refused(ctx context.Context, rows []scenario.Row) (pending int, err error) {
	ids := make([]int64, len(rows))
	for i, row := range rows {
		ids[i] = row.ID
	}
	return pending, await(ctx, fmt.Sprintf("the poison, id %d, to be refused", ids[0]), func(ctx context.Context) (bool, string) {
		var known bool
		err := p.stage.Database.Pool.QueryRow(ctx, `
SELECT EXISTS (SELECT FROM outbox_parked WHERE id = $1), (SELECT count(*) FROM `+p.stage.Table+` WHERE id = ANY ($2) AND published_at IS NULL)`,
			ids[0], ids).Scan(&known, &pending)
		return err == nil && known, fmt.Sprintf("%d of its key are pending (%v)", pending, err)
	})
}

// cancel deletes a pending row and the truth about it, as an operator would.
func (p *play) cancel(ctx context.Context, row scenario.Row) error {
	return await(ctx, fmt.Sprintf("id %d to be cancelled", row.ID), func(ctx context.Context) (bool, string) {
		err := pgx.BeginFunc(ctx, p.stage.Database.Pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `DELETE FROM `+p.stage.Table+` WHERE id = $1 AND published_at IS NULL`, row.ID); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `DELETE FROM truth WHERE message_id = $1`, [16]byte(row.MessageID))
			return err
		})
		return err == nil, fmt.Sprint(err)
	})
}
