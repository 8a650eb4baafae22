package sqlstate_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/outboxrelay/relay/internal/sqlstate"
)

func TestOf(t *testing.T) {
	deadlock := &pgconn.PgError{Code: "40P01"}
	for want, errs := range map[string][]error{
		"40P01": {deadlock, fmt.Errorf("claim: %w", deadlock), errors.Join(errors.New("also"), deadlock)},
		"":      {nil, errors.New("40P01")},
	} {
		for _, err := range errs {
			if got := sqlstate.Of(err); got != want {
				t.Errorf("%v has the state %q, want %q", err, got, want)
			}
		}
	}
}
