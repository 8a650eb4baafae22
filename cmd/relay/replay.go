package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/operator"
	"github.com/outboxrelay/relay/internal/source"
)

// replayLimit is how many messages are replayed without a --limit.
const replayLimit = 10_000

// replayed is the document of `relay replay`.
type replayed struct {
	DryRun   bool            `json:"dry_run"`
	Messages int64           `json:"messages"`
	Topics   []replayedTopic `json:"topics"`
}

type replayedTopic struct {
	Topic    string `json:"topic"`
	Messages int64  `json:"messages"`
}

// replayFlags are the flags of `relay replay`.
type replayFlags struct {
	topic, key, since, until string
	messageIDs               []string
	all, dryRun              bool
	limit                    int
}

func newReplay(o *options) *cobra.Command {
	var format output
	var confirm confirmation
	flags := &replayFlags{}
	command := &cobra.Command{
		Use:   "replay",
		Short: "Publish already published rows again",
		Long: `Publishes rows again that were published and are still in the table (within
outbox.retention), each with the header message-replayed: true and its own
message-id, by which consumers that have seen it ignore it. All filters that are
given must fit. --since and --until take a time (RFC 3339) or a time span before
now (24h), and compare with created_at; --since is included, --until is not.
Either all that is selected is replayed or nothing.`,
		Example: `  relay replay --topic orders --since 2h --dry-run
  relay replay --topic orders --key o-17
  relay replay --since 2026-03-01T10:00:00Z --until 2026-03-01T11:00:00Z --limit 50000 --yes`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			filter, err := flags.filter(command)
			if err != nil {
				return err
			}
			c, err := o.load()
			if err != nil {
				return err
			}
			if err := replayable(c); err != nil {
				return err
			}
			if flags.dryRun {
				return countReplay(command, c, filter, flags.limit, format)
			}
			if err := confirm.possible(command); err != nil {
				return err
			}
			return replay(command, c, filter, flags.limit, &confirm, format)
		},
	}
	f := command.Flags()
	f.StringVar(&flags.topic, "topic", "", "rows of this topic")
	f.StringVar(&flags.key, "key", "", "rows with this key; may be the empty string")
	f.StringVar(&flags.since, "since", "", "rows created at this time or later: RFC 3339, or a time span before now")
	f.StringVar(&flags.until, "until", "", "rows created before this time: RFC 3339, or a time span before now")
	f.StringSliceVar(&flags.messageIDs, "message-id", nil, "this message; may be repeated")
	f.BoolVar(&flags.all, "all", false, "all published rows")
	f.BoolVar(&flags.dryRun, "dry-run", false, "only count, by topic")
	f.IntVar(&flags.limit, "limit", replayLimit, "refuse to replay more than this")
	format.add(command)
	confirm.add(command)
	return command
}

// replayable returns an error where published rows are not there to be found.
func replayable(c *config.Config) error {
	if c.Outbox.OnPublished == source.Mark {
		return nil
	}
	return fmt.Errorf("outbox.on_published is %s: published rows cannot be told or are gone, so there is nothing to replay; only `mark` keeps them, for outbox.retention", c.Outbox.OnPublished)
}

func (f *replayFlags) filter(command *cobra.Command) (operator.Filter, error) {
	var filter operator.Filter
	given := func(name string, value *string) *string {
		if command.Flags().Changed(name) {
			return value
		}
		return nil
	}
	filter.Topic, filter.Key = given("topic", &f.topic), given("key", &f.key)
	var err error
	if filter.Since, err = moment("since", given("since", &f.since)); err != nil {
		return filter, err
	}
	if filter.Until, err = moment("until", given("until", &f.until)); err != nil {
		return filter, err
	}
	if filter.MessageIDs, err = parseIDs(f.messageIDs); err != nil {
		return filter, err
	}
	filtered := filter.Topic != nil || filter.Key != nil || filter.Since != nil || filter.Until != nil || len(filter.MessageIDs) > 0
	switch {
	case filtered && f.all:
		return filter, errors.New("--all cannot be combined with filters")
	case !filtered && !f.all:
		return filter, errors.New("nothing is selected: use --topic, --key, --since, --until, --message-id, or --all")
	case f.limit < 1:
		return filter, fmt.Errorf("--limit %d: must be at least 1", f.limit)
	}
	return filter, backwards(filter)
}

// backwards returns an error when the time span is empty.
func backwards(f operator.Filter) error {
	if f.Since == nil || f.Until == nil {
		return nil
	}
	now := time.Now()
	at := func(m operator.Moment) time.Time {
		if m.At.IsZero() {
			return now.Add(-m.Ago)
		}
		return m.At
	}
	if !at(*f.Since).Before(at(*f.Until)) {
		return errors.New("--since does not lie before --until")
	}
	return nil
}

// moment reads a time or a time span before now.
func moment(flag string, text *string) (*operator.Moment, error) {
	if text == nil {
		return nil, nil
	}
	if at, err := time.Parse(time.RFC3339, *text); err == nil && !at.IsZero() {
		return &operator.Moment{At: at}, nil
	}
	if span, err := time.ParseDuration(*text); err == nil && span >= 0 {
		return &operator.Moment{Ago: span}, nil
	}
	return nil, fmt.Errorf("--%s %s: must be a time such as 2026-03-01T10:00:00Z, or a time span before now such as 24h", flag, display(*text))
}

var errNothingToReplay = errors.New("no published row is selected: it may be past outbox.retention, or not published yet; nothing was changed")

func countReplay(command *cobra.Command, c *config.Config, filter operator.Filter, limit int, format output) error {
	op, done, err := openOperator(command.Context(), c)
	if err != nil {
		return failed(err)
	}
	defer done()
	counts, err := op.CountReplay(command.Context(), filter)
	if err != nil {
		return failed(err)
	}
	document := newReplayed(counts)
	document.DryRun = true
	return document.write(command.OutOrStdout(), format, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "%s would be published again\n", noun(document.Messages, "message", "messages"))
		if document.Messages > int64(limit) {
			_, _ = fmt.Fprintf(w, "that is more than --limit %d: it would be refused\n", limit)
		}
	})
}

func replay(command *cobra.Command, c *config.Config, filter operator.Filter, limit int, confirm *confirmation, format output) error {
	ctx := command.Context()
	op, done, err := openOperator(ctx, c)
	if err != nil {
		return failed(err)
	}
	defer done()
	if !confirm.yes {
		counts, err := op.CountReplay(ctx, filter)
		if err != nil {
			return failed(err)
		}
		document := newReplayed(counts)
		if document.Messages == 0 {
			return failed(errNothingToReplay)
		}
		if document.Messages > int64(limit) {
			return failed(&operator.TooManyError{Limit: limit})
		}
		topics, messages := []string{}, map[string]int64{}
		for _, t := range document.Topics {
			topics, messages[t.Topic] = append(topics, t.Topic), t.Messages
		}
		question := fmt.Sprintf("Publish %s again (%s)?", noun(document.Messages, "message", "messages"), inWords(topics, messages))
		if err := confirm.ask(ctx, command, question); err != nil {
			return err
		}
	}
	rows, err := op.Replay(ctx, filter, limit)
	if err != nil {
		return failed(err)
	}
	if len(rows) == 0 {
		return failed(errNothingToReplay)
	}
	document := newReplayed(operator.CountByTopic(rows))
	return document.write(command.OutOrStdout(), format, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "%s published again by a running relay, with the header message-replayed: true\n", noun(document.Messages, "message is", "messages are"))
	})
}

func newReplayed(counts []operator.TopicCount) *replayed {
	document := &replayed{Topics: []replayedTopic{}}
	for _, c := range counts {
		document.Messages += c.Messages
		document.Topics = append(document.Topics, replayedTopic(c))
	}
	return document
}

func (r *replayed) write(w io.Writer, format output, summary func(io.Writer)) error {
	if format == outputJSON {
		return writeJSON(w, r)
	}
	table := newTable(w)
	for _, t := range r.Topics {
		row(table, display(t.Topic), fmt.Sprint(t.Messages))
	}
	_ = table.Flush()
	summary(w)
	return nil
}
