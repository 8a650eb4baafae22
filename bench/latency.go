package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// write inserts rows one by one at the rate, from all writers, numbered from
// first on, and returns when each was committed.
func (b *bench) write(ctx context.Context, s subject, topic string, first, rows int) (map[int]time.Time, error) {
	type written struct {
		commits map[int]time.Time
		err     error
	}
	results := make(chan written, b.writers)
	start := time.Now()
	for w := range b.writers {
		go func() {
			commits, err := b.writeSome(ctx, s, topic, start, first, w, rows)
			results <- written{commits, err}
		}()
	}
	all := map[int]time.Time{}
	var failed error
	for range b.writers {
		r := <-results
		failed = errors.Join(failed, r.err)
		for n, at := range r.commits {
			all[n] = at
		}
	}
	return all, failed
}

// writeSome inserts every so many-th of the rows, each when its time has come
// or, after a slow one, at once.
func (b *bench) writeSome(ctx context.Context, s subject, topic string, start time.Time, first, offset, rows int) (map[int]time.Time, error) {
	conn, err := pgx.Connect(ctx, s.database())
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	commits := make(map[int]time.Time, rows/b.writers+1)
	for i := offset; i < rows; i += b.writers {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(b.rate)))):
		}
		n := first + i
		if _, err := conn.Exec(ctx, s.insertion(), topic, fmt.Sprintf("key-%d", n%b.keys), document(n, b.bytes)); err != nil {
			return nil, err
		}
		commits[n] = time.Now()
	}
	return commits, nil
}
