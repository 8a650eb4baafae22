package kafka

import "github.com/outboxrelay/relay/sinks"

// Config is a Kafka sink as the configuration file has it.
type Config struct {
	Brokers  []string `yaml:"brokers"`
	ClientID string   `yaml:"client_id"`
	// Compression is none, gzip, snappy, lz4 or zstd.
	Compression     string    `yaml:"compression"`
	MaxMessageBytes int       `yaml:"max_message_bytes"`
	TLS             sinks.TLS `yaml:"tls"`
	SASL            SASL      `yaml:"sasl"`
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
	return Config{ClientID: "outbox-relay", Compression: "none", MaxMessageBytes: 1_000_000}
}
