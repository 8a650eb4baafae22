package delivery

import (
	"errors"
	"time"

	"github.com/outboxrelay/relay/internal/route"
	"github.com/outboxrelay/relay/internal/setting"
)

// Policy is what becomes of a message that was refused as often as is allowed,
// or that can never succeed; a route may have its own.
type Policy = route.Policy

// The policies.
const (
	Park       = route.Park
	DeadLetter = route.DeadLetter
	Skip       = route.Skip
)

// Failures is the section failures of the configuration file: what becomes of
// refused messages.
type Failures struct {
	// Policy is for messages whose route has none.
	Policy Policy `yaml:"policy"`
	// MaxAttempts is how often a message is tried before the policy applies. Only
	// those count that the broker refused for what the message is.
	MaxAttempts int `yaml:"max_attempts"`
	// Backoff is between attempts, and while a sink or a destination is away.
	Backoff Backoff `yaml:"backoff"`
	// DeadLetter is where a copy of each dead letter is published.
	DeadLetter DeadLetterCopy `yaml:"dead_letter"`
}

// Backoff is the pause before an attempt is repeated.
type Backoff struct {
	Initial    time.Duration `yaml:"initial"`
	Max        time.Duration `yaml:"max"`
	Multiplier float64       `yaml:"multiplier"`
	// Jitter is the share by which a pause is longer or shorter at random.
	Jitter float64 `yaml:"jitter"`
}

// DeadLetterCopy is where a copy of each message is published that a relay
// moves to the dead letters; an empty Sink turns that off.
type DeadLetterCopy struct {
	Sink string `yaml:"sink"`
	// Destination is a template as in a route.
	Destination string `yaml:"destination"`
	Exchange    string `yaml:"exchange"`
}

// Defaults returns the configuration that an empty mapping stands for.
func Defaults() Failures {
	return Failures{
		Policy:      Park,
		MaxAttempts: 5,
		Backoff:     Backoff{Initial: 200 * time.Millisecond, Max: 30 * time.Second, Multiplier: 2, Jitter: 0.2},
		DeadLetter:  DeadLetterCopy{Destination: "dead.{topic}"},
	}
}

// Validate reports every mistake, but for those in DeadLetter, as joined errors
// of type *setting.Error.
func (f Failures) Validate() error {
	return errors.Join(
		f.Policy.Validate("policy"),
		setting.Between("max_attempts", f.MaxAttempts, 1, 1_000_000),
		setting.Between("backoff.initial", f.Backoff.Initial, time.Millisecond, time.Hour),
		setting.Between("backoff.max", f.Backoff.Max, time.Millisecond, 24*time.Hour),
		f.Backoff.validateOrder(),
		setting.Between("backoff.multiplier", f.Backoff.Multiplier, 1, 100),
		setting.Between("backoff.jitter", f.Backoff.Jitter, 0, 1),
	)
}

func (b Backoff) validateOrder() error {
	if b.Initial <= b.Max {
		return nil
	}
	return setting.Errorf("backoff.max", "%s is less than failures.backoff.initial, %s", b.Max, b.Initial)
}

// Compile returns what Options need of it; brokers are the sinks' by their
// names. Its error joins everything that is wrong, each with its path in the
// configuration.
func (c DeadLetterCopy) Compile(brokers map[string]route.Broker) (Copies, error) {
	const path = "failures.dead_letter"
	if c.Sink == "" {
		if c.Exchange != "" {
			return Copies{}, setting.Errorf(path+".sink", "is missing, and exchange is given; name the sink that copies of dead letters go to")
		}
		return Copies{}, nil
	}
	if c.Destination == "" {
		return Copies{}, setting.Errorf(path+".destination", "is empty; leave the key out for %s", Defaults().DeadLetter.Destination)
	}
	template, err := route.Config{Sink: c.Sink, Destination: c.Destination, Exchange: c.Exchange}.Template(path, brokers)
	if err != nil {
		return Copies{}, err
	}
	copies := Copies{Sink: c.Sink, Exchange: c.Exchange, Destination: template.Expand}
	if template.UsesKey() {
		copies.Template = template.String()
	}
	return copies, nil
}
