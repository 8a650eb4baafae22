package outbox_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/outboxrelay/relay/outbox"
)

// TestDatabaseErrors shows that errors wrap the driver's, and say what to do.
func TestDatabaseErrors(t *testing.T) {
	t.Parallel()
	url := database(t, defaultTarget)
	admin := connect(t, url)
	role := "role_" + strings.ReplaceAll(outbox.NewUUID().String(), "-", "")
	execute(t, admin, "CREATE ROLE "+role)
	execute(t, admin, "CREATE TABLE other (id bigint)")
	execute(t, admin, "CREATE SCHEMA closed")
	execute(t, admin, "REVOKE ALL ON SCHEMA public FROM public")
	t.Cleanup(func() {
		execute(t, admin, "DROP OWNED BY "+role)
		execute(t, admin, "DROP ROLE "+role)
	})
	for _, test := range []struct {
		name   string
		writer outbox.Writer
		before string
		code   string
		want   []string
	}{
		{"missing table", outbox.Writer{Table: "missing"}, "SELECT 1", "42P01", []string{`"public"."missing"`, "relay migrate"}},
		{"missing schema", outbox.Writer{Schema: "nowhere"}, "SELECT 1", "42P01", []string{`"nowhere"."outbox"`, "relay migrate"}},
		{"another table", outbox.Writer{Table: "other"}, "SELECT 1", "42703", []string{`"public"."other"`, "relay migrate"}},
		{"no grant", outbox.Writer{}, "SET LOCAL ROLE " + role, "42501", []string{`GRANT USAGE ON SCHEMA "public"`, `GRANT INSERT, SELECT (id) ON "public"."outbox"`}},
		{"read-only", outbox.Writer{}, "SET TRANSACTION READ ONLY", "25006", []string{"primary"}},
	} {
		check := func(t *testing.T, err error) {
			t.Helper()
			pgErr, ok := errors.AsType[*pgconn.PgError](err)
			if !ok || pgErr.Code != test.code {
				t.Fatalf("error %v, want code %s", err, test.code)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		}
		t.Run(test.name, func(t *testing.T) {
			tx, err := connect(t, url).Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), test.before); err != nil {
				t.Fatal(err)
			}
			_, err = test.writer.Insert(t.Context(), tx, outbox.Message{Topic: "t"})
			check(t, err)
			_, err = test.writer.Insert(t.Context(), tx, outbox.Message{Topic: "t"})
			if !strings.Contains(err.Error(), "roll it back") {
				t.Errorf("the failed transaction says %q", err)
			}
		})
		t.Run("sql/"+test.name, func(t *testing.T) {
			tx, err := openSQL(t, url).BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback() }()
			if _, err := tx.ExecContext(t.Context(), test.before); err != nil {
				t.Fatal(err)
			}
			_, err = test.writer.InsertSQL(t.Context(), tx, outbox.Message{Topic: "t"})
			check(t, err)
		})
	}
}

// TestMinimalGrants shows that the grants that the error names are enough.
func TestMinimalGrants(t *testing.T) {
	t.Parallel()
	url := database(t, defaultTarget)
	conn := connect(t, url)
	role := "role_" + strings.ReplaceAll(outbox.NewUUID().String(), "-", "")
	execute(t, conn, "CREATE ROLE "+role)
	execute(t, conn, "REVOKE ALL ON SCHEMA public FROM public")
	execute(t, conn, `GRANT USAGE ON SCHEMA "public" TO `+role)
	execute(t, conn, `GRANT INSERT, SELECT (id) ON "public"."outbox" TO `+role)
	t.Cleanup(func() {
		execute(t, conn, "DROP OWNED BY "+role)
		execute(t, conn, "DROP ROLE "+role)
	})
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), "SET LOCAL ROLE "+role); err != nil {
		t.Fatal(err)
	}
	writer := outbox.Writer{Notify: true}
	if _, err := writer.Insert(t.Context(), tx, outbox.Message{Topic: "t"}); err != nil {
		t.Error(err)
	}
}

// TestInterference: a trigger that swallows rows must not pass as success.
func TestInterference(t *testing.T) {
	t.Parallel()
	conn := connect(t, database(t, defaultTarget))
	execute(t, conn, `CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.topic = 'swallowed' THEN RETURN NULL; END IF; RETURN NEW; END $$`)
	execute(t, conn, `CREATE TRIGGER swallow BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION swallow()`)
	err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		_, err := outbox.Insert(t.Context(), tx, outbox.Message{Topic: "kept"}, outbox.Message{Topic: "swallowed"})
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "2 messages became 1 rows") {
		t.Errorf("error %v", err)
	}
}

func TestCancelledContext(t *testing.T) {
	t.Parallel()
	tx, err := connect(t, database(t, defaultTarget)).Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := outbox.Insert(ctx, tx, outbox.Message{Topic: "t"}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
