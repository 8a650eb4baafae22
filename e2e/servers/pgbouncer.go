package servers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// PgBouncerOptions says what to pool.
type PgBouncerOptions struct {
	// PostgresPort is the server's port on 127.0.0.1.
	PostgresPort int
	// PoolSize is the number of server connections for each database and
	// user; 0 is 20.
	PoolSize int
	// Settings are added to those the harness makes, and override them.
	Settings map[string]string
}

// PgBouncer is a connection pool in transaction mode for every database of
// one PostgreSQL.
type PgBouncer struct {
	*instance
	options PgBouncerOptions
}

// StartPgBouncer starts a pool and returns when a query passes through it.
func StartPgBouncer(ctx context.Context, options PgBouncerOptions) (*PgBouncer, error) {
	if !exists(pgbouncerPath) {
		return nil, missingPackages([]string{"pgbouncer"})
	}
	if options.PostgresPort == 0 {
		return nil, errors.New("PgBouncerOptions.PostgresPort is not set: which PostgreSQL is to be pooled?")
	}
	in, err := newInstance("pgbouncer", os.TempDir(), 1)
	if err != nil {
		return nil, err
	}
	b := &PgBouncer{instance: in, options: options}
	if err := b.initialize(); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	if err := b.Start(ctx); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func (b *PgBouncer) initialize() error {
	settings := map[string]string{
		"listen_addr":       "127.0.0.1",
		"listen_port":       b.ports[0].String(),
		"unix_socket_dir":   "",
		"auth_type":         "trust",
		"auth_file":         b.scratch.path("users.txt"),
		"pool_mode":         "transaction",
		"max_client_conn":   "500",
		"default_pool_size": strconv.Itoa(max(b.options.PoolSize, 0)),
	}
	if b.options.PoolSize == 0 {
		settings["default_pool_size"] = "20"
	}
	maps.Copy(settings, b.options.Settings)
	var text strings.Builder
	fmt.Fprintf(&text, "[databases]\n* = host=127.0.0.1 port=%d\n[pgbouncer]\n", b.options.PostgresPort)
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&text, "%s = %s\n", name, settings[name])
	}
	for path, content := range map[string]string{
		b.config():                  text.String(),
		b.scratch.path("users.txt"): "\"postgres\" \"\"\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return fmt.Errorf("writing PgBouncer's configuration: %w", err)
		}
	}
	return nil
}

func (b *PgBouncer) config() string { return b.scratch.path("pgbouncer.ini") }

// Start starts the pool that was stopped or killed, on the same port, and
// returns when a query passes through it.
func (b *PgBouncer) Start(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.checkStartable(); err != nil {
		return err
	}
	command := exec.Command(pgbouncerPath, b.config())
	// Its own option -u would change the user after the start, upon which
	// the kernel forgets to kill it with us.
	asNobody(command)
	process, err := startProcess("PgBouncer", command, b.LogPath())
	if err != nil {
		return err
	}
	b.process = process
	probe := func(ctx context.Context) error { return execSQL(ctx, b.URL("postgres"), "SELECT 1") }
	if err := process.awaitReady(ctx, 30*time.Second, probe); err != nil {
		process.kill()
		return err
	}
	return nil
}

// URL is the superuser's connection string for the database, through the pool.
func (b *PgBouncer) URL(database string) string { return postgresURL(b.Port(), database) }

// Stop stops the pool, ending its clients' connections, and waits until it is gone.
func (b *PgBouncer) Stop() error { return b.stop(syscall.SIGTERM, 10*time.Second) }

// Close stops the pool and removes its configuration.
func (b *PgBouncer) Close() error {
	b.Kill()
	return b.close()
}
