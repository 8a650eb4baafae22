package demo

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/outbox"
)

const partitions = 6

// kafkaBroker audits each partition by itself, from its beginning.
type kafkaBroker struct {
	server *servers.Kafka
	// next is the offset that each partition's auditor reads next.
	next []atomic.Int64
}

func newKafkaBroker(server *servers.Kafka) *kafkaBroker {
	return &kafkaBroker{server: server, next: make([]atomic.Int64, partitions)}
}

func (k *kafkaBroker) Name() string { return "Kafka " + servers.KafkaVersion }

func (k *kafkaBroker) Sink() map[string]any {
	return map[string]any{"kafka": map[string]any{"brokers": k.server.Brokers()}}
}

func (k *kafkaBroker) Close() error { return k.server.Close() }

func (k *kafkaBroker) Audit(ctx context.Context, arrivals *Arrivals) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var readers sync.WaitGroup
	for partition := range k.next {
		readers.Go(func() {
			if err := k.read(ctx, partition, arrivals); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("audit partition %d: %w", partition, err))
			}
		})
	}
	readers.Wait()
	return context.Cause(ctx)
}

func (k *kafkaBroker) read(ctx context.Context, partition int, arrivals *Arrivals) error {
	reader := kafka.NewReader(kafka.ReaderConfig{
		Brokers: k.server.Brokers(), Topic: topic, Partition: partition,
		MinBytes: 1, MaxBytes: 10 << 20, MaxWait: 100 * time.Millisecond,
	})
	defer func() { _ = reader.Close() }()
	for {
		message, err := reader.ReadMessage(ctx)
		if err != nil {
			return err
		}
		record := Record{Key: string(message.Key), Where: fmt.Sprintf("partition %d offset %d", partition, message.Offset)}
		for _, header := range message.Headers {
			if header.Key == "message-id" {
				if record.MessageID, err = outbox.ParseUUID(string(header.Value)); err != nil {
					return err
				}
			}
		}
		arrivals.Add(record)
		k.next[partition].Store(message.Offset + 1)
	}
}

// Drain waits for each partition's auditor to get to its end.
func (k *kafkaBroker) Drain(ctx context.Context) error {
	ends, err := k.ends(ctx)
	if err != nil {
		return err
	}
	for partition, end := range ends {
		err := poll(ctx, func() (bool, error) { return k.next[partition].Load() >= end, nil })
		if err != nil {
			return fmt.Errorf("partition %d is read up to offset %d of %d: %w", partition, k.next[partition].Load(), end, err)
		}
	}
	return nil
}

func (k *kafkaBroker) client() *kafka.Client {
	return &kafka.Client{Addr: kafka.TCP(k.server.Brokers()...), Timeout: 10 * time.Second}
}

// ends are the partitions' ends.
func (k *kafkaBroker) ends(ctx context.Context) (map[int]int64, error) {
	var requests []kafka.OffsetRequest
	for partition := range k.next {
		requests = append(requests, kafka.LastOffsetOf(partition))
	}
	response, err := k.client().ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: requests}})
	if err != nil {
		return nil, fmt.Errorf("ask for the end of topic %s: %w", topic, err)
	}
	ends := make(map[int]int64, len(k.next))
	for _, end := range response.Topics[topic] {
		if end.Error != nil {
			return nil, fmt.Errorf("ask for the end of partition %d: %w", end.Partition, end.Error)
		}
		ends[end.Partition] = end.LastOffset
	}
	return ends, nil
}

// ShippingEnvironment implements broker.
func (k *kafkaBroker) ShippingEnvironment(int) ([]string, error) {
	return []string{"KAFKA_BROKERS=" + strings.Join(k.server.Brokers(), ",")}, nil
}

// Unshipped implements broker: by the offsets that the group has committed.
func (k *kafkaBroker) Unshipped(ctx context.Context) (waiting int64, err error) {
	ends, err := k.ends(ctx)
	if err != nil {
		return 0, err
	}
	offsets, err := k.offsets(ctx)
	if err != nil {
		return 0, err
	}
	for partition, end := range ends {
		waiting += end - offsets[partition]
	}
	return waiting, nil
}

// offsets are those that the shipping service's group has committed.
func (k *kafkaBroker) offsets(ctx context.Context) (map[int]int64, error) {
	request := &kafka.OffsetFetchRequest{GroupID: shippingGroup, Topics: map[string][]int{}}
	for partition := range k.next {
		request.Topics[topic] = append(request.Topics[topic], partition)
	}
	response, err := k.client().OffsetFetch(ctx, request)
	if err == nil {
		err = response.Error
	}
	if err != nil {
		return nil, fmt.Errorf("ask for the offsets of group %s: %w", shippingGroup, err)
	}
	offsets := make(map[int]int64, len(k.next))
	for _, place := range response.Topics[topic] {
		if place.Error != nil {
			return nil, fmt.Errorf("ask for the offset of partition %d of group %s: %w", place.Partition, shippingGroup, place.Error)
		}
		offsets[place.Partition] = max(0, place.CommittedOffset) // -1: none yet
	}
	return offsets, nil
}

// Strike implements broker: it freezes the process again and again, until a
// partition stays where the inbox is ahead of the group's offset.
func (k *kafkaBroker) Strike(ctx context.Context, _ int, victim *program, depot waybills) error {
	defer victim.Kill()
	ctx, cancel := context.WithTimeout(ctx, strikeLimit)
	defer cancel()
	for ctx.Err() == nil {
		victim.Signal(syscall.SIGSTOP)
		first, err := k.ahead(ctx, depot)
		if err != nil && ctx.Err() == nil {
			return err
		}
		// What was on its way to the broker arrives; other processes move on.
		sleep(ctx, 30*time.Millisecond)
		second, err := k.ahead(ctx, depot)
		if err != nil && ctx.Err() == nil {
			return err
		}
		for place := range first {
			if second[place] {
				return nil
			}
		}
		victim.Signal(syscall.SIGCONT)
		sleep(ctx, 5*time.Millisecond)
	}
	return nil
}

// gap is a partition's offset in the group and the higher one in the inbox.
type gap struct {
	partition          int
	committed, reached int64
}

// ahead are the partitions of which the inbox knows more than the group.
func (k *kafkaBroker) ahead(ctx context.Context, depot waybills) (map[gap]bool, error) {
	reached, err := depot.offsets(ctx)
	if err != nil {
		return nil, err
	}
	committed, err := k.offsets(ctx)
	if err != nil {
		return nil, err
	}
	gaps := map[gap]bool{}
	for partition, offset := range reached {
		if offset > committed[partition] {
			gaps[gap{partition, committed[partition], offset}] = true
		}
	}
	return gaps, nil
}
