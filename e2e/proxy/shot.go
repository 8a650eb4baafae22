package proxy

import "slices"

// Shot is one break of one connection, the first on which it can happen.
type Shot struct {
	direction Direction
	// burst is the size of the burst in that direction from which it strikes.
	burst int
	// answer: it strikes the answer to that burst, not the burst itself.
	answer bool
	fired  chan struct{}
}

// Fired is closed when the connection was cut.
func (s *Shot) Fired() <-chan struct{} { return s.fired }

// HasFired reports whether the connection was cut.
func (s *Shot) HasFired() bool {
	select {
	case <-s.fired:
		return true
	default:
		return false
	}
}

// CutAfter cuts one connection after n bytes of a burst in the direction, in the
// middle of the frame when that is longer: the n bytes arrive, the rest does not.
// Connections with shorter bursts are left alone.
func (p *Proxy) CutAfter(direction Direction, n int) *Shot {
	return p.arm(&Shot{direction: direction, burst: n})
}

// DropAnswer lets a request of at least n bytes reach the server, swallows what
// the server answers, and cuts the connection: the client cannot know what
// became of its request.
func (p *Proxy) DropAnswer(n int) *Shot {
	return p.arm(&Shot{direction: ToServer, burst: n, answer: true})
}

func (p *Proxy) arm(s *Shot) *Shot {
	s.fired = make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shots = append(p.shots, s)
	return s
}

// Disarm takes a shot back, and reports whether it did: one that has struck, or
// is striking, stays.
func (p *Proxy) Disarm(s *Shot) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.shots, s)
	if i >= 0 {
		p.shots = append(p.shots[:i:i], p.shots[i+1:]...)
	}
	return i >= 0
}

// strike returns how many of the n bytes that are about to move in the direction
// may pass, and the shot that cuts the connection after them, if there is one.
// The caller holds the proxy's lock.
func (p *Proxy) strike(l *link, d Direction, n int) (pass int, shot *Shot) {
	for i, s := range p.shots {
		switch {
		case s.answer && d != s.direction && l.burst[s.direction] >= s.burst:
			pass = 0
		case !s.answer && d == s.direction && l.burst[d]+n >= s.burst:
			pass = max(0, s.burst-l.burst[d])
		default:
			continue
		}
		p.shots = append(p.shots[:i:i], p.shots[i+1:]...)
		return pass, s
	}
	return n, nil
}
