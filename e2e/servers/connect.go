package servers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Debezium downloads Debezium's connector for PostgreSQL unless the cache has
// it, and returns the folder that Connect finds it in.
func Debezium(ctx context.Context, out io.Writer) (string, error) {
	return ensure(ctx, out, filepath.Join("debezium", DebeziumVersion), "Debezium "+DebeziumVersion, func(dir string) error {
		return downloadDebezium(ctx, dir)
	})
}

// ConnectOptions says what a Connect runs.
type ConnectOptions struct {
	// Plugins is the folder with the connector's own folder.
	Plugins string
	// Worker is added to what the harness sets for Connect itself.
	Worker map[string]string
	// Connector is the configuration of the one connector; its name is outbox.
	Connector map[string]string
}

// Connect is Kafka Connect with one connector, in one process.
type Connect struct {
	*instance
	kafka *Kafka
}

// connectorName is the connector's.
const connectorName = "outbox"

// StartConnect starts Connect beside the broker and returns when the connector's
// tasks run.
func StartConnect(ctx context.Context, kafka *Kafka, options ConnectOptions) (*Connect, error) {
	in, err := newInstance("connect", os.TempDir(), 1)
	if err != nil {
		return nil, err
	}
	c := &Connect{instance: in, kafka: kafka}
	worker := map[string]string{
		"bootstrap.servers":            strings.Join(kafka.Brokers(), ","),
		"listeners":                    c.url(),
		"plugin.path":                  options.Plugins,
		"offset.storage.file.filename": c.scratch.path("offsets"),
		"offset.flush.interval.ms":     "1000",
	}
	maps.Copy(worker, options.Worker)
	connector := maps.Clone(options.Connector)
	connector["name"] = connectorName
	err = errors.Join(writeProperties(c.scratch.path("worker.properties"), worker),
		writeProperties(c.scratch.path("connector.properties"), connector))
	if err == nil {
		err = c.start(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Connect) url() string { return "http://" + c.ports[0].address() }

func (c *Connect) start(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	command, err := kafkaJava(c.kafka.home, c.scratch.dir, benchmarkHeapMB, nil, "org.apache.kafka.connect.cli.ConnectStandalone",
		c.scratch.path("worker.properties"), c.scratch.path("connector.properties"))
	if err != nil {
		return err
	}
	if c.process, err = startProcess("Kafka Connect", command, c.LogPath()); err != nil {
		return err
	}
	if err := c.process.awaitReady(ctx, 2*time.Minute, c.probe); err != nil {
		c.process.kill()
		return err
	}
	return nil
}

// probe succeeds when the connector has tasks and all of them run.
func (c *Connect) probe(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url()+"/connectors/"+connectorName+"/status", http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var status struct {
		Tasks []struct{ State, Trace string }
	}
	if err := json.NewDecoder(response.Body).Decode(&status); err != nil {
		return err
	}
	if len(status.Tasks) == 0 {
		return errors.New("the connector has no tasks yet")
	}
	for _, task := range status.Tasks {
		if task.State != "RUNNING" {
			return fmt.Errorf("the connector's task is %s: %s", task.State, task.Trace)
		}
	}
	return nil
}

// Stop stops Connect in order and waits until it is gone.
func (c *Connect) Stop() error { return c.stop(syscall.SIGTERM, time.Minute) }

// Close stops Connect and removes its files.
func (c *Connect) Close() error {
	c.Kill()
	return c.close()
}
