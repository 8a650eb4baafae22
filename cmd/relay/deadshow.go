package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/spf13/cobra"

	"github.com/outboxrelay/relay/internal/operator"
)

// shownPayload is how much of a payload is shown as text.
const shownPayload = 4 << 10

// deadMessage is an element of `relay dead show`.
type deadMessage struct {
	deadLetter
	Reason string `json:"reason"`
	// Payload is the text where it is one, PayloadBase64 the bytes otherwise; both
	// are null where it is null.
	Payload       *string           `json:"payload"`
	PayloadBase64 []byte            `json:"payload_base64"`
	ContentType   string            `json:"content_type"`
	Headers       map[string]string `json:"headers"`
	// Infinite times are the texts infinity and -infinity.
	AvailableAt   operator.Timestamp `json:"available_at"`
	CreatedAt     operator.Timestamp `json:"created_at"`
	FirstFailedAt time.Time          `json:"first_failed_at"`
	LastFailedAt  time.Time          `json:"last_failed_at"`
}

func newDeadMessage(m operator.DeadMessage) deadMessage {
	document := deadMessage{
		deadLetter: newDeadLetter(m.DeadLetter), Reason: m.Reason, ContentType: m.ContentType, Headers: m.Headers,
		AvailableAt: m.AvailableAt, CreatedAt: m.CreatedAt, FirstFailedAt: m.FirstFailedAt.UTC(), LastFailedAt: m.LastFailedAt.UTC(),
	}
	switch {
	case m.Payload == nil:
	case utf8.Valid(m.Payload):
		text := string(m.Payload)
		document.Payload = &text
	default:
		document.PayloadBase64 = m.Payload
	}
	return document
}

func newDeadShow(o *options) *cobra.Command {
	var format output
	var selects *selector
	payload := "text"
	command := &cobra.Command{
		Use:   "show [MESSAGE ID...]",
		Short: "Show dead letters with all that they hold",
		Long: `Shows dead letters with all that they hold. A payload that is text is shown as such,
up to 4 KiB; --payload raw writes one message's payload to stdout, byte for byte,
and nothing else. JSON has it whole, in payload or, where it is no text, in
payload_base64.`,
		Example: "  relay dead show 0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f\n  relay dead show --payload raw 0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f > payload.json",
		RunE: func(command *cobra.Command, arguments []string) error {
			raw := payload == "raw"
			switch {
			case payload != "text" && !raw:
				return fmt.Errorf("--payload %s: must be text or raw", display(payload))
			case raw && format == outputJSON:
				return errors.New("--payload raw cannot be combined with --output json; JSON has the whole payload")
			}
			return deadCommand(command, o, selects, arguments, func() error { return nil },
				func(ctx context.Context, op *operator.Operator, _ operator.Selection, letters []operator.Letter) error {
					w := command.OutOrStdout()
					switch {
					case raw:
						return writePayload(ctx, w, op, letters)
					case format == outputJSON:
						array := jsonArray{w: w}
						if err := op.ShowDead(ctx, letters, func(m operator.DeadMessage) error { return array.add(newDeadMessage(m)) }); err != nil {
							return failed(err)
						}
						return array.end()
					case len(letters) == 0:
						_, err := fmt.Fprintln(w, nothingDead)
						return failed(err)
					}
					separator := ""
					return failed(op.ShowDead(ctx, letters, func(m operator.DeadMessage) error {
						_, err := fmt.Fprint(w, separator, showMessage(m))
						separator = "\n"
						return err
					}))
				})
		},
	}
	format.add(command)
	selects = deadSelector(command)
	command.Flags().StringVar(&payload, "payload", payload, "text, or raw: only the payload of one message, byte for byte")
	return command
}

func writePayload(ctx context.Context, w io.Writer, op *operator.Operator, letters []operator.Letter) error {
	if len(letters) != 1 {
		return failed(fmt.Errorf("--payload raw writes the payload of one message; %s selected", noun(len(letters), "message is", "messages are")))
	}
	return failed(op.ShowDead(ctx, letters, func(m operator.DeadMessage) error {
		_, err := w.Write(m.Payload)
		return err
	}))
}

// showMessage is all of a dead letter as text.
func showMessage(m operator.DeadMessage) string {
	var b strings.Builder
	table := newTable(&b)
	moment := func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
	row(table, "message id", m.MessageID.String())
	row(table, "id", fmt.Sprint(m.ID))
	row(table, "topic", display(m.Topic))
	key := "- (none)"
	if m.Key != nil {
		key = display(*m.Key)
	}
	row(table, "key", key)
	row(table, "type", display(m.Type))
	row(table, "content type", display(m.ContentType))
	row(table, "created at", written(m.CreatedAt))
	if m.AvailableAt.Valid {
		row(table, "available at", written(m.AvailableAt))
	}
	row(table, "dead at", moment(m.DeadAt))
	row(table, "attempts", fmt.Sprintf("%d, first failed at %s, last failed at %s", m.Attempts, moment(m.FirstFailedAt), moment(m.LastFailedAt)))
	row(table, "reason", display(m.Reason))
	row(table, "error", strings.ReplaceAll(displayText(m.Error), "\n", " "))
	for _, name := range slices.Sorted(maps.Keys(m.Headers)) {
		row(table, "header", display(name)+": "+display(m.Headers[name]))
	}
	row(table, "payload", payloadTitle(m.Payload))
	_ = table.Flush()
	if m.Payload != nil && utf8.Valid(m.Payload) {
		text := m.Payload
		for len(text) > shownPayload || !utf8.Valid(text) {
			text = text[:min(len(text)-1, shownPayload)]
		}
		for line := range strings.Lines(displayText(string(text))) {
			_, _ = fmt.Fprintf(&b, "    %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	return b.String()
}

// written is a time as its writer chose it.
func written(t operator.Timestamp) string {
	if t.InfinityModifier != pgtype.Finite {
		return t.InfinityModifier.String()
	}
	return t.Time.Format(time.RFC3339Nano)
}

func payloadTitle(payload []byte) string {
	switch {
	case payload == nil:
		return "null"
	case !utf8.Valid(payload):
		return noun(len(payload), "byte", "bytes") + ", no text: --payload raw writes them"
	case len(payload) > shownPayload:
		return fmt.Sprintf("%d bytes, the first %d of which follow: --payload raw writes all", len(payload), shownPayload)
	}
	return noun(len(payload), "byte", "bytes")
}
