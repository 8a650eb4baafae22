package inspect_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/inspect"
	"github.com/outboxrelay/relay/internal/pgtest"
)

// Row-level security may be turned on while the relay runs. It says so once,
// and once that it is over.
func TestRowSecurityIsToldOnce(t *testing.T) {
	db := pgtest.NewOutbox(t)
	role := fmt.Sprintf("relay_%08x", rand.Uint32())
	db.Exec(t, "CREATE ROLE "+role+" LOGIN", "GRANT ALL ON outbox, outbox_parked, outbox_dead_letters TO "+role)
	t.Cleanup(func() {
		if _, err := db.Pool.Exec(context.Background(), "DROP OWNED BY "+role+"; DROP ROLE "+role); err != nil {
			t.Log(err)
		}
	})
	parsed, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	parsed.User = url.User(role)
	pool, err := pgxpool.New(t.Context(), parsed.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	var log bytes.Buffer
	watch := inspect.NewRowSecurityWatch(pool, config.Default(), slog.New(slog.NewTextHandler(&log, nil)))
	for _, step := range []struct {
		sql  string
		want []string
	}{
		{"SELECT", nil},
		{"ALTER TABLE outbox ENABLE ROW LEVEL SECURITY", []string{"level=WARN", "rows are hidden from this relay", "no policy lets this role SELECT", "CREATE POLICY"}},
		{"SELECT", nil},
		{"CREATE POLICY p ON outbox USING (topic = 'orders')", []string{"level=WARN", "decides which rows this role may SELECT"}},
		{"SELECT", nil},
		{"ALTER TABLE outbox DISABLE ROW LEVEL SECURITY", []string{"level=INFO", "no longer hidden"}},
		{"SELECT", nil},
	} {
		db.Exec(t, step.sql)
		log.Reset()
		if err := watch.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, text := range step.want {
			if !strings.Contains(log.String(), text) {
				t.Errorf("after %s: %q is not in the log: %s", step.sql, text, log.String())
			}
		}
		if step.want == nil && log.Len() > 0 || strings.Count(log.String(), "\n") > 1 {
			t.Errorf("after %s it logs: %s", step.sql, log.String())
		}
	}
}
