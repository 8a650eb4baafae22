package kafka_test

import (
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
)

func TestTopicThatKeepsRecordsLongerThanTheInboxIsWarnedOf(t *testing.T) {
	const warning = "keeps records longer than the inbox keeps their ids"
	for name, test := range map[string]struct {
		setting kafkago.ConfigEntry
		inbox   time.Duration
		want    string
	}{
		"longer":    {kafkago.ConfigEntry{ConfigName: "retention.ms", ConfigValue: "7200000"}, time.Hour, "for 2h0m0s"},
		"for ever":  {kafkago.ConfigEntry{ConfigName: "retention.ms", ConfigValue: "-1"}, time.Hour, "for ever"},
		"compacted": {kafkago.ConfigEntry{ConfigName: "cleanup.policy", ConfigValue: "compact"}, 1000 * time.Hour, "for ever"},
		"shorter":   {kafkago.ConfigEntry{ConfigName: "retention.ms", ConfigValue: "60000"}, time.Hour, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, 1, test.setting)
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
