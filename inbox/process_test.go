package inbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/internal/pgtest"
)

// processors are all ways to process a message, under one signature.
var processors = []struct {
	name string
	open func(t *testing.T, url string) processor
}{
	{"pool", func(t *testing.T, url string) processor {
		pool := newPool(t, url, func(c *pgxpool.Config) { c.MaxConns = 2 })
		return pgxProcessor(pool, func() int { return int(pool.Stat().AcquiredConns()) })
	}},
	{"acquired connection", func(t *testing.T, url string) processor {
		conn, err := newPool(t, url, nil).Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(conn.Release)
		return pgxProcessor(conn, nil)
	}},
	{"connection", func(t *testing.T, url string) processor { return pgxProcessor(connect(t, url), nil) }},
	{"simple protocol", inMode(pgx.QueryExecModeSimpleProtocol)},
	{"exec", inMode(pgx.QueryExecModeExec)},
	{"cache describe", inMode(pgx.QueryExecModeCacheDescribe)},
	{"describe exec", inMode(pgx.QueryExecModeDescribeExec)},
	{"transaction", func(t *testing.T, url string) processor {
		pool := newPool(t, url, func(c *pgxpool.Config) { c.MaxConns = 2 })
		return processor{
			process: func(ctx context.Context, box *inbox.Inbox, m inbox.Message, after func() error) (result inbox.Result, err error) {
				// What the outer transaction does stays, whatever becomes of the message.
				outer, err := pool.Begin(context.Background())
				if err != nil {
					return inbox.Unprocessed, err
				}
				defer outer.Rollback(context.Background())
				result, failure := box.Process(ctx, outer, m, handlerThen(after))
				if ctx.Err() == nil {
					if err := outer.Commit(ctx); err != nil {
						return inbox.Unprocessed, err
					}
				}
				return result, failure
			},
			inUse: func() int { return int(pool.Stat().AcquiredConns()) },
		}
	}},
	{"database/sql", func(t *testing.T, url string) processor {
		db := openSQL(t, url)
		return processor{
			process: func(ctx context.Context, box *inbox.Inbox, m inbox.Message, after func() error) (inbox.Result, error) {
				return box.ProcessSQL(ctx, db, m, sqlHandlerThen(after))
			},
			inUse: func() int { return db.Stats().InUse },
		}
	}},
	{"*sql.Tx", func(t *testing.T, url string) processor {
		db := openSQL(t, url)
		return processor{
			process: func(ctx context.Context, box *inbox.Inbox, m inbox.Message, after func() error) (inbox.Result, error) {
				outer, err := db.BeginTx(context.Background(), nil)
				if err != nil {
					return inbox.Unprocessed, err
				}
				defer outer.Rollback()
				result, failure := box.ProcessSQLTx(ctx, outer, m, sqlHandlerThen(after))
				if ctx.Err() == nil {
					if err := outer.Commit(); err != nil {
						return inbox.Unprocessed, err
					}
				}
				return result, failure
			},
			inUse: func() int { return db.Stats().InUse },
		}
	}},
	{"batch", func(t *testing.T, url string) processor {
		pool := newPool(t, url, func(c *pgxpool.Config) { c.MaxConns = 2 })
		return processor{
			process: func(ctx context.Context, box *inbox.Inbox, m inbox.Message, after func() error) (inbox.Result, error) {
				results, err := box.ProcessBatch(ctx, pool, []inbox.Message{m}, func(ctx context.Context, tx pgx.Tx, fresh []inbox.Message) error {
					if err := applyAll(ctx, tx, fresh); err != nil {
						return err
					}
					return after()
				})
				if err != nil {
					return inbox.Unprocessed, err
				}
				return results[0], nil
			},
			inUse: func() int { return int(pool.Stat().AcquiredConns()) },
		}
	}},
	{"database/sql batch", func(t *testing.T, url string) processor {
		db := openSQL(t, url)
		return processor{
			process: func(ctx context.Context, box *inbox.Inbox, m inbox.Message, after func() error) (inbox.Result, error) {
				results, err := box.ProcessSQLBatch(ctx, db, []inbox.Message{m}, func(ctx context.Context, tx *sql.Tx, fresh []inbox.Message) error {
					if err := applyAllSQL(ctx, tx, fresh); err != nil {
						return err
					}
					return after()
				})
				if err != nil {
					return inbox.Unprocessed, err
				}
				return results[0], nil
			},
			inUse: func() int { return db.Stats().InUse },
		}
	}},
}

type processor struct {
	// process runs a handler that has an effect and then calls after.
	process func(ctx context.Context, box *inbox.Inbox, m inbox.Message, after func() error) (inbox.Result, error)
	// inUse counts the connections that were not given back.
	inUse func() int
}

func inMode(mode pgx.QueryExecMode) func(t *testing.T, url string) processor {
	return func(t *testing.T, url string) processor {
		pool := newPool(t, url, func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = mode })
		return pgxProcessor(pool, func() int { return int(pool.Stat().AcquiredConns()) })
	}
}

func pgxProcessor(db inbox.Beginner, inUse func() int) processor {
	if inUse == nil {
		inUse = func() int { return 0 }
	}
	return processor{
		process: func(ctx context.Context, box *inbox.Inbox, m inbox.Message, after func() error) (inbox.Result, error) {
			return box.Process(ctx, db, m, handlerThen(after))
		},
		inUse: inUse,
	}
}

func handlerThen(after func() error) inbox.Handler {
	return func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if err := apply(ctx, tx, m); err != nil {
			return err
		}
		return after()
	}
}

func nothing() error { return nil }

func eachProcessor(t *testing.T, test func(t *testing.T, db *pgtest.Database, p processor)) {
	for _, way := range processors {
		t.Run(way.name, func(t *testing.T) {
			db := newDatabase(t)
			p := way.open(t, db.URL)
			test(t, db, p)
			if n := p.inUse(); n != 0 {
				t.Errorf("%d connections were not given back", n)
			}
		})
	}
}

func TestOnceForEachConsumer(t *testing.T) {
	eachProcessor(t, func(t *testing.T, db *pgtest.Database, p processor) {
		mail, billing := &inbox.Inbox{Consumer: "mail"}, &inbox.Inbox{Consumer: "billing", Order: inbox.OrderReport}
		m := newMessage()
		m.Sequence = 7
		for _, step := range []struct {
			box  *inbox.Inbox
			want inbox.Result
		}{{mail, inbox.Processed}, {mail, inbox.Duplicate}, {billing, inbox.Processed}, {billing, inbox.Duplicate}, {mail, inbox.Duplicate}} {
			got, err := p.process(t.Context(), step.box, m, nothing)
			expectResult(t, step.box.Consumer, got, step.want, err)
		}
		if n := db.Int(t, `SELECT count(*) FROM effects`); n != 2 {
			t.Errorf("%d effects, want one for each consumer", n)
		}
		if n := db.Int(t, `SELECT count(*) FROM inbox WHERE (source, source_partition, source_offset) = ('orders', 3, 42) AND received_at = processed_at`); n != 2 {
			t.Errorf("%d rows with source and times, want 2", n)
		}
	})
}

func TestErrorLeavesTheMessageUnseen(t *testing.T) {
	eachProcessor(t, func(t *testing.T, db *pgtest.Database, p processor) {
		box := &inbox.Inbox{Consumer: "mail", Order: inbox.OrderRefuse}
		m := newMessage()
		m.Sequence = 1
		broken := errors.New("broken")
		if result, err := p.process(t.Context(), box, m, func() error { return broken }); result != inbox.Unprocessed || !errors.Is(err, broken) {
			t.Errorf("%v, %v", result, err)
		}
		expectEffects(t, db, 0)
		if n := db.Int(t, `SELECT count(*) FROM inbox_order`); n != 0 {
			t.Error("the order check remembers what was rolled back")
		}
		result, err := p.process(t.Context(), box, m, nothing)
		expectResult(t, "again", result, inbox.Processed, err)
		expectEffects(t, db, 1)
	})
}

func TestPanicGoesOnAndLeavesTheMessageUnseen(t *testing.T) {
	eachProcessor(t, func(t *testing.T, db *pgtest.Database, p processor) {
		box := &inbox.Inbox{Consumer: "mail"}
		m := newMessage()
		for range 5 { // more than the pool has connections
			func() {
				defer func() {
					if got := recover(); got != "out of cheese" {
						t.Errorf("recovered %v", got)
					}
				}()
				_, _ = p.process(t.Context(), box, m, func() error { panic("out of cheese") })
				t.Error("the panic was swallowed")
			}()
		}
		expectEffects(t, db, 0)
		result, err := p.process(t.Context(), box, m, nothing)
		expectResult(t, "after the panics", result, inbox.Processed, err)
	})
}

func TestEndOfTheContextRollsBack(t *testing.T) {
	eachProcessor(t, func(t *testing.T, db *pgtest.Database, p processor) {
		box := &inbox.Inbox{Consumer: "mail"}
		ctx, cancel := context.WithCancel(t.Context())
		// The handler does not look at its context, and reports success.
		result, err := p.process(ctx, box, newMessage(), func() error { cancel(); return nil })
		if result.Ran() || !errors.Is(err, context.Canceled) {
			t.Errorf("%v, %v", result, err)
		}
		// database/sql rolls back on its own time.
		await(t, db, "the end of the transactions", `SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()`)
		expectEffects(t, db, 0)
	})
}

func TestFailedTransactionIsNoSuccess(t *testing.T) {
	db := newDatabase(t)
	box := &inbox.Inbox{Consumer: "mail"}
	result, err := box.Process(t.Context(), db.Pool, newMessage(), func(ctx context.Context, tx pgx.Tx, _ inbox.Message) error {
		_, _ = tx.Exec(ctx, `SELECT 1/0`) // nobody looks at the error
		return nil
	})
	if result != inbox.Unprocessed || !errors.Is(err, pgx.ErrTxCommitRollback) {
		t.Errorf("%v, %v", result, err)
	}
	// A handler that ends the transaction itself is no success either.
	result, err = box.Process(t.Context(), db.Pool, newMessage(), func(ctx context.Context, tx pgx.Tx, _ inbox.Message) error {
		return tx.Rollback(ctx)
	})
	if result != inbox.Unprocessed || !errors.Is(err, pgx.ErrTxClosed) {
		t.Errorf("%v, %v", result, err)
	}
	expectEffects(t, db, 0)
}

func TestCallersTransaction(t *testing.T) {
	db := newDatabase(t)
	box := &inbox.Inbox{Consumer: "mail"}
	m, other := newMessage(), newMessage()
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	result, err := box.Process(t.Context(), tx, m, apply)
	expectResult(t, "in a transaction", result, inbox.Processed, err)
	result, err = box.Process(t.Context(), tx, m, apply)
	expectResult(t, "again in it", result, inbox.Duplicate, err)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	expectEffects(t, db, 0)

	err = pgx.BeginFunc(t.Context(), db.Pool, func(tx pgx.Tx) error {
		_, err := box.Process(t.Context(), tx, m, func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
			if err := apply(ctx, tx, m); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `SELECT 1/0`)
			return err
		})
		if err == nil {
			t.Error("no error")
		}
		results, err := box.ProcessBatch(t.Context(), tx, []inbox.Message{other, other}, applyAll)
		if err == nil && fmt.Sprint(results) != "[processed duplicate]" {
			t.Errorf("results %v", results)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	expectEffects(t, db, 1)
}

func TestConcurrentDuplicateWaits(t *testing.T) {
	eachProcessor(t, func(t *testing.T, db *pgtest.Database, p processor) {
		box := &inbox.Inbox{Consumer: "mail"}
		for _, test := range []struct {
			name   string
			first  error
			second inbox.Result
		}{{"the first commits", nil, inbox.Duplicate}, {"the first rolls back", errors.New("rolled back"), inbox.Processed}} {
			m := newMessage()
			var second inbox.Result
			var secondErr error
			done := make(chan struct{})
			_, err := box.Process(t.Context(), db.Pool, m, func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
				go func() {
					defer close(done)
					second, secondErr = p.process(context.Background(), box, m, nothing)
				}()
				awaitWaiting(t, db)
				if err := apply(ctx, tx, m); err != nil {
					return err
				}
				return test.first
			})
			if !errors.Is(err, test.first) {
				t.Errorf("%s: %v", test.name, err)
			}
			<-done
			expectResult(t, test.name, second, test.second, secondErr)
		}
		expectEffects(t, db, 2)
	})
}

func TestWaitingEndsWithTheContext(t *testing.T) {
	db := newDatabase(t)
	box := &inbox.Inbox{Consumer: "mail"}
	m := newMessage()
	_, err := box.Process(t.Context(), db.Pool, m, func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		waiting, cancel := context.WithCancel(ctx)
		done := make(chan error)
		go func() {
			_, err := box.Process(waiting, db.Pool, m, apply)
			done <- err
		}()
		awaitWaiting(t, db)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the one that waits: %v", err)
		}
		return apply(ctx, tx, m)
	})
	if err != nil {
		t.Error(err)
	}
	expectEffects(t, db, 1)
}

// conflict fails as the server does when transactions get in each other's way.
func conflict(ctx context.Context, tx pgx.Tx, code string) error {
	_, err := tx.Exec(ctx, `DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '`+code+`'; END $$`)
	return fmt.Errorf("handler: %w", err)
}

func TestRetries(t *testing.T) {
	db := newDatabase(t)
	for _, test := range []struct {
		code      string
		retries   int
		conflicts int
		runs      int
		succeeds  bool
	}{
		{"40001", 0, 3, 4, true},
		{"40P01", 0, 5, 6, true},
		{"40001", 0, 6, 6, false},
		{"40001", 2, 3, 3, false},
		{"40P01", -1, 1, 1, false},
		{"23505", 0, 1, 1, false},
	} {
		t.Run(fmt.Sprintf("%s %d times with %d", test.code, test.conflicts, test.retries), func(t *testing.T) {
			box := &inbox.Inbox{Consumer: "mail", Retries: test.retries}
			runs := 0
			m := newMessage()
			result, err := box.Process(t.Context(), db.Pool, m, func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
				if err := apply(ctx, tx, m); err != nil {
					return err
				}
				if runs++; runs <= test.conflicts {
					return conflict(ctx, tx, test.code)
				}
				return nil
			})
			if runs != test.runs || (err == nil) != test.succeeds || result.Ran() != test.succeeds {
				t.Errorf("%d runs, %v, %v", runs, result, err)
			}
			want := int64(0)
			if test.succeeds {
				want = 1
			}
			if n := db.Int(t, fmt.Sprintf(`SELECT count(*) FROM effects WHERE message_id = '%s'`, m.ID)); n != want {
				t.Errorf("%d effects", n)
			}
		})
	}
	t.Run("not in a caller's transaction", func(t *testing.T) {
		runs := 0
		_ = pgx.BeginFunc(t.Context(), db.Pool, func(tx pgx.Tx) error {
			_, err := (&inbox.Inbox{Consumer: "mail"}).Process(t.Context(), tx, newMessage(), func(ctx context.Context, tx pgx.Tx, _ inbox.Message) error {
				runs++
				return conflict(ctx, tx, "40001")
			})
			return err
		})
		if runs != 1 {
			t.Errorf("%d runs", runs)
		}
	})
	t.Run("ends with the context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := (&inbox.Inbox{Consumer: "mail", Retries: 1 << 20}).Process(ctx, db.Pool, newMessage(), func(ctx context.Context, tx pgx.Tx, _ inbox.Message) error {
			err := conflict(ctx, tx, "40001")
			cancel()
			return err
		})
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// Serializable transactions of one message: the server itself refuses one of
// them, and the retry finds the message seen.
func TestSerializable(t *testing.T) {
	db := newDatabase(t)
	pool := newPool(t, db.URL, func(c *pgxpool.Config) {
		c.ConnConfig.RuntimeParams["default_transaction_isolation"] = "serializable"
	})
	for retries, want := range map[int]inbox.Result{-1: inbox.Unprocessed, 0: inbox.Duplicate} {
		box := &inbox.Inbox{Consumer: "mail", Retries: retries}
		var second inbox.Result
		var secondErr error
		done := make(chan struct{})
		result, err := box.Process(t.Context(), pool, newMessage(), func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
			go func() {
				defer close(done)
				second, secondErr = box.Process(context.Background(), pool, m, apply)
			}()
			awaitWaiting(t, db)
			return apply(ctx, tx, m)
		})
		<-done
		expectResult(t, "the first", result, inbox.Processed, err)
		pgErr, refused := errors.AsType[*pgconn.PgError](secondErr)
		if second != want || refused != (retries < 0) || refused && pgErr.Code != "40001" {
			t.Errorf("with Retries %d the second is %v, %v", retries, second, secondErr)
		}
	}
	expectEffects(t, db, 2)
}

func TestHandlerGetsTheMessageItsIDAndItsTrace(t *testing.T) {
	db := newDatabase(t)
	id := newID()
	box := &inbox.Inbox{Consumer: "mail", IDOf: func(m inbox.Message) (inbox.ID, error) {
		if m.Type != "OrderPlaced" {
			return inbox.ID{}, errors.New("no order")
		}
		return id, nil
	}}
	m := inbox.Message{Type: "OrderPlaced", Headers: map[string]string{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
	result, err := box.Process(t.Context(), db.Pool, m, func(ctx context.Context, _ pgx.Tx, got inbox.Message) error {
		if got.ID != id || got.Type != "OrderPlaced" {
			t.Errorf("message %+v", got)
		}
		if s := trace.SpanContextFromContext(ctx); s.TraceID().String() != "0af7651916cd43dd8448eb211c80319c" || !s.IsRemote() {
			t.Errorf("span context %+v", s)
		}
		return nil
	})
	expectResult(t, "with IDOf", result, inbox.Processed, err)
	if _, err := box.Process(t.Context(), db.Pool, inbox.Message{}, apply); !errors.Is(err, inbox.ErrNoID) || !strings.Contains(err.Error(), "no order") {
		t.Error(err)
	}
	if n := db.Int(t, `SELECT count(*) FROM inbox WHERE message_id = '`+id.String()+`' AND source IS NULL AND source_offset IS NULL`); n != 1 {
		t.Errorf("%d rows", n)
	}
}

func TestReceivedAtIsRecorded(t *testing.T) {
	db := newDatabase(t)
	m := newMessage()
	m.ReceivedAt = time.Date(2026, 3, 1, 12, 0, 0, 250_000_000, time.FixedZone("", 7200))
	m.Source = inbox.QueueSource("q\x00\xff")
	result, err := (&inbox.Inbox{Consumer: "mail"}).Process(t.Context(), db.Pool, m, apply)
	expectResult(t, "one", result, inbox.Processed, err)
	other := m
	other.ID = newID()
	_, err = (&inbox.Inbox{Consumer: "mail"}).ProcessBatch(t.Context(), db.Pool, []inbox.Message{other}, applyAll)
	if err != nil {
		t.Error(err)
	}
	if n := db.Int(t, `SELECT count(*) FROM inbox WHERE received_at = '2026-03-01 10:00:00.25+00' AND now() - processed_at < interval '1 hour' AND source_offset IS NULL AND source = U&'q\FFFD\FFFD'`); n != 2 {
		t.Errorf("%d rows are as expected, want 2", n)
	}
}

func TestWhatCannotWorkIsRefused(t *testing.T) {
	m := newMessage()
	for want, box := range map[string]*inbox.Inbox{
		"Inbox.Consumer is empty":           {},
		`"\x00" is not text`:                {Consumer: "\x00"},
		`"\xff" is not text`:                {Consumer: "\xff"},
		"Inbox.Order: 7 is none":            {Consumer: "c", Order: 7},
		"Inbox.Retention: -1ns is negative": {Consumer: "c", Retention: -1},
	} {
		if _, err := box.Process(t.Context(), nil, m, apply); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	box := &inbox.Inbox{Consumer: "c"}
	if _, err := box.Process(t.Context(), nil, inbox.Message{}, apply); !errors.Is(err, inbox.ErrNoID) || !strings.Contains(err.Error(), "Decoder.IDHeader") {
		t.Error(err)
	}
	if _, err := box.ProcessBatch(t.Context(), nil, []inbox.Message{m, {}}, applyAll); !errors.Is(err, inbox.ErrNoID) || !strings.Contains(err.Error(), "message 1 of the batch") {
		t.Error(err)
	}
	if results, err := box.ProcessBatch(t.Context(), nil, nil, applyAll); results != nil || err != nil {
		t.Error(results, err)
	}
}

func TestErrorsNameTheRemedy(t *testing.T) {
	db := newDatabase(t)
	db.Exec(t, `CREATE TABLE other (consumer text, message_id uuid)`, `CREATE SCHEMA closed`)
	reader := newPool(t, db.URL, func(c *pgxpool.Config) {
		c.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	})
	plain := newPool(t, db.URL, func(c *pgxpool.Config) { c.AfterConnect = asNobody })
	db.Exec(t, `GRANT USAGE ON SCHEMA public TO pg_monitor`)
	for _, test := range []struct {
		box   inbox.Inbox
		pool  *pgxpool.Pool
		words []string
	}{
		{inbox.Inbox{Table: "nowhere"}, db.Pool, []string{`"public"."nowhere"`, "relay migrate --only inbox"}},
		{inbox.Inbox{Schema: "closed"}, db.Pool, []string{`"closed"."inbox"`, "relay migrate --only inbox"}},
		{inbox.Inbox{Table: "other"}, db.Pool, []string{"is not an inbox"}},
		{inbox.Inbox{}, reader, []string{"connect to the primary"}},
		{inbox.Inbox{}, plain, []string{`GRANT SELECT, INSERT ON "public"."inbox"`}},
		{inbox.Inbox{Order: inbox.OrderReport}, plain, []string{`GRANT SELECT, INSERT, UPDATE ON "public"."inbox_order"`}},
	} {
		test.box.Consumer = "mail"
		_, err := test.box.Process(t.Context(), test.pool, newMessage(), apply)
		for _, word := range test.words {
			if err == nil || !strings.Contains(err.Error(), word) {
				t.Errorf("%v does not say %q", err, word)
			}
		}
	}
}

// asNobody gives up the superuser's rights; pg_monitor has none on tables.
func asNobody(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `SET ROLE pg_monitor`)
	return err
}

// The advice of the errors and of the documentation is enough.
func TestLeastPrivileges(t *testing.T) {
	db := newDatabase(t)
	db.Exec(t, `GRANT USAGE ON SCHEMA public TO pg_monitor`, `GRANT SELECT, INSERT ON inbox TO pg_monitor`, `GRANT SELECT, INSERT, UPDATE ON inbox_order TO pg_monitor`,
		`GRANT INSERT ON effects TO pg_monitor`)
	pool := newPool(t, db.URL, func(c *pgxpool.Config) { c.AfterConnect = asNobody })
	box := &inbox.Inbox{Consumer: "mail", Order: inbox.OrderRefuse}
	m := newMessage()
	m.Sequence = 1
	result, err := box.Process(t.Context(), pool, m, apply)
	expectResult(t, "one", result, inbox.Processed, err)
	results, err := box.ProcessBatch(t.Context(), pool, []inbox.Message{m}, applyAll)
	if err != nil || fmt.Sprint(results) != "[duplicate]" {
		t.Error(results, err)
	}
	if _, err := box.Prune(t.Context(), pool); err == nil || !strings.Contains(err.Error(), "GRANT SELECT, DELETE") {
		t.Error(err)
	}
	db.Exec(t, `GRANT SELECT, DELETE ON inbox, inbox_order TO pg_monitor`)
	if _, err := box.Prune(t.Context(), pool); err != nil {
		t.Error(err)
	}
}
