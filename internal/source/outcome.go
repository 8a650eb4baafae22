package source

import "time"

// Verdict is what became of one message of a batch.
type Verdict uint8

const (
	// GivenBack means that the message was not tried, or that nobody knows what
	// became of it. It stays as it was, to be claimed again.
	GivenBack Verdict = iota
	// Published means that the broker acknowledged it.
	Published
	// Retrying means that the broker refused it, and that it holds back its key
	// until it was tried again.
	Retrying
	// Parked is Retrying, but it was refused as often as the policy allows: it
	// counts as parked, for an operator to see.
	Parked
	// Dead means that it is given up, moves to the dead letters, and its key goes on.
	Dead
	// Dropped means that it is given up and deleted, and its key goes on.
	Dropped
)

// Outcome is a verdict and what belongs to it.
type Outcome struct {
	Verdict Verdict
	// Attempts, Reason and Error are of a message that was refused: how often that
	// makes, a short word, and the error in full.
	Attempts      int
	Reason, Error string
	// RetryIn is when to try a message again that was refused; of one that is
	// given back, how long its entry among the held back ones waits, if it has
	// one.
	RetryIn time.Duration
}

// refused reports whether the outcome makes the message hold back its key.
func (o *Outcome) refused() bool { return o.Verdict == Retrying || o.Verdict == Parked }

// Failures is what is remembered of a message that was refused before.
type Failures struct {
	Attempts int
	Parked   bool
}
