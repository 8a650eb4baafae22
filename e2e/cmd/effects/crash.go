package main

import (
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// crasher watches the database's connections and kills the process after a
// commit, before anything else can happen: when the effect is there and the
// broker has not heard of it.
type crasher struct {
	mu sync.Mutex
	// left is how many commits with effects there are until then; 0: any
	// number.
	left int
	// touched: a handler wrote an effect since the last commit.
	touched bool
}

// newCrasher draws a number of commits from 1 to twice every; 0: it never
// crashes.
func newCrasher(every int, random *rand.Rand) *crasher {
	c := &crasher{}
	if every > 0 {
		c.left = 1 + random.IntN(2*every)
	}
	return c
}

// touch is called by the handler, whose commit is to count. Those of
// duplicates do not: a process that dies before it has done anything new may
// do so for ever.
func (c *crasher) touch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.touched = true
}

// TraceQueryStart implements pgx.QueryTracer.
func (c *crasher) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

// TraceQueryEnd implements pgx.QueryTracer.
func (c *crasher) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	if data.Err == nil && data.CommandTag.String() == "COMMIT" {
		c.committed()
	}
}

func (c *crasher) committed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.touched || c.left == 0 {
		return
	}
	c.touched = false
	if c.left--; c.left == 0 {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // with the lock held, so that no other commit is told of
	}
}
