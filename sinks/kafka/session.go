package kafka

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"

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

// sessions hands one session to all lanes, and a new one to a lane that cannot
// go on with its own. A lane starts to count at 0 in a session, and so must
// never get one that it had before.
type sessions struct {
	cluster *cluster
	logger  *slog.Logger
	// turn lets one lane at a time ask the broker, with a context.
	turn chan struct{}

	mu       sync.Mutex
	current  session
	disabled bool
}

func newSessions(cluster *cluster, logger *slog.Logger) *sessions {
	return &sessions{cluster: cluster, logger: logger, turn: make(chan struct{}, 1), current: noSession}
}

// after returns a session that is not spent, the lane's one so far. It returns
// noSession where the broker does not let this client be idempotent.
func (s *sessions) after(ctx context.Context, spent session) (session, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return noSession, ctx.Err()
	}
	s.mu.Lock()
	current, disabled := s.current, s.disabled
	s.mu.Unlock()
	if disabled || current != spent {
		return current, nil
	}
	next, err := s.cluster.newSession(ctx)
	if code, ok := errors.AsType[kafkago.Error](err); ok {
		switch code {
		case kafkago.ClusterAuthorizationFailed, kafkago.TransactionalIDAuthorizationFailed, kafkago.UnsupportedVersion:
			s.logger.Warn("kafka: the broker does not let this user produce idempotently, so that a broken connection can duplicate messages; grant IdempotentWrite on the cluster",
				"brokers", s.cluster.name, "error", err)
			s.mu.Lock()
			s.disabled, s.current = true, noSession
			s.mu.Unlock()
			return noSession, nil
		}
	}
	if err != nil {
		return noSession, err
	}
	s.mu.Lock()
	s.current = next
	s.mu.Unlock()
	return next, nil
}

// nextSequence is the sequence after n more records; it wraps as Kafka's does.
func nextSequence(sequence int32, n int) int32 {
	return int32((int64(sequence) + int64(n)) & math.MaxInt32)
}
