package rabbitmq_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

func TestValidate(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*rabbitmq.Config)
		want   []string // what each line begins with
	}{
		{"good", func(*rabbitmq.Config) {}, nil},
		{"no url", func(c *rabbitmq.Config) { c.URL = "" }, []string{"url: missing"}},
		{"both", func(c *rabbitmq.Config) { c.URLFile = "/run/secrets/url" }, []string{"url_file: url is set too"}},
		{"scheme", func(c *rabbitmq.Config) { c.URL = "http://canary@h/" }, []string{"url: it does not begin with amqp:// or amqps://"}},
		{"reserved character", func(c *rabbitmq.Config) { c.URL = "amqp://guest:canary/canary@h:5672/" }, []string{"url: it is not an AMQP URL"}},
		{"space", func(c *rabbitmq.Config) { c.URL = "amqp://guest:canary canary@h:5672/" }, []string{"url: it is not an AMQP URL"}},
		{"percent", func(c *rabbitmq.Config) { c.URL = "amqp://guest:canary%zz@h:5672/" }, []string{"url: it is not an AMQP URL"}},
		{"all at once", func(c *rabbitmq.Config) {
			c.Exchange = strings.Repeat("e", 256)
			c.Order = "fast"
			c.MaxInFlight = 0
			c.TLS.CertFile = "cert.pem"
		}, []string{
			"exchange: the name has 256 bytes", `order: "fast" is not one of strict, pipelined`,
			"max_in_flight: 0 is not between", "tls: cert_file and key_file",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := rabbitmq.Defaults()
			config.URL = "amqp://guest:canary@localhost/"
			test.change(&config)
			err := config.Validate()
			if len(test.want) == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), "canary") {
				t.Errorf("the error shows the password: %v", err)
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(test.want) {
				t.Fatalf("%d errors, want %d: %v", len(lines), len(test.want), err)
			}
			for i, want := range test.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("error %d: %q, want it to begin with %q", i, lines[i], want)
				}
			}
		})
	}
}

func TestURLFile(t *testing.T) {
	config := rabbitmq.Defaults()
	config.URLFile = filepath.Join(t.TempDir(), "url")
	open := func() error {
		publisher, err := rabbitmq.New(config, sinks.Envelope{}, slog.New(slog.DiscardHandler))
		if err == nil {
			err = publisher.Close()
		}
		return err
	}
	if err := open(); err == nil || !strings.HasPrefix(err.Error(), "url_file: ") || !strings.Contains(err.Error(), config.URLFile) {
		t.Errorf("a missing file: %v", err)
	}
	for content, good := range map[string]bool{
		"amqp://guest:canary@localhost:5672/\n": true,
		"amqp://guest:canary/x@localhost:5672/": false,
		"":                                      false,
		"amqp://h/?auth_mechanism=canary":       false,
	} {
		if err := os.WriteFile(config.URLFile, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		err := open()
		if (err == nil) != good {
			t.Errorf("%q: %v", content, err)
		}
		if err != nil && strings.Contains(err.Error(), "canary/") {
			t.Errorf("%q: the error shows the password: %v", content, err)
		}
	}
}
