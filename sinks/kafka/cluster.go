package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/initproducerid"
	"github.com/segmentio/kafka-go/protocol/metadata"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/rawproduce"
)

const (
	// requestTimeout bounds every request, replicaTimeout how long the broker waits
	// for replicas.
	requestTimeout = 10 * time.Second
	replicaTimeout = requestTimeout / 2
	// metadataAge bounds the age of kafka-go's list of brokers.
	metadataAge = 2 * time.Second
	dialTimeout = 5 * time.Second
	// answerTimeout is how long the cluster may take to say that it is there.
	answerTimeout = 3 * time.Second
	// reachedFor is how long it holds whether a broker can be reached.
	reachedFor = 5 * time.Second
	// refreshPause is the least time between two refreshes.
	refreshPause = 250 * time.Millisecond
)

// cluster is the connections to the brokers.
type cluster struct {
	config    Config
	name      string
	address   net.Addr
	transport *kafkago.Transport
	throttles throttles
	dialed    *connections
	// proven: a broker answered a request that it answers only to who speaks
	// its protocol, TLS and SASL included.
	proven atomic.Bool

	mu         sync.Mutex
	generation int
	changed    time.Time

	// asking is held while answers asks; it guards the rest.
	asking sync.Mutex
	asked  time.Time
	answer error

	// reached are the brokers that reach has asked.
	reachedLock sync.Mutex
	reached     map[int32]reached
}

// reached is what came of asking a broker.
type reached struct {
	at  time.Time
	err error
}

// newCluster dials nothing. ctx ends kafka-go's own goroutines.
func newCluster(ctx context.Context, config Config, logger *slog.Logger) (*cluster, error) {
	tlsConfig, err := config.TLS.Config()
	if err != nil {
		return nil, err
	}
	mechanism, err := config.SASL.mechanism()
	if err != nil {
		return nil, err
	}
	c := &cluster{config: config, name: strings.Join(config.Brokers, ","), dialed: newConnections(), reached: map[int32]reached{}, address: kafkago.TCP(config.Brokers...), throttles: throttles{logger: logger.With("client_id", config.ClientID)}}
	c.transport = &kafkago.Transport{
		Dial:        c.dialed.dial,
		DialTimeout: dialTimeout,
		MetadataTTL: metadataAge,
		// None: kafka-go asks for the brokers only. Layouts are the sink's.
		MetadataTopics: []string{},
		ClientID:       config.ClientID,
		TLS:            tlsConfig,
		SASL:           mechanism,
		Context:        ctx,
	}
	return c, nil
}

// era names the connections of now, for reset.
func (c *cluster) era() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.generation
}

// reset drops every idle connection and the metadata, so that the next request
// uses new ones; not when somebody did so since era. One broken connection
// tells of others: after a broker's restart all of them are dead.
func (c *cluster) reset(era int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resetLocked(era)
}

func (c *cluster) resetLocked(era int) {
	if c.generation == era {
		c.generation++
		c.changed = time.Now()
		c.transport.CloseIdleConnections()
	}
}

// refresh has kafka-go read its list of brokers again, for which it must drop
// its connections too; so not when that was done a moment ago.
func (c *cluster) refresh(era int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.changed) > refreshPause {
		c.resetLocked(era)
	}
}

// close breaks every connection, those that a request waits on too.
func (c *cluster) close() {
	c.dialed.close()
	c.transport.CloseIdleConnections()
}

func (c *cluster) roundTrip(ctx context.Context, request protocol.Message) (protocol.Message, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	response, err := c.transport.RoundTrip(ctx, c.address, request)
	if err == nil && request.ApiKey() != protocol.ApiVersions {
		c.proven.Store(true)
	}
	return response, err
}

// again does a request a second time, by new connections, when the first broke
// on one that may have been dead for long.
func (c *cluster) again(ctx context.Context, request func() error) error {
	era := c.era()
	err := request()
	if err == nil || judge(err).action != actionReconnect || isTimeout(err) || ctx.Err() != nil {
		return err
	}
	c.reset(era)
	return request()
}

// metadata asks a broker for topics, and creates none. A broker that is frozen
// takes connections and says nothing; the second attempt dials another, mostly. The
// last attempt may take as long as a request may.
func (c *cluster) metadata(ctx context.Context, topics []string) (response *metadata.Response, err error) {
	for attempts := min(len(c.config.Brokers), 2); attempts > 0; attempts-- {
		patience := answerTimeout
		if attempts == 1 {
			patience = requestTimeout
		}
		limited, cancel := context.WithTimeout(ctx, patience)
		err = c.again(limited, func() error {
			message, err := c.roundTrip(limited, newFreshMetadata(anyBroker, topics))
			if err == nil {
				response = &message.(*freshAnswer).Response
			}
			return err
		})
		cancel()
		if err == nil || !isTimeout(err) || ctx.Err() != nil {
			break
		}
	}
	return response, err
}

// produce sends a batch to the broker that leads its partition, and notes for how
// long that broker wants to be left alone.
func (c *cluster) produce(ctx context.Context, leader int32, topic string, partition int32, wire []byte) (*kafkago.ProduceResponse, error) {
	message, err := c.roundTrip(ctx, &produceRequest{
		Acks:    int16(kafkago.RequireAll),
		Timeout: int32(replicaTimeout.Milliseconds()),
		Topics: []rawproduce.RequestTopic{{Topic: topic, Partitions: []rawproduce.RequestPartition{{
			Partition: partition, RecordSet: protocol.RawRecordSet{Reader: bytes.NewReader(wire)},
		}}}},
		leader: leader,
	})
	if err != nil {
		return nil, err
	}
	response := message.(*produce.Response)
	c.throttles.note(leader, time.Duration(response.ThrottleTimeMs)*time.Millisecond)
	if len(response.Topics) == 0 || len(response.Topics[0].Partitions) == 0 {
		return nil, errors.New("the broker's answer to a batch names no partition")
	}
	answer := &response.Topics[0].Partitions[0]
	result := &kafkago.ProduceResponse{Error: codeError(answer.ErrorCode, answer.ErrorMessage)}
	if len(answer.RecordErrors) > 0 {
		result.RecordErrors = make(map[int]error, len(answer.RecordErrors))
		for _, r := range answer.RecordErrors {
			result.RecordErrors[int(r.BatchIndex)] = errors.New(r.BatchIndexErrorMessage)
		}
	}
	return result, nil
}

func codeError(code int16, message string) error {
	switch {
	case code == 0:
		return nil
	case message == "":
		return kafkago.Error(code)
	}
	return fmt.Errorf("%w: %s", kafkago.Error(code), message)
}

// reach makes a round trip to one broker, as producing does. Another cluster's
// answer at its address is none.
//
// What was found out a moment ago holds: a broker leads partitions of many topics.
func (c *cluster) reach(ctx context.Context, broker int32, clusterID string) error {
	c.reachedLock.Lock()
	known, ok := c.reached[broker]
	c.reachedLock.Unlock()
	if ok && time.Since(known.at) < reachedFor {
		return known.err
	}
	err := c.reachNow(ctx, broker, clusterID)
	if ctx.Err() == nil {
		c.reachedLock.Lock()
		defer c.reachedLock.Unlock()
		c.reached[broker] = reached{time.Now(), err}
	}
	return err
}

func (c *cluster) reachNow(ctx context.Context, broker int32, clusterID string) error {
	var answer *freshAnswer
	ask := func() error {
		message, err := c.roundTrip(ctx, newFreshMetadata(broker, []string{}))
		if err == nil {
			answer = message.(*freshAnswer)
		}
		return err
	}
	era := c.era()
	err := c.again(ctx, ask)
	if errors.Is(err, errUnlisted) {
		c.reset(era)
		err = ask()
	}
	if err == nil && answer.ClusterID != clusterID && answer.ClusterID != "" && clusterID != "" {
		err = fmt.Errorf("cluster %s answers there, and not cluster %s", answer.ClusterID, clusterID)
	}
	return err
}

// answers asks any broker for the cluster's metadata, and reports why nobody
// answered. All who ask within a moment get the same answer: when a broker dies,
// every one of its partitions wants to know.
func (c *cluster) answers(ctx context.Context) error {
	c.asking.Lock()
	defer c.asking.Unlock()
	if time.Since(c.asked) < refreshPause {
		return c.answer
	}
	for range min(len(c.config.Brokers), 2) {
		limited, cancel := context.WithTimeout(ctx, answerTimeout)
		_, c.answer = c.roundTrip(limited, newFreshMetadata(anyBroker, []string{}))
		cancel()
		if c.answer == nil || !isTimeout(c.answer) {
			break
		}
	}
	c.asked = time.Now()
	return c.answer
}

// ping makes a round trip by an authenticated connection.
func (c *cluster) ping(ctx context.Context) error {
	return c.again(ctx, func() error {
		message, err := c.roundTrip(ctx, &apiversions.Request{})
		if err != nil {
			return err
		}
		if code := message.(*apiversions.Response).ErrorCode; code != 0 {
			return kafkago.Error(code)
		}
		// A listener that wants SASL answers the above without it, and hangs up
		// at anything else.
		_, err = c.roundTrip(ctx, newFreshMetadata(anyBroker, []string{}))
		return err
	})
}

// newSession gets a producer id that nobody has used.
func (c *cluster) initProducer(ctx context.Context) (producer, error) {
	message, err := c.roundTrip(ctx, &newProducer{ProducerID: -1, ProducerEpoch: -1})
	if err != nil {
		return noProducer, err
	}
	response := message.(*initproducerid.Response)
	if response.ErrorCode != 0 {
		return noProducer, kafkago.Error(response.ErrorCode)
	}
	return producer{id: response.ProducerID, epoch: response.ProducerEpoch}, nil
}

// connections are the network connections of a cluster, so that they can be
// broken while a request waits on one: kafka-go waits for its deadline.
type connections struct {
	dialer net.Dialer
	// heard is what a broker spoke first, on the latest connection on which one did.
	heard atomic.Int32

	mu     sync.Mutex
	open   map[*connection]struct{}
	closed bool
}

var errClosed = errors.New("the publisher is closed")

func newConnections() *connections {
	return &connections{open: map[*connection]struct{}{}}
}

func (c *connections) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := c.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = conn.Close()
		return nil, errClosed
	}
	tracked := &connection{Conn: conn, of: c}
	c.open[tracked] = struct{}{}
	return tracked, nil
}

func (c *connections) close() {
	c.mu.Lock()
	c.closed = true
	open := c.open
	c.open = map[*connection]struct{}{}
	c.mu.Unlock()
	for conn := range open {
		_ = conn.Conn.Close()
	}
}

// What a broker speaks first.
const (
	heardNothing = iota
	heardTLS
	heardKafka
)

// The first bytes of TLS records that a listener begins with. A Kafka response
// begins with its size, which is far below 2^28.
const (
	recordAlert     = 0x15
	recordHandshake = 0x16
)

type connection struct {
	net.Conn
	of *connections
	// spoken: it said something. Only its one reader touches it.
	spoken bool
}

// Read notes what the broker speaks.
func (c *connection) Read(buffer []byte) (int, error) {
	n, err := c.Conn.Read(buffer)
	if n > 0 && !c.spoken {
		c.spoken = true
		heard := int32(heardKafka)
		if buffer[0] == recordAlert || buffer[0] == recordHandshake {
			heard = heardTLS
		}
		c.of.heard.Store(heard)
	}
	return n, err
}

func (c *connection) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}
