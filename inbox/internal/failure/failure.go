// Package failure has the errors by which a handler says what to do with its
// message, so that consumers recognise them.
package failure

import "time"

// Permanent is an error that no further attempt can change.
type Permanent struct{ Err error }

// Error implements error.
func (e *Permanent) Error() string { return e.Err.Error() }

// Unwrap returns the handler's error.
func (e *Permanent) Unwrap() error { return e.Err }

// RetryAfter is an error after which the next attempt should wait.
type RetryAfter struct {
	Err   error
	Delay time.Duration
}

// Error implements error.
func (e *RetryAfter) Error() string { return e.Err.Error() }

// Unwrap returns the handler's error.
func (e *RetryAfter) Unwrap() error { return e.Err }
