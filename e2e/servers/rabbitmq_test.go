package servers

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func startTestRabbitMQ(t *testing.T, options RabbitMQOptions) *RabbitMQ {
	t.Helper()
	r, err := StartRabbitMQ(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	CleanUp(t, r)
	return r
}

func openChannel(t *testing.T, url string) (*amqp.Connection, *amqp.Channel) {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	channel, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return conn, channel
}

func TestRabbitMQ(t *testing.T) {
	t.Parallel()
	r := startTestRabbitMQ(t, RabbitMQOptions{})
	ctx := t.Context()
	url, err := r.CreateVhost(ctx, "odd/name")
	if err != nil {
		t.Fatal(err)
	}
	conn, channel := openChannel(t, url)
	if _, err := channel.QueueDeclare("kept", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}

	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	if err := r.CloseAllConnections(ctx, "as tested"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-closed:
		if err == nil || err.Code != 320 || !strings.Contains(err.Reason, "as tested") {
			t.Errorf("the connection closed with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the connection stays open")
	}

	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(ctx); err != nil {
		t.Fatal(err)
	}
	r.Kill()
	if err := r.Start(ctx); err != nil {
		t.Fatal(err)
	}
	_, channel = openChannel(t, url)
	if _, err := channel.QueueDeclarePassive("kept", true, false, false, false, nil); err != nil {
		t.Errorf("a durable queue did not survive: %v", err)
	}
	if output, err := r.Control(ctx, "list_queues", "--vhost", "odd/name", "name"); err != nil || !strings.Contains(output, "kept") {
		t.Errorf("list_queues: %v: %s", err, output)
	}
	if !strings.Contains(r.LogTail(), "odd/name") {
		t.Errorf("the log's end does not name the virtual host:\n%s", r.LogTail())
	}
}

func TestRabbitMQWithTLS(t *testing.T) {
	t.Parallel()
	r := startTestRabbitMQ(t, RabbitMQOptions{TLS: true})
	pem, err := os.ReadFile(r.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	known := x509.NewCertPool()
	known.AppendCertsFromPEM(pem)
	conn, err := amqp.DialTLS(r.TLSURL("/"), &tls.Config{RootCAs: known})
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if _, err := amqp.DialTLS(r.TLSURL("/"), &tls.Config{}); err == nil {
		t.Error("an unknown authority was trusted")
	}
	openChannel(t, r.URL("/"))
}
