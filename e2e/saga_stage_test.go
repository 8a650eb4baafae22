package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

const (
	sagaPartitions = 4
	// sagaInstances is how many processes each service has.
	sagaInstances = 2
	// sagaSession is how long a group waits for an instance that was killed.
	sagaSession = 1500 * time.Millisecond
)

// saga is the services of examples/saga with their databases and relays, on a
// Kafka with topics of their own.
type saga struct {
	t        *testing.T
	services []*sagaService
	orders   *sagaService
	payments *sagaService
	stock    *sagaService
	kafka    *kafka.Client
	random   *rand.Rand
	// placed are the orders that the customers placed.
	placed []sagaOrder
	// balance and available are what each customer and item began with.
	balance, available int64
}

// sagaService is one of them.
type sagaService struct {
	*scenario.Database
	name string
	// group is its consumer group, reads the services whose topics it reads.
	group string
	reads []*sagaService
	log   *scenario.KafkaLog
	// instances share the work; addresses are where they serve HTTP.
	instances scenario.Crew
	addresses []string
	relay     *scenario.Process
}

// sagaOrder is an order as a customer places it.
type sagaOrder struct {
	ID         string `json:"-"`
	Customer   string `json:"customer"`
	TotalCents int64  `json:"total_cents"`
	Item       string `json:"item"`
	Quantity   int64  `json:"quantity"`
}

// Customers and items are few, so that orders meet at them.
const sagaCustomers, sagaItems = 8, 5

// newSaga makes everything for so many orders, of which a fifth or so will be
// refused for want of money, and another for want of goods. Nothing runs yet.
func newSaga(t *testing.T, orders int) *saga {
	t.Helper()
	binaries, err := buildSaga()
	if err != nil {
		t.Fatal(err)
	}
	seed := scenario.Seed(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed: %s=%d", scenario.SeedVariable, seed)
		}
	})
	brokers := servers.FromEnvironment().KafkaBrokers
	s := &saga{
		t: t, kafka: &kafka.Client{Addr: kafka.TCP(brokers...), Timeout: 10 * time.Second}, random: rand.New(rand.NewPCG(seed, 1)), //nolint:gosec // repeatable is what is wanted
		balance: int64(orders) / sagaCustomers * 4_000, available: int64(orders) / sagaItems * 2,
	}
	prefix := fmt.Sprintf("saga-%08x-", rand.Uint32())
	add := func(name string) *sagaService {
		service := s.newService(name, prefix, brokers, binaries)
		s.services = append(s.services, service)
		return service
	}
	s.orders, s.payments, s.stock = add("orders"), add("payments"), add("stock")
	s.orders.reads = []*sagaService{s.payments, s.stock}
	s.payments.reads = []*sagaService{s.orders}
	s.stock.reads = []*sagaService{s.orders}
	s.makeTopics(prefix)
	for _, service := range s.services {
		var topics []string
		for _, read := range service.reads {
			topics = append(topics, prefix+read.name)
		}
		service.log = scenario.ReadKafkaTopics(t, brokers, topics, sagaPartitions)
	}
	return s
}

// buildSaga makes the services once.
var buildSaga = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "outbox-relay-saga-")
	if err != nil {
		return "", err
	}
	command := exec.Command("go", "build", "-trimpath", "-o", dir, "./orders", "./payments", "./stock")
	command.Dir = filepath.Join("..", "examples", "saga")
	if output, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the saga: %w\n%s", err, output)
	}
	return dir, nil
})

// newService makes the service's database and its processes.
func (s *saga) newService(name, prefix string, brokers []string, binaries string) *sagaService {
	s.t.Helper()
	service := &sagaService{Database: scenario.NewDatabase(s.t), name: name, group: prefix + name}
	config := filepath.Join("..", "examples", "saga", "relay.yaml")
	address := s.takeAddress()
	environment := []string{"DATABASE_URL=" + service.URL, "KAFKA_BROKERS=" + brokers[0], "PREFIX=" + prefix, "RELAY_LISTEN=" + address}
	if result := scenario.Command(s.t, environment, "migrate", "--config", config); result.Code != 0 {
		s.t.Fatalf("relay migrate: %s", result)
	}
	command := func(program string, arguments ...string) func(int) *exec.Cmd {
		return func(int) *exec.Cmd {
			command := exec.Command(program, arguments...)
			command.Env = append(os.Environ(), environment...)
			return command
		}
	}
	service.relay = scenario.NewProcess(s.t, name+"-relay", command(os.Getenv(scenario.BinaryVariable), "run", "--config", config))
	for i := range sagaInstances {
		address := s.takeAddress()
		service.addresses = append(service.addresses, address)
		service.instances = append(service.instances, scenario.NewProcess(s.t, fmt.Sprintf("%s-%d", name, i+1),
			command(filepath.Join(binaries, name), "--listen", address, "--prefix", prefix, "--session-timeout", sagaSession.String())))
	}
	return service
}

func (s *saga) takeAddress() string {
	s.t.Helper()
	address, release, err := servers.TakeAddress()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(release)
	return address
}

func (s *saga) makeTopics(prefix string) {
	s.t.Helper()
	var names []string
	var topics []kafka.TopicConfig
	for _, service := range s.services {
		names = append(names, prefix+service.name)
		topics = append(topics, kafka.TopicConfig{Topic: prefix + service.name, NumPartitions: sagaPartitions, ReplicationFactor: 1})
	}
	response, err := s.kafka.CreateTopics(s.t.Context(), &kafka.CreateTopicsRequest{Topics: topics})
	if err != nil {
		s.t.Fatalf("create topics: %v", err)
	}
	for name, err := range response.Errors {
		if err != nil {
			s.t.Fatalf("create topic %s: %v", name, err)
		}
	}
	s.t.Cleanup(func() {
		_, _ = s.kafka.DeleteTopics(context.Background(), &kafka.DeleteTopicsRequest{Topics: names})
	})
}

// processes are all that can be killed.
func (s *saga) processes() (all scenario.Crew) {
	for _, service := range s.services {
		all = append(append(all, service.relay), service.instances...)
	}
	return all
}

// start starts all processes, and fills accounts and shelves.
func (s *saga) start() {
	s.t.Helper()
	for _, p := range s.processes() {
		p.Start()
	}
	for _, service := range s.services {
		for _, address := range service.addresses {
			scenario.Await(s.t, time.Minute, service.name+" to be healthy", func() (bool, string) {
				status, body := get(s.t, "http://"+address+"/healthz")
				return status == http.StatusOK, fmt.Sprintf("%d %s", status, body)
			})
		}
	}
	s.payments.Exec(s.t, `INSERT INTO accounts SELECT 'customer-' || n, $1 FROM generate_series(0, $2 - 1) n`, s.balance, sagaCustomers)
	s.stock.Exec(s.t, `INSERT INTO items SELECT 'item-' || n, $1 FROM generate_series(0, $2 - 1) n`, s.available, sagaItems)
}

// harass kills processes at random until the function that it returns is
// called, which says how many, and leaves all of them running.
func (s *saga) harass() (calm func() int) {
	ctx, cancel := context.WithCancel(s.t.Context())
	random := rand.New(rand.NewPCG(s.random.Uint64(), 2)) //nolint:gosec // repeatable is what is wanted
	all := s.processes()
	var done sync.WaitGroup
	done.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Duration(100+random.IntN(500)) * time.Millisecond):
				all[random.IntN(len(all))].Kill()
			}
		}
	})
	s.t.Cleanup(cancel)
	return func() int {
		cancel()
		done.Wait()
		return all.Kills()
	}
}

// place has customers place so many orders, so many a second. They ask again
// until they are told that an order is placed.
func (s *saga) place(orders, rate int) {
	s.t.Helper()
	for n := range orders {
		order := sagaOrder{
			ID: fmt.Sprintf("order-%d", n), Customer: fmt.Sprintf("customer-%d", s.random.IntN(sagaCustomers)),
			TotalCents: 1_000 + s.random.Int64N(8_000), Item: fmt.Sprintf("item-%d", s.random.IntN(sagaItems)), Quantity: 1 + s.random.Int64N(3),
		}
		switch s.random.IntN(10) {
		case 0:
			order.TotalCents += 1_000 * s.balance
		case 1:
			order.Quantity += 1_000 * s.available
		}
		s.placed = append(s.placed, order)
	}
	queue := make(chan sagaOrder)
	var customers sync.WaitGroup
	for range 8 {
		customers.Go(func() {
			for order := range queue {
				s.placeOne(order)
			}
		})
	}
	ticker := time.NewTicker(time.Second / time.Duration(rate))
	defer ticker.Stop()
	for _, order := range s.placed {
		<-ticker.C
		queue <- order
	}
	close(queue)
	customers.Wait()
}

func (s *saga) placeOne(order sagaOrder) {
	body, err := json.Marshal(order)
	if err != nil {
		s.t.Error(err)
		return
	}
	client := http.Client{Timeout: 5 * time.Second}
	for attempt := 0; s.t.Context().Err() == nil; attempt++ {
		url := "http://" + s.orders.addresses[attempt%sagaInstances] + "/orders/" + order.ID
		request, err := http.NewRequestWithContext(s.t.Context(), http.MethodPut, url, bytes.NewReader(body))
		if err != nil {
			s.t.Error(err)
			return
		}
		response, err := client.Do(request)
		if err != nil {
			time.Sleep(20 * time.Millisecond) // it was killed
			continue
		}
		_ = response.Body.Close()
		switch response.StatusCode {
		case http.StatusAccepted:
			return
		case http.StatusServiceUnavailable:
		default:
			s.t.Errorf("order %s was answered by %s", order.ID, response.Status)
			return
		}
	}
}

// settle waits until every message was published and consumed, and none was
// added meanwhile.
func (s *saga) settle() {
	s.t.Helper()
	last := ""
	scenario.Await(s.t, sagaLimit, "the saga to settle", func() (bool, string) {
		var state strings.Builder
		idle := true
		for _, service := range s.services {
			var messages, pending int
			row := service.Pool.QueryRow(s.t.Context(), `SELECT count(*), count(*) FILTER (WHERE published_at IS NULL) FROM outbox`)
			if err := row.Scan(&messages, &pending); err != nil {
				return false, err.Error()
			}
			waiting, err := service.log.Unconsumed(s.t.Context(), service.group)
			if err != nil {
				return false, err.Error()
			}
			idle = idle && pending == 0 && waiting == 0
			fmt.Fprintf(&state, "%s: %d written, %d unpublished, %d to consume; ", service.name, messages, pending, waiting)
		}
		same := state.String() == last
		last = state.String()
		return idle && same, last
	})
}

// rewind lets every message that there was be delivered once more.
func (s *saga) rewind() {
	s.t.Helper()
	var groups []string
	for _, service := range s.services {
		service.instances.Stop()
		groups = append(groups, service.group)
	}
	response, err := s.kafka.DeleteGroups(s.t.Context(), &kafka.DeleteGroupsRequest{GroupIDs: groups})
	if err != nil {
		s.t.Fatal(err)
	}
	for group, err := range response.Errors {
		if err != nil {
			s.t.Fatalf("delete group %s: %v", group, err)
		}
	}
	for _, service := range s.services {
		for _, p := range service.instances {
			p.Start()
		}
	}
}

// stop stops all processes, which end well.
func (s *saga) stop() { s.processes().Stop() }

// sum adds up the values of a metric over all processes, of the lines that begin
// so and contain the label.
func (s *saga) sum(metric, label string) (sum float64) {
	s.t.Helper()
	for _, service := range s.services {
		for _, address := range service.addresses {
			_, page := get(s.t, "http://"+address+"/metrics")
			for line := range strings.Lines(page) {
				if !strings.HasPrefix(line, metric) || !strings.Contains(line, label) {
					continue
				}
				fields := strings.Fields(line)
				value, err := strconv.ParseFloat(fields[len(fields)-1], 64)
				if err != nil {
					s.t.Errorf("%s of %s: %v", metric, service.name, err)
				}
				sum += value
			}
		}
	}
	return sum
}

// get returns what a URL answers; status 0 is no answer.
func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(content)
}
