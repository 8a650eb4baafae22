package servers

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
)

// The variables that name servers which run already.
const (
	PostgresVariable = "RELAY_TEST_POSTGRES_URL"
	KafkaVariable    = "RELAY_TEST_KAFKA_BROKERS"
	RabbitMQVariable = "RELAY_TEST_RABBITMQ_URL"
)

// Environment names one server of each kind that tests share; each test makes
// a database, a topic or a queue of its own there.
type Environment struct {
	// PostgresURL is a superuser's connection string.
	PostgresURL string
	// KafkaBrokers are host:port addresses.
	KafkaBrokers []string
	// RabbitMQURL is an amqp:// URL of a user who may do everything.
	RabbitMQURL string
}

// FromEnvironment reads RELAY_TEST_POSTGRES_URL, RELAY_TEST_KAFKA_BROKERS
// (separated by commas) and RELAY_TEST_RABBITMQ_URL; what is unset is empty.
func FromEnvironment() Environment {
	e := Environment{PostgresURL: os.Getenv(PostgresVariable), RabbitMQURL: os.Getenv(RabbitMQVariable)}
	for broker := range strings.SplitSeq(os.Getenv(KafkaVariable), ",") {
		if broker = strings.TrimSpace(broker); broker != "" {
			e.KafkaBrokers = append(e.KafkaBrokers, broker)
		}
	}
	return e
}

// Variables are the settings, like NAME=value, that FromEnvironment reads back.
func (e Environment) Variables() []string {
	return []string{
		PostgresVariable + "=" + e.PostgresURL,
		KafkaVariable + "=" + strings.Join(e.KafkaBrokers, ","),
		RabbitMQVariable + "=" + e.RabbitMQURL,
	}
}

// EnvironmentOptions says how the servers that an Environment lacks are started.
type EnvironmentOptions struct {
	Postgres PostgresOptions
	Kafka    KafkaOptions
	RabbitMQ RabbitMQOptions
	// Without names the kinds that are not wanted: "postgres", "kafka", "rabbitmq".
	Without []string
}

// Shared is a complete Environment and the servers that were started for it;
// those which ran already are nil.
type Shared struct {
	Environment
	Postgres *Postgres
	Kafka    *Kafka
	RabbitMQ *RabbitMQ
}

// StartShared starts, side by side, the servers that given lacks. When one
// fails it stops the others.
func StartShared(ctx context.Context, given Environment, options EnvironmentOptions) (*Shared, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &Shared{Environment: given}
	var group sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	start := func(kind string, given bool, run func() error) {
		for _, name := range options.Without {
			given = given || name == kind
		}
		if given {
			return
		}
		group.Go(func() {
			if err := run(); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
				cancel(errors.New("another server failed to start"))
			}
		})
	}
	start("postgres", given.PostgresURL != "", func() (err error) {
		if s.Postgres, err = StartPostgres(ctx, options.Postgres); err == nil {
			s.PostgresURL = s.Postgres.URL("postgres")
		}
		return err
	})
	start("kafka", len(given.KafkaBrokers) > 0, func() (err error) {
		if s.Kafka, err = StartKafka(ctx, options.Kafka); err == nil {
			s.KafkaBrokers = s.Kafka.Brokers()
		}
		return err
	})
	start("rabbitmq", given.RabbitMQURL != "", func() (err error) {
		if s.RabbitMQ, err = StartRabbitMQ(ctx, options.RabbitMQ); err == nil {
			s.RabbitMQURL = s.RabbitMQ.URL("/")
		}
		return err
	})
	group.Wait()
	if len(errs) > 0 {
		return nil, errors.Join(append(errs, s.Close())...)
	}
	return s, nil
}

// each calls f for every server that was started.
func (s *Shared) each(f func(Server) error) error {
	var errs []error
	if s.Postgres != nil {
		errs = append(errs, f(s.Postgres))
	}
	if s.Kafka != nil {
		errs = append(errs, f(s.Kafka))
	}
	if s.RabbitMQ != nil {
		errs = append(errs, f(s.RabbitMQ))
	}
	return errors.Join(errs...)
}

// Close closes the servers that were started.
func (s *Shared) Close() error { return s.each(Server.Close) }

// KeepLogs keeps the logs of the servers that were started.
func (s *Shared) KeepLogs(dir string) error {
	return s.each(func(server Server) error { return server.KeepLogs(dir) })
}

// LogTail is the ends of the logs of the servers that were started.
func (s *Shared) LogTail() string {
	var tails []string
	_ = s.each(func(server Server) error {
		tails = append(tails, server.LogTail())
		return nil
	})
	return strings.Join(tails, "\n")
}

func dialTCP(ctx context.Context, address string) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}
