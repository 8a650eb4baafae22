package inbox

import (
	"bytes"
	"context"
	"database/sql"
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

// SQLMiddleware is Middleware for database/sql.
type SQLMiddleware func(SQLHandler) SQLHandler

// Router hands messages to handlers by their type. It is set up before its
// Handler is used, and may be used concurrently from then on.
//
//	router := inbox.NewRouter()
//	inbox.Handle(router, "OrderPlaced", func(ctx context.Context, tx pgx.Tx, event OrderPlaced) error {
//		…
//	})
//	consumer, err := kafka.New(kafka.Config{Handler: router.Handler(), …})
type Router struct{ routes routes[Handler, Middleware] }

// SQLRouter is Router for database/sql, and HandleSQL its Handle.
type SQLRouter struct {
	routes routes[SQLHandler, SQLMiddleware]
}

// NewRouter returns a Router that knows no type.
func NewRouter() *Router { return &Router{} }

// NewSQLRouter returns an SQLRouter that knows no type.
func NewSQLRouter() *SQLRouter { return &SQLRouter{} }

// Handle has messages of a type decoded from JSON into a new E, and given to
// handler; MessageFrom has the message itself. One that cannot be decoded, is
// null or has no payload, is Permanent: it would not be another one the next
// time. Members of the JSON that E does not have are passed over.
//
// It panics where the type has a handler already.
func Handle[E any](router *Router, messageType string, handler func(ctx context.Context, tx pgx.Tx, event E) error) {
	router.Handle(messageType, func(ctx context.Context, tx pgx.Tx, message Message) error {
		event, err := decodeEvent[E](messageType, message.Payload)
		if err != nil {
			return err
		}
		return handler(ctx, tx, event)
	})
}

// HandleSQL is Handle for database/sql.
func HandleSQL[E any](router *SQLRouter, messageType string, handler func(ctx context.Context, tx *sql.Tx, event E) error) {
	router.Handle(messageType, func(ctx context.Context, tx *sql.Tx, message Message) error {
		event, err := decodeEvent[E](messageType, message.Payload)
		if err != nil {
			return err
		}
		return handler(ctx, tx, event)
	})
}

func decodeEvent[E any](messageType string, payload []byte) (event E, err error) {
	// null would leave any E as it is, and look like an event of zeros.
	if text := bytes.TrimSpace(payload); len(text) == 0 || string(text) == "null" {
		what := "no payload"
		if len(text) > 0 {
			what = "the payload null"
		}
		return event, Permanent(fmt.Errorf("a message of type %s has %s, and %T was to be decoded from it", quote(messageType), what, event))
	}
	if err := json.Unmarshal(payload, &event); err != nil {
		return event, Permanent(fmt.Errorf("the payload of a message of type %s is no %T: %w", quote(messageType), event, err))
	}
	return event, nil
}

// Handle has messages of a type given to handler as they are. It panics where the
// type has a handler already.
func (r *Router) Handle(messageType string, handler Handler) {
	r.routes.add(messageType, handler, handler == nil)
}

// Handle is Router.Handle.
func (r *SQLRouter) Handle(messageType string, handler SQLHandler) {
	r.routes.add(messageType, handler, handler == nil)
}

// Default has messages of all other types given to handler. Without one they are
// Permanent failures, so that none is lost: Ignore passes over them.
func (r *Router) Default(handler Handler) { r.routes.setDefault(handler, handler == nil) }

// Default is Router.Default, with IgnoreSQL.
func (r *SQLRouter) Default(handler SQLHandler) { r.routes.setDefault(handler, handler == nil) }

// Ignore is a Handler for messages that are not for the consumer: they are
// remembered as processed.
func Ignore(context.Context, pgx.Tx, Message) error { return nil }

// IgnoreSQL is Ignore for database/sql.
func IgnoreSQL(context.Context, *sql.Tx, Message) error { return nil }

// Use wraps all handlers of the router, the default included; what is named first
// is outermost.
func (r *Router) Use(middleware ...Middleware) {
	r.routes.middleware = append(r.routes.middleware, middleware...)
}

// Use is Router.Use.
func (r *SQLRouter) Use(middleware ...SQLMiddleware) {
	r.routes.middleware = append(r.routes.middleware, middleware...)
}

// Handler is the router as one handler.
func (r *Router) Handler() Handler {
	return r.routes.wrap(func(ctx context.Context, tx pgx.Tx, message Message) error {
		handler, err := r.routes.find(message.Type)
		if err != nil {
			return err
		}
		return handler(context.WithValue(ctx, messageKey{}, &message), tx, message)
	})
}

// Handler is Router.Handler.
func (r *SQLRouter) Handler() SQLHandler {
	return r.routes.wrap(func(ctx context.Context, tx *sql.Tx, message Message) error {
		handler, err := r.routes.find(message.Type)
		if err != nil {
			return err
		}
		return handler(context.WithValue(ctx, messageKey{}, &message), tx, message)
	})
}

// routes are the handlers of a router by type.
type routes[H any, M ~func(H) H] struct {
	handlers   map[string]H
	fallback   H
	defaults   bool // fallback is set
	middleware []M
}

func (r *routes[H, M]) add(messageType string, handler H, isNil bool) {
	if isNil {
		panic("inbox: the handler of type " + quote(messageType) + " is nil")
	}
	if _, known := r.handlers[messageType]; known {
		panic("inbox: type " + quote(messageType) + " has two handlers")
	}
	if r.handlers == nil {
		r.handlers = make(map[string]H)
	}
	r.handlers[messageType] = handler
}

func (r *routes[H, M]) setDefault(handler H, isNil bool) {
	r.fallback, r.defaults = handler, !isNil
}

func (r *routes[H, M]) wrap(handler H) H {
	for _, wrap := range slices.Backward(r.middleware) {
		handler = wrap(handler)
	}
	return handler
}

// find returns the handler of a type, or why there is none.
func (r *routes[H, M]) find(messageType string) (H, error) {
	if handler, known := r.handlers[messageType]; known {
		return handler, nil
	}
	if r.defaults {
		return r.fallback, nil
	}
	if len(r.handlers) == 0 {
		return r.fallback, Permanent(errors.New("the inbox's router has no handler: name one by inbox.Handle or Router.Default"))
	}
	return r.fallback, Permanent(fmt.Errorf("no handler for a message of type %s; there are some for %s: add one by inbox.Handle, or Router.Default(inbox.Ignore)",
		quote(messageType), strings.Join(slices.Sorted(maps.Keys(r.handlers)), ", ")))
}

type messageKey struct{}

// MessageFrom returns the message that a handler of a Router is about.
func MessageFrom(ctx context.Context) (message Message, ok bool) {
	if m, ok := ctx.Value(messageKey{}).(*Message); ok {
		return *m, true
	}
	return Message{}, false
}
