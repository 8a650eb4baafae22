package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"gopkg.in/yaml.v3"

	"github.com/outboxrelay/relay/e2e/child"
	"github.com/outboxrelay/relay/e2e/servers"
)

// The outbox's topics: two go to Kafka, one to RabbitMQ.
const (
	orders        = "orders"
	payments      = "payments"
	notifications = "notifications"
)

// maxMessageBytes is the sink's; what is larger is poison.
const maxMessageBytes = 100_000

// stage is the servers, two relays and a writer.
type stage struct {
	dir, binary string
	postgres    *servers.Postgres
	kafka       *servers.Kafka
	rabbit      *servers.RabbitMQ
	prometheus  *servers.PrometheusServer
	database    string
	relays      []*relay
	writer      *writer
	closers     []func() error
}

// relay is one process over its lives.
type relay struct {
	name, config, log, address string
	process                    *child.Process
}

func newStage(ctx context.Context, dir, binary, alerts string) (_ *stage, err error) {
	st := &stage{dir: dir, binary: binary}
	defer func() {
		if err != nil {
			st.close()
		}
	}()
	tell("starting PostgreSQL, Kafka and RabbitMQ")
	if st.postgres, err = servers.StartPostgres(ctx, servers.PostgresOptions{}); err != nil {
		return nil, err
	}
	st.closers = append(st.closers, st.postgres.Close)
	if st.kafka, err = servers.StartKafka(ctx, servers.KafkaOptions{}); err != nil {
		return nil, err
	}
	st.closers = append(st.closers, st.kafka.Close)
	if st.rabbit, err = servers.StartRabbitMQ(ctx, servers.RabbitMQOptions{}); err != nil {
		return nil, err
	}
	st.closers = append(st.closers, st.rabbit.Close)
	if err = st.prepare(ctx); err != nil {
		return nil, err
	}
	if err = st.startPrometheus(ctx, alerts); err != nil {
		return nil, err
	}
	for _, r := range st.relays {
		if err = st.start(ctx, r); err != nil {
			return nil, err
		}
	}
	return st, nil
}

func (st *stage) close() {
	if st.writer != nil {
		st.writer.stop()
	}
	for _, r := range st.relays {
		if r.process != nil {
			r.process.Kill()
		}
	}
	for i := len(st.closers) - 1; i >= 0; i-- {
		if err := st.closers[i](); err != nil {
			tell("%v", err)
		}
	}
}

// prepare makes the database, topics, the queue and the relays' configuration.
func (st *stage) prepare(ctx context.Context) (err error) {
	if st.database, err = st.postgres.CreateDatabase(ctx, "shop"); err != nil {
		return err
	}
	for _, topic := range []string{orders, payments} {
		if err := st.kafka.CreateTopic(ctx, topic, 6, nil); err != nil {
			return err
		}
	}
	if err := declareQueue(st.rabbit.URL("/"), notifications); err != nil {
		return err
	}
	for i := range 2 {
		address, release, err := servers.TakeAddress()
		if err != nil {
			return err
		}
		st.closers = append(st.closers, func() error { release(); return nil })
		name := fmt.Sprintf("outbox-relay-%d", i)
		r := &relay{name: name, address: address, config: filepath.Join(st.dir, name+".yaml"), log: filepath.Join(st.dir, name+".log")}
		content, err := yaml.Marshal(map[string]any{
			"database": map[string]any{"url": st.database},
			"outbox":   map[string]any{"publish_timeout": "10s"},
			"sinks": map[string]any{
				"kafka":    map[string]any{"kafka": map[string]any{"brokers": st.kafka.Brokers(), "max_message_bytes": maxMessageBytes}},
				"rabbitmq": map[string]any{"rabbitmq": map[string]any{"url": st.rabbit.URL("/")}},
			},
			"routes": []any{
				map[string]any{"match": map[string]any{"topic": notifications}, "sink": "rabbitmq"},
				map[string]any{"match": map[string]any{"topic": payments}, "sink": "kafka", "on_failure": "dead_letter"},
				map[string]any{"match": map[string]any{"topic": "*"}, "sink": "kafka"},
			},
			"http": map[string]any{"listen": address},
		})
		if err != nil {
			return err
		}
		if err := os.WriteFile(r.config, content, 0o600); err != nil {
			return err
		}
		st.relays = append(st.relays, r)
	}
	migrate := exec.CommandContext(ctx, st.binary, "migrate", "--only", "outbox", "--config", st.relays[0].config)
	if output, err := migrate.CombinedOutput(); err != nil {
		return fmt.Errorf("relay migrate: %w\n%s", err, output)
	}
	return nil
}

func declareQueue(url, name string) error {
	connection, err := amqp.Dial(url)
	if err != nil {
		return err
	}
	defer connection.Close()
	channel, err := connection.Channel()
	if err != nil {
		return err
	}
	_, err = channel.QueueDeclare(name, true, false, false, false, nil)
	return err
}

// startPrometheus has the relays scraped as the chart's PodMonitor does, and the
// chart's alerts watched. They fire after seconds instead of minutes, as the run
// has only minutes.
func (st *stage) startPrometheus(ctx context.Context, alerts string) error {
	paths, err := filepath.Glob(filepath.Join(alerts, "*.yaml"))
	if err != nil || len(paths) == 0 {
		return errors.Join(err, fmt.Errorf("there are no alerts in %s", alerts))
	}
	var rules []any
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var rule map[string]any
		if err := yaml.Unmarshal(content, &rule); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if rule["for"] != nil {
			rule["for"] = "10s"
		}
		rules = append(rules, rule)
	}
	groups, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "outbox-relay", "rules": rules}}})
	if err != nil {
		return err
	}
	file := filepath.Join(st.dir, "rules.yaml")
	if err := os.WriteFile(file, groups, 0o600); err != nil {
		return err
	}
	var targets []any
	for _, r := range st.relays {
		targets = append(targets, map[string]any{"targets": []string{r.address}, "labels": map[string]string{"namespace": "shop", "pod": r.name}})
	}
	configuration, err := yaml.Marshal(map[string]any{
		"global":         map[string]any{"scrape_interval": scrapeInterval.String(), "evaluation_interval": scrapeInterval.String(), "scrape_timeout": scrapeInterval.String()},
		"rule_files":     []string{file},
		"scrape_configs": []any{map[string]any{"job_name": "outbox-relay", "static_configs": targets}},
	})
	if err != nil {
		return err
	}
	if st.prometheus, err = servers.StartPrometheus(ctx, string(configuration), os.Stderr); err != nil {
		return err
	}
	st.closers = append(st.closers, st.prometheus.Close)
	return nil
}

// start starts a relay's next life and waits until it is ready.
func (st *stage) start(ctx context.Context, r *relay) error {
	process, err := child.Start(exec.Command(st.binary, "run", "--config", r.config), r.log)
	if err != nil {
		return err
	}
	r.process = process
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.address+"/readyz", http.NoBody)
		if err != nil {
			return err
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		if !process.Running() {
			return fmt.Errorf("%s ended:\n%s", r.name, process.Tail(20))
		}
		if err := wait(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("%s is not ready: %w\n%s", r.name, err, process.Tail(20))
		}
	}
}

// stopRelays ends them in order; each has to leave with exit code 0.
func (st *stage) stopRelays() error {
	var errs []error
	for _, r := range st.relays {
		r.process.Signal(syscall.SIGTERM)
	}
	for _, r := range st.relays {
		if !r.process.Wait(time.Minute) {
			errs = append(errs, fmt.Errorf("%s does not stop", r.name))
			continue
		}
		if err := r.process.Err(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w\n%s", r.name, err, r.process.Tail(20)))
		}
	}
	return errors.Join(errs...)
}

func wait(ctx context.Context, duration time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(duration):
		return nil
	}
}

func tell(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "dashboard: %s\n", strings.TrimSpace(fmt.Sprintf(format, arguments...)))
}
