package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/migrations"
)

func prune(t *testing.T, db inbox.Querier, box *inbox.Inbox, want int64) {
	t.Helper()
	n, err := box.Prune(t.Context(), db)
	if n != want || err != nil {
		t.Errorf("removed %d (%v), want %d", n, err, want)
	}
}

// countBatches notes how many rows each statement deletes.
func countBatches(t *testing.T, db *pgtest.Database) {
	t.Helper()
	db.Exec(t, `CREATE TABLE batches (deleted bigint)`, `
CREATE FUNCTION count_batch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO batches SELECT count(*) FROM gone; RETURN NULL; END $$`,
		`CREATE TRIGGER count_batch AFTER DELETE ON inbox REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION count_batch()`)
}

func TestPrune(t *testing.T) {
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			db := newDatabase(t)
			pool := newPool(t, db.URL, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
			countBatches(t, db)
			db.Exec(t, `INSERT INTO inbox (consumer, message_id, processed_at)
				SELECT 'c' || n % 3, gen_random_uuid(), now() - CASE WHEN n % 7 = 0 THEN interval '14 days' ELSE interval '16 days' END FROM generate_series(1, 21000) n`,
				`INSERT INTO inbox_order (consumer, topic, key, sequence, updated_at) VALUES ('c', 't', 'old', 1, now() - interval '16 days'), ('c', 't', 'new', 1, now() - interval '14 days')`)
			box := &inbox.Inbox{} // of no consumer in particular
			prune(t, pool, box, 18000)
			if n := db.Int(t, `SELECT count(*) FROM inbox`); n != 3000 {
				t.Errorf("%d rows are left, want 3000", n)
			}
			if n := db.Int(t, `SELECT count(*) FROM inbox WHERE processed_at < now() - interval '15 days'`); n != 0 {
				t.Errorf("%d old rows are left", n)
			}
			if n := db.Int(t, `SELECT max(deleted) FROM batches`); n > 7000 {
				t.Errorf("one statement deleted %d rows", n)
			}
			if n := db.Int(t, `SELECT count(*) FROM inbox_order`); n != 1 {
				t.Errorf("%d keys are left, want 1", n)
			}
			prune(t, pool, box, 0)
			prune(t, pool, &inbox.Inbox{Retention: 24 * time.Hour}, 3000)
		})
	}
}

// Retention is the time in which a duplicate is recognised.
func TestRetentionIsTheWindow(t *testing.T) {
	db := newDatabase(t)
	box := &inbox.Inbox{Consumer: "mail", Retention: time.Hour}
	old, young := newMessage(), newMessage()
	for _, m := range []inbox.Message{old, young} {
		result, err := box.Process(t.Context(), db.Pool, m, apply)
		expectResult(t, "at first", result, inbox.Processed, err)
	}
	db.Exec(t, `UPDATE inbox SET processed_at = now() - interval '61 minutes' WHERE message_id = '`+old.ID.String()+`'`,
		`UPDATE inbox SET processed_at = now() - interval '59 minutes' WHERE message_id = '`+young.ID.String()+`'`)
	prune(t, db.Pool, box, 1)
	result, err := box.Process(t.Context(), db.Pool, old, apply)
	expectResult(t, "older than the retention", result, inbox.Processed, err)
	result, err = box.Process(t.Context(), db.Pool, young, apply)
	expectResult(t, "younger than the retention", result, inbox.Duplicate, err)
}

func TestPruneBesideConsumersAndOtherPruners(t *testing.T) {
	db := newDatabase(t)
	db.Exec(t, `INSERT INTO inbox (consumer, message_id, processed_at) SELECT 'mail', gen_random_uuid(), now() - interval '16 days' FROM generate_series(1, 20000)`)
	box := &inbox.Inbox{Consumer: "mail"}
	var removed [3]int64
	var group sync.WaitGroup
	for i := range removed {
		group.Go(func() {
			var err error
			if removed[i], err = box.Prune(context.Background(), db.Pool); err != nil {
				t.Error(err)
			}
		})
	}
	for range 2 {
		group.Go(func() {
			for range 100 {
				if _, err := box.Process(context.Background(), db.Pool, newMessage(), apply); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if sum := removed[0] + removed[1] + removed[2]; sum != 20000 {
		t.Errorf("removed %v, %d in all", removed, sum)
	}
	expectEffects(t, db, 200)
}

func TestPruneWithoutAnInbox(t *testing.T) {
	db := pgtest.New(t)
	_, err := (&inbox.Inbox{}).Prune(t.Context(), db.Pool)
	if !errors.Is(err, inbox.ErrNoTable) || !strings.Contains(err.Error(), "relay migrate --only inbox") {
		t.Error(err)
	}
	_, err = (&inbox.Inbox{Retention: -time.Second}).Prune(t.Context(), db.Pool)
	if err == nil || !strings.Contains(err.Error(), "negative") {
		t.Error(err)
	}
}

// The table that docs/inbox.md advises for large volumes, from the page itself.
func TestPartitionedInbox(t *testing.T) {
	db := newDatabase(t)
	db.Exec(t, `DROP TABLE inbox`, example(t, "PARTITION BY RANGE (message_id)"), example(t, "PARTITION OF inbox DEFAULT"), example(t, "CREATE FUNCTION uuid_at"), example(t, "inbox_20260301"))
	db.Exec(t, `DO $$ BEGIN EXECUTE format('CREATE TABLE inbox_today PARTITION OF inbox FOR VALUES FROM (%L) TO (%L)', uuid_at(now() - interval '1 day'), uuid_at(now() + interval '1 day')); END $$`)
	box := &inbox.Inbox{Consumer: "mail"}
	timed, random := newMessage(), newMessage()
	var version7 string
	if err := db.Pool.QueryRow(t.Context(), `SELECT uuid_at(now())`).Scan(&version7); err != nil {
		t.Fatal(err)
	}
	today, err := inbox.ParseID(version7)
	if err != nil {
		t.Fatal(err)
	}
	timed.ID = today
	random.ID[0] = 0xff
	for _, want := range []string{"[processed processed]", "[duplicate duplicate]"} {
		results, err := box.ProcessBatch(t.Context(), db.Pool, []inbox.Message{timed, random}, applyAll)
		if err != nil || fmt.Sprint(results) != want {
			t.Errorf("%v (%v), want %s", results, err, want)
		}
	}
	if n := db.Int(t, `SELECT count(*) FROM inbox_today`); n != 1 {
		t.Errorf("%d rows are in the partition of today, want 1", n)
	}
	db.Exec(t, `UPDATE inbox SET processed_at = now() - interval '16 days'`)
	prune(t, db.Pool, box, 2)
	for _, want := range []bool{true, false} {
		var claimed bool
		if err := db.Pool.QueryRow(t.Context(), `SELECT inbox_claim('mail', $1)`, timed.ID.String()).Scan(&claimed); err != nil || claimed != want {
			t.Errorf("claimed %v (%v), want %v", claimed, err, want)
		}
	}
	result, err := box.Process(t.Context(), db.Pool, timed, apply)
	expectResult(t, "what the function claimed", result, inbox.Duplicate, err)
}

// The same for partitions by hash, which take over what is there.
func TestInboxPartitionedByHash(t *testing.T) {
	db := newDatabase(t)
	box := &inbox.Inbox{Consumer: "mail"}
	messages := make([]inbox.Message, 200)
	for n := range messages {
		messages[n] = newMessage()
	}
	if _, err := box.ProcessBatch(t.Context(), db.Pool, messages[:100], applyAll); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, example(t, "PARTITION BY HASH (message_id)"), `CREATE PUBLICATION everything FOR ALL TABLES`)
	results, err := box.ProcessBatch(t.Context(), db.Pool, messages, applyAll)
	if err != nil {
		t.Fatal(err)
	}
	for n, result := range results {
		want := inbox.Processed
		if n < 100 {
			want = inbox.Duplicate
		}
		expectResult(t, fmt.Sprint(n), result, want, nil)
	}
	if n := db.Int(t, `SELECT count(DISTINCT tableoid) FROM inbox`); n < 8 {
		t.Errorf("the ids are in %d partitions of 16", n)
	}
	for _, way := range processors {
		result, err := way.open(t, db.URL).process(t.Context(), box, messages[7], nothing)
		expectResult(t, way.name, result, inbox.Duplicate, err)
	}
	expectEffects(t, db, 200)
	db.Exec(t, `UPDATE inbox SET processed_at = now() - interval '16 days' WHERE consumer = 'mail'`)
	prune(t, db.Pool, box, 200)
}

// With partitions by the time of processing a claim fails, rather than let an id
// be there twice.
func TestInboxPartitionedByTimeOfProcessing(t *testing.T) {
	db := newDatabase(t)
	db.Exec(t, `ALTER TABLE inbox RENAME TO inbox_plain`, `ALTER INDEX inbox_pkey RENAME TO inbox_plain_pkey`,
		`CREATE TABLE inbox (LIKE inbox_plain INCLUDING DEFAULTS, PRIMARY KEY (consumer, message_id, processed_at)) PARTITION BY RANGE (processed_at)`,
		`CREATE TABLE inbox_all PARTITION OF inbox DEFAULT`)
	_, err := (&inbox.Inbox{Consumer: "mail"}).Process(t.Context(), db.Pool, newMessage(), apply)
	if err == nil || !strings.Contains(err.Error(), "42P10") {
		t.Error(err)
	}
}

func TestNamesAreQuoted(t *testing.T) {
	db := newDatabase(t)
	target := migrations.Target{Schema: `Odd "s'chema" %s`, Table: `In'box "1" %s`, Set: migrations.Inbox}
	migrate(t, db, target)
	box := &inbox.Inbox{Consumer: `it's "mail"`, Schema: target.Schema, Table: target.Table, Order: inbox.OrderReport}
	m := sequenced("k", 1)
	for _, want := range []string{"[processed]", "[duplicate]"} {
		results, err := box.ProcessBatch(t.Context(), db.Pool, []inbox.Message{m}, applyAll)
		if err != nil || fmt.Sprint(results) != want {
			t.Errorf("%v (%v), want %s", results, err, want)
		}
	}
	result, err := box.Process(t.Context(), db.Pool, m, apply)
	expectResult(t, "one", result, inbox.Duplicate, err)
	table := pgx.Identifier{target.Schema, target.Table}.Sanitize()
	db.Exec(t, `UPDATE `+table+` SET processed_at = now() - interval '16 days'`)
	prune(t, db.Pool, box, 1)
}

// Neither a row that somebody has locked nor one that another table refers to
// keeps the others.
func TestPruneGoesOnBesideRowsThatStay(t *testing.T) {
	db := newDatabase(t)
	db.Exec(t, `INSERT INTO inbox (consumer, message_id, source_offset, processed_at)
			SELECT 'mail', gen_random_uuid(), n, now() - interval '16 days' FROM generate_series(1, 20000) n`,
		`CREATE TABLE receipts (consumer text, message_id uuid, CONSTRAINT kept FOREIGN KEY (consumer, message_id) REFERENCES inbox)`,
		`INSERT INTO receipts SELECT consumer, message_id FROM inbox WHERE source_offset IN (3, 4, 15000)`)
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `SELECT FROM inbox WHERE source_offset = 10000 FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	box := &inbox.Inbox{}
	n, err := box.Prune(t.Context(), db.Pool)
	if n != 19996 || err == nil || !strings.Contains(err.Error(), "3 rows past their retention stay") || !strings.Contains(err.Error(), `"kept"`) {
		t.Errorf("removed %d, error %v; want 19996, and one about 3 rows that the foreign key keeps", n, err)
	}
	db.Exec(t, `DELETE FROM receipts`)
	prune(t, db.Pool, box, 3)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	prune(t, db.Pool, box, 1)
}

// Transactions that are read-only by default keep nobody from pruning.
func TestPruneInAReadOnlyDatabase(t *testing.T) {
	db := newDatabase(t)
	db.Exec(t, `INSERT INTO inbox (consumer, message_id, processed_at) SELECT 'c', gen_random_uuid(), now() - interval '16 days' FROM generate_series(1, 10)`,
		`ALTER DATABASE `+pgx.Identifier{db.Pool.Config().ConnConfig.Database}.Sanitize()+` SET default_transaction_read_only = on`)
	prune(t, newPool(t, db.URL, func(*pgxpool.Config) {}), &inbox.Inbox{}, 10)
}

// What a role has set for other transactions does not concern pruning: in
// stricter ones two pruners, or a consumer, would fail by a serialization error.
func TestPruneWhateverTheRoleHasSet(t *testing.T) {
	db := newDatabase(t)
	url, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	query := url.Query()
	query.Set("default_transaction_isolation", "serializable")
	query.Set("default_transaction_read_only", "on")
	url.RawQuery = query.Encode()
	pool, standard := newPool(t, url.String(), nil), openSQL(t, url.String())
	db.Exec(t, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF current_setting('transaction_isolation') <> 'read committed' THEN RAISE '%', current_setting('transaction_isolation') USING ERRCODE = '40001'; END IF; RETURN OLD; END $$`,
		`CREATE TRIGGER refuse BEFORE DELETE ON inbox FOR EACH ROW EXECUTE FUNCTION refuse()`)
	box := &inbox.Inbox{}
	for name, prune := range map[string]func() (int64, error){
		"pgx":          func() (int64, error) { return box.Prune(t.Context(), pool) },
		"one":          func() (int64, error) { return box.Prune(t.Context(), connect(t, url.String())) },
		"database/sql": func() (int64, error) { return box.PruneSQL(t.Context(), standard) },
	} {
		db.Exec(t, `INSERT INTO inbox (consumer, message_id, processed_at) SELECT 'c', gen_random_uuid(), now() - interval '16 days' FROM generate_series(1, 10)`)
		if n, err := prune(); n != 10 || err != nil {
			t.Errorf("%s: removed %d (%v), want 10", name, n, err)
		}
	}
}
