package tracing

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"

	"github.com/outboxrelay/relay/sinks/kafka"
	"github.com/outboxrelay/relay/sinks/rabbitmq"
)

// What is one of several, nobody knows before a connection is made.
func TestDescriptions(t *testing.T) {
	database := func(url string) []attribute.KeyValue {
		c, err := pgx.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		return DatabaseOf(c)
	}
	for want, got := range map[string][]attribute.KeyValue{
		"db.namespace=d server.address=h server.port=5433 ": database("postgres://u:secret@h:5433/d?sslmode=prefer"),
		"db.namespace=d ": database("postgres://u:secret@h,i/d"),
		"messaging.client.id=c server.address=k server.port=9092 ": KafkaSink(&kafka.Config{ClientID: "c", Brokers: []string{"k:9092"}}).Attributes,
		"messaging.client.id=d ":                                   KafkaSink(&kafka.Config{ClientID: "d", Brokers: []string{"k:1", "l:1"}}).Attributes,
		"server.address=r server.port=5672 ":                       RabbitMQSink(&rabbitmq.Config{URL: "amqp://u:secret@r/v"}).Attributes,
		"server.address=r server.port=5671 ":                       RabbitMQSink(&rabbitmq.Config{URL: "amqps://u:secret@r/v"}).Attributes,
		"server.address=r server.port=1 ":                          RabbitMQSink(&rabbitmq.Config{URL: "amqps://r:1"}).Attributes,
	} {
		text := ""
		for _, a := range got {
			text += fmt.Sprintf("%s=%s ", a.Key, a.Value.String())
		}
		if text != want {
			t.Errorf("got %q, want %q", text, want)
		}
	}
}
