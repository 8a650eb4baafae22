package source_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/route/pattern"
	"github.com/outboxrelay/relay/internal/source"
)

// newOutboxIn returns a database of another encoding with an outbox.
func newOutboxIn(t *testing.T, encoding string) *pgtest.Database {
	t.Helper()
	server := os.Getenv(pgtest.Variable)
	if server == "" {
		t.Skip("needs " + pgtest.Variable + "; `make test` provides it")
	}
	admin, err := pgx.Connect(t.Context(), server)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close(context.WithoutCancel(t.Context())) }()
	name := fmt.Sprintf("relay_test_%08x", rand.Uint32())
	if _, err := admin.Exec(t.Context(), `CREATE DATABASE `+name+` ENCODING '`+encoding+`' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'`); err != nil {
		t.Fatal(err)
	}
	parsed, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	parsed.Path = "/" + name
	db := &pgtest.Database{URL: parsed.String()}
	settings, err := pgxpool.ParseConfig(db.URL + "&client_encoding=UTF8")
	if err != nil {
		t.Fatal(err)
	}
	if db.Pool, err = pgxpool.NewWithConfig(t.Context(), settings); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		db.Pool.Close()
		ctx := context.Background()
		if admin, err := pgx.Connect(ctx, server); err == nil {
			_, _ = admin.Exec(ctx, `DROP DATABASE `+name+` WITH (FORCE)`) // goes with the server
			_ = admin.Close(ctx)
		}
	})
	db.Migrate(t, "public", "outbox")
	return db
}

// Text leaves in UTF-8, whatever the database, the role and the URL say.
func TestTextIsUTF8(t *testing.T) {
	for name, test := range map[string]struct{ encoding, role, url string }{
		"LATIN1":            {encoding: "LATIN1"},
		"SQL_ASCII":         {encoding: "SQL_ASCII"},
		"role":              {encoding: "UTF8", role: "WIN1252"},
		"role and database": {encoding: "LATIN1", role: "LATIN1"},
		"URL":               {encoding: "UTF8", url: "&client_encoding=LATIN1"},
		"options":           {encoding: "UTF8", role: "WIN1252", url: "&options=-c%20client_encoding%3DLATIN1"},
	} {
		t.Run(name, func(t *testing.T) {
			db := newOutboxIn(t, test.encoding)
			role := newRole(t, db)
			if test.role != "" {
				db.Exec(t, `ALTER ROLE `+role+` SET client_encoding = `+test.role)
			}
			db.Exec(t, `INSERT INTO outbox (topic, key, type, content_type, headers, payload) VALUES ('enc', 'Müller', 'Größe', 'é', '{"näme": "José"}', '\xff')`)
			c := claimer(poolOf(t, db.URL+test.url, role, nil), nil)
			t.Cleanup(c.Close)
			batch := claim(t, c, source.Exclusion{})
			if batch == nil {
				t.Fatal("nothing is claimed")
			}
			m := batch.Messages()[0]
			expect(t, "message", fmt.Sprintf("%s %s %s %s %s %x", m.Key, m.Type, m.ContentType, m.Headers[0].Name, m.Headers[0].Value, m.Payload), "Müller Größe é näme José ff")
			expect(t, "refused", batch.Refused(0), nil)
			settle(t, batch, all)
		})
	}
}

// A database in SQL_ASCII takes any bytes. Those that are no UTF-8 concern their
// row.
func TestTextThatIsNoUTF8(t *testing.T) {
	db := newOutboxIn(t, "SQL_ASCII")
	role := newRole(t, db)
	for _, columns := range []string{
		`(topic, key) VALUES (E'bad\xff', 'a')`, `(topic, key) VALUES ('t', E'bad\xff')`, `(topic, key, type) VALUES ('t', 'b', E'bad\xff')`,
		`(topic, key, content_type) VALUES ('t', 'c', E'bad\xff')`, `(topic, key, headers) VALUES ('t', 'd', E'{"x": "bad\xff"}')`,
		`(topic, key) VALUES ('t', 'good')`,
	} {
		db.Exec(t, `SET client_encoding = SQL_ASCII`, `INSERT INTO outbox `+columns, `RESET client_encoding`)
	}
	c := claimer(poolOf(t, db.URL, role, nil), nil)
	t.Cleanup(c.Close)
	batch := claim(t, c, source.Exclusion{})
	expect(t, "rows", len(sequences(batch)), 6)
	for i, m := range batch.Messages() {
		if refused := batch.Refused(i); (refused == nil) != (m.Sequence == 6) {
			t.Errorf("row %d: %v", m.Sequence, refused)
		}
	}
	// Its key is parked, and can be found again.
	settle(t, batch, func(i int) source.Verdict {
		if batch.Messages()[i].Sequence == 6 {
			return source.Published
		}
		return source.Retrying
	})
	expect(t, "entries", db.Int(t, `SELECT count(*) FROM outbox_parked`), int64(5))
	db.Exec(t, `UPDATE outbox_parked SET next_retry_at = now()`)
	eventually(t, func() bool {
		batch, err := c.ClaimHeld(t.Context(), source.Exclusion{})
		if err != nil {
			t.Fatal(err)
		}
		if batch != nil {
			settle(t, batch, all)
		}
		return db.Int(t, `SELECT count(*) FROM outbox_parked`) == 0
	})
	if _, err := source.NewEstimator(poolOf(t, db.URL, role, nil), "public", "outbox").Estimate(t.Context()); err != nil {
		t.Error(err)
	}
}

// Nor do they hinder the others where topics are compared as bytes.
func TestFilterOfTextThatIsNoUTF8(t *testing.T) {
	db := newOutboxIn(t, "SQL_ASCII")
	db.Exec(t, `SET client_encoding = SQL_ASCII`, `INSERT INTO outbox (topic) VALUES (E'bad\xff'), ('t'), ('grüße')`, `RESET client_encoding`)
	for glob, want := range map[string]int{"?": 1, "grü*": 1, "grüße": 1, "bad*": 1} {
		compiled, err := pattern.ParseGlob(glob)
		if err != nil {
			t.Fatal(err)
		}
		c := claimer(poolOf(t, db.URL, "postgres", nil), func(o *source.Options) {
			o.Pipeline, o.Filter = glob, func(topic, _ string) string { return compiled.SQL(topic) }
		})
		t.Cleanup(c.Close)
		batch := claim(t, c, source.Exclusion{})
		expect(t, "messages for "+glob, len(sequences(batch)), want)
		batch.Release()
	}
}
