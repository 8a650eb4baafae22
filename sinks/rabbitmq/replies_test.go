package rabbitmq

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/sinks"
)

// What each reply must mean, independent of the table that decides it.
func TestJudge(t *testing.T) {
	for _, test := range []struct {
		code      int
		text      string
		scope     sinks.Scope
		permanent bool
		reason    string
		exchange  bool
	}{
		{311, "", sinks.ScopeMessage, true, "message_too_large", false},
		{312, "NO_ROUTE", sinks.ScopeMessage, false, "unroutable", false},
		{313, "", sinks.ScopeMessage, false, "unroutable", false},
		{403, "ACCESS_REFUSED - write access to exchange 'x' in vhost '/' refused for user 'u'", sinks.ScopeDestination, false, "access_refused", true},
		{403, "ACCESS_REFUSED - write access to topic 'a.b' in exchange 'x' in vhost '/' refused for user 'u'", sinks.ScopeDestination, false, "access_refused", false},
		{404, "NOT_FOUND - no exchange 'x' in vhost '/'", sinks.ScopeDestination, false, "unknown_exchange", true},
		{405, "", sinks.ScopeDestination, false, "channel", false},
		{406, "PRECONDITION_FAILED - message size 150000 is larger than configured max size 100000", sinks.ScopeMessage, true, "message_too_large", false},
		{406, "PRECONDITION_FAILED - invalid message: {unacceptable_type_in_header,…}", sinks.ScopeMessage, true, "refused", false},
		{406, "PRECONDITION_FAILED - something that a newer broker minds", sinks.ScopeDestination, false, "channel", false},
		{406, "PRECONDITION_FAILED - unknown delivery tag 12", sinks.ScopeDestination, false, "channel", false},
		{504, "", sinks.ScopeDestination, false, "channel", false},
		{541, "INTERNAL_ERROR", sinks.ScopeDestination, false, "channel", false},
		{999, "", sinks.ScopeDestination, false, "channel", false},
	} {
		got := judge(&amqp.Error{Code: test.code, Reason: test.text, Server: true})
		if got.scope != test.scope || got.permanent != test.permanent || got.reason != test.reason || got.exchange != test.exchange {
			t.Errorf("%d %s: %+v, want %+v", test.code, test.text, got, test)
		}
		if got.permanent && got.scope != sinks.ScopeMessage {
			t.Errorf("%d: permanent with scope %s", test.code, got.scope)
		}
	}
}

func TestSizeLimit(t *testing.T) {
	for text, want := range map[string]int64{
		"PRECONDITION_FAILED - message size 150000 is larger than configured max size 100000":       100000,
		"PRECONDITION_FAILED - message size 536870913 is larger than configured max size 536870912": 536870912,
		"PRECONDITION_FAILED - message size 150000 is larger than what is allowed":                  0,
		"PRECONDITION_FAILED - unknown delivery tag 12":                                             0,
	} {
		if got, ok := sizeLimit(&amqp.Error{Code: 406, Reason: text}); ok != (want > 0) || ok && got != want {
			t.Errorf("%s: %d, %t", text, got, ok)
		}
	}
}

var update = flag.Bool("update", false, "write the table of codes into docs/failures.md")

// TestCodesAreDocumented compares the table of the page with the one of the code.
func TestCodesAreDocumented(t *testing.T) {
	const page, begin, end = "../../docs/failures.md", "<!-- rabbitmq codes -->\n", "<!-- end of rabbitmq codes -->\n"
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
		t.Errorf("%s does not say what the code does; run `go test ./sinks/rabbitmq -run TestCodesAreDocumented -update`\n%s", page, want)
	}
}

// codesTable is the table in Markdown.
func codesTable() string {
	var b strings.Builder
	b.WriteString("| code | name | concerns | reason | because |\n|---|---|---|---|---|\n")
	row := func(code string, r ruling) {
		concerns := r.scope.String()
		if r.permanent {
			concerns += ", permanent"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | `%s` | %s |\n", code, r.name, concerns, r.reason, r.why)
	}
	for _, code := range slices.Sorted(maps.Keys(rulings)) {
		row(fmt.Sprint(code), rulings[code])
		switch code {
		case amqp.AccessRefused:
			row(fmt.Sprint(code), topicRefused)
		case amqp.PreconditionFailed:
			row(fmt.Sprint(code), tooLarge)
			row(fmt.Sprint(code), invalid)
		}
	}
	row("…", unlisted)
	return b.String()
}
