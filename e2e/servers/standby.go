package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// standbySlot is the replication slot of a primary's standby.
const standbySlot = "standby"

// StartStandby starts a standby that replicates the server physically, of the
// same version and settings. The server is stopped for the copy of its data and
// started again; sessions end. With synchronous, the primary's commits wait for
// the standby to have them on disk, from the return of StartStandby on.
func (p *Postgres) StartStandby(ctx context.Context, synchronous bool) (*Postgres, error) {
	in, err := newInstance("standby", scratchPlace(p.options.OnDisk, p.options.Dir), 1)
	if err != nil {
		return nil, err
	}
	options := p.options
	options.DiskMB = 0
	s := &Postgres{instance: in, options: options, version: p.version, bin: p.bin}
	if err := p.seedStandby(ctx, s); err != nil {
		return nil, errors.Join(fmt.Errorf("starting a standby: %w", err), s.Close())
	}
	if synchronous {
		if err := p.Exec(ctx, "ALTER SYSTEM SET synchronous_standby_names = '"+standbySlot+"'"); err != nil {
			return nil, errors.Join(err, s.Close())
		}
		if err := p.Exec(ctx, "SELECT pg_reload_conf()"); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	if err := p.awaitStandby(ctx, synchronous); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// seedStandby copies the data of p, which is stopped meanwhile, and starts s on
// the copy.
func (p *Postgres) seedStandby(ctx context.Context, s *Postgres) error {
	if err := p.Stop(Fast); err != nil {
		return err
	}
	if _, err := runTool(ctx, exec.Command("cp", "-a", p.data(), s.data())); err != nil {
		return err
	}
	// Both servers read this file after what the command line says.
	conninfo := fmt.Sprintf("primary_conninfo = 'host=127.0.0.1 port=%s user=postgres application_name=%s'\nprimary_slot_name = '%s'\nhot_standby_feedback = on\n",
		p.ports[0], standbySlot, standbySlot)
	file, err := os.OpenFile(s.data()+"/postgresql.conf", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(conninfo)
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	signal := s.data() + "/standby.signal"
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		return err
	}
	// It is removed at the promotion, by the server's user.
	if os.Geteuid() == 0 {
		if err := os.Chown(signal, nobody, nobody); err != nil {
			return err
		}
	}
	if err := p.Start(ctx); err != nil {
		return err
	}
	if err := p.Exec(ctx, "SELECT pg_create_physical_replication_slot('"+standbySlot+"', true)"); err != nil {
		return err
	}
	return s.Start(ctx)
}

// awaitStandby returns when the standby streams, and, if that is asked for, when
// commits wait for it.
func (p *Postgres) awaitStandby(ctx context.Context, synchronous bool) error {
	state := "state = 'streaming'"
	if synchronous {
		state += " AND sync_state = 'sync'"
	}
	return p.awaitTrue(ctx, time.Minute, `SELECT count(*) > 0 FROM pg_stat_replication WHERE `+state)
}

// Promote makes a standby the primary and returns when it takes writes. The old
// primary has to be gone.
func (p *Postgres) Promote(ctx context.Context) error {
	if err := p.Exec(ctx, "SELECT pg_promote()"); err != nil {
		return fmt.Errorf("promoting the standby: %w", err)
	}
	return p.awaitTrue(ctx, time.Minute, `SELECT NOT pg_is_in_recovery()`)
}

// awaitTrue polls a query until it yields true.
func (p *Postgres) awaitTrue(ctx context.Context, limit time.Duration, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		done, err := p.ask(ctx, sql)
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %s is not true: %w", p.name, sql, errors.Join(err, ctx.Err()))
		case <-time.After(pollInterval):
		}
	}
}

// ask runs a query that yields one truth.
func (p *Postgres) ask(ctx context.Context, sql string) (answer bool, err error) {
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return answer, conn.QueryRow(ctx, sql).Scan(&answer)
}

// FailoverURL is the connection string for the database on whichever of the
// servers is the primary.
func FailoverURL(database string, servers ...*Postgres) string {
	hosts := make([]string, len(servers))
	for i, server := range servers {
		hosts[i] = server.ports[0].address()
	}
	return "postgres://postgres@" + strings.Join(hosts, ",") + "/" + database + "?sslmode=disable&target_session_attrs=read-write"
}
