package delivery

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/tracing"
	"github.com/outboxrelay/relay/sinks"
)

// canary is in everything of a message that no log may show.
const canary = "canary-7f3a"

// describe gives a row all that a message has; its trace is made of its id.
func (t *table) describe(id int64) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	m := &t.rows[id-1].message
	m.ID[15] = byte(id)
	m.Payload, m.Key, m.ContentType = []byte(canary), []byte(canary+fmt.Sprint(id)), "text/"+canary
	m.Headers = []sinks.Header{{Name: "tenant", Value: canary}, {Name: "traceparent", Value: fmt.Sprintf("00-%032x-%016x-01", id, id)}, {Name: "tracestate", Value: "a=" + canary}}
}

// record is a line of a log in JSON.
type record struct {
	Level, Msg, Topic, Sink, Reason string
	ID                              int64
	MessageID                       string `json:"message_id"`
	TraceID                         string `json:"trace_id"`
}

// records are the lines of a log that have a message.
func records(t *testing.T, log []byte) (all []record) {
	t.Helper()
	for line := range bytes.Lines(log) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if r.MessageID != "" {
			all = append(all, r)
		}
	}
	return all
}

func TestEachMessageAtDebug(t *testing.T) {
	for name, test := range map[string]struct {
		// info is the level, instead of debug.
		info   bool
		change func(table *table, o *Options, r *relay)
		// want are the lines of message 2, in order; those at debug are left out at
		// info.
		want []string
	}{
		"published": {change: func(*table, *Options, *relay) {}, want: []string{"DEBUG message published"}},
		"parked": {change: func(_ *table, o *Options, r *relay) {
			r.main.refuse = refuseIDs(errTooLarge, 2)
		}, want: []string{"DEBUG message parked", "WARN a message is parked; its key waits until it gets through or an operator decides, others go on"}},
		"refused": {change: func(_ *table, o *Options, r *relay) {
			r.main.refuse = refuseIDs(errRefused, 2)
		}, want: []string{"DEBUG message refused", "WARN a message was refused; its key waits, others go on"}},
		"dead": {change: func(_ *table, o *Options, r *relay) {
			o.Failures.Policy = DeadLetter
			r.main.refuse = refuseIDs(errTooLarge, 2)
		}, want: []string{"DEBUG message moved to the dead letters", "WARN a message was moved to the dead letters; its key goes on"}},
		"skipped": {change: func(_ *table, o *Options, r *relay) {
			o.Failures.Policy = Skip
			r.main.refuse = refuseIDs(errTooLarge, 2)
		}, want: []string{"DEBUG message skipped and deleted", "WARN a message was skipped and deleted; its key goes on"}},
		"sink away": {change: func(_ *table, _ *Options, r *relay) {
			r.main.deaf = errConnection // its pings succeed, or nothing may be claimed at all
		}, want: []string{"DEBUG message not published"}},
		"no destination": {change: func(_ *table, _ *Options, r *relay) {
			r.main.refuse = refuseIDs(errNoTopic, 2)
		}, want: []string{"WARN a destination takes nothing; what goes there waits, other messages go on", "DEBUG message not published"}},
		"not marked": {change: func(table *table, _ *Options, _ *relay) {
			table.settles = errors.New("connection lost")
		}, want: []string{"DEBUG message published, but not marked"}},
		"at info": {info: true, change: func(_ *table, _ *Options, r *relay) {
			r.main.refuse = refuseIDs(errTooLarge, 2)
		}, want: []string{"WARN a message is parked; its key waits until it gets through or an operator decides, others go on"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := newTable(100)
				for id := range int64(3) {
					table.insert("orders", "a")
					table.describe(id + 1)
				}
				level := slog.LevelDebug
				if test.info {
					level = slog.LevelInfo
				}
				var log bytes.Buffer
				r := start(t, table, func(o *Options, r *relay) {
					o.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: level}))
					test.change(table, o, r)
				})
				time.Sleep(10 * time.Millisecond) // the first batch
				r.stop()
				<-r.stopped

				var got []string
				for _, l := range records(t, log.Bytes()) {
					if l.ID != 2 {
						continue
					}
					got = append(got, l.Level+" "+l.Msg)
					if l.MessageID != "00000000-0000-0000-0000-000000000002" || l.TraceID != fmt.Sprintf("%032x", 2) || l.Topic != "orders" || l.Sink != "main" && !strings.Contains(l.Msg, "destination") {
						t.Errorf("the line is of something else: %+v", l)
					}
				}
				expect(t, "lines", strings.Join(got[:min(len(got), len(test.want))], "\n"), strings.Join(test.want, "\n"))
				if bytes.Contains(log.Bytes(), []byte(canary)) {
					t.Errorf("a payload, a key or a header is in the log:\n%s", log.Bytes())
				}
			})
		})
	}
}

// TestNoLineCosts: at info nothing is gathered for lines that nobody reads, and
// without a tracer nothing for spans.
func TestNoLineCosts(t *testing.T) {
	table := newTable(1000)
	for id := range int64(1000) {
		table.insert("orders", "a")
		table.describe(id + 1)
	}
	main := &broker{}
	r := New(Options{
		Source: table.source, Sinks: map[string]sinks.Publisher{"main": main}, Routes: compile(t, route.Config{Sink: "main"}),
		Workers: 1, Failures: Failures{Backoff: steady}, Logger: slog.New(slog.DiscardHandler),
	})
	p := r.pipelines[0]
	batch, err := p.source.Claim(t.Context(), p.exclusion())
	if err != nil {
		t.Fatal(err)
	}
	defer batch.Release()
	d := p.route(claimed{batch: batch})
	if n := testing.AllocsPerRun(100, func() {
		if p.reports(t.Context(), d) != nil {
			t.Error("there are reports that nobody reads")
		}
		d.sending(d.requests[0]).End(nil)
		d.trace.Settle().End(0, nil)
		d.trace.End()
	}); n != 0 {
		t.Errorf("what is off allocates %v times for a batch of 1000", n)
	}
}

// TestSpansOfPipeline: what a batch does is in its trace, and a message's own
// context reaches the broker as it was.
func TestSpansOfPipeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		recorder := tracetest.NewSpanRecorder()
		provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
		table := newTable(100)
		for id := range int64(3) {
			table.insert("orders", "a")
			table.describe(id + 1)
		}
		var headers []string
		r := start(t, table, func(o *Options, r *relay) {
			o.Tracer = tracing.New(tracing.Options{Tracer: provider.Tracer("test"), MaxLinks: 128, Table: "outbox"})
			o.Failures.Policy = DeadLetter
			o.Copies = Copies{Sink: "main", Template: "dead-{key}", Destination: func(_, _ string, key []byte) string { return "dead-" + string(key) }}
			r.main.refuse = func(m sinks.Message) error {
				headers = append(headers, fmt.Sprint(m.Headers[:3]))
				if m.Sequence == 2 && m.Destination != "dead-a" {
					return errTooLarge
				}
				return nil
			}
		})
		time.Sleep(time.Second)
		r.stop()
		<-r.stopped
		count, links := map[string]int{}, map[string]int{}
		roots := map[string]bool{}
		for _, s := range recorder.Ended() {
			count[s.Name()]++
			links[s.Name()] += len(s.Links())
			roots[s.SpanContext().TraceID().String()] = true
		}
		expect(t, "spans", count, map[string]int{"relay outbox": 1, "claim outbox": 1, "send orders": 1, "send dead-{key}": 1, "settle outbox": 1})
		expect(t, "links", links, map[string]int{"relay outbox": 0, "claim outbox": 0, "send orders": 3, "send dead-{key}": 1, "settle outbox": 0})
		expect(t, "traces", len(roots), 1)
		expect(t, "messages tried", len(headers), 4)
		for i, id := range []int{1, 2, 3, 2} {
			if want := fmt.Sprintf("{traceparent 00-%032x-%016x-01}", id, id); !strings.Contains(headers[i], want) {
				t.Errorf("the broker got %s, want %s in it", headers[i], want)
			}
		}
	})
}
