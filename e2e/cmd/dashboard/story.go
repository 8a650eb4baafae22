package main

import (
	"context"
	"strings"
	"time"

	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/outbox"
)

// event is something that happened, for the reader of the picture.
type event struct {
	at   time.Time
	text string
}

// act is one part of the story, a while after the one before.
type act struct {
	after time.Duration
	text  string // empty: nothing to be told
	do    func(ctx context.Context) error
}

// story is what happens. It begins and ends with everything at work, but for
// what is parked and dead.
func (st *stage) story() []act {
	victim := st.relays[1]
	poison := func(topic string) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			return st.writer.insert(ctx, outbox.Message{Topic: topic, Key: "customer-7", Type: "Poisoned", Payload: []byte(strings.Repeat("x", 2*maxMessageBytes))})
		}
	}
	return []act{
		{40 * time.Second, "Kafka stops", func(context.Context) error { return st.kafka.Stop() }},
		{25 * time.Second, "Kafka is back", st.kafka.Start},
		{30 * time.Second, "an order is too large: its key is parked", poison(orders)},
		{10 * time.Second, "payments are too large: they become dead letters", poison(payments)},
		{4 * time.Second, "", poison(payments)},
		{4 * time.Second, "", poison(payments)},
		{4 * time.Second, "", poison(payments)},
		{20 * time.Second, "a relay is killed", func(context.Context) error { victim.process.Kill(); return nil }},
		{15 * time.Second, "it is started again", func(ctx context.Context) error { return st.start(ctx, victim) }},
		{20 * time.Second, "PostgreSQL stops", func(context.Context) error { return st.postgres.Stop(servers.Fast) }},
		{10 * time.Second, "PostgreSQL is back", st.postgres.Start},
		{30 * time.Second, "", func(context.Context) error { return nil }},
	}
}

// play lets the writer write and the story happen.
func (st *stage) play(ctx context.Context, pace float64) ([]event, error) {
	var err error
	if st.writer, err = startWriter(ctx, st.database); err != nil {
		return nil, err
	}
	var events []event
	for _, a := range st.story() {
		if err := wait(ctx, time.Duration(pace*float64(a.after))); err != nil {
			return nil, err
		}
		at := time.Now()
		if err := a.do(ctx); err != nil {
			return nil, err
		}
		if a.text == "" {
			continue
		}
		if strings.HasSuffix(a.text, "back") || strings.HasSuffix(a.text, "again") {
			at = time.Now() // which a start takes a while for
		}
		tell("%s", a.text)
		events = append(events, event{at, a.text})
	}
	return events, nil
}
