package source

import (
	"sync"
	"time"
)

const (
	// shardsPerClaim is how many shards a claim locks at most: a quarter, so
	// that four workers, of one relay or of several, find work side by side.
	shardsPerClaim = Shards / 4
	// othersFor is how long other relays count as being there after they had shards.
	othersFor = 10 * time.Second
)

// share decides how many shards a claim locks: so few that all workers find some, and as
// many again for other relays where there are any. It bounds the batches that are under way at a
// time to the number of shards. Its methods are safe for concurrent use.
type share struct {
	workers int

	mutex sync.Mutex
	// mine are the shards of batches under way, and most how many they have been since the last look.
	mine, most int
	others     time.Time
}

// size is how many shards the next claim may lock.
func (s *share) size(now time.Time) int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	claims := max(s.workers, 1)
	if now.Sub(s.others) < othersFor {
		claims *= 2
	}
	return min(max(Shards/claims, 1), shardsPerClaim)
}

// took tells that a batch has so many more shards, or less where n is negative.
func (s *share) took(n int) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.mine += n
	s.most = max(s.most, s.mine)
}

// saw tells how many shards all relays together had at a moment since the last call.
func (s *share) saw(now time.Time, shards int) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if shards > s.most {
		s.others = now
	}
	s.most = s.mine
}
