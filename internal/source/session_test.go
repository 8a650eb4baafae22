package source_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

// newRole makes a role for a relay on the outbox of the database.
func newRole(t *testing.T, db *pgtest.Database) string {
	t.Helper()
	role := fmt.Sprintf("relay_test_%08x", rand.Uint32())
	db.Exec(t, `CREATE ROLE `+role+` LOGIN`, `GRANT SELECT, UPDATE, DELETE ON outbox TO `+role,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON outbox_parked TO `+role, `GRANT SELECT, INSERT, UPDATE ON outbox_dead_letters TO `+role)
	t.Cleanup(func() {
		for _, sql := range []string{`DROP OWNED BY ` + role, `DROP ROLE ` + role} {
			if _, err := db.Pool.Exec(context.Background(), sql); err != nil {
				t.Error(err)
			}
		}
	})
	return role
}

// poolOf returns a pool of connections as the relay makes them.
func poolOf(t *testing.T, url string, role string, change func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	settings, err := config.Database{URL: url, MaxConnections: 4}.PoolConfig()
	if err != nil {
		t.Fatal(err)
	}
	if role != "" {
		settings.ConnConfig.User = role
	}
	settings.AfterConnect = source.SetUp
	if change != nil {
		change(settings)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// roleSettings are what somebody may have set for a role or a database, for other
// clients than the relay, each by itself or together.
var roleSettings = map[string][]string{
	"statement":           {"statement_timeout = '200ms'"},
	"lock":                {"lock_timeout = '200ms'"},
	"transaction":         {"transaction_timeout = '200ms'"},
	"idle in transaction": {"idle_in_transaction_session_timeout = '200ms'"},
	"idle":                {"idle_session_timeout = '200ms'"},
	"read-only":           {"default_transaction_read_only = on", "default_transaction_isolation = serializable", "default_transaction_deferrable = on"},
	"encoding":            {"client_encoding = LATIN1", "standard_conforming_strings = off", "array_nulls = off"},
	"text": {"bytea_output = escape", "DateStyle = German, DMY", "IntervalStyle = sql_standard",
		"TimeZone = 'Asia/Kathmandu'", "extra_float_digits = '-15'", "quote_all_identifiers = on"},
	"names":  {"search_path = nowhere", "row_security = off", "transform_null_equals = on"},
	"errors": {"exit_on_error = on", "client_min_messages = debug5"},
	"plans": {"plan_cache_mode = force_custom_plan", "work_mem = '64kB'", "enable_indexscan = off", "enable_indexonlyscan = off",
		"enable_nestloop = off", "cursor_tuple_fraction = 1"},
	"commits": {"synchronous_commit = off"},
}

func TestSettingsOfTheRole(t *testing.T) {
	db := pgtest.NewOutbox(t)
	role := newRole(t, db)
	version := db.Int(t, `SELECT current_setting('server_version_num')::int`)
	for _, owner := range []string{"ROLE " + role, "DATABASE " + db.Pool.Config().ConnConfig.Database} {
		for name, settings := range roleSettings {
			t.Run(owner[:4]+" "+name, func(t *testing.T) {
				if name == "transaction" && version < 170000 {
					t.Skip("PostgreSQL 17 has it")
				}
				for _, setting := range settings {
					db.Exec(t, `ALTER `+owner+` SET `+setting)
				}
				defer db.Exec(t, `ALTER `+owner+` RESET ALL`)
				pool := poolOf(t, db.URL, role, nil)
				c := claimer(pool, nil)
				t.Cleanup(c.Close)
				for round := range 2 {
					pause := func() {
						if round == 0 && strings.HasSuffix(settings[0], "'200ms'") {
							time.Sleep(400 * time.Millisecond) // past the bound
						}
					}
					db.Exec(t, `INSERT INTO outbox (topic, key, headers, published_at) VALUES ('t', 'Müller', '{"näme": "José"}', NULL), ('t', 'old', '{}', '2001-02-03')`)
					batch := claim(t, c, source.Exclusion{})
					if batch == nil {
						t.Fatal("nothing is claimed")
					}
					m := batch.Messages()[0]
					expect(t, "key", string(m.Key), "Müller")
					expect(t, "header", fmt.Sprintf("%s=%s", m.Headers[0].Name, m.Headers[0].Value), "näme=José")
					pause() // the broker takes its time
					settle(t, batch, all)
					if batch := claim(t, c, source.Exclusion{}); batch != nil {
						t.Fatal("a row is claimed again")
					}
					deleted, err := source.NewPruner(pool, "public", "outbox", time.Hour).Prune(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					expect(t, "pruned", deleted, int64(1))
					if _, err := source.NewEstimator(pool, "public", "outbox").Estimate(t.Context()); err != nil {
						t.Error(err)
					}
					conn, err := pool.Acquire(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if _, err := source.ReadBacklog(t.Context(), conn.Conn(), "public", "outbox"); err != nil {
						t.Error(err)
					}
					conn.Release()
					pause() // nothing is to do
				}
				expect(t, "pending", db.Int(t, `SELECT count(*) FROM outbox WHERE published_at IS NULL`), int64(0))
				expectNone(t, pool)
			})
		}
	}
}

// expectNone looks for connections that the server has ended.
func expectNone(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	for _, conn := range pool.AcquireAllIdle(t.Context()) {
		if err := conn.Ping(t.Context()); err != nil {
			t.Errorf("an idle connection is gone: %v", err)
		}
		conn.Release()
	}
}
