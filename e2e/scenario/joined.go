package scenario

import (
	"context"
	"slices"
	"sync"
)

// SecondSink is the name of a JoinedLog's other sink.
const SecondSink = "second"

// JoinedLog is the logs of two brokers, for relays with two sinks: main, which
// takes everything but the second one's topics.
type JoinedLog struct {
	main, second Log

	mu sync.Mutex
	// taken is how many records of each are among the records.
	taken   map[Log]int
	records []Record
}

// Join joins the logs of the sinks main and SecondSink.
func Join(main, second Log) *JoinedLog {
	return &JoinedLog{main: main, second: second, taken: map[Log]int{}}
}

// settings are those of a relay with both sinks.
func (j *JoinedLog) settings() Settings {
	var routes []Config
	for _, topic := range j.second.Topics() {
		routes = append(routes, Config{"match": Config{"topic": topic}, "sink": SecondSink})
	}
	routes = append(routes, Config{"match": Config{"topic": "*"}, "sink": "main"})
	return Settings{"sinks": Config{"main": j.main.Sink(), SecondSink: j.second.Sink()}, "routes": routes}
}

// Sink implements Log: it is that of main.
func (j *JoinedLog) Sink() Config { return j.main.Sink() }

// Topics implements Log.
func (j *JoinedLog) Topics() []string { return slices.Concat(j.main.Topics(), j.second.Topics()) }

// Records implements Log.
func (j *JoinedLog) Records(ctx context.Context) ([]Record, error) {
	return j.read(func(log Log) ([]Record, error) { return log.Records(ctx) })
}

// AllRecords is Records, and fails while a queue is neglected.
func (j *JoinedLog) AllRecords(ctx context.Context) ([]Record, error) {
	return j.read(func(log Log) ([]Record, error) {
		if rabbit, ok := log.(*RabbitLog); ok {
			return rabbit.AllRecords(ctx)
		}
		return log.Records(ctx)
	})
}

// read appends what is new, so that the order of what was returned stays.
func (j *JoinedLog) read(records func(Log) ([]Record, error)) ([]Record, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, log := range []Log{j.main, j.second} {
		all, err := records(log)
		if err != nil {
			return nil, err
		}
		j.records = append(j.records, all[j.taken[log]:]...)
		j.taken[log] = len(all)
	}
	return slices.Clip(j.records), nil
}
