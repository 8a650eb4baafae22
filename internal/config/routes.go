package config

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/outboxrelay/relay/internal/route/pattern"
)

// compiledMatch is what is known of a route when later ones are looked at.
type compiledMatch struct {
	path       string
	topic, typ *pattern.Glob
}

func (d *document) validateRoutes(c *Config) {
	if len(c.Routes) == 0 && len(c.Sinks) > 1 {
		d.errorf("routes", "there are %d sinks (%s) and no routes; add routes that say which rows go where",
			len(c.Sinks), strings.Join(slices.Sorted(maps.Keys(c.Sinks)), ", "))
	}
	var earlier []compiledMatch
	for i, route := range c.Routes {
		path := "routes[" + strconv.Itoa(i) + "]"
		d.validateTarget(path, route, c.Sinks)
		if route.OnFailure != "" {
			d.oneOf(path+".on_failure", route.OnFailure, "park", "dead_letter", "skip")
		}
		topic := d.glob(path+".match.topic", route.Match.Topic)
		typ := d.glob(path+".match.type", route.Match.Type)
		if topic == nil || typ == nil {
			continue
		}
		for _, first := range earlier {
			if first.topic.Covers(topic) && first.typ.Covers(typ) {
				d.errorf(path, "never matches: %s in line %d takes all of its rows; the first match wins, so put the narrower route first", first.path, d.line(first.path))
				break
			}
		}
		earlier = append(earlier, compiledMatch{path, topic, typ})
	}
}

// validateDeadLetter checks where copies of dead letters go like a route that
// is left out where there is no sink.
func (d *document) validateDeadLetter(copies DeadLetter, sinks map[string]Sink) {
	const path = "failures.dead_letter"
	if copies.Sink == "" {
		if copies.Exchange != "" {
			d.errorf(path+".sink", "is missing, and exchange is given; name the sink that copies of dead letters go to")
		}
		return
	}
	d.validateTarget(path, Route{Sink: copies.Sink, Destination: copies.Destination, Exchange: copies.Exchange}, sinks)
}

func (d *document) validateTarget(path string, route Route, sinks map[string]Sink) {
	sink, ok := sinks[route.Sink]
	switch known := slices.Sorted(maps.Keys(sinks)); {
	case route.Sink == "":
		d.errorf(path+".sink", "is missing; name one of the sinks: %s", strings.Join(known, ", "))
	case !ok:
		d.errorf(path+".sink", "%s is not one of the sinks: %s", d.show(path+".sink", route.Sink), strings.Join(known, ", "))
	}
	if sink.Kafka != nil && route.Exchange != "" {
		d.errorf(path+".exchange", "is for RabbitMQ only, and %s is a Kafka sink; remove it", route.Sink)
	}
	if len(route.Exchange) > 255 {
		d.errorf(path+".exchange", "is longer than the 255 bytes that AMQP allows")
	}
	at := path + ".destination"
	template, err := pattern.ParseTemplate(route.Destination)
	if err != nil {
		d.errorf(at, "%s: %v", d.show(at, route.Destination), err)
		return
	}
	check := pattern.ValidKafkaText
	if !template.UsesTopic() && !template.UsesType() && !template.UsesKey() {
		check = pattern.ValidKafkaTopic
	}
	if sink.Kafka != nil && route.Destination != "" {
		if err := check(template.Text()); err != nil {
			d.errorf(at, "%s %v", d.show(at, route.Destination), err)
		}
	}
	if sink.RabbitMQ != nil && len(template.Text()) > 255 {
		d.errorf(at, "is longer than the 255 bytes that AMQP allows")
	}
}

func (d *document) glob(path, source string) *pattern.Glob {
	glob, err := pattern.ParseGlob(source)
	if err != nil {
		d.errorf(path, "%s: %v", d.show(path, source), err)
		return nil
	}
	return glob
}
