package servers

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// RabbitMQOptions says what kind of RabbitMQ to start; the zero value is one
// node with one plain listener.
type RabbitMQOptions struct {
	// TLS adds a listener with TLS.
	TLS bool
	// OnDisk keeps the data on disk instead of in memory.
	OnDisk bool
	// Config is added to the configuration file, a line each.
	Config []string
}

// RabbitMQ is one RabbitMQ node. The user is guest, the password Canary.
type RabbitMQ struct {
	*instance
	options      RabbitMQOptions
	certificates *certificates
	// plugins is the folder that linkModules made, empty without one.
	plugins string
}

// The index of each of the node's ports.
const (
	rabbitAMQP = iota
	rabbitDistribution
	rabbitEPMD
	rabbitTLS
)

// StartRabbitMQ starts a new node and returns when a client can open a channel.
func StartRabbitMQ(ctx context.Context, options RabbitMQOptions) (*RabbitMQ, error) {
	if !hasRabbitMQ() {
		return nil, missingPackages([]string{"rabbitmq-server"})
	}
	ports := 3
	if options.TLS {
		ports = 4
	}
	in, err := newInstance("rabbitmq", scratchPlace(options.OnDisk, ""), ports)
	if err != nil {
		return nil, err
	}
	r := &RabbitMQ{instance: in, options: options}
	if err := r.initialize(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	if err := r.Start(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// initialize writes the configuration and starts the node's port mapper. Left
// to itself the node would start one as a daemon, which outlives everything.
func (r *RabbitMQ) initialize(ctx context.Context) error {
	lines := []string{"listeners.tcp.1 = " + r.ports[rabbitAMQP].address(), "default_pass = " + Canary}
	if r.options.TLS {
		var err error
		if r.certificates, err = makeCertificates(r.scratch.dir); err != nil {
			return err
		}
		lines = append(lines,
			"listeners.ssl.1 = "+r.ports[rabbitTLS].address(),
			"ssl_options.cacertfile = "+r.certificates.ca,
			"ssl_options.certfile = "+r.certificates.serverCert,
			"ssl_options.keyfile = "+r.certificates.serverKey,
			"ssl_options.verify = verify_peer",
			"ssl_options.fail_if_no_peer_cert = false")
	}
	lines = append(lines, r.options.Config...)
	for name, content := range map[string]string{
		"rabbitmq.conf":   strings.Join(lines, "\n") + "\n",
		"enabled_plugins": "[].\n",
	} {
		if err := os.WriteFile(r.scratch.path(name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("writing RabbitMQ's configuration: %w", err)
		}
	}
	plugins := r.scratch.path("plugins")
	linked, err := linkModules(plugins)
	if err != nil {
		return fmt.Errorf("linking RabbitMQ's modules: %w", err)
	}
	if linked {
		r.plugins = plugins
	}
	port := r.ports[rabbitEPMD]
	mapper, err := startProcess("RabbitMQ's port mapper epmd",
		exec.Command("epmd", "-port", port.String(), "-address", "127.0.0.1"), r.scratch.path("epmd.log"))
	if err != nil {
		return err
	}
	r.helpers = append(r.helpers, mapper)
	return mapper.awaitReady(ctx, 30*time.Second, func(ctx context.Context) error { return dialTCP(ctx, port.address()) })
}

// environment is that of the node and of its tools.
func (r *RabbitMQ) environment() []string {
	environment := append(os.Environ(),
		"HOME="+r.scratch.dir,
		"RABBITMQ_NODENAME="+r.node(),
		"RABBITMQ_DIST_PORT="+r.ports[rabbitDistribution].String(),
		"ERL_EPMD_PORT="+r.ports[rabbitEPMD].String(),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_MNESIA_BASE="+r.scratch.path("mnesia"),
		"RABBITMQ_LOG_BASE="+r.scratch.path("log"),
		"RABBITMQ_PID_FILE="+r.scratch.path("pid"),
		"RABBITMQ_CONF_ENV_FILE="+r.scratch.path("none"),
		"RABBITMQ_ENABLED_PLUGINS_FILE="+r.scratch.path("enabled_plugins"),
		"RABBITMQ_CONFIG_FILE="+r.scratch.path("rabbitmq.conf"),
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel inet_dist_use_interface {127,0,0,1} -noinput",
		// The script becomes the node instead of waiting for it as a child
		// that would outlive us.
		"RUNNING_UNDER_SYSTEMD=true",
	)
	if r.plugins != "" {
		environment = append(environment, "RABBITMQ_PLUGINS_DIR="+r.plugins)
	}
	return environment
}

func (r *RabbitMQ) node() string { return "relay" + r.ports[rabbitAMQP].String() + "@localhost" }

// Start starts the node that was stopped or killed, on the same ports and
// data, and returns when a client can open a channel.
func (r *RabbitMQ) Start(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.checkStartable(); err != nil {
		return err
	}
	command := exec.Command(filepath.Join(rabbitDir, "rabbitmq-server"))
	command.Env = r.environment()
	command.Dir = r.scratch.dir
	process, err := startProcess("RabbitMQ", command, r.LogPath())
	if err != nil {
		return err
	}
	r.process = process
	if err := process.awaitReady(ctx, 90*time.Second, r.probe); err != nil {
		process.kill()
		return err
	}
	return nil
}

// probe succeeds when a client can open a channel.
func (r *RabbitMQ) probe(context.Context) error {
	conn, err := amqp.DialConfig(r.URL("/"), amqp.Config{Dial: amqp.DefaultDial(2 * time.Second)})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Channel()
	return err
}

// Stop stops the node in order, by SIGTERM, and waits until it is gone.
func (r *RabbitMQ) Stop() error { return r.stop(syscall.SIGTERM, time.Minute) }

// URL is the address of the virtual host, "/" being the default one.
func (r *RabbitMQ) URL(vhost string) string {
	return amqpURL("amqp", r.ports[rabbitAMQP].address(), vhost)
}

// TLSURL is URL for the listener with TLS; empty without one.
func (r *RabbitMQ) TLSURL(vhost string) string {
	if !r.options.TLS {
		return ""
	}
	return amqpURL("amqps", r.ports[rabbitTLS].address(), vhost)
}

func amqpURL(scheme, host, vhost string) string {
	path := "/"
	if vhost != "/" && vhost != "" {
		path += url.PathEscape(vhost)
	}
	return scheme + "://guest:" + Canary + "@" + host + path
}

// CAFile is the certificate that signed the server's; empty without TLS.
func (r *RabbitMQ) CAFile() string { return r.certificates.caFile() }

// ClientCertFile is a certificate that CAFile signed; empty without TLS.
func (r *RabbitMQ) ClientCertFile() string { return r.certificates.clientCertFile() }

// ClientKeyFile is the key of ClientCertFile; empty without TLS.
func (r *RabbitMQ) ClientKeyFile() string { return r.certificates.clientKeyFile() }

// CreateVhost makes a virtual host, allows guest everything in it and returns
// its URL.
func (r *RabbitMQ) CreateVhost(ctx context.Context, name string) (string, error) {
	vhost := erlangText(name)
	if err := r.evaluate(ctx, `ok = rabbit_vhost:add(`+vhost+`, <<"test">>),
		ok = rabbit_auth_backend_internal:set_permissions(<<"guest">>, `+vhost+`, <<".*">>, <<".*">>, <<".*">>, <<"test">>)`); err != nil {
		return "", fmt.Errorf("making the virtual host %q: %w", name, err)
	}
	return r.URL(name), nil
}

// CloseAllConnections closes every client's connection, of every virtual host; clients get
// "320 CONNECTION_FORCED - reason".
func (r *RabbitMQ) CloseAllConnections(ctx context.Context, reason string) error {
	// One that ends by itself meanwhile is no failure.
	if err := r.evaluate(ctx, `[catch rabbit_networking:close_connection(C, `+erlangText(reason)+`) || C <- rabbit_networking:connections()], ok`); err != nil {
		return fmt.Errorf("closing RabbitMQ's connections: %w", err)
	}
	return nil
}

// erlangText is a text of printable characters as a binary in Erlang's syntax,
// which quotes them as Go's does.
func erlangText(text string) string { return `<<` + strconv.Quote(text) + `/utf8>>` }

// evaluate runs expressions in the node that end with ok, by a program that
// takes 3 ms where rabbitmqctl starts a node of its own for 800.
func (r *RabbitMQ) evaluate(ctx context.Context, expressions string) error {
	command := exec.Command("erl_call", "-n", r.node(), "-e")
	command.Stdin = strings.NewReader(expressions + ".\n")
	output, err := r.runTool(ctx, command)
	if err == nil && strings.TrimSpace(output) != "{ok, ok}" {
		err = fmt.Errorf("RabbitMQ answered %s to %s", output, expressions)
	}
	return err
}

// Control runs rabbitmqctl and returns what it printed.
func (r *RabbitMQ) Control(ctx context.Context, args ...string) (string, error) {
	return r.runTool(ctx, exec.Command(filepath.Join(rabbitDir, "rabbitmqctl"), append([]string{"--quiet", "--node", r.node()}, args...)...))
}

// runTool runs a program that talks to the node.
func (r *RabbitMQ) runTool(ctx context.Context, command *exec.Cmd) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	command.Env = r.environment()
	command.Dir = r.scratch.dir
	return runTool(ctx, command)
}

// LogTail is the end of the node's log.
func (r *RabbitMQ) LogTail() string {
	if log := readEnd(r.nodeLog(), 0); log != "" {
		return tail(log)
	}
	return r.instance.LogTail()
}

func (r *RabbitMQ) nodeLog() string {
	return r.scratch.path("log", "relay"+strconv.Itoa(r.Port())+"@localhost.log")
}

// Close stops the node and removes its data.
func (r *RabbitMQ) Close() error {
	// What is removed need not be written first.
	r.Kill()
	return r.close()
}
