package source

import (
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// closeLimit is how long ClosePool waits. A server that lives answers in
// milliseconds.
const closeLimit = 2 * time.Second

// ClosePool closes the pool's connections and reports whether all were closed
// in time. One whose peer vanished without a word would keep pgxpool waiting for
// 15 s; past 2 s such connections are left to a goroutine, and to the end of the
// process. All connections have been given back before the call; whoever has
// one still makes it wait likewise.
func ClosePool(pool *pgxpool.Pool) (inTime bool) {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		pool.Close()
	}()
	limit := time.NewTimer(closeLimit)
	defer limit.Stop()
	select {
	case <-closed:
		return true
	case <-limit.C:
		return false
	}
}
