package servers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// PostgresOptions says what kind of PostgreSQL to start; the zero value is the
// newest one, fast and not durable.
type PostgresOptions struct {
	// Version is a pinned version or its major version, "14" or "14.24.0";
	// empty is DefaultPostgresVersion. It is downloaded when the cache lacks it.
	Version string
	// Durable keeps fsync and full_page_writes on, as production does. Off,
	// data survives a crash of PostgreSQL but not of the machine.
	Durable bool
	// OnDisk keeps the data in Dir instead of in memory.
	OnDisk bool
	// Dir is the parent of the data folder when OnDisk; empty is the
	// system's folder for temporary files.
	Dir string
	// DiskMB, when not 0, puts the data on a disk of that size of its own, for
	// FillDisk; starting fails with ErrNoDisk where that cannot be had.
	DiskMB int
	// Settings are added to those the harness makes, and override them.
	Settings map[string]string
}

// StopMode is how PostgreSQL treats its sessions when it stops.
type StopMode syscall.Signal

// PostgreSQL's three ways to stop.
const (
	// Smart waits for clients to disconnect.
	Smart = StopMode(syscall.SIGTERM)
	// Fast ends sessions, rolls back and writes a checkpoint.
	Fast = StopMode(syscall.SIGINT)
	// Immediate leaves without a checkpoint, so that the next start recovers
	// from the log as after a crash.
	Immediate = StopMode(syscall.SIGQUIT)
)

// Postgres is a PostgreSQL server. It trusts every local connection; the
// superuser is postgres.
type Postgres struct {
	*instance
	options PostgresOptions
	version string
	bin     string
}

// StartPostgres makes a new cluster, starts it and returns when it answers.
// Logical decoding is on.
func StartPostgres(ctx context.Context, options PostgresOptions) (*Postgres, error) {
	version, err := resolvePostgresVersion(options.Version)
	if err != nil {
		return nil, err
	}
	home, err := ensurePostgres(ctx, version, os.Stderr)
	if err != nil {
		return nil, err
	}
	in, err := newInstance("postgres", scratchPlace(options.OnDisk, options.Dir), 1)
	if err != nil {
		return nil, err
	}
	p := &Postgres{instance: in, options: options, version: version, bin: home + "/bin"}
	if err := p.initialize(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	if err := p.Start(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// initialize makes the cluster's data folder.
func (p *Postgres) initialize(ctx context.Context) error {
	if p.options.DiskMB > 0 {
		if err := p.mountDisk(p.options.DiskMB); err != nil {
			return err
		}
	}
	data := p.data()
	if err := os.Mkdir(data, 0o700); err != nil {
		return fmt.Errorf("PostgreSQL's data folder: %w", err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(data, nobody, nobody); err != nil {
			return fmt.Errorf("PostgreSQL's data folder: %w", err)
		}
	}
	command := exec.Command(p.bin+"/initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
		"--locale=C", "--no-sync", "--no-instructions")
	if p.options.DiskMB > 0 {
		// The log takes whole files, which are to fit a small disk.
		command.Args = append(command.Args, "--wal-segsize=1")
	}
	asNobody(command)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := runTool(ctx, command)
	return err
}

func (p *Postgres) data() string { return p.dataPath() }

// settings are the server's parameters, the caller's last.
func (p *Postgres) settings() map[string]string {
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"unix_socket_directories": "",
		"max_connections":         "300",
		"wal_level":               "logical",
		"max_wal_senders":         "50",
		"max_replication_slots":   "50",
		// Off by default; applications that use two-phase commit turn it on.
		"max_prepared_transactions": "50",
		"log_line_prefix":           "%m [%p] %q%a ",
		// In the data folder, which goes with the server however that ends.
		"dynamic_shared_memory_type": "mmap",
	}
	if !p.options.Durable {
		settings["fsync"] = "off"
		settings["full_page_writes"] = "off"
	}
	maps.Copy(settings, p.options.Settings)
	return settings
}

// Start starts the server that was stopped or killed, on the same port and
// data, and returns when it answers.
func (p *Postgres) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.checkStartable(); err != nil {
		return err
	}
	args := []string{"-D", p.data(), "-p", p.ports[0].String()}
	settings := p.settings()
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := p.launch(ctx, args)
		exit, ended := errors.AsType[*ExitError](err)
		if !ended || !leftByCrash(exit.Log) || time.Now().After(deadline) {
			return err
		}
		// The killed server's last processes are still going.
		time.Sleep(pollInterval)
	}
}

func (p *Postgres) launch(ctx context.Context, args []string) error {
	command := exec.Command(p.bin+"/postgres", args...)
	asNobody(command)
	process, err := startProcess("PostgreSQL", command, p.LogPath())
	if err != nil {
		return err
	}
	p.process = process
	if err := process.awaitReady(ctx, time.Minute, func(ctx context.Context) error { return p.query(ctx, "SELECT 1") }); err != nil {
		process.kill()
		return err
	}
	return nil
}

// leftByCrash recognises a start refused because of processes of the run before.
func leftByCrash(log string) bool {
	return strings.Contains(log, "pre-existing shared memory block") ||
		strings.Contains(log, `lock file "postmaster.pid" already exists`) ||
		strings.Contains(log, "Address already in use")
}

// Stop stops the server and waits until it is gone. Smart fails when clients
// stay for more than a minute, and kills the server then.
func (p *Postgres) Stop(mode StopMode) error { return p.stop(syscall.Signal(mode), time.Minute) }

// Restart is Stop(Fast) and Start.
func (p *Postgres) Restart(ctx context.Context) error {
	if err := p.Stop(Fast); err != nil {
		return err
	}
	return p.Start(ctx)
}

// Version is the full version, like 18.6.0.
func (p *Postgres) Version() string { return p.version }

// URL is the superuser's connection string for the database.
func (p *Postgres) URL(database string) string { return postgresURL(p.Port(), database) }

func postgresURL(port int, database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.User("postgres"), Host: address(port),
		Path: "/" + database, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// CreateDatabase makes an empty database and returns the superuser's
// connection string for it.
func (p *Postgres) CreateDatabase(ctx context.Context, name string) (string, error) {
	// Nobody connects to template0, so that this never waits.
	err := p.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()+" TEMPLATE template0")
	if err != nil {
		return "", fmt.Errorf("creating database %q: %w", name, err)
	}
	return p.URL(name), nil
}

// Exec runs statements, separated by semicolons, as superuser in the database
// postgres.
func (p *Postgres) Exec(ctx context.Context, sql string) error { return p.query(ctx, sql) }

func (p *Postgres) query(ctx context.Context, sql string) error {
	return execSQL(ctx, p.URL("postgres"), sql)
}

func execSQL(ctx context.Context, url, sql string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// Close stops the server and removes its data.
func (p *Postgres) Close() error {
	// What is removed need not be written first.
	return errors.Join(p.Stop(Immediate), p.close())
}
