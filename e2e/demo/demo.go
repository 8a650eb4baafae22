package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/e2e/servers"
)

// Options say how the demo goes.
type Options struct {
	// Sink is one of Sinks.
	Sink string
	// Duration is how long orders come in.
	Duration time.Duration
	// Rate is the number of the order service's transactions per second.
	Rate float64
	// Relays is how many there are.
	Relays int
	// KillEvery is the time from one kill to the next; 0: none.
	KillEvery time.Duration
	// Dir is the parent of the folder for binaries, configuration and logs;
	// empty: the system's folder for temporary files.
	Dir string
	// View shows it.
	View *View
}

// drainLimit is how long the relays may take for what is left when the orders
// have stopped.
const drainLimit = 30 * time.Second

// Run runs the demo and shows it. It returns true if the tally is clean. When
// ctx ends it stops everything and returns its cause. Nothing that it started
// is left when it returns.
func Run(ctx context.Context, options Options) (clean bool, err error) {
	dir, err := os.MkdirTemp(options.Dir, "outbox-relay-demo-")
	if err != nil {
		return false, err
	}
	defer func() {
		if clean || errors.Is(err, context.Canceled) {
			_ = os.RemoveAll(dir)
			return
		}
		options.View.Line("\n  Logs and configuration: %s", dir)
	}()
	d := &demo{Options: options, dir: dir, arrivals: new(Arrivals)}
	defer options.View.Close()
	defer d.close()
	if err := d.prepare(ctx); err != nil {
		return false, err
	}
	return d.run(ctx)
}

// demo is one run: what it started, in dir.
type demo struct {
	Options
	dir      string
	arrivals *Arrivals

	mu       sync.Mutex // of what prepare starts side by side
	postgres *servers.Postgres
	broker   broker
	pool     *pgxpool.Pool
	database string
	relays   *relays
	orders   *program
	// explained is how many duplicates the kills account for.
	explained int
}

// prepare gets, builds and starts everything but the processes of the demo.
func (d *demo) prepare(ctx context.Context) error {
	began := time.Now()
	d.View.Line("Outbox Relay demo: %v of orders, %d relays, %s\n", d.Duration, d.Relays, d.plan())
	if err := servers.Deps(ctx, d.View.Out); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var steps sync.WaitGroup
	step := func(f func() (what string, err error)) {
		steps.Go(func() {
			began := time.Now()
			what, err := f()
			if err != nil {
				cancel(err)
				return
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			d.View.Done(what, time.Since(began))
		})
	}
	step(func() (string, error) { return d.startPostgres(ctx) })
	step(func() (string, error) { return d.startBroker(ctx) })
	step(func() (string, error) { return "built relay and orders", d.build(ctx) })
	steps.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	d.View.Line("  ready after %.1f s", time.Since(began).Seconds())
	return nil
}

func (d *demo) plan() string {
	if d.KillEvery == 0 {
		return "none of which is killed"
	}
	return fmt.Sprintf("one of which is killed every %v", d.KillEvery)
}

func (d *demo) startPostgres(ctx context.Context) (string, error) {
	server, err := servers.StartPostgres(ctx, servers.PostgresOptions{})
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	d.postgres = server
	d.mu.Unlock()
	if d.database, err = server.CreateDatabase(ctx, "shop"); err != nil {
		return "", err
	}
	if d.pool, err = pgxpool.New(ctx, d.database); err != nil {
		return "", err
	}
	return "PostgreSQL " + server.Version(), nil
}

func (d *demo) startBroker(ctx context.Context) (string, error) {
	started, err := startBroker(ctx, d.Sink)
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broker = started
	return started.Name(), nil
}

// build makes the binaries from the sources that this one was made from.
func (d *demo) build(ctx context.Context) error {
	const module = "github.com/outboxrelay/relay"
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	output, err := list.Output()
	root := string(bytes.TrimSpace(output))
	if err != nil || root == "" {
		return fmt.Errorf("find the sources of %s: run the demo in its repository: %w", module, err)
	}
	for binary, source := range map[string]string{
		"relay":  filepath.Join(root, "cmd", "relay"),
		"orders": filepath.Join(root, "examples", "orders"),
	} {
		command := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(d.dir, binary), ".")
		command.Dir = source
		if err := runCommand(command); err != nil {
			return err
		}
	}
	return nil
}

// run is the demo proper.
func (d *demo) run(parent context.Context) (clean bool, err error) {
	ctx, fail := context.WithCancelCause(parent)
	defer fail(nil)
	d.relays, err = newRelays(d.Relays, filepath.Join(d.dir, "relay"), d.dir, d.database, d.broker.Sink(), fail)
	if err != nil {
		return false, err
	}
	if err := d.relays.migrate(ctx); err != nil {
		return false, err
	}
	if err := d.relays.start(); err != nil {
		return false, err
	}
	if err := d.relays.ready(ctx); err != nil {
		return false, err
	}
	var consumer sync.WaitGroup
	defer consumer.Wait()
	consuming, stopConsumer := context.WithCancel(ctx)
	defer stopConsumer()
	consumer.Go(func() {
		if err := d.broker.Consume(consuming, d.arrivals); err != nil && consuming.Err() == nil {
			fail(fmt.Errorf("consumer: %w", err))
		}
	})

	m := &monitor{
		view: d.View, ledger: ledger{d.pool}, arrivals: d.arrivals, relays: d.relays, started: time.Now(), total: d.Duration,
		title: fmt.Sprintf("orders → PostgreSQL %s → %d relays → %s", d.postgres.Version(), d.Relays, d.broker.Name()),
	}
	if err := d.load(ctx, m); err != nil {
		return false, err
	}
	problems := d.drain(ctx, m)
	if err := context.Cause(ctx); err != nil {
		return false, err
	}
	return d.compare(ctx, problems)
}

// load lets orders come in, and kills relays meanwhile.
func (d *demo) load(ctx context.Context, m *monitor) (err error) {
	command := exec.Command(filepath.Join(d.dir, "orders"), "--rate", fmt.Sprint(d.Rate), "--duration", d.Duration.String())
	command.Env = append(os.Environ(), "DATABASE_URL="+d.database)
	if d.orders, err = startProgram("orders", filepath.Join(d.dir, "orders.log"), command); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var others sync.WaitGroup
	if d.KillEvery > 0 {
		others.Go(func() {
			var err error
			if d.explained, err = d.relays.harass(ctx, d.KillEvery, m.ledger); err != nil {
				cancel(err)
			}
		})
	}
	others.Go(func() { m.run(ctx, "load") })
	select {
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-d.orders.Done():
		err = d.orders.failure()
	}
	cancel(nil)
	others.Wait()
	return err
}

// drain waits until the outbox is empty, ends the relays and waits until the
// consumer has read everything.
func (d *demo) drain(ctx context.Context, m *monitor) (problems []error) {
	showing, stopShowing := context.WithCancel(ctx)
	var shown sync.WaitGroup
	shown.Go(func() { m.run(showing, "drain") })
	defer shown.Wait()
	defer stopShowing()

	limited, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	left := 0
	err := poll(limited, func() (done bool, err error) {
		left, err = ledger{d.pool}.pending(limited)
		return left == 0, err
	})
	if err != nil && ctx.Err() == nil {
		problems = append(problems, fmt.Errorf("after %v %d messages wait in the outbox: %w", drainLimit, left, err))
	}
	if err := d.relays.ready(ctx); err != nil {
		problems = append(problems, err)
	}
	if ctx.Err() != nil {
		return problems
	}
	problems = append(problems, d.relays.stop()...)
	limited, cancel = context.WithTimeout(ctx, drainLimit)
	defer cancel()
	if err := d.broker.Drain(limited); err != nil && ctx.Err() == nil {
		problems = append(problems, fmt.Errorf("read the broker to its end: %w", err))
	}
	return problems
}

// compare makes and shows the tally.
func (d *demo) compare(ctx context.Context, problems []error) (clean bool, err error) {
	book := ledger{d.pool}
	committed, err := book.committed(ctx)
	if err != nil {
		return false, err
	}
	undone, err := book.undone(ctx)
	if err != nil {
		return false, err
	}
	if len(committed) == 0 {
		problems = append(problems, errors.New("the order service committed nothing"))
	}
	tally := Compare(committed, undone, d.arrivals.Records())
	d.View.Tally(tally, d.relays.kills(), d.explained, problems)
	return tally.Clean(d.explained) && len(problems) == 0, nil
}

// close ends everything that is left, in the order in which it depends on each
// other.
func (d *demo) close() {
	if d.orders != nil {
		d.orders.Kill()
	}
	if d.relays != nil {
		d.relays.kill()
	}
	if d.pool != nil {
		d.pool.Close()
	}
	var closing sync.WaitGroup
	for _, server := range []io.Closer{d.postgresCloser(), d.broker} {
		if server != nil {
			closing.Go(func() { _ = server.Close() }) // what it leaves, the next run removes
		}
	}
	closing.Wait()
}

func (d *demo) postgresCloser() io.Closer {
	if d.postgres == nil {
		return nil
	}
	return d.postgres
}

// Check returns what is wrong with the options, nil if nothing is.
func (o Options) Check() error {
	var errs []error
	known := false
	for _, sink := range Sinks() {
		known = known || sink == o.Sink
	}
	if !known {
		errs = append(errs, fmt.Errorf("sink %q: must be one of %s", o.Sink, strings.Join(Sinks(), ", ")))
	}
	if o.Duration < time.Second {
		errs = append(errs, fmt.Errorf("duration %v: must be at least 1s", o.Duration))
	}
	if o.Rate <= 0 {
		errs = append(errs, fmt.Errorf("rate %v: must be positive", o.Rate))
	}
	if o.Relays < 1 {
		errs = append(errs, fmt.Errorf("relays %d: must be at least 1", o.Relays))
	}
	if o.KillEvery != 0 && o.KillEvery < 2*downTime {
		errs = append(errs, fmt.Errorf("kill-every %v: must be 0 (never) or at least %v", o.KillEvery, 2*downTime))
	}
	return errors.Join(errs...)
}
