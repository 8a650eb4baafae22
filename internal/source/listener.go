package source

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// listenerPing is how often an idle LISTEN connection is tried, since one
	// whose peer vanished stays silent for ever.
	listenerPing = 30 * time.Second
	// listenerRetry is the pause before the connection is made again, where it
	// did not last as long.
	listenerRetry = 5 * time.Second
)

// Listener wakes the relay when a writer notifies the channel that is named as
// the table is. It needs a connection of its own that is no transaction
// pooler's. Polling goes on without it.
type Listener struct {
	Config *pgx.ConnConfig
	Table  string
	// Wake is called at each notification, and after each reconnection; it must
	// not block.
	Wake   func()
	Logger *slog.Logger
}

// Run listens until ctx ends, and logs once per change when it cannot. A
// connection that is lost, as idle ones are to servers and proxies, is made again at once
// and without a word: that is no news as long as it can be.
func (l *Listener) Run(ctx context.Context) {
	listening := true // as far as the log says
	for {
		var since time.Time
		err := l.listen(ctx, func() {
			if !listening {
				l.Logger.Info("listening for notifications again", "channel", l.Table)
			}
			listening, since = true, time.Now()
			l.Wake()
		})
		if ctx.Err() != nil {
			return
		}
		lost := !since.IsZero()
		switch {
		case lost:
			l.Logger.Debug("the connection for notifications was lost; it is made again", "channel", l.Table, "error", err)
			if time.Since(since) > listenerRetry {
				continue
			}
		case listening:
			attributes := []any{"channel", l.Table, "error", err}
			if kind := Explain(err).Kind; kind == "other" || strings.HasPrefix(kind, "sqlstate_") {
				attributes = append(attributes, "remedy", "behind a transaction pooler set database.direct_url, or outbox.notify: false")
			}
			l.Logger.Warn("cannot listen for notifications; polling goes on", attributes...)
			listening = false
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(listenerRetry):
		}
	}
}

// listen returns when the connection is lost or ctx ended.
func (l *Listener) listen(ctx context.Context, ready func()) error {
	conn, err := pgx.ConnectConfig(ctx, l.Config)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing) // the server notices alike
	}()
	// The role's idle_session_timeout would end what waits.
	if err := SetUp(ctx, conn); err != nil {
		return err
	}
	if _, err := conn.PgConn().Exec(ctx, "LISTEN "+pgx.Identifier{l.Table}.Sanitize()).ReadAll(); err != nil {
		return err
	}
	ready()
	for {
		waiting, cancel := context.WithTimeout(ctx, listenerPing)
		err := conn.PgConn().WaitForNotification(waiting)
		timedOut := waiting.Err() != nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			l.Wake()
		case timedOut && !conn.IsClosed():
			pinging, cancel := context.WithTimeout(ctx, listenerRetry)
			err := conn.Ping(pinging)
			cancel()
			if err != nil {
				return err
			}
		default:
			return err
		}
	}
}
