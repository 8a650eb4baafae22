package inspect

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/source"
)

// barrier says how the relay makes sure that what it publishes is on disk.
func (d *database) barrier(ctx context.Context) {
	const subject = "flush barrier"
	ways, err := source.AskBarrier(ctx, d.conn, d.config.Outbox.Schema, d.config.Outbox.Table)
	if err != nil {
		d.fail(subject, err)
		return
	}
	if ways.Row != nil {
		d.add(Error, subject, fmt.Sprintf("nothing can be written to flush the server's log: %v; and %v", ways.Message, ways.Row),
			fmt.Sprintf("GRANT INSERT ON %s TO %s, or EXECUTE ON FUNCTION pg_logical_emit_message",
				pgx.Identifier{d.config.Outbox.Schema, d.config.Outbox.Table + "_parked"}.Sanitize(), d.role()))
		return
	}
	message := "compares positions of the server's log, and flushes it where it lags"
	if ways.Positions != nil {
		message = fmt.Sprintf("flushes the server's log after each claim, since the server does not tell its positions (%v)", ways.Positions)
	}
	if ways.Message != nil {
		message += fmt.Sprintf("; by a row that is taken back, since a message is refused (%v)", ways.Message)
	}
	d.add(OK, subject, message, "")
}
