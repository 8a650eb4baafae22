package delivery

import (
	"fmt"
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/source"
)

var (
	epoch  = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	steady = Backoff{Initial: 200 * time.Millisecond, Max: 30 * time.Second, Multiplier: 2}
)

func TestBackoffGrowsToItsMaximum(t *testing.T) {
	for failures, want := range map[int]time.Duration{
		0: 200 * time.Millisecond, 1: 200 * time.Millisecond, 2: 400 * time.Millisecond, 5: 3200 * time.Millisecond,
		8: 25600 * time.Millisecond, 9: 30 * time.Second, 5000: 30 * time.Second,
	} {
		if got := steady.pause(failures); got != want {
			t.Errorf("pause after %d failures: %s, want %s", failures, got, want)
		}
	}
	jittery := steady
	jittery.Jitter = 0.2
	least, most := time.Hour, time.Duration(0)
	for range 2000 {
		pause := jittery.pause(3)
		least, most = min(least, pause), max(most, pause)
	}
	if least < 640*time.Millisecond || most > 960*time.Millisecond || least > 700*time.Millisecond || most < 900*time.Millisecond {
		t.Errorf("pauses with jitter 0.2 of 800 ms are between %s and %s", least, most)
	}
}

func TestHoldsByScope(t *testing.T) {
	for _, test := range []struct {
		name  string
		scope scope
		want  source.Exclusion
		all   bool
	}{
		{"key", scope{topic: "a", key: []byte("k"), id: 7}, source.Exclusion{Keys: []source.Key{{Topic: "a", Key: "k"}}}, false},
		{"empty key", scope{topic: "a", key: []byte{}, id: 7}, source.Exclusion{Keys: []source.Key{{Topic: "a"}}}, false},
		{"no key", scope{topic: "a", id: 7}, source.Exclusion{IDs: []int64{7}}, false},
		{"topic", scope{topic: "a", key: []byte("k"), id: 7, wholeTopic: true, place: place{destination: "d"}}, source.Exclusion{Topics: []string{"a"}}, false},
		{"everything", scope{topic: "a", key: []byte("k"), id: 7, everything: true}, source.Exclusion{}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newHolds()
			version := h.version
			failures, pause, news := h.add(epoch, test.scope, "r", steady)
			if failures != 1 || pause != 200*time.Millisecond || !news {
				t.Errorf("first failure: %d, %s, %t", failures, pause, news)
			}
			var got source.Exclusion
			h.exclude(&got)
			if fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("excluded: %+v, want %+v", got, test.want)
			}
			if h.all() != test.all || h.empty() || h.version == version || !h.nextExpiry.Equal(epoch.Add(pause)) {
				t.Errorf("all %t, empty %t, version %d, next expiry %s", h.all(), h.empty(), h.version, h.nextExpiry)
			}

			// Others of the same batch say nothing new.
			if failures, _, news := h.add(epoch, test.scope, "r", steady); failures != 1 || news {
				t.Errorf("the same again: %d, %t", failures, news)
			}

			// When its pause is over it is tried, and waits longer when refused again.
			version = h.version
			h.expire(epoch.Add(pause - 1))
			if h.version != version {
				t.Error("a hold ended before its time")
			}
			now := epoch.Add(pause)
			h.expire(now)
			got = source.Exclusion{}
			h.exclude(&got)
			if h.version == version || fmt.Sprint(got) != fmt.Sprint(source.Exclusion{}) || h.all() || !h.nextExpiry.IsZero() {
				t.Errorf("after the pause: %+v, next expiry %s", got, h.nextExpiry)
			}
			if failures, pause, news = h.add(now, test.scope, "r", steady); failures != 2 || pause != 400*time.Millisecond || news {
				t.Errorf("second failure: %d, %s, %t", failures, pause, news)
			}

			// Once it got through, its failures are forgotten.
			now = now.Add(pause)
			h.expire(now)
			h.published(test.scope.topic, test.scope.key, test.scope.id)
			if !h.empty() {
				t.Errorf("after success: %+v", h)
			}
			if failures, _, _ := h.add(now, test.scope, "r", steady); failures != 1 {
				t.Errorf("a failure after success is number %d", failures)
			}
		})
	}
}

func TestHoldsOutliveTheSuccessOfEarlierMessages(t *testing.T) {
	// A batch of key k: one acknowledged, the next refused.
	h := newHolds()
	h.add(epoch, scope{topic: "a", key: []byte("k"), id: 2}, "r", steady)
	h.published("a", []byte("k"), 1)
	h.published("a", []byte("other"), 3)
	h.published("b", []byte("k"), 4)
	var got source.Exclusion
	h.exclude(&got)
	if len(got.Keys) != 1 {
		t.Errorf("excluded: %+v, want the key", got)
	}
}

func TestHoldsExpireEachAtItsTime(t *testing.T) {
	h := newHolds()
	h.add(epoch, scope{topic: "a", key: []byte("late"), id: 1}, "r", Backoff{Initial: 3 * time.Second, Max: time.Hour, Multiplier: 2})
	h.add(epoch, scope{topic: "a", key: []byte("soon"), id: 2}, "r", Backoff{Initial: time.Second, Max: time.Hour, Multiplier: 2})
	if want := epoch.Add(time.Second); !h.nextExpiry.Equal(want) {
		t.Errorf("next expiry %s, want %s", h.nextExpiry, want)
	}
	h.expire(epoch.Add(time.Second))
	var got source.Exclusion
	h.exclude(&got)
	if fmt.Sprint(got.Keys) != fmt.Sprint([]source.Key{{Topic: "a", Key: "late"}}) {
		t.Errorf("after a second: %+v", got.Keys)
	}
	if want := epoch.Add(3 * time.Second); !h.nextExpiry.Equal(want) {
		t.Errorf("next expiry %s, want %s", h.nextExpiry, want)
	}
}

func TestHoldsEscalateToTheTopic(t *testing.T) {
	h := newHolds()
	for i := range maxHolds {
		s := scope{topic: "a", id: int64(i)}
		if i%2 == 0 {
			s.key = fmt.Append(nil, i)
		}
		h.add(epoch, s, "r", steady)
	}
	var got source.Exclusion
	h.exclude(&got)
	if len(got.Keys) != maxHolds/2 || len(got.IDs) != maxHolds/2 || len(got.Topics) != 0 {
		t.Fatalf("excluded %d keys, %d ids, %d topics", len(got.Keys), len(got.IDs), len(got.Topics))
	}
	h.add(epoch, scope{topic: "b", key: []byte("one more")}, "r", steady)
	got = source.Exclusion{}
	h.exclude(&got)
	if len(got.Keys)+len(got.IDs) != maxHolds || fmt.Sprint(got.Topics) != "[b]" {
		t.Errorf("excluded %d keys, %d ids, topics %v; want topic b as a whole", len(got.Keys), len(got.IDs), got.Topics)
	}
}

func TestHoldsForgetWhatIsNotTriedAgain(t *testing.T) {
	h := newHolds()
	h.add(epoch, scope{topic: "a", key: []byte("cancelled"), id: 1}, "r", steady)
	h.add(epoch, scope{topic: "a", id: 2}, "r", steady)
	h.expire(epoch.Add(steady.Initial))
	later := epoch.Add(steady.Initial + forgetHold + time.Second)
	h.add(later, scope{topic: "b", key: []byte("k"), id: 3}, "r", steady)
	h.expire(later.Add(steady.Initial))
	if len(h.keys) != 1 || len(h.ids) != 0 {
		t.Errorf("%d keys and %d ids are remembered, want one key", len(h.keys), len(h.ids))
	}
}
