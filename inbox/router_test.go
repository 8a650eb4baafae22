package inbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/internal/failure"
)

type orderPlaced struct {
	ID    string `json:"id"`
	Cents int64  `json:"cents"`
}

func TestRouter(t *testing.T) {
	var seen []string
	note := func(format string, arguments ...any) { seen = append(seen, fmt.Sprintf(format, arguments...)) }
	named := func(name string) inbox.Middleware {
		return func(next inbox.Handler) inbox.Handler {
			return func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
				note("before %s", name)
				err := next(ctx, tx, m)
				note("after %s", name)
				return err
			}
		}
	}
	router := inbox.NewRouter()
	router.Use(named("a"), named("b"))
	inbox.Handle(router, "OrderPlaced", func(ctx context.Context, _ pgx.Tx, event orderPlaced) error {
		m, ok := inbox.MessageFrom(ctx)
		note("%s for %d, key %s %t", event.ID, event.Cents, m.Key, ok)
		return nil
	})
	inbox.Handle(router, "OrdersPlaced", func(_ context.Context, _ pgx.Tx, events []*orderPlaced) error {
		note("%d orders", len(events))
		return errOuter
	})
	handle := router.Handler()
	run := func(messageType, payload string) error {
		seen = nil
		return handle(t.Context(), nil, inbox.Message{Type: messageType, Payload: []byte(payload), Key: []byte("k")})
	}
	if err := run("OrderPlaced", `{"id": "o-1", "cents": 12, "more": true}`); err != nil {
		t.Error(err)
	}
	if want := []string{"before a", "before b", "o-1 for 12, key k true", "after b", "after a"}; !slices.Equal(seen, want) {
		t.Errorf("seen %q, want %q", seen, want)
	}
	if err := run("OrdersPlaced", `[{}, {}]`); !errors.Is(err, errOuter) || seen[2] != "2 orders" {
		t.Errorf("%v after %q", err, seen)
	}
	for _, test := range []struct {
		messageType, payload string
		want                 []string
	}{
		{"OrderPlaced", `{"id": 17}`, []string{`"OrderPlaced"`, "inbox_test.orderPlaced", "id"}},
		{"OrderPlaced", `{"id`, []string{`"OrderPlaced"`, "unexpected end"}},
		{"OrderPlaced", ``, []string{`"OrderPlaced"`, "no payload"}},
		{"OrderPlaced", " null\n", []string{`"OrderPlaced"`, "payload null"}},
		{"OrderShipped", `{}`, []string{`"OrderShipped"`, "OrderPlaced, OrdersPlaced", "Router.Default(inbox.Ignore)"}},
	} {
		err := run(test.messageType, test.payload)
		if _, permanent := errors.AsType[*failure.PermanentError](err); !permanent {
			t.Errorf("%s %s: %v is not permanent", test.messageType, test.payload, err)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s %s: %v does not say %s", test.messageType, test.payload, err, want)
			}
		}
	}
	router.Default(inbox.Ignore)
	if err := run("OrderShipped", `{}`); err != nil {
		t.Error(err)
	}
}

// Which of two handlers is meant nobody can know.
func TestRouterRefusesASecondHandler(t *testing.T) {
	router := inbox.NewRouter()
	router.Handle("OrderPlaced", inbox.Ignore)
	defer func() {
		if value := recover(); !strings.Contains(fmt.Sprint(value), `"OrderPlaced"`) {
			t.Errorf("recovered %v", value)
		}
	}()
	router.Handle("OrderPlaced", inbox.Ignore)
	t.Error("a second handler is accepted")
}

// The same with database/sql, in the transaction of the message.
func TestSQLRouter(t *testing.T) {
	db := newDatabase(t)
	standard := openSQL(t, db.URL)
	router := inbox.NewSQLRouter()
	wrapped := 0
	router.Use(func(next inbox.SQLHandler) inbox.SQLHandler {
		return func(ctx context.Context, tx *sql.Tx, m inbox.Message) error {
			wrapped++
			return next(ctx, tx, m)
		}
	})
	inbox.HandleSQL(router, "OrderPlaced", func(ctx context.Context, tx *sql.Tx, event orderPlaced) error {
		m, _ := inbox.MessageFrom(ctx)
		if event.Cents != 12 {
			t.Errorf("%+v", event)
		}
		return applySQL(ctx, tx, m)
	})
	box := &inbox.Inbox{Consumer: "mail"}
	placed, null, other := newMessage(), newMessage(), newMessage()
	placed.Type, placed.Payload = "OrderPlaced", []byte(`{"cents": 12}`)
	null.Type, null.Payload = "OrderPlaced", []byte(`null`)
	other.Type = "OrderShipped"
	for _, want := range []inbox.Result{inbox.Processed, inbox.Duplicate} {
		result, err := box.ProcessSQL(t.Context(), standard, placed, router.Handler())
		expectResult(t, "placed", result, want, err)
	}
	for _, m := range []inbox.Message{null, other} {
		_, err := box.ProcessSQL(t.Context(), standard, m, router.Handler())
		if _, permanent := errors.AsType[*failure.PermanentError](err); !permanent {
			t.Errorf("%s: %v is not permanent", m.Type, err)
		}
	}
	expectEffects(t, db, 1)
	router.Default(inbox.IgnoreSQL)
	result, err := box.ProcessSQL(t.Context(), standard, other, router.Handler())
	expectResult(t, "of another type", result, inbox.Processed, err)
	if wrapped != 4 {
		t.Errorf("the middleware ran %d times, want 4", wrapped)
	}
}
