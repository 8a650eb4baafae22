package e2e_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/kafka"
)

// TestKafkaSecurity runs the Kafka sink against listeners that demand TLS, a
// client certificate, or a user and a password.
func TestKafkaSecurity(t *testing.T) {
	broker := secured.get(t)
	if err := broker.CreateTopic(t.Context(), "orders", 2, nil); err != nil {
		t.Fatal(err)
	}
	passwordFile := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(passwordFile, []byte(servers.KafkaPassword+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const wrongPassword = "wrong-canary-4711"
	encrypted := sinks.TLS{Enabled: true, CAFile: broker.CAFile()}
	mutual := encrypted
	mutual.CertFile, mutual.KeyFile = broker.ClientCertFile(), broker.ClientKeyFile()
	user := func(mechanism, password string) kafka.SASL {
		return kafka.SASL{Mechanism: mechanism, Username: servers.KafkaUser, Password: password}
	}

	for _, test := range []struct {
		name    string
		brokers []string
		tls     sinks.TLS
		sasl    kafka.SASL
		// reason and text are of the error; no reason means success.
		reason string
		text   []string
	}{
		{"plaintext", broker.Brokers(), sinks.TLS{}, kafka.SASL{}, "", nil},
		{"TLS", broker.SSLBrokers(), encrypted, kafka.SASL{}, "", nil},
		{"TLS without verification", broker.SSLBrokers(), sinks.TLS{Enabled: true, InsecureSkipVerify: true}, kafka.SASL{}, "", nil},
		{"TLS by another server name", broker.SSLBrokers(), sinks.TLS{Enabled: true, CAFile: broker.CAFile(), ServerName: "localhost"}, kafka.SASL{}, "", nil},
		{"mutual TLS", broker.MTLSBrokers(), mutual, kafka.SASL{}, "", nil},
		{"PLAIN", broker.SASLSSLBrokers(), encrypted, user("plain", servers.KafkaPassword), "", nil},
		{"SCRAM-SHA-256", broker.SASLSSLBrokers(), encrypted, user("scram-sha-256", servers.KafkaPassword), "", nil},
		{"SCRAM-SHA-512", broker.SASLSSLBrokers(), encrypted, user("scram-sha-512", servers.KafkaPassword), "", nil},
		{"password file", broker.SASLSSLBrokers(), encrypted, kafka.SASL{Mechanism: "scram-sha-512", Username: servers.KafkaUser, PasswordFile: passwordFile}, "", nil},

		{"PLAIN with a wrong password", broker.SASLSSLBrokers(), encrypted, user("plain", wrongPassword),
			"authentication", []string{`the broker refused user "alice"`, "sasl.password"}},
		{"SCRAM-SHA-256 with a wrong password", broker.SASLSSLBrokers(), encrypted, user("scram-sha-256", wrongPassword),
			"authentication", []string{`the broker refused user "alice"`, "sasl.password"}},
		{"SCRAM-SHA-512 with a wrong password", broker.SASLSSLBrokers(), encrypted, user("scram-sha-512", wrongPassword),
			"authentication", []string{`the broker refused user "alice"`, "sasl.password"}},
		{"SASL where there is none", broker.SSLBrokers(), encrypted, user("plain", servers.KafkaPassword),
			"authentication", []string{"the listener does not use SASL"}},
		{"no SASL where it is demanded", broker.SASLSSLBrokers(), encrypted, kafka.SASL{},
			"connection", []string{"the broker closed the connection", "if it wants SASL, set sasl"}},
		{"unknown authority", broker.SSLBrokers(), sinks.TLS{Enabled: true}, kafka.SASL{},
			"tls", []string{"certificate signed by unknown authority", "set tls.ca_file"}},
		{"wrong server name", broker.SSLBrokers(), sinks.TLS{Enabled: true, CAFile: broker.CAFile(), ServerName: "kafka.example"}, kafka.SASL{},
			"tls", []string{"kafka.example", "set tls.server_name"}},
		{"no client certificate where one is demanded", broker.MTLSBrokers(), encrypted, kafka.SASL{},
			"tls", []string{"tls.cert_file and tls.key_file"}},
		{"plaintext where TLS is demanded", broker.SSLBrokers(), sinks.TLS{}, kafka.SASL{},
			"connection", []string{"is TLS misconfigured?", "tls.enabled: true"}},
		{"SASL in plaintext where TLS is demanded", broker.SASLSSLBrokers(), sinks.TLS{}, user("plain", servers.KafkaPassword),
			"connection", []string{"is TLS misconfigured?", "tls.enabled: true"}},
		{"TLS where plaintext is spoken", broker.Brokers(), encrypted, kafka.SASL{},
			"connection", []string{"is TLS misconfigured?", "tls.enabled: false"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := kafka.Defaults()
			config.Brokers, config.TLS, config.SASL = test.brokers, test.tls, test.sasl
			var log strings.Builder
			publisher, err := kafka.New(config, sinks.Envelope{}, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			defer publisher.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			attempts := map[string]error{
				"Ping":   publisher.Ping(ctx),
				"Verify": publisher.Verify(ctx, sinks.Destination{Name: "orders"}),
			}
			if results := publisher.Publish(ctx, []sinks.Message{{Destination: "orders", Key: []byte("k"), Payload: []byte("{}")}}); results != nil {
				attempts["Publish"] = results[0]
			}
			if strings.Contains(log.String(), wrongPassword) {
				t.Error("the password is in the log")
			}
			for what, err := range attempts {
				if test.reason == "" {
					if err != nil {
						t.Errorf("%s: %v", what, err)
					}
					continue
				}
				if err == nil {
					t.Errorf("%s: no error", what)
					continue
				}
				if reason := sinks.ReasonOf(err); reason != test.reason || sinks.ScopeOf(err) != sinks.ScopeSink || sinks.IsPermanent(err) {
					t.Errorf("%s: reason %s, scope %s, permanent %t; want %s, sink, false: %v", what, reason, sinks.ScopeOf(err), sinks.IsPermanent(err), test.reason, err)
				}
				for _, text := range append(test.text, test.brokers[0]) {
					if !strings.Contains(err.Error(), text) {
						t.Errorf("%s: %q is not in the error: %v", what, text, err)
					}
				}
				if strings.Contains(err.Error(), wrongPassword) || strings.Contains(err.Error(), servers.KafkaPassword) {
					t.Errorf("%s: the password is in the error: %v", what, err)
				}
			}
		})
	}
}
