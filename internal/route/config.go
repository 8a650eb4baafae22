package route

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/outboxrelay/relay/internal/route/pattern"
	"github.com/outboxrelay/relay/internal/setting"
)

// Config is a route as the configuration file has it: it sends the rows that
// match to a sink.
type Config struct {
	Match Match `yaml:"match"`
	// Sink names an entry of sinks.
	Sink string `yaml:"sink"`
	// Destination is a template of {topic}, {type} and {key}.
	Destination string `yaml:"destination"`
	// Exchange overrides the sink's; RabbitMQ only.
	Exchange string `yaml:"exchange"`
	// OnFailure overrides failures.policy.
	OnFailure Policy `yaml:"on_failure"`
}

// Match holds globs; an empty one matches everything.
type Match struct {
	Topic string `yaml:"topic"`
	Type  string `yaml:"type"`
}

// Policy is what becomes of a message that was refused as often as is allowed,
// or that can never succeed.
type Policy string

// The values of failures.policy and on_failure.
const (
	// Park holds back its key until it gets through or an operator decides.
	Park Policy = "park"
	// DeadLetter moves it to the dead letters; its key goes on.
	DeadLetter Policy = "dead_letter"
	// Skip deletes it; its key goes on.
	Skip Policy = "skip"
)

// Validate returns an error, with the path, of a policy that does not exist.
func (p Policy) Validate(path string) error {
	return setting.OneOf(path, p, Park, DeadLetter, Skip)
}

// Broker is what a sink is of. It decides which destinations there can be.
type Broker string

// The brokers.
const (
	Kafka    Broker = "kafka"
	RabbitMQ Broker = "rabbitmq"
)

// longestShortString is AMQP's bound on the name of an exchange and on a
// routing key.
const longestShortString = 255

// ShadowedError says that a route never matches.
type ShadowedError struct {
	// Path is the route's, Earlier that of the one that takes all of its rows.
	Path, Earlier string
}

func (e *ShadowedError) Error() string {
	return fmt.Sprintf("%s: never matches: %s takes all of its rows; the first match wins, so put the narrower route first", e.Path, e.Earlier)
}

// Compile makes a table of the routes; brokers are the sinks' by their names.
// Without routes the sole sink takes every row under its topic's name.
//
// Its error joins everything that is wrong, each a *setting.Error or a
// *ShadowedError with its path in the configuration.
func Compile(routes []Config, brokers map[string]Broker) (*Table, error) {
	table := &Table{cache: map[cacheKey]resolved{}}
	if len(routes) == 0 {
		names := sorted(brokers)
		if len(names) > 1 {
			return nil, setting.Errorf("routes", "there are %d sinks (%s) and no routes; add routes that say which rows go where", len(names), strings.Join(names, ", "))
		}
		for _, name := range names {
			routes = append(routes, Config{Sink: name})
		}
	}
	var errs []error
	for i, settings := range routes {
		path := fmt.Sprintf("routes[%d]", i)
		route, err := settings.compile(i, path, brokers)
		errs = append(errs, err)
		for _, earlier := range table.routes {
			if route.topic != nil && route.typ != nil && earlier.covers(route) {
				errs = append(errs, &ShadowedError{path, fmt.Sprintf("routes[%d]", earlier.index)})
				break
			}
		}
		table.routes = append(table.routes, route)
		table.usesType = table.usesType || err == nil && (route.DependsOnType() || !route.typ.MatchesAll())
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return table, nil
}

// compile returns the route as far as it could be compiled.
func (c Config) compile(index int, path string, brokers map[string]Broker) (*Route, error) {
	route := &Route{
		index:     index,
		sink:      c.Sink,
		isKafka:   brokers[c.Sink] == Kafka,
		exchange:  c.Exchange,
		onFailure: c.OnFailure,
	}
	var errs [4]error
	if route.destination, errs[0] = c.Template(path, brokers); errs[0] == nil {
		route.usesKey = route.destination.UsesKey()
	}
	if c.OnFailure != "" {
		errs[1] = c.OnFailure.Validate(path + ".on_failure")
	}
	route.topic, errs[2] = parseGlob(path+".match.topic", c.Match.Topic)
	route.typ, errs[3] = parseGlob(path+".match.type", c.Match.Type)
	return route, errors.Join(errs[:]...)
}

func parseGlob(path, source string) (*pattern.Glob, error) {
	glob, err := pattern.ParseGlob(source)
	if err != nil {
		return nil, &setting.Error{Path: path, Value: source, Problem: ": " + err.Error()}
	}
	return glob, nil
}

// covers reports whether r takes all rows of another route. It may miss cases.
func (r *Route) covers(other *Route) bool {
	return r.topic != nil && r.typ != nil && r.topic.Covers(other.topic) && r.typ.Covers(other.typ)
}

// defaultDestination is the template of a route that has none.
const defaultDestination = "{topic}"

// Template compiles the destination, if sink and exchange can be as well. Its
// error joins what is wrong; path is where c is in the configuration.
func (c Config) Template(path string, brokers map[string]Broker) (*pattern.Template, error) {
	var errs []error
	wrong := func(key, format string, arguments ...any) {
		errs = append(errs, setting.Errorf(path+"."+key, format, arguments...))
	}
	broker, known := brokers[c.Sink]
	switch names := strings.Join(sorted(brokers), ", "); {
	case c.Sink == "":
		wrong("sink", "is missing; name one of the sinks: %s", names)
	case !known:
		errs = append(errs, &setting.Error{Path: path + ".sink", Value: c.Sink, Problem: " is not one of the sinks: " + names})
	}
	if broker == Kafka && c.Exchange != "" {
		wrong("exchange", "is for RabbitMQ only, and %s is a Kafka sink; remove it", c.Sink)
	}
	if len(c.Exchange) > longestShortString {
		wrong("exchange", "is longer than the %d bytes that AMQP allows", longestShortString)
	}
	source := c.Destination
	if source == "" {
		source = defaultDestination
	}
	template, err := pattern.ParseTemplate(source)
	if err != nil {
		err = fmt.Errorf(": %w", err)
	} else {
		err = validText(template, broker)
	}
	if err != nil {
		errs = append(errs, &setting.Error{Path: path + ".destination", Value: source, Problem: err.Error()})
	}
	return template, errors.Join(errs...)
}

// validText reports what is wrong with a template whatever a row has, in words
// that follow it.
func validText(template *pattern.Template, broker Broker) error {
	text := template.Text()
	switch {
	case broker == RabbitMQ && len(text) > longestShortString:
		return fmt.Errorf(" is longer than the %d bytes that AMQP allows", longestShortString)
	case broker != Kafka:
		return nil
	}
	check := pattern.ValidKafkaText
	if !template.UsesTopic() && !template.UsesType() && !template.UsesKey() {
		check = pattern.ValidKafkaTopic
	}
	if err := check(text); err != nil {
		return fmt.Errorf(" %w", err)
	}
	return nil
}

func sorted(brokers map[string]Broker) []string { return slices.Sorted(maps.Keys(brokers)) }
