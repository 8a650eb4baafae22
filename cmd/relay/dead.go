package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/outboxrelay/relay/internal/operator"
	"github.com/outboxrelay/relay/outbox"
)

func newDead(o *options) *cobra.Command {
	return newGroup("dead", "List, show, retry or discard dead letters: messages that were given up",
		"  relay dead list\n  relay dead retry 0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f",
		newDeadList(o), newDeadShow(o), newDeadRetry(o), newDeadDiscard(o))
}

const nothingDead = "there are no dead letters"

// deadLetter is an element of `relay dead list`.
type deadLetter struct {
	MessageID outbox.UUID `json:"message_id"`
	ID        int64       `json:"id"`
	Topic     string      `json:"topic"`
	Key       *string     `json:"key"`
	Type      string      `json:"type"`
	Attempts  int         `json:"attempts"`
	Error     string      `json:"error"`
	DeadAt    time.Time   `json:"dead_at"`
}

func newDeadLetter(d operator.DeadLetter) deadLetter {
	d.DeadAt = d.DeadAt.UTC()
	return deadLetter(d)
}

func newDeadList(o *options) *cobra.Command {
	var format output
	var list listFlags
	command := &cobra.Command{
		Use:     "list",
		Short:   "List the dead letters, the oldest first",
		Example: "  relay dead list --topic orders --limit 20\n  relay dead list --output json | jq -r '.[].message_id'",
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
			op, done, err := openOperator(command.Context(), c)
			if err != nil {
				return failed(err)
			}
			defer done()
			if format == outputJSON {
				array := jsonArray{w: command.OutOrStdout()}
				if err := op.ListDead(command.Context(), options, func(d operator.DeadLetter) error { return array.add(newDeadLetter(d)) }); err != nil {
					return failed(err)
				}
				return array.end()
			}
			return tabulateDead(command.Context(), command.OutOrStdout(), op, options)
		},
	}
	format.add(command)
	list.add(command)
	return command
}

// tabulateRows is how many rows of a table are aligned together: there may be
// very many.
const tabulateRows = 1000

func tabulateDead(ctx context.Context, w io.Writer, op *operator.Operator, options operator.ListOptions) error {
	now := time.Now()
	table := newTable(w)
	n := 0
	err := op.ListDead(ctx, options, func(d operator.DeadLetter) error {
		if n == 0 {
			row(table, "TOPIC", "KEY", "MESSAGE ID", "TYPE", "ATTEMPTS", "DEAD", "ERROR")
		}
		row(table, display(d.Topic), displayKey(d.Key), d.MessageID.String(), displayType(d.Type), strconv.Itoa(d.Attempts), ago(d.DeadAt, now), displayError(d.Error))
		if n++; n%tabulateRows == 0 {
			return table.Flush()
		}
		return nil
	})
	if err == nil && n == 0 {
		_, err = fmt.Fprintln(w, nothingDead)
	}
	if err == nil {
		err = table.Flush()
	}
	return failed(err)
}

func displayType(kind string) string {
	if kind == "" {
		return "-"
	}
	return display(shorten(kind, shortCell))
}

// deadSelector are the flags that select dead letters.
func deadSelector(command *cobra.Command) *selector {
	s := &selector{}
	command.Flags().StringVar(&s.topic, "topic", "", "all dead letters of this topic")
	command.Flags().BoolVar(&s.all, "all", false, "all dead letters")
	return s
}

// deadCommand finds what is selected and passes it on; before is asked first,
// without the database.
func deadCommand(command *cobra.Command, o *options, selects *selector, arguments []string, before func() error,
	act func(context.Context, *operator.Operator, operator.Selection, []operator.Letter) error,
) error {
	selection, err := selects.selection(command, false, arguments)
	if err != nil {
		return err
	}
	c, err := o.load()
	if err != nil {
		return err
	}
	if err := before(); err != nil {
		return err
	}
	op, done, err := openOperator(command.Context(), c)
	if err != nil {
		return failed(err)
	}
	defer done()
	letters, err := op.FindDead(command.Context(), selection)
	if err != nil {
		return failed(err)
	}
	return act(command.Context(), op, selection, letters)
}

func letterTopic(l operator.Letter) string { return l.Topic }

// revived is what `relay dead retry` returns of a message.
type revived struct {
	held
	// InOrder: it comes before all later messages of its key. false: some were
	// published already. null: that cannot be known, or it has no order.
	InOrder *bool `json:"in_order"`
}

func newDeadRetry(o *options) *cobra.Command {
	var format output
	var confirm confirmation
	var selects *selector
	command := &cobra.Command{
		Use:   "retry [MESSAGE ID...]",
		Short: "Put dead letters back into the outbox",
		Long: `Puts dead letters back into the outbox as they were, with their ids, and has them
published before what is pending of their keys. Where later messages of its key
were published already, a message comes after those: the answer says so of each.
Nothing is changed unless all messages that are named are there.`,
		Example: "  relay dead retry 0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f\n  relay dead retry --topic orders --yes",
		RunE: func(command *cobra.Command, arguments []string) error {
			return deadCommand(command, o, selects, arguments, func() error { return confirm.possible(command) },
				func(ctx context.Context, op *operator.Operator, s operator.Selection, letters []operator.Letter) error {
					if err := confirmRetry(ctx, command, &confirm, op, letters); err != nil {
						return err
					}
					done, err := op.RetryDead(ctx, s, letters)
					return writeResults(command, format, done, op.Gone(), err, nothingDead, func(r operator.Revived) revived {
						return revived{held{r.Topic, r.Key, r.MessageID, r.ID}, r.InOrder}
					}, func(w io.Writer) { writeRevived(w, done) })
				})
		},
	}
	format.add(command)
	confirm.add(command)
	selects = deadSelector(command)
	return command
}

func confirmRetry(ctx context.Context, command *cobra.Command, confirm *confirmation, op *operator.Operator, letters []operator.Letter) error {
	if len(letters) == 0 || confirm.yes {
		return nil
	}
	overtaken, unknown, err := op.Overtaken(ctx, letters)
	if err != nil {
		return failed(err)
	}
	question := fmt.Sprintf("Put %s back into the outbox (%s)?", noun(len(letters), "dead letter", "dead letters"), byTopic(letters, letterTopic))
	if overtaken > 0 {
		question += fmt.Sprintf(" %s after later messages of the same key.", noun(overtaken, "comes", "come"))
	}
	if unknown > 0 {
		question += fmt.Sprintf(" Of %d that cannot be known.", unknown)
	}
	return confirm.ask(ctx, command, question)
}

func writeRevived(w io.Writer, done []operator.Revived) {
	limited(w, done, func(r operator.Revived) []string {
		what := "put back"
		switch {
		case r.InOrder == nil && r.Key != nil:
			what = "put back; whether later messages of its key were published before cannot be known"
		case r.InOrder != nil && !*r.InOrder:
			what = "put back; it COMES AFTER LATER MESSAGES of its key, which were published before"
		}
		return []string{display(r.Topic), displayKey(r.Key), r.MessageID.String(), what}
	})
	late := 0
	for _, r := range done {
		if r.InOrder != nil && !*r.InOrder {
			late++
		}
	}
	_, _ = fmt.Fprintf(w, "%s put back into the outbox", noun(len(done), "dead letter was", "dead letters were"))
	if late > 0 {
		_, _ = fmt.Fprintf(w, ", %d of them after later messages of the same key", late)
	}
	_, _ = fmt.Fprintln(w)
}

func newDeadDiscard(o *options) *cobra.Command {
	var format output
	var confirm confirmation
	var selects *selector
	command := &cobra.Command{
		Use:   "discard [MESSAGE ID...]",
		Short: "Delete dead letters for good",
		Long: `Deletes dead letters for good. The audit table keeps what they were, but for their
payloads and headers. Nothing is changed unless all messages that are named are
there.`,
		Example: "  relay dead discard 0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f\n  relay dead discard --topic orders --yes",
		RunE: func(command *cobra.Command, arguments []string) error {
			return deadCommand(command, o, selects, arguments, func() error { return confirm.possible(command) },
				func(ctx context.Context, op *operator.Operator, s operator.Selection, letters []operator.Letter) error {
					if len(letters) > 0 {
						question := fmt.Sprintf("Delete %s for good (%s)?", noun(len(letters), "dead letter", "dead letters"), byTopic(letters, letterTopic))
						if err := confirm.ask(ctx, command, question); err != nil {
							return err
						}
					}
					done, err := op.DiscardDead(ctx, s, letters)
					return writeResults(command, format, done, op.Gone(), err, nothingDead, func(l operator.Letter) held {
						return held{l.Topic, l.Key, l.MessageID, l.ID}
					}, func(w io.Writer) {
						limited(w, done, func(l operator.Letter) []string {
							return []string{display(l.Topic), displayKey(l.Key), l.MessageID.String(), "discarded"}
						})
						_, _ = fmt.Fprintf(w, "%s discarded\n", noun(len(done), "dead letter was", "dead letters were"))
					})
				})
		},
	}
	format.add(command)
	confirm.add(command)
	selects = deadSelector(command)
	return command
}
