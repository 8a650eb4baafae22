package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/inspect"
	"github.com/outboxrelay/relay/internal/operator"
	"github.com/outboxrelay/relay/internal/source"
)

// status is the document of `relay status`.
type status struct {
	Mode     string         `json:"mode"`
	Database databaseStatus `json:"database"`
	Sinks    []sinkStatus   `json:"sinks"`
	Topics   []topicStatus  `json:"topics"`
	// Slot is the replication slot of mode follow; null when polling.
	Slot *slotStatus `json:"slot"`
}

type databaseStatus struct {
	Up    bool   `json:"up"`
	Error string `json:"error"`
}

type sinkStatus struct {
	Name  string `json:"name"`
	Up    bool   `json:"up"`
	Error string `json:"error"`
}

type topicStatus struct {
	Topic            string  `json:"topic"`
	Pending          int64   `json:"pending"`
	OldestPendingAge float64 `json:"oldest_pending_age_seconds"`
	ParkedKeys       int64   `json:"parked_keys"`
	DeadLetters      int64   `json:"dead_letters"`
}

type slotStatus struct {
	Name          string `json:"name"`
	Active        bool   `json:"active"`
	RetainedBytes int64  `json:"retained_bytes"`
}

func newStatus(o *options) *cobra.Command {
	var format output
	command := &cobra.Command{
		Use:     "status",
		Short:   "Show what is pending, parked and dead, per topic, and whether the sinks are up",
		Long:    "Shows what is pending, parked and dead, per topic, and whether the database and the\nsinks are up. It reads all pending rows. Exit code 1 when the outbox cannot be read.",
		Example: "  relay status --output json",
		Args:    cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			c, err := o.load()
			if err != nil {
				return err
			}
			s, err := readStatus(command.Context(), c)
			if err != nil {
				return failed(err)
			}
			if format == outputJSON {
				err = writeJSON(command.OutOrStdout(), s)
			} else {
				err = s.write(command.OutOrStdout())
			}
			if err == nil && !s.Database.Up {
				err = &runtimeError{}
			}
			return err
		},
	}
	format.add(command)
	return command
}

func readStatus(ctx context.Context, c *config.Config) (*status, error) {
	s := &status{Mode: c.Outbox.Mode, Sinks: []sinkStatus{}, Topics: []topicStatus{}}
	publishers, err := newPublishers(c, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	for name, publisher := range publishers {
		sink := sinkStatus{Name: name, Up: true}
		if err := inspect.Reach(ctx, publisher); err != nil {
			sink.Up, sink.Error = false, err.Error()
		}
		s.Sinks = append(s.Sinks, sink)
	}
	_ = publishers.close() // nothing was published
	slices.SortFunc(s.Sinks, func(a, b sinkStatus) int { return strings.Compare(a.Name, b.Name) })
	if s.Topics, err = readTopics(ctx, c); err != nil {
		s.Database.Error, s.Topics = err.Error(), []topicStatus{}
	}
	s.Database.Up = err == nil
	return s, nil
}

func readTopics(ctx context.Context, c *config.Config) ([]topicStatus, error) {
	conn, err := connect(ctx, c)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	backlog, err := source.ReadBacklog(ctx, conn, c.Outbox.Schema, c.Outbox.Table)
	if err != nil {
		if remedy := source.Explain(err).Remedy; remedy != "" {
			err = fmt.Errorf("%w: %s", err, remedy)
		}
		return nil, err
	}
	failures, err := operator.ReadFailures(ctx, conn, c.Outbox.Schema, c.Outbox.Table)
	if err != nil {
		if remedy := source.Explain(err).Remedy; remedy != "" {
			err = fmt.Errorf("%w: %s", err, remedy)
		}
		return nil, err
	}
	return mergeTopics(backlog, failures), nil
}

// mergeTopics lists the topics that have anything, by name.
func mergeTopics(backlog []source.Backlog, failures []operator.Failures) []topicStatus {
	merged := map[string]topicStatus{}
	for _, b := range backlog {
		merged[b.Topic] = topicStatus{Topic: b.Topic, Pending: b.Pending, OldestPendingAge: b.OldestAge}
	}
	for _, f := range failures {
		topic := merged[f.Topic]
		topic.Topic, topic.ParkedKeys, topic.DeadLetters = f.Topic, f.ParkedKeys, f.DeadLetters
		merged[f.Topic] = topic
	}
	topics := []topicStatus{}
	for _, name := range slices.Sorted(maps.Keys(merged)) {
		topics = append(topics, merged[name])
	}
	return topics
}

func (s *status) write(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(table, "mode\t%s\n", s.Mode)
	_, _ = fmt.Fprintf(table, "database\t%s\n", upOrDown(s.Database.Up, s.Database.Error))
	for _, sink := range s.Sinks {
		_, _ = fmt.Fprintf(table, "sink %s\t%s\n", sink.Name, upOrDown(sink.Up, sink.Error))
	}
	_ = table.Flush()
	if len(s.Topics) == 0 {
		if s.Database.Up {
			_, _ = fmt.Fprintln(w, "\nnothing is pending, parked or dead")
		}
		return nil
	}
	_, _ = fmt.Fprintln(w)
	_, _ = fmt.Fprintln(table, "TOPIC\tPENDING\tOLDEST\tPARKED KEYS\tDEAD LETTERS")
	for _, t := range s.Topics {
		_, _ = fmt.Fprintf(table, "%s\t%d\t%s\t%d\t%d\n", display(t.Topic), t.Pending, displaySeconds(t.OldestPendingAge), t.ParkedKeys, t.DeadLetters)
	}
	return failed(table.Flush())
}

// displaySeconds shows an age, which may be of the year 1.
func displaySeconds(age float64) string {
	const day = 24 * 60 * 60
	if age > 36500*day { // a time.Duration holds three times as much
		return fmt.Sprintf("%.0fd", age/day)
	}
	return time.Duration(age * float64(time.Second)).Round(time.Millisecond).String()
}

func upOrDown(up bool, err string) string {
	if up {
		return "up"
	}
	return "down: " + err
}
