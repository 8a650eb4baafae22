package rabbitmq

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/inbox"
)

func valid() Config {
	return Config{
		URLs: []string{"amqp://guest:guest@localhost/"}, Queue: "orders",
		Inbox: &inbox.Inbox{Consumer: "shipping"}, DB: (*pgxpool.Pool)(nil),
		Handler: func(context.Context, pgx.Tx, inbox.Message) error { return nil },
	}
}

func TestConfig(t *testing.T) {
	if _, err := New(valid()); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"nothing":       {func(c *Config) { *c = Config{} }, []string{"URLs: missing", "Queue: missing", "Inbox: missing", "DB: missing", "Handler, BatchHandler: set exactly one"}},
		"no consumer":   {func(c *Config) { c.Inbox = &inbox.Inbox{} }, []string{"Inbox.Consumer: missing"}},
		"URL":           {func(c *Config) { c.URLs = append(c.URLs, "amqp://u:s3cr%et@h/") }, []string{"URLs[1] is not an AMQP URL"}},
		"scheme":        {func(c *Config) { c.URLs[0] = "http://u:s3cret@h/" }, []string{"URLs[0] does not begin with amqp://"}},
		"queue":         {func(c *Config) { c.Queue = strings.Repeat("q", 256) }, []string{"Queue: the name has 256 bytes"}},
		"both handlers": {func(c *Config) { c.BatchHandler = func(context.Context, pgx.Tx, []inbox.Message) error { return nil } }, []string{"set exactly one"}},
		"prefetch":      {func(c *Config) { c.Prefetch = 65536 }, []string{"Prefetch: 65536 is not between 1 and 65535"}},
		"concurrency":   {func(c *Config) { c.Concurrency = -1 }, []string{"Concurrency: -1"}},
		"attempts":      {func(c *Config) { c.MaxAttempts = -1 }, []string{"MaxAttempts: -1"}},
		"backoff":       {func(c *Config) { c.Backoff = Backoff{Initial: time.Hour} }, []string{"Backoff: "}},
		"multiplier":    {func(c *Config) { c.Backoff = Backoff{Multiplier: 0.5} }, []string{"Backoff: "}},
		"retry":         {func(c *Config) { c.Retry = 7 }, []string{"Retry: 7"}},
		"stop":          {func(c *Config) { c.StopTimeout = -1 }, []string{"StopTimeout: -1ns is negative"}},
		"dead letters":  {func(c *Config) { c.OnPoison = DeadLetter{} }, []string{"OnPoison: DeadLetter names neither"}},
		"arguments":     {func(c *Config) { c.Arguments = map[string]any{"x": struct{}{}} }, []string{"Arguments: "}},
	} {
		t.Run(name, func(t *testing.T) {
			config := valid()
			test.change(&config)
			_, err := New(config)
			if err == nil {
				t.Fatal("it was accepted")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nwant it to contain %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "s3cr") {
				t.Errorf("%v shows a password", err)
			}
		})
	}
}
