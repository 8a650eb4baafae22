// Package systemd reports to the service manager, which is systemd or behaves
// like it, how the relay fares.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/outboxrelay/relay/internal/delivery"
)

const (
	// notifyTimeout bounds the wait for a service manager that reads no more.
	notifyTimeout = time.Second
	// closingMargin is what a stop may take beyond shutdown_timeout: settling
	// what was acknowledged, and closing connections.
	closingMargin = 30 * time.Second
)

// Notifier reports in the datagrams of sd_notify(3). A nil Notifier reports to
// nobody.
type Notifier struct {
	address *net.UnixAddr
	// watchdog is how often the manager wants to hear that the relay lives; zero
	// when it does not.
	watchdog time.Duration
	// stopBound is announced for the stop.
	stopBound time.Duration
	logger    *slog.Logger
	condition *condition
	// silent: the last datagram could not be sent, which was logged.
	silent bool
}

// New reads what the service manager put into the environment. Without
// NOTIFY_SOCKET it returns nil. The timeout is that of the relay's stop.
func New(environment func(string) string, shutdownTimeout time.Duration, logger *slog.Logger) *Notifier {
	socket := environment("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	if socket[0] != '/' && socket[0] != '@' {
		logger.Warn("the service manager is not told how the relay fares: NOTIFY_SOCKET names no Unix socket", "socket", socket)
		return nil
	}
	n := &Notifier{
		// Go reads a leading @ as the mark of an abstract address, as systemd does.
		address:   &net.UnixAddr{Name: socket, Net: "unixgram"},
		stopBound: shutdownTimeout + closingMargin,
		logger:    logger, condition: newCondition(),
	}
	var err error
	if n.watchdog, err = watchdogInterval(environment); err != nil {
		logger.Warn("the service manager's watchdog is not fed", "error", err)
	}
	return n
}

// watchdogInterval is how long the service manager waits for a sign of life;
// zero when it asks for none of this process.
func watchdogInterval(environment func(string) string) (time.Duration, error) {
	if pid := environment("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0, nil // meant for the process that started this one
	}
	value := environment("WATCHDOG_USEC")
	if value == "" {
		return 0, nil
	}
	microseconds, err := strconv.ParseInt(value, 10, 64)
	interval := time.Duration(microseconds) * time.Microsecond
	if err != nil || microseconds < 2 || interval/time.Microsecond != time.Duration(microseconds) {
		return 0, fmt.Errorf("WATCHDOG_USEC %q is no number of microseconds", value)
	}
	return interval, nil
}

// Observe returns an observer that passes everything on to next and learns from
// it how the relay fares.
func (n *Notifier) Observe(next delivery.Observer) delivery.Observer {
	if n == nil {
		return next
	}
	return observed{next, n.condition}
}

// Loop is what of a loop is reported.
type Loop interface {
	// Live returns what is wrong when the process is stuck.
	Live() error
	// Ready reports whether the database was reached.
	Ready() bool
}

// Run reports until ctx ends: that the relay is ready, once it is; its condition,
// whenever that changes; that it stops, when stopping is closed; and twice in
// each interval of the watchdog that it lives, for as long as the loop does.
func (n *Notifier) Run(ctx context.Context, stopping <-chan struct{}, loop Loop) {
	if n == nil {
		return
	}
	var feed <-chan time.Time
	if n.watchdog > 0 {
		ticker := time.NewTicker(n.watchdog / 2)
		defer ticker.Stop()
		feed = ticker.C
	}
	told := "" // the last status
	tell := func(status string, lines ...string) {
		if status != told {
			lines = append(lines, "STATUS="+status)
			told = status
		}
		if len(lines) > 0 {
			n.send(lines...)
		}
	}
	ready, hangs, stops := false, false, false
	for {
		switch {
		case stops, hangs:
		case ready || !loop.Ready():
			tell(n.condition.status(ready))
		default:
			ready = true
			tell(n.condition.status(ready), "READY=1")
		}
		select {
		case <-ctx.Done():
			return
		case <-stopping:
			stops, stopping = true, nil
			tell("Stopping: finishing what is in flight", "STOPPING=1", "EXTEND_TIMEOUT_USEC="+strconv.FormatInt(n.stopBound.Microseconds(), 10))
		case <-n.condition.changed:
		case <-feed:
			err := loop.Live()
			switch {
			case err == nil:
				hangs = false
				n.send("WATCHDOG=1")
			case !hangs:
				hangs = true
				n.logger.Error("the service manager's watchdog is not fed any more", "error", err)
				tell("Hangs: " + err.Error())
			}
		}
	}
}

// send sends one datagram. That a manager cannot be told is no reason to stop.
func (n *Notifier) send(lines ...string) {
	err := n.write(strings.Join(lines, "\n"))
	if err != nil && !n.silent {
		n.logger.Warn("the service manager cannot be told how the relay fares", "socket", n.address.Name, "error", err)
	}
	n.silent = err != nil
}

// write dials anew each time, so that a manager that was started anew is told.
func (n *Notifier) write(datagram string) (err error) {
	connection, err := net.DialUnix("unixgram", nil, n.address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, connection.Close()) }()
	if err := connection.SetWriteDeadline(time.Now().Add(notifyTimeout)); err != nil {
		return err
	}
	_, err = connection.Write([]byte(datagram))
	return err
}
