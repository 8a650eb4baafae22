package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// largeBatch is the batch size of the lane that shows what a row costs when the
// cost of a batch is spread over many.
const largeBatch = 4000

// variant is a relay as it is measured.
type variant struct {
	// group, when not empty, is what the variant is compared within, instead of
	// all that drains or all that is measured for its latency.
	group       string
	lane        string
	binary      string
	batch       int
	onPublished string
	// latency: its latency is measured too.
	latency bool
}

// variants are those to measure: those that drain differently, and with -against
// each of the other build and of this one.
func (b *bench) variants() []variant {
	other := "delete"
	if b.onPublished == "delete" {
		other = "mark"
	}
	all := []variant{
		{lane: "relay", batch: b.batch, onPublished: b.onPublished, latency: true},
		{lane: fmt.Sprintf("relay, batches of %d", largeBatch), batch: largeBatch, onPublished: b.onPublished},
		{lane: "relay, " + other, batch: b.batch, onPublished: other},
	}
	var pairs []variant
	for _, v := range all {
		v.binary = b.binary
		if b.against == "" {
			pairs = append(pairs, v)
			continue
		}
		v.group = v.lane
		that := v
		v.lane, that.lane, that.binary = v.lane+", this build", v.lane+", other build", b.against
		pairs = append(pairs, that, v)
	}
	return pairs
}

// relayLane measures a relay.
func (b *bench) relayLane(ctx context.Context, v variant) ([]result, error) {
	var results []result
	add := func(measure func(context.Context, *relay) (result, error)) error {
		s, err := b.newRelay(ctx, v)
		if err != nil {
			return err
		}
		defer s.close()
		r, err := measure(ctx, s)
		if err != nil {
			return err
		}
		r.lane = v.lane
		if v.group != "" {
			r.group += ": " + v.group
		}
		results = append(results, r)
		return nil
	}
	if b.only != latency {
		if err := add(func(ctx context.Context, s *relay) (result, error) { return b.drain(ctx, s, b.rows) }); err != nil {
			return nil, fmt.Errorf("%s: drain: %w", v.lane, err)
		}
	}
	if b.only != drain && v.latency {
		if err := add(func(ctx context.Context, s *relay) (result, error) { return b.latency(ctx, s) }); err != nil {
			return nil, fmt.Errorf("%s: latency: %w", v.lane, err)
		}
	}
	return results, nil
}

// relay is a relay with a database of its own; while it is paused it has no
// process.
type relay struct {
	*bench
	binary, config, url string
	conn                *pgx.Conn
	command             *exec.Cmd
	log                 *os.File
}

// newRelay makes a database with an outbox, and a relay's configuration.
func (b *bench) newRelay(ctx context.Context, v variant) (*relay, error) {
	name := b.name()
	url, err := b.postgres.CreateDatabase(ctx, name)
	if err != nil {
		return nil, err
	}
	r := &relay{bench: b, binary: v.binary, config: filepath.Join(b.scratch, name+".yaml"), url: url}
	text := fmt.Sprintf(`database: {url: %q}
outbox: {batch_size: %d, workers: %d, on_published: %s}
sinks: {main: {kafka: {brokers: [%q]}}}
http: {listen: ""}
`, url, v.batch, b.workers, v.onPublished, b.kafka.Brokers()[0])
	if err := os.WriteFile(r.config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	migrate := exec.CommandContext(ctx, r.binary, "migrate", "--config", r.config)
	if out, err := migrate.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("relay migrate: %w: %s", err, out)
	}
	r.conn, err = pgx.Connect(ctx, url)
	return r, err
}

func (r *relay) close() {
	if r.command != nil {
		_ = r.command.Process.Kill() // it was measured, or an error says what happened
		_ = r.command.Wait()
		_ = r.log.Close()
	}
	_ = r.conn.Close(context.Background())
}

func (r *relay) database() string { return r.url }

func (r *relay) backlog(ctx context.Context, topic string, rows int) error {
	_, err := r.conn.Exec(ctx, fmt.Sprintf(`INSERT INTO outbox (topic, key, type, payload)
		SELECT $3, 'key-' || i %% $2, 'Measured', convert_to(%s, 'UTF8') FROM generate_series(1, $1) i`,
		fmt.Sprintf(payload, "i", r.bytes)), rows, r.keys, topic)
	if err != nil {
		return err
	}
	return tidy(ctx, r.conn)
}

// tidy does what PostgreSQL would otherwise do later for the rows written.
func tidy(ctx context.Context, conn *pgx.Conn) error {
	for _, statement := range []string{`VACUUM ANALYZE outbox`, `CHECKPOINT`} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

func (r *relay) insertion() string {
	return `WITH n AS (SELECT pg_notify('outbox', '')) INSERT INTO outbox (topic, key, type, payload)
		SELECT $1, $2, 'Measured', convert_to($3, 'UTF8') FROM n`
}

func (r *relay) resume(ctx context.Context) (int, error) {
	var err error
	if r.log, err = os.Create(r.config + ".log"); err != nil {
		return 0, err
	}
	command := exec.CommandContext(ctx, r.binary, "run", "--config", r.config)
	command.Stderr = r.log
	if err := command.Start(); err != nil {
		return 0, errors.Join(err, r.log.Close())
	}
	r.command = command
	return command.Process.Pid, nil
}

func (r *relay) settled(ctx context.Context) (settled bool, err error) {
	err = r.conn.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM outbox WHERE published_at IS NULL)`).Scan(&settled)
	return settled, err
}

// pause ends the relay in good order.
func (r *relay) pause() error {
	if err := r.command.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	err := r.command.Wait()
	r.command = nil
	_ = r.log.Close()
	if err != nil {
		return fmt.Errorf("the relay: %w: %s", err, r.logTail())
	}
	return nil
}

func (r *relay) logTail() string {
	text, err := os.ReadFile(r.config + ".log")
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4096):])
}
