package inbox_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/inbox"
)

// errOuter is why the outer handler fails.
var errOuter = errors.New("the outer handler fails")

// A handler processes another message within, whatever becomes of that, and fails.
// The caller commits what else it did: neither message may be seen, nor have an
// effect.
func TestNestedMessageOfAFailedOne(t *testing.T) {
	for _, inner := range []string{"new", "duplicate", "failing", "panicking"} {
		for _, driver := range []string{"pgx", "database/sql"} {
			t.Run(inner+" with "+driver, func(t *testing.T) {
				db := newDatabase(t)
				box := &inbox.Inbox{Consumer: "c"}
				a, b := newMessage(), newMessage()
				if inner == "duplicate" {
					if _, err := box.Process(t.Context(), db.Pool, b, func(context.Context, pgx.Tx, inbox.Message) error { return nil }); err != nil {
						t.Fatal(err)
					}
				}
				var err error
				if driver == "pgx" {
					err = nestPgx(t, db.Pool, box, a, b, inner)
				} else {
					err = nestSQL(t, openSQL(t, db.URL), box, a, b, inner)
				}
				if !errors.Is(err, errOuter) {
					t.Errorf("the outer one returned %v", err)
				}
				if n := db.Int(t, `SELECT count(*) FROM inbox WHERE message_id = '`+a.ID.String()+`'`); n != 0 {
					t.Error("the message that failed is seen")
				}
				if n := db.Int(t, `SELECT count(*) FROM effects`); n != 1 {
					t.Errorf("%d effects, want the caller's own", n)
				}
			})
		}
	}
}

const someEffectSQL = `INSERT INTO effects (message_id) VALUES (gen_random_uuid())`

// become is what the inner handler does.
func become(inner string) error {
	switch inner {
	case "failing":
		return errors.New("the inner handler fails")
	case "panicking":
		panic("the inner handler panics")
	}
	return nil
}

func nestPgx(t *testing.T, pool inbox.Beginner, box *inbox.Inbox, a, b inbox.Message, inner string) error {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = box.Process(t.Context(), tx, a, func(ctx context.Context, tx pgx.Tx, _ inbox.Message) error {
		if _, err := tx.Exec(ctx, someEffectSQL); err != nil {
			return err
		}
		func() {
			defer func() { _ = recover() }()
			_, _ = box.Process(ctx, tx, b, func(context.Context, pgx.Tx, inbox.Message) error { return become(inner) })
		}()
		return errOuter
	})
	if _, err := tx.Exec(t.Context(), someEffectSQL); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return err
}

func nestSQL(t *testing.T, db *sql.DB, box *inbox.Inbox, a, b inbox.Message, inner string) error {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = box.ProcessSQLTx(t.Context(), tx, a, func(ctx context.Context, tx *sql.Tx, _ inbox.Message) error {
		if _, err := tx.ExecContext(ctx, someEffectSQL); err != nil {
			return err
		}
		func() {
			defer func() { _ = recover() }()
			_, _ = box.ProcessSQLTx(ctx, tx, b, func(context.Context, *sql.Tx, inbox.Message) error { return become(inner) })
		}()
		return errOuter
	})
	if _, err := tx.ExecContext(t.Context(), someEffectSQL); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	return err
}

// A duplicate within a transaction leaves no savepoint behind.
func TestDuplicatesLeaveNoSavepoints(t *testing.T) {
	db := newDatabase(t)
	box := &inbox.Inbox{Consumer: "c"}
	m := newMessage()
	nothing := func(context.Context, pgx.Tx, inbox.Message) error { return nil }
	if _, err := box.Process(t.Context(), db.Pool, m, nothing); err != nil {
		t.Fatal(err)
	}
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if result, err := box.Process(t.Context(), tx, m, nothing); result != inbox.Duplicate || err != nil {
		t.Fatal(result, err)
	}
	if results, err := box.ProcessBatch(t.Context(), tx, []inbox.Message{m}, func(context.Context, pgx.Tx, []inbox.Message) error { return nil }); err != nil || results[0] != inbox.Duplicate {
		t.Fatal(results, err)
	}
	// pgx names them sp_1, sp_2 and so on.
	for _, name := range []string{"sp_1", "sp_2"} {
		if _, err := tx.Exec(t.Context(), "SAVEPOINT ours"); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), "ROLLBACK TO SAVEPOINT "+name); err == nil {
			t.Errorf("savepoint %s is still there", name)
		}
		if _, err := tx.Exec(t.Context(), "ROLLBACK TO SAVEPOINT ours"); err != nil {
			t.Fatal(err)
		}
	}
}
