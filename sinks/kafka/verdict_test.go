package kafka

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/outboxrelay/relay/sinks"
)

// What each code must mean, independent of the table that decides it.
func TestJudgeCodes(t *testing.T) {
	const (
		sink        = sinks.ScopeSink
		destination = sinks.ScopeDestination
		partition   = sinks.ScopePartition
		message     = sinks.ScopeMessage
	)
	for _, test := range []struct {
		code   int
		action action
		scope  sinks.Scope
		reason string
		// permanent, appended and moved, as far as they hold.
		flags string
	}{
		{-1, actionFail, partition, "broker", "appended"},
		{2, actionWait, partition, "invalid_message", ""},
		{3, actionWait, destination, "unknown_topic", "moved"},
		{5, actionWait, partition, "no_leader", "moved"},
		{6, actionWait, partition, "not_leader", "moved"},
		{7, actionWait, partition, "timeout", "appended"},
		{8, actionWait, partition, "no_leader", "moved"},
		{9, actionWait, partition, "not_leader", "moved"},
		{10, actionRefuse, message, "message_too_large", "permanent"},
		{13, actionWait, partition, "connection", "appended moved"},
		{14, actionWait, sink, "broker", ""},
		{15, actionWait, sink, "broker", ""},
		{17, actionFail, message, "invalid_topic", "permanent"},
		{18, actionRefuse, message, "message_too_large", "permanent"},
		{19, actionWait, partition, "not_enough_replicas", ""},
		{20, actionWait, partition, "not_enough_replicas", "appended"},
		{29, actionFail, destination, "unauthorized", ""},
		{31, actionDowngrade, destination, "unauthorized", ""},
		{32, actionFail, sink, "invalid_timestamp", ""},
		{33, actionFail, sink, "authentication", ""},
		{34, actionFail, sink, "authentication", ""},
		{43, actionFail, destination, "unsupported", ""},
		{44, actionFail, destination, "policy", ""},
		{45, actionRenew, partition, "producer_id", ""},
		{46, actionRenew, partition, "producer_id", ""},
		{47, actionRenew, partition, "producer_id", ""},
		{49, actionRenew, partition, "producer_id", ""},
		{56, actionWait, partition, "storage", "appended moved"},
		{58, actionFail, sink, "authentication", ""},
		{59, actionRenew, partition, "producer_id", ""},
		{74, actionWait, partition, "not_leader", "moved"},
		{75, actionWait, partition, "not_leader", "moved"},
		{76, actionFail, destination, "compression", ""},
		{87, actionRefuse, message, "invalid_message", "permanent"},
		{90, actionRenew, partition, "producer_id", ""},
		{100, actionWait, destination, "unknown_topic", "moved"},
		// Nobody classified these.
		{1, actionFail, partition, "broker", "appended"},
		{120, actionFail, partition, "broker", "appended"},
		{12345, actionFail, partition, "broker", "appended"},
	} {
		want := verdict{
			action: test.action, scope: test.scope, reason: test.reason,
			permanent: strings.Contains(test.flags, "permanent"), appended: strings.Contains(test.flags, "appended"), moved: strings.Contains(test.flags, "moved"),
		}
		if got := judge(fmt.Errorf("wrapped: %w", kafkago.Error(test.code))); got != want {
			t.Errorf("code %d: %+v, want %+v", test.code, got, want)
		}
	}
}

// What has no code never counts against a message.
func TestJudgeErrors(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	lost := verdict{action: actionReconnect, scope: sinks.ScopeSink, reason: "connection", appended: true, moved: true}
	late := verdict{action: actionReconnect, scope: sinks.ScopeSink, reason: "timeout", appended: true, moved: true}
	for _, test := range []struct {
		err  error
		want verdict
	}{
		{protocol.NewErrNoTopic("t"), verdict{action: actionWait, scope: sinks.ScopeDestination, reason: "unknown_topic", moved: true}},
		{protocol.NewErrNoPartition("t", 1), verdict{action: actionWait, scope: sinks.ScopeDestination, reason: "unknown_topic", moved: true}},
		{protocol.NewErrNoLeader("t", 1), verdict{action: actionWait, scope: sinks.ScopePartition, reason: "no_leader", moved: true}},
		{io.EOF, lost},
		{refused, lost},
		{errors.New("whatever"), lost},
		{context.DeadlineExceeded, late},
		{os.ErrDeadlineExceeded, late},
		{&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, verdict{action: actionFail, scope: sinks.ScopeSink, reason: "tls"}},
	} {
		if got := judge(test.err); got != test.want {
			t.Errorf("judge(%v) = %+v, want %+v", test.err, got, test.want)
		}
	}
}

// Only what the broker refuses for what it is may be permanent, and what was
// refused was not appended.
func TestRulingsAgree(t *testing.T) {
	for code, r := range rulings {
		v := r.verdict
		if want := code == 10 || code == 17 || code == 18 || code == 87; v.permanent != want {
			t.Errorf("%d %s: permanent %t", code, r.name, v.permanent)
		}
		if v.permanent && v.scope != sinks.ScopeMessage {
			t.Errorf("%d %s: permanent with scope %s", code, r.name, v.scope)
		}
		if v.action == actionRefuse && (v.scope != sinks.ScopeMessage || v.appended) {
			t.Errorf("%d %s: refused with scope %s, appended %t", code, r.name, v.scope, v.appended)
		}
		if r.why == "" || v.reason == "" {
			t.Errorf("%d %s: reason %q, because %q", code, r.name, v.reason, r.why)
		}
	}
}

var update = flag.Bool("update", false, "write the table of codes into docs/failures.md")

// TestCodesAreDocumented compares the table of the page with the one of the code.
func TestCodesAreDocumented(t *testing.T) {
	const page, begin, end = "../../docs/failures.md", "<!-- kafka codes -->\n", "<!-- end of kafka codes -->\n"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	documented, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatalf("%s has no %q … %q", page, begin, end)
	}
	want := codesTable()
	if *update {
		if err := os.WriteFile(page, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if documented != want {
		t.Errorf("%s does not say what the code does; run `go test ./sinks/kafka -run TestCodesAreDocumented -update`\n%s", page, want)
	}
}

// codesTable is the table in Markdown.
func codesTable() string {
	var b strings.Builder
	b.WriteString("| code | name | concerns | reason | because |\n|---|---|---|---|---|\n")
	row := func(code string, r ruling) {
		concerns := r.verdict.scope.String()
		if r.verdict.permanent {
			concerns += ", permanent"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | `%s` | %s |\n", code, r.name, concerns, r.verdict.reason, r.why)
	}
	codes := make([]kafkago.Error, 0, len(rulings))
	for code := range rulings {
		codes = append(codes, code)
	}
	slices.Sort(codes)
	for _, code := range codes {
		row(fmt.Sprint(int(code)), rulings[code])
	}
	row("…", unlisted)
	return b.String()
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
