package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/sinks"
)

// Publisher sends messages to RabbitMQ; it implements sinks.Streamer. It
// connects when it is first used, and again whenever the connection was lost.
type Publisher struct {
	config   Config
	envelope sinks.Envelope
	target   endpoint
	logger   *slog.Logger
	lifetime context.Context // ends dialling at Close
	end      context.CancelFunc

	mu      sync.Mutex
	closed  bool
	current *connection
	dialing *attempt
	working sync.WaitGroup
}

var _ sinks.Streamer = (*Publisher)(nil)

// attempt is a connection in the making that several calls wait for.
type attempt struct {
	ready      chan struct{}
	connection *connection // valid when ready is closed and err is nil
	err        error
}

// New returns a publisher, or every fault of the configuration. It reads
// url_file and the TLS files, and does not connect.
func New(config Config, envelope sinks.Envelope, logger *slog.Logger) (*Publisher, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	switch envelope.Style {
	case "", sinks.StylePlain, sinks.StyleDebezium:
	case sinks.StyleCloudEvents:
		if envelope.Source == "" {
			return nil, fmt.Errorf("source: is empty, but headers: %s needs it", envelope.Style)
		}
	default:
		return nil, fmt.Errorf("headers: %q is not a style: use plain, cloudevents or debezium", envelope.Style)
	}
	target, err := newEndpoint(config)
	if err != nil {
		return nil, err
	}
	lifetime, end := context.WithCancel(context.Background())
	return &Publisher{config: config, envelope: envelope, target: target, logger: logger, lifetime: lifetime, end: end}, nil
}

// Publish implements sinks.Publisher.
func (p *Publisher) Publish(ctx context.Context, messages []sinks.Message) []error {
	return p.Stream(sinks.Window{}).Send(ctx, messages).Results()
}

// start runs f in a goroutine of the publisher, unless that is closed.
func (p *Publisher) start(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.working.Go(f)
	return true
}

// Ping implements sinks.Publisher: it connects if need be and opens a channel.
// While the broker blocks publishers it reports that.
func (p *Publisher) Ping(ctx context.Context) error {
	s, err := p.connection(ctx)
	if err != nil {
		return err
	}
	if reason := s.block.reason.Load(); reason != nil {
		return blocked(s.target.address, *reason)
	}
	return s.rpc(ctx, func() error {
		return s.examine(func(*amqp.Channel) error { return nil })
	})
}

// Verify implements sinks.Publisher: the exchange must exist, on the default
// exchange the queue that the routing key names, and the user must have the
// permission to publish. It cannot see whether an exchange has a binding for
// the routing key.
func (p *Publisher) Verify(ctx context.Context, d sinks.Destination) error {
	exchange := d.Exchange
	if exchange == "" {
		exchange = p.config.Exchange
	}
	if err := check(exchange, &sinks.Message{Destination: d.Name}); err != nil {
		return err
	}
	s, err := p.connection(ctx)
	if err != nil {
		return err
	}
	if reason := s.block.reason.Load(); reason != nil {
		return blocked(s.target.address, *reason)
	}
	return s.rpc(ctx, func() error { return s.verify(exchange, d.Name) })
}

// Close implements sinks.Publisher. It returns within about a second.
func (p *Publisher) Close() error {
	p.mu.Lock()
	p.closed = true
	s := p.current
	p.current = nil
	p.mu.Unlock()
	p.end()
	if s != nil {
		s.close()
	}
	p.working.Wait()
	return nil
}

// connection returns the live connection, made again if need be: one attempt at a
// time, whose result goes to all who wait.
func (p *Publisher) connection(ctx context.Context) (*connection, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil, errClosed
	}
	if s := p.current; s != nil && !s.ended() {
		p.mu.Unlock()
		return s, nil
	}
	a := p.dialing
	if a == nil {
		a = &attempt{ready: make(chan struct{})}
		p.dialing = a
		previous := p.current
		p.current = nil
		p.working.Go(func() { p.connect(a, previous) })
	}
	p.mu.Unlock()
	select {
	case <-a.ready:
		return a.connection, a.err
	case <-ctx.Done():
		return nil, interrupted(ctx, p.target.address, false)
	}
}

// connect makes a new connection after it has put the previous one away.
func (p *Publisher) connect(a *attempt, previous *connection) {
	defer close(a.ready)
	if previous != nil {
		previous.close()
		p.logger.Debug("RabbitMQ: the connection was lost, connecting again", "broker", p.target.address, "error", previous.failure())
	}
	a.connection, a.err = connect(p.lifetime, p.target, p.config.MaxInFlight, p.logger)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dialing = nil
	switch {
	case a.err == nil && p.closed:
		a.connection.close()
		a.connection, a.err = nil, errClosed
	case a.err == nil:
		p.current = a.connection
		p.logger.Debug("RabbitMQ: connected", "broker", p.target.address, "vhost", p.target.vhost, "user", p.target.user, "tls", p.target.tls != nil)
	case p.closed:
		a.err = errClosed
	}
}

// verify asks about the exchange and queue, and then publishes in a
// transaction that is rolled back: the broker checks permissions at once and
// delivers nothing.
func (s *connection) verify(exchange, routingKey string) error {
	var e *amqp.Error
	if exchange == "" && routingKey == "" {
		return nil
	}
	var err error
	if exchange == "" {
		err = s.examine(func(channel *amqp.Channel) error {
			_, err := channel.QueueDeclarePassive(routingKey, true, false, false, false, nil)
			return err
		})
	} else {
		err = s.examine(func(channel *amqp.Channel) error {
			return channel.ExchangeDeclarePassive(exchange, amqp.ExchangeDirect, true, false, false, false, nil)
		})
	}
	switch {
	case err == nil:
	case !errors.As(err, &e) || s.ended():
		return s.broken(err)
	case e.Code == amqp.NotFound && exchange == "":
		return destination(reasonUnknownQueue, fmt.Errorf("queue %q does not exist (default exchange): create it, or correct the route's destination", routingKey))
	case e.Code == amqp.ResourceLocked: // it is there, for one consumer only
	default:
		return exchangeRefusal(exchange, s.target.user, e)
	}
	err = s.examine(func(channel *amqp.Channel) error {
		if err := channel.Tx(); err != nil {
			return err
		}
		if err := channel.Publish(exchange, routingKey, false, false, amqp.Publishing{}); err != nil {
			return err
		}
		return channel.TxRollback()
	})
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &e) || s.ended():
		return s.broken(err)
	case judge(e).exchange:
		return exchangeRefusal(exchange, s.target.user, e)
	}
	return messageRefusal(exchange, s.target.user, &sinks.Message{Destination: routingKey}, e)
}
