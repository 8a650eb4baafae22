// Package failure has the errors by which a handler says what to do with its
// message, so that consumers recognise them.
package failure

import "time"

// PermanentError is an error that no further attempt can change.
type PermanentError struct{ Err error }

// Error implements error.
func (e *PermanentError) Error() string { return e.Err.Error() }

// Unwrap returns the handler's error.
func (e *PermanentError) Unwrap() error { return e.Err }

// RetryAfterError is an error after which the next attempt should wait.
type RetryAfterError struct {
	Err   error
	Delay time.Duration
}

// Error implements error.
func (e *RetryAfterError) Error() string { return e.Err.Error() }

// Unwrap returns the handler's error.
func (e *RetryAfterError) Unwrap() error { return e.Err }
