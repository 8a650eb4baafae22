package kafka

import (
	"maps"
	"testing"

	"github.com/outboxrelay/relay/inbox"
)

// told notes which topics are up.
type told struct {
	inbox.Unobserved
	up    map[string]bool
	calls int
}

func (b *told) BrokerUp(_, topic string, up bool) {
	b.up[topic] = up
	b.calls++
}

// TestReach tells of each topic, once for each change.
func TestReach(t *testing.T) {
	b := &told{up: make(map[string]bool)}
	r := newReach(&Config{Topics: []string{"orders", "bills"}, Inbox: &inbox.Inbox{Consumer: "shipping", Observer: b}})
	expect := func(when string, calls int, orders, bills bool) {
		t.Helper()
		if want := map[string]bool{"orders": orders, "bills": bills}; !maps.Equal(b.up, want) || b.calls != calls {
			t.Errorf("%s: %v after %d calls, want %v after %d", when, b.up, b.calls, want, calls)
		}
	}
	r.unknown()
	expect("at first", 2, false, false)
	r.group(true)
	r.group(true)
	expect("as a member", 4, true, true)
	r.partition(partitionID{"orders", 0}, false)
	r.partition(partitionID{"orders", 1}, false)
	r.partition(partitionID{"orders", 0}, true)
	expect("with a partition in trouble", 5, false, true)
	r.forget(partitionID{"orders", 1})
	expect("when it is somebody else's", 6, true, true)
	r.group(false)
	expect("without a coordinator", 8, false, false)
}
