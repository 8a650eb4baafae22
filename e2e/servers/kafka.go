package servers

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The credentials that a Secure Kafka accepts, by PLAIN, SCRAM-SHA-256 and
// SCRAM-SHA-512.
const (
	KafkaUser     = "alice"
	KafkaPassword = Canary
)

// KafkaClientName is whom a Secure Kafka takes the owner of ClientCertFile for.
const KafkaClientName = "CN=" + kafkaClientName

const kafkaClientName = "outbox-relay"

// benchmarkHeapMB is the heap from which on Java's compiler optimises fully.
const benchmarkHeapMB = 1024

// KafkaOptions says what kind of Kafka to start; the zero value is one broker
// with one plaintext listener.
type KafkaOptions struct {
	// Secure adds the listeners SASL_SSL (TLS, user and password), SSL (TLS)
	// and MTLS (TLS that demands a client certificate).
	Secure bool
	// HeapMB is the Java heap's limit; 0 is 256. At 1024 or more the Java
	// compiler optimises fully, for benchmarks.
	HeapMB int
	// Proxy, when not empty, adds the listener PROXIED, at ProxiedAddress, which
	// advertises this address, host:port, instead of its own. Clients that come
	// through a proxy at that address are told to come through it again; those
	// of the other listeners bypass it.
	Proxy string
	// DiskMB, when not 0, puts the data on a disk of that size of its own, for
	// FillDisk; starting fails with ErrNoDisk where that cannot be had.
	DiskMB int
	// Properties are added to those the harness makes, and override them.
	Properties map[string]string
}

// Kafka is one Kafka broker that is its own controller. It does not create
// topics by itself.
type Kafka struct {
	*instance
	options KafkaOptions
	home    string
	// flags are further flags of Java.
	flags        []string
	certificates *certificates

	topicsMu sync.Mutex
	// topics are those that CreateTopic made, with their partitions.
	topics map[string]int
}

// The index of each listener's port.
const (
	kafkaPlain = iota
	kafkaController
	kafkaSASLSSL
	kafkaSSL
	kafkaMTLS
	kafkaProxied
)

// StartKafka makes a new broker, starts it and returns when it is in its own
// metadata.
func StartKafka(ctx context.Context, options KafkaOptions) (*Kafka, error) {
	return startKafka(ctx, options)
}

func startKafka(ctx context.Context, options KafkaOptions, flags ...string) (*Kafka, error) {
	if !inPath("java") {
		return nil, missingPackages(javaPackages[:1])
	}
	var home string
	var err error
	if len(flags) == 0 {
		if home, err = ensureKafka(ctx, os.Stderr); err != nil {
			return nil, err
		}
	} else if home, err = cachedKafka(); err != nil {
		return nil, err
	}
	ports := kafkaController + 1
	if options.Secure {
		ports = kafkaMTLS + 1
	}
	if options.Proxy != "" {
		ports = kafkaProxied + 1
	}
	in, err := newInstance("kafka", os.TempDir(), ports)
	if err != nil {
		return nil, err
	}
	k := &Kafka{instance: in, options: options, home: home, flags: flags, topics: map[string]int{}}
	if err := k.initialize(ctx); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	if err := k.Start(ctx); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// cachedKafka is where Kafka is when the caller holds the cache's lock.
func cachedKafka() (string, error) {
	cache, err := CacheDir()
	return filepath.Join(cache, "kafka", KafkaVersion), err
}

// initialize writes the configuration and formats the storage.
func (k *Kafka) initialize(ctx context.Context) error {
	if k.options.DiskMB > 0 {
		if err := k.mountDisk(k.options.DiskMB); err != nil {
			return err
		}
	}
	if k.options.Secure {
		var err error
		if k.certificates, err = makeCertificates(k.scratch.dir); err != nil {
			return err
		}
	}
	if err := writeProperties(k.config(), k.properties()); err != nil {
		return err
	}
	return writeStorage(ctx, k.home, k.dataPath(), 1, true, k.options.Secure)
}

// writeProperties writes a file in the format of Java's properties.
func writeProperties(path string, properties map[string]string) error {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		fmt.Fprintf(&text, "%s=%s\n", name, properties[name])
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
		return fmt.Errorf("writing Kafka's configuration: %w", err)
	}
	return nil
}

func (k *Kafka) config() string { return k.scratch.path("server.properties") }

// properties are the broker's configuration, the caller's last.
func (k *Kafka) properties() map[string]string {
	properties := map[string]string{
		"process.roles":                            "broker,controller",
		"node.id":                                  "1",
		"controller.quorum.voters":                 "1@" + k.ports[kafkaController].address(),
		"listeners":                                k.listeners(),
		"listener.security.protocol.map":           "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,MTLS:SSL,CONTROLLER:PLAINTEXT",
		"controller.listener.names":                "CONTROLLER",
		"inter.broker.listener.name":               "PLAINTEXT",
		"log.dirs":                                 k.dataPath(),
		"offsets.topic.replication.factor":         "1",
		"offsets.topic.num.partitions":             "4",
		"transaction.state.log.replication.factor": "1",
		"transaction.state.log.num.partitions":     "4",
		"transaction.state.log.min.isr":            "1",
		"group.initial.rebalance.delay.ms":         "0",
		"auto.create.topics.enable":                "false",
		// Consumers that are killed in tests are not missed for 6 s and more.
		"group.min.session.timeout.ms": "500",
		// Its default alone takes 128 MB of heap.
		"log.cleaner.dedupe.buffer.size": "2097152",
	}
	if k.options.Secure {
		const login = "org.apache.kafka.common.security."
		maps.Copy(properties, map[string]string{
			"sasl.enabled.mechanisms":                               "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN",
			"listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": login + "scram.ScramLoginModule required;",
			"listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": login + "scram.ScramLoginModule required;",
			"listener.name.sasl_ssl.plain.sasl.jaas.config":         login + `plain.PlainLoginModule required user_` + KafkaUser + `="` + KafkaPassword + `";`,
			"ssl.keystore.type":                                     "PEM",
			"ssl.keystore.location":                                 k.certificates.serverPEM,
			"ssl.truststore.type":                                   "PEM",
			"ssl.truststore.location":                               k.certificates.ca,
			"listener.name.mtls.ssl.client.auth":                    "required",
		})
	}
	if k.options.Proxy != "" {
		properties["advertised.listeners"] = k.advertised()
	}
	maps.Copy(properties, k.options.Properties)
	return properties
}

func (k *Kafka) listeners() string {
	return k.brokerListeners(k.ProxiedAddress()) + ",CONTROLLER://" + k.ports[kafkaController].address()
}

// advertised has no controller: a broker must not advertise that.
func (k *Kafka) advertised() string { return k.brokerListeners(k.options.Proxy) }

func (k *Kafka) brokerListeners(proxied string) string {
	listeners := []string{"PLAINTEXT://" + k.ports[kafkaPlain].address()}
	if k.options.Secure {
		listeners = append(listeners, "SASL_SSL://"+k.ports[kafkaSASLSSL].address(),
			"SSL://"+k.ports[kafkaSSL].address(), "MTLS://"+k.ports[kafkaMTLS].address())
	}
	if k.options.Proxy != "" {
		listeners = append(listeners, "PROXIED://"+proxied)
	}
	return strings.Join(listeners, ",")
}

// java is a command that runs a class of Kafka's.
func (k *Kafka) java(heapMB int, flags []string, class string, args ...string) (*exec.Cmd, error) {
	return kafkaJava(k.home, k.scratch.dir, heapMB, flags, class, args...)
}

// kafkaJava is a command that runs a class of the Kafka in home, in the folder
// dir; without flags it uses the class archive.
func kafkaJava(home, dir string, heapMB int, flags []string, class string, args ...string) (*exec.Cmd, error) {
	jars, err := filepath.Glob(filepath.Join(home, "libs", "*.jar"))
	if err != nil || len(jars) == 0 {
		return nil, fmt.Errorf("no jars in %s: remove that folder and run `make deps`", filepath.Join(home, "libs"))
	}
	// The archive is valid for one list of jars in one order; Glob sorts.
	all := []string{"-Xmx" + strconv.Itoa(heapMB) + "m", "-XX:+UseSerialGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
		"-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"}
	if heapMB < benchmarkHeapMB {
		all = append(all, "-XX:TieredStopAtLevel=1")
	}
	if len(flags) == 0 {
		if archive, err := kafkaArchive(home); err == nil && exists(archive) {
			flags = []string{"-XX:SharedArchiveFile=" + archive, "-Xshare:auto"}
		}
	}
	all = append(append(all, flags...), "-cp", strings.Join(jars, ":"), class)
	command := exec.Command("java", append(all, args...)...)
	command.Dir = dir
	return command, nil
}

// kafkaArchive is the path of the class archive for the Java in the path, and
// another for another Java, whether or not it exists.
func kafkaArchive(home string) (string, error) {
	path, err := exec.LookPath("java")
	if err != nil {
		return "", err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	hash := fnv.New32a()
	fmt.Fprintf(hash, "%s %d %d", path, info.Size(), info.ModTime().UnixNano())
	return filepath.Join(home, fmt.Sprintf("classes-%08x.jsa", hash.Sum32())), nil
}

// Tool is a command that runs a class of Kafka's, one of its tools, compiled as
// servers for benchmarks are.
func (k *Kafka) Tool(class string, args ...string) (*exec.Cmd, error) {
	return k.java(benchmarkHeapMB, nil, class, args...)
}

// Start starts the broker that was stopped or killed, on the same ports and
// data, and returns when it is in its own metadata and leads every partition of
// the topics that CreateTopic made.
func (k *Kafka) Start(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.checkStartable(); err != nil {
		return err
	}
	heap := k.options.HeapMB
	if heap == 0 {
		heap = 256
	}
	command, err := k.java(heap, k.flags, "kafka.Kafka", k.config())
	if err != nil {
		return err
	}
	process, err := startProcess("Kafka", command, k.LogPath())
	if err != nil {
		return err
	}
	k.process = process
	if err := process.awaitReady(ctx, 90*time.Second, k.probe); err != nil {
		process.kill()
		return err
	}
	return nil
}

// Stop stops the broker in order, by SIGTERM, and waits until it is gone.
func (k *Kafka) Stop() error { return k.stopWithin(time.Minute) }

func (k *Kafka) stopWithin(limit time.Duration) error { return k.stop(syscall.SIGTERM, limit) }

// Brokers are the plaintext listener's addresses.
func (k *Kafka) Brokers() []string { return []string{k.ports[kafkaPlain].address()} }

// ProxiedAddress is where the listener PROXIED listens, for the proxy to forward
// to; empty without one.
func (k *Kafka) ProxiedAddress() string {
	if k.options.Proxy == "" {
		return ""
	}
	return k.ports[kafkaProxied].address()
}

// SASLSSLBrokers are the addresses that demand TLS, a user and a password;
// Secure only.
func (k *Kafka) SASLSSLBrokers() []string { return k.secureListener(kafkaSASLSSL) }

// SSLBrokers are the addresses that demand TLS; Secure only.
func (k *Kafka) SSLBrokers() []string { return k.secureListener(kafkaSSL) }

// MTLSBrokers are the addresses that demand TLS and a client certificate;
// Secure only.
func (k *Kafka) MTLSBrokers() []string { return k.secureListener(kafkaMTLS) }

func (k *Kafka) secureListener(index int) []string {
	if !k.options.Secure {
		return nil
	}
	return []string{k.ports[index].address()}
}

// DataPath is the folder of the partitions' folders.
func (k *Kafka) DataPath() string { return k.dataPath() }

// CAFile is the certificate that signed the server's; empty unless Secure.
func (k *Kafka) CAFile() string { return k.certificates.caFile() }

// ClientCertFile is a certificate that the MTLS listener accepts; empty unless Secure.
func (k *Kafka) ClientCertFile() string { return k.certificates.clientCertFile() }

// ClientKeyFile is the key of ClientCertFile; empty unless Secure.
func (k *Kafka) ClientKeyFile() string { return k.certificates.clientKeyFile() }

// Close stops the broker and removes its data.
func (k *Kafka) Close() error {
	// What is removed need not be written first.
	k.Kill()
	return k.close()
}
