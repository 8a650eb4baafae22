package groups

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"

	"github.com/outboxrelay/relay/e2e/servers"
)

// A broker that limits for how long authentication lasts is no broker that is
// away.
func TestReauthentication(t *testing.T) {
	t.Parallel()
	s := newStage(t, servers.KafkaOptions{Secure: true, Properties: map[string]string{"connections.max.reauth.ms": "3000"}}, 3)
	certificate, err := os.ReadFile(s.kafka.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certificate)
	scramming, err := scram.Mechanism(scram.SHA256, servers.KafkaUser, servers.KafkaPassword)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, mechanism := range []sasl.Mechanism{scramming, plain.Mechanism{Username: servers.KafkaUser, Password: servers.KafkaPassword}} {
		log := newLog(t)
		config := s.config(log)
		config.Brokers = s.kafka.SASLSSLBrokers()
		config.Dialer = &kafkago.Dialer{TLS: &tls.Config{RootCAs: roots}, SASLMechanism: mechanism}
		_, stop := run(t, config)
		await(t, "it consumes", func() bool { return len(log.lines("msg=consuming")) > 0 })
		// Several times as long as authentication lasts, busy and idle.
		for range 30 {
			s.publish(n, n+3, 3)
			n += 3
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(7 * time.Second)
		s.publish(n, n+3, 3)
		n += 3
		await(t, "all messages are processed", func() bool { return s.effects() >= n })
		stop()
		if wrong := log.lines("level=WARN"); len(wrong) > 0 {
			t.Errorf("%s: %d warnings: %s", mechanism.Name(), len(wrong), wrong[0])
		}
		if again := log.lines("msg=consuming"); len(again) != 1 {
			t.Errorf("%s: %d generations", mechanism.Name(), len(again))
		}
	}
	s.checkOnce(n)
}
