package kafka

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/outboxrelay/relay/sinks"
)

// Config is a Kafka sink as the configuration file has it.
type Config struct {
	Brokers  []string `yaml:"brokers"`
	ClientID string   `yaml:"client_id"`
	// Compression is none, gzip, snappy, lz4 or zstd.
	Compression     string `yaml:"compression"`
	MaxMessageBytes int    `yaml:"max_message_bytes"`
	// Idempotent lets the broker recognize a batch that was sent twice. Where it
	// does not allow that, the sink says so and goes on without.
	Idempotent bool      `yaml:"idempotent"`
	TLS        sinks.TLS `yaml:"tls"`
	SASL       SASL      `yaml:"sasl"`
}

// SASL is how the client authenticates; an empty Mechanism means not at all.
type SASL struct {
	// Mechanism is plain, scram-sha-256 or scram-sha-512.
	Mechanism    string `yaml:"mechanism"`
	Username     string `yaml:"username"`
	Password     string `yaml:"password"`
	PasswordFile string `yaml:"password_file"`
}

// Defaults returns the configuration that an empty mapping stands for.
func Defaults() Config {
	return Config{ClientID: "outbox-relay", Compression: "none", MaxMessageBytes: 1_000_000, Idempotent: true}
}

const (
	// leastMessageBytes holds a record with its headers and little else.
	leastMessageBytes = 1024
	// mostMessageBytes is what fits a request that a broker takes by default
	// (socket.request.max.bytes, 100 MiB).
	mostMessageBytes = 100_000_000
)

// Validate reports every mistake that shows without reading a file or reaching
// a broker, as joined errors that begin with the field's path: "brokers: …".
func (c Config) Validate() error {
	var errs []error
	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("brokers: is missing; name at least one broker, for example [localhost:9092]"))
	}
	for i, broker := range c.Brokers {
		if err := checkBroker(broker); err != nil {
			errs = append(errs, fmt.Errorf("brokers[%d]: %w", i, err))
		}
	}
	if _, err := parseCompression(c.Compression); err != nil {
		errs = append(errs, err)
	}
	if c.MaxMessageBytes < leastMessageBytes || c.MaxMessageBytes > mostMessageBytes {
		errs = append(errs, fmt.Errorf("max_message_bytes: %d is out of range; it must be between %d and %d", c.MaxMessageBytes, leastMessageBytes, mostMessageBytes))
	}
	return errors.Join(append(append(errs, c.validateTLS()...), c.SASL.validate()...)...)
}

func checkBroker(broker string) error {
	host, port, err := net.SplitHostPort(broker)
	if err == nil && host == "" {
		err = errors.New("no host")
	}
	if err == nil {
		var number uint64
		if number, err = strconv.ParseUint(port, 10, 16); err == nil && number == 0 {
			err = errors.New("no port")
		}
	}
	if err != nil || strings.ContainsAny(broker, "/ ,@") {
		return fmt.Errorf("%q is not host:port; expected for example localhost:9092", broker)
	}
	return nil
}

// validateTLS refuses TLS settings that would be ignored: who wrote them
// believes that the connection is encrypted.
func (c Config) validateTLS() (errs []error) {
	t := c.TLS
	if (t.CertFile == "") != (t.KeyFile == "") {
		errs = append(errs, errors.New("tls: cert_file and key_file go together; set both or neither"))
	}
	if !t.Enabled && (t.CAFile != "" || t.CertFile != "" || t.KeyFile != "" || t.ServerName != "" || t.InsecureSkipVerify) {
		errs = append(errs, errors.New("tls.enabled: is false, so that the other settings of tls have no effect; set it to true or remove them"))
	}
	return errs
}

func (s SASL) validate() (errs []error) {
	switch strings.ToLower(s.Mechanism) {
	case "":
		if s.Username != "" || s.Password != "" || s.PasswordFile != "" {
			errs = append(errs, errors.New("sasl.mechanism: is missing, so that username and password have no effect; set plain, scram-sha-256 or scram-sha-512"))
		}
		return errs
	case "plain", "scram-sha-256", "scram-sha-512":
	default:
		errs = append(errs, fmt.Errorf("sasl.mechanism: %q is not known; it must be plain, scram-sha-256 or scram-sha-512", s.Mechanism))
	}
	if s.Username == "" {
		errs = append(errs, fmt.Errorf("sasl.username: is missing, but sasl.mechanism %s needs it", s.Mechanism))
	}
	switch {
	case s.Password == "" && s.PasswordFile == "":
		errs = append(errs, fmt.Errorf("sasl.password: is missing, but sasl.mechanism %s needs it; set password or password_file", s.Mechanism))
	case s.Password != "" && s.PasswordFile != "":
		errs = append(errs, errors.New("sasl.password_file: password is given too; give one of the two"))
	}
	return errs
}

// mechanism reads the password's file, if any, and returns what authenticates a
// connection, nil for nothing. The password is in no error.
func (s SASL) mechanism() (sasl.Mechanism, error) {
	if s.Mechanism == "" {
		return nil, nil
	}
	password := s.Password
	if s.PasswordFile != "" {
		text, err := os.ReadFile(s.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("sasl.password_file: %w", err)
		}
		if password = strings.TrimRight(string(text), "\r\n"); password == "" {
			return nil, fmt.Errorf("sasl.password_file: %s is empty", s.PasswordFile)
		}
	}
	var algorithm scram.Algorithm
	switch strings.ToLower(s.Mechanism) {
	case "plain":
		return plain.Mechanism{Username: s.Username, Password: password}, nil
	case "scram-sha-256":
		algorithm = scram.SHA256
	default:
		algorithm = scram.SHA512
	}
	mechanism, err := scram.Mechanism(algorithm, s.Username, password)
	if err != nil {
		return nil, errors.New("sasl.username: it or the password has characters that SASLprep (RFC 4013) prohibits")
	}
	return mechanism, nil
}

func parseCompression(name string) (compress.Compression, error) {
	switch name {
	case "", "none":
		return compress.None, nil
	case "gzip":
		return compress.Gzip, nil
	case "snappy":
		return compress.Snappy, nil
	case "lz4":
		return compress.Lz4, nil
	case "zstd":
		return compress.Zstd, nil
	}
	return compress.None, fmt.Errorf("compression: %q is not known; it must be none, gzip, snappy, lz4 or zstd", name)
}
