package e2e_test

import (
	"bytes"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// canary is a secret in every place that has one. It must not be seen again.
const canary = servers.Canary

// runFor runs the relay for a while, or until it ends, and returns its output.
func runFor(t *testing.T, duration time.Duration, environment []string, file string) string {
	t.Helper()
	command := exec.CommandContext(t.Context(), os.Getenv(scenario.BinaryVariable), "run", "--config", file)
	command.Env = append(os.Environ(), environment...)
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	command.WaitDelay = 10 * time.Second
	try(t, command.Start())
	stop := time.AfterFunc(duration, func() { _ = command.Process.Signal(syscall.SIGTERM) })
	defer stop.Stop()
	_ = command.Wait() // the exit code is not what this is about
	return output.String()
}

func TestSecretsAreNeverShown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	secretFile := filepath.Join(dir, "secret")
	try(t, os.WriteFile(secretFile, []byte(canary+"\n"), 0o600))
	server := strictPostgres(t)
	parsed, err := url.Parse(server.URL("postgres"))
	try(t, err)
	amqp, err := url.Parse(rabbitURL())
	try(t, err)
	postgres, rabbit := parsed.Host, amqp.Host
	kafka := kafkaBrokers()[0]

	const (
		sink     = "\nsinks: {main: {kafka: {brokers: ['127.0.0.1:1']}}}\n"
		database = "\ndatabase: {url: 'postgres://relay:" + canary + "@127.0.0.1:1/shop?sslmode=disable'}\n"
	)
	for name, text := range map[string]string{
		// Databases that refuse, and URLs that are none.
		"wrong password":             "database: {url: 'postgres://relay:" + canary + "@" + postgres + "/postgres?sslmode=disable'}" + sink,
		"wrong password by file":     "database: {url: 'postgres://relay@" + postgres + "/postgres?sslmode=disable', password_file: " + secretFile + "}" + sink,
		"wrong password by words":    "database: {url: 'host=127.0.0.1 port=" + parsed.Port() + " user=relay password=" + canary + " sslmode=disable'}" + sink,
		"wrong password by variable": "database: {url: 'postgres://relay:${CANARY}@" + postgres + "/postgres?sslmode=disable'}" + sink,
		"unreachable":                database + sink,
		"no such host":               "database: {url: 'postgres://relay:" + canary + "@no-such-host.invalid/shop'}" + sink,
		"direct URL":                 "database: {url: 'postgres://postgres@" + postgres + "/postgres?sslmode=disable', direct_url: 'postgres://relay:" + canary + "@" + postgres + "/postgres?sslmode=disable'}" + sink,
		"TLS without a CA":           "database: {url: 'postgres://relay:" + canary + "@" + postgres + "/x?sslmode=verify-full&sslrootcert=/no/such/file'}" + sink,
		"bad port":                   "database: {url: 'postgres://relay:" + canary + "@localhost:port/shop'}" + sink,
		"bad host":                   "database: {url: 'postgres://relay:" + canary + "@[::1/shop'}" + sink,
		"at signs":                   "database: {url: 'postgres://relay:x@" + canary + "@" + canary + "@localhost/shop'}" + sink,
		"bad escape":                 "database: {url: 'postgres://relay:" + canary + "%zz@localhost/shop'}" + sink,
		"bad words":                  "database: {url: 'host=localhost password=" + canary + " sslmode=bogus'}" + sink,
		"unterminated word":          `database: {url: "host=localhost password='` + canary + `"}` + sink,
		"no scheme":                  "database: {url: 'relay:" + canary + "@localhost/shop'}" + sink,
		"bad parameter":              "database: {url: 'postgres://relay:" + canary + "@localhost/shop?connect_timeout=soon'}" + sink,

		// Brokers.
		"Kafka that is away":        "database: {url: 'postgres://postgres@" + postgres + "/postgres?sslmode=disable'}\nsinks: {main: {kafka: {brokers: ['127.0.0.1:1'], sasl: {mechanism: plain, username: u, password: " + canary + "}}}}",
		"Kafka without SASL":        database + "sinks: {main: {kafka: {brokers: ['" + kafka + "'], sasl: {mechanism: scram-sha-512, username: u, password_file: " + secretFile + "}}}}",
		"Kafka without TLS":         database + "sinks: {main: {kafka: {brokers: ['" + kafka + "'], tls: {enabled: true}, sasl: {mechanism: plain, username: u, password: " + canary + "}}}}",
		"Kafka's unknown mechanism": database + "sinks: {main: {kafka: {brokers: ['" + kafka + "'], sasl: {mechanism: rot13, username: u, password: " + canary + "}}}}",
		"Kafka's missing CA":        database + "sinks: {main: {kafka: {brokers: ['" + kafka + "'], tls: {enabled: true, ca_file: /no/such/file}, sasl: {mechanism: plain, username: u, password: " + canary + "}}}}",
		"Kafka's two passwords":     database + "sinks: {main: {kafka: {brokers: ['" + kafka + "'], sasl: {mechanism: plain, username: u, password: " + canary + ", password_file: " + secretFile + "}}}}",
		"RabbitMQ refuses":          database + "sinks: {main: {rabbitmq: {url: 'amqp://guest:x" + canary + "@" + rabbit + "/'}}}",
		"RabbitMQ by file":          database + "sinks: {main: {rabbitmq: {url_file: " + secretFile + "}}}",
		"RabbitMQ is away":          database + "sinks: {main: {rabbitmq: {url: 'amqp://guest:" + canary + "@127.0.0.1:1/'}}}",
		"RabbitMQ without TLS":      database + "sinks: {main: {rabbitmq: {url: 'amqps://guest:" + canary + "@" + rabbit + "/'}}}",
		"RabbitMQ's vhost":          database + "sinks: {main: {rabbitmq: {url: 'amqp://guest:" + canary + "@" + rabbit + "/no-such-vhost'}}}",
		"RabbitMQ's port":           database + "sinks: {main: {rabbitmq: {url: 'amqp://guest:" + canary + "@localhost:port/'}}}",
		"RabbitMQ's scheme":         database + "sinks: {main: {rabbitmq: {url: 'http://guest:" + canary + "@localhost/'}}}",
		"RabbitMQ without slashes":  database + "sinks: {main: {rabbitmq: {url: 'amqp:guest:" + canary + "@localhost/'}}}",
		"RabbitMQ's escape":         database + "sinks: {main: {rabbitmq: {url: 'amqp://guest:" + canary + "%zz@localhost/'}}}",

		// Files that are none.
		"unterminated quote":  "database: {url: 'postgres://relay:" + canary + "@localhost/shop}" + sink,
		"tabs":                "database:\n\turl: postgres://relay:" + canary + "@localhost/shop" + sink,
		"list":                "database: {url: ['" + canary + "']}" + sink,
		"mapping":             "database: {url: {" + canary + ": x}}" + sink,
		"duplicate key":       "database:\n  password: " + canary + "\n  password: " + canary + "x" + sink,
		"misspelt key":        "database: {url: 'postgres://localhost/shop', passwrod: " + canary + "}" + sink,
		"value for a section": "database: postgres://relay:" + canary + "@localhost/shop" + sink,
		"unset variable":      "database: {url: 'postgres://relay:" + canary + "${NO_SUCH_VARIABLE}@localhost/shop'}" + sink,
		"unclosed variable":   "database: {url: 'postgres://relay:" + canary + "${@localhost/shop'}" + sink,
		"default":             "database: {url: '${NO_SUCH_VARIABLE:-postgres://relay:" + canary + "@127.0.0.1:1/shop}'}" + sink,
		"secret file gone":    database + "sinks: {main: {kafka: {brokers: ['k:1'], sasl: {mechanism: plain, username: u, password_file: /no/such/file}}}}",
		"not even YAML":       "}{ " + canary,
		"alias":               "x: &a " + canary + "\ndatabase: {url: *b}" + sink,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "relay.yaml")
			try(t, os.WriteFile(file, []byte(text+"\nhttp: {listen: ''}\nlog: {level: debug}\n"), 0o600))
			environment := []string{"CANARY=" + canary}
			hidden := func(what, output string) {
				t.Helper()
				if at := strings.Index(output, canary); at >= 0 {
					t.Errorf("%s shows it: …%s…", what, output[max(0, at-100):min(len(output), at+100)])
				}
				if output == "" {
					t.Errorf("%s says nothing", what)
				}
			}
			commands := [][]string{{"check", "--output", "json"}, {"config", "print"}}
			check := scenario.Command(t, environment, "check", "--config", file)
			hidden("check", check.Stdout+check.Stderr)
			if check.Code != 2 { // otherwise none gets further than reading the file
				commands = append(commands, []string{"status"}, []string{"migrate", "--dry-run"}, []string{"prune"}, []string{"healthcheck"})
			}
			for _, command := range commands {
				result := scenario.Command(t, environment, append(command, "--config", file)...)
				hidden(strings.Join(command, " "), result.Stdout+result.Stderr)
			}
			hidden("run", runFor(t, time.Second, environment, file))
		})
	}
}
