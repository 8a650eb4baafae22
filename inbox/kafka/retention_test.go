package kafka_test

import (
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

func TestTopicThatKeepsRecordsLongerThanTheInboxIsWarnedOf(t *testing.T) {
	const warning = "keeps records longer than the inbox keeps their ids"
	const hour, minute = "3600000", "60000"
	type settings map[string]string
	for name, test := range map[string]struct {
		settings settings
		inbox    time.Duration
		want     string
	}{
		"longer":                   {settings{"retention.ms": "7200000", "segment.ms": minute}, time.Hour, "for up to 2h1m0s"},
		"longer with the segment":  {settings{"retention.ms": hour, "segment.ms": hour}, time.Hour, "for up to 2h0m0s"},
		"by the segment's default": {settings{"retention.ms": minute}, 7 * 24 * time.Hour, "for up to 168h1m0s"},
		"by Kafka's defaults":      {nil, 7 * 24 * time.Hour, "set Inbox.Retention to 336h0m0s or more"},
		"for ever":                 {settings{"retention.ms": "-1"}, time.Hour, "for ever"},
		"compacted":                {settings{"cleanup.policy": "compact"}, 1000 * time.Hour, "for ever"},
		"compacted and deleted":    {settings{"cleanup.policy": "compact,delete", "retention.ms": minute, "segment.ms": minute}, time.Hour, ""},
		"shorter":                  {settings{"retention.ms": minute, "segment.ms": minute}, time.Hour, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var entries []kafkago.ConfigEntry
			for name, value := range test.settings {
				entries = append(entries, kafkago.ConfigEntry{ConfigName: name, ConfigValue: value})
			}
			s := newStage(t, 1, entries...)
			config := s.config(effect)
			config.Inbox.Retention = test.inbox
			log := &syncBuffer{}
			config.Logger = newLogger(log)
			s.publish(0, 1, 1)
			consumer := start(t, config)
			s.awaitEffects(1)
			if test.want != "" {
				await(t, "the warning", func() bool { return strings.Contains(log.String(), warning) })
			}
			consumer.mustStop()
			if got := strings.Contains(log.String(), warning); got != (test.want != "") || !strings.Contains(log.String(), test.want) {
				t.Errorf("want %q warned of, the log is:\n%s", test.want, log.String())
			}
		})
	}
}
