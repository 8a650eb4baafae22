package source_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mutex  sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.buffer.String()
}

const (
	listeningSQL = `SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %' AND pid <> pg_backend_pid()`
	endSQL       = `SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN %' AND pid <> pg_backend_pid()`
)

// A server that ends idle connections, of the role or for all, does not end the
// listener's; what else ends it is no news while it can be made again.
func TestListenerOutlivesBounds(t *testing.T) {
	db := pgtest.NewOutbox(t)
	role := newRole(t, db)
	db.Exec(t, `ALTER ROLE `+role+` SET idle_session_timeout = '150ms'`)
	var log lockedBuffer
	wakes := make(chan struct{}, 100)
	listener := &source.Listener{
		Config: poolOf(t, db.URL, role, nil).Config().ConnConfig, Table: "outbox",
		Wake: func() { wakes <- struct{}{} }, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		listener.Run(ctx)
		close(ended)
	}()
	defer func() {
		stop()
		<-ended
	}()
	<-wakes // it listens
	session := int64(0)
	eventually(t, func() bool { session = db.Int(t, listeningSQL); return session != 0 })
	time.Sleep(500 * time.Millisecond) // past the role's bound
	expect(t, "the session", db.Int(t, listeningSQL), session)
	db.Exec(t, `NOTIFY outbox`)
	<-wakes
	expect(t, "sessions ended", db.Int(t, endSQL), int64(1))
	<-wakes // it listens again
	db.Exec(t, `NOTIFY outbox`)
	<-wakes
	expect(t, "log", log.String(), "")
}

// One line says why it cannot listen.
func TestListenerSaysWhyItCannot(t *testing.T) {
	db := pgtest.NewOutbox(t)
	settings := poolOf(t, db.URL, "", nil).Config().ConnConfig
	settings.Database += "_missing"
	var log lockedBuffer
	listener := &source.Listener{Config: settings, Table: "outbox", Wake: func() {}, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go listener.Run(ctx)
	eventually(t, func() bool { return strings.Count(log.String(), "\n") == 1 })
	if !strings.Contains(log.String(), "does not exist") || strings.Contains(log.String(), "pooler") {
		t.Errorf("log: %s", log.String())
	}
}
