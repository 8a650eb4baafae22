package route

import (
	"fmt"

	"github.com/outboxrelay/relay/internal/route/pattern"
	"github.com/outboxrelay/relay/sinks"
)

// Route is one compiled route. It is immutable.
type Route struct {
	index       int
	sink        string
	isKafka     bool
	exchange    string
	onFailure   Policy
	topic, typ  *pattern.Glob
	destination *pattern.Template
	usesKey     bool
}

// Index is the route's place in the configuration, from 0.
func (r *Route) Index() int { return r.index }

// Sink is the name of the sink that the route sends to.
func (r *Route) Sink() string { return r.sink }

// Exchange is RabbitMQ's exchange; empty means the sink's own.
func (r *Route) Exchange() string { return r.exchange }

// OnFailure is the route's failure policy; empty means the general one.
func (r *Route) OnFailure() Policy { return r.onFailure }

// Template is the destination as it was written, {topic} by default.
func (r *Route) Template() string { return r.destination.String() }

// Matches reports whether the route takes rows of this topic and type that no
// earlier route takes.
func (r *Route) Matches(topic, typ string) bool {
	return r.topic.Match(topic) && r.typ.Match(typ)
}

// Topic returns the only topic that the route matches, when it has no wildcards.
func (r *Route) Topic() (topic string, ok bool) { return r.topic.Literal() }

// DependsOnTopic reports whether rows of different topics may have different
// destinations.
func (r *Route) DependsOnTopic() bool { return r.destination.UsesTopic() }

// DependsOnType reports whether rows of one topic and different types may have
// different destinations within this route.
func (r *Route) DependsOnType() bool { return r.destination.UsesType() }

// DependsOnKey reports whether rows of one topic and type and different keys
// may have different destinations.
func (r *Route) DependsOnKey() bool { return r.usesKey }

// Fixed returns the only destination that the route can have, when it follows
// from the configuration alone: a literal destination, or {topic} of a match
// without wildcards. It is what can be verified before any row is there.
func (r *Route) Fixed() (destination string, ok bool) {
	topic, literalTopic := r.topic.Literal()
	typ, literalType := r.typ.Literal()
	if r.usesKey || r.DependsOnTopic() && !literalTopic || r.DependsOnType() && !literalType {
		return "", false
	}
	return r.destination.Expand(topic, typ, nil), true
}

// target expands the destination for a row. The result shares memory with the
// topic or type it is made of.
func (r *Route) target(topic, typ string, key []byte) (Target, error) {
	destination := r.destination.Expand(topic, typ, key)
	target := Target{Route: r, Destination: destination, Exchange: r.exchange}
	err := validName(destination, r.isKafka)
	if err == nil {
		return target, nil
	}
	// A key may be somebody's name or address: it stays out of errors.
	shown := "the destination"
	if !r.usesKey {
		shown = fmt.Sprintf("the destination %q", destination)
	}
	target.Destination = ""
	return target, &sinks.Error{
		Scope:     sinks.ScopeMessage,
		Permanent: true,
		Reason:    "invalid_destination",
		Err:       fmt.Errorf("%s that routes[%d] makes of topic %q by its template %q %w", shown, r.index, topic, r.Template(), err),
	}
}
