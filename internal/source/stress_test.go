package source_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
)

// soakFor is the length of a soak, for a quarter of which the stress test repeats
// on new databases and with new seeds; 0 is once.
var soakFor = flag.Duration("soak", 0, "repeat the stress test of claimers for a quarter of this")

// The claimer's verbs as the stress test uses them.

func stressClaim(ctx context.Context, c *source.Claimer, out leftOut) (source.Batch, error) {
	if c.Unsettled() > 0 {
		_ = c.Resettle(ctx) // it is tried again at the next claim
	}
	return c.Claim(ctx, out.exclusion())
}

func stressClaimHeld(ctx context.Context, c *source.Claimer, out leftOut) (source.Batch, error) {
	return c.ClaimHeld(ctx, out.exclusion())
}

func (l leftOut) exclusion() source.Exclusion {
	keys := l.keys
	return source.Exclusion{
		Holds: func(row *source.Row) bool {
			return row.Key != nil && keys[stressKey{row.Topic, string(row.Key)}]
		},
		Shrunk: l.shrunk,
	}
}

func stressHeldIsDue(c *source.Claimer) bool {
	due, any := c.HeldDue()
	return any && !due.After(time.Now())
}

const (
	// stressRound is how long one round writes, and stressShort with -short.
	stressRound, stressShort = 15 * time.Second, 3 * time.Second
	// stressDrain bounds the drain after it.
	stressDrain = 90 * time.Second
	// stressKeys is the number of keys in each of stressTopics.
	stressKeys = 20
)

var stressTopics = []string{"a", "b"}

// stressKey is one ordered sequence.
type stressKey struct{ topic, key string }

// leftOut is the keys that a relay leaves out of its claims for a while, as it does
// when a destination takes nothing.
type leftOut struct {
	keys map[stressKey]bool
	// shrunk is how often there became fewer.
	shrunk uint64
}

// change adds some keys or lets all of them go.
func (l *leftOut) change(random *rand.Rand) {
	if len(l.keys) > 0 && random.IntN(2) == 0 {
		l.keys = nil
		l.shrunk++
		return
	}
	more := maps.Clone(l.keys) // the claimer may have the old ones
	if more == nil {
		more = map[stressKey]bool{}
	}
	for range 1 + random.IntN(4) {
		more[stressKey{stressTopics[random.IntN(len(stressTopics))], "k" + strconv.Itoa(random.IntN(stressKeys))}] = true
	}
	l.keys = more
}

// Random claimers, writers and operators side by side; everything that a real
// server can be made to do to the claimers and that ends no session. What the
// claimers hand out goes to a log in memory, which is compared with the database
// while they work and in the end. See the invariants in e2e/scenario/doc.go.
func TestStressOfClaimers(t *testing.T) {
	mixes := []stressMix{
		{name: "key", orderings: []source.Ordering{source.OrderKey}, ordered: true},
		{name: "key beside total", orderings: []source.Ordering{source.OrderKey, source.OrderTotal}, ordered: true},
		{name: "key beside none", orderings: []source.Ordering{source.OrderKey, source.OrderNone}},
	}
	began := time.Now()
	for first := true; first || time.Since(began) < *soakFor/4; first = false {
		for _, mix := range mixes {
			seed := stressSeed(t)
			if !t.Run(fmt.Sprintf("%s/seed=%d", mix.name, seed), func(t *testing.T) { stress(t, mix, seed) }) {
				return // what comes after a violation says nothing more
			}
		}
	}
}

func stressSeed(t *testing.T) uint64 {
	given := os.Getenv("RELAY_TEST_SEED")
	if given == "" {
		return rand.Uint64()
	}
	seed, err := strconv.ParseUint(given, 10, 64)
	if err != nil {
		t.Fatalf("RELAY_TEST_SEED: %v", err)
	}
	return seed
}

// stressMix is who works side by side.
type stressMix struct {
	name string
	// orderings are drawn from for each claimer.
	orderings []source.Ordering
	// ordered: the order of keys is promised.
	ordered bool
}

// stressWorld is one round.
type stressWorld struct {
	t    *testing.T
	mix  stressMix
	db   *pgtest.Database
	pool *pgxpool.Pool // of all but the claimers
	seed uint64
	// began is when the round did.
	began time.Time
	// prepared: the server knows prepared transactions.
	prepared bool
	// calm: everything is published, for the drain.
	calm atomic.Bool
	// relays is how many there were.
	relays atomic.Int64

	mu sync.Mutex
	// rows are all that were inserted, committed or not.
	rows map[int64]stressRow
	// gone rows must not be sent any more; leaving ones need not be.
	gone    map[int64]string
	leaving map[int64]bool
	// sent counts the log's records of a row, recorded are those whose mark or
	// deletion is known to be committed, last is the log's end per key.
	sent     map[int64]int
	recorded map[int64]bool
	last     map[stressKey]int64
	holder   map[stressKey]int
	history  map[stressKey][]string
	counts   map[string]int
	batches  int
	offences []string
}

type stressRow struct {
	stressKey
	keyed, delayed bool
}

// ordered rows have a place in their key's order.
func (r stressRow) ordered() bool { return r.keyed && !r.delayed }

func stress(t *testing.T, mix stressMix, seed uint64) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `CREATE TABLE truth (id bigint PRIMARY KEY);
		CREATE TABLE aggregates (topic text, key text, changes int NOT NULL, PRIMARY KEY (topic, key))`)
	w := &stressWorld{
		t: t, mix: mix, db: db, seed: seed, began: time.Now(), pool: stressPool(t, db, 24),
		rows: map[int64]stressRow{}, gone: map[int64]string{}, leaving: map[int64]bool{},
		sent: map[int64]int{}, recorded: map[int64]bool{}, last: map[stressKey]int64{},
		holder: map[stressKey]int{}, history: map[stressKey][]string{}, counts: map[string]int{},
	}
	w.prepared = db.Int(t, `SELECT current_setting('max_prepared_transactions')::int`) > 0
	if !w.prepared {
		t.Log("without prepared transactions: the server has max_prepared_transactions = 0")
	}
	length := stressRound
	if testing.Short() {
		length = stressShort
	}
	writing, stopWriting := context.WithTimeout(t.Context(), length)
	defer stopWriting()
	claiming, stopClaiming := context.WithCancel(t.Context())
	defer stopClaiming()
	var writers, claimers sync.WaitGroup
	for i := range 8 {
		writers.Go(func() { w.write(writing, w.random(uint64(i))) })
	}
	for i := range 3 {
		writers.Go(func() { w.operate(writing, w.random(100+uint64(i))) })
	}
	for i := range 5 {
		claimers.Go(func() { w.work(claiming, w.random(200+uint64(i)), i) })
	}
	claimers.Go(func() { w.watch(claiming, w.random(300)) })
	writers.Wait()
	w.calm.Store(true)
	w.drain()
	stopClaiming()
	claimers.Wait()
	w.judge()
}

// stressPool is a pool of the test's own connections. Locks are not waited for
// longer than a second: an operator who meets a busy row comes again.
func stressPool(t *testing.T, db *pgtest.Database, size int32) *pgxpool.Pool {
	settings, err := pgxpool.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	settings.MaxConns = size
	pool, err := pgxpool.NewWithConfig(t.Context(), settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func (w *stressWorld) random(purpose uint64) *rand.Rand {
	return rand.New(rand.NewPCG(w.seed, purpose))
}

func (w *stressWorld) locked(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *stressWorld) count(what string) { w.locked(func() { w.counts[what]++ }) }

// note adds an event to the history of a key, for those who look for the reason of
// a violation. The caller holds the lock.
func (w *stressWorld) note(key stressKey, format string, arguments ...any) {
	at := time.Since(w.began).Round(100 * time.Microsecond)
	w.history[key] = append(w.history[key], fmt.Sprintf("%v ", at)+fmt.Sprintf(format, arguments...))
}

// offend notes a violation. The caller holds the lock.
func (w *stressWorld) offend(key stressKey, format string, arguments ...any) {
	text := fmt.Sprintf(format, arguments...)
	if history := w.history[key]; len(history) > 0 && key != (stressKey{}) {
		text += "\n    " + strings.Join(history[max(0, len(history)-40):], "\n    ")
	}
	w.offences = append(w.offences, text)
}

// The writers.

var errStressRollback = errors.New("roll back")

func (w *stressWorld) write(ctx context.Context, random *rand.Rand) {
	var ending sync.WaitGroup
	defer ending.Wait()
	for n := 0; ctx.Err() == nil; n++ {
		// The end of the round cuts no transaction short.
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		err := w.transaction(limited, random, &ending)
		cancel()
		if err != nil && !errors.Is(err, errStressRollback) {
			w.t.Errorf("writer: %v", err)
			return
		}
		stressPause(ctx, random, 40*time.Millisecond)
	}
}

// transaction locks aggregates and writes messages about them, so that the ids
// of a key commit in order.
func (w *stressWorld) transaction(ctx context.Context, random *rand.Rand, ending *sync.WaitGroup) error {
	keys := make([]stressKey, 1+random.IntN(3))
	for i := range keys {
		keys[i] = stressKey{stressTopics[random.IntN(len(stressTopics))], "k" + strconv.Itoa(random.IntN(stressKeys))}
	}
	slices.SortFunc(keys, func(a, b stressKey) int { return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.key, b.key)) })
	keys = slices.Compact(keys)
	fate, aside := random.IntN(100), random.IntN(5) == 0
	// Most are short, and at times all are: floors rise then.
	long := time.Duration(random.Int64N(int64(200 * time.Millisecond)))
	if random.IntN(5) == 0 && time.Now().Unix()/3%2 == 0 {
		long = time.Duration(random.Int64N(int64(2500 * time.Millisecond)))
	}
	conn, err := w.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	var kept []int64
	undo := func(ids []int64) {
		w.locked(func() {
			for _, id := range ids {
				w.gone[id] = "it was rolled back"
				w.note(w.rows[id].stressKey, "id %d rolled back", id)
			}
		})
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if random.IntN(4) == 0 {
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = off`); err != nil {
			return err
		}
	}
	for _, k := range keys {
		if _, err := tx.Exec(ctx, `INSERT INTO aggregates VALUES ($1, $2, 1) ON CONFLICT (topic, key) DO UPDATE SET changes = aggregates.changes + 1`, k.topic, k.key); err != nil {
			return err
		}
	}
	for range 1 + random.IntN(2) {
		ids, err := w.insert(ctx, tx, random, keys)
		if err != nil {
			return err
		}
		kept = append(kept, ids...)
		if aside {
			if err := pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) error {
				ids, err := w.insert(ctx, savepoint, random, keys)
				if err != nil {
					return err
				}
				undo(ids)
				return errStressRollback
			}); !errors.Is(err, errStressRollback) {
				return err
			}
			w.count("savepoints rolled back")
		}
	}
	switch {
	case fate < 8:
		undo(kept)
		w.count("rolled back")
		return errStressRollback
	case fate < 14:
		w.count("committed late")
		stressSleep(ctx, long)
	case fate < 24 && w.prepared:
		return w.prepare(ctx, tx, random, kept, undo, long, ending)
	}
	w.count("committed")
	err = tx.Commit(ctx)
	w.committed(kept)
	return err
}

// committed notes that a transaction with the rows has ended.
func (w *stressWorld) committed(ids []int64) {
	w.locked(func() {
		for _, id := range ids {
			w.note(w.rows[id].stressKey, "id %d committed", id)
		}
	})
}

// insert writes some messages about the keys, or about none.
func (w *stressWorld) insert(ctx context.Context, tx pgx.Tx, random *rand.Rand, keys []stressKey) (ids []int64, err error) {
	for range 1 + random.IntN(4) {
		row := stressRow{stressKey: keys[random.IntN(len(keys))], keyed: random.IntN(10) > 0, delayed: random.IntN(10) == 0}
		var key *string
		if row.keyed {
			key = &row.key
		}
		var delay *time.Duration
		if row.delayed {
			d := time.Duration(random.Int64N(int64(time.Second))) - 200*time.Millisecond
			delay = &d
		}
		var id int64
		if err := tx.QueryRow(ctx, `
WITH o AS (INSERT INTO outbox (topic, key, available_at) VALUES ($1, $2, clock_timestamp() + $3::interval) RETURNING id),
     t AS (INSERT INTO truth SELECT id FROM o)
SELECT id FROM o`, row.topic, key, delay).Scan(&id); err != nil {
			return ids, err
		}
		w.locked(func() {
			w.rows[id] = row
			w.note(row.stressKey, "id %d inserted, keyed %t, delayed %t", id, row.keyed, row.delayed)
		})
		ids = append(ids, id)
	}
	return ids, nil
}

// prepare leaves the transaction to the server, and ends it after a while.
func (w *stressWorld) prepare(ctx context.Context, tx pgx.Tx, random *rand.Rand, kept []int64, undo func([]int64), after time.Duration, ending *sync.WaitGroup) error {
	name := fmt.Sprintf("stress_%d_%d", w.seed, kept[0])
	if _, err := tx.Exec(ctx, `PREPARE TRANSACTION '`+name+`'`); err != nil {
		return err
	}
	_ = tx.Rollback(ctx) // the session has no transaction any more; this only tells pgx
	end := `COMMIT PREPARED '` + name + `'`
	commits := random.IntN(4) > 0
	if !commits {
		undo(kept)
		end = `ROLLBACK PREPARED '` + name + `'`
	}
	w.count("prepared")
	ending.Go(func() {
		time.Sleep(after)
		if _, err := w.pool.Exec(context.WithoutCancel(ctx), end); err != nil {
			w.t.Errorf("%s: %v", end, err)
		}
		if commits {
			w.committed(kept)
		}
	})
	return nil
}

func stressSleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func stressPause(ctx context.Context, random *rand.Rand, most time.Duration) {
	stressSleep(ctx, time.Duration(random.Int64N(int64(most))))
}

// The operators.

func (w *stressWorld) operate(ctx context.Context, random *rand.Rand) {
	acts := []func(context.Context, *rand.Rand) error{w.retry, w.retry, w.skip, w.cancel, w.lockRows, w.lockRows, w.lockEntry}
	for ctx.Err() == nil {
		stressPause(ctx, random, 120*time.Millisecond)
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		err := acts[random.IntN(len(acts))](limited, random)
		cancel()
		if code := stressState(err); err != nil && code != "55P03" && code != "40P01" { // busy, as an operator finds it at times
			w.t.Errorf("operator: %v", err)
			return
		}
	}
}

func stressState(err error) string {
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pgErr.Code
	}
	return ""
}

// inTx runs f in a transaction that waits a second for a lock.
func (w *stressWorld) inTx(ctx context.Context, f func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = '1s'`); err != nil {
			return err
		}
		return f(tx)
	})
}

// one returns what the query finds, 0 where that is nothing.
func (w *stressWorld) one(ctx context.Context, tx pgx.Tx, sql string) (id int64, err error) {
	if err = tx.QueryRow(ctx, sql).Scan(&id); errors.Is(err, pgx.ErrNoRows) {
		err = nil
	}
	return id, err
}

const (
	stressEntrySQL   = `SELECT id FROM outbox_parked WHERE state IN ('parked', 'retrying') ORDER BY random() LIMIT 1`
	stressPendingSQL = `SELECT id FROM outbox WHERE published_at IS NULL ORDER BY random() LIMIT 1`
)

// retry does as relay parked retry.
func (w *stressWorld) retry(ctx context.Context, _ *rand.Rand) error {
	return w.inTx(ctx, func(tx pgx.Tx) error {
		id, err := w.one(ctx, tx, stressEntrySQL)
		if err == nil && id > 0 {
			w.count("retried")
			w.locked(func() { w.note(w.rows[id].stressKey, "id %d retried by an operator", id) })
			_, err = tx.Exec(ctx, `UPDATE outbox_parked SET next_retry_at = now() WHERE id = $1 AND state IN ('parked', 'retrying')`, id)
		}
		return err
	})
}

// skip does as relay parked skip.
func (w *stressWorld) skip(ctx context.Context, _ *rand.Rand) error {
	var id int64
	var moved bool
	err := w.inTx(ctx, func(tx pgx.Tx) (err error) {
		if id, err = w.one(ctx, tx, stressEntrySQL); err != nil || id == 0 {
			return err
		}
		w.leave(id)
		drained, err := tx.Exec(ctx, `UPDATE outbox_parked SET state = 'draining', next_retry_at = now() WHERE id = $1 AND state IN ('parked', 'retrying')`, id)
		if err != nil || drained.RowsAffected() == 0 {
			return err
		}
		buried, err := tx.Exec(ctx, `
WITH gone AS (
    DELETE FROM outbox o USING outbox_parked p
    WHERE o.id = $1 AND o.published_at IS NULL AND p.id = o.id AND p.message_id = o.message_id
    RETURNING o.*, p.attempts, p.reason, p.error, p.first_failed_at, p.last_failed_at
)
INSERT INTO outbox_dead_letters (id, message_id, topic, key, type, payload, content_type, headers, available_at, created_at,
                                 attempts, reason, error, first_failed_at, last_failed_at)
SELECT id, message_id, topic, key, type, payload, content_type, headers, available_at, created_at,
       attempts, reason, error, first_failed_at, last_failed_at FROM gone`, id)
		moved = buried.RowsAffected() > 0
		return err
	})
	if err == nil && moved {
		w.lose(id, "an operator skipped it", "skipped")
	}
	return err
}

// cancel deletes a pending row.
func (w *stressWorld) cancel(ctx context.Context, _ *rand.Rand) error {
	var id int64
	var deleted bool
	err := w.inTx(ctx, func(tx pgx.Tx) (err error) {
		if id, err = w.one(ctx, tx, stressPendingSQL); err != nil || id == 0 {
			return err
		}
		w.leave(id)
		tag, err := tx.Exec(ctx, `DELETE FROM outbox WHERE id = $1 AND published_at IS NULL`, id)
		deleted = tag.RowsAffected() > 0
		return err
	})
	if err == nil && deleted {
		w.lose(id, "it was cancelled", "cancelled")
	}
	return err
}

// leave notes that a row may end without being sent.
func (w *stressWorld) leave(id int64) { w.locked(func() { w.leaving[id] = true }) }

// lose notes that it did.
func (w *stressWorld) lose(id int64, why, count string) {
	w.locked(func() {
		w.gone[id] = why
		w.counts[count]++
		w.note(w.rows[id].stressKey, "id %d: %s", id, why)
	})
}

// lockRows locks pending rows for a while, as an application does that is about
// to change its mind.
func (w *stressWorld) lockRows(ctx context.Context, random *rand.Rand) error {
	n, pause := 1+random.IntN(5), time.Duration(random.Int64N(int64(700*time.Millisecond)))
	return w.inTx(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `SELECT FROM outbox WHERE id IN (SELECT id FROM outbox WHERE published_at IS NULL ORDER BY random() LIMIT $1) FOR UPDATE SKIP LOCKED`, n)
		if err == nil && tag.RowsAffected() > 0 {
			w.count("rows locked")
			stressSleep(ctx, pause)
		}
		return err
	})
}

// lockEntry locks an entry for a while.
func (w *stressWorld) lockEntry(ctx context.Context, random *rand.Rand) error {
	pause := time.Duration(random.Int64N(int64(400 * time.Millisecond)))
	return w.inTx(ctx, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `SELECT FROM outbox_parked ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED`)
		if err == nil && tag.RowsAffected() > 0 {
			w.count("entries locked")
			stressSleep(ctx, pause)
		}
		return err
	})
}

// The claimers.

// work is a relay that is replaced by another one at times.
func (w *stressWorld) work(ctx context.Context, random *rand.Rand, place int) {
	for life := 0; ctx.Err() == nil; life++ {
		options := source.Options{
			Schema: "public", Table: "outbox", PublishTimeout: 20 * time.Second,
			Workers:     2,
			Ordering:    w.mix.orderings[random.IntN(len(w.mix.orderings))],
			OnPublished: []source.OnPublished{source.Mark, source.Delete}[random.IntN(2)],
			BatchSize:   []int{1, 3, 10, 50, 200}[random.IntN(5)],
		}
		if place < len(w.mix.orderings) {
			options.Ordering = w.mix.orderings[place] // each is there
		}
		life, cancel := context.WithTimeout(ctx, time.Second+time.Duration(random.Int64N(int64(5*time.Second))))
		w.live(life, random, options)
		cancel()
	}
}

// live is one relay, with up to two batches under way.
func (w *stressWorld) live(ctx context.Context, random *rand.Rand, options source.Options) {
	pool := stressPool(w.t, w.db, 4)
	defer pool.Close()
	c := source.NewClaimer(pool, options)
	var settling sync.WaitGroup
	defer settling.Wait()
	free := make(chan struct{}, 2)
	var out leftOut
	number := w.relays.Add(1)
	for ctx.Err() == nil {
		free <- struct{}{}
		switch {
		case w.calm.Load() && len(out.keys) > 0:
			out = leftOut{shrunk: out.shrunk + 1}
		case !w.calm.Load() && options.Ordering == source.OrderKey && random.IntN(12) == 0:
			out.change(random)
		}
		batch, held, err := w.claim(ctx, random, c, out)
		if err != nil && !source.IsTransient(err) && ctx.Err() == nil {
			w.t.Errorf("claim of a relay with ordering %s: %v", options.Ordering, err)
			return
		}
		if batch == nil {
			<-free
			stressPause(ctx, random, 25*time.Millisecond)
			continue
		}
		fate := w.random(random.Uint64())
		settling.Go(func() {
			w.deliver(fate, batch, stressRelay{number, held, options.Ordering})
			<-free
		})
		if random.IntN(3) == 0 {
			stressPause(ctx, random, 25*time.Millisecond) // others have their turn
		}
	}
}

func (w *stressWorld) claim(ctx context.Context, random *rand.Rand, c *source.Claimer, out leftOut) (batch source.Batch, held bool, err error) {
	held = random.IntN(10) == 0 || stressHeldIsDue(c) && random.IntN(4) > 0
	hasty := !w.calm.Load() && random.IntN(60) == 0
	if hasty { // somebody stops the relay
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(random.Int64N(int64(4*time.Millisecond))))
		defer cancel()
	}
	if held {
		batch, err = stressClaimHeld(ctx, c, out)
	} else {
		batch, err = stressClaim(ctx, c, out)
	}
	return batch, held, unlessHasty(hasty, err)
}

func unlessHasty(hasty bool, err error) error {
	if hasty {
		return nil
	}
	return err
}

// stressRelay is whose a batch is, and of which claim.
type stressRelay struct {
	number   int64
	held     bool
	ordering source.Ordering
}

// String says it in a history.
func (r stressRelay) String() string {
	if r.held {
		return fmt.Sprintf("relay %d, %s, held rows", r.number, r.ordering)
	}
	return fmt.Sprintf("relay %d, %s", r.number, r.ordering)
}

// deliver sends what the fate wants of a batch, and settles it.
func (w *stressWorld) deliver(random *rand.Rand, batch source.Batch, relay stressRelay) {
	messages := batch.Messages()
	calm := w.calm.Load()
	until := len(messages)
	if !calm && random.IntN(5) == 0 {
		until = random.IntN(len(messages) + 1)
	}
	number := w.begin(messages, relay)
	outcomes := make([]source.Outcome, len(messages))
	stuck, everything := map[stressKey]bool{}, false
	for i := range messages {
		m := &messages[i]
		key := stressKey{m.Topic, string(m.Key)}
		switch {
		case i >= until || everything || m.Key != nil && stuck[key]:
			if batch.Failures(i).Attempts > 0 {
				outcomes[i].RetryIn = time.Duration(random.Int64N(int64(50 * time.Millisecond)))
			}
		case !calm && random.IntN(25) == 0:
			outcomes[i] = w.refuse(random, m, batch.Failures(i), number)
			if v := outcomes[i].Verdict; v == source.Retrying || v == source.Parked {
				stuck[key] = m.Key != nil && relay.ordering != source.OrderNone
				everything = relay.ordering == source.OrderTotal
			}
		default:
			w.send(m, number, relay)
			outcomes[i].Verdict = source.Published
		}
		if random.IntN(100) == 0 {
			stressPause(context.Background(), random, 20*time.Millisecond)
		}
	}
	if !calm {
		stressPause(context.Background(), random, 8*time.Millisecond)
	}
	w.end(messages, number)
	if !calm && random.IntN(15) == 0 {
		w.count("released")
		w.noteEnd(batch, number, "released")
		batch.Release()
		return
	}
	w.settle(random, batch, outcomes, number)
}

// refuse draws what becomes of a message that the broker refused.
func (w *stressWorld) refuse(random *rand.Rand, m *sinks.Message, before source.Failures, batch int) source.Outcome {
	o := source.Outcome{
		Verdict: []source.Verdict{source.Retrying, source.Retrying, source.Retrying, source.Parked, source.Parked, source.Parked, source.Dead, source.Dropped}[random.IntN(8)],
		Reason:  "test", Error: "refused by the test", Attempts: before.Attempts + 1,
		RetryIn: time.Duration(random.Int64N(int64(400 * time.Millisecond))),
	}
	if random.IntN(3) == 0 {
		o.RetryIn *= 10 // much waits behind it, and what is above that is published
	}
	w.locked(func() {
		w.counts["refused"]++
		w.note(stressKey{m.Topic, string(m.Key)}, "id %d refused in batch %d, verdict %d, again in %v", m.Sequence, batch, o.Verdict, o.RetryIn.Round(time.Millisecond))
		if o.Verdict == source.Dead || o.Verdict == source.Dropped {
			w.leaving[m.Sequence] = true
			// Its key goes on in this batch. Should the verdict be lost with the batch,
			// the row comes again, behind what was sent after it.
			row := w.rows[m.Sequence]
			row.delayed = true
			w.rows[m.Sequence] = row
		}
	})
	return o
}

// begin notes that a batch has its keys, which nobody else may have meanwhile.
func (w *stressWorld) begin(messages []sinks.Message, relay stressRelay) (number int) {
	w.locked(func() {
		w.batches++
		number = w.batches
		if !w.mix.ordered {
			return
		}
		for i := range messages {
			key := stressKey{messages[i].Topic, string(messages[i].Key)}
			if other, ok := w.holder[key]; ok && other != number && messages[i].Key != nil {
				w.offend(key, "X: key %v is in batch %d (%s) while batch %d has it", key, number, relay, other)
			}
			w.holder[key] = number
		}
	})
	return number
}

func (w *stressWorld) end(messages []sinks.Message, number int) {
	w.locked(func() {
		for i := range messages {
			key := stressKey{messages[i].Topic, string(messages[i].Key)}
			if w.holder[key] == number {
				delete(w.holder, key)
			}
		}
	})
}

// send appends a message to the log, and checks P, O and D.
func (w *stressWorld) send(m *sinks.Message, batch int, relay stressRelay) {
	w.locked(func() {
		id := m.Sequence
		row, known := w.rows[id]
		key := stressKey{m.Topic, string(m.Key)}
		w.note(key, "id %d sent in batch %d (%s)", id, batch, relay)
		if why, gone := w.gone[id]; gone {
			w.offend(key, "P: id %d was sent although %s", id, why)
		}
		if !known || row.topic != m.Topic || row.keyed != (m.Key != nil) || row.keyed && row.key != string(m.Key) {
			w.offend(key, "C: id %d was sent as of %v, and is of %v", id, key, row)
		}
		if w.recorded[id] {
			w.offend(key, "D: id %d was sent again although it had been recorded as published", id)
		}
		w.sent[id]++
		if w.sent[id] > 1 {
			w.counts["sent again"]++
			return
		}
		if !row.ordered() || !w.mix.ordered {
			return
		}
		if last := w.last[key]; last > id {
			w.offend(key, "O: id %d of key %v was sent after id %d", id, key, last)
		}
		w.last[key] = max(w.last[key], id)
	})
}

// noteEnd notes how a batch ends that is not settled as it was meant.
func (w *stressWorld) noteEnd(batch source.Batch, number int, how string) {
	w.locked(func() {
		noted := map[stressKey]bool{}
		for i := range batch.Messages() {
			key := stressKey{batch.Messages()[i].Topic, string(batch.Messages()[i].Key)}
			if !noted[key] {
				noted[key] = true
				w.note(key, "batch %d %s", number, how)
			}
		}
	})
}

func (w *stressWorld) settle(random *rand.Rand, batch source.Batch, outcomes []source.Outcome, number int) {
	ids := make([]int64, len(outcomes))
	all := true
	for i := range batch.Messages() {
		ids[i] = batch.Messages()[i].Sequence
		all = all && outcomes[i].Verdict == source.Published
	}
	given := outcomes
	if all && random.IntN(2) == 0 {
		given = nil
	}
	ctx, hasty := context.Background(), !w.calm.Load() && random.IntN(40) == 0
	if hasty { // nobody knows what becomes of it
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(random.Int64N(int64(3*time.Millisecond))))
		defer cancel()
		w.noteEnd(batch, number, "settled in haste")
	}
	err := batch.Settle(ctx, given)
	unrecorded, ok := errors.AsType[*source.UnrecordedError](err)
	switch {
	case ok:
		w.count("unrecorded")
		w.locked(func() { w.note(w.rows[ids[0]].stressKey, "batch %d: %v", number, err) })
	case err != nil && hasty:
		w.count("settled without an answer")
		return
	case err != nil:
		w.t.Errorf("settle: %v", err)
		return
	}
	w.locked(func() {
		for i, o := range outcomes {
			switch o.Verdict {
			case source.Published:
				w.recorded[ids[i]] = true
			case source.Dead, source.Dropped:
				if unrecorded == nil {
					w.gone[ids[i]] = "it was given up"
				}
			case source.GivenBack, source.Retrying, source.Parked:
			}
		}
	})
}

// The checks.

// watch checks M at random instants.
func (w *stressWorld) watch(ctx context.Context, random *rand.Rand) {
	for ctx.Err() == nil {
		stressPause(ctx, random, 600*time.Millisecond)
		w.checkMarks(context.WithoutCancel(ctx))
	}
}

// checkMarks is M: what counts as published at an instant is in the log after it.
func (w *stressWorld) checkMarks(ctx context.Context) {
	rows, err := w.pool.Query(ctx, `
SELECT t.id FROM truth t LEFT JOIN outbox o ON o.id = t.id
WHERE (o.id IS NULL OR o.published_at IS NOT NULL) AND NOT EXISTS (SELECT FROM outbox_dead_letters d WHERE d.id = t.id)`)
	if err == nil {
		var ids []int64
		if ids, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err == nil {
			w.locked(func() {
				w.counts["looks at the marks"]++
				for _, id := range ids {
					if w.sent[id] == 0 && !w.leaving[id] {
						w.leaving[id] = true // once is enough
						w.offend(w.rows[id].stressKey, "M: id %d is marked or deleted and was not sent", id)
					}
				}
			})
		}
	}
	if err != nil {
		w.t.Errorf("look at the marks: %v", err)
	}
}

// drain waits until nothing is pending and nothing is held back. An operator
// retries what is parked.
func (w *stressWorld) drain() {
	var pending, entries int64
	for deadline := time.Now().Add(stressDrain); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		w.db.Exec(w.t, `UPDATE outbox_parked SET next_retry_at = now() WHERE state IN ('parked', 'retrying') AND next_retry_at > now()`)
		pending = w.db.Int(w.t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`)
		entries = w.db.Int(w.t, `SELECT count(*) FROM outbox_parked`)
		if pending+entries == 0 {
			return
		}
	}
	w.t.Errorf("G: %v after the last write %d rows are pending and %d entries are left", stressDrain, pending, entries)
}

// judge checks L and M in the end, and tells what happened.
func (w *stressWorld) judge() {
	ctx := context.Background()
	w.checkMarks(ctx)
	rows, err := w.pool.Query(ctx, `SELECT t.id FROM truth t WHERE NOT EXISTS (SELECT FROM outbox_dead_letters d WHERE d.id = t.id) ORDER BY t.id`)
	if err != nil {
		w.t.Fatal(err)
	}
	committed, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range committed {
		if w.sent[id] == 0 && !w.leaving[id] {
			w.offend(w.rows[id].stressKey, "L: id %d was committed and never sent", id)
		}
	}
	w.t.Logf("%d rows committed, %d sent in %d batches; %v", len(committed), len(w.sent), w.batches, w.counts)
	if len(w.sent) == 0 {
		w.t.Error("nothing was sent, so nothing was tested")
	}
	if len(w.offences) > 0 {
		w.t.Errorf("RELAY_TEST_SEED=%d: %d violations, such as\n%s", w.seed, len(w.offences), strings.Join(w.offences[:min(5, len(w.offences))], "\n"))
	}
}
