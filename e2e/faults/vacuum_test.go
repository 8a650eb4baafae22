package faults_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// A long transaction elsewhere, a report or a dump, keeps vacuum from removing
// what was published: the index of pending rows fills with dead entries. Looking
// for pending rows must not walk over all of them each time.
func TestPinnedHorizonDoesNotMakePollsDear(t *testing.T) {
	const rows = 40_000
	stage := scenario.NewKafkaStage(t, nil)
	database, ctx := stage.Database, t.Context()
	pin, err := database.Pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pin.Rollback(ctx) }()
	if _, err := pin.Exec(ctx, `SELECT FROM truth`); err != nil { // takes its snapshot
		t.Fatal(err)
	}
	relay := stage.Start()
	database.Exec(t, `
WITH o AS (
    INSERT INTO `+stage.Table+` (topic, key, payload) SELECT $1, 'key-' || i % 300, convert_to('payload ' || i, 'UTF8') FROM generate_series(1, $2::int) i
    RETURNING id, message_id, topic, key, payload
)
INSERT INTO truth (message_id, id, topic, key, digest) SELECT message_id, id, topic, key, decode(md5(payload), 'hex') FROM o`, stage.Topic(), rows)
	stage.Drain(patience)

	// One look at each of the 64 shards, from the beginning: what each poll would
	// cost without a floor.
	var plan []struct {
		Plan struct {
			Hit  int `json:"Shared Hit Blocks"`
			Read int `json:"Shared Read Blocks"`
		}
	}
	if err := database.Pool.QueryRow(ctx, `
EXPLAIN (ANALYZE, BUFFERS, FORMAT json)
SELECT FROM generate_series(0, 63) AS s(shard)
WHERE EXISTS (SELECT FROM `+stage.Table+` o WHERE (coalesce(hashtextextended(o.key, 0), o.id) & 63) = s.shard
              AND o.published_at IS NULL AND o.available_at IS NULL OFFSET 0)`).Scan(&plan); err != nil {
		t.Fatal(err)
	}
	without := float64(plan[0].Plan.Hit+plan[0].Plan.Read) / 64

	// What the relay's looks cost meanwhile, the full ones included.
	const (
		statSQL  = `SELECT sum(idx_blks_hit + idx_blks_read)::bigint FROM pg_statio_user_indexes WHERE indexrelname = 'outbox_pending_idx'`
		scansSQL = `SELECT sum(idx_scan)::bigint FROM pg_stat_user_indexes WHERE indexrelname = 'outbox_pending_idx'`
	)
	blocks, scans := scenario.One[int64](t, database, statSQL), scenario.One[int64](t, database, scansSQL)
	var more, looks int64
	scenario.Await(t, patience, "the idle relay to poll", func() (bool, string) {
		more, looks = scenario.One[int64](t, database, statSQL)-blocks, scenario.One[int64](t, database, scansSQL)-scans
		return looks >= 50*64, "it polled too little"
	})
	with := float64(more) / float64(looks)
	t.Logf("with %d dead entries a look at a shard costs %.1f buffers, %.1f without floors; %.0f and %.0f per poll", rows, with, without, 64*with, 64*without)
	if with > without/3 {
		t.Errorf("a look at a shard costs %.1f buffers, want less than a third of %.1f", with, without)
	}

	key := "after"
	stage.AwaitRecord(stage.Insert(stage.Topic(), &key, "beside dead entries").MessageID, 20*time.Second)
	relay.Stop()
	stage.Verify(0)
}
