package e2e_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/proxy"
	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/kafka"
)

// TestKafkaSinkLosesAnswers has the answers to a hundred batches swallowed on
// their way back, each connection cut after it: the broker has the batch, the
// sink cannot know, and a consumer finds each message at one offset, in order.
func TestKafkaSinkLosesAnswers(t *testing.T) {
	for _, secure := range scenario.Lanes(t, false, true) {
		t.Run(fmt.Sprintf("secure %t", secure), func(t *testing.T) {
			t.Parallel()
			between, err := proxy.Listen()
			try(t, err)
			t.Cleanup(func() { try(t, between.Close()) })
			options := servers.KafkaOptions{Proxy: between.Address(), Secure: secure}
			if secure {
				options.Properties = map[string]string{
					"listener.security.protocol.map":                       "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,MTLS:SSL,CONTROLLER:PLAINTEXT,PROXIED:SASL_SSL",
					"listener.name.proxied.sasl.enabled.mechanisms":        "SCRAM-SHA-512",
					"listener.name.proxied.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
				}
			}
			broker, err := servers.StartKafka(t.Context(), options)
			try(t, err)
			servers.CleanUp(t, broker)
			between.Forward(broker.ProxiedAddress())
			const partitions = 3
			try(t, broker.CreateTopic(t.Context(), "orders", partitions, nil))

			config := kafka.Defaults()
			config.Brokers = []string{between.Address()}
			if secure {
				config.TLS = sinks.TLS{Enabled: true, CAFile: broker.CAFile()}
				config.SASL = kafka.SASL{Mechanism: "scram-sha-512", Username: servers.KafkaUser, Password: servers.KafkaPassword}
			}
			publisher := kafkaPublisher(t, config, slog.New(slog.NewTextHandler(t.Output(), nil)))
			next := int64(0)
			publish := func() {
				t.Helper()
				var messages []sinks.Message
				for range 30 {
					messages = append(messages, sinks.Message{
						Sequence: next, Destination: "orders", Key: fmt.Appendf(nil, "key-%d", next%7), Payload: make([]byte, 1000),
					})
					next++
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if results := publisher.Publish(ctx, messages); results != nil {
					t.Fatalf("messages from %d: %v", next-30, results[slices.IndexFunc(results, func(err error) bool { return err != nil })])
				}
			}
			publish()
			// More than a handshake's bytes, and less than any of the batches.
			const produce = 6_000
			cuts := 0
			for cuts < 100 {
				shots := []*proxy.Shot{between.DropAnswer(produce)}
				if cuts%20 == 0 { // and the answer to its second attempt
					shots = append(shots, between.DropAnswer(produce))
				}
				for fired := 0; fired < len(shots); {
					publish()
					fired = 0
					for _, shot := range shots {
						if shot.HasFired() {
							fired++
						}
					}
				}
				cuts += len(shots)
			}
			records := readKafkaRecords(t, broker.Brokers(), "orders", partitions)
			seen := map[int64]bool{}
			for _, r := range records {
				if seen[r.sequence] {
					t.Errorf("message %d is there twice", r.sequence)
				}
				seen[r.sequence] = true
			}
			if int64(len(seen)) != next {
				t.Errorf("%d messages in the topic, want %d", len(seen), next)
			}
			for key, sequences := range sequencesOf(records) {
				if !slices.IsSorted(sequences) {
					t.Errorf("key %s is out of order", key)
				}
			}
			t.Logf("%d messages, %d answers lost, %d records", next, cuts, len(records))
		})
	}
}

func kafkaPublisher(t *testing.T, config kafka.Config, logger *slog.Logger) *kafka.Publisher {
	t.Helper()
	publisher, err := kafka.New(config, sinks.Envelope{}, logger)
	try(t, err)
	t.Cleanup(func() { try(t, publisher.Close()) })
	return publisher
}

// guardedUser is the sink's configuration for one of the users.
func guardedUser(broker *servers.Kafka, user string) kafka.Config {
	config := kafka.Defaults()
	config.Brokers = broker.SASLSSLBrokers()
	config.TLS = sinks.TLS{Enabled: true, CAFile: broker.CAFile()}
	config.SASL = kafka.SASL{Mechanism: "plain", Username: user, Password: guardedPassword(user)}
	return config
}

// grantWrite lets a user write to a topic, or denies it again.
func grantWrite(t *testing.T, broker *servers.Kafka, user, topic string, granted bool) {
	t.Helper()
	grant(t, broker, user, topic, kafkago.ACLOperationTypeWrite, granted)
}

func grant(t *testing.T, broker *servers.Kafka, user, topic string, operation kafkago.ACLOperationType, granted bool) {
	t.Helper()
	transport := &kafkago.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafkago.Client{Addr: kafkago.TCP(broker.Brokers()...), Timeout: 20 * time.Second, Transport: transport}
	var failed []error
	if granted {
		response, err := client.CreateACLs(t.Context(), &kafkago.CreateACLsRequest{ACLs: []kafkago.ACLEntry{{
			ResourceType: kafkago.ResourceTypeTopic, ResourceName: topic, ResourcePatternType: kafkago.PatternTypeLiteral,
			Principal: "User:" + user, Host: "*", Operation: operation, PermissionType: kafkago.ACLPermissionTypeAllow,
		}}})
		try(t, err)
		failed = response.Errors
	} else {
		response, err := client.DeleteACLs(t.Context(), &kafkago.DeleteACLsRequest{Filters: []kafkago.DeleteACLsFilter{{
			ResourceTypeFilter: kafkago.ResourceTypeTopic, ResourceNameFilter: topic, ResourcePatternTypeFilter: kafkago.PatternTypeLiteral,
			PrincipalFilter: "User:" + user, HostFilter: "*", Operation: operation, PermissionType: kafkago.ACLPermissionTypeAllow,
		}}})
		try(t, err)
		for _, result := range response.Results {
			failed = append(failed, result.Error)
		}
	}
	for _, err := range failed {
		try(t, err)
	}
}

// TestKafkaSinkUnauthorized has a topic that the user may not write to beside one
// that is allowed, and takes and gives the right.
func TestKafkaSinkUnauthorized(t *testing.T) {
	t.Parallel()
	broker := secured.get(t)
	for _, topic := range []string{"open", "shut"} {
		try(t, broker.CreateTopic(t.Context(), topic, 2, nil))
	}
	grantWrite(t, broker, "bob", "open", true)

	var log syncedLog
	bob := kafkaPublisher(t, guardedUser(broker, "bob"), slog.New(slog.NewTextHandler(&log, nil)))
	message := func(topic string) sinks.Message {
		return sinks.Message{Destination: topic, Key: []byte("k"), Payload: []byte("{}")}
	}
	results := bob.Publish(t.Context(), []sinks.Message{message("open"), message("shut"), message("open"), message("missing")})
	if results == nil || results[0] != nil || results[2] != nil {
		t.Fatalf("the topic that is allowed: %v", results)
	}
	wantUnauthorized := func(what, topic string, err error) {
		t.Helper()
		if err == nil || sinks.ScopeOf(err) != sinks.ScopeDestination || sinks.ReasonOf(err) != "unauthorized" || sinks.IsPermanent(err) || !strings.Contains(err.Error(), topic) {
			t.Errorf("%s: %v (scope %s, reason %s), want unauthorized, destination, with %s", what, err, sinks.ScopeOf(err), sinks.ReasonOf(err), topic)
		}
	}
	wantUnauthorized("not granted", "shut", results[1])
	wantUnauthorized("missing, which the user must not learn", "missing", results[3])
	wantUnauthorized("Verify", "shut", bob.Verify(t.Context(), sinks.Destination{Name: "shut"}))
	if log.String() != "" {
		t.Errorf("a user who may write somewhere is idempotent; the log says\n%s", log.String())
	}

	grantWrite(t, broker, "bob", "shut", true)
	await(t, "the right to arrive", func() error { return errorOf(bob.Publish(t.Context(), []sinks.Message{message("shut")})) })
	grantWrite(t, broker, "bob", "shut", false)
	await(t, "the right to be gone", func() error {
		if err := errorOf(bob.Publish(t.Context(), []sinks.Message{message("shut")})); err == nil {
			return fmt.Errorf("it is still there")
		} else if sinks.ReasonOf(err) != "unauthorized" || sinks.ScopeOf(err) != sinks.ScopeDestination {
			t.Fatalf("reason %s, scope %s: %v", sinks.ReasonOf(err), sinks.ScopeOf(err), err)
		}
		return errorOf(bob.Publish(t.Context(), []sinks.Message{message("open")}))
	})

	// Who may write nowhere gets no producer id either. What the log says of that
	// is only of interest to who can at least see the topic.
	grant(t, broker, "dave", "open", kafkago.ACLOperationTypeDescribe, true)
	for user, told := range map[string]int{"carol": 0, "dave": 1} {
		var log syncedLog
		publisher := kafkaPublisher(t, guardedUser(broker, user), slog.New(slog.NewTextHandler(&log, nil)))
		if user == "dave" {
			await(t, "the right to see it", func() error { return publisher.Verify(t.Context(), sinks.Destination{Name: "open"}) })
		}
		for range 2 {
			wantUnauthorized(user, "open", errorOf(publisher.Publish(t.Context(), []sinks.Message{message("open")})))
		}
		if n := len(lines(log.String(), "does not let this user produce idempotently")); n != told {
			t.Errorf("%s: %d lines about idempotence, want %d:\n%s", user, n, told, log.String())
		}
		grantWrite(t, broker, user, "open", true)
		await(t, user+"'s right to arrive", func() error { return errorOf(publisher.Publish(t.Context(), []sinks.Message{message("open")})) })
	}
}

// errorOf is the first error of a call's results.
func errorOf(results []error) error {
	for _, err := range results {
		if err != nil {
			return err
		}
	}
	return nil
}

// await repeats an action until it succeeds.
func await(t *testing.T, what string, action func() error) {
	t.Helper()
	scenario.Await(t, time.Minute, what, func() (bool, string) {
		err := action()
		return err == nil, fmt.Sprint(err)
	})
}

// syncedLog is a log that can be read while it is written.
type syncedLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *syncedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *syncedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestKafkaTopicThatIsForbidden has the relay meet a topic that it may not write
// to: that topic waits, the others flow, and it goes on once it is granted.
func TestKafkaTopicThatIsForbidden(t *testing.T) {
	t.Parallel()
	broker := secured.get(t)
	log := scenario.NewKafkaTopics(t, broker.Brokers(), 2, 3)
	open, shut := log.Topics()[0], log.Topics()[1]
	grantWrite(t, broker, "relay", open, true)
	user := guardedUser(broker, "relay")
	stage := scenario.NewStage(t, scenario.NewDatabase(t), log, together(quickRetries, scenario.Settings{
		"sinks.main.kafka": scenario.Config{
			"brokers": user.Brokers,
			"tls":     scenario.Config{"enabled": true, "ca_file": user.TLS.CAFile},
			"sasl":    scenario.Config{"mechanism": "plain", "username": user.SASL.Username, "password": user.SASL.Password},
		},
	}))
	relay := stage.Start()
	a, b := insert(stage, shut, "a", "1", "2", "3"), insert(stage, shut, "b", "1")
	published(t, stage, insert(stage, open, "a", "1", "2")...)
	logs(t, relay, shut, "reason=unauthorized")
	published(t, stage, insert(stage, open, "a", "others flow on")...)
	unmarked(t, stage, slices.Concat(a, b)...)
	if n := len(lines(relay.Log(), "sink is away")); n > 0 {
		t.Error("the sink counts as away because one topic is forbidden")
	}
	grantWrite(t, broker, "relay", shut, true)
	published(t, stage, slices.Concat(a, b)...)
	relay.Stop()
	stage.Verify(0)
}
