package kafka

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/describeconfigs"
)

const (
	retentionKey = "retention.ms"
	segmentKey   = "segment.ms"
	policyKey    = "cleanup.policy"
	topicKind    = 2 // a resource's type in the protocol
)

// retention is how long a topic keeps records: those of a segment until
// retention.ms after the segment's newest one, and a segment takes records for
// up to segment.ms, less where segment.bytes is reached earlier.
type retention struct {
	forever          bool
	records, segment time.Duration
}

func (r retention) longest() time.Duration { return r.records + r.segment }

// warnOfRetention logs topics that keep records longer than the inbox keeps
// ids: a group whose offsets are reset reads records again that the inbox does
// not know any more, and their effects happen twice. Who may not ask is not
// warned.
func (c *Consumer) warnOfRetention(ctx context.Context, topics []string) {
	kept, err := c.cluster.retentions(ctx, topics)
	if err != nil {
		c.logger.Debug("cannot ask how long the topics keep records", "error", err)
		return
	}
	window := c.config.Inbox.RetentionOrDefault()
	for _, topic := range slices.Sorted(maps.Keys(kept)) {
		r := kept[topic]
		if !r.forever && r.longest() <= window {
			continue
		}
		logger := c.logger.With("topic", topic, "inbox_keeps", window.String())
		if r.forever {
			logger = logger.With("topic_keeps", "for ever",
				"remedy", "give the topic a "+retentionKey+", or never reset its offsets to what is older than Inbox.Retention")
		} else {
			logger = logger.With("topic_keeps", "for up to "+r.longest().String(),
				retentionKey, r.records.String(), segmentKey, r.segment.String(),
				"remedy", fmt.Sprintf("set Inbox.Retention to %s or more in all that prune, or lower the topic's %s or %s", r.longest(), retentionKey, segmentKey))
		}
		logger.Warn("the topic keeps records longer than the inbox keeps their ids: should its offsets be reset, the oldest are processed twice")
	}
}

// retentions returns how long topics keep records. Topics that cannot be asked
// about are left out.
func (c *cluster) retentions(ctx context.Context, topics []string) (map[string]retention, error) {
	connection, err := c.dialAny(ctx)
	if err != nil {
		return nil, err
	}
	defer connection.close()
	request := &describeconfigs.Request{}
	for _, topic := range topics {
		request.Resources = append(request.Resources, describeconfigs.RequestResource{
			ResourceType: topicKind, ResourceName: topic, ConfigNames: []string{retentionKey, segmentKey, policyKey},
		})
	}
	message, err := connection.roundTrip(ctx, requestTimeout, request)
	if err != nil {
		return nil, err
	}
	kept := make(map[string]retention)
	for _, resource := range message.(*describeconfigs.Response).Resources {
		if resource.ErrorCode != 0 {
			err = kafkago.Error(resource.ErrorCode)
			continue
		}
		values := map[string]string{}
		for _, entry := range resource.ConfigEntries {
			values[entry.ConfigName] = entry.ConfigValue
		}
		records, finite := duration(values[retentionKey])
		if !finite || values[policyKey] == "compact" {
			kept[resource.ResourceName] = retention{forever: true}
			continue
		}
		segment, _ := duration(values[segmentKey])
		kept[resource.ResourceName] = retention{records: records, segment: segment}
	}
	if len(kept) == 0 {
		return nil, err
	}
	return kept, nil
}

// duration reads a setting in milliseconds; none, or a negative one, is no limit.
func duration(setting string) (d time.Duration, finite bool) {
	n, err := strconv.ParseInt(setting, 10, 64)
	if err != nil || n < 0 {
		return 0, false
	}
	return time.Duration(min(n, 1<<40)) * time.Millisecond, true
}
