module github.com/outboxrelay/relay/bench

go 1.26.0

require (
	github.com/jackc/pgx/v5 v5.12.0
	github.com/outboxrelay/relay/e2e v0.0.0-00010101000000-000000000000
	github.com/segmentio/kafka-go v0.4.51
)

require (
	github.com/jackc/pgpassfile v1.0.0 // indirect
	github.com/jackc/pgservicefile v0.0.0-20240606120523-5a60cdf6a761 // indirect
	github.com/klauspost/compress v1.18.0 // indirect
	github.com/pierrec/lz4/v4 v4.1.15 // indirect
	github.com/rabbitmq/amqp091-go v1.16.0 // indirect
	golang.org/x/text v0.42.0 // indirect
)

replace (
	github.com/outboxrelay/relay => ../
	github.com/outboxrelay/relay/e2e => ../e2e
)
