package rabbitmq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/inbox/internal/consume"
)

// The headers of a dead letter, beside all that the message had.
const (
	// HeaderError is why the message could not be processed.
	HeaderError = "inbox-error"
	// HeaderAttempts is how often it was tried, an integer.
	HeaderAttempts = "inbox-attempts"
	// HeaderConsumer is the inbox's Consumer.
	HeaderConsumer = "inbox-consumer"
	// HeaderSource is the queue that the message was read from.
	HeaderSource = "inbox-source"
	// HeaderExchange and HeaderRoutingKey are what the message was first
	// published with.
	HeaderExchange   = "inbox-exchange"
	HeaderRoutingKey = "inbox-routing-key"
	// HeaderExpiration, HeaderUserID and HeaderCC are what the message had as
	// its properties expiration and user_id and its header CC. A dead letter
	// must not have them: it would expire, be refused as somebody else's, or
	// be routed to the queues that CC names.
	HeaderExpiration = "inbox-expiration"
	HeaderUserID     = "inbox-user-id"
	HeaderCC         = "inbox-cc"
)

// publisher sends dead letters, each confirmed before the next one: they are
// rare. It has a connection of its own, since the broker stops reading from
// one that publishes when it runs out of memory or disk space, and
// acknowledgements would be stuck behind. At most one call at a time.
type publisher struct {
	connect func(ctx context.Context) (*link, error)

	link    *link
	channel *amqp.Channel
	closes  chan *amqp.Error
	returns chan amqp.Return
}

// publish returns nil when the broker has taken the message and routed it to a
// queue. After any error the message may or may not have arrived.
func (p *publisher) publish(ctx context.Context, exchange, routingKey string, message amqp.Publishing) error {
	if err := p.open(ctx); err != nil {
		return err
	}
	err := p.send(ctx, exchange, routingKey, message)
	if err != nil {
		// The confirm of what was given up must not be taken for the next one's.
		p.close()
	}
	return err
}

func (p *publisher) open(ctx context.Context) error {
	if p.channel != nil && !p.channel.IsClosed() {
		return nil
	}
	p.close()
	l, err := p.connect(ctx)
	if err != nil {
		return err
	}
	err = l.talk(func() error {
		channel, err := l.connection.Channel()
		if err != nil {
			return err
		}
		p.channel = channel
		p.closes = channel.NotifyClose(make(chan *amqp.Error, 1))
		p.returns = channel.NotifyReturn(make(chan amqp.Return, 1))
		return channel.Confirm(false)
	})
	p.link = l
	if err != nil {
		p.close()
		return fmt.Errorf("RabbitMQ at %s: opening a channel for dead letters: %w", l.address, err)
	}
	return nil
}

func (p *publisher) send(ctx context.Context, exchange, routingKey string, message amqp.Publishing) error {
	confirm, err := p.channel.PublishWithDeferredConfirm(exchange, routingKey, true, false, message)
	if err != nil {
		return fmt.Errorf("RabbitMQ at %s: publishing to %s: %w", p.link.address, describe(exchange), err)
	}
	for tick := time.NewTicker(talkTimeout); ; {
		select {
		case <-confirm.Done():
			tick.Stop()
			return p.verdict(confirm.Acked(), exchange, routingKey)
		case <-ctx.Done():
			tick.Stop()
			return fmt.Errorf("RabbitMQ at %s: %s did not confirm: %w", p.link.address, describe(exchange), context.Cause(ctx))
		case <-tick.C:
			// A blocked connection is answered once the broker has memory or
			// disk space again, and a second copy would not help it.
			if p.link.blocked.Load() {
				continue
			}
			tick.Stop()
			return fmt.Errorf("RabbitMQ at %s: %s did not confirm within %s", p.link.address, describe(exchange), talkTimeout)
		}
	}
}

// verdict explains a confirm. A return came before its confirm, and so did the
// reason of a closed channel.
func (p *publisher) verdict(acked bool, exchange, routingKey string) error {
	select {
	case r := <-p.returns:
		if r.ReplyText != "" || r.ReplyCode != 0 {
			return fmt.Errorf("%s takes no message with routing key %q (%d %s): bind a queue to it", describe(exchange), routingKey, r.ReplyCode, r.ReplyText)
		}
	default:
	}
	if acked {
		return nil
	}
	select {
	case e := <-p.closes:
		switch {
		case e == nil:
			return errors.New("the connection was closed before the broker confirmed")
		case e.Code == amqp.NotFound:
			return fmt.Errorf("%s does not exist: create it (%s)", describe(exchange), e.Reason)
		case e.Code == amqp.AccessRefused:
			return fmt.Errorf("%s: grant write permission (%s)", describe(exchange), e.Reason)
		}
		return fmt.Errorf("%s: %w", describe(exchange), e)
	default:
		return fmt.Errorf("%s, routing key %q: the broker refused the message (nack): a queue is full with x-overflow=reject-publish, or failed", describe(exchange), routingKey)
	}
}

// close ends the connection.
func (p *publisher) close() {
	if p.link != nil {
		p.link.close()
	}
	p.link, p.channel = nil, nil
}

func describe(exchange string) string {
	if exchange == "" {
		return "the default exchange"
	}
	return fmt.Sprintf("exchange %q", exchange)
}

// deadLetter publishes dead letters.
func (c *Consumer) deadLetter(to DeadLetter) func(context.Context, *consume.Item, consume.Failure) (string, error) {
	return func(ctx context.Context, item *consume.Item, f consume.Failure) (string, error) {
		var p *publisher
		select {
		case p = <-c.publisher:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
		defer func() { c.publisher <- p }()
		d := item.Delivery.(*amqp.Delivery)
		key := cmp.Or(to.RoutingKey, d.RoutingKey)
		return fmt.Sprintf("%s, routing key %q", describe(to.Exchange), key), p.publish(ctx, to.Exchange, key, c.letter(d, f))
	}
}

// letter returns the message as it was, with what failed in its headers.
func (c *Consumer) letter(d *amqp.Delivery, f consume.Failure) amqp.Publishing {
	headers := make(amqp.Table, len(d.Headers)+9)
	maps.Copy(headers, d.Headers)
	if cc, ok := headers["CC"]; ok {
		delete(headers, "CC")
		headers[HeaderCC] = cc
	}
	headers[HeaderError] = f.Text()
	headers[HeaderAttempts] = int64(f.Attempts)
	headers[HeaderConsumer] = c.config.Inbox.Consumer
	headers[HeaderSource] = c.config.Queue
	headers[HeaderExchange] = d.Exchange
	headers[HeaderRoutingKey] = d.RoutingKey
	if d.Expiration != "" {
		headers[HeaderExpiration] = d.Expiration
	}
	if d.UserId != "" {
		headers[HeaderUserID] = d.UserId
	}
	return amqp.Publishing{
		Headers:         headers,
		ContentType:     d.ContentType,
		ContentEncoding: d.ContentEncoding,
		DeliveryMode:    amqp.Persistent,
		Priority:        d.Priority,
		CorrelationId:   d.CorrelationId,
		ReplyTo:         d.ReplyTo,
		MessageId:       d.MessageId,
		Timestamp:       d.Timestamp,
		Type:            d.Type,
		AppId:           d.AppId,
		Body:            d.Body,
	}
}
