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

// session is a producer id and its epoch: the name under which a broker counts
// the records of a partition, so that it appends a batch that is sent twice
// only once.
type session struct {
	id    int64
	epoch int16
}

// noSession is sent by producers that are not idempotent.
var noSession = session{id: -1, epoch: -1}

// askAgain is how long a broker that does not let this user produce idempotently
// is not asked again: rights are granted while the relay runs.
const askAgain = time.Minute

// sessions hands one producer id to all lanes, and a new one to a lane that cannot
// go on with its own. A lane counts from 0 in each epoch of a producer id, which
// are its own: no lane ever gets an id again that it had before.
type sessions struct {
	cluster *cluster
	logger  *slog.Logger
	// off: the configuration wants none.
	off bool
	// turn lets one lane at a time ask the broker, with a context.
	turn chan struct{}

	mu      sync.Mutex
	current session
	// refusedUntil is when to ask again a broker that refused; zero while it has
	// not.
	refusedUntil time.Time
}

func newSessions(cluster *cluster, idempotent bool, logger *slog.Logger) *sessions {
	return &sessions{cluster: cluster, logger: logger, off: !idempotent, turn: make(chan struct{}, 1), current: noSession}
}

// after returns a session with a producer id that is not the spent one. It
// returns noSession where the broker does not let this client be idempotent.
func (s *sessions) after(ctx context.Context, spent int64) (session, error) {
	if s.off {
		return noSession, nil
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return noSession, ctx.Err()
	}
	if current, ok := s.known(spent); ok {
		return current, nil
	}
	next, err := s.cluster.newSession(ctx)
	if err != nil {
		if judge(err).action == actionDowngrade || errors.Is(err, kafkago.UnsupportedVersion) {
			s.refuse(err)
			return noSession, nil
		}
		return noSession, err
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

// known returns the session for a lane without asking the broker, if there is one.
func (s *sessions) known(spent int64) (session, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Now().Before(s.refusedUntil) {
		return noSession, true
	}
	return s.current, s.current.id != spent && s.current != noSession
}

// refuse has all lanes that ask go on without a session for a while, and says so
// once.
func (s *sessions) refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusedUntil.IsZero() {
		s.logger.Warn("kafka: the broker does not let this user produce idempotently, so that a broken connection can duplicate messages; grant Write on a topic (on brokers before 2.8 IdempotentWrite on the cluster), or set idempotent: false to expect it",
			"brokers", s.cluster.name, "error", err)
	}
	s.refusedUntil, s.current = time.Now().Add(askAgain), noSession
}

// nextSequence is the sequence after n more records; it wraps as Kafka's does.
func nextSequence(sequence int32, n int) int32 {
	return int32((int64(sequence) + int64(n)) & math.MaxInt32)
}
