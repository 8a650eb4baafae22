package migrations_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/outboxrelay/relay/internal/pgtest"
)

// before has an outbox that lacks the column payload_json and what came later.
func before(t *testing.T) (*pgtest.Database, *pgx.Conn) {
	t.Helper()
	db := pgtest.New(t)
	var script bytes.Buffer
	if err := public.Print(&script); err != nil {
		t.Fatal(err)
	}
	sql, _, found := strings.Cut(script.String(), "-- Outbox Relay: migration 4 ")
	if !found {
		t.Fatal("there is no migration 4")
	}
	conn := connect(t, db.URL)
	if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatal(err)
	}
	return db, conn
}

// TestPublishOverloads: whatever a payload and a key are given as, exactly one
// function takes it, and an untyped payload is jsonb.
func TestPublishOverloads(t *testing.T) {
	db := pgtest.NewOutbox(t)
	const id = `0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f`
	const written, printed = `{"b":1, "a": "C:\\temp \"x\""}`, `{"a": "C:\\temp \"x\"", "b": 1}`
	for _, test := range []struct{ arguments, key, payload string }{
		{`'t', 'k', 'T', '` + written + `'`, "k", printed},
		{`'t', 'k', 'T', '` + written + `', '{}'`, "k", printed},
		{`topic => 't', key => 'k', type => 'T', payload => '` + written + `'`, "k", printed},
		{`'t'::text, 'k'::text, 'T'::text, '` + written + `'`, "k", printed},
		{`'t'::varchar, 'k'::varchar, 'T'::varchar, '` + written + `'`, "k", printed}, // JDBC's setString, and setObject with Types.OTHER
		{`'t', 'k', 'T', '` + written + `'::jsonb`, "k", printed},
		{`'t', 'k', 'T', '` + written + `'::json`, "k", written},
		{`'t'::varchar, 'k'::varchar, 'T'::varchar, '` + written + `'::json`, "k", written},
		{`topic => 't', key => 'k', type => 'T', payload => '` + written + `'::json, headers => '{}'`, "k", written},
		{`'t', '` + id + `'::uuid, 'T', '` + written + `'`, id, printed},
		{`'t', '` + id + `'::uuid, 'T'::varchar, '` + written + `'::jsonb, '{}'`, id, printed},
		{`'t', '` + id + `'::uuid, 'T', '` + written + `'::json`, id, written},
		{`'t', 42, 'T', '` + written + `'`, "42", printed},
		{`'t', 42::smallint, 'T'::text, '` + written + `'::json`, "42", written},
		{`'t', -9223372036854775808, 'T', '` + written + `'::json, '{}'`, "-9223372036854775808", written},
	} {
		var key, payload string
		err := db.Pool.QueryRow(t.Context(), `WITH published AS (SELECT outbox_publish(`+test.arguments+`) AS id) SELECT id::text FROM published`).Scan(&key)
		if err != nil {
			t.Errorf("outbox_publish(%s): %v", test.arguments, err)
			continue
		}
		err = db.Pool.QueryRow(t.Context(), `SELECT key, coalesce(payload_json::text, convert_from(payload, 'UTF8')) FROM outbox WHERE message_id = $1::text::uuid AND topic = 't' AND type = 'T'`, key).Scan(&key, &payload)
		if err != nil || key != test.key || payload != test.payload {
			t.Errorf("outbox_publish(%s) inserted key %s, payload %s (%v)", test.arguments, key, payload, err)
		}
	}

	conn := connect(t, db.URL)
	for declared, want := range map[string]string{
		"":                                  "{text,text,text,jsonb}",
		"(varchar,varchar,varchar,unknown)": `{"character varying","character varying","character varying",jsonb}`,
		"(unknown,uuid,unknown,unknown)":    "{text,uuid,text,jsonb}",
		"(text,bigint,text,unknown)":        "{text,bigint,text,jsonb}",
		"(varchar,varchar,varchar,json)":    `{"character varying","character varying","character varying",json}`,
		"(text,integer,text,json)":          "{text,integer,text,json}",
	} {
		var got string
		if _, err := conn.Exec(t.Context(), `PREPARE p`+declared+` AS SELECT outbox_publish($1, $2, $3, $4)`, pgx.QueryExecModeExec); err != nil {
			t.Errorf("parameters %s: %v", declared, err)
			continue
		}
		if err := conn.QueryRow(t.Context(), `SELECT parameter_types::text FROM pg_prepared_statements WHERE name = 'p'`, pgx.QueryExecModeExec).Scan(&got); err != nil || got != want {
			t.Errorf("parameters %s became %s, want %s (%v)", declared, got, want, err)
		}
		if _, err := conn.Exec(t.Context(), `DEALLOCATE p`, pgx.QueryExecModeExec); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOnePayload(t *testing.T) {
	db := pgtest.NewOutbox(t)
	_, err := db.Pool.Exec(t.Context(), `INSERT INTO outbox (topic, payload, payload_json) VALUES ('t', '1', '1')`)
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.ConstraintName != "outbox_payload_or_payload_json" {
		t.Errorf("both payloads: %v", err)
	}
	if n := db.Int(t, `SELECT count(*) FROM pg_constraint WHERE conrelid = 'outbox'::regclass AND NOT convalidated`); n != 0 {
		t.Errorf("%d constraints are not validated", n)
	}
}

// TestPayloadMigrationLetsWritersWrite has a transaction that stays open in the
// way. Writers get through all the same, and so does the migration once it ends.
func TestPayloadMigrationLetsWritersWrite(t *testing.T) {
	db, conn := before(t)
	db.Exec(t, `INSERT INTO outbox (topic, payload) SELECT 't', 'x' FROM generate_series(1, 1000)`)
	file := db.Int(t, `SELECT pg_relation_filenode('outbox')::bigint`)
	open, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Rollback(context.Background()) }()
	if _, err := open.Exec(t.Context(), `INSERT INTO outbox (topic) VALUES ('open')`); err != nil {
		t.Fatal(err)
	}
	migrated := make(chan error, 1)
	go func() { migrated <- public.Apply(t.Context(), conn, nil) }()

	// So often that the migration waited for its lock meanwhile.
	writing, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	for writing.Err() == nil {
		select {
		case err := <-migrated:
			t.Fatalf("migrated although a transaction is open: %v", err)
		default:
		}
		within, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		if _, err := db.Pool.Exec(within, `INSERT INTO outbox (topic) VALUES ('t')`); err != nil {
			t.Fatalf("a writer waits behind the migration: %v", err)
		}
		cancel()
	}
	if err := open.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-migrated; err != nil {
		t.Fatal(err)
	}
	if got := db.Int(t, `SELECT pg_relation_filenode('outbox')::bigint`); got != file {
		t.Error("the table was written anew")
	}
}

func TestValidationGoesOnBesideWriters(t *testing.T) {
	db, conn := before(t)
	all, err := public.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if m.Version != 4 {
			continue
		}
		if _, err := conn.PgConn().Exec(t.Context(), m.SQL).ReadAll(); err != nil {
			t.Fatal(err)
		}
	}
	db.Exec(t, `INSERT INTO outbox_migrations (version, name) VALUES (4, 'payload_json')`)
	open, err := db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Rollback(context.Background()) }()
	if _, err := open.Exec(t.Context(), `INSERT INTO outbox (topic) VALUES ('open')`); err != nil {
		t.Fatal(err)
	}
	apply(t, public, conn)
}

// TestPayloadMigrationKeepsWriters: whoever could publish before can afterwards.
func TestPayloadMigrationKeepsWriters(t *testing.T) {
	db, conn := before(t)
	columns, reader := newTestRole(t, db), newTestRole(t, db)
	db.Exec(t,
		`GRANT INSERT (topic, key, type, payload, headers) ON outbox TO `+columns+` WITH GRANT OPTION`,
		`GRANT SELECT (message_id) ON outbox TO `+columns,
		`GRANT SELECT (id, payload) ON outbox TO `+reader)
	definer := newTestRole(t, db)
	publishAs := func(role string) error {
		return pgx.BeginFunc(t.Context(), db.Pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), `SET LOCAL ROLE `+role); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), `SELECT outbox_publish('t', 'k', 'T', '{"a": 1}')`)
			return err
		})
	}
	if err := publishAs(columns); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, `ALTER FUNCTION outbox_publish SECURITY DEFINER`)
	if err := publishAs(definer); err != nil {
		t.Fatal(err)
	}
	apply(t, public, conn)
	if err := publishAs(definer); err != nil {
		t.Errorf("the function is no longer its owner's: %v", err)
	}
	db.Exec(t, `ALTER FUNCTION outbox_publish(text, text, text, jsonb, jsonb) SECURITY INVOKER`)
	if err := publishAs(columns); err != nil {
		t.Errorf("who could insert payload: %v", err)
	}
	if err := publishAs(definer); err == nil {
		t.Error("somebody without a grant could publish")
	}
	var option, reads bool
	err := db.Pool.QueryRow(t.Context(), `SELECT has_column_privilege($1::name, 'outbox', 'payload_json', 'INSERT WITH GRANT OPTION'), has_column_privilege($2::name, 'outbox', 'payload_json', 'SELECT')`, columns, reader).Scan(&option, &reads)
	if err != nil || !option || !reads {
		t.Errorf("grants were not taken over: %t, %t, %v", option, reads, err)
	}
}

func newTestRole(t *testing.T, db *pgtest.Database) string {
	t.Helper()
	role, _ := newRole(t, db)
	return role
}

// TestOlderRelaysReadPayloadJSON: a relay of the release before, which may run
// beside, reads the column payload alone.
func TestOlderRelaysReadPayloadJSON(t *testing.T) {
	db := pgtest.NewOutbox(t)
	const written = ` {"path":"C:\\temp", "name":"Zoë", "n":1.0} `
	db.Exec(t, `INSERT INTO outbox (topic, payload_json) VALUES ('json', '`+written+`')`,
		`INSERT INTO outbox (topic, payload_json) SELECT 'json', '`+written+`'::json FROM generate_series(1, 3)`,
		`SELECT outbox_publish('json', 'k', '', '`+written+`'::json)`,
		`INSERT INTO outbox (topic, payload_json) VALUES ('null', 'null')`,
		`INSERT INTO outbox (topic) VALUES ('tombstone')`,
		`INSERT INTO outbox (topic, payload) VALUES ('bytes', 'x')`)
	for condition, want := range map[string]int64{
		`topic = 'json' AND convert_from(payload, 'UTF8') = '` + written + `'`: 5,
		`topic = 'null' AND payload = 'null'`:                                  1,
		`topic = 'tombstone' AND payload IS NULL`:                              1,
		`topic = 'bytes' AND payload = 'x'`:                                    1,
		`payload_json IS NOT NULL`:                                             0,
	} {
		if n := db.Int(t, `SELECT count(*) FROM outbox WHERE `+condition); n != want {
			t.Errorf("%s: %d rows, want %d", condition, n, want)
		}
	}
}
