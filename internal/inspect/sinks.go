package inspect

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/sinks"
)

// sinkTimeout bounds one question to a broker.
const sinkTimeout = 10 * time.Second

// Sinks reaches every broker and looks for the destinations that the routes
// name, and for those that topics, which may be none, are sent to. It reports
// all findings, in the order of the sinks' names.
func Sinks(ctx context.Context, publishers map[string]sinks.Publisher, routes *route.Table, topics []string) []Finding {
	var findings []Finding
	reached := map[string]bool{}
	var names []string
	for name := range publishers {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		subject := "sink " + name
		if err := Reach(ctx, publishers[name]); err != nil {
			findings = append(findings, Finding{Error, subject, err.Error(), "check the sink's address and credentials, and that the broker runs"})
			continue
		}
		reached[name] = true
		findings = append(findings, Finding{OK, subject, "reached", ""})
	}
	targets, more := destinations(routes, topics)
	findings = append(findings, more...)
	for _, t := range targets {
		if reached[t.sink] {
			findings = append(findings, verify(ctx, publishers[t.sink], t))
		}
	}
	return findings
}

// Reach pings within a bound.
func Reach(ctx context.Context, publisher sinks.Publisher) error {
	ctx, cancel := context.WithTimeout(ctx, sinkTimeout)
	defer cancel()
	return publisher.Ping(ctx)
}

// target is a destination at a sink.
type target struct {
	sink        string
	destination sinks.Destination
}

// destinations lists, each once, where the routes lead as far as it is known
// without rows, and where rows of the topics go.
func destinations(routes *route.Table, topics []string) ([]target, []Finding) {
	var targets []target
	var findings []Finding
	known := map[target]bool{}
	add := func(t target) {
		if !known[t] {
			known[t] = true
			targets = append(targets, t)
		}
	}
	for _, r := range routes.Routes() {
		if name, ok := r.Fixed(); ok {
			add(target{r.Sink(), sinks.Destination{Exchange: r.Exchange(), Name: name}})
		}
	}
	for _, topic := range topics {
		resolved, err := routes.Resolve(topic, "", nil)
		switch {
		case err == nil:
			add(target{resolved.Route.Sink(), sinks.Destination{Exchange: resolved.Exchange, Name: resolved.Destination}})
		case routes.DependsOnType() || (resolved.Route != nil && resolved.Route.DependsOnKey()):
			// The topic alone does not tell where its rows go.
		case resolved.Route == nil:
			findings = append(findings, Finding{Error, "routes", err.Error(), "add a route"})
		default:
			findings = append(findings, Finding{Error, "routes", err.Error(), "correct the route's destination, or the topic that the application writes"})
		}
	}
	return targets, findings
}

func verify(ctx context.Context, publisher sinks.Publisher, t target) Finding {
	ctx, cancel := context.WithTimeout(ctx, sinkTimeout)
	defer cancel()
	subject := fmt.Sprintf("destination %s of sink %s", t.destination.Name, t.sink)
	if t.destination.Exchange != "" {
		subject = fmt.Sprintf("destination %s of exchange %s of sink %s", t.destination.Name, t.destination.Exchange, t.sink)
	}
	err := publisher.Verify(ctx, t.destination)
	if err == nil {
		return Finding{OK, subject, "exists", ""}
	}
	message, remedy := divide(err.Error())
	failure, classified := errors.AsType[*sinks.Error](err)
	switch {
	case remedy != "":
	case classified && failure.Scope == sinks.ScopeSink:
		remedy = "check that the broker runs"
	default:
		remedy = "create it, or correct the route"
	}
	return Finding{Error, subject, message, remedy}
}

// tellsRemedy is how the sinks word what is wrong with a destination: what it is,
// the remedy, and what the broker said.
var tellsRemedy = regexp.MustCompile(`^(.*): ((?:create it|correct the|grant|bind)\b[^()]*?)( \(.*)?$`)

// divide takes the remedy out of a sink's message, which is said once and is
// not the same for what is missing and for what is forbidden.
func divide(message string) (rest, remedy string) {
	parts := tellsRemedy.FindStringSubmatch(message)
	if parts == nil {
		return message, ""
	}
	return parts[1] + parts[3], parts[2]
}
