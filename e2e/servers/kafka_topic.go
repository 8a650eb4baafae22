package servers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"
)

// client returns a client of the plaintext listener, and what closes it.
func (k *Kafka) client() (*kafka.Client, func()) { return kafkaClient(k.Brokers()...) }

func kafkaClient(brokers ...string) (*kafka.Client, func()) {
	// Each use asks anew, as topics come and go.
	transport := &kafka.Transport{MetadataTTL: 50 * time.Millisecond, DialTimeout: 2 * time.Second}
	client := &kafka.Client{Addr: kafka.TCP(brokers...), Timeout: 10 * time.Second, Transport: transport}
	return client, transport.CloseIdleConnections
}

// probe succeeds when the broker answers, counts itself as alive and leads
// every partition of the topics that CreateTopic made.
func (k *Kafka) probe(ctx context.Context) error {
	client, done := k.client()
	defer done()
	metadata, err := client.Metadata(ctx, &kafka.MetadataRequest{})
	if err != nil {
		return err
	}
	if len(metadata.Brokers) == 0 {
		return errors.New("no broker is alive yet")
	}
	listed := map[string]kafka.Topic{}
	for _, topic := range metadata.Topics {
		listed[topic.Name] = topic
	}
	k.topicsMu.Lock()
	defer k.topicsMu.Unlock()
	for name, partitions := range k.topics {
		if err := checkTopic(listed[name], partitions); err != nil {
			return fmt.Errorf("topic %q: %w", name, err)
		}
	}
	return nil
}

// checkTopic refuses a topic unless all of its partitions have leaders.
func checkTopic(topic kafka.Topic, partitions int) error {
	if topic.Error != nil {
		return topic.Error
	}
	if len(topic.Partitions) != partitions {
		return fmt.Errorf("it has %d of %d partitions", len(topic.Partitions), partitions)
	}
	for _, partition := range topic.Partitions {
		if partition.Error != nil {
			return partition.Error
		}
	}
	return nil
}

// CreateTopic creates a topic and returns when all its partitions have leaders.
func (k *Kafka) CreateTopic(ctx context.Context, name string, partitions int, configs map[string]string) error {
	client, done := k.client()
	defer done()
	if err := createTopic(ctx, client, name, partitions, 1, configs); err != nil {
		return err
	}
	k.topicsMu.Lock()
	k.topics[name] = partitions
	k.topicsMu.Unlock()
	return awaitTopic(ctx, client, name, func(topic kafka.Topic) error { return checkTopic(topic, partitions) })
}

func createTopic(ctx context.Context, client *kafka.Client, name string, partitions, replicas int, configs map[string]string) error {
	topic := kafka.TopicConfig{Topic: name, NumPartitions: partitions, ReplicationFactor: replicas}
	for key, value := range configs {
		topic.ConfigEntries = append(topic.ConfigEntries, kafka.ConfigEntry{ConfigName: key, ConfigValue: value})
	}
	err := whenAvailable(ctx, func() error {
		response, err := client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{topic}})
		if err == nil {
			err = response.Errors[name]
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("creating Kafka topic %q: %w", name, err)
	}
	return nil
}

// DeleteTopic deletes a topic and returns when it is gone from the metadata.
func (k *Kafka) DeleteTopic(ctx context.Context, name string) error {
	client, done := k.client()
	defer done()
	k.topicsMu.Lock()
	delete(k.topics, name)
	k.topicsMu.Unlock()
	return deleteTopic(ctx, client, name)
}

func deleteTopic(ctx context.Context, client *kafka.Client, name string) error {
	err := whenAvailable(ctx, func() error {
		response, err := client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{name}})
		if err == nil {
			err = response.Errors[name]
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("deleting Kafka topic %q: %w", name, err)
	}
	return awaitTopic(ctx, client, name, func(topic kafka.Topic) error {
		if errors.Is(topic.Error, kafka.UnknownTopicOrPartition) {
			return nil
		}
		return errors.New("it is still there")
	})
}

// whenAvailable asks again for as long as the controller has not heard from
// brokers that were started or thawed a moment ago.
func whenAvailable(ctx context.Context, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := ask()
		if !errors.Is(err, kafka.BrokerNotAvailable) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// awaitTopic polls the topic's metadata until check accepts it.
func awaitTopic(ctx context.Context, client *kafka.Client, name string, check func(kafka.Topic) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		metadata, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{name}})
		if err == nil {
			for _, topic := range metadata.Topics {
				if topic.Name == name {
					err = check(topic)
				}
			}
			if err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("awaiting Kafka topic %q: %w", name, err)
		case <-time.After(pollInterval):
		}
	}
}
