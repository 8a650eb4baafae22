package source

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/pgtest"
)

func TestPruningSaysWhatCameOfIt(t *testing.T) {
	db := pgtest.NewOutbox(t)
	db.Exec(t, "INSERT INTO outbox (topic, payload, published_at) VALUES ('a', '', now() - interval '2 hours'), ('a', '', now())")
	pruner := NewPruner(db.Pool, "public", "outbox", time.Hour)
	ended, end := context.WithCancel(t.Context())
	end()
	for _, turn := range []struct {
		name, sql, want string
		ctx             context.Context
	}{
		{name: "a row", sql: "SELECT", want: "rows=1"},
		{name: "nothing", sql: "SELECT"},
		{name: "a stop", sql: "ALTER TABLE outbox RENAME TO gone", ctx: ended},
		{name: "no table", sql: "SELECT", want: "could not be removed"},
	} {
		db.Exec(t, turn.sql)
		var log bytes.Buffer
		ctx := turn.ctx
		if ctx == nil {
			ctx = t.Context()
		}
		pruner.turn(ctx, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		if turn.want == "" && log.Len() > 0 || !strings.Contains(log.String(), turn.want) {
			t.Errorf("%s: logged %q, want %q", turn.name, &log, turn.want)
		}
	}
	if n := db.Int(t, "SELECT count(*) FROM gone"); n != 1 {
		t.Errorf("%d rows are left", n)
	}
}
