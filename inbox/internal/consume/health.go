package consume

import (
	"context"
	"database/sql"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// pingTimeout bounds the question whether the database answers.
	pingTimeout = 5 * time.Second
	// watchInterval is how often that is asked where no transaction shows it.
	watchInterval = 5 * time.Second
	// stale is after how long without another failure a transaction's failure
	// says nothing any more: its message was left to somebody else.
	stale = time.Minute
)

// Ping asks whether the database answers.
func (r *Runner) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if r.config.SQL != nil {
		tx, err := r.config.SQL.BeginTx(ctx, nil)
		if err == nil {
			_, err = tx.ExecContext(ctx, "SELECT 1")
			_ = tx.Rollback()
		}
		return err
	}
	tx, err := r.config.DB.Begin(ctx)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "SELECT 1")
	// The connection goes back to the pool; an error closes it.
	_ = tx.Rollback(ctx)
	return err
}

// health is whether the database can be used, as far as transactions and the
// watch tell.
type health struct {
	mu sync.Mutex
	// away is when it was last found that it cannot; zero while it can. used is
	// when it was last found that it can.
	away, used time.Time
	// watched says that the watch found away, and not a transaction.
	watched bool
	// up is what the observer was told.
	up bool
}

// Maintain does what a consumer needs beside its messages, until ctx ends: it
// watches the database and prunes the inbox.
func (r *Runner) Maintain(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { r.watch(ctx) })
	if !r.config.KeepPruned {
		return
	}
	running.Go(func() {
		switch db := r.database().(type) {
		case *pgxpool.Pool:
			r.box.KeepPruned(ctx, db, r.config.Logger)
		case *sql.DB:
			r.box.KeepPrunedSQL(ctx, db, r.config.Logger)
		}
	})
}

// watch asks the database now and then, so that the observer knows of an outage
// although there are no messages, until ctx ends. Without an observer it
// returns at once.
func (r *Runner) watch(ctx context.Context) {
	if r.config.Inbox.Observer == nil {
		return
	}
	r.health.mu.Lock()
	r.Observer().DatabaseUp(r.config.Inbox.Consumer, r.health.up)
	r.health.mu.Unlock()
	r.Observer().BreakerOpen(r.config.Inbox.Consumer, r.BreakerOpen())
	r.Observer().Paused(r.config.Inbox.Consumer, len(r.Paused()) > 0)
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		r.look(ctx)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// look asks the database unless transactions have shown lately how it is.
func (r *Runner) look(ctx context.Context) {
	began := time.Now()
	if r.health.shown(began) {
		return
	}
	err := r.Ping(ctx)
	switch {
	case err == nil:
		r.back(began)
	case ctx.Err() != nil:
	case errors.Is(err, context.DeadlineExceeded) && r.exhausted():
		// Handlers that take their time have all connections, and will tell.
	default:
		r.gone(err, true)
	}
}

// exhausted reports whether all of the pool's connections are in use, so that
// a wait for one says nothing about the database.
func (r *Runner) exhausted() bool {
	switch pool := r.database().(type) {
	case interface{ Stat() *pgxpool.Stat }:
		stat := pool.Stat()
		return stat.AcquiredConns() >= stat.MaxConns()
	case interface{ Stats() sql.DBStats }:
		stats := pool.Stats()
		return stats.MaxOpenConnections > 0 && stats.InUse >= stats.MaxOpenConnections
	}
	return false
}

func (r *Runner) database() any {
	if r.config.SQL != nil {
		return r.config.SQL
	}
	return r.config.DB
}

// shown reports whether there is nothing to ask.
func (h *health) shown(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.away.IsZero() {
		return now.Sub(h.used) < watchInterval
	}
	return !h.watched && now.Sub(h.away) < stale
}

// gone and back tell of the beginning and the end of an outage. began is when
// the transaction did: one from before the outage proves nothing.
func (r *Runner) gone(err error, watched bool) {
	h := &r.health
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.away.IsZero() {
		r.config.Logger.Warn("the database cannot be used: messages wait for it, and no attempt is counted", "error", err)
	}
	h.away, h.watched = time.Now(), watched
	if h.up {
		h.up = false
		r.Observer().DatabaseUp(r.config.Inbox.Consumer, false)
	}
}

func (r *Runner) back(began time.Time) {
	h := &r.health
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.away.IsZero() {
		if !began.After(h.away) {
			return
		}
		h.away = time.Time{}
		r.config.Logger.Info("the database can be used again")
	}
	h.used = began
	if !h.up {
		h.up = true
		r.Observer().DatabaseUp(r.config.Inbox.Consumer, true)
	}
}
