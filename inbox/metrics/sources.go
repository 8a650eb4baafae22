package metrics

import "sync"

// sources bounds the values of the label source. The first ones keep their
// names as long as the process runs, so that no series changes its meaning.
type sources struct {
	mu    sync.RWMutex
	known map[place]string
	names map[string]struct{}
}

// place is a source as a consumer has it.
type place struct{ consumer, source string }

func newSources() sources {
	return sources{known: make(map[place]string), names: make(map[string]struct{})}
}

// label is the source, or OtherSources when there are too many. first says that
// the consumer has this label for the first time.
func (s *sources) label(consumer, source string) (label string, first bool) {
	s.mu.RLock()
	label, known := s.known[place{consumer, source}]
	s.mu.RUnlock()
	if known {
		return label, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if label, known = s.known[place{consumer, source}]; known {
		return label, false
	}
	label = source
	if _, named := s.names[source]; !named {
		if len(s.names) >= MaxSources {
			label = OtherSources
		} else {
			s.names[source] = struct{}{}
		}
	}
	at := place{consumer, label}
	_, had := s.known[at]
	s.known[at] = label // what is beyond the bound is not remembered
	return label, !had
}
