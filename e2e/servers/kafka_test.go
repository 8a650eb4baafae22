package servers

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

func startTestKafka(t *testing.T, options KafkaOptions) *Kafka {
	t.Helper()
	k, err := StartKafka(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	CleanUp(t, k)
	return k
}

// produce appends one record and returns its offset.
func produce(ctx context.Context, k *Kafka, topic string) (int64, error) {
	client, done := k.client()
	defer done()
	response, err := client.Produce(ctx, &kafka.ProduceRequest{
		Topic: topic, RequiredAcks: kafka.RequireAll,
		Records: kafka.NewRecordReader(kafka.Record{Value: kafka.NewBytes([]byte("x"))}),
	})
	if err != nil {
		return 0, err
	}
	return response.BaseOffset, response.Error
}

func TestKafka(t *testing.T) {
	t.Parallel()
	k := startTestKafka(t, KafkaOptions{HeapMB: 160, Properties: map[string]string{"message.max.bytes": "5000000"}})
	ctx := t.Context()
	if err := k.CreateTopic(ctx, "orders", 3, map[string]string{"max.message.bytes": "1000"}); err != nil {
		t.Fatal(err)
	}
	if err := k.CreateTopic(ctx, "orders", 3, nil); !errors.Is(err, kafka.TopicAlreadyExists) {
		t.Errorf("creating a topic twice: %v", err)
	}
	want := int64(0)
	appendOne := func(after string) {
		t.Helper()
		offset, err := produce(ctx, k, "orders")
		// A broker that was killed answers before it has read all of its log.
		for end := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(end); offset, err = produce(ctx, k, "orders") {
			time.Sleep(100 * time.Millisecond)
		}
		if err != nil || offset != want {
			t.Fatalf("%s: offset %d, error %v; want offset %d", after, offset, err, want)
		}
		want++
	}
	appendOne("start")
	if err := k.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := k.Start(ctx); err != nil {
		t.Fatal(err)
	}
	appendOne("stop and start")
	k.Kill()
	if err := k.Start(ctx); err != nil {
		t.Fatal(err)
	}
	appendOne("kill and start")

	if err := k.Pause(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if err := k.probe(short); err == nil {
		t.Error("a paused broker answered")
	}
	if err := k.Resume(); err != nil {
		t.Fatal(err)
	}
	appendOne("pause and resume")

	if err := k.DeleteTopic(ctx, "orders"); err != nil {
		t.Fatal(err)
	}
	if _, err := produce(ctx, k, "orders"); err == nil {
		t.Error("a deleted topic took a record")
	}
}

func TestKafkaListenersDemand(t *testing.T) {
	t.Parallel()
	k := startTestKafka(t, KafkaOptions{Secure: true})
	pem, err := os.ReadFile(k.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	known := x509.NewCertPool()
	known.AppendCertsFromPEM(pem)
	pair, err := tls.LoadX509KeyPair(k.ClientCertFile(), k.ClientKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	trusting := &tls.Config{RootCAs: known}
	known256, err := scram.Mechanism(scram.SHA256, KafkaUser, KafkaPassword)
	if err != nil {
		t.Fatal(err)
	}
	known512, err := scram.Mechanism(scram.SHA512, KafkaUser, KafkaPassword)
	if err != nil {
		t.Fatal(err)
	}
	wrong512, err := scram.Mechanism(scram.SHA512, KafkaUser, "wrong")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		brokers []string
		tls     *tls.Config
		sasl    sasl.Mechanism
		want    bool
	}{
		{"plain text", k.Brokers(), nil, nil, true},
		{"TLS", k.SSLBrokers(), trusting, nil, true},
		{"TLS with an unknown authority", k.SSLBrokers(), &tls.Config{}, nil, false},
		{"TLS with plain text", k.SSLBrokers(), nil, nil, false},
		{"MTLS", k.MTLSBrokers(), &tls.Config{RootCAs: known, Certificates: []tls.Certificate{pair}}, nil, true},
		{"MTLS without a certificate", k.MTLSBrokers(), trusting, nil, false},
		{"PLAIN", k.SASLSSLBrokers(), trusting, plain.Mechanism{Username: KafkaUser, Password: KafkaPassword}, true},
		{"PLAIN with a wrong password", k.SASLSSLBrokers(), trusting, plain.Mechanism{Username: KafkaUser, Password: "wrong"}, false},
		{"SCRAM-SHA-256", k.SASLSSLBrokers(), trusting, known256, true},
		{"SCRAM-SHA-512", k.SASLSSLBrokers(), trusting, known512, true},
		{"SCRAM-SHA-512 with a wrong password", k.SASLSSLBrokers(), trusting, wrong512, false},
		{"SASL without credentials", k.SASLSSLBrokers(), trusting, nil, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			transport := &kafka.Transport{TLS: test.tls, SASL: test.sasl, DialTimeout: 5 * time.Second}
			defer transport.CloseIdleConnections()
			client := &kafka.Client{Addr: kafka.TCP(test.brokers...), Timeout: 5 * time.Second, Transport: transport}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, err := client.Metadata(ctx, &kafka.MetadataRequest{})
			if (err == nil) != test.want {
				t.Errorf("error %v, want success: %v", err, test.want)
			}
		})
	}
}
