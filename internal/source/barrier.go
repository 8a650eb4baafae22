package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// endOfLogSQL is what a statement that reads rows asks for, after its snapshot
	// was taken: the commit records of all that it sees lie before it.
	endOfLogSQL = `pg_current_wal_insert_lsn()`
	flushedSQL  = `pg_current_wal_flush_lsn()`

	// unknownEndSQL and unknownFlushedSQL take their places where the server
	// refuses its log's positions: nothing is ever known to be on disk.
	unknownEndSQL     = `'FFFFFFFF/FFFFFFFF'::pg_lsn`
	unknownFlushedSQL = `'0/0'::pg_lsn`

	positionsSQL = `SELECT pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn()`
	recoverySQL  = `SELECT pg_is_in_recovery()`

	// flushMessageSQL writes to the log: a commit waits for the disk only where
	// its transaction wrote something, a transaction id is not enough. It needs no
	// table and works at every wal_level.
	flushMessageSQL = `SELECT pg_logical_emit_message(true, 'outbox-relay', 'flush')`

	// flushRowSQL writes to the log without any function, and with a privilege that
	// the relay has: a row of its own table, taken back before the commit, so that
	// nobody ever sees it and its space is free at once. The id is no other
	// session's.
	flushRowSQL = `
INSERT INTO {parked} (id, message_id, topic, state, attempts, reason, error)
VALUES (-9223372036854775808 + pg_backend_pid(), '00000000-0000-0000-0000-000000000000', '', 'retrying', 0, 'flush', '')`
	flushSavepointSQL = `SAVEPOINT flush`
	flushRollbackSQL  = `ROLLBACK TO SAVEPOINT flush`

	// localSQL makes the commit wait for this server's disk, whatever the role's
	// default, and bounds what a relay that froze leaves behind.
	localSQL = `SELECT set_config('synchronous_commit', 'local', true),
       set_config('idle_in_transaction_session_timeout', '10000', true)`
)

// Barrier waits until rows that were read are on disk.
//
// It exists because visible is not durable: a transaction with
// synchronous_commit = off can be seen before its commit record is on disk, and
// a row published then would be a phantom if the server crashed. Readers note
// the end of the log after their snapshot was taken; every commit that the
// snapshot sees lies before it. Where commits are synchronous the log is mostly
// flushed to there already, and nobody calls Flush.
//
// A server may refuse to say where its log ends. Then every reader calls Flush,
// which needs no position: a commit record that is written after the snapshot
// lies behind those of all commits that it sees, and the log is flushed in order.
//
// A Barrier has one connection, beside the pool's but made as those are: claims
// hold all of the pool's while they wait for it. All methods may be called
// concurrently.
type Barrier struct {
	pool   *pgxpool.Pool
	row    string
	logger *slog.Logger
	// refused is the server's reason not to tell positions, nil where it does.
	refused atomic.Pointer[refusal]
	// asked: refused is known.
	asked atomic.Bool

	mutex  sync.Mutex
	closed bool
	// chosen: refused was known once.
	chosen bool
	// next is the flush that nobody has begun yet: all who come before it begins
	// share it. Those who come later may have read rows that it does not cover.
	next *flushing
	// running is closed when nothing is flushed any more; nil when nothing is.
	running chan struct{}

	// What is below belongs to whoever flushes.
	conn *pgx.Conn
	// expires is when the connection has lived long enough.
	expires time.Time
	// byRow: the server refuses messages in its log; told: the log says so.
	byRow, told bool
}

// refusal is why a server does not do something.
type refusal struct{ err error }

// flushing is a flush that one or more callers wait for.
type flushing struct {
	done chan struct{}
	err  error
}

// NewBarrier returns the barrier of the relay that works with the outbox schema.table. It
// does not connect yet. The logger may be nil.
func NewBarrier(pool *pgxpool.Pool, schema, table string, logger *slog.Logger) *Barrier {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Barrier{pool: pool, row: newStatements(schema, table).expand(flushRowSQL, "", ""), logger: logger}
}

// choose asks, once, whether the server tells its log's positions. The
// connection must have no transaction.
func (b *Barrier) choose(ctx context.Context, conn *pgconn.PgConn) error {
	if b.asked.Load() {
		return nil
	}
	refused, err := askPositions(ctx, conn)
	if errors.Is(err, errStandby) {
		return nil // the claim fails, and says so better
	}
	if err != nil {
		return fmt.Errorf("ask for the log's position: %w", err)
	}
	b.mutex.Lock()
	defer b.mutex.Unlock()
	news := !b.chosen || (refused != nil) != (b.refused.Load() != nil)
	b.chosen = true
	b.refused.Store(nil)
	if refused != nil {
		b.refused.Store(&refusal{refused})
	}
	b.asked.Store(true)
	switch {
	case news && refused != nil:
		b.logger.Info("the server does not tell its log's positions: each claim waits for a commit that flushes the log", "error", refused)
	case news:
		b.logger.Debug("claims compare positions of the server's log, and flush it where it lags")
	}
	return nil
}

// askPositions returns why the server refuses its log's positions, nil where it
// does not.
func askPositions(ctx context.Context, conn *pgconn.PgConn) (refused, err error) {
	err = conn.ExecParams(ctx, positionsSQL, nil, nil, nil, nil).Read().Err
	if err == nil || !isRefused(err) {
		return nil, err
	}
	// A standby refuses them too, until it is promoted.
	result := conn.ExecParams(ctx, recoverySQL, nil, nil, nil, nil).Read()
	if result.Err == nil && string(result.Rows[0][0]) == "t" {
		return nil, fmt.Errorf("%w: %w", errStandby, err)
	}
	return err, nil
}

var errStandby = errors.New("the server is in hot standby")

// isRefused reports whether the server does not let this role call a function,
// has none of the name, or does not support it as it is configured.
func isRefused(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return false
	}
	switch pgErr.Code {
	case "0A000", "42501", "42883", "55000": // feature_not_supported, insufficient_privilege, undefined_function, object_not_in_prerequisite_state
		return true
	}
	return false
}

// doubt makes the next claim ask again where err may come from a position that
// is refused only now.
func (b *Barrier) doubt(err error) {
	if err != nil && isRefused(err) {
		b.asked.Store(false)
	}
}

// statement is a statement that reads rows, for this server.
func (b *Barrier) statement(sql string) string {
	if b.refused.Load() == nil {
		return sql
	}
	return strings.ReplaceAll(sql, endOfLogSQL, unknownEndSQL)
}

// statements are the same for several.
func (b *Barrier) statements(sql []string) []string {
	if b.refused.Load() == nil {
		return sql
	}
	changed := make([]string, len(sql))
	for i := range sql {
		changed[i] = b.statement(sql[i])
	}
	return changed
}

// flushed is the SQL of how far the log is on disk.
func (b *Barrier) flushed() string {
	if b.refused.Load() == nil {
		return flushedSQL
	}
	return unknownFlushedSQL
}

// Flush returns when all that was in the write-ahead log at its call is on disk.
// Calls that come together share a round trip.
func (b *Barrier) Flush(ctx context.Context) error {
	b.mutex.Lock()
	if b.closed {
		b.mutex.Unlock()
		return errBarrierClosed
	}
	if b.next == nil {
		b.next = &flushing{done: make(chan struct{})}
	}
	mine := b.next
	if b.running == nil {
		b.running = make(chan struct{})
		// Ended by the last flush; Close waits for it.
		go b.run(context.WithoutCancel(ctx), b.running)
	}
	b.mutex.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errBarrierClosed = errors.New("the flush barrier is closed")

// run flushes as long as somebody waits for it.
func (b *Barrier) run(ctx context.Context, ended chan struct{}) {
	defer close(ended)
	for {
		b.mutex.Lock()
		turn := b.next
		b.next = nil
		if turn == nil {
			b.running = nil
			b.mutex.Unlock()
			return
		}
		b.mutex.Unlock()
		turn.err = b.flush(ctx)
		close(turn.done)
	}
}

// Close waits a while for a flush under way, and closes the connection.
func (b *Barrier) Close() {
	b.mutex.Lock()
	b.closed = true
	running := b.running
	b.mutex.Unlock()
	if running != nil {
		limit := time.NewTimer(closeLimit)
		defer limit.Stop()
		select {
		case <-running:
		case <-limit.C:
			return // it ends with the process
		}
	}
	b.disconnect()
}

// flush commits a transaction that wrote something, and waits for it. A
// connection that was good for the flush before may have ended since, which says
// nothing about the server.
func (b *Barrier) flush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if time.Now().After(b.expires) {
		b.disconnect()
	}
	if b.conn != nil {
		if err := b.commit(ctx); err == nil {
			return nil
		}
		b.disconnect()
	}
	err := b.connect(ctx)
	if err == nil {
		err = b.commit(ctx)
	}
	if err != nil {
		b.disconnect()
	}
	return err
}

// connect makes the connection as the pool makes its own.
func (b *Barrier) connect(ctx context.Context) error {
	config := b.pool.Config()
	if config.BeforeConnect != nil {
		if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil {
			return fmt.Errorf("connect to the database: %w", err)
		}
	}
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return fmt.Errorf("connect to the database: %w", err)
	}
	b.conn, b.expires = conn, time.Now().Add(config.MaxConnLifetime)
	// Another server may allow what the last one did not, and a role may have
	// been granted it.
	b.byRow = false
	if b.refused.Load() != nil {
		b.asked.Store(false)
	}
	if config.AfterConnect != nil {
		return config.AfterConnect(ctx, conn)
	}
	return nil
}

// disconnect closes the connection, if there is one.
func (b *Barrier) disconnect() {
	if b.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	_ = b.conn.Close(ctx) // the server notices alike
	b.conn = nil
}

// commit flushes by a message in the log, and where that is refused by a row.
func (b *Barrier) commit(ctx context.Context) error {
	if b.byRow {
		return b.write(ctx, flushSavepointSQL, b.row, flushRollbackSQL)
	}
	refused := b.write(ctx, flushMessageSQL)
	if !isRefused(refused) {
		return refused
	}
	if _, err := b.conn.PgConn().Exec(ctx, `ROLLBACK`).ReadAll(); err != nil {
		return err
	}
	if err := b.write(ctx, flushSavepointSQL, b.row, flushRollbackSQL); err != nil {
		return fmt.Errorf("%w; and by a row in place of a message: %w", refused, err)
	}
	b.byRow = true
	if !b.told {
		b.told = true
		b.logger.Info("the server refuses messages in its log: the flush barrier writes a row instead, which it takes back", "error", refused)
	}
	return nil
}

// write commits a transaction of these statements, in one round trip.
func (b *Barrier) write(ctx context.Context, statements ...string) error {
	conn := b.conn.PgConn()
	if _, err := setUp(ctx, conn); err != nil {
		return err
	}
	batch := &pgconn.Batch{}
	batch.ExecParams(readWriteSQL, nil, nil, nil, nil)
	addSettings(conn, batch)
	batch.ExecParams(localSQL, nil, nil, nil, nil)
	for _, sql := range statements {
		batch.ExecParams(sql, nil, nil, nil, nil)
	}
	batch.ExecParams(`COMMIT`, nil, nil, nil, nil)
	_, err := conn.ExecBatch(ctx, batch).ReadAll()
	return err
}

// BarrierWays is how the flush barrier has to work with a server.
type BarrierWays struct {
	// Positions is why the server does not tell its log's positions, Message why
	// it takes no messages in its log, and Row why it takes no row in their place;
	// nil where it does, or where it was not asked because it need not.
	Positions, Message, Row error
}

// AskBarrier finds out how the flush barrier has to work. It leaves nothing
// behind. The connection must have no transaction.
func AskBarrier(ctx context.Context, conn *pgx.Conn, schema, table string) (ways BarrierWays, err error) {
	pg := conn.PgConn()
	if ways.Positions, err = askPositions(ctx, pg); err != nil {
		return ways, err
	}
	try := func(sql string) error {
		batch := &pgconn.Batch{}
		batch.ExecParams(readWriteSQL, nil, nil, nil, nil)
		batch.ExecParams(localSQL, nil, nil, nil, nil) // or the role's bounds may end it before it is rolled back
		batch.ExecParams(sql, nil, nil, nil, nil)
		_, err := pg.ExecBatch(ctx, batch).ReadAll()
		_, rollbackErr := pg.Exec(ctx, `ROLLBACK`).ReadAll()
		return errors.Join(err, rollbackErr)
	}
	if ways.Message = try(flushMessageSQL); ways.Message == nil {
		return ways, nil
	}
	if !isRefused(ways.Message) {
		return ways, ways.Message
	}
	ways.Row = try(newStatements(schema, table).expand(flushRowSQL, "", ""))
	return ways, nil
}
