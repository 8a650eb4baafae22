package e2e_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// TestRabbitMQSinkSecurity connects in every right and wrong way to a node
// with a plain and a TLS listener. Each wrong way has a message of its own
// that names the remedy, and none shows the password.
func TestRabbitMQSinkSecurity(t *testing.T) {
	t.Parallel()
	node := startRabbit(t, servers.RabbitMQOptions{TLS: true})
	other := filepath.Join(t.TempDir(), "other-ca.pem")
	if err := os.WriteFile(other, []byte(strangerCA), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Control(t.Context(), "add_user", "nobody", "canary"); err != nil {
		t.Fatal(err)
	}
	with := func(url, user, password string) string {
		return strings.Replace(url, "guest:"+servers.Canary, user+":"+password, 1)
	}
	plain, encrypted := node.URL("/"), node.TLSURL("/")
	trusting := func(c *rabbitmq.Config) { c.TLS.CAFile = node.CAFile() }
	for _, test := range []struct {
		name   string
		url    string
		change func(*rabbitmq.Config)
		reason string // empty: it works
		text   string
	}{
		{"plain", plain, nil, "", ""},
		{"TLS", encrypted, trusting, "", ""},
		{"TLS enabled with an amqp URL", strings.Replace(encrypted, "amqps:", "amqp:", 1), func(c *rabbitmq.Config) { c.TLS.Enabled, c.TLS.CAFile = true, node.CAFile() }, "", ""},
		{"TLS with a CA in the URL", encrypted + "?cacertfile=" + node.CAFile(), nil, "", ""},
		{"client certificate", encrypted, func(c *rabbitmq.Config) {
			c.TLS.CAFile, c.TLS.CertFile, c.TLS.KeyFile = node.CAFile(), node.ClientCertFile(), node.ClientKeyFile()
		}, "", ""},
		{"not verified", encrypted, func(c *rabbitmq.Config) { c.TLS.InsecureSkipVerify = true }, "", ""},
		{"unknown CA", encrypted, nil, "tls", "tls.ca_file"},
		{"another CA", encrypted, func(c *rabbitmq.Config) { c.TLS.CAFile = other }, "tls", "tls.ca_file"},
		{"wrong name", encrypted, func(c *rabbitmq.Config) { c.TLS.CAFile, c.TLS.ServerName = node.CAFile(), "rabbit.example" }, "tls", "tls.server_name"},
		{"plain to the TLS port", strings.Replace(encrypted, "amqps:", "amqp:", 1), nil, "tls", "amqps://"},
		{"TLS to the plain port", strings.Replace(plain, "amqp:", "amqps:", 1), trusting, "tls", "amqp://"},
		{"wrong password", with(plain, "guest", "canary"), nil, "authentication", `user "guest"`},
		{"wrong password over TLS", with(encrypted, "guest", "canary"), trusting, "authentication", `user "guest"`},
		{"unknown user", with(plain, "somebody", "canary"), nil, "authentication", `user "somebody"`},
		{"no access to the virtual host", with(plain, "nobody", "canary"), nil, "authentication", "set_permissions"},
		{"unknown virtual host", node.URL("missing"), nil, "authentication", `virtual host "missing"`},
		{"EXTERNAL is not offered", encrypted + "?auth_mechanism=external", trusting, "authentication", "mechanism"},
		{"nobody listens", "amqp://guest:canary@127.0.0.1:9/", nil, "connection", "127.0.0.1:9"},
	} {
		t.Run(test.name, func(t *testing.T) {
			publisher := rabbitPublisher(t, test.url, test.change)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			err := publisher.Ping(ctx)
			if test.reason == "" {
				if err != nil {
					t.Fatal(err)
				}
				queue := rabbitQueue(t, plain)
				messages := rabbitMessages("", queue, 2000, 97)
				if results := publisher.Publish(ctx, messages); results != nil {
					t.Fatal(results[0])
				}
				rabbitTally(t, plain, queue, messages, 0)
				return
			}
			if err == nil {
				t.Fatal("it worked")
			}
			if sinks.ReasonOf(err) != test.reason || sinks.ScopeOf(err) != sinks.ScopeSink || !strings.Contains(err.Error(), test.text) {
				t.Errorf("reason %s: %v; want %s and %q", sinks.ReasonOf(err), err, test.reason, test.text)
			}
			if strings.Contains(err.Error(), "canary") {
				t.Errorf("the password is in %v", err)
			}
			if testing.Verbose() {
				t.Log(err)
			}
			results := publisher.Publish(ctx, rabbitMessages("", "x", 1, 1))
			if results == nil || sinks.ReasonOf(results[0]) != test.reason {
				t.Errorf("Publish: %v", results)
			}
		})
	}
}

// strangerCA is an authority that signed nothing of ours.
const strangerCA = `-----BEGIN CERTIFICATE-----
MIIBfTCCASOgAwIBAgIUAccApNI0tDcnqFDg0ghwf/3aqd0wCgYIKoZIzj0EAwIw
EzERMA8GA1UEAwwIU3RyYW5nZXIwIBcNMjYxMTIxMTE1NjQzWhgPMjEyNjEwMjgx
MTU2NDNaMBMxETAPBgNVBAMMCFN0cmFuZ2VyMFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAEJ2BJ2hkGfBo2LnT0tbyidm/nC7keK/sNK7lRh0MunPMyPlilbCCEqTD9
DYJhFod8P64VGzmsVHA82CLi3x5bPaNTMFEwHQYDVR0OBBYEFABNAZG/WsK7V9z2
WamLo/VrRi6JMB8GA1UdIwQYMBaAFABNAZG/WsK7V9z2WamLo/VrRi6JMA8GA1Ud
EwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIgKiWvpSUtlxIunjBr53ECJAUP
VkEqNYmnCcRxYlpIEX8CIQCqNxkMAZCD4dDBmToym40N7U3q777OE4XfV7of9i7E
Mw==
-----END CERTIFICATE-----
`
