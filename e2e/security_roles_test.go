package e2e_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/parked"
	"github.com/outboxrelay/relay/outbox"
)

// documentedSQL returns the blocks of SQL in a page's section.
func documentedSQL(t *testing.T, page, section string) (blocks []string) {
	t.Helper()
	content, err := os.ReadFile("../docs/" + page)
	try(t, err)
	_, text, found := strings.Cut(string(content), "\n## "+section+"\n")
	if !found {
		t.Fatalf("docs/%s has no section %q", page, section)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	for _, block := range regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(text, -1) {
		blocks = append(blocks, block[1])
	}
	return blocks
}

// roles is a database whose roles have what the documentation grants them, no
// more.
type roles struct {
	t   *testing.T
	url string
}

// as is the database's URL for a role, with the password that is documented.
func (r *roles) as(role string) string {
	return as(r.t, r.url, role, strings.TrimPrefix(role, "outbox_"))
}

func (r *roles) connect(role string) *pgx.Conn {
	r.t.Helper()
	conn, err := pgx.Connect(r.t.Context(), r.as(role))
	try(r.t, err)
	r.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// exec runs statements, which succeed.
func (r *roles) exec(role, statements string) {
	r.t.Helper()
	conn := r.connect(role)
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.PgConn().Exec(r.t.Context(), statements).ReadAll(); err != nil {
		r.t.Fatalf("%s: %v\n%s", role, err, statements)
	}
}

// refuses runs statements of the role one by one, each of which lacks a
// privilege.
func (r *roles) refuses(role string, statements ...string) {
	r.t.Helper()
	conn := r.connect(role)
	for _, statement := range statements {
		_, err := conn.Exec(r.t.Context(), statement)
		if refusal, ok := errors.AsType[*pgconn.PgError](err); !ok || refusal.Code != "42501" {
			r.t.Errorf("%s may: %s (%v)", role, statement, err)
		}
	}
}

// relay is a relay that connects as the role.
func (r *roles) relay(name, role string, log scenario.Log, settings scenario.Settings) *scenario.Relay {
	r.t.Helper()
	return scenario.NewRelay(r.t, name, scenario.Config{
		"database": scenario.Config{"url": r.as(role)}, "outbox": scenario.Config{"schema": "messaging"},
		"sinks": scenario.Config{"main": log.Sink()}, "log": scenario.Config{"level": "debug", "format": "text"},
	}.With(settings))
}

// newRoles makes the roles and tables as docs/operations.md has it, word for
// word, in a database that has something else to protect.
func newRoles(t *testing.T, log scenario.Log) *roles {
	t.Helper()
	server := strictPostgres(t)
	address, err := server.CreateDatabase(t.Context(), "shop")
	try(t, err)
	r := &roles{t: t, url: address}
	blocks := documentedSQL(t, "operations.md", "Privileges")
	if len(blocks) < 2 {
		t.Fatalf("%d blocks of SQL are documented, want the roles and the grants", len(blocks))
	}
	r.exec("postgres", blocks[0])
	r.exec("postgres", `CREATE TABLE public.customers (name text); INSERT INTO customers VALUES ('a secret'); GRANT ALL ON customers TO app`)
	if result := r.relay("migrate", "outbox_owner", log, nil).Command("migrate", "--only", "outbox"); result.Code != 0 {
		t.Fatalf("relay migrate as the owner: %s", result)
	}
	r.exec("outbox_owner", blocks[1])
	return r
}

// insertInEachWay has the application write by a plain INSERT, by
// outbox_publish(), and by the Go library with pgx and database/sql.
func (r *roles) insertInEachWay(topic string) {
	t := r.t
	t.Helper()
	conn := r.connect("app")
	var id int64
	try(t, conn.QueryRow(t.Context(), `INSERT INTO messaging.outbox (topic, key, payload) VALUES ($1, 'a', 'x') RETURNING id`, topic).Scan(&id))
	_, err := conn.Exec(t.Context(), `SELECT messaging.outbox_publish($1, 'a', 'Happened', '{}', '{"tenant": "acme"}')`, topic)
	try(t, err)
	writer := &outbox.Writer{Schema: "messaging", Notify: true}
	message := outbox.Message{Topic: topic, Key: "a", Type: "Happened", JSON: map[string]int{"n": 1}}
	try(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
		_, err := writer.Insert(t.Context(), tx, message, message)
		return err
	}))
	db, err := sql.Open("pgx", r.as("app"))
	try(t, err)
	defer func() { _ = db.Close() }()
	tx, err := db.BeginTx(t.Context(), nil)
	try(t, err)
	_, err = writer.InsertSQL(t.Context(), tx, message)
	try(t, err)
	try(t, tx.Commit())
}

func (r *roles) int(query string) (n int) {
	r.t.Helper()
	conn := r.connect("postgres")
	defer func() { _ = conn.Close(context.Background()) }()
	try(r.t, conn.QueryRow(r.t.Context(), query).Scan(&n))
	return n
}

func TestDocumentedRoles(t *testing.T) {
	t.Parallel()
	log := scenario.NewKafkaLog(t)
	r := newRoles(t, log)
	topic := log.Topics()[0]

	// What every role but the owner must not.
	schema := []string{
		`CREATE TABLE messaging.mine (x int)`, `ALTER TABLE messaging.outbox ADD COLUMN mine int`, `DROP TABLE messaging.outbox`,
		`CREATE INDEX mine ON messaging.outbox (topic)`, `TRUNCATE messaging.outbox`, `CREATE SCHEMA mine`,
		`ALTER TABLE messaging.outbox DISABLE TRIGGER ALL`, `CREATE PUBLICATION mine FOR TABLE messaging.outbox`,
		`CREATE OR REPLACE FUNCTION messaging.outbox_publish(topic text, key text, type text, payload jsonb, headers jsonb DEFAULT '{}') RETURNS uuid LANGUAGE sql AS 'SELECT NULL::uuid'`,
	}
	business := []string{`SELECT * FROM public.customers`, `INSERT INTO public.customers VALUES ('x')`, `DELETE FROM public.customers`}
	for _, role := range []string{"app", "relay", "oncall", "pruner"} {
		r.refuses(role, schema...)
		if role != "app" {
			r.refuses(role, business...)
		}
	}

	t.Run("application", func(t *testing.T) {
		r.insertInEachWay(topic)
		r.refuses("app",
			`SELECT payload FROM messaging.outbox`, `SELECT * FROM messaging.outbox`, `SELECT headers FROM messaging.outbox`, `SELECT key FROM messaging.outbox`,
			`UPDATE messaging.outbox SET published_at = now()`, `UPDATE messaging.outbox SET payload = NULL`, `DELETE FROM messaging.outbox`,
			`INSERT INTO messaging.outbox (topic, published_at) VALUES ('x', now())`, `INSERT INTO messaging.outbox (id, topic) VALUES (1, 'x')`,
			`INSERT INTO messaging.outbox (topic, created_at) VALUES ('x', '2001-01-01')`, `SELECT id FROM messaging.outbox FOR UPDATE`,
			`SELECT * FROM messaging.outbox_parked`, `SELECT * FROM messaging.outbox_dead_letters`, `SELECT * FROM messaging.outbox_audit`,
			`DELETE FROM messaging.outbox_parked`, `SELECT * FROM messaging.outbox_migrations`, `INSERT INTO messaging.outbox_audit (os_user, action) VALUES ('x', 'x')`,
		)
	})

	t.Run("relay", func(t *testing.T) {
		relay := r.relay("relay", "relay", log, scenario.Settings{"sinks.main.kafka.max_message_bytes": 10_000})
		if result := relay.Command("check"); result.Code != 0 || strings.Contains(result.Stdout, "warning") {
			t.Errorf("relay check: %s", result)
		}
		relay.Start()
		// A poisonous message too, whose key is then parked.
		_, err := r.connect("app").Exec(t.Context(), `INSERT INTO messaging.outbox (topic, key, payload) VALUES ($1, 'poison', convert_to(repeat('x', 20000), 'UTF8'))`, topic)
		try(t, err)
		scenario.Await(t, 60*time.Second, "5 messages to be published and one to be parked", func() (bool, string) {
			published, held := r.int(`SELECT count(*) FROM messaging.outbox WHERE published_at IS NOT NULL`), r.int(`SELECT count(*) FROM messaging.outbox_parked WHERE state = 'parked'`)
			return published == 5 && held == 1, relay.Log()
		})
		r.refuses("relay",
			`INSERT INTO messaging.outbox (topic) VALUES ('x')`, `UPDATE messaging.outbox SET payload = NULL`, `UPDATE messaging.outbox SET headers = '{}'`,
			`DELETE FROM messaging.outbox_dead_letters`, `SELECT * FROM messaging.outbox_audit`, `INSERT INTO messaging.outbox_audit (os_user, action) VALUES ('x', 'x')`,
			`DELETE FROM messaging.outbox_migrations`,
		)
		relay.Stop()
	})

	t.Run("on call", func(t *testing.T) {
		oncall := r.relay("oncall", "oncall", log, nil)
		for _, command := range []string{"status", "parked list", "parked skip --all --yes", "dead list", "replay --topic " + topic + " --yes"} {
			if result := oncall.Command(strings.Fields(command)...); result.Code != 0 {
				t.Errorf("relay %s: %s", command, result)
			}
		}
		if n := r.int(`SELECT count(*) FROM messaging.outbox_audit WHERE db_user = 'oncall'`); n == 0 {
			t.Error("nothing of it was recorded")
		}
		r.refuses("oncall", `DELETE FROM messaging.outbox_audit`, `UPDATE messaging.outbox_audit SET action = 'x'`,
			`INSERT INTO messaging.outbox_audit (os_user, action, db_user) VALUES ('x', 'x', 'somebody')`,
			`UPDATE messaging.outbox SET payload = NULL`, `UPDATE messaging.outbox SET topic = 'x'`, `DELETE FROM messaging.outbox_parked`)
	})

	t.Run("pruner", func(t *testing.T) {
		r.exec("postgres", `UPDATE messaging.outbox SET published_at = now() - interval '2 days'`)
		rows := r.int(`SELECT count(*) FROM messaging.outbox`)
		if result := r.relay("pruner", "pruner", log, nil).Command("prune"); result.Code != 0 || r.int(`SELECT count(*) FROM messaging.outbox`) != 0 || rows == 0 {
			t.Errorf("%d rows before: %s", rows, result)
		}
		r.refuses("pruner", `SELECT payload FROM messaging.outbox`, `SELECT key FROM messaging.outbox`, `UPDATE messaging.outbox SET payload = NULL`,
			`INSERT INTO messaging.outbox (topic) VALUES ('x')`, `SELECT * FROM messaging.outbox_dead_letters`, `SELECT * FROM messaging.outbox_parked`)
	})
}

// Each privilege that is taken away from the relay's role is named by relay
// check, with the statement that gives it back.
func TestCheckNamesEachMissingGrant(t *testing.T) {
	t.Parallel()
	log := scenario.NewKafkaLog(t)
	r := newRoles(t, log)
	relay := r.relay("relay", "relay", log, nil)
	for _, revoked := range []string{
		"USAGE ON SCHEMA messaging",
		"SELECT ON messaging.outbox", "UPDATE (published_at) ON messaging.outbox", "DELETE ON messaging.outbox",
		"SELECT ON messaging.outbox_parked", "INSERT ON messaging.outbox_parked", "UPDATE ON messaging.outbox_parked", "DELETE ON messaging.outbox_parked",
		"SELECT ON messaging.outbox_dead_letters", "INSERT ON messaging.outbox_dead_letters", "UPDATE ON messaging.outbox_dead_letters",
		"SELECT ON messaging.outbox_migrations",
	} {
		r.exec("outbox_owner", "REVOKE "+revoked+" FROM relay")
		result := relay.Command("check", "--output", "json")
		var remedies []string
		for _, f := range findingsIn(t, result) {
			if f.Level != "ok" && strings.Contains(f.Remedy, "GRANT ") {
				grant, _, _ := strings.Cut(f.Remedy, ";")
				remedies = append(remedies, grant)
			}
		}
		want := "GRANT " + revoked + " TO relay"
		if len(remedies) != 1 || strings.ReplaceAll(remedies[0], `"`, "") != want {
			t.Errorf("without %s relay check advises %q, want %s: %s", revoked, remedies, want, result)
			r.exec("outbox_owner", want)
			continue
		}
		r.exec("outbox_owner", remedies[0])
		if result := relay.Command("check"); result.Code != 0 || strings.Contains(result.Stdout, "warning") {
			t.Errorf("after %s relay check still finds: %s", remedies[0], result)
		}
	}
}

// Consumers have their own roles, as docs/inbox.md has it.
func TestDocumentedRolesOfTheInbox(t *testing.T) {
	t.Parallel()
	server := strictPostgres(t)
	address, err := server.CreateDatabase(t.Context(), "depot")
	try(t, err)
	r := &roles{t: t, url: address}
	r.exec("postgres", `CREATE ROLE shipping LOGIN PASSWORD 'shipping'; CREATE ROLE pruner LOGIN PASSWORD 'pruner'; CREATE TABLE secrets (x text)`)
	config := scenario.Config{"database": scenario.Config{"url": address}, "sinks": scenario.Config{"main": scenario.Config{"kafka": scenario.Config{"brokers": []string{"127.0.0.1:1"}}}}}
	if result := scenario.NewRelay(t, "migrate", config).Command("migrate", "--only", "inbox"); result.Code != 0 {
		t.Fatalf("relay migrate: %s", result)
	}
	for _, block := range documentedSQL(t, "inbox.md", "The table") {
		if strings.Contains(block, "GRANT") {
			r.exec("postgres", block)
		}
	}
	r.exec("postgres", `CREATE TABLE effects (n int); GRANT SELECT, INSERT ON effects TO shipping`)

	box := &inbox.Inbox{Consumer: "shipping", Order: inbox.OrderReport}
	message := inbox.Message{ID: inbox.ID(outbox.NewUUID()), Topic: "orders", Key: []byte("k"), Sequence: 1}
	consumer := r.connect("shipping")
	for _, want := range []inbox.Result{inbox.Processed, inbox.Duplicate} {
		got, err := box.Process(t.Context(), consumer, message, func(ctx context.Context, tx pgx.Tx, _ inbox.Message) error {
			_, err := tx.Exec(ctx, `INSERT INTO effects VALUES (1)`)
			return err
		})
		if err != nil || got != want {
			t.Errorf("%v, %v, want %v", got, err, want)
		}
	}
	lot := parked.Lot{Inbox: box}
	if _, err := lot.List(t.Context(), consumer, parked.Filter{}); err != nil {
		t.Errorf("listing what was put aside: %v", err)
	}
	r.refuses("shipping", `DELETE FROM inbox`, `UPDATE inbox SET consumer = 'x'`, `DELETE FROM inbox_order`, `DROP TABLE inbox`, `TRUNCATE inbox`, `SELECT * FROM secrets`)

	r.exec("postgres", `UPDATE inbox SET processed_at = now() - interval '1 year'`)
	pruner := scenario.NewRelay(t, "pruner", config.With(scenario.Settings{"database.url": r.as("pruner")}))
	if result := pruner.Command("prune"); result.Code != 0 || r.int(`SELECT count(*) FROM inbox`) != 0 {
		t.Errorf("relay prune: %s", result)
	}
	r.refuses("pruner", `INSERT INTO inbox (consumer, message_id) VALUES ('x', gen_random_uuid())`, `UPDATE inbox SET consumer = 'x'`, `SELECT * FROM secrets`, `SELECT * FROM inbox_parked`)
}

// The policies that docs/operations.md shows let the application write and the
// relay publish; without the relay's, it says that it sees nothing.
func TestRowSecurityOfTheRelay(t *testing.T) {
	t.Parallel()
	log := scenario.NewKafkaLog(t)
	r := newRoles(t, log)
	blocks := documentedSQL(t, "operations.md", "Privileges")
	// The block is indented in its list.
	enable, policies, found := strings.Cut(blocks[len(blocks)-1], "CREATE POLICY outbox_relay ")
	if !found {
		t.Fatalf("the last block of SQL has no policies: %s", blocks[len(blocks)-1])
	}
	relays, applications, _ := strings.Cut(policies, ";")
	r.exec("outbox_owner", enable+applications)
	r.insertInEachWay(log.Topics()[0])
	relay := r.relay("relay", "relay", log, nil)
	relay.Start()
	const warning = "rows are hidden from this relay"
	scenario.Await(t, 30*time.Second, "a warning", func() (bool, string) { return len(lines(relay.Log(), warning)) == 1, relay.Log() })
	if result := relay.Command("check"); result.Code != 1 || !strings.Contains(result.Stdout, "row-level security is on and no policy lets this role") {
		t.Errorf("relay check: %s", result)
	}
	if n := r.int(`SELECT count(*) FROM messaging.outbox WHERE published_at IS NULL`); n != 5 {
		t.Errorf("%d rows are pending although the relay cannot see any, want 5", n)
	}
	r.exec("outbox_owner", "CREATE POLICY outbox_relay "+relays)
	scenario.Await(t, 60*time.Second, "the hidden rows to be published", func() (bool, string) {
		return r.int(`SELECT count(*) FROM messaging.outbox WHERE published_at IS NULL`) == 0, relay.Log()
	})
	if result := relay.Command("check"); result.Code != 0 {
		t.Errorf("relay check: %s", result)
	}
	relay.Stop()
	if n := len(lines(relay.Log(), warning)); n != 1 {
		t.Errorf("it warned %d times, want once", n)
	}
	r.refuses("app", `INSERT INTO messaging.outbox (topic, published_at) VALUES ('x', now())`)
}
