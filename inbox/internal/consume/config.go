package consume

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/inbox"
)

// Config is what a Runner needs: the settings of both consumers, which have the
// same names there, with their defaults filled in.
type Config struct {
	Inbox *inbox.Inbox
	// DB with one of Handler and BatchHandler.
	DB           inbox.Beginner
	Handler      inbox.Handler
	BatchHandler inbox.BatchHandler
	// SQL with one of SQLHandler and SQLBatchHandler.
	SQL             inbox.SQLBeginner
	SQLHandler      inbox.SQLHandler
	SQLBatchHandler inbox.SQLBatchHandler
	// Timeout ends the handler's context; none where it is not positive. What
	// comes before and after the handler, such as the wait for a connection of
	// the pool or for another transaction with the same message, has
	// databaseTime beside it: a slow database takes nothing of the handler's
	// time, so that it never makes a message fail.
	Timeout time.Duration
	// Concurrency and BatchSize bound the workers of a queue, and what each
	// takes at a time.
	Concurrency, BatchSize int

	MaxAttempts      int
	Backoff          Backoff
	BreakerThreshold int
	// Patience is how long a message waits in place for the database, 0 for
	// ever; then its queue is halted by ErrDatabaseAway.
	Patience time.Duration
	// DeadLetter puts a message aside and says where it is; nil parks it in the
	// database.
	DeadLetter func(ctx context.Context, item *Item, failure Failure) (where string, err error)

	// KeepPruned has Maintain prune the inbox.
	KeepPruned bool

	// Group is the Kafka consumer group; empty elsewhere.
	Group  string
	Logger *slog.Logger
}

func (c *Config) prunable() bool {
	_, pool := c.DB.(*pgxpool.Pool)
	_, db := c.SQL.(*sql.DB)
	return pool || db
}

func (c *Config) batched() bool { return c.BatchHandler != nil || c.SQLBatchHandler != nil }

// BreakerThreshold is the default of Config.BreakerThreshold.
const BreakerThreshold = 3

// Check reports what cannot be, by the names of the settings.
func (c *Config) Check() error {
	var faults []error
	fault := func(format string, arguments ...any) { faults = append(faults, fmt.Errorf(format, arguments...)) }
	switch {
	case c.Inbox == nil:
		fault("Inbox: missing")
	case c.Inbox.Consumer == "":
		fault("Inbox.Consumer: missing: name the consumer")
	}
	wantsSQL := c.SQLHandler != nil || c.SQLBatchHandler != nil
	switch {
	case c.DB == nil && c.SQL == nil:
		fault("DB: missing: set a *pgxpool.Pool, or SQL to a *sql.DB")
	case c.DB != nil && c.SQL != nil:
		fault("DB, SQL: set exactly one of them")
	case wantsSQL != (c.SQL != nil):
		fault("Handler and BatchHandler go with DB, SQLHandler and SQLBatchHandler with SQL")
	}
	if c.KeepPruned && !c.prunable() {
		fault("KeepPruned: needs a DB that is a *pgxpool.Pool, or a SQL that is a *sql.DB: let it be, or prune by `relay prune`")
	}
	handlers := 0
	for _, set := range [...]bool{c.Handler != nil, c.BatchHandler != nil, c.SQLHandler != nil, c.SQLBatchHandler != nil} {
		if set {
			handlers++
		}
	}
	if handlers != 1 {
		fault("Handler, BatchHandler: set exactly one of them, or one of SQLHandler and SQLBatchHandler")
	}
	for _, number := range [...]struct {
		name           string
		value, highest int
	}{
		{"Concurrency", c.Concurrency, math.MaxUint16}, {"BatchSize", c.BatchSize, math.MaxUint16}, {"MaxAttempts", c.MaxAttempts, math.MaxInt32},
	} {
		if number.value < 1 || number.value > number.highest {
			fault("%s: %d is not between 1 and %d", number.name, number.value, number.highest)
		}
	}
	if b := c.Backoff; b.Initial < 0 || b.Max < b.Initial || b.Multiplier < 1 || b.Jitter > 1 {
		fault("Backoff: %+v: Initial must not be negative or more than Max, Multiplier not less than 1, Jitter not more than 1", b)
	}
	return errors.Join(faults...)
}
