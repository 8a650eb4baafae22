package scenario

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// ConsumerOptions say what a consumer does; its zero value is one that works.
type ConsumerOptions struct {
	// CrashEvery: the process kills itself right after a commit of its
	// database, before the broker hears of it, after 1 to twice as many
	// commits; 0: never.
	CrashEvery int
	// FailPercent of the handler's calls fail after their effect was written.
	FailPercent int
	// WithoutInbox: every delivery is handled.
	WithoutInbox bool
	// Arguments are added to those of e2e/cmd/effects.
	Arguments []string
}

// Consumer returns a consumer of all that the stage's log holds, which does
// not run yet. Those with the same effects share the work.
func (s *Stage) Consumer(effects *Effects, options ConsumerOptions) *Process {
	s.t.Helper()
	arguments := []string{"--database", effects.URL, "--consumer", effects.Name}
	sink := s.Log.Sink()
	if brokers := get(sink, "kafka.brokers", []string(nil)); brokers != nil {
		for _, broker := range brokers {
			arguments = append(arguments, "--kafka", broker)
		}
	} else {
		arguments = append(arguments, "--rabbitmq", get(sink, "rabbitmq.url", ""))
	}
	for _, topic := range s.Log.Topics() {
		arguments = append(arguments, "--topic", topic)
	}
	arguments = append(arguments, "--crash-every", strconv.Itoa(options.CrashEvery), "--fail-percent", strconv.Itoa(options.FailPercent))
	if options.WithoutInbox {
		arguments = append(arguments, "--without-inbox")
	}
	return s.program("effects", "consumer", append(arguments, options.Arguments...)...)
}

// Producer returns a process that commits rows and their truth, which does not
// run yet.
func (s *Stage) Producer() *Process {
	s.t.Helper()
	arguments := []string{"--database", s.Database.URL}
	for _, topic := range s.Log.Topics() {
		arguments = append(arguments, "--topic", topic)
	}
	return s.program("producer", "producer", arguments...)
}

// Crew is several consumers that share the work.
type Crew []*Process

// StartCrew starts n consumers with the same options.
func (s *Stage) StartCrew(effects *Effects, n int, options ConsumerOptions) Crew {
	s.t.Helper()
	crew := make(Crew, n)
	for i := range crew {
		crew[i] = s.Consumer(effects, options)
		crew[i].Start()
	}
	return crew
}

// Kills is how often members were killed, or killed themselves.
func (c Crew) Kills() (n int) {
	for _, p := range c {
		n += p.Kills()
	}
	return n
}

// Stop stops all members side by side.
func (c Crew) Stop() {
	var group sync.WaitGroup
	for _, p := range c {
		group.Go(p.Stop)
	}
	group.Wait()
}

// StartHarassing kills members of the crew at random, and lets others leave and
// join again, until the function that it returns is called, which leaves all of
// them running. The first member never leaves.
func (s *Stage) StartHarassing(crew Crew) (stop func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	random := s.Random(2 << 32)
	var done sync.WaitGroup
	done.Go(func() {
		leaves := 0
		pause := func() bool {
			select {
			case <-ctx.Done():
				return false
			case <-time.After(time.Duration(200+random.IntN(800)) * time.Millisecond):
				return true
			}
		}
		for pause() {
			victim := random.IntN(len(crew))
			if victim == 0 || random.IntN(2) == 0 {
				crew[victim].Kill()
				continue
			}
			leaves++
			crew[victim].Stop()
			pause()
			crew[victim].Start()
		}
		s.t.Logf("members were killed %d times, and left %d times", crew.Kills(), leaves)
	})
	end := func() {
		cancel()
		done.Wait()
	}
	s.t.Cleanup(end)
	return end
}

// Consumed waits until the consumers have processed everything that the broker
// holds and ends them. It is for an outbox that is drained.
func (s *Stage) Consumed(effects *Effects, crew Crew, limit time.Duration) {
	s.t.Helper()
	log := s.Log.(interface {
		Unconsumed(ctx context.Context, group string) (int64, error)
	})
	left := func() (int64, string) {
		n, err := log.Unconsumed(s.t.Context(), effects.Name)
		if err != nil {
			return -1, err.Error()
		}
		return n, fmt.Sprintf("%d are left", n)
	}
	deadline := time.Now().Add(limit)
	// A queue does not count what a consumer had that was killed a moment ago,
	// so that an empty queue alone says little.
	committed, err := s.committed()
	if err != nil {
		s.t.Fatalf("read the truth: %v", err)
	}
	Await(s.t, limit, "every committed message to have an effect", func() (bool, string) {
		n, err := effects.Distinct(s.t.Context())
		if err != nil {
			return false, err.Error()
		}
		return n >= len(committed), fmt.Sprintf("%d of %d have", n, len(committed))
	})
	for {
		Await(s.t, time.Until(deadline), "the consumers to process everything", func() (bool, string) {
			n, state := left()
			return n == 0, state
		})
		// What a queue gave to a consumer that did not process it comes back
		// when that one stops.
		crew.Stop()
		if n, _ := left(); n == 0 {
			return
		}
		for _, p := range crew {
			p.Start()
		}
	}
}
