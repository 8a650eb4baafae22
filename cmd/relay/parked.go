package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/outboxrelay/relay/internal/operator"
	"github.com/outboxrelay/relay/outbox"
)

func newParked(o *options) *cobra.Command {
	return newGroup("parked", "List, retry or skip messages that the broker refused and that hold back their keys",
		"  relay parked list\n  relay parked skip --topic orders --key o-17",
		newParkedList(o), newParkedRetry(o), newParkedSkip(o))
}

const nothingParked = "nothing is parked"

// parkedEntry is an element of `relay parked list`.
type parkedEntry struct {
	Topic       string      `json:"topic"`
	Key         *string     `json:"key"`
	MessageID   outbox.UUID `json:"message_id"`
	ID          int64       `json:"id"`
	Attempts    int         `json:"attempts"`
	Error       string      `json:"error"`
	ParkedAt    *time.Time  `json:"parked_at"`
	NextRetryAt time.Time   `json:"next_retry_at"`
	// Waiting is null when there were too many pending rows to count in time.
	Waiting *int64 `json:"waiting"`
	// State is there with --all-states only.
	State string `json:"state,omitempty"`
}

func newParkedEntry(e operator.Entry, withState bool) parkedEntry {
	entry := parkedEntry{
		Topic: e.Topic, Key: e.Key, MessageID: e.MessageID, ID: e.ID, Attempts: e.Attempts, Error: e.Error,
		ParkedAt: utc(e.ParkedAt), NextRetryAt: e.NextRetryAt.UTC(), Waiting: e.Waiting,
	}
	if withState {
		entry.State = e.State
	}
	return entry
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	inUTC := t.UTC()
	return &inUTC
}

func newParkedList(o *options) *cobra.Command {
	var format output
	var list listFlags
	var allStates bool
	command := &cobra.Command{
		Use:   "list",
		Short: "List the parked messages, the oldest first, and how many wait behind each",
		Long: `Lists the messages that the broker refused as often as failures.max_attempts, the
oldest first, and how many rows of the same topic and key wait behind each. They
are still tried again at times. With --all-states also those that failed less
often (retrying), and those that are out of the way while a relay publishes what
waited behind them (draining).`,
		Example: "  relay parked list --topic orders\n  relay parked list --output json | jq -r '.[].message_id'",
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			options, err := list.options(command)
			if err != nil {
				return err
			}
			c, err := o.load()
			if err != nil {
				return err
			}
			states := []string{operator.Parked}
			if allStates {
				states = append(states, operator.Retrying, operator.Draining)
			}
			op, done, err := openOperator(command.Context(), c)
			if err != nil {
				return failed(err)
			}
			defer done()
			entries, err := op.ListParked(command.Context(), options, states...)
			if err != nil {
				return failed(err)
			}
			if format == outputJSON {
				return writeEntries(command.OutOrStdout(), entries, allStates)
			}
			return tabulateEntries(command.OutOrStdout(), entries, allStates)
		},
	}
	format.add(command)
	list.add(command)
	command.Flags().BoolVar(&allStates, "all-states", false, "also list what is not parked yet, or not any more")
	return command
}

func writeEntries(w io.Writer, entries []operator.Entry, withState bool) error {
	array := jsonArray{w: w}
	for _, e := range entries {
		if err := array.add(newParkedEntry(e, withState)); err != nil {
			return err
		}
	}
	return array.end()
}

func tabulateEntries(w io.Writer, entries []operator.Entry, withState bool) error {
	if len(entries) == 0 {
		_, err := fmt.Fprintln(w, nothingParked)
		return failed(err)
	}
	now := time.Now()
	table := newTable(w)
	titles := []string{"TOPIC", "KEY", "MESSAGE ID", "ATTEMPTS", "WAITING", "PARKED", "NEXT RETRY", "ERROR"}
	if withState {
		titles = append([]string{"STATE"}, titles...)
	}
	row(table, titles...)
	for _, e := range entries {
		waiting, parked := "?", "-"
		if e.Waiting != nil {
			waiting = strconv.FormatInt(*e.Waiting, 10)
		}
		if e.ParkedAt != nil {
			parked = ago(*e.ParkedAt, now)
		}
		cells := []string{display(e.Topic), displayKey(e.Key), e.MessageID.String(), strconv.Itoa(e.Attempts), waiting, parked, ago(e.NextRetryAt, now), displayError(e.Error)}
		if withState {
			cells = append([]string{e.State}, cells...)
		}
		row(table, cells...)
	}
	return failed(table.Flush())
}

// parkedSelector are the flags that select parked messages.
func parkedSelector(command *cobra.Command) *selector {
	s := &selector{}
	command.Flags().StringVar(&s.topic, "topic", "", "with --key: the message that holds back this key")
	command.Flags().StringVar(&s.key, "key", "", "with --topic; may be the empty string")
	command.Flags().StringSliceVar(&s.messageIDs, "message-id", nil, "this message; may be repeated")
	command.Flags().BoolVar(&s.all, "all", false, "all that 'relay parked list' shows")
	return s
}

// held is what a write to a parked message returns.
type held struct {
	Topic     string      `json:"topic"`
	Key       *string     `json:"key"`
	MessageID outbox.UUID `json:"message_id"`
	ID        int64       `json:"id"`
}

func heldOf(e operator.Entry) held {
	return held{e.Topic, e.Key, e.MessageID, e.ID}
}

func newParkedRetry(o *options) *cobra.Command {
	var format output
	var confirm confirmation
	var selects *selector
	command := &cobra.Command{
		Use:   "retry",
		Short: "Try parked messages again now",
		Long: `Makes parked messages due, so that a relay tries them again at once instead of at
their next retry. One that succeeds lets its key go on; one that fails again stays
parked. Nothing is changed unless all messages that are named are there.`,
		Example: "  relay parked retry --topic orders --key o-17\n  relay parked retry --all --yes",
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return writeParked(command, o, selects, &confirm,
				func(entries []operator.Entry) string {
					return fmt.Sprintf("Try %s again now (%s)?", noun(len(entries), "parked message", "parked messages"), byTopic(entries, entryTopic))
				},
				func(ctx context.Context, op *operator.Operator, s operator.Selection, entries []operator.Entry) error {
					done, err := op.RetryParked(ctx, s, entries)
					return writeResults(command, format, done, op.Gone(), err, nothingParked, heldOf, func(w io.Writer) {
						limited(w, done, func(e operator.Entry) []string {
							return []string{display(e.Topic), displayKey(e.Key), e.MessageID.String(), "due now"}
						})
						_, _ = fmt.Fprintf(w, "%s tried again by a running relay now\n", noun(len(done), "message is", "messages are"))
					})
				})
		},
	}
	format.add(command)
	confirm.add(command)
	selects = parkedSelector(command)
	return command
}

// skipped is what `relay parked skip` returns of a message.
type skipped struct {
	held
	DeadLetter bool `json:"dead_letter"`
}

func newParkedSkip(o *options) *cobra.Command {
	var format output
	var confirm confirmation
	var selects *selector
	command := &cobra.Command{
		Use:   "skip",
		Short: "Move parked messages to the dead letters and let their keys go on",
		Long: `Moves parked messages to the dead letters; what waited behind them is then
published in order. 'relay dead retry' brings one back, but then it comes after
later messages of its key. Nothing is changed unless all messages that are named
are there.`,
		Example: "  relay parked skip --topic orders --key o-17\n  relay parked skip --message-id 0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f --yes",
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			return writeParked(command, o, selects, &confirm,
				func(entries []operator.Entry) string {
					return fmt.Sprintf("Move %s to the dead letters and let what waits behind go on (%s)?",
						noun(len(entries), "parked message", "parked messages"), byTopic(entries, entryTopic))
				},
				func(ctx context.Context, op *operator.Operator, s operator.Selection, entries []operator.Entry) error {
					done, err := op.SkipParked(ctx, s, entries)
					return writeResults(command, format, done, op.Gone(), err, nothingParked, func(e operator.Skipped) skipped { return skipped{heldOf(e.Entry), e.DeadLetter} }, func(w io.Writer) {
						limited(w, done, func(e operator.Skipped) []string {
							what := "moved to the dead letters"
							if !e.DeadLetter {
								what = "was not pending any more; its key goes on"
							}
							return []string{display(e.Topic), displayKey(e.Key), e.MessageID.String(), what}
						})
						_, _ = fmt.Fprintf(w, "%s skipped\n", noun(len(done), "message was", "messages were"))
					})
				})
		},
	}
	format.add(command)
	confirm.add(command)
	selects = parkedSelector(command)
	return command
}

func entryTopic(e operator.Entry) string { return e.Topic }

// writeParked finds what is selected, asks, and acts.
func writeParked(command *cobra.Command, o *options, selects *selector, confirm *confirmation, question func([]operator.Entry) string,
	act func(context.Context, *operator.Operator, operator.Selection, []operator.Entry) error,
) error {
	selection, err := selects.selection(command, true, nil)
	if err != nil {
		return err
	}
	c, err := o.load()
	if err != nil {
		return err
	}
	if err := confirm.possible(command); err != nil {
		return err
	}
	ctx := command.Context()
	op, done, err := openOperator(ctx, c)
	if err != nil {
		return failed(err)
	}
	defer done()
	entries, err := op.FindParked(ctx, selection)
	if _, missing := errors.AsType[*operator.NotFoundError](err); missing {
		// A relay that retried them by itself came first: that is no error.
		published, lookErr := op.JustPublished(ctx, selection, entries)
		if err = errors.Join(err, lookErr); published {
			err = nil
		}
	}
	if err != nil {
		return failed(err)
	}
	if len(entries) > 0 {
		if err := confirm.ask(ctx, command, question(entries)); err != nil {
			return err
		}
	}
	return act(ctx, op, selection, entries)
}

// writeResults writes what was done, also where it was not all because of err, and
// what somebody else did meanwhile; nothing is the text for when there was nothing
// to do. JSON has what was done only.
func writeResults[T, R any](command *cobra.Command, format output, done []T, gone []operator.Gone, err error, nothing string, result func(T) R, text func(io.Writer)) error {
	w := command.OutOrStdout()
	beside := w
	if format == outputJSON {
		beside = command.ErrOrStderr()
	}
	limited(beside, gone, func(g operator.Gone) []string {
		return []string{display(g.Topic), displayKey(g.Key), g.MessageID.String(), g.What}
	})
	if err != nil && len(done) == 0 {
		return failed(err)
	}
	switch {
	case format == outputJSON:
		array := jsonArray{w: w}
		for _, d := range done {
			if writeErr := array.add(result(d)); writeErr != nil {
				return errors.Join(writeErr, err)
			}
		}
		if writeErr := array.end(); writeErr != nil {
			return writeErr
		}
	case len(done) == 0 && len(gone) > 0: // it is said
	case len(done) == 0:
		_, _ = fmt.Fprintln(w, nothing)
	default:
		text(w)
	}
	return failed(err)
}

// listFlags narrow a list.
type listFlags struct {
	topic string
	limit int
}

func (l *listFlags) add(command *cobra.Command) {
	command.Flags().StringVar(&l.topic, "topic", "", "only those of this topic")
	command.Flags().IntVar(&l.limit, "limit", 0, "at most so many, the oldest; 0: all")
}

func (l *listFlags) options(command *cobra.Command) (operator.ListOptions, error) {
	if l.limit < 0 {
		return operator.ListOptions{}, fmt.Errorf("--limit %d: must not be negative", l.limit)
	}
	options := operator.ListOptions{Limit: l.limit}
	if command.Flags().Changed("topic") {
		options.Topic = &l.topic
	}
	return options, nil
}
