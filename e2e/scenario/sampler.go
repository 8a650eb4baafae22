package scenario

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/outbox"
)

// sampleInterval is the time between two looks at the marks.
const sampleInterval = 150 * time.Millisecond

// Sampler checks M while a scenario runs: it reads from the database which rows
// count as published, then the broker's log, where each of them must be.
type Sampler struct {
	stage    *Stage
	cancel   context.CancelFunc
	done     sync.WaitGroup
	looks    int
	verified int
	// reported are the offenders that the test knows of.
	reported map[outbox.UUID]bool
}

// StartSampler begins to look. Stop ends it; the test's end does too.
func (s *Stage) StartSampler() *Sampler {
	ctx, cancel := context.WithCancel(s.t.Context())
	sampler := &Sampler{stage: s, cancel: cancel, reported: map[outbox.UUID]bool{}}
	sampler.done.Go(func() { sampler.run(ctx) })
	s.t.Cleanup(func() {
		cancel()
		sampler.done.Wait()
	})
	return sampler
}

// Stop makes a last look and fails the test if there were none with rows in it.
func (s *Sampler) Stop() {
	t := s.stage.t
	t.Helper()
	s.cancel()
	s.done.Wait()
	if err := s.look(t.Context()); err != nil {
		t.Errorf("look at the marks: %v", err)
	}
	t.Logf("looked %d times at the marks, at %d of them last", s.looks, s.verified)
	if s.verified == 0 {
		t.Error("no row was marked at any look")
	}
}

func (s *Sampler) run(ctx context.Context) {
	for ctx.Err() == nil {
		// A database or broker that a scenario took away: look again later.
		_ = s.look(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(sampleInterval):
		}
	}
}

// look fails the test when a row that is marked is not in the broker.
func (s *Sampler) look(ctx context.Context) error {
	marked, err := s.stage.marked(ctx)
	if err != nil {
		return err
	}
	read := s.stage.Log.Records
	if log, ok := s.stage.Log.(interface {
		AllRecords(ctx context.Context) ([]Record, error)
	}); ok {
		read = log.AllRecords // what is in a queue that nobody reads is there too
	}
	records, err := read(ctx)
	if err != nil {
		return err
	}
	s.looks++
	s.verified = len(marked)
	missing := slices.DeleteFunc(notIn(marked, records), func(id outbox.UUID) bool { return s.reported[id] })
	if len(missing) > 0 {
		for _, id := range missing {
			s.reported[id] = true
		}
		s.stage.t.Errorf("M: %d rows were marked as published while the broker did not have them, such as %v", len(missing), missing[:min(perInvariant, len(missing))])
	}
	return nil
}

// marked are the messages that count as published: those with published_at,
// or, where published rows are deleted, by some relays at least, those of the
// truth that are not pending.
func (s *Stage) marked(ctx context.Context) ([]outbox.UUID, error) {
	sql := `SELECT message_id FROM ` + s.Table + ` WHERE published_at IS NOT NULL`
	if get(s.Config, "outbox.on_published", "mark") == "delete" {
		sql = `SELECT message_id FROM truth t WHERE NOT EXISTS (SELECT FROM ` + s.Table + ` o WHERE o.message_id = t.message_id AND o.id = t.id AND o.published_at IS NULL)`
	}
	rows, err := s.Database.Pool.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (id outbox.UUID, err error) {
		return id, row.Scan((*[16]byte)(&id))
	})
}

func notIn(marked []outbox.UUID, records []Record) (missing []outbox.UUID) {
	there := make(map[outbox.UUID]struct{}, len(records))
	for _, record := range records {
		there[record.MessageID] = struct{}{}
	}
	for _, id := range marked {
		if _, ok := there[id]; !ok {
			missing = append(missing, id)
		}
	}
	return missing
}
