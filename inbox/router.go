package inbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Middleware wraps a handler: it does something before and after it, or instead
// of it.
type Middleware func(Handler) Handler

// Router hands messages to handlers by their type. It is set up before its
// Handler is used, and may be used concurrently from then on.
//
//	router := inbox.NewRouter()
//	inbox.Handle(router, "OrderPlaced", func(ctx context.Context, tx pgx.Tx, event OrderPlaced) error {
//		…
//	})
//	consumer, err := kafka.New(kafka.Config{Handler: router.Handler(), …})
type Router struct {
	handlers   map[string]Handler
	fallback   Handler
	middleware []Middleware
}

// NewRouter returns a Router that knows no type.
func NewRouter() *Router { return &Router{handlers: make(map[string]Handler)} }

// Handle has messages of a type decoded from JSON into a new E, and given to
// handler; MessageFrom has the message itself. One that cannot be decoded, or has
// no payload, is Permanent: it would not be another one the next time. Members of
// the JSON that E does not have are passed over.
//
// It panics where the type has a handler already.
func Handle[E any](router *Router, messageType string, handler func(ctx context.Context, tx pgx.Tx, event E) error) {
	router.Handle(messageType, func(ctx context.Context, tx pgx.Tx, message Message) error {
		var event E
		if len(message.Payload) == 0 {
			return Permanent(fmt.Errorf("a message of type %s has no payload, and %T was to be decoded from it", quote(messageType), event))
		}
		if err := json.Unmarshal(message.Payload, &event); err != nil {
			return Permanent(fmt.Errorf("the payload of a message of type %s is no %T: %w", quote(messageType), event, err))
		}
		return handler(ctx, tx, event)
	})
}

// Handle has messages of a type given to handler as they are. It panics where the
// type has a handler already.
func (r *Router) Handle(messageType string, handler Handler) {
	if handler == nil {
		panic("inbox: the handler of type " + quote(messageType) + " is nil")
	}
	if _, known := r.handlers[messageType]; known {
		panic("inbox: type " + quote(messageType) + " has two handlers")
	}
	r.handlers[messageType] = handler
}

// Default has messages of all other types given to handler. Without one they are
// Permanent failures, so that none is lost: Ignore passes over them.
func (r *Router) Default(handler Handler) { r.fallback = handler }

// Ignore is a Handler for messages that are not for the consumer: they are
// remembered as processed.
func Ignore(context.Context, pgx.Tx, Message) error { return nil }

// Use wraps all handlers of the router, the default included; what is named first
// is outermost.
func (r *Router) Use(middleware ...Middleware) { r.middleware = append(r.middleware, middleware...) }

// Handler is the router as one handler.
func (r *Router) Handler() Handler {
	handler := Handler(func(ctx context.Context, tx pgx.Tx, message Message) error {
		handler, known := r.handlers[message.Type]
		if !known {
			handler = r.fallback
		}
		if handler == nil {
			return Permanent(r.unknown(message.Type))
		}
		return handler(context.WithValue(ctx, messageKey{}, &message), tx, message)
	})
	for _, wrap := range slices.Backward(r.middleware) {
		handler = wrap(handler)
	}
	return handler
}

// unknown is why a message has no handler.
func (r *Router) unknown(messageType string) error {
	if len(r.handlers) == 0 {
		return errors.New("the inbox's router has no handler: name one by inbox.Handle or Router.Default")
	}
	return fmt.Errorf("no handler for a message of type %s; there are some for %s: add one by inbox.Handle, or Router.Default(inbox.Ignore)",
		quote(messageType), strings.Join(slices.Sorted(maps.Keys(r.handlers)), ", "))
}

type messageKey struct{}

// MessageFrom returns the message that a handler of a Router is about.
func MessageFrom(ctx context.Context) (message Message, ok bool) {
	if m, ok := ctx.Value(messageKey{}).(*Message); ok {
		return *m, true
	}
	return Message{}, false
}
