package migrations_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/migrations"
)

var public = migrations.Target{Schema: "public", Table: "outbox"}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// apply applies and returns the versions that it reported.
func apply(t *testing.T, target migrations.Target, conn *pgx.Conn) (versions []int) {
	t.Helper()
	if err := target.Apply(t.Context(), conn, func(m migrations.Migration) { versions = append(versions, m.Version) }); err != nil {
		t.Fatal(err)
	}
	return versions
}

func pending(t *testing.T, target migrations.Target, conn *pgx.Conn) (versions []int) {
	t.Helper()
	all, err := target.Pending(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		versions = append(versions, m.Version)
	}
	return versions
}

// versions are all there are.
func versions(t *testing.T) (versions []int) {
	t.Helper()
	all, err := public.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		versions = append(versions, m.Version)
	}
	if len(versions) == 0 || !slices.IsSorted(versions) {
		t.Fatalf("versions %v", versions)
	}
	return versions
}

func TestApplyTwice(t *testing.T) {
	db := pgtest.New(t)
	conn := connect(t, db.URL)
	if got, want := pending(t, public, conn), versions(t); !slices.Equal(got, want) {
		t.Errorf("pending at first: %v, want %v", got, want)
	}
	if n := db.Int(t, `SELECT count(*) FROM pg_class WHERE relname LIKE 'outbox%'`); n != 0 {
		t.Errorf("asking made %d things", n)
	}
	if got, want := apply(t, public, conn), versions(t); !slices.Equal(got, want) {
		t.Errorf("applied %v, want %v", got, want)
	}
	if got := apply(t, public, conn); got != nil {
		t.Errorf("applied %v the second time", got)
	}
	if got := pending(t, public, conn); got != nil {
		t.Errorf("pending at last: %v", got)
	}
	if n := db.Int(t, `SELECT count(*) FROM outbox_migrations`); int(n) != len(versions(t)) {
		t.Errorf("%d are recorded", n)
	}
}

func TestApplyFromManyPlacesAtOnce(t *testing.T) {
	db := pgtest.New(t)
	target := migrations.Target{Schema: "shop", Table: "outbox"} // the schema is to be made as well
	const places = 8
	conns := make([]*pgx.Conn, places)
	for i := range conns {
		conns[i] = connect(t, db.URL)
	}
	var mutex sync.Mutex
	var reported []int
	var errs []error
	begin := make(chan struct{})
	var group sync.WaitGroup
	for _, conn := range conns {
		group.Go(func() {
			<-begin
			err := target.Apply(t.Context(), conn, func(m migrations.Migration) {
				mutex.Lock()
				defer mutex.Unlock()
				reported = append(reported, m.Version)
			})
			mutex.Lock()
			defer mutex.Unlock()
			errs = append(errs, err)
		})
	}
	close(begin)
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if !slices.Equal(reported, versions(t)) {
		t.Errorf("applied %v, each should be applied once", reported)
	}
}

// catalog describes everything in a schema.
func catalog(t *testing.T, db *pgtest.Database, schema string) string {
	t.Helper()
	var text string
	err := db.Pool.QueryRow(t.Context(), `
SELECT coalesce(string_agg(line, E'\n' ORDER BY line), '') FROM (
    SELECT format('%s %s %s %s', c.relkind, c.relname, c.reloptions, obj_description(c.oid)) FROM pg_class c WHERE c.relnamespace = $1::regnamespace
    UNION ALL SELECT format('column %s.%s %s %s %s %s %s', c.relname, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, pg_get_expr(d.adbin, d.adrelid) || coalesce(col_description(c.oid, a.attnum), ''))
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum WHERE c.relnamespace = $1::regnamespace
    UNION ALL SELECT format('index %s', pg_get_indexdef(indexrelid)) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relnamespace = $1::regnamespace
    UNION ALL SELECT format('constraint %s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = $1::regnamespace
    UNION ALL SELECT format('function %s', pg_get_functiondef(oid)) FROM pg_proc WHERE pronamespace = $1::regnamespace
) AS all_of_it(line)`, pgx.Identifier{schema}.Sanitize()).Scan(&text)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestPrintLeavesWhatApplyLeaves(t *testing.T) {
	for _, target := range []migrations.Target{public, {Schema: `Odd "s'chema"`, Table: `out$sql$box'\ "1"`}} {
		t.Run(target.Table, func(t *testing.T) {
			applied, printed := pgtest.New(t), pgtest.New(t)
			apply(t, target, connect(t, applied.URL))
			var script bytes.Buffer
			if err := target.Print(&script); err != nil {
				t.Fatal(err)
			}
			conn := connect(t, printed.URL)
			if _, err := conn.PgConn().Exec(t.Context(), script.String()).ReadAll(); err != nil {
				t.Fatalf("%v in\n%s", err, script.String())
			}
			want, got := catalog(t, applied, target.Schema), catalog(t, printed, target.Schema)
			if got != want || len(want) < 1000 {
				t.Errorf("printed:\n%s\n\napplied:\n%s", got, want)
			}
			if got := apply(t, target, conn); got != nil {
				t.Errorf("after the script, Apply applied %v", got)
			}
		})
	}
}

func TestNamesAreQuoted(t *testing.T) {
	db := pgtest.New(t)
	conn := connect(t, db.URL)
	target := migrations.Target{Schema: `Shop; DROP "x"`, Table: `Out"box'$sql$ \`}
	apply(t, target, conn)
	table := pgx.Identifier{target.Schema, target.Table}.Sanitize()
	publish := pgx.Identifier{target.Schema, target.Table + "_publish"}.Sanitize()
	db.Exec(t, `SELECT `+publish+`('orders', 'k', 'OrderPlaced', '{"a": 1}', '{"h": "v"}')`,
		`SELECT `+publish+`('orders', NULL, 'OrderPlaced', NULL)`)
	if n := db.Int(t, `SELECT count(*) FROM `+table); n != 2 {
		t.Errorf("%d rows", n)
	}

	// Another outbox in the same schema is another outbox.
	second := migrations.Target{Schema: target.Schema, Table: "second"}
	if got := apply(t, second, conn); len(got) == 0 {
		t.Error("nothing was applied for a second table in the schema")
	}
}

func TestPublishFunction(t *testing.T) {
	db := pgtest.NewOutbox(t)
	var id, payload, headers, contentType string
	if err := db.Pool.QueryRow(t.Context(), `SELECT outbox_publish('orders', 'k', 'OrderPlaced', '{"name": "Zoë"}', '{"tenant": "a"}')`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	err := db.Pool.QueryRow(t.Context(), `SELECT coalesce(payload_json::text, convert_from(payload, 'UTF8')), headers::text, content_type FROM outbox
		WHERE message_id = $1 AND topic = 'orders' AND key = 'k' AND type = 'OrderPlaced' AND published_at IS NULL`, id).Scan(&payload, &headers, &contentType)
	if err != nil || payload != `{"name": "Zoë"}` || headers != `{"tenant": "a"}` || contentType != "application/json" {
		t.Errorf("payload %s, headers %s, content type %s, error %v", payload, headers, contentType, err)
	}
	db.Exec(t, `SELECT outbox_publish('orders', NULL, '', NULL)`, `SELECT outbox_publish(topic => 'orders', key => '', type => '', payload => '1')`)
	if n := db.Int(t, `SELECT count(*) FROM outbox WHERE key IS NULL AND payload IS NULL AND payload_json IS NULL AND headers = '{}'`); n != 1 {
		t.Errorf("%d rows without key and payload", n)
	}
}

func TestTableRefusesWhatCannotBeSent(t *testing.T) {
	db := pgtest.NewOutbox(t)
	for _, values := range []string{
		`(topic) VALUES ('')`, `(topic) VALUES (NULL)`, `(key) VALUES ('k')`,
		`(topic, headers) VALUES ('t', '[]')`, `(topic, headers) VALUES ('t', '"x"')`, `(topic, headers) VALUES ('t', '{"n": 1}')`,
		`(topic, headers) VALUES ('t', '{"n": null}')`, `(topic, headers) VALUES ('t', '{"n": {"m": "x"}}')`, `(topic, headers) VALUES ('t', '{"n": ["x"]}')`,
		`(topic, headers) VALUES ('t', NULL)`, `(topic, type) VALUES ('t', NULL)`,
	} {
		if _, err := db.Pool.Exec(t.Context(), `INSERT INTO outbox `+values); err == nil {
			t.Errorf("INSERT INTO outbox %s was accepted", values)
		}
	}
	for _, values := range []string{`(topic) VALUES ('t')`, `(topic, headers) VALUES ('t', '{"a": "", "b": "x"}')`, `(id, topic) VALUES (1000000, 't')`} {
		if _, err := db.Pool.Exec(t.Context(), `INSERT INTO outbox `+values); err != nil {
			t.Errorf("INSERT INTO outbox %s: %v", values, err)
		}
	}
}

// expectError applies and expects an error with all the words.
func expectError(t *testing.T, target migrations.Target, conn *pgx.Conn, words ...string) {
	t.Helper()
	err := target.Apply(t.Context(), conn, func(m migrations.Migration) { t.Errorf("migration %d is reported", m.Version) })
	if err == nil {
		t.Fatal("it was applied")
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not say %q: %v", word, err)
		}
	}
}

func TestTableOfSomebodyElseIsExplained(t *testing.T) {
	db := pgtest.New(t)
	db.Exec(t, `CREATE TABLE outbox (id int)`)
	conn := connect(t, db.URL)
	expectError(t, public, conn, "migration 1", `"outbox" already exists`, "rename it", "outbox.table")
	if n := db.Int(t, `SELECT count(*) FROM pg_class WHERE relname IN ('outbox_migrations', 'outbox_pending_idx')`); n != 0 {
		t.Error("a failed migration left something")
	}
	if n := db.Int(t, `SELECT count(*) FROM pg_attribute WHERE attrelid = 'outbox'::regclass AND attnum > 0`); n != 1 {
		t.Error("it changed somebody else's table")
	}
	// The connection is still good, and so is another name.
	apply(t, migrations.Target{Schema: "public", Table: "relay_outbox"}, conn)
}

func newRole(t *testing.T, db *pgtest.Database, settings ...string) (role, roleURL string) {
	t.Helper()
	role = fmt.Sprintf("migrator_%08x", rand.Uint32())
	db.Exec(t, "CREATE ROLE "+role+" LOGIN")
	t.Cleanup(func() {
		if _, err := db.Pool.Exec(context.Background(), "DROP OWNED BY "+role+"; DROP ROLE "+role); err != nil {
			t.Log(err)
		}
	})
	for _, setting := range settings {
		db.Exec(t, "ALTER ROLE "+role+" SET "+setting)
	}
	parsed, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	parsed.User = url.User(role)
	return role, parsed.String()
}

func TestMissingPrivilegeIsExplained(t *testing.T) {
	db := pgtest.New(t)
	db.Exec(t, `CREATE SCHEMA shop`)
	role, roleURL := newRole(t, db)
	conn := connect(t, roleURL)
	target := migrations.Target{Schema: "shop", Table: "outbox"}
	db.Exec(t, `GRANT USAGE ON SCHEMA shop TO `+role)
	expectError(t, target, conn, "permission denied for schema shop", `GRANT CREATE ON SCHEMA "shop"`)
	expectError(t, migrations.Target{Schema: "nowhere", Table: "outbox"}, conn, "permission denied for database")
	// What it advises is enough.
	db.Exec(t, `GRANT CREATE ON SCHEMA "shop" TO `+role)
	apply(t, target, conn)
}

// The defaults of a role are no reason to fail.
func TestDefaultsOfTheRoleDoNotCount(t *testing.T) {
	db := pgtest.New(t)
	role, roleURL := newRole(t, db, "default_transaction_read_only = on", "lock_timeout = 1", "default_transaction_isolation = serializable")
	db.Exec(t, `GRANT CREATE ON SCHEMA public TO `+role)
	apply(t, public, connect(t, roleURL))
}

// What a role has set for other clients does not bind a migration.
func TestSettingsOfTheRole(t *testing.T) {
	db := pgtest.New(t)
	role, roleURL := newRole(t, db, "default_transaction_read_only = on", "default_transaction_isolation = serializable", "statement_timeout = '150ms'")
	db.Exec(t, `GRANT CREATE ON SCHEMA public TO `+role,
		`CREATE FUNCTION dawdle() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.3); END'`,
		`CREATE EVENT TRIGGER dawdle ON ddl_command_end WHEN TAG IN ('COMMENT') EXECUTE FUNCTION dawdle()`)
	apply(t, public, connect(t, roleURL))
}

// A database in another encoding has no use for characters of a comment that it
// does not know.
func TestMigrationsAreASCII(t *testing.T) {
	for _, set := range []migrations.Set{migrations.Outbox, migrations.Inbox} {
		all, err := migrations.Target{Schema: "public", Table: "outbox", Set: set}.Migrations()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			for number, line := range strings.Split(m.SQL, "\n") {
				if strings.ContainsFunc(line, func(r rune) bool { return r > 127 }) {
					t.Errorf("migration %d (%s), line %d: %s", m.Version, m.Name, number+1, line)
				}
			}
		}
	}
}
