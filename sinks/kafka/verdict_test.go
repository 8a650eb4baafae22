package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/outboxrelay/relay/sinks"
)

func TestJudge(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	for _, test := range []struct {
		err  error
		want verdict
	}{
		{kafkago.Error(2), verdict{actionFail, sinks.ScopeSink, "broker", true}},
		{kafkago.Error(3), verdict{actionWait, sinks.ScopeDestination, "unknown_topic", false}},
		{kafkago.Error(5), verdict{actionWait, sinks.ScopeSink, "not_leader", false}},
		{kafkago.Error(6), verdict{actionWait, sinks.ScopeSink, "not_leader", false}},
		{kafkago.Error(7), verdict{actionWait, sinks.ScopeSink, "timeout", true}},
		{kafkago.Error(10), verdict{actionRefuse, sinks.ScopeMessage, "message_too_large", false}},
		{kafkago.Error(17), verdict{actionFail, sinks.ScopeDestination, "invalid_topic", false}},
		{kafkago.Error(18), verdict{actionRefuse, sinks.ScopeMessage, "message_too_large", false}},
		{kafkago.Error(19), verdict{actionWait, sinks.ScopeSink, "not_enough_replicas", false}},
		{kafkago.Error(20), verdict{actionWait, sinks.ScopeSink, "not_enough_replicas", true}},
		{kafkago.Error(29), verdict{actionFail, sinks.ScopeDestination, "unauthorized", false}},
		{kafkago.Error(31), verdict{actionFail, sinks.ScopeDestination, "unauthorized", false}},
		{kafkago.Error(32), verdict{actionRefuse, sinks.ScopeMessage, "invalid_message", false}},
		{kafkago.Error(43), verdict{actionRefuse, sinks.ScopeMessage, "invalid_message", false}},
		{kafkago.Error(45), verdict{actionRenew, sinks.ScopeSink, "producer_id", false}},
		{kafkago.Error(47), verdict{actionRenew, sinks.ScopeSink, "producer_id", false}},
		{kafkago.Error(58), verdict{actionFail, sinks.ScopeSink, "authentication", false}},
		{kafkago.Error(59), verdict{actionRenew, sinks.ScopeSink, "producer_id", false}},
		{kafkago.Error(74), verdict{actionWait, sinks.ScopeSink, "not_leader", false}},
		{kafkago.Error(76), verdict{actionRefuse, sinks.ScopeMessage, "invalid_message", false}},
		{kafkago.Error(87), verdict{actionRefuse, sinks.ScopeMessage, "invalid_message", false}},
		{kafkago.Error(-1), verdict{actionFail, sinks.ScopeSink, "broker", true}},
		{kafkago.Error(12345), verdict{actionFail, sinks.ScopeSink, "broker", true}},
		{fmt.Errorf("wrapped: %w", kafkago.Error(10)), verdict{actionRefuse, sinks.ScopeMessage, "message_too_large", false}},
		{protocol.NewErrNoTopic("t"), verdict{actionWait, sinks.ScopeDestination, "unknown_topic", false}},
		{protocol.NewErrNoPartition("t", 1), verdict{actionWait, sinks.ScopeDestination, "unknown_topic", false}},
		{protocol.NewErrNoLeader("t", 1), verdict{actionWait, sinks.ScopeSink, "no_leader", false}},
		{io.EOF, verdict{actionReconnect, sinks.ScopeSink, "connection", true}},
		{refused, verdict{actionReconnect, sinks.ScopeSink, "connection", true}},
		{context.DeadlineExceeded, verdict{actionReconnect, sinks.ScopeSink, "timeout", true}},
		{os.ErrDeadlineExceeded, verdict{actionReconnect, sinks.ScopeSink, "timeout", true}},
		{errors.New("whatever"), verdict{actionReconnect, sinks.ScopeSink, "connection", true}},
		{&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, verdict{actionFail, sinks.ScopeSink, "tls", false}},
	} {
		if got := judge(test.err); got != test.want {
			t.Errorf("judge(%v) = %+v, want %+v", test.err, got, test.want)
		}
	}
}

func TestNextSequence(t *testing.T) {
	for _, test := range []struct {
		from int32
		n    int
		want int32
	}{{0, 10, 10}, {1<<31 - 11, 10, 1<<31 - 1}, {1<<31 - 1, 1, 0}, {1<<31 - 1, 10, 9}} {
		if got := nextSequence(test.from, test.n); got != test.want {
			t.Errorf("nextSequence(%d, %d) = %d, want %d", test.from, test.n, got, test.want)
		}
	}
}
