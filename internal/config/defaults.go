package config

import (
	"cmp"
	"reflect"
	"time"

	"github.com/outboxrelay/relay/internal/admin"
	"github.com/outboxrelay/relay/internal/delivery"
	"github.com/outboxrelay/relay/internal/source"
	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/kafka"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// Default returns the configuration that an empty file stands for. It is not
// complete: it has no sink. Every call returns a value of its own.
func Default() *Config {
	return &Config{
		Database:        Database{MaxConnections: 8},
		Outbox:          source.Defaults(),
		Inbox:           Inbox{Schema: "public", Table: "inbox", Retention: 15 * 24 * time.Hour},
		Failures:        delivery.Defaults(),
		Headers:         sinks.StylePlain,
		Source:          "/outbox",
		HTTP:            admin.Defaults(),
		Log:             Log{Level: "info", Format: "auto"},
		ShutdownTimeout: 30 * time.Second,
	}
}

// completeRoutes fills in what routes leave to the defaults.
func (c *Config) completeRoutes() {
	for i := range c.Routes {
		route := &c.Routes[i]
		route.Match.Topic = cmp.Or(route.Match.Topic, "*")
		route.Match.Type = cmp.Or(route.Match.Type, "*")
		route.Destination = cmp.Or(route.Destination, "{topic}")
		route.OnFailure = cmp.Or(route.OnFailure, c.Failures.Policy)
	}
}

// newDefault returns a pointer to what an empty mapping of type t stands for.
func newDefault(t reflect.Type) reflect.Value {
	switch t {
	case reflect.TypeFor[kafka.Config]():
		config := kafka.Defaults()
		return reflect.ValueOf(&config)
	case reflect.TypeFor[rabbitmq.Config]():
		config := rabbitmq.Defaults()
		return reflect.ValueOf(&config)
	}
	return reflect.New(t)
}
