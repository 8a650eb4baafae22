package kafka

import (
	"context"
	"errors"
	"fmt"
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
)

const (
	// requestTimeout bounds every request. The broker is told half of it, as
	// the time that the replicas may take.
	requestTimeout = 10 * time.Second
	// metadataAge bounds the age of the metadata that routes requests.
	metadataAge = 2 * time.Second
	dialTimeout = 5 * time.Second
	// answerTimeout is how long the cluster may take to say that it is there.
	answerTimeout = 3 * time.Second
	// refreshPause is the least time between two refreshes.
	refreshPause = 250 * time.Millisecond
)

// cluster is the connections to the brokers.
type cluster struct {
	config    Config
	name      string
	client    *kafkago.Client
	transport *kafkago.Transport
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
}

// newCluster dials nothing. ctx ends kafka-go's own goroutines.
func newCluster(ctx context.Context, config Config) (*cluster, error) {
	tlsConfig, err := config.TLS.Config()
	if err != nil {
		return nil, err
	}
	mechanism, err := config.SASL.mechanism()
	if err != nil {
		return nil, err
	}
	c := &cluster{config: config, name: strings.Join(config.Brokers, ","), dialed: newConnections()}
	c.transport = &kafkago.Transport{
		Dial:        c.dialed.dial,
		DialTimeout: dialTimeout,
		MetadataTTL: metadataAge,
		ClientID:    config.ClientID,
		TLS:         tlsConfig,
		SASL:        mechanism,
		Context:     ctx,
	}
	c.client = &kafkago.Client{Addr: kafkago.TCP(config.Brokers...), Timeout: requestTimeout, Transport: c.transport}
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

// refresh has the metadata read anew, for which kafka-go must drop its
// connections too; so not when that was done a moment ago.
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
	response, err := c.transport.RoundTrip(ctx, c.client.Addr, request)
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

// cachedTopics returns what is known of the topics, in the order of names, at
// most metadataAge old unless the brokers are away. Unknown ones have an error
// code.
func (c *cluster) cachedTopics(ctx context.Context, names []string) ([]metadata.ResponseTopic, error) {
	return c.topics(ctx, func() protocol.Message { return &metadata.Request{TopicNames: names} })
}

// freshMetadata is a metadata request that a broker answers and not kafka-go's
// cache, which serves requests of kafka-go's own type. It is a request that is
// split into one such.
type freshMetadata struct{ metadata.Request }

// freshAnswer is the response, in a type of its own for the same reason.
type freshAnswer struct{ metadata.Response }

// Split implements protocol.Splitter.
func (m *freshMetadata) Split(protocol.Cluster) ([]protocol.Message, protocol.Merger, error) {
	return []protocol.Message{&m.Request}, m, nil
}

// Merge implements protocol.Merger.
func (m *freshMetadata) Merge(_ []protocol.Message, results []any) (protocol.Message, error) {
	switch result := results[0].(type) {
	case *metadata.Response:
		return &freshAnswer{*result}, nil
	case error:
		return nil, result
	}
	return nil, fmt.Errorf("unexpected response %T to a metadata request", results[0])
}

func newFreshMetadata(names []string) *freshMetadata {
	return &freshMetadata{metadata.Request{TopicNames: names}}
}

// freshTopics asks a broker, and creates nothing.
func (c *cluster) freshTopics(ctx context.Context, names []string) ([]metadata.ResponseTopic, error) {
	return c.topics(ctx, func() protocol.Message { return newFreshMetadata(names) })
}

func (c *cluster) topics(ctx context.Context, request func() protocol.Message) (topics []metadata.ResponseTopic, err error) {
	err = c.again(ctx, func() error {
		message, err := c.roundTrip(ctx, request())
		if err != nil {
			return err
		}
		switch response := message.(type) {
		case *metadata.Response:
			topics = response.Topics
		case *freshAnswer:
			topics = response.Topics
		}
		return nil
	})
	return topics, err
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
	// A broker that is frozen takes connections and says nothing; the second
	// attempt dials another, mostly.
	for range min(len(c.config.Brokers), 2) {
		limited, cancel := context.WithTimeout(ctx, answerTimeout)
		_, c.answer = c.roundTrip(limited, newFreshMetadata([]string{}))
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
		_, err = c.roundTrip(ctx, newFreshMetadata([]string{}))
		return err
	})
}

// newProducer is a request for a producer id. Kafka-go's own type would ask for
// the coordinator of transaction "" first, by which the broker creates the
// topic __transaction_state.
type newProducer initproducerid.Request

func (*newProducer) ApiKey() protocol.ApiKey { return protocol.InitProducerId } //nolint:revive,staticcheck // kafka-go's name

// newSession gets a producer id that nobody has used.
func (c *cluster) newSession(ctx context.Context) (session, error) {
	message, err := c.roundTrip(ctx, &newProducer{ProducerID: -1, ProducerEpoch: -1})
	if err != nil {
		return noSession, err
	}
	response := message.(*initproducerid.Response)
	if response.ErrorCode != 0 {
		return noSession, kafkago.Error(response.ErrorCode)
	}
	return session{id: response.ProducerID, epoch: response.ProducerEpoch}, nil
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
