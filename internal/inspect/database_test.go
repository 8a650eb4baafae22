package inspect_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/inspect"
	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/route"
)

// settings are a relay's that connects as the role, empty for the superuser.
func settings(t *testing.T, server, role string) *config.Config {
	t.Helper()
	parsed, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	if role != "" {
		parsed.User = url.User(role)
	}
	c := config.Default()
	c.Database.URL = parsed.String()
	return c
}

// newRole makes a role that may log in and do nothing else.
func newRole(t *testing.T, db *pgtest.Database) string {
	t.Helper()
	role := fmt.Sprintf("relay_role_%08x", rand.Uint32())
	db.Exec(t, "CREATE ROLE "+role+" LOGIN")
	t.Cleanup(func() {
		if _, err := db.Pool.Exec(context.Background(), "DROP OWNED BY "+role+"; DROP ROLE "+role); err != nil {
			t.Log(err)
		}
	})
	return role
}

// look inspects the database.
func look(t *testing.T, c *config.Config) []inspect.Finding {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	findings, conn := inspect.Database(ctx, c)
	if conn != nil {
		_ = conn.Close(ctx)
	}
	return findings
}

// of returns the findings of a level.
func of(findings []inspect.Finding, level inspect.Level) []inspect.Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f inspect.Finding) bool { return f.Level != level })
}

// expect checks that the findings of the level are these, each one's subject,
// message and remedy being "subject: message -> remedy" with … for anything.
func expect(t *testing.T, findings []inspect.Finding, level inspect.Level, want ...string) {
	t.Helper()
	found := of(findings, level)
	if len(found) != len(want) {
		t.Errorf("%d findings of level %s, want %d: %+v", len(found), level, len(want), found)
		return
	}
	for i, f := range found {
		line := f.Subject + ": " + f.Message + " -> " + f.Remedy
		if !like(line, want[i]) {
			t.Errorf("found  %s\nwanted %s", line, want[i])
		}
	}
}

// like reports whether the text has the parts between … in order, the first at
// its beginning.
func like(text, want string) bool {
	for i, part := range strings.Split(want, "…") {
		at := strings.Index(text, part)
		if at < 0 || (i == 0 && at != 0) {
			return false
		}
		text = text[at+len(part):]
	}
	return true
}

func TestSoundDatabase(t *testing.T) {
	db := pgtest.NewOutbox(t)
	findings := look(t, settings(t, db.URL, ""))
	expect(t, findings, inspect.Error)
	expect(t, findings, inspect.Warning)
	expect(t, findings, inspect.OK, "database: PostgreSQL …, connected as …", `table "public"."outbox": has all columns`,
		"migrations: all are applied", `grants on "public"."outbox": sufficient`,
		`table "public"."outbox_parked": present; grants sufficient`, `table "public"."outbox_dead_letters": present; grants sufficient`,
		"flush barrier: compares positions of the server's log, and flushes it where it lags", "notifications: arrive")
	for _, f := range findings {
		if f.Remedy != "" {
			t.Errorf("nothing is wrong, and yet: %+v", f)
		}
	}
}

func TestOddNames(t *testing.T) {
	db := pgtest.New(t)
	const schema, table = `Odd "schema"`, `out'box $1`
	db.Migrate(t, schema, table)
	c := settings(t, db.URL, "")
	c.Outbox.Schema, c.Outbox.Table = schema, table
	findings := look(t, c)
	expect(t, findings, inspect.Error)
	expect(t, findings, inspect.Warning)
}

func TestTableProblems(t *testing.T) {
	for _, test := range []struct {
		name    string
		sql     string
		change  func(*config.Config)
		errors  []string
		warning []string
	}{
		{
			name: "no table", sql: `DROP TABLE outbox CASCADE`,
			errors: []string{`table "public"."outbox": the table does not exist -> run …relay migrate…outbox.table`},
		},
		{
			name: "no schema", sql: `SELECT`, change: func(c *config.Config) { c.Outbox.Schema = "shop" },
			errors: []string{`table "shop"."outbox": the schema "shop" does not exist -> run …relay migrate…outbox.schema`},
		},
		{
			name: "no columns", sql: `ALTER TABLE outbox DROP COLUMN headers, DROP COLUMN content_type`,
			errors: []string{
				`table "public"."outbox": column content_type is missing -> run …relay migrate…add the column`,
				`table "public"."outbox": column headers is missing -> run …`,
			},
		},
		{
			name: "another type", sql: `DROP TRIGGER outbox_payload_bytes ON outbox; ALTER TABLE outbox ALTER COLUMN content_type DROP DEFAULT, ALTER COLUMN payload TYPE text USING '', ALTER COLUMN message_id TYPE text`,
			errors: []string{
				`table "public"."outbox": column message_id is text, not uuid -> change the column's type`,
				`table "public"."outbox": column payload is text, not bytea -> change`,
			},
		},
		{
			name: "no index", sql: `DROP INDEX outbox_pending_idx`,
			warning: []string{`table "public"."outbox": index outbox_pending_idx is missing or invalid… -> create it as …relay migrate --print`},
		},
		{
			name: "no tables of failures", sql: `DROP TABLE outbox_parked, outbox_dead_letters`,
			errors: []string{
				`table "public"."outbox_parked": the table does not exist -> run …relay migrate`,
				`table "public"."outbox_dead_letters": the table does not exist -> run …relay migrate`,
			},
		},
		{
			name: "no index of parked keys", sql: `DROP INDEX outbox_parked_key_idx`,
			warning: []string{`table "public"."outbox_parked": index outbox_parked_key_idx is missing or invalid… -> create it as …relay migrate --print`},
		},
		{
			name: "pending migration", sql: `DELETE FROM outbox_migrations WHERE version > 3`,
			errors: []string{`migrations: migration 4 (payload_json) is pending -> run …relay migrate`, `migrations: migration 5 (payload_json_valid) is pending -> run …relay migrate`},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			db.Exec(t, test.sql)
			c := settings(t, db.URL, "")
			if test.change != nil {
				test.change(c)
			}
			findings := look(t, c)
			expect(t, findings, inspect.Error, test.errors...)
			expect(t, findings, inspect.Warning, test.warning...)
		})
	}
}

func TestGrants(t *testing.T) {
	db := pgtest.NewOutbox(t)
	const failures = `; GRANT SELECT ON outbox_migrations TO ROLE; GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_parked TO ROLE;
		GRANT SELECT, INSERT, UPDATE ON outbox_dead_letters TO ROLE`
	for _, test := range []struct {
		name     string
		grants   string
		change   func(*config.Config)
		errors   []string // ROLE stands for the role
		warnings []string
	}{
		{
			name:   "sufficient",
			grants: `GRANT SELECT, UPDATE (published_at), DELETE ON outbox TO ROLE` + failures,
		},
		{
			name:   "sufficient without pruning",
			grants: `GRANT SELECT, UPDATE ON outbox TO ROLE` + failures,
			change: func(c *config.Config) { c.Outbox.Retention = 0 },
		},
		{
			name: "none",
			errors: []string{
				`grants on "public"."outbox": missing: SELECT -> GRANT SELECT ON "public"."outbox" TO "ROLE"`,
				`grants on "public"."outbox": missing: UPDATE (published_at) -> GRANT UPDATE (published_at) ON "public"."outbox" TO "ROLE"`,
				`grants on "public"."outbox": missing: DELETE -> GRANT DELETE ON "public"."outbox" TO "ROLE"`,
				`grants on "public"."outbox_parked": missing: SELECT, INSERT, UPDATE, DELETE -> GRANT SELECT, INSERT, UPDATE, DELETE ON "public"."outbox_parked" TO "ROLE"`,
				`grants on "public"."outbox_dead_letters": missing: SELECT, INSERT, UPDATE -> GRANT SELECT, INSERT, UPDATE ON "public"."outbox_dead_letters" TO "ROLE"`,
			},
			warnings: []string{`migrations: cannot tell whether any is pending… -> GRANT SELECT ON "public"."outbox_migrations" TO "ROLE"; or run …relay migrate --dry-run`},
		},
		{
			name:   "no update",
			grants: `GRANT SELECT, DELETE ON outbox TO ROLE` + failures,
			errors: []string{`grants on "public"."outbox": missing: UPDATE (published_at) -> GRANT UPDATE (published_at)`},
		},
		{
			name:   "no delete with on_published: delete",
			grants: `GRANT SELECT, UPDATE ON outbox TO ROLE` + failures,
			change: func(c *config.Config) { c.Outbox.OnPublished, c.Outbox.Retention = "delete", 0 },
			errors: []string{`grants on "public"."outbox": missing: DELETE -> GRANT DELETE`},
		},
		{
			name:   "no delete with dead letters",
			grants: `GRANT SELECT, UPDATE ON outbox TO ROLE` + failures,
			change: func(c *config.Config) { c.Outbox.Retention, c.Failures.Policy = 0, "dead_letter" },
			errors: []string{`grants on "public"."outbox": missing: DELETE -> GRANT DELETE`},
		},
		{
			name:   "no delete with a route that skips",
			grants: `GRANT SELECT, UPDATE ON outbox TO ROLE` + failures,
			change: func(c *config.Config) {
				c.Outbox.Retention, c.Routes = 0, []route.Config{{Sink: "main", OnFailure: "skip"}}
			},
			errors: []string{`grants on "public"."outbox": missing: DELETE -> GRANT DELETE`},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			role := newRole(t, db)
			if test.grants != "" {
				db.Exec(t, strings.ReplaceAll(test.grants, "ROLE", role))
			}
			c := settings(t, db.URL, role)
			if test.change != nil {
				test.change(c)
			}
			findings := look(t, c)
			for _, want := range [][]string{test.errors, test.warnings} {
				for i := range want {
					want[i] = strings.ReplaceAll(want[i], "ROLE", role)
				}
			}
			expect(t, findings, inspect.Error, test.errors...)
			expect(t, findings, inspect.Warning, test.warnings...)

			// What it advises is enough.
			var remedies []string
			for _, f := range of(findings, inspect.Error) {
				remedies = append(remedies, f.Remedy)
			}
			if len(remedies) > 0 {
				db.Exec(t, remedies...)
				expect(t, look(t, c), inspect.Error)
			}
		})
	}
}

func TestSchemaWithoutUsage(t *testing.T) {
	db := pgtest.New(t)
	db.Migrate(t, "shop", "outbox")
	role := newRole(t, db)
	db.Exec(t, "GRANT SELECT, UPDATE, DELETE ON shop.outbox TO "+role, "GRANT ALL ON shop.outbox_parked, shop.outbox_dead_letters TO "+role)
	c := settings(t, db.URL, role)
	c.Outbox.Schema = "shop"
	findings := look(t, c)
	expect(t, findings, inspect.Error, `grants on "shop"."outbox": missing: USAGE -> GRANT USAGE ON SCHEMA "shop" TO "`+role+`"`)
	if errors := of(findings, inspect.Error); len(errors) == 1 {
		db.Exec(t, errors[0].Remedy)
		expect(t, look(t, c), inspect.Error)
	}
}

// The relay's transactions are not as the role's defaults are.
func TestDefaultsOfTheRole(t *testing.T) {
	db := pgtest.NewOutbox(t)
	role := newRole(t, db)
	db.Exec(t, "GRANT ALL ON outbox, outbox_migrations, outbox_parked, outbox_dead_letters TO "+role)
	for _, setting := range []string{"default_transaction_read_only = on", "idle_in_transaction_session_timeout = 1", "lock_timeout = 1", "default_transaction_isolation = serializable"} {
		db.Exec(t, "ALTER ROLE "+role+" SET "+setting)
	}
	findings := look(t, settings(t, db.URL, role))
	expect(t, findings, inspect.Error)
	expect(t, findings, inspect.Warning)
}

func TestNoNotificationsWanted(t *testing.T) {
	db := pgtest.NewOutbox(t)
	c := settings(t, db.URL, "")
	c.Outbox.Notify = false
	for _, f := range look(t, c) {
		if f.Subject == "notifications" {
			t.Errorf("found %+v although outbox.notify is false", f)
		}
	}
}

func TestDirectURLThatFails(t *testing.T) {
	db := pgtest.NewOutbox(t)
	c := settings(t, db.URL, "")
	c.Database.DirectURL = "postgres://somebody@127.0.0.1:1/x?sslmode=disable"
	expect(t, look(t, c), inspect.Error, "notifications: database.direct_url: …refused… -> check that the server…")
}

func TestDatabaseThatCannotBeUsed(t *testing.T) {
	db := pgtest.New(t)
	for _, test := range []struct{ name, url, want string }{
		{"nobody listens", "postgres://somebody:hunter2@127.0.0.1:1/x?sslmode=disable", "database: …connection refused… -> check that the server in database.url runs and can be reached"},
		{"no such host", "postgres://somebody:hunter2@no-such-host.invalid/x", "database: …no-such-host.invalid… -> check the host in database.url"},
		{"no such database", strings.Replace(db.URL, "relay_test_", "relay_missing_", 1), "database: …does not exist… -> create the database, or correct its name"},
		{"no such role", settings(t, db.URL, "nobody_there").Database.URL, "database: …nobody_there… -> check the user and the password"},
		{"not a URL", "postgres://a:b@[::1", "database: … -> correct database.url"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := config.Default()
			c.Database.URL = test.url
			findings := look(t, c)
			expect(t, findings, inspect.Error, test.want)
			if strings.Contains(fmt.Sprint(findings), "hunter2") {
				t.Errorf("the password is shown: %+v", findings)
			}
		})
	}
}

// oldServer is PostgreSQL 13 as far as a client sees before its first query.
func oldServer(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	t.Cleanup(func() {
		_ = listener.Close()
		<-stopped
	})
	go func() {
		defer close(stopped)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = greet(conn)
			_ = conn.Close()
		}
	}()
	return fmt.Sprintf("postgres://relay@%s/shop?sslmode=disable", listener.Addr())
}

// greet opens a session and ends it at the first query.
func greet(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	backend := pgproto3.NewBackend(conn, conn)
	if _, err := backend.ReceiveStartupMessage(); err != nil {
		return err
	}
	backend.Send(&pgproto3.AuthenticationOk{})
	backend.Send(&pgproto3.ParameterStatus{Name: "server_version", Value: "13.22 (Debian 13.22-1)"})
	backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if err := backend.Flush(); err != nil {
		return err
	}
	_, err := backend.Receive()
	return err
}

func TestOldServer(t *testing.T) {
	c := config.Default()
	c.Database.URL = oldServer(t)
	findings := of(look(t, c), inspect.Error)
	if len(findings) == 0 {
		t.Fatal("nothing is wrong with it")
	}
	expect(t, findings[:1], inspect.Error, "database: PostgreSQL 13.22 (Debian 13.22-1) is not supported -> upgrade the server to PostgreSQL 14 or newer")
}
