package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/operator"
	"github.com/outboxrelay/relay/outbox"
)

// newGroup is a command that only has others below it.
func newGroup(use, short, example string, commands ...*cobra.Command) *cobra.Command {
	group := &cobra.Command{
		Use: use, Short: short, Example: example,
		// Otherwise an unknown subcommand would be answered with help and success.
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error { return command.Help() },
	}
	group.AddCommand(commands...)
	return group
}

// openOperator connects as an operator; the caller closes.
func openOperator(ctx context.Context, c *config.Config) (*operator.Operator, func(), error) {
	conn, err := connect(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	o := operator.New(conn, operator.Options{
		Schema: c.Outbox.Schema, Table: c.Outbox.Table,
		Ordering: c.Outbox.Ordering, OnPublished: c.Outbox.OnPublished,
		Retention: c.Outbox.Retention, User: operator.CurrentUser(),
	})
	return o, func() { _ = o.Close(context.WithoutCancel(ctx)) }, nil
}

// selector is the flags that select parked messages or dead letters.
type selector struct {
	topic, key string
	messageIDs []string
	all        bool
}

// selection makes a Selection of the flags, and of message ids that are
// arguments. withKey: a topic is selected with a key, and not as a whole.
func (s *selector) selection(command *cobra.Command, withKey bool, arguments []string) (operator.Selection, error) {
	topic, key := command.Flags().Changed("topic"), withKey && command.Flags().Changed("key")
	ids, err := parseIDs(append(s.messageIDs, arguments...))
	if err != nil {
		return operator.Selection{}, err
	}
	ways := 0
	for _, given := range []bool{s.all, topic || key, len(ids) > 0} {
		if given {
			ways++
		}
	}
	offer := "message ids, --topic or --all"
	if withKey {
		offer = "--message-id, --topic with --key, or --all"
	}
	switch {
	case ways == 0:
		return operator.Selection{}, errors.New("nothing is selected: use " + offer)
	case ways > 1:
		return operator.Selection{}, errors.New("too much is selected: use only one of " + offer)
	case withKey && topic != key:
		return operator.Selection{}, errors.New("--topic and --key go together; a message without a key is selected by --message-id")
	case topic && s.topic == "":
		return operator.Selection{}, errors.New("--topic is empty; every message has a topic")
	}
	selection := operator.Selection{All: s.all, MessageIDs: ids, Topic: s.topic}
	if key {
		selection.Key = &s.key
	}
	return selection, nil
}

// parseIDs reads message ids, each once.
func parseIDs(texts []string) ([]outbox.UUID, error) {
	var ids []outbox.UUID
	seen := map[outbox.UUID]bool{}
	for _, text := range texts {
		id, err := outbox.ParseUUID(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("message id %s is not a UUID of the form 00000000-0000-0000-0000-000000000000", display(text))
		}
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// noun is "1 message" or "2 messages".
func noun[N int | int64](n N, singular, plural string) string {
	if n == 1 {
		return "1 " + singular
	}
	return fmt.Sprintf("%d %s", n, plural)
}

// byTopic is how many there are of each topic, in words: "orders 2, mail 1".
func byTopic[T any](items []T, topic func(T) string) string {
	var topics []string
	counts := map[string]int64{}
	for _, item := range items {
		if counts[topic(item)]++; counts[topic(item)] == 1 {
			topics = append(topics, topic(item))
		}
	}
	return inWords(topics, counts)
}

// inWords shows some of the counts.
func inWords(topics []string, counts map[string]int64) string {
	const most = 10
	var parts []string
	for i, topic := range topics {
		if i == most {
			parts = append(parts, fmt.Sprintf("%d more", len(topics)-most))
			break
		}
		parts = append(parts, fmt.Sprintf("%s %d", display(topic), counts[topic]))
	}
	return strings.Join(parts, ", ")
}
