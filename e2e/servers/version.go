package servers

import (
	"fmt"
	"slices"
	"strings"
)

// The versions of what Deps downloads. RabbitMQ, PgBouncer, Java and Maven are
// the operating system's.
const (
	// DefaultPostgresVersion is what an empty PostgresOptions.Version means.
	DefaultPostgresVersion = "18.6.0"
	// OldestPostgresVersion is of the oldest major version that Outbox Relay supports.
	OldestPostgresVersion = "14.24.0"
	// KafkaVersion is the broker's version.
	KafkaVersion = "4.3.0"
	// DebeziumVersion is of Debezium's connector, which Debezium gets.
	DebeziumVersion = "3.6.0.Final"

	// minJavaVersion is the oldest Java that Kafka's broker runs on.
	minJavaVersion = 17
	// dependencyPlugin downloads; pinned, so that a build machine and a
	// laptop do the same whatever Maven they have.
	dependencyPlugin = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
	// postgresArtifact packs PostgreSQL's binaries for any Linux.
	postgresArtifact = "io.zonky.test.postgres:embedded-postgres-binaries-linux-"
	// debeziumArtifact is the connector with all that it needs, and
	// debeziumChecksum the SHA-256 of its archive.
	debeziumArtifact = "io.debezium:debezium-connector-postgres:" + DebeziumVersion + ":tar.gz:plugin"
	debeziumChecksum = "f810048b2880fe559d47aea75091ccc2ad0249fbce93d3c1e303588b17b6a060"
)

// PostgresVersions returns the versions that StartPostgres knows, the oldest first.
func PostgresVersions() []string {
	return []string{OldestPostgresVersion, "15.19.0", "16.15.0", "17.11.0", DefaultPostgresVersion}
}

// resolvePostgresVersion turns "", "14" or "14.24.0" into a full version.
func resolvePostgresVersion(version string) (string, error) {
	if version == "" {
		return DefaultPostgresVersion, nil
	}
	known := PostgresVersions()
	i := slices.IndexFunc(known, func(v string) bool {
		return v == version || strings.HasPrefix(v, version+".")
	})
	if i < 0 {
		return "", fmt.Errorf("PostgreSQL %q is not one of the pinned versions: choose among %s, or a major version of them",
			version, strings.Join(known, ", "))
	}
	return known[i], nil
}
