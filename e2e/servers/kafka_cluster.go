package servers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/segmentio/kafka-go"
)

const (
	clusterID = "AAAAAAAAAAAAAAAAAAAAAA"
	// controllerID is the controller's node id; the brokers' are 1 and up.
	controllerID = 100
	// clusterReplicas is the replication factor of a cluster's topics, and
	// clusterInSync how many of them a write needs.
	clusterReplicas, clusterInSync = 3, 2
)

// KafkaClusterOptions says what kind of cluster to start; the zero value has
// three brokers.
type KafkaClusterOptions struct {
	// Proxies, when not empty, are an address for each broker, which its listener
	// PROXIED advertises; see KafkaOptions.Proxy.
	Proxies []string
	// Properties are added to those of each broker, and override them.
	Properties map[string]string
}

// KafkaCluster is three brokers and a controller, which fences a broker that
// has been silent for 3 s. Topics have three replicas, of which a write needs
// two. It does not create topics by itself.
type KafkaCluster struct {
	controller *KafkaNode
	nodes      []*KafkaNode
}

// KafkaNode is a broker of a cluster, or its controller.
type KafkaNode struct {
	*instance
	// ID is the node's, from 1 for brokers.
	ID         int
	cluster    *KafkaCluster
	home       string
	proxy      string
	properties map[string]string
}

// StartKafkaCluster starts a new cluster and returns when all brokers are in
// its metadata.
func StartKafkaCluster(ctx context.Context, options KafkaClusterOptions) (*KafkaCluster, error) {
	if !inPath("java") {
		return nil, missingPackages(javaPackages[:1])
	}
	home, err := ensureKafka(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	c := &KafkaCluster{}
	if err := c.initialize(ctx, home, options); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// initialize makes the nodes' folders.
func (c *KafkaCluster) initialize(ctx context.Context, home string, options KafkaClusterOptions) error {
	node := func(name string, id int) (*KafkaNode, error) {
		in, err := newInstance(name, scratchPlace(false, ""), 2)
		if err != nil {
			return nil, err
		}
		return &KafkaNode{instance: in, ID: id, cluster: c, home: home}, nil
	}
	var err error
	if c.controller, err = node("kafka-controller", controllerID); err != nil {
		return err
	}
	voters := fmt.Sprintf("%d@%s", controllerID, c.controller.ports[0].address())
	common := map[string]string{
		"controller.quorum.voters":       voters,
		"controller.listener.names":      "CONTROLLER",
		"listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"broker.session.timeout.ms":      "3000",
		"broker.heartbeat.interval.ms":   "500",
	}
	c.controller.properties = with(common, map[string]string{
		"process.roles": "controller",
		"listeners":     "CONTROLLER://" + c.controller.ports[0].address(),
	})
	if err := c.controller.prepare(); err != nil {
		return err
	}
	if err := writeStorage(ctx, home, c.controller.dataPath(), controllerID, true, false); err != nil {
		return err
	}
	for i := range clusterReplicas {
		broker, err := node("kafka-"+strconv.Itoa(i+1), i+1)
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, broker)
		if len(options.Proxies) > 0 {
			broker.proxy = options.Proxies[i]
		}
		broker.properties = with(common, broker.brokerProperties(), options.Properties)
		if err := broker.prepare(); err != nil {
			return err
		}
		if err := writeStorage(ctx, home, broker.dataPath(), broker.ID, false, false); err != nil {
			return err
		}
	}
	return nil
}

// with joins maps; later ones override.
func with(all ...map[string]string) map[string]string {
	joined := map[string]string{}
	for _, one := range all {
		maps.Copy(joined, one)
	}
	return joined
}

func (n *KafkaNode) brokerProperties() map[string]string {
	listeners := "PLAINTEXT://" + n.Address()
	properties := map[string]string{
		"process.roles":                            "broker",
		"listeners":                                listeners,
		"inter.broker.listener.name":               "PLAINTEXT",
		"auto.create.topics.enable":                "false",
		"default.replication.factor":               strconv.Itoa(clusterReplicas),
		"offsets.topic.replication.factor":         strconv.Itoa(clusterReplicas),
		"offsets.topic.num.partitions":             "4",
		"transaction.state.log.replication.factor": strconv.Itoa(clusterReplicas),
		"transaction.state.log.min.isr":            strconv.Itoa(clusterInSync),
		"transaction.state.log.num.partitions":     "4",
		"group.initial.rebalance.delay.ms":         "0",
		// A replica that is silent that long does not hold writes up.
		"replica.lag.time.max.ms": "3000",
		// Their defaults take memory and threads for machines that are larger.
		"log.cleaner.dedupe.buffer.size": "2097152",
		"num.network.threads":            "2",
		"num.io.threads":                 "4",
	}
	if n.proxy != "" {
		properties["listeners"] = listeners + ",PROXIED://" + n.ProxiedAddress()
		properties["advertised.listeners"] = listeners + ",PROXIED://" + n.proxy
	}
	return properties
}

// prepare writes the node's configuration.
func (n *KafkaNode) prepare() error {
	return writeProperties(n.config(), with(n.properties, map[string]string{
		"node.id": strconv.Itoa(n.ID), "log.dirs": n.dataPath(), "broker.rack": n.Rack(),
	}))
}

func (n *KafkaNode) config() string { return n.scratch.path("server.properties") }

// start starts all nodes side by side.
func (c *KafkaCluster) start(ctx context.Context) error {
	var group sync.WaitGroup
	errs := make([]error, len(c.nodes))
	if err := c.controller.launch(); err != nil {
		return err
	}
	for i, node := range c.nodes {
		group.Go(func() { errs[i] = node.Start(ctx) })
	}
	group.Wait()
	return errors.Join(errs...)
}

// launch starts the node's process and does not wait.
func (n *KafkaNode) launch() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.checkStartable(); err != nil {
		return err
	}
	command, err := kafkaJava(n.home, n.scratch.dir, 160, nil, "kafka.Kafka", n.config())
	if err != nil {
		return err
	}
	n.process, err = startProcess(n.name, command, n.LogPath())
	return err
}

// Start starts the broker that was stopped or killed, on the same port and
// data, and returns when it is in its own metadata.
func (n *KafkaNode) Start(ctx context.Context) error {
	if err := n.launch(); err != nil {
		return err
	}
	n.mu.Lock()
	process := n.process
	n.mu.Unlock()
	return process.awaitReady(ctx, 90*time.Second, func(ctx context.Context) error {
		client, done := kafkaClient(n.Address())
		defer done()
		metadata, err := client.Metadata(ctx, &kafka.MetadataRequest{})
		if err != nil {
			return err
		}
		for _, broker := range metadata.Brokers {
			if broker.ID == n.ID {
				return nil
			}
		}
		return fmt.Errorf("broker %d is not in the cluster's metadata yet", n.ID)
	})
}

// Stop stops the broker in order, by SIGTERM: it hands its partitions over.
func (n *KafkaNode) Stop() error { return n.stop(syscall.SIGTERM, time.Minute) }

// Rack is where the node says that it is, another place for each.
func (n *KafkaNode) Rack() string { return "rack-" + strconv.Itoa(n.ID) }

// Address is the plaintext listener's.
func (n *KafkaNode) Address() string { return n.ports[0].address() }

// ProxiedAddress is where the listener PROXIED listens, for the proxy to forward
// to.
func (n *KafkaNode) ProxiedAddress() string { return n.ports[1].address() }

// Close ends the node and removes its data.
func (n *KafkaNode) Close() error {
	n.Kill()
	return n.close()
}

// Nodes are the brokers.
func (c *KafkaCluster) Nodes() []*KafkaNode { return c.nodes }

// Node is the broker with the id.
func (c *KafkaCluster) Node(id int) *KafkaNode { return c.nodes[id-1] }

// Brokers are the plaintext listeners' addresses.
func (c *KafkaCluster) Brokers() []string {
	var addresses []string
	for _, node := range c.nodes {
		addresses = append(addresses, node.Address())
	}
	return addresses
}

// CreateTopic creates a topic with three replicas, of which a write needs two
// unless configs say otherwise, and returns when all of them are in sync.
func (c *KafkaCluster) CreateTopic(ctx context.Context, name string, partitions int, configs map[string]string) error {
	client, done := kafkaClient(c.Brokers()...)
	defer done()
	// The broker's own setting of this name means nothing to a controller that
	// tracks eligible leaders, as Kafka 4's does.
	configs = with(map[string]string{"min.insync.replicas": strconv.Itoa(clusterInSync)}, configs)
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for again := false; ; again = true {
		err := createTopic(limited, client, name, partitions, clusterReplicas, configs)
		// What a broker answers with that does not yet know all of the others.
		early := errors.Is(err, kafka.BrokerNotAvailable) || errors.Is(err, kafka.InvalidReplicationFactor)
		if err == nil || (again && errors.Is(err, kafka.TopicAlreadyExists)) {
			return c.AwaitReplicas(ctx, clusterReplicas, name)
		}
		if !early || limited.Err() != nil {
			return err
		}
		time.Sleep(pollInterval)
	}
}

// DeleteTopic deletes a topic and returns when it is gone from the metadata.
func (c *KafkaCluster) DeleteTopic(ctx context.Context, name string) error {
	client, done := kafkaClient(c.Brokers()...)
	defer done()
	return deleteTopic(ctx, client, name)
}

// Leader is the broker that leads a partition of a topic.
func (c *KafkaCluster) Leader(ctx context.Context, topic string, partition int) (*KafkaNode, error) {
	found, err := c.partition(ctx, topic, partition)
	if err != nil {
		return nil, err
	}
	if found.Error != nil || found.Leader.ID < 1 || found.Leader.ID > len(c.nodes) {
		return nil, fmt.Errorf("partition %d of Kafka topic %q has no leader: %w", partition, topic, found.Error)
	}
	return c.Node(found.Leader.ID), nil
}

func (c *KafkaCluster) partition(ctx context.Context, topic string, number int) (kafka.Partition, error) {
	partitions, err := c.partitions(ctx, topic)
	for _, partition := range partitions {
		if partition.ID == number {
			return partition, nil
		}
	}
	return kafka.Partition{}, errors.Join(fmt.Errorf("partition %d of Kafka topic %q is not in the metadata", number, topic), err)
}

func (c *KafkaCluster) partitions(ctx context.Context, topic string) ([]kafka.Partition, error) {
	client, done := kafkaClient(c.Brokers()...)
	defer done()
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	metadata, err := client.Metadata(limited, &kafka.MetadataRequest{Topics: []string{topic}})
	// A broker that has just lost another may keep its answer to itself, and one on a
	// busy machine takes its time to shake hands.
	for err != nil && limited.Err() == nil {
		time.Sleep(pollInterval)
		metadata, err = client.Metadata(limited, &kafka.MetadataRequest{Topics: []string{topic}})
	}
	if err != nil {
		return nil, err
	}
	for _, found := range metadata.Topics {
		if found.Name == topic {
			return found.Partitions, found.Error
		}
	}
	return nil, fmt.Errorf("kafka topic %q is not in the metadata", topic)
}

// AwaitReplicas returns when so many replicas, at least, of each partition of
// the topics are in sync, and all partitions have leaders.
func (c *KafkaCluster) AwaitReplicas(ctx context.Context, replicas int, topics ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	for {
		err := c.checkReplicas(ctx, replicas, topics)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("awaiting %d replicas in sync: %w", replicas, err)
		case <-time.After(pollInterval):
		}
	}
}

func (c *KafkaCluster) checkReplicas(ctx context.Context, replicas int, topics []string) error {
	for _, topic := range topics {
		partitions, err := c.partitions(ctx, topic)
		if err != nil {
			return err
		}
		for _, partition := range partitions {
			if partition.Error != nil {
				return fmt.Errorf("partition %d of Kafka topic %q: %w", partition.ID, topic, partition.Error)
			}
			if len(partition.Isr) < replicas {
				return fmt.Errorf("partition %d of Kafka topic %q has %d replicas in sync", partition.ID, topic, len(partition.Isr))
			}
		}
	}
	return nil
}

// Close ends all nodes and removes their data.
func (c *KafkaCluster) Close() error { return c.each((*KafkaNode).Close) }

// KeepLogs copies all nodes' logs.
func (c *KafkaCluster) KeepLogs(dir string) error {
	return c.each(func(n *KafkaNode) error { return n.KeepLogs(dir) })
}

// LogTail is the ends of all nodes' logs.
func (c *KafkaCluster) LogTail() string {
	var tails []string
	_ = c.each(func(n *KafkaNode) error {
		tails = append(tails, n.LogTail())
		return nil
	})
	return strings.Join(tails, "\n")
}

// Controller is the node that decides who leads.
func (c *KafkaCluster) Controller() *KafkaNode { return c.controller }

func (c *KafkaCluster) each(f func(*KafkaNode) error) error {
	var errs []error
	for _, node := range c.nodes {
		errs = append(errs, f(node))
	}
	if c.controller != nil {
		errs = append(errs, f(c.controller))
	}
	return errors.Join(errs...)
}
