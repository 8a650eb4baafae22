package inbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/internal/pgtest"
)

// nesting processes messages within a transaction of the caller's, which
// handlers do again.
type nesting struct {
	name string
	// run begins a transaction, calls body and commits.
	run func(t *testing.T, db *pgtest.Database, body func(process nestedProcess))
}

// nestedProcess processes a message within the transaction of its receiver; the
// handler has an effect and calls after.
type nestedProcess func(ctx context.Context, m inbox.Message, after func(context.Context, nestedProcess) error) (inbox.Result, error)

var nestings = []nesting{
	{"pgx.Tx", func(t *testing.T, db *pgtest.Database, body func(nestedProcess)) {
		t.Helper()
		tx, err := db.Pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(context.Background()) }()
		box := &inbox.Inbox{Consumer: "mail", Order: inbox.OrderReport}
		var within func(tx pgx.Tx) nestedProcess
		within = func(tx pgx.Tx) nestedProcess {
			return func(ctx context.Context, m inbox.Message, after func(context.Context, nestedProcess) error) (inbox.Result, error) {
				return box.Process(ctx, tx, m, func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
					if err := apply(ctx, tx, m); err != nil {
						return err
					}
					return after(ctx, within(tx))
				})
			}
		}
		body(within(tx))
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}},
	{"*sql.Tx", func(t *testing.T, db *pgtest.Database, body func(nestedProcess)) {
		t.Helper()
		tx, err := openSQL(t, db.URL).BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback() }()
		box := &inbox.Inbox{Consumer: "mail", Order: inbox.OrderReport}
		var process nestedProcess
		process = func(ctx context.Context, m inbox.Message, after func(context.Context, nestedProcess) error) (inbox.Result, error) {
			return box.ProcessSQLTx(ctx, tx, m, func(ctx context.Context, tx *sql.Tx, m inbox.Message) error {
				if err := applySQL(ctx, tx, m); err != nil {
					return err
				}
				return after(ctx, process)
			})
		}
		body(process)
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	}},
}

var errNested = errors.New("no")

func ends(err error) func(context.Context, nestedProcess) error {
	return func(context.Context, nestedProcess) error { return err }
}

// A handler processes another message within its own transaction. Whatever
// becomes of that, when the handler fails nothing of its message remains, and
// its message is unseen.
func TestNestedInAHandler(t *testing.T) {
	panics := func(context.Context, nestedProcess) error { panic(errNested) }
	for _, way := range nestings {
		for _, inner := range []string{"new", "duplicate", "failing", "panicking", "deeper", "of another context", "canceled"} {
			for _, outer := range []string{"fails", "panics", "succeeds"} {
				t.Run(fmt.Sprintf("%s/%s/%s", way.name, inner, outer), func(t *testing.T) {
					t.Parallel()
					db := newDatabase(t)
					first, second, third := sequenced("a", 1), sequenced("b", 2), sequenced("c", 3)
					if inner == "duplicate" || inner == "deeper" || inner == "of another context" {
						_, err := (&inbox.Inbox{Consumer: "mail"}).Process(t.Context(), db.Pool, third, func(context.Context, pgx.Tx, inbox.Message) error { return nil })
						if err != nil {
							t.Fatal(err)
						}
					}
					within := func(ctx context.Context, process nestedProcess) error {
						var err error
						switch inner {
						case "new":
							_, err = process(ctx, second, ends(nil))
						case "duplicate":
							_, err = process(ctx, third, ends(nil))
						case "of another context":
							_, err = process(context.WithoutCancel(t.Context()), third, ends(nil))
						case "failing":
							_, err = process(ctx, second, ends(errNested))
						case "panicking":
							func() {
								defer func() { _ = recover() }()
								_, _ = process(ctx, second, panics)
							}()
						case "canceled":
							ctx, cancel := context.WithCancel(ctx)
							_, err = process(ctx, second, func(context.Context, nestedProcess) error { cancel(); return nil })
							if errors.Is(err, context.Canceled) {
								err = nil
							}
						case "deeper":
							_, err = process(ctx, second, func(ctx context.Context, process nestedProcess) error {
								for range 3 {
									if result, err := process(ctx, third, ends(nil)); result != inbox.Duplicate || err != nil {
										t.Errorf("%v (%v)", result, err)
									}
								}
								return errNested
							})
						}
						if err != nil && !errors.Is(err, errNested) {
							t.Error(err)
						}
						switch outer {
						case "fails":
							return errNested
						case "panics":
							panic(errNested)
						}
						return nil
					}
					before := newMessage()
					way.run(t, db, func(process nestedProcess) {
						result, err := process(t.Context(), before, ends(nil))
						expectResult(t, "before", result, inbox.Processed, err)
						func() {
							defer func() { _ = recover() }()
							if _, err := process(t.Context(), first, within); (outer == "succeeds") != (err == nil) {
								t.Error(err)
							}
						}()
					})
					count := func(m inbox.Message) string {
						return fmt.Sprint(db.Int(t, `SELECT count(*) FROM inbox WHERE message_id = '`+m.ID.String()+`'`), db.Int(t, `SELECT count(*) FROM effects WHERE message_id = '`+m.ID.String()+`'`))
					}
					want := map[bool]string{true: "1 1", false: "0 0"}
					if got := count(before); got != "1 1" {
						t.Errorf("the message before it: seen and effects %s", got)
					}
					if got := count(first); got != want[outer == "succeeds"] {
						t.Errorf("the outer message: seen and effects %s", got)
					}
					if got := count(second); got != want[outer == "succeeds" && inner == "new"] {
						t.Errorf("the inner message: seen and effects %s", got)
					}
				})
			}
		}
	}
}
