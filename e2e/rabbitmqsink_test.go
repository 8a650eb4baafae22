package e2e_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// rabbitOrders are the values of a RabbitMQ sink's order.
var rabbitOrders = []string{rabbitmq.OrderStrict, rabbitmq.OrderPipelined}

// startRabbit starts a node of the test's own, to be broken.
func startRabbit(t *testing.T, options servers.RabbitMQOptions) *servers.RabbitMQ {
	t.Helper()
	node, err := servers.StartRabbitMQ(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, node)
	return node
}

func rabbitPublisher(t *testing.T, url string, change func(*rabbitmq.Config)) *rabbitmq.Publisher {
	t.Helper()
	config := rabbitmq.Defaults()
	config.URL = url
	if change != nil {
		change(&config)
	}
	publisher, err := rabbitmq.New(config, sinks.Envelope{Style: sinks.StylePlain}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := publisher.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return publisher
}

func rabbitQueue(t *testing.T, url string) string {
	t.Helper()
	name := "test-" + rand.Text()[:12]
	if _, err := channelTo(t, url).QueueDeclare(name, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	return name
}

// rabbitMessages are n messages that go round some keys.
func rabbitMessages(exchange, routingKey string, n, keys int) []sinks.Message {
	all := make([]sinks.Message, n)
	for i := range all {
		all[i] = sinks.Message{
			Sequence: int64(i + 1), Topic: "orders", Exchange: exchange, Destination: routingKey,
			Key: fmt.Appendf(nil, "order-%d", i%keys), Type: "OrderPlaced", ContentType: "application/json",
			Payload: make([]byte, 200), CreatedAt: time.Now(),
		}
		_, _ = rand.Read(all[i].ID[:])
	}
	return all
}

// rabbitDrain publishes until everything is acknowledged, as the relay does:
// what failed is sent again in order. It returns how often a call failed.
func rabbitDrain(t *testing.T, publisher *rabbitmq.Publisher, pending []sinks.Message, allowed ...string) int {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	failures := 0
	for len(pending) > 0 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		results := publisher.Publish(ctx, pending[:min(5000, len(pending))])
		cancel()
		if results == nil {
			pending = pending[min(5000, len(pending)):]
			continue
		}
		failures++
		var failed []sinks.Message
		var last error
		for i, err := range results {
			if err == nil {
				continue
			}
			failed, last = append(failed, pending[i]), err
			if sinks.ScopeOf(err) == sinks.ScopeSkipped {
				continue
			}
			if sinks.ScopeOf(err) != sinks.ScopeSink || !strings.Contains(strings.Join(allowed, " "), sinks.ReasonOf(err)) {
				t.Fatalf("message %d: scope %s, reason %s: %v", pending[i].Sequence, sinks.ScopeOf(err), sinks.ReasonOf(err), err)
			}
		}
		pending = append(failed, pending[len(results):]...)
		if time.Now().After(deadline) {
			t.Fatalf("%d messages still fail: %v", len(pending), last)
		}
		ping, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		for publisher.Ping(ping) != nil && ping.Err() == nil {
			time.Sleep(50 * time.Millisecond)
		}
		cancel()
	}
	return failures
}

// rabbitTally reads a queue and checks that nothing is missing, first
// occurrences are in order by key, and duplicates are within bounds.
func rabbitTally(t *testing.T, url, queue string, sent []sinks.Message, duplicates int) {
	t.Helper()
	channel := channelTo(t, url)
	deliveries, err := channel.Consume(queue, "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen, highest, extra := map[int64]bool{}, map[string]int64{}, 0
	limit := time.After(time.Minute)
	for done := false; !done; {
		wait := time.Minute
		if len(seen) == len(sent) {
			wait = 500 * time.Millisecond // duplicates follow without a pause
		}
		select {
		case d, ok := <-deliveries:
			if !ok {
				t.Fatal("the consumer's channel was closed")
			}
			sequence, key := d.Headers["message-sequence"].(int64), d.Headers["message-key"].(string)
			switch {
			case seen[sequence]:
				extra++
			case sequence < highest[key]:
				t.Fatalf("key %s: %d came after %d", key, sequence, highest[key])
			default:
				seen[sequence], highest[key] = true, sequence
			}
		case <-time.After(wait):
			done = true
		case <-limit:
			done = true
		}
	}
	if len(seen) != len(sent) {
		t.Errorf("%d of %d messages are in the broker", len(seen), len(sent))
	}
	if extra > duplicates {
		t.Errorf("%d duplicates, want at most %d", extra, duplicates)
	}
	t.Logf("%d messages, %d duplicates", len(seen), extra)
}

// waitForMessages waits until something has arrived in a queue.
func waitForMessages(t *testing.T, channel *amqp.Channel, queue string, n int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		state, err := channel.QueueDeclarePassive(queue, true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		if state.Messages >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("queue %s: %d messages, want %d", queue, state.Messages, n)
		}
	}
}

// rabbitThrough publishes new messages without a pause while a disruption
// comes and goes, until some calls have failed and all that was to be sent is
// acknowledged. It returns the messages and how many calls failed.
func rabbitThrough(t *testing.T, publisher *rabbitmq.Publisher, queue string, disrupt func() error, allowed ...string) ([]sinks.Message, int) {
	t.Helper()
	disrupted := make(chan error, 1)
	begin := func() { disrupted <- disrupt() }
	var sent []sinks.Message
	failures, over := 0, false
	for deadline := time.Now().Add(3 * time.Minute); !over; {
		batch := rabbitMessages("", queue, 500, 97)
		for i := range batch {
			batch[i].Sequence += int64(len(sent))
		}
		failures += rabbitDrain(t, publisher, batch, allowed...)
		sent = append(sent, batch...)
		if len(sent) == 2*len(batch) {
			go begin()
		}
		select {
		case err := <-disrupted:
			if err != nil {
				t.Fatal(err)
			}
			// Between two calls it went unnoticed: once more.
			if over = failures > 0; !over {
				go begin()
			}
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d messages, %d failed calls, disruption over: %t", len(sent), failures, over)
		}
	}
	return sent, failures
}

// TestRabbitMQSink breaks one node in one way after the other: a node takes the
// machine longer to start than most of them take.
func TestRabbitMQSink(t *testing.T) {
	t.Parallel()
	node := startRabbit(t, servers.RabbitMQOptions{OnDisk: true, Config: []string{"max_message_size = 100000"}})
	for _, test := range []struct {
		name string
		test func(*testing.T, *servers.RabbitMQ)
	}{
		{"refusals", testRabbitRefusals},
		{"innocent calls", testRabbitInnocentCalls},
		{"connections closed", testRabbitConnectionsClosed},
		{"frozen", testRabbitFrozen},
		{"memory alarm", testRabbitMemoryAlarm},
		{"restart", testRabbitRestart},
	} {
		t.Run(test.name, func(t *testing.T) { test.test(t, node) })
	}
}

func testRabbitConnectionsClosed(t *testing.T, node *servers.RabbitMQ) {
	for _, order := range rabbitOrders {
		t.Run(order, func(t *testing.T) {
			queue := rabbitQueue(t, node.URL("/"))
			publisher := rabbitPublisher(t, node.URL("/"), func(c *rabbitmq.Config) { c.Order = order })
			messages, failures := rabbitThrough(t, publisher, queue, func() error {
				return node.CloseAllConnections(t.Context(), "as tested")
			}, "connection")
			rabbitTally(t, node.URL("/"), queue, messages, failures*500)
		})
	}
}

func testRabbitRestart(t *testing.T, node *servers.RabbitMQ) {
	kill := func() error { node.Kill(); return nil }
	// A node that is killed can forget a queue that it got a moment ago; the
	// orderly stop, which comes first, writes down what there is.
	type end struct {
		name, order string
		end         func() error
	}
	ends := []end{{"stop", rabbitmq.OrderStrict, node.Stop}}
	for _, order := range scenario.Lanes(t, rabbitOrders...) {
		ends = append(ends, end{"kill", order, kill})
	}
	queues := make([]string, len(ends))
	for i := range queues {
		queues[i] = rabbitQueue(t, node.URL("/"))
	}
	for i, test := range ends {
		queue := queues[i]
		t.Run(test.name+"/"+test.order, func(t *testing.T) {
			publisher := rabbitPublisher(t, node.URL("/"), func(c *rabbitmq.Config) { c.Order = test.order })
			messages, failures := rabbitThrough(t, publisher, queue, func() error {
				if err := test.end(); err != nil {
					return err
				}
				return node.Start(t.Context())
			}, "connection", "timeout", "authentication")
			rabbitTally(t, node.URL("/"), queue, messages, failures*500)
		})
	}
}

// testRabbitFrozen stops the node's process, so that connections stay
// open and nothing moves.
func testRabbitFrozen(t *testing.T, node *servers.RabbitMQ) {
	for _, order := range scenario.Lanes(t, rabbitOrders...) {
		t.Run(order, func(t *testing.T) {
			queue := rabbitQueue(t, node.URL("/"))
			publisher := rabbitPublisher(t, node.URL("/"), func(c *rabbitmq.Config) { c.Order = order })
			messages := rabbitMessages("", queue, 5_000, 97)
			rabbitDrain(t, publisher, messages[:100], "connection")
			if err := node.Pause(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			results := publisher.Publish(ctx, messages[100:])
			if took := time.Since(began); took > 4*time.Second {
				t.Errorf("Publish took %s with a context of 1s", took)
			}
			if results == nil || sinks.ReasonOf(results[0]) != "timeout" {
				t.Errorf("Publish to a frozen broker: %v", results)
			}
			if err := node.Resume(); err != nil {
				t.Fatal(err)
			}
			rabbitDrain(t, publisher, messages[100:], "connection", "timeout")
			rabbitTally(t, node.URL("/"), queue, messages, len(messages))
		})
	}
}

func testRabbitMemoryAlarm(t *testing.T, node *servers.RabbitMQ) {
	for _, order := range scenario.Lanes(t, rabbitOrders...) {
		t.Run(order, func(t *testing.T) {
			queue := rabbitQueue(t, node.URL("/"))
			publisher := rabbitPublisher(t, node.URL("/"), func(c *rabbitmq.Config) { c.Order = order })
			messages := rabbitMessages("", queue, 3_000, 97)
			rabbitDrain(t, publisher, messages[:100], "connection")
			if _, err := node.Control(t.Context(), "set_vm_memory_high_watermark", "0"); err != nil {
				t.Fatal(err)
			}
			// The broker says so only after the first publish.
			for deadline := time.Now().Add(30 * time.Second); ; {
				began := time.Now()
				results := publisher.Publish(t.Context(), messages[100:])
				if results != nil && sinks.ReasonOf(results[0]) == "blocked" {
					if took := time.Since(began); took > 10*time.Second {
						t.Errorf("Publish took %s", took)
					}
					if sinks.ScopeOf(results[0]) != sinks.ScopeSink || !strings.Contains(results[0].Error(), "memory") {
						t.Errorf("blocked: %v", results[0])
					}
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("never blocked: %v", results)
				}
			}
			began := time.Now()
			if results := publisher.Publish(t.Context(), messages[100:]); results == nil || sinks.ReasonOf(results[0]) != "blocked" || time.Since(began) > time.Second {
				t.Errorf("while blocked: after %s", time.Since(began))
			}
			if err := publisher.Ping(t.Context()); sinks.ReasonOf(err) != "blocked" {
				t.Errorf("Ping while blocked: %v", err)
			}
			if _, err := node.Control(t.Context(), "set_vm_memory_high_watermark", "0.4"); err != nil {
				t.Fatal(err)
			}
			rabbitDrain(t, publisher, messages[100:], "blocked")
			rabbitTally(t, node.URL("/"), queue, messages, 1000)
		})
	}
}

// testRabbitRefusals has messages over the node's limit and a user with few
// rights: what the broker refuses by closing the channel fails alone.
func testRabbitRefusals(t *testing.T, node *servers.RabbitMQ) {
	ctx := t.Context()
	for _, command := range [][]string{
		{"add_user", "writer", "canary"},
		{"set_permissions", "writer", "", "^(open|topics)$", ""},
		{"set_topic_permissions", "writer", "topics", "^allowed", ""},
	} {
		if _, err := node.Control(ctx, command...); err != nil {
			t.Fatal(err)
		}
	}
	admin := channelTo(t, node.URL("/"))
	queue := rabbitQueue(t, node.URL("/"))
	for name, kind := range map[string]string{"open": "fanout", "shut": "fanout", "topics": "topic"} {
		if err := admin.ExchangeDeclare(name, kind, true, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
		if err := admin.QueueBind(queue, "#", name, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	url := strings.Replace(node.URL("/"), "guest:"+servers.Canary, "writer:canary", 1)
	for _, order := range rabbitOrders {
		t.Run(order, func(t *testing.T) {
			publisher := rabbitPublisher(t, url, func(c *rabbitmq.Config) { c.Order = order })
			var messages []sinks.Message
			messages = append(messages, rabbitMessages("open", "x", 300, 300)...)
			messages = append(messages, rabbitMessages("shut", "x", 10, 10)...)
			messages = append(messages, rabbitMessages("topics", "allowed.x", 300, 300)...)
			messages[100].Payload = make([]byte, 100_001)
			messages[200].Payload = make([]byte, 150_000)
			for i := 350; i < 600; i += 100 {
				messages[i].Destination = "forbidden.x"
			}
			want := func(i int) (sinks.Scope, bool, string) {
				switch {
				case i == 100 || i == 200:
					return sinks.ScopeMessage, true, "message_too_large"
				case i >= 300 && i < 310, i >= 310 && i%100 == 50:
					return sinks.ScopeDestination, false, "access_refused"
				}
				return 0, false, ""
			}
			good := 0
			for i, err := range publisher.Publish(ctx, messages) {
				scope, permanent, reason := want(i)
				switch {
				case reason == "" && err == nil:
					good++
				case reason == "":
					t.Errorf("message %d is innocent: %v", i, err)
				case err == nil || sinks.ScopeOf(err) != scope || sinks.IsPermanent(err) != permanent || sinks.ReasonOf(err) != reason:
					t.Errorf("message %d: %v (scope %s, permanent %t, reason %s), want %s", i, err, sinks.ScopeOf(err), sinks.IsPermanent(err), sinks.ReasonOf(err), reason)
				}
			}
			waitForMessages(t, admin, queue, good)
			if _, err := admin.QueuePurge(queue, false); err != nil {
				t.Fatal(err)
			}
			for _, d := range []struct {
				destination sinks.Destination
				good        bool
			}{
				{sinks.Destination{Exchange: "open", Name: "x"}, true},
				{sinks.Destination{Exchange: "shut", Name: "x"}, false},
				{sinks.Destination{Exchange: "topics", Name: "allowed.x"}, true},
				{sinks.Destination{Exchange: "topics", Name: "forbidden.x"}, false},
				{sinks.Destination{Name: queue}, false},
			} {
				err := publisher.Verify(ctx, d.destination)
				if (err == nil) != d.good || err != nil && (sinks.ScopeOf(err) != sinks.ScopeDestination || sinks.ReasonOf(err) != "access_refused") {
					t.Errorf("Verify %+v: %v", d.destination, err)
				}
			}
		})
	}
}

// testRabbitInnocentCalls has an oversize message in one call beside the
// innocent messages of other calls in the same exchange.
func testRabbitInnocentCalls(t *testing.T, node *servers.RabbitMQ) {
	queue := rabbitQueue(t, node.URL("/"))
	publisher := rabbitPublisher(t, node.URL("/"), nil)
	stop := make(chan struct{})
	poisoned := make(chan error, 1)
	go func() {
		for {
			poison := rabbitMessages("", queue, 1, 1)
			poison[0].Payload = make([]byte, 200_000)
			results := publisher.Publish(t.Context(), poison)
			if results == nil || sinks.ReasonOf(results[0]) != "message_too_large" {
				poisoned <- fmt.Errorf("the oversize message: %v", results)
				return
			}
			select {
			case <-stop:
				poisoned <- nil
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	messages := rabbitMessages("", queue, 10_000, 97)
	for from := 0; from < len(messages); from += 1000 {
		if err := errors.Join(publisher.Publish(t.Context(), messages[from:from+1000])...); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-poisoned; err != nil {
		t.Error(err)
	}
	rabbitTally(t, node.URL("/"), queue, messages, len(messages))
}
