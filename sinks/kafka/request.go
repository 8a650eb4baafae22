package kafka

import (
	"fmt"
	"net"
	"strconv"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/initproducerid"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/protocol/rawproduce"
)

// anyBroker lets kafka-go choose.
const anyBroker = -1

// freshMetadata is a metadata request that a broker answers and not kafka-go's
// cache, which serves requests of kafka-go's own type. It is a request that is
// split into one such.
type freshMetadata struct{ metadataRequest }

// metadataRequest is metadata.Request to one broker. Kafka-go writes a request by
// the position of its fields, so that there may be more of them.
type metadataRequest struct {
	TopicNames                         []string
	AllowAutoTopicCreation             bool
	IncludeClusterAuthorizedOperations bool
	IncludeTopicAuthorizedOperations   bool

	broker int32
}

func newFreshMetadata(broker int32, topics []string) *freshMetadata {
	return &freshMetadata{metadataRequest{TopicNames: topics, broker: broker}}
}

// ApiKey implements protocol.Message.
func (*metadataRequest) ApiKey() protocol.ApiKey { return protocol.Metadata } //nolint:revive,staticcheck // kafka-go's name

// Broker implements protocol.BrokerMessage.
func (m *metadataRequest) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	if m.broker == anyBroker {
		return protocol.Broker{ID: anyBroker}, nil
	}
	return brokerOf(cluster, m.broker)
}

// freshAnswer is the response, in a type of its own for the same reason.
type freshAnswer struct{ metadata.Response }

// Split implements protocol.Splitter.
func (m *freshMetadata) Split(protocol.Cluster) ([]protocol.Message, protocol.Merger, error) {
	return []protocol.Message{&m.metadataRequest}, m, nil
}

// Merge implements protocol.Merger.
func (*freshMetadata) Merge(_ []protocol.Message, results []any) (protocol.Message, error) {
	switch result := results[0].(type) {
	case *metadata.Response:
		return &freshAnswer{*result}, nil
	case error:
		return nil, result
	}
	return nil, fmt.Errorf("unexpected response %T to a metadata request", results[0])
}

// produceRequest is rawproduce.Request to a broker that the sink knows to lead
// the partition. Kafka-go would look that up in metadata of its own, which has all
// topics of the cluster.
type produceRequest struct {
	TransactionalID string
	Acks            int16
	Timeout         int32
	Topics          []rawproduce.RequestTopic

	leader int32
}

// ApiKey implements protocol.Message.
func (*produceRequest) ApiKey() protocol.ApiKey { return protocol.Produce } //nolint:revive,staticcheck // kafka-go's name

// TypeKey implements protocol.OverrideTypeMessage.
func (*produceRequest) TypeKey() protocol.OverrideTypeKey { return protocol.RawProduceOverride }

// Broker implements protocol.BrokerMessage.
func (r *produceRequest) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	return brokerOf(cluster, r.leader)
}

var errUnlisted = fmt.Errorf("is not among the brokers that are there: %w", protocol.ErrNoLeader)

// brokerOf finds a broker among those that kafka-go knows, which are a moment
// behind.
func brokerOf(cluster protocol.Cluster, id int32) (protocol.Broker, error) {
	broker, ok := cluster.Brokers[id]
	if !ok {
		return broker, fmt.Errorf("broker %d %w", id, errUnlisted)
	}
	return broker, nil
}

// newProducer is a request for a producer id. Kafka-go's own type would ask for
// the coordinator of transaction "" first, by which the broker creates the
// topic __transaction_state.
type newProducer initproducerid.Request

func (*newProducer) ApiKey() protocol.ApiKey { return protocol.InitProducerId } //nolint:revive,staticcheck // kafka-go's name

// addressOf is the address that a broker advertises.
func addressOf(b *metadata.ResponseBroker) string {
	return net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
}
