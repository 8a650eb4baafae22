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
	// another relay, or this one after a restart, publishes them again.
	Unsettled(n int)
	// GivenUp tells that a message was moved to the dead letters, or skipped.
	GivenUp(topic, policy string)
	PublishTook(sink string, took time.Duration)
	SettleTook(took time.Duration)
	// SinkUp and DatabaseUp tell of a state whenever it may have changed.
	SinkUp(sink string, up bool)
	DatabaseUp(up bool)
}

// noObserver is the no-op observer.
type noObserver struct{}

func (noObserver) Claimed(time.Duration, int)         {}
func (noObserver) Published(string, string, int)      {}
func (noObserver) Acknowledged(time.Duration)         {}
func (noObserver) Failed(string, string, string, int) {}
func (noObserver) Unsettled(int)                      {}
func (noObserver) GivenUp(string, string)             {}
func (noObserver) PublishTook(string, time.Duration)  {}
func (noObserver) SettleTook(time.Duration)           {}
func (noObserver) SinkUp(string, bool)                {}
func (noObserver) DatabaseUp(bool)                    {}
