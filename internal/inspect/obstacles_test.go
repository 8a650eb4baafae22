package inspect_test

import (
	"testing"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/inspect"
	"github.com/outboxrelay/relay/internal/pgtest"
)

const setUpdatedAt = `CREATE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.updated_at = now(); RETURN NEW; END $$;
	CREATE TRIGGER set_updated_at BEFORE UPDATE ON outbox FOR EACH ROW EXECUTE FUNCTION set_updated_at()`

func TestWhatIsInTheWay(t *testing.T) {
	deleting := func(c *config.Config) { c.Outbox.OnPublished = "delete" }
	deadLetters := func(c *config.Config) { c.Outbox.Retention, c.Failures.Policy = 0, "dead_letter" }
	neither := func(c *config.Config) { c.Outbox.Retention = 0 }
	const table, ids = `table "public"."outbox": `, `ids of "public"."outbox": `
	for _, test := range []struct {
		name, sql        string
		change           func(*config.Config)
		errors, warnings []string
	}{
		{"nothing", ``, nil, nil, nil},
		{
			"a trigger on all updates", setUpdatedAt, nil,
			[]string{table + `a row cannot be marked: …no field "updated_at"… -> let the trigger`},
			[]string{table + `trigger set_updated_at runs whenever rows are marked… -> DROP TRIGGER "set_updated_at" ON "public"."outbox"…published_at`},
		},
		{
			"a trigger on another column", `CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$;
				CREATE TRIGGER f BEFORE UPDATE OF topic ON outbox FOR EACH ROW EXECUTE FUNCTION f();
				CREATE TRIGGER g AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION f(); ALTER TABLE outbox DISABLE TRIGGER g`, nil, nil, nil,
		},
		{
			"a trigger that loses updates", `CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
				CREATE TRIGGER f BEFORE UPDATE ON outbox FOR EACH ROW EXECUTE FUNCTION f()`, neither,
			[]string{table + "a row that was to be marked was not, without an error -> let the trigger"}, []string{table + "trigger f…"},
		},
		{
			"a trigger at the commit", `CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'at last'; END $$;
				CREATE CONSTRAINT TRIGGER f AFTER UPDATE ON outbox DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION f()`, neither,
			[]string{table + "a row cannot be marked: …at last… -> …"}, []string{table + "trigger f…"},
		},
		{
			"a trigger on deletes", `CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$;
				CREATE TRIGGER f BEFORE DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION f()`, deleting,
			nil, []string{table + "trigger f runs whenever rows are deleted…published again…"},
		},
		{"a trigger on deletes where nothing is deleted", `CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$;
				CREATE TRIGGER f BEFORE DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION f()`, neither, nil, nil},
		{
			"a rule instead of updates", `CREATE RULE r AS ON UPDATE TO outbox DO INSTEAD NOTHING`, nil,
			[]string{table + `rule r takes the place of every mark… -> DROP RULE "r" ON "public"."outbox"`, table + "…"}, nil,
		},
		{
			"a foreign key, deleting", `CREATE TABLE shipments (outbox_id bigint REFERENCES outbox); INSERT INTO shipments SELECT id FROM outbox`, deleting,
			[]string{table + "a row cannot be deleted: …shipments… -> …"},
			[]string{table + `foreign key shipments_outbox_id_fkey of shipments…published again… -> ALTER TABLE shipments DROP CONSTRAINT "shipments_outbox_id_fkey"…CASCADE…`},
		},
		{
			"a foreign key, dead letters", `CREATE TABLE shipments (outbox_id bigint REFERENCES outbox ON DELETE RESTRICT)`, deadLetters,
			nil, []string{table + `foreign key shipments_outbox_id_fkey…dead letter… -> …`},
		},
		{"a foreign key that cascades", `CREATE TABLE shipments (outbox_id bigint REFERENCES outbox ON DELETE CASCADE)`, deleting, nil, nil},
		{
			"a check that forbids", `ALTER TABLE outbox ADD CONSTRAINT "never!" CHECK (published_at IS NULL)`, nil,
			[]string{table + `a row cannot be marked: …never!… -> …`}, []string{table + `constraint never!, …is about published_at… -> …"never!"…`},
		},
		{
			"further columns", `ALTER TABLE outbox ADD COLUMN tenant text, ADD COLUMN size int DEFAULT 0`, nil, nil,
			[]string{table + `the relay does not know "tenant", "size": …`},
		},
		{
			"a column that must be filled", `ALTER TABLE outbox ADD COLUMN x int; UPDATE outbox SET x = 0; ALTER TABLE outbox ALTER COLUMN x SET NOT NULL`, nil, nil,
			[]string{table + `the relay does not know "x", NOT NULL…dead retry… -> ALTER TABLE "public"."outbox" ALTER COLUMN "x" SET DEFAULT…`},
		},
		{
			"a column of the dead letters that must be filled", `ALTER TABLE outbox_dead_letters ADD COLUMN x int NOT NULL`, nil,
			[]string{`table "public"."outbox_dead_letters": …column x… -> ALTER TABLE "public"."outbox_dead_letters" ALTER COLUMN "x" SET DEFAULT…`}, nil,
		},
		{"identity always", `ALTER TABLE outbox ALTER COLUMN id SET GENERATED ALWAYS`, nil, nil, nil},
		{
			"a cache", `ALTER SEQUENCE outbox_id_seq CACHE 50`, nil, nil,
			[]string{ids + "sequence outbox_id_seq has CACHE 50…another order… -> ALTER SEQUENCE outbox_id_seq CACHE 1"},
		},
		{"a cache without an order", `ALTER SEQUENCE outbox_id_seq CACHE 50`, func(c *config.Config) { c.Outbox.Ordering = "none" }, nil, nil},
		{
			"an ORM's pool", `ALTER SEQUENCE outbox_id_seq INCREMENT BY 50`, nil, nil,
			[]string{ids + "sequence outbox_id_seq has INCREMENT BY 50… -> ALTER SEQUENCE outbox_id_seq INCREMENT BY 1…allocationSize = 1"},
		},
		{
			"a sequence of another name", `CREATE SEQUENCE "Ids" CACHE 10; ALTER TABLE outbox ALTER COLUMN id DROP IDENTITY; ALTER TABLE outbox ALTER COLUMN id SET DEFAULT nextval('"Ids"')`, nil, nil,
			[]string{ids + `sequence "Ids" has CACHE 10…`},
		},
		{
			"no sequence", `ALTER TABLE outbox ALTER COLUMN id DROP IDENTITY`, nil, nil,
			[]string{ids + "column id has no sequence… -> …IDENTITY…"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			db.Exec(t, `INSERT INTO outbox (topic, key) VALUES ('t', 'k')`, test.sql)
			c := settings(t, db.URL, "")
			c.Outbox.Notify = false
			if test.change != nil {
				test.change(c)
			}
			findings := look(t, c)
			expect(t, findings, inspect.Error, test.errors...)
			expect(t, findings, inspect.Warning, test.warnings...)
			if n := db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`); n != 1 {
				t.Errorf("%d rows are pending afterwards", n)
			}
		})
	}
}

// Without a row, or with one that somebody has locked, nothing is tried.
func TestNothingToTry(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, setUpdatedAt)
	c := settings(t, db.URL, "")
	expect(t, look(t, c), inspect.Error)
	db.Exec(t, `INSERT INTO outbox (topic) VALUES ('t')`)
	tx, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `SELECT FROM outbox FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	expect(t, look(t, c), inspect.Error)
}
