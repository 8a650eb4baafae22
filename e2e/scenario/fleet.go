package scenario

import (
	"sync"
	"time"
)

// Fleet is several relays that share an outbox.
type Fleet []*Relay

// StartFleet starts n relays side by side and waits until all are ready.
func (s *Stage) StartFleet(n int) Fleet {
	s.t.Helper()
	fleet := make(Fleet, n)
	for i := range fleet {
		fleet[i] = s.Relay(nil)
		fleet[i].Launch()
	}
	for _, r := range fleet {
		r.AwaitReady()
	}
	return fleet
}

// KillLoop kills one relay at random after the other for the duration, some
// time after the last kill, and starts it again a moment later. It returns the
// number of kills, with all relays running.
func (s *Stage) KillLoop(fleet Fleet, duration time.Duration) (kills int) {
	s.t.Helper()
	random := s.Random(1 << 32)
	for deadline := time.Now().Add(duration); time.Now().Before(deadline); {
		time.Sleep(time.Duration(200+random.IntN(500)) * time.Millisecond)
		victim := fleet[random.IntN(len(fleet))]
		victim.Kill()
		kills++
		time.Sleep(time.Duration(random.IntN(200)) * time.Millisecond)
		victim.Launch()
	}
	for _, r := range fleet {
		r.AwaitReady()
	}
	s.t.Logf("%d kills", kills)
	return kills
}

// Stop stops all relays side by side and fails the test unless each exits with
// code 0.
func (f Fleet) Stop() {
	var group sync.WaitGroup
	for _, r := range f {
		group.Go(r.Stop)
	}
	group.Wait()
}
