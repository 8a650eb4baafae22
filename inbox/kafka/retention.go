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
	policyKey    = "cleanup.policy"
	topicKind    = 2 // a resource's type in the protocol
)

// warnOfRetention logs topics that keep records longer than the inbox keeps
// ids: a group whose offsets are reset reads records again that the inbox does
// not know any more, and their effects happen twice. Who may not ask is not
// warned.
func (c *Consumer) warnOfRetention(ctx context.Context) {
	kept, err := c.cluster.retentions(ctx, c.config.Topics)
	if err != nil {
		c.logger.Debug("cannot ask how long the topics keep records", "error", err)
		return
	}
	window := c.config.Inbox.RetentionOrDefault()
	for _, topic := range slices.Sorted(maps.Keys(kept)) {
		retention := kept[topic]
		if retention >= 0 && retention <= window {
			continue
		}
		keeps := "for ever"
		if retention >= 0 {
			keeps = "for " + retention.String()
		}
		c.logger.Warn("the topic keeps records longer than the inbox keeps their ids: should its offsets be reset, the oldest are processed twice",
			"topic", topic, "topic_keeps", keeps, "inbox_keeps", window.String(),
			"remedy", fmt.Sprintf("set Inbox.Retention to more than the topic's %s, in all that prune", retentionKey))
	}
}

// retentions returns how long topics keep records, negative where for ever.
// Topics that cannot be asked about are left out.
func (c *cluster) retentions(ctx context.Context, topics []string) (map[string]time.Duration, error) {
	connection, err := c.dialAny(ctx)
	if err != nil {
		return nil, err
	}
	defer connection.close()
	request := &describeconfigs.Request{}
	for _, topic := range topics {
		request.Resources = append(request.Resources, describeconfigs.RequestResource{
			ResourceType: topicKind, ResourceName: topic, ConfigNames: []string{retentionKey, policyKey},
		})
	}
	message, err := connection.roundTrip(ctx, requestTimeout, request)
	if err != nil {
		return nil, err
	}
	kept := make(map[string]time.Duration)
	for _, resource := range message.(*describeconfigs.Response).Resources {
		if resource.ErrorCode != 0 {
			err = kafkago.Error(resource.ErrorCode)
			continue
		}
		values := map[string]string{}
		for _, entry := range resource.ConfigEntries {
			values[entry.ConfigName] = entry.ConfigValue
		}
		milliseconds, wrong := strconv.ParseInt(values[retentionKey], 10, 64)
		if wrong != nil || milliseconds < 0 || values[policyKey] == "compact" {
			kept[resource.ResourceName] = -1
			continue
		}
		kept[resource.ResourceName] = time.Duration(min(milliseconds, 1<<40)) * time.Millisecond
	}
	if len(kept) == 0 {
		return nil, err
	}
	return kept, nil
}
