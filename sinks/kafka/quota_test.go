package kafka

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/sinks"
)

// openThrottled returns a publisher whose client id may produce so many bytes a
// second, and its log.
func openThrottled(t *testing.T, bytesPerSecond float64) (*Publisher, *lockedBuffer) {
	t.Helper()
	config := testConfig(t)
	config.ClientID = randomName("client")
	client, done := admin(t)
	defer done()
	set := func(op kafkago.AlterClientQuotaOps) {
		_, err := client.AlterClientQuotas(context.Background(), &kafkago.AlterClientQuotasRequest{Entries: []kafkago.AlterClientQuotaEntry{{
			Entities: []kafkago.AlterClientQuotaEntity{{EntityType: "client-id", EntityName: config.ClientID}},
			Ops:      []kafkago.AlterClientQuotaOps{op},
		}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	set(kafkago.AlterClientQuotaOps{Key: "producer_byte_rate", Value: bytesPerSecond})
	eventually(t, 10*time.Second, "the quota is not there", func() bool {
		response, err := client.DescribeClientQuotas(t.Context(), &kafkago.DescribeClientQuotasRequest{Components: []kafkago.DescribeClientQuotasRequestComponent{
			{EntityType: "client-id", MatchType: 0, Match: config.ClientID},
		}})
		return err == nil && len(response.Entries) == 1
	})
	log := &lockedBuffer{}
	p, err := New(config, sinks.Envelope{}, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, log
}

// TestQuota has four callers produce ten times what the client's quota allows:
// each call succeeds, each message is there once, and one line says why it is slow.
func TestQuota(t *testing.T) {
	t.Parallel()
	const callers, size, rate, patience = 4, 150, 500_000, 45 * time.Second
	p, log := openThrottled(t, rate)
	topic := newTopic(t, 12)
	var mu sync.Mutex
	var sent []sinks.Message
	var all sync.WaitGroup
	until := time.Now().Add(20 * time.Second)
	for caller := range callers {
		all.Go(func() {
			for round := 0; time.Now().Before(until); round++ {
				var messages []sinks.Message
				for n := range size {
					m := publishable(topic, int64(caller*1_000_000+round*size+n), fmt.Appendf(nil, "%d-%d", caller, n))
					m.Payload = make([]byte, 10_000)
					messages = append(messages, m)
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				results := p.Publish(ctx, messages)
				cancel()
				for _, err := range results {
					if err != nil {
						t.Errorf("caller %d, round %d: %v", caller, round, err)
						return
					}
				}
				mu.Lock()
				sent = append(sent, messages...)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	wantOneOffsetEach(t, topic, 12, sent)
	throttled := p.Throttled()
	t.Logf("%d messages of 10 kB, %s throttled", len(sent), throttled)
	if throttled < 5*time.Second {
		t.Errorf("throttled for %s: the test shows nothing", throttled)
	}
	if n := strings.Count(log.String(), "throttles this client"); n != 1 {
		t.Errorf("%d lines about it, want 1:\n%s", n, log)
	}
}

// TestThrottleThatOutlastsTheCall has the broker want to be left alone for longer
// than a call has: nothing of it is sent, neither then nor later.
func TestThrottleThatOutlastsTheCall(t *testing.T) {
	t.Parallel()
	p, _ := openThrottled(t, 50_000)
	topic := newTopic(t, 1)
	large := publishable(topic, 1, []byte("a"))
	large.Payload = make([]byte, 800_000)
	if results := p.Publish(t.Context(), []sinks.Message{large}); results != nil {
		t.Fatal(results[0])
	}
	leader := p.layouts.of(topic).leaders[0]
	if pause, _ := p.cluster.throttles.of(leader).state(time.Now()); pause < 4*time.Second {
		t.Fatalf("the broker throttles for %s, too short for this test", pause)
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	results := p.Publish(ctx, []sinks.Message{publishable(topic, 2, []byte("b"))})
	wantResult(t, results, 0, sinks.ScopePartition, false, "throttled", "raise the quota")
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %s to see that there is no time", took)
	}
	// One that has the time waits, and finds nothing of the other before it.
	last := publishable(topic, 3, []byte("b"))
	if results := p.Publish(t.Context(), []sinks.Message{last}); results != nil {
		t.Fatal(results[0])
	}
	wantSequences(t, readTopic(t, topic, 2, 20*time.Second), []sinks.Message{large, last})
}
