package inspect_test

import (
	"context"
	"errors"
	"testing"

	"github.com/outboxrelay/relay/internal/inspect"
	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/sinks"
)

// place is a sink with some destinations; what the real ones answer is tested
// beside them.
type place struct {
	sinks.Publisher
	away     error
	missing  map[sinks.Destination]error
	verified []sinks.Destination
}

func (p *place) Ping(context.Context) error { return p.away }

func (p *place) Verify(_ context.Context, d sinks.Destination) error {
	p.verified = append(p.verified, d)
	return p.missing[d]
}

func compile(t *testing.T, routes ...route.Config) *route.Table {
	t.Helper()
	table, err := route.Compile(routes, map[string]route.Broker{"main": route.Kafka, "mail": route.RabbitMQ})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func match(topic string) route.Match { return route.Match{Topic: topic} }

func TestSinksVerifyWhatRoutesAndRowsLeadTo(t *testing.T) {
	noTopic := &sinks.Error{Scope: sinks.ScopeDestination, Reason: "unknown_topic", Err: errors.New("no such topic")}
	lost := &sinks.Error{Scope: sinks.ScopeSink, Reason: "connection", Err: errors.New("connection lost")}
	main := &place{missing: map[sinks.Destination]error{{Name: "audit"}: noTopic, {Name: "orders"}: lost}}
	mail := &place{}
	routes := compile(t,
		route.Config{Match: match("mail.*"), Sink: "mail", Exchange: "notifications", Destination: "all-mail"},
		route.Config{Match: match("audit"), Sink: "main"},
		route.Config{Match: match("o*"), Sink: "main"},
	)
	findings := inspect.Sinks(t.Context(), map[string]sinks.Publisher{"main": main, "mail": mail}, routes, []string{"orders", "mail.a", "nowhere"})
	expect(t, findings, inspect.OK, "sink mail: reached", "sink main: reached", "destination all-mail of exchange notifications of sink mail: exists")
	expect(t, findings, inspect.Error,
		`routes: no route matches topic "nowhere"… -> add a route`,
		"destination audit of sink main: no such topic -> create it, or correct the route",
		"destination orders of sink main: connection lost -> check that the broker runs")
	if len(mail.verified) != 1 || len(main.verified) != 2 {
		t.Errorf("verified %v and %v; want each destination once", mail.verified, main.verified)
	}
}

func TestRemedyIsSaidOnce(t *testing.T) {
	const audit = "destination audit of sink main: "
	for message, want := range map[string]string{
		`kafka topic "audit" does not exist, or this user may not describe it: create it, or correct the route ([3] Unknown Topic: it is not there)`:                                                                                                     `kafka topic "audit" does not exist, or this user may not describe it ([3] Unknown Topic: it is not there) -> create it, or correct the route`,
		`kafka topic "audit": this user may not write to it: grant Write and Describe ([29] Topic Authorization Failed)`:                                                                                                                                 `kafka topic "audit": this user may not write to it ([29] Topic Authorization Failed) -> grant Write and Describe`,
		`kafka topic "audit": broker 2 leads partition 0 and advertises 10.0.0.7:9092, where it is not reached from here: correct the broker's advertised.listeners, or open the network to that address (connect: dial tcp 10.0.0.7:9092: i/o timeout)`: `kafka topic "audit": broker 2 leads partition 0 and advertises 10.0.0.7:9092, where it is not reached from here (connect: dial tcp 10.0.0.7:9092: i/o timeout) -> correct the broker's advertised.listeners, or open the network to that address`,
		`queue "audit" does not exist (default exchange): create it, or correct the route's destination`:                                                                                                                                                 `queue "audit" does not exist (default exchange) -> create it, or correct the route's destination`,
		`exchange "audit" is odd (so it is): 50% of it`: `exchange "audit" is odd (so it is): 50% of it -> create it, or correct the route`,
	} {
		missing := &sinks.Error{Scope: sinks.ScopeDestination, Reason: "test", Err: errors.New(message)}
		main := &place{missing: map[sinks.Destination]error{{Name: "audit"}: missing}}
		routes := compile(t, route.Config{Match: match("audit"), Sink: "main"})
		expect(t, inspect.Sinks(t.Context(), map[string]sinks.Publisher{"main": main}, routes, nil), inspect.Error, audit+want)
	}
}

func TestSinksThatAreAwayAreNotAskedFurther(t *testing.T) {
	main, mail := &place{away: errors.New("connection refused")}, &place{}
	routes := compile(t, route.Config{Match: match("audit"), Sink: "main"}, route.Config{Match: match("bell"), Sink: "mail"})
	findings := inspect.Sinks(t.Context(), map[string]sinks.Publisher{"main": main, "mail": mail}, routes, nil)
	expect(t, findings, inspect.Error, "sink main: connection refused -> check the sink's address and credentials, and that the broker runs")
	expect(t, findings, inspect.OK, "sink mail: reached", "destination bell of sink mail: exists")
	if len(main.verified) != 0 {
		t.Errorf("asked for %v", main.verified)
	}
}
