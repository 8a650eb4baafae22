package delivery

import "time"

// Observer is told what the loop does, for metrics. Its methods may be called
// concurrently and must not block.
type Observer interface {
	// Claimed tells of a claim that returned messages.
	Claimed(took time.Duration, messages int)
	// Published tells that n messages of the topic were acknowledged and settled.
	Published(topic, sink string, n int)
	// Acknowledged tells how long after a message was written it was acknowledged.
	Acknowledged(age time.Duration)
	// Failed tells that n messages of the topic were not published, once per
	// attempt. The sink is empty where no route leads to one.
	Failed(topic, sink, reason string, n int)
	// Unsettled tells that n messages were acknowledged and could not be marked:
	// they are published again.
	Unsettled(n int)
	// GivenUp tells that a message was moved to the dead letters, or skipped.
	GivenUp(topic, policy string)
	PublishTook(sink string, took time.Duration)
	SettleTook(took time.Duration)
	// SinkUp and DatabaseUp tell of a state whenever it may have changed.
	SinkUp(sink string, up bool)
	DatabaseUp(up bool)
}

// nobody observes nothing.
type nobody struct{}

func (nobody) Claimed(time.Duration, int)         {}
func (nobody) Published(string, string, int)      {}
func (nobody) Acknowledged(time.Duration)         {}
func (nobody) Failed(string, string, string, int) {}
func (nobody) Unsettled(int)                      {}
func (nobody) GivenUp(string, string)             {}
func (nobody) PublishTook(string, time.Duration)  {}
func (nobody) SettleTook(time.Duration)           {}
func (nobody) SinkUp(string, bool)                {}
func (nobody) DatabaseUp(bool)                    {}

// tally counts messages by topic, sink and reason, so that an observer is called
// once for each.
type tally struct {
	counts []count
	last   int
}

type count struct {
	topic, sink, reason string
	n                   int
}

func (t *tally) add(topic, sink, reason string) {
	same := func(c *count) bool { return c.topic == topic && c.sink == sink && c.reason == reason }
	if t.last < len(t.counts) && same(&t.counts[t.last]) { // neighbours are alike
		t.counts[t.last].n++
		return
	}
	for t.last = range t.counts {
		if same(&t.counts[t.last]) {
			t.counts[t.last].n++
			return
		}
	}
	t.last = len(t.counts)
	t.counts = append(t.counts, count{topic, sink, reason, 1})
}

// total counts all messages.
func (t *tally) total() (n int) {
	for _, c := range t.counts {
		n += c.n
	}
	return n
}
