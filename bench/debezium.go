package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/servers"
)

// slotName is of Debezium's replication slot.
const slotName = "dbz"

// slotLimit bounds how long Debezium takes to read from its slot.
const slotLimit = 2 * time.Minute

// debezium is Debezium's connector with its outbox event router on Connect, with
// a database of its own. SIGSTOP pauses it.
type debezium struct {
	*bench
	url     string
	conn    *pgx.Conn
	connect *servers.Connect
}

// debeziumLane measures Debezium. It runs only for that: a replication slot
// makes PostgreSQL read the log of all databases.
func (b *bench) debeziumLane(ctx context.Context) (results []result, err error) {
	d, err := b.startDebezium(ctx)
	if err != nil {
		return nil, fmt.Errorf("debezium: %w", err)
	}
	defer func() {
		if closing := d.close(context.WithoutCancel(ctx)); closing != nil {
			err = errors.Join(err, fmt.Errorf("debezium: %w", closing))
		}
	}()
	// It is measured warm: its virtual machine compiles for a while.
	if _, err := b.drain(ctx, d, warmUp); err != nil {
		return nil, fmt.Errorf("debezium: warm-up: %w", err)
	}
	if b.only != latency {
		r, err := b.drain(ctx, d, b.rows)
		if err != nil {
			return nil, fmt.Errorf("debezium: drain: %w", err)
		}
		results = append(results, r)
	}
	if b.only != drain {
		r, err := b.latency(ctx, d)
		if err != nil {
			return results, fmt.Errorf("debezium: latency: %w", err)
		}
		results = append(results, r)
	}
	for i := range results {
		results[i].lane = "Debezium"
	}
	return results, nil
}

// startDebezium makes a database with the table that Debezium's documentation
// recommends, and starts the connector, tuned for throughput.
func (b *bench) startDebezium(ctx context.Context) (*debezium, error) {
	name := b.name()
	address, err := b.postgres.CreateDatabase(ctx, name)
	if err != nil {
		return nil, err
	}
	d := &debezium{bench: b, url: address}
	if d.conn, err = pgx.Connect(ctx, address); err != nil {
		return nil, err
	}
	if _, err := d.conn.Exec(ctx, `
		CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype varchar NOT NULL, aggregateid varchar NOT NULL,
			type varchar NOT NULL, payload jsonb);
		CREATE PUBLICATION dbz FOR TABLE outbox`); err != nil {
		return nil, err
	}
	parsed, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	const text = "org.apache.kafka.connect.storage.StringConverter"
	d.connect, err = servers.StartConnect(ctx, b.kafka, servers.ConnectOptions{
		Plugins: b.plugins,
		Worker: map[string]string{
			"key.converter": text, "value.converter": text,
			"producer.acks": "all", "producer.linger.ms": "5", "producer.batch.size": "131072",
		},
		Connector: map[string]string{
			"connector.class":             "io.debezium.connector.postgresql.PostgresConnector",
			"tasks.max":                   "1",
			"database.hostname":           parsed.Hostname(),
			"database.port":               parsed.Port(),
			"database.user":               "postgres",
			"database.password":           "none",
			"database.dbname":             name,
			"topic.prefix":                "dbz",
			"plugin.name":                 "pgoutput",
			"slot.name":                   slotName,
			"publication.name":            "dbz",
			"publication.autocreate.mode": "disabled",
			"table.include.list":          "public.outbox",
			"snapshot.mode":               "no_data",
			"tombstones.on.delete":        "false",
			"max.batch.size":              "8192",
			"max.queue.size":              "32768",
			"poll.interval.ms":            "10",
			"transforms":                  "outbox",
			"transforms.outbox.type":      "io.debezium.transforms.outbox.EventRouter",
			"transforms.outbox.route.topic.replacement":           "${routedByValue}",
			"transforms.outbox.table.fields.additional.placement": "type:header:eventType",
		},
	})
	if err == nil {
		err = d.awaitSlot(ctx)
	}
	if err == nil {
		err = d.pause()
	}
	if err != nil {
		return nil, errors.Join(err, d.close(context.WithoutCancel(ctx)))
	}
	return d, nil
}

// awaitSlot waits until Debezium reads the log.
func (d *debezium) awaitSlot(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, slotLimit)
	defer cancel()
	for {
		var active bool
		err := d.conn.QueryRow(limited, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)`, slotName).Scan(&active)
		if active || err != nil {
			return err
		}
		if pause(limited) != nil {
			if err := ctx.Err(); err != nil {
				return err
			}
			return fmt.Errorf("it does not read from its slot after %v: %s", slotLimit, d.logTail())
		}
	}
}

// close stops Connect and drops the slot, which PostgreSQL would keep its log for.
func (d *debezium) close(ctx context.Context) error {
	var errs []error
	if d.connect != nil {
		errs = append(errs, d.connect.Close())
	}
	for {
		// It ends a moment after its connection.
		_, err := d.conn.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active`, slotName)
		var left bool
		if err == nil {
			err = d.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)`, slotName).Scan(&left)
		}
		if err == nil && left {
			err = pause(ctx)
		}
		if err != nil || !left {
			errs = append(errs, err)
			break
		}
	}
	_, err := d.conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, slotName)
	return errors.Join(append(errs, err, d.conn.Close(ctx))...)
}

func (d *debezium) database() string { return d.url }

// backlog writes many transactions: a single one PostgreSQL decodes before
// Debezium sees anything of it.
func (d *debezium) backlog(ctx context.Context, topic string, rows int) error {
	const each = 1000
	statement := fmt.Sprintf(`INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
		SELECT gen_random_uuid(), $3, 'key-' || i %% $4, 'Measured', (%s)::jsonb FROM generate_series($1::int, $2::int) i`,
		fmt.Sprintf(payload, "i", d.bytes))
	for first := 1; first <= rows; first += each {
		if _, err := d.conn.Exec(ctx, statement, first, min(first+each-1, rows), topic, d.keys); err != nil {
			return err
		}
	}
	return tidy(ctx, d.conn)
}

func (d *debezium) insertion() string {
	return `INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload) VALUES (gen_random_uuid(), $1, $2, 'Measured', $3::jsonb)`
}

func (d *debezium) resume(context.Context) (int, error) { return d.connect.PID(), d.connect.Resume() }

func (d *debezium) pause() error { return d.connect.Pause() }

// settled: what Debezium has left to do is to remember how far it came, which it
// does once a second.
func (d *debezium) settled(context.Context) (bool, error) { return true, nil }

func (d *debezium) logTail() string { return d.connect.LogTail() }
