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
	// Shippers is how many processes the shipping service has.
	Shippers int
	// KillEvery is the time from one kill of a relay to the next, and from one
	// of a shipping service to the next; 0: none.
	KillEvery time.Duration
	// Dir is the parent of the folder for binaries, configuration and logs;
	// empty: the system's folder for temporary files.
	Dir string
	// View shows it.
	View *View
}

// drainLimit is how long the relays, and then the shipping service, may take
// for what is left when the orders have stopped.
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
	// shop is the order service's database, depot the shipping service's.
	shop, depot database
	relays      *relays
	shippers    *shippers
	orders      *program
}

// database is one that the demo looks into.
type database struct {
	url  string
	pool *pgxpool.Pool
}

func newDatabase(ctx context.Context, server *servers.Postgres, name string) (d database, err error) {
	if d.url, err = server.CreateDatabase(ctx, name); err != nil {
		return database{}, err
	}
	d.pool, err = pgxpool.New(ctx, d.url)
	return d, err
}

func (d database) close() {
	if d.pool != nil {
		d.pool.Close()
	}
}

// prepare gets, builds and starts everything but the processes of the demo.
func (d *demo) prepare(ctx context.Context) error {
	began := time.Now()
	d.View.Line("Outbox Relay demo: %v of orders, %d relays, %d shipping services, %s\n", d.Duration, d.Relays, d.Shippers, d.plan())
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
	step(func() (string, error) { return "built relay, orders and shipping", d.build(ctx) })
	steps.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	d.View.Line("  ready after %.1f s", time.Since(began).Seconds())
	return nil
}

func (d *demo) plan() string {
	if d.KillEvery == 0 {
		return "none of them killed"
	}
	return fmt.Sprintf("one of each killed every %v", d.KillEvery)
}

func (d *demo) startPostgres(ctx context.Context) (string, error) {
	server, err := servers.StartPostgres(ctx, servers.PostgresOptions{})
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	d.postgres = server
	d.mu.Unlock()
	if d.shop, err = newDatabase(ctx, server, "shop"); err != nil {
		return "", err
	}
	if d.depot, err = newDatabase(ctx, server, "depot"); err != nil {
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
		"relay":    filepath.Join(root, "cmd", "relay"),
		"orders":   filepath.Join(root, "examples", "orders"),
		"shipping": filepath.Join(root, "examples", "orders", "shipping"),
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
	if err := d.startCrews(ctx, fail); err != nil {
		return false, err
	}
	var auditor sync.WaitGroup
	defer auditor.Wait()
	auditing, stopAuditor := context.WithCancel(ctx)
	defer stopAuditor()
	auditor.Go(func() {
		if err := d.broker.Audit(auditing, d.arrivals); err != nil && auditing.Err() == nil {
			fail(fmt.Errorf("auditor: %w", err))
		}
	})

	m := &monitor{
		view: d.View, ledger: ledger{d.shop.pool}, waybills: waybills{d.depot.pool}, arrivals: d.arrivals,
		relays: d.relays, shippers: d.shippers, started: time.Now(), total: d.Duration,
		title: fmt.Sprintf("orders → PostgreSQL %s → %d relays → %s → %d shipping services", d.postgres.Version(), d.Relays, d.broker.Name(), d.Shippers),
	}
	if err := d.load(ctx, m); err != nil {
		return false, err
	}
	problems := d.drain(ctx, m)
	if err := context.Cause(ctx); err != nil {
		return false, err
	}
	return d.compare(ctx, m, problems)
}

// startCrews makes the tables and starts the relays and the shipping services.
func (d *demo) startCrews(ctx context.Context, fail context.CancelCauseFunc) (err error) {
	d.relays, err = newRelays(d.Relays, filepath.Join(d.dir, "relay"), d.dir, d.shop.url, d.broker.Sink(), fail)
	if err != nil {
		return err
	}
	d.shippers, err = newShippers(d.Shippers, d.dir, d.depot.url, d.broker, fail)
	if err != nil {
		return err
	}
	if err := d.relays.migrate(ctx); err != nil {
		return err
	}
	if err := d.shippers.migrate(ctx); err != nil {
		return err
	}
	if err := d.relays.start(); err != nil {
		return err
	}
	if err := d.shippers.start(); err != nil {
		return err
	}
	return d.relays.ready(ctx)
}

// load lets orders come in, and kills relays and shipping services meanwhile.
func (d *demo) load(ctx context.Context, m *monitor) (err error) {
	command := exec.Command(filepath.Join(d.dir, "orders"), "--rate", fmt.Sprint(d.Rate), "--duration", d.Duration.String())
	command.Env = append(os.Environ(), "DATABASE_URL="+d.shop.url)
	if d.orders, err = startProgram("orders", filepath.Join(d.dir, "orders.log"), command); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var others sync.WaitGroup
	harass := func(c *crew, delay time.Duration, strike func(context.Context, *member) error) {
		others.Go(func() {
			if !sleep(ctx, delay) {
				return
			}
			if err := c.harass(ctx, d.KillEvery, strike); err != nil {
				cancel(err)
			}
		})
	}
	if d.KillEvery > 0 {
		harass(&d.relays.crew, 0, func(ctx context.Context, victim *member) error {
			return d.relays.strike(ctx, victim, m.ledger)
		})
		harass(&d.shippers.crew, d.KillEvery/2, func(ctx context.Context, victim *member) error {
			return d.shippers.strike(ctx, victim, m.waybills)
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

// drain waits until the outbox is empty, ends the relays, waits until the
// auditor has read everything and the shipping service has processed it, and
// ends that.
func (d *demo) drain(ctx context.Context, m *monitor) (problems []error) {
	showing, stopShowing := context.WithCancel(ctx)
	var shown sync.WaitGroup
	shown.Go(func() { m.run(showing, "drain") })
	defer shown.Wait()
	defer stopShowing()

	left := 0
	within := func(what string, wait func(ctx context.Context) error) {
		limited, cancel := context.WithTimeout(ctx, drainLimit)
		defer cancel()
		if err := wait(limited); err != nil && ctx.Err() == nil {
			problems = append(problems, fmt.Errorf("%s, within %v: %w", what, drainLimit, err))
		}
	}
	within("empty the outbox", func(ctx context.Context) error {
		err := poll(ctx, func() (done bool, err error) {
			left, err = m.ledger.pending(ctx)
			return left == 0, err
		})
		if err != nil {
			return fmt.Errorf("%d messages wait in it: %w", left, err)
		}
		return nil
	})
	if err := d.relays.ready(ctx); err != nil {
		problems = append(problems, err)
	}
	if ctx.Err() != nil {
		return problems
	}
	problems = append(problems, d.relays.stop()...)
	within("read the broker to its end", d.broker.Drain)
	within("ship what was paid", func(ctx context.Context) error { return d.awaitShipments(ctx, m) })
	within("leave nothing to the shipping service", d.ship)
	return problems
}

// awaitShipments waits until every order that was paid is shipped. A queue does
// not count what a process had that was killed a moment ago, so that an empty
// queue alone says little.
func (d *demo) awaitShipments(ctx context.Context, m *monitor) error {
	paid, err := m.ledger.paid(ctx)
	if err != nil {
		return err
	}
	var tally Shipping
	err = poll(ctx, func() (done bool, err error) {
		shipments, err := m.waybills.shipments(ctx)
		tally = CompareShipments(paid, shipments)
		return len(tally.Never) == 0, err
	})
	if err != nil {
		return fmt.Errorf("%d orders are not shipped: %w", len(tally.Never), err)
	}
	return nil
}

// ship waits until no message waits for the shipping service and ends it. What
// it had received and not processed then waits again, for another round.
func (d *demo) ship(ctx context.Context) error {
	for {
		var left int64
		none := func() (done bool, err error) {
			left, err = d.broker.Unshipped(ctx)
			return left == 0, err
		}
		if err := poll(ctx, none); err != nil {
			return fmt.Errorf("%d messages wait: %w", left, err)
		}
		if errs := d.shippers.stop(); errs != nil {
			return errors.Join(errs...)
		}
		if done, err := none(); done || err != nil {
			return err
		}
		if err := d.shippers.start(); err != nil {
			return err
		}
	}
}

// compare makes and shows the tally.
func (d *demo) compare(ctx context.Context, m *monitor, problems []error) (clean bool, err error) {
	committed, err := m.ledger.committed(ctx)
	if err != nil {
		return false, err
	}
	undone, err := m.ledger.undone(ctx)
	if err != nil {
		return false, err
	}
	paid, err := m.ledger.paid(ctx)
	if err != nil {
		return false, err
	}
	shipments, err := m.waybills.shipments(ctx)
	if err != nil {
		return false, err
	}
	if len(paid) == 0 {
		problems = append(problems, errors.New("no payment was committed"))
	}
	tally := Compare(committed, undone, d.arrivals.Records())
	tally.Shipping = CompareShipments(paid, shipments)
	if _, tally.Shipping.Refused, err = m.waybills.counts(ctx); err != nil {
		return false, err
	}
	if kills(d.shippers.status()) > 0 && tally.Shipping.Refused == 0 {
		problems = append(problems, errors.New("the inbox was given no duplicates, so this run shows nothing of it"))
	}
	toll := Toll{Relays: kills(d.relays.status()), Shippers: kills(d.shippers.status()), Explained: d.relays.explained}
	d.View.Tally(tally, toll, problems)
	return tally.Clean(toll.Explained) && len(problems) == 0, nil
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
	if d.shippers != nil {
		d.shippers.kill()
	}
	d.shop.close()
	d.depot.close()
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
	if o.Shippers < 1 {
		errs = append(errs, fmt.Errorf("shippers %d: must be at least 1", o.Shippers))
	}
	if o.KillEvery != 0 && o.KillEvery < 2*downTime {
		errs = append(errs, fmt.Errorf("kill-every %v: must be 0 (never) or at least %v", o.KillEvery, 2*downTime))
	}
	return errors.Join(errs...)
}
