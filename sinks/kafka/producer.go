package kafka

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

// producer is a producer id and its epoch: the name under which a broker counts
// the records of a partition, so that it appends a batch that is sent twice
// only once.
type producer struct {
	id    int64
	epoch int16
}

// noProducer is sent by producers that are not idempotent.
var noProducer = producer{id: -1, epoch: -1}

// askAgain is how long a broker that does not let this user produce idempotently
// is not asked again: rights are granted while the relay runs.
const askAgain = time.Minute

// producers hands one producer id to all partition writers, and a new one to a
// writer that cannot go on with its own. A writer counts from 0 in each epoch of an
// id, which are its own: no writer ever gets an id again that it had before.
type producers struct {
	cluster *cluster
	logger  *slog.Logger
	// off: the configuration wants none.
	off bool
	// turn lets one writer at a time ask the broker, with a context.
	turn chan struct{}

	mu      sync.Mutex
	current producer
	// refusedUntil is when to ask again a broker that refused; zero while it has
	// not.
	refusedUntil time.Time
}

func newProducers(cluster *cluster, idempotent bool, logger *slog.Logger) *producers {
	return &producers{cluster: cluster, logger: logger, off: !idempotent, turn: make(chan struct{}, 1), current: noProducer}
}

// after returns a producer whose id is not the spent one. It returns noProducer
// where the broker does not let this client be idempotent.
func (s *producers) after(ctx context.Context, spent int64) (producer, error) {
	if s.off {
		return noProducer, nil
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return noProducer, ctx.Err()
	}
	if current, ok := s.known(spent); ok {
		return current, nil
	}
	next, err := s.cluster.initProducer(ctx)
	if err != nil {
		if judge(err).action == actionDowngrade || errors.Is(err, kafkago.UnsupportedVersion) {
			s.refuse(err)
			return noProducer, nil
		}
		return noProducer, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.refusedUntil.IsZero() {
		s.refusedUntil = time.Time{}
		s.logger.Info("kafka: the broker lets this user produce idempotently now", "brokers", s.cluster.name)
	}
	s.current = next
	return next, nil
}

// known returns the producer for a writer without asking the broker, if there is
// one.
func (s *producers) known(spent int64) (producer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().Before(s.refusedUntil) {
		return noProducer, true
	}
	return s.current, s.current.id != spent && s.current != noProducer
}

// refuse has all writers that ask go on without a producer id for a while, and says
// so once.
func (s *producers) refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusedUntil.IsZero() {
		s.logger.Warn("kafka: the broker does not let this user produce idempotently, so that a broken connection can duplicate messages; grant Write on a topic (on brokers before 2.8 IdempotentWrite on the cluster), or set idempotent: false to expect it",
			"brokers", s.cluster.name, "error", err)
	}
	s.refusedUntil, s.current = time.Now().Add(askAgain), noProducer
}

// nextSequence is the sequence after n more records; it wraps as Kafka's does.
func nextSequence(sequence int32, n int) int32 {
	return int32((int64(sequence) + int64(n)) & math.MaxInt32)
}
