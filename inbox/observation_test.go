package inbox

import (
	"testing"
	"time"
)

func unobserved() (*Inbox, Message) {
	m := Message{ID: ID{1}, Topic: "orders", Source: KafkaSource("orders", 0, 1), Payload: []byte("{}"), Time: time.Now()}
	m.Headers = map[string]string{"message-id": m.ID.String()}
	return &Inbox{Consumer: "shipping"}, m
}

// TestUnobservedCostsLittle bounds what metrics and spans cost where nobody
// wants them: a message costs more than a hundred allocations in all.
func TestUnobservedCostsLittle(t *testing.T) {
	box, m := unobserved()
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() {
		_, o := box.observe(ctx, false, m)
		o.end(nil, Processed)
	}); n > 16 {
		t.Errorf("%v allocations, want 16 at most", n)
	}
}

// BenchmarkUnobserved measures the same.
func BenchmarkUnobserved(b *testing.B) {
	box, m := unobserved()
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		_, o := box.observe(ctx, false, m)
		o.end(nil, Processed)
	}
}
