package metrics_test

import (
	"context"
	"net/http"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/inbox/kafka"
	"github.com/outboxrelay/relay/inbox/metrics"
)

// A consumer whose metrics Prometheus reads.
func ExampleNew() {
	consume := func(ctx context.Context, pool *pgxpool.Pool, ship inbox.Handler) error {
		registry := prometheus.NewRegistry()
		http.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))

		consumer, err := kafka.New(kafka.Config{
			Brokers: []string{"kafka-1:9092"},
			Group:   "shipping",
			Topics:  []string{"orders"},
			Inbox:   &inbox.Inbox{Consumer: "shipping", Observer: metrics.New(registry)},
			DB:      pool,
			Handler: ship,
		})
		if err != nil {
			return err
		}
		return consumer.Run(ctx)
	}
	_ = consume
}
