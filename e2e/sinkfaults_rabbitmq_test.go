package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/e2e/proxy"
	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/sinks"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// TestRabbitMQSinkNetwork breaks the network in the middle of calls in each way
// that it can break: calls end in time and blame nobody but the connection, and
// when the network is back, all arrives in order.
func TestRabbitMQSinkNetwork(t *testing.T) {
	t.Parallel()
	direct := servers.FromEnvironment().RabbitMQURL
	address, err := url.Parse(direct)
	try(t, err)
	between, err := proxy.New(address.Host)
	try(t, err)
	t.Cleanup(func() { try(t, between.Close()) })
	address.Host = between.Address()

	const messages = 3000
	for _, order := range scenario.Lanes(t, rabbitOrders...) {
		for name, fault := range map[string]func(){
			"stall":            between.Stall,
			"freeze":           between.Freeze,
			"requests lost":    func() { between.Swallow(proxy.ToServer) },
			"confirms lost":    func() { between.Swallow(proxy.ToClient) },
			"refuse":           between.Refuse,
			"cut in a frame":   func() { between.CutAfter(proxy.ToServer, 20_011) },
			"cut in a confirm": func() { between.CutAfter(proxy.ToClient, 5) },
		} {
			t.Run(order+"/"+name, func(t *testing.T) {
				try(t, between.Pass())
				queue := rabbitQueue(t, direct)
				t.Cleanup(func() {
					_, err := channelTo(t, direct).QueueDelete(queue, false, false, false)
					try(t, err)
				})
				publisher := rabbitPublisher(t, address.String(), func(c *rabbitmq.Config) { c.Order = order })
				sent := rabbitMessages("", queue, messages, 97)
				rabbitDrain(t, publisher, sent[:100], "connection")

				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				results := make(chan []error, 1)
				fault()
				began := time.Now()
				go func() { results <- publisher.Publish(ctx, sent[100:]) }()
				var pending []sinks.Message
				for i, err := range <-results {
					if err == nil {
						continue
					}
					pending = append(pending, sent[100+i])
					if reason := sinks.ReasonOf(err); sinks.ScopeOf(err) != sinks.ScopeSink || reason != "connection" && reason != "timeout" {
						t.Fatalf("message %d: scope %s, reason %s: %v", i, sinks.ScopeOf(err), reason, err)
					}
				}
				if took := time.Since(began); took > 10*time.Second {
					t.Errorf("Publish took %s with a context of 2s", took)
				}
				if len(pending) == 0 {
					t.Fatal("nothing failed: the test shows nothing")
				}
				try(t, between.Pass())
				rabbitDrain(t, publisher, pending, "connection", "timeout")
				rabbitTally(t, direct, queue, sent, messages)
			})
		}
	}
}

// TestRabbitMQQueueThatIsFull has a queue with room for a few messages that
// refuses the others, beside one with room for all: nothing is blamed or lost,
// and the rest follows in order as a consumer makes room.
func TestRabbitMQQueueThatIsFull(t *testing.T) {
	for _, kind := range []string{"classic", "quorum"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			stage := scenario.NewRabbitStage(t, quickRetries)
			channel := channelTo(t, rabbitURL())
			full := name("full")
			_, err := channel.QueueDeclare(full, true, false, false, false, amqp.Table{
				"x-queue-type": kind, "x-max-length": 3, "x-overflow": "reject-publish",
			})
			try(t, err)
			defer func() { _, _ = channel.QueueDelete(full, false, false, false) }()

			var rows []scenario.Row
			for i := range 5 {
				for _, key := range []string{"a", "b", "c"} {
					rows = append(rows, insert(stage, full, key, fmt.Sprint(i))...)
				}
			}
			relay := stage.Start()
			logs(t, relay, full, "reason=nack", "concerns=destination")
			published(t, stage, insert(stage, stage.Topic(), "a", "others flow on", "and on")...)
			if scenario.One[int](t, stage.Database, `SELECT count(*) FROM `+stage.Table+` WHERE topic = $1 AND published_at IS NULL`, full) == 0 {
				t.Fatal("nothing waits: the queue was not full")
			}

			got := map[string][]int64{}
			n := 0
			scenario.Await(t, time.Minute, "everything to arrive while it is consumed", func() (bool, string) {
				for key, sequences := range sequencesIn(take(t, channel, full)) {
					got[key] = append(got[key], sequences...)
					n += len(sequences)
				}
				return n >= len(rows), fmt.Sprintf("%d of %d messages", n, len(rows))
			})
			published(t, stage, rows...)
			relay.Stop()
			want := map[string][]int64{}
			for _, row := range rows {
				want[row.Key] = append(want[row.Key], row.ID)
			}
			for key := range want {
				if !slices.Equal(got[key], want[key]) {
					t.Errorf("key %s: %v, want %v", key, got[key], want[key])
				}
			}
			if len(lines(relay.Log(), "sink is away")) > 0 {
				t.Error("the sink counts as away because one queue is full")
			}
		})
	}
}

// TestRabbitMQQueueThatExpires has a policy delete a queue that nobody uses. Its
// messages come back, count as refused, and go on when the queue is there again.
func TestRabbitMQQueueThatExpires(t *testing.T) {
	t.Parallel()
	node := startRabbit(t, servers.RabbitMQOptions{})
	log := scenario.NewRabbitQueue(t, node.URL("/"), nil)
	stage := scenario.NewStage(t, scenario.NewDatabase(t), log, quickRetries)
	expiring := name("expiring")
	declare := func() *amqp.Channel {
		channel := channelTo(t, node.URL("/"))
		_, err := channel.QueueDeclare(expiring, true, false, false, false, nil)
		try(t, err)
		return channel
	}
	channel := declare()
	relay := stage.Start()
	first := insert(stage, expiring, "a", "1", "2")
	published(t, stage, first...)
	if got := sequencesIn(take(t, channel, expiring)); !slices.Equal(got["a"], []int64{first[0].ID, first[1].ID}) {
		t.Fatalf("key a: %v", got["a"])
	}
	_, err := node.Control(t.Context(), "set_policy", "expire", "^expiring-", `{"expires":500}`, "--apply-to", "queues")
	try(t, err)
	scenario.Await(t, time.Minute, "the policy to delete the queue", func() (bool, string) {
		// A look at the queue is a use of it.
		time.Sleep(2 * time.Second)
		_, err := channelTo(t, node.URL("/")).QueueDeclarePassive(expiring, true, false, false, false, nil)
		missing, ok := errors.AsType[*amqp.Error](err)
		return ok && missing.Code == amqp.NotFound, fmt.Sprint(err)
	})
	a, b := insert(stage, expiring, "a", "3", "4"), insert(stage, expiring, "b", "1")
	logs(t, relay, "a message is parked", expiring, "reason=unroutable")
	published(t, stage, insert(stage, stage.Topic(), "a", "others flow on")...)
	unmarked(t, stage, slices.Concat(a, b)...)

	_, err = node.Control(t.Context(), "clear_policy", "expire")
	try(t, err)
	channel = declare()
	published(t, stage, slices.Concat(a, b)...)
	relay.Stop()
	got := sequencesIn(take(t, channel, expiring))
	if want := []int64{a[0].ID, a[1].ID}; !slices.Equal(got["a"], want) {
		t.Errorf("key a: %v, want %v", got["a"], want)
	}
	if want := []int64{b[0].ID}; !slices.Equal(got["b"], want) {
		t.Errorf("key b: %v, want %v", got["b"], want)
	}
}
