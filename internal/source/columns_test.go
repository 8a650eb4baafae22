package source_test

import (
	"bytes"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/migrations"
)

// written is JSON that would not survive bytea's escape format.
const written = ` {"path":"C:\\temp", "quote":"\"", "name":"Zoë","name":1.0} `

// payloads of a batch, by topic.
func payloads(batch source.Batch) map[string][]byte {
	found := map[string][]byte{}
	for _, m := range batch.Messages() {
		found[m.Topic] = bytes.Clone(m.Payload)
	}
	return found
}

func TestPayloadJSONIsSentAsWritten(t *testing.T) {
	for _, ordering := range []source.Ordering{source.OrderKey, source.OrderNone, source.OrderTotal} {
		t.Run(string(ordering), func(t *testing.T) {
			db := pgtest.NewOutbox(t)
			db.Exec(t, `ALTER TABLE outbox DISABLE TRIGGER USER`) // of a later release
			if _, err := db.Pool.Exec(t.Context(), `INSERT INTO outbox (topic, key, payload, payload_json) VALUES
				('json', 'a', NULL, $1), ('null', 'b', NULL, 'null'), ('tombstone', 'c', NULL, NULL), ('bytes', 'd', '\x00ff', NULL), ('empty', 'e', '', NULL)`, written); err != nil {
				t.Fatal(err)
			}
			c := claimer(db.Pool, func(o *source.Options) { o.Ordering = ordering })
			batch := claim(t, c, source.Exclusion{})
			got := payloads(batch)
			if string(got["json"]) != written || string(got["null"]) != "null" || got["tombstone"] != nil || string(got["bytes"]) != "\x00\xff" || got["empty"] == nil {
				t.Errorf("payloads %q", got)
			}
			settle(t, batch, all)
		})
	}
}

// TestPayloadJSONCountsTowardsABatch: large JSON does not come as one batch.
func TestPayloadJSONCountsTowardsABatch(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `ALTER TABLE outbox DISABLE TRIGGER USER`,
		`INSERT INTO outbox (topic, payload_json) SELECT 't', to_json(repeat('x', 1000000)) FROM generate_series(1, 20)`)
	c := claimer(db.Pool, func(o *source.Options) { o.Ordering = source.OrderNone })
	if n := len(claim(t, c, source.Exclusion{}).Messages()); n > 9 {
		t.Errorf("a batch of %d MB", n)
	}
}

// TestMigrationOfATableInUse: the claimers of a table without the column go on,
// and read it from the first row on that has it, without a restart.
func TestMigrationOfATableInUse(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `DROP TRIGGER outbox_payload_bytes ON outbox`, `ALTER TABLE outbox DROP COLUMN payload_json`)
	c := claimer(db.Pool, nil)
	for round := range 2 {
		db.Exec(t, `INSERT INTO outbox (topic, key, payload) VALUES ('bytes', 'k', 'x')`)
		batch := claim(t, c, source.Exclusion{})
		if got := payloads(batch); string(got["bytes"]) != "x" {
			t.Errorf("payloads %q", got)
		}
		settle(t, batch, all)

		db.Exec(t, `ALTER TABLE outbox ADD COLUMN payload_json json`)
		if _, err := db.Pool.Exec(t.Context(), `INSERT INTO outbox (topic, key, payload_json) VALUES ('json', 'k', $1)`, written); err != nil {
			t.Fatal(err)
		}
		batch = claim(t, c, source.Exclusion{})
		if got := payloads(batch); string(got["json"]) != written {
			t.Errorf("round %d: payloads %q", round, got)
		}
		settle(t, batch, all)

		// And back, as a restore of an older backup does: an error, and not for ever.
		db.Exec(t, `ALTER TABLE outbox DROP COLUMN payload_json`, `INSERT INTO outbox (topic, payload) VALUES ('bytes', 'x')`)
		if batch, err := c.Claim(t.Context(), source.Exclusion{}); err == nil {
			batch.Release()
			t.Error("a column that is gone was read")
		}
		settle(t, claim(t, c, source.Exclusion{}), all)
	}
}

func TestDeadLetterOfPayloadJSON(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, `DROP TRIGGER outbox_payload_bytes ON outbox`, `ALTER TABLE outbox DROP COLUMN payload_json`)
	c := claimer(db.Pool, nil)
	bury := func(want string) {
		t.Helper()
		settle(t, claim(t, c, source.Exclusion{}), func(int) source.Verdict { return source.Dead })
		var got string
		if err := db.Pool.QueryRow(t.Context(), `DELETE FROM outbox_dead_letters RETURNING convert_from(payload, 'UTF8')`).Scan(&got); err != nil || got != want {
			t.Errorf("the dead letter is %s, want %s (%v)", got, want, err)
		}
	}
	db.Exec(t, `INSERT INTO outbox (topic, key, payload) VALUES ('t', 'k', 'x')`)
	bury("x")
	db.Exec(t, `ALTER TABLE outbox ADD COLUMN payload_json json`)
	if _, err := db.Pool.Exec(t.Context(), `INSERT INTO outbox (topic, key, payload_json) VALUES ('t', 'k', $1)`, written); err != nil {
		t.Fatal(err)
	}
	bury(written)
}

// TestPayloadJSONInEveryEncoding: UTF-8 whatever the database's encoding is, and
// in one without, what the writer sent.
func TestPayloadJSONInEveryEncoding(t *testing.T) {
	server := pgtest.New(t)
	for _, encoding := range []string{"LATIN1", "SQL_ASCII"} {
		t.Run(encoding, func(t *testing.T) {
			name := fmt.Sprintf("%s_%s", strings.TrimPrefix(mustParse(t, server.URL).Path, "/"), strings.ToLower(encoding))
			server.Exec(t, `CREATE DATABASE `+name+` ENCODING '`+encoding+`' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'`)
			defer server.Exec(t, `DROP DATABASE `+name+` WITH (FORCE)`)
			u := mustParse(t, server.URL)
			u.Path = "/" + name
			pool, err := pgxpool.New(t.Context(), u.String())
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			conn, err := pgx.Connect(t.Context(), u.String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close(t.Context()) }()
			if err := (migrations.Target{Schema: "public", Table: "outbox"}).Apply(t.Context(), conn, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Exec(t.Context(), `SET client_encoding = 'UTF8'`); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Exec(t.Context(), `INSERT INTO outbox (topic, payload_json) VALUES ('json', $1::text::json)`, pgx.QueryExecModeExec, written); err != nil {
				t.Fatal(err)
			}
			batch := claim(t, claimer(pool, nil), source.Exclusion{})
			if got := payloads(batch); string(got["json"]) != written {
				t.Errorf("%q", got["json"])
			}
			settle(t, batch, all)
		})
	}
}

func mustParse(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
