// Package delivery tells an inbox what the consumer that calls it knows beside
// the messages, and what of a panic.
package delivery

import (
	"context"
	"fmt"
)

// Delivery is what a consumer knows.
type Delivery struct {
	// Group is the Kafka consumer group.
	Group string
	// Attempt is how often the message is tried, this time included; 0 for a
	// batch.
	Attempt int
}

type key struct{}

// With returns ctx with the delivery.
func With(ctx context.Context, d Delivery) context.Context {
	return context.WithValue(ctx, key{}, d)
}

// From returns ctx's delivery. ok says that a consumer called, who judges what
// fails.
func From(ctx context.Context) (d Delivery, ok bool) {
	d, ok = ctx.Value(key{}).(Delivery)
	return d, ok
}

// PanicError is a handler's panic. Its transaction was rolled back.
type PanicError struct {
	Value any
	// Stack is where it happened, as debug.Stack shows it.
	Stack []byte
}

// Error implements error.
func (e *PanicError) Error() string { return fmt.Sprintf("the handler panicked: %v", e.Value) }

// Unwrap returns the value that the handler panicked with, if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}
