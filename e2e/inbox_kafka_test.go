package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/inbox"
	inboxkafka "github.com/outboxrelay/relay/inbox/kafka"
)

// kafkaPartitions is how many partitions the topics of these tests have.
const kafkaPartitions = 6

// kafkaInbox is a topic with messages, and a database for their effects.
type kafkaInbox struct {
	inboxStage
	topic  string
	client *kafka.Client
}

// newKafkaInbox makes a topic and the stage.
func newKafkaInbox(t *testing.T, postgres string, brokers []string) *kafkaInbox {
	t.Helper()
	transport := &kafka.Transport{MetadataTTL: 200 * time.Millisecond}
	t.Cleanup(transport.CloseIdleConnections)
	k := &kafkaInbox{
		inboxStage: newInboxStage(t, postgres), topic: fmt.Sprintf("inbox-%d", time.Now().UnixNano()),
		client: &kafka.Client{Addr: kafka.TCP(brokers...), Timeout: 20 * time.Second, Transport: transport},
	}
	response, err := k.client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
		Topic: k.topic, NumPartitions: kafkaPartitions, ReplicationFactor: 1,
	}}})
	if err == nil {
		err = response.Errors[k.topic]
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// publish writes n more messages. A batch that the broker may have taken twice
// tests all the better.
func (k *kafkaInbox) publish(n int) {
	k.t.Helper()
	first := k.published + 1
	k.published += n
	k.send(first, k.published)
}

// send writes messages by their numbers, also such as were written before.
func (k *kafkaInbox) send(first, last int) {
	k.t.Helper()
	for partition := range kafkaPartitions {
		var numbers []int
		for number := first; number <= last; number++ {
			if number%kafkaPartitions == partition {
				numbers = append(numbers, number)
			}
		}
		for chunk := range slices.Chunk(numbers, 50) {
			k.await("the broker takes messages", func() bool {
				var records []kafka.Record // anew: kafka-go reads a record once
				for _, number := range chunk {
					records = append(records, kafkaMessage(number))
				}
				response, err := k.client.Produce(k.t.Context(), &kafka.ProduceRequest{
					Topic: k.topic, Partition: partition, RequiredAcks: kafka.RequireAll, Records: kafka.NewRecordReader(records...),
				})
				return err == nil && response.Error == nil
			})
		}
	}
}

// kafkaMessage is one of a key that is in one partition, which has several.
func kafkaMessage(number int) kafka.Record {
	return kafka.Record{
		Key: kafka.NewBytes(fmt.Append(nil, "order-", number%(kafkaPartitions*5))),
		Headers: []kafka.Header{
			{Key: "message-id", Value: []byte(messageID(number))},
			{Key: "message-sequence", Value: fmt.Append(nil, number)},
		},
	}
}

// lag is the number of messages that the group has not committed.
func (k *kafkaInbox) lag(group string) (n int64) {
	k.t.Helper()
	ids := make([]int, kafkaPartitions)
	var ends []kafka.OffsetRequest
	for i := range ids {
		ids[i] = i
		ends = append(ends, kafka.LastOffsetOf(i))
	}
	committed, err := k.client.OffsetFetch(k.t.Context(), &kafka.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{k.topic: ids}})
	if err != nil {
		return -1
	}
	last, err := k.client.ListOffsets(k.t.Context(), &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{k.topic: ends}})
	if err != nil {
		return -1
	}
	for _, p := range last.Topics[k.topic] {
		n += p.LastOffset
	}
	for _, p := range committed.Topics[k.topic] {
		n -= max(p.CommittedOffset, 0)
	}
	return n
}

// TestInboxKafkaKilled lets the members of a group kill themselves, each time
// right after the database has committed and before the offset is. Each death
// and each return rebalances the group.
func TestInboxKafkaKilled(t *testing.T) {
	t.Parallel()
	shared := servers.FromEnvironment()
	for _, test := range []struct {
		name                          string
		processes, concurrency, batch int
		crash                         float64
		messages, leastKills          int
	}{
		{"one by one", 3, 1, 0, 0.01, 1800, 6},
		{"batches", 2, 1, 20, 0.1, 2400, 5},
		{"by key", 2, 4, 0, 0.01, 1800, 6},
		{"batches by key", 2, 3, 10, 0.05, 2400, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			k := newKafkaInbox(t, shared.PostgresURL, shared.KafkaBrokers)
			k.publish(test.messages)
			group := "consumer-" + k.topic
			finished := func() bool { return k.done() == k.published && k.lag(group) == 0 }
			k.mortals(test.processes, test.leastKills, finished, "--broker", "kafka", "--database", k.database.URL, "--url", shared.KafkaBrokers[0],
				"--source", k.topic, "--name", group, "--concurrency", strconv.Itoa(test.concurrency), "--batch", strconv.Itoa(test.batch), "--crash", fmt.Sprint(test.crash))
			k.check(true)
			if n := k.lag(group); n != 0 {
				t.Errorf("%d messages are not committed", n)
			}
		})
	}
}

// consumerConfig has times that suit a test.
func (k *kafkaInbox) consumerConfig(brokers []string, pool *pgxpool.Pool, log *lockedLog) inboxkafka.Config {
	return inboxkafka.Config{
		Brokers: brokers, Group: "billing", Topics: []string{k.topic}, Inbox: &inbox.Inbox{Consumer: "billing"}, DB: pool,
		MaxAttempts: 1, SessionTimeout: 3 * time.Second, HeartbeatInterval: 300 * time.Millisecond,
		Backoff: inboxkafka.Backoff{Initial: 50 * time.Millisecond, Max: time.Second},
		Logger:  log.logger(),
		Handler: insertEffect,
	}
}

// TestInboxKafkaFaults breaks the servers under two members of a group, which
// have to go on by themselves.
func TestInboxKafkaFaults(t *testing.T) {
	t.Parallel()
	broker := ownKafka(t)
	postgres, err := servers.StartPostgres(t.Context(), servers.PostgresOptions{})
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, postgres)
	for _, test := range []struct {
		name  string
		times int
		fault func(ctx context.Context) error
	}{
		{"database restarted", 3, postgres.Restart},
		{"database crashed", 3, func(ctx context.Context) error {
			postgres.Kill()
			return postgres.Start(ctx)
		}},
		{"database frozen", 1, func(ctx context.Context) error {
			if err := postgres.Pause(); err != nil {
				return err
			}
			select {
			case <-time.After(3 * time.Second):
			case <-ctx.Done():
			}
			return postgres.Resume()
		}},
		{"broker restarted", 1, func(ctx context.Context) error {
			if err := broker.Stop(); err != nil {
				return err
			}
			return broker.Start(ctx)
		}},
		{"broker killed", 1, func(ctx context.Context) error {
			broker.Kill()
			return broker.Start(ctx)
		}},
		{"broker frozen", 1, func(ctx context.Context) error {
			if err := broker.Pause(); err != nil {
				return err
			}
			select { // longer than the session
			case <-time.After(8 * time.Second):
			case <-ctx.Done():
			}
			return broker.Resume()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := newKafkaInbox(t, postgres.URL("postgres"), broker.Brokers())
			k.publish(300)
			pool, err := pgxpool.New(t.Context(), k.database.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			log := new(lockedLog)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var consumers []*inboxkafka.Consumer
			ended := make(chan error, 2)
			for range 2 {
				consumer, err := inboxkafka.New(k.consumerConfig(broker.Brokers(), pool, log))
				if err != nil {
					t.Fatal(err)
				}
				consumers = append(consumers, consumer)
				go func() { ended <- consumer.Run(ctx) }()
			}
			for range test.times {
				before := k.done()
				k.publish(200)
				k.await("progress", func() bool { return k.done() > before })
				if err := test.fault(ctx); err != nil {
					t.Fatal(err)
				}
			}
			k.publish(100)
			k.await("all effects", func() bool { return k.done() == k.published })
			stop()
			for range consumers {
				if err := <-ended; err != nil {
					t.Errorf("Run: %v", err)
				}
			}
			for _, consumer := range consumers {
				stats := consumer.Stats()
				t.Logf("%+v", stats)
				if stats.Failures != 0 || stats.Poisoned != 0 {
					t.Errorf("%d attempts failed and %d messages were put aside: the outage was blamed on them\n%s", stats.Failures, stats.Poisoned, log)
				}
			}
			k.check(true)
		})
	}
}

// TestInboxKafkaSecurity consumes through listeners that demand TLS, a client
// certificate, or a user and a password.
func TestInboxKafkaSecurity(t *testing.T) {
	t.Parallel()
	broker := secured.get(t)
	authority, err := os.ReadFile(broker.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := tls.LoadX509KeyPair(broker.ClientCertFile(), broker.ClientKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	encrypted := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	mutual := encrypted.Clone()
	mutual.Certificates = []tls.Certificate{certificate}
	strong, err := scram.Mechanism(scram.SHA512, servers.KafkaUser, servers.KafkaPassword)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name      string
		brokers   []string
		tls       *tls.Config
		mechanism sasl.Mechanism
		// trouble, unless empty, is what the log has to say instead.
		trouble string
	}{
		{"TLS", broker.SSLBrokers(), encrypted, nil, ""},
		{"mutual TLS", broker.MTLSBrokers(), mutual, nil, ""},
		{"PLAIN", broker.SASLSSLBrokers(), encrypted, plain.Mechanism{Username: servers.KafkaUser, Password: servers.KafkaPassword}, ""},
		{"SCRAM", broker.SASLSSLBrokers(), encrypted, strong, ""},
		{"wrong password", broker.SASLSSLBrokers(), encrypted, plain.Mechanism{Username: servers.KafkaUser, Password: "canary-4711"}, "SASL Authentication Failed"},
		{"plaintext where TLS is demanded", broker.SSLBrokers(), nil, nil, "Dialer.TLS"},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := newKafkaInbox(t, servers.FromEnvironment().PostgresURL, broker.Brokers())
			k.publish(60)
			log := new(lockedLog)
			config := k.consumerConfig(test.brokers, k.database.Pool, log)
			config.SessionTimeout = 10 * time.Second
			config.Dialer = &kafka.Dialer{TLS: test.tls, SASLMechanism: test.mechanism}
			consumer, err := inboxkafka.New(config)
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			ended := make(chan error, 1)
			go func() { ended <- consumer.Run(ctx) }()
			if test.trouble != "" {
				k.await("the trouble in the log", func() bool { return strings.Contains(log.String(), test.trouble) })
				if strings.Contains(log.String(), "canary-4711") {
					t.Errorf("the password is in the log: %s", log)
				}
			} else {
				k.await("all effects", func() bool { return k.done() == k.published })
			}
			stop()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
			if test.trouble == "" {
				k.check(true)
			}
		})
	}
}
