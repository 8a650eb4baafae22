package inbox

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/sqlstate"
)

// retriable reports whether the same transaction can succeed when it is run
// again: serialization_failure and deadlock_detected.
func retriable(err error) bool {
	state := sqlstate.Of(err)
	return state == "40001" || state == "40P01"
}

// explain names what failed, and the remedy where the error has one. It wraps
// the driver's error.
func (i *Inbox) explain(what string, err error) error {
	wrapped := fmt.Errorf("inbox: %s %s: %w", what, i.identifier(""), err)
	switch sqlstate.Of(err) {
	case "42P01", "3F000": // undefined_table, invalid_schema_name
		return fmt.Errorf("%w: run `relay migrate --only inbox` on this database, or set the inbox's Schema and Table to where it is", wrapped)
	case "42703", "42P10": // undefined_column, invalid_column_reference: no such unique index
		return fmt.Errorf("%w: the table is not an inbox, or of another version: run `relay migrate --only inbox`; one that is partitioned needs the primary key (consumer, message_id)", wrapped)
	case "42501": // insufficient_privilege
		remedy := fmt.Sprintf("GRANT USAGE ON SCHEMA %s and GRANT SELECT, INSERT ON %s", pgx.Identifier{i.schema()}.Sanitize(), i.identifier(""))
		if i.Order != OrderOff {
			remedy += fmt.Sprintf(" and GRANT SELECT, INSERT, UPDATE ON %s", i.identifier("_order"))
		}
		return fmt.Errorf("%w: as the owner, %s to this role", wrapped, remedy)
	case "25006": // read_only_sql_transaction
		return fmt.Errorf("%w: the transaction is read-only, or the server a standby: connect to the primary (target_session_attrs=read-write)", wrapped)
	case "25P02": // in_failed_sql_transaction
		return fmt.Errorf("%w: an earlier statement of this transaction failed: roll it back", wrapped)
	}
	return wrapped
}

// retry runs a transaction again while that can help.
func (i *Inbox) retry(ctx context.Context, o *observation, run func() error) error {
	const first, longest = 10 * time.Millisecond, time.Second
	pause := first
	for left := i.retries(); ; left-- {
		err := run()
		if err == nil || left == 0 || !retriable(err) {
			return err
		}
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(context.Cause(ctx), err)
		}
		pause = min(2*pause, longest)
		o.again()
	}
}
