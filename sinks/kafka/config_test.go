package kafka

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/sinks"
)

func TestValidate(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Config)
		// want are the errors, in order; none: valid.
		want []string
	}{
		{"defaults with a broker", func(*Config) {}, nil},
		{"no broker", func(c *Config) { c.Brokers = nil }, []string{"brokers: is missing"}},
		{"bad brokers", func(c *Config) {
			c.Brokers = []string{"a:1", "localhost", ":9092", "b:0", "b:99999", "kafka://b:1", "[::1]:9092"}
		},
			[]string{`brokers[1]: "localhost" is not host:port`, `brokers[2]: ":9092"`, `brokers[3]: "b:0"`, `brokers[4]: "b:99999"`, `brokers[5]: "kafka://b:1"`}},
		{"compression", func(c *Config) { c.Compression = "brotli" }, []string{`compression: "brotli" is not known`}},
		{"every codec", func(c *Config) { c.Compression = "zstd" }, nil},
		{"sizes", func(c *Config) { c.MaxMessageBytes = 10 }, []string{"max_message_bytes: 10 is out of range"}},
		{"half a certificate", func(c *Config) { c.TLS = sinks.TLS{Enabled: true, CertFile: "a"} }, []string{"tls: cert_file and key_file go together"}},
		{"TLS settings without TLS", func(c *Config) { c.TLS.CAFile = "a" }, []string{"tls.enabled: is false"}},
		{"a password without mechanism", func(c *Config) { c.SASL.Password = "canary" }, []string{"sasl.mechanism: is missing"}},
		{"an unknown mechanism", func(c *Config) { c.SASL = SASL{Mechanism: "gssapi", Username: "u", Password: "canary"} }, []string{`sasl.mechanism: "gssapi" is not known`}},
		{"a mechanism alone", func(c *Config) { c.SASL.Mechanism = "plain" }, []string{"sasl.username: is missing", "sasl.password: is missing"}},
		{"two passwords", func(c *Config) {
			c.SASL = SASL{Mechanism: "scram-sha-512", Username: "u", Password: "canary", PasswordFile: "f"}
		}, []string{"sasl.password_file: password is given too"}},
		{"all at once", func(c *Config) { c.Brokers, c.Compression, c.SASL.Mechanism = nil, "x", "y" },
			[]string{"brokers: ", "compression: ", "sasl.mechanism: ", "sasl.username: ", "sasl.password: "}},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := Defaults()
			config.Brokers = []string{"localhost:9092"}
			test.change(&config)
			var got []string
			if err := config.Validate(); err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if len(got) != len(test.want) {
				t.Fatalf("errors %q, want %q", got, test.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], test.want[i]) {
					t.Errorf("error %q, want one that begins with %q", got[i], test.want[i])
				}
				if strings.Contains(got[i], "canary") {
					t.Errorf("the password is in %q", got[i])
				}
			}
		})
	}
}

func TestPasswordFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	config := Defaults()
	config.Brokers = []string{"localhost:9092"}
	config.SASL = SASL{Mechanism: "scram-sha-256", Username: "u", PasswordFile: file}
	if _, err := New(config, sinks.Envelope{}, nil); err == nil || !strings.HasPrefix(err.Error(), "sasl.password_file: ") {
		t.Errorf("New without the file: %v", err)
	}
	if err := os.WriteFile(file, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(config, sinks.Envelope{}, nil); err == nil || !strings.HasPrefix(err.Error(), "sasl.password_file: ") {
		t.Errorf("New with an empty file: %v", err)
	}
	if err := os.WriteFile(file, []byte("canary\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	publisher, err := New(config, sinks.Envelope{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := publisher.Close(); err != nil {
		t.Error(err)
	}
}

func TestEnvelopeIsChecked(t *testing.T) {
	config := Defaults()
	config.Brokers = []string{"localhost:9092"}
	if _, err := New(config, sinks.Envelope{Style: "avro"}, nil); err == nil || !strings.HasPrefix(err.Error(), "headers: ") {
		t.Errorf("New with an unknown style: %v", err)
	}
	if _, err := New(config, sinks.Envelope{Style: sinks.StyleCloudEvents}, nil); err == nil || !strings.HasPrefix(err.Error(), "source: ") {
		t.Errorf("New with CloudEvents and no source: %v", err)
	}
}
