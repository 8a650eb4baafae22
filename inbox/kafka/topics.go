package kafka

import (
	"context"
	"regexp"
	"slices"
	"time"
)

// topics are those that a member wants: the ones that are named, and the ones
// that a pattern matches.
type topics struct {
	config  *Config
	cluster *cluster
	// pattern matches whole names; nil without one.
	pattern *regexp.Regexp
	// matched are topics that the pattern matches, when they were last there.
	matched map[string]time.Time
	wanted  []string
}

func newTopics(config *Config, cluster *cluster) *topics {
	t := &topics{config: config, cluster: cluster, matched: make(map[string]time.Time), wanted: slices.Clone(config.Topics)}
	if config.TopicPattern != nil {
		t.pattern = regexp.MustCompile("^(?:" + config.TopicPattern.String() + ")$")
	}
	return t
}

// refresh looks which topics the pattern matches, and reports whether they are
// others than before. One that is missing for a moment stays.
func (t *topics) refresh(ctx context.Context) (changed bool, err error) {
	if t.pattern == nil {
		return false, nil
	}
	known, err := t.cluster.of(ctx, nil)
	if err != nil {
		return false, err
	}
	dead, _ := t.config.OnPoison.(DeadLetter)
	for name, topic := range known.topics {
		if !topic.internal && topic.err == nil && name != dead.Topic && t.pattern.MatchString(name) {
			t.matched[name] = known.at
		}
	}
	wanted := slices.Clone(t.config.Topics)
	for name, at := range t.matched {
		if known.at.Sub(at) < missingAfter {
			wanted = append(wanted, name)
		} else {
			delete(t.matched, name)
		}
	}
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	if slices.Equal(wanted, t.wanted) {
		return false, nil
	}
	t.wanted = wanted
	return true, t.cluster.follow(ctx, append(slices.Clone(wanted), deadLetterTopics(t.config)...))
}

func deadLetterTopics(config *Config) []string {
	if dead, ok := config.OnPoison.(DeadLetter); ok {
		return []string{dead.Topic}
	}
	return nil
}
