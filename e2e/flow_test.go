package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/segmentio/kafka-go"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
)

// flowShare is the share of the usual rate, or the inverse of that of the usual
// latency, that is demanded of what flows beside something that does not. It is
// half of what the relay is to reach, so that a busy machine fails no test; the
// figures are printed.
const flowShare = 0.25

const (
	// backlog is how many rows the drains have, and others how many flow beside
	// those that wait.
	backlog, others = 300_000, 60_000
	// mostOthers are without those in the shard of the parked key, one of 64: they come when
	// floors have passed what waits there.
	mostOthers = others * 19 / 20
	// A million rows and more wait in a soak.
	parkedRows, parkedRowsSoak = 300_000, 2_500_000
	awayRows, awayRowsSoak     = 200_000, 1_000_000
	dueRows, dueRowsSoak       = 200_000, 1_000_000
	// flowLimit bounds one measurement: what is too slow need not be waited for.
	flowLimit = 40 * time.Second
)

// flowCase is something that does not flow, and what flows beside it.
type flowCase struct {
	name string
	play func(t *testing.T, usual float64)
}

// String is the case's name.
func (c flowCase) String() string { return c.name }

// What cannot be published now slows only its own: each case compares the rate or
// the latency of the others with the usual one, within one run.
func TestOthersFlow(t *testing.T) {
	if testing.Short() {
		t.Skip("it measures for some minutes")
	}
	usual := usualRate(t, backlog)
	for _, c := range scenario.Some(t, 2, []flowCase{
		{"beside a transaction that wrote one row and stays open", flowBesideATransaction},
		{"due at once", flowOfDelayedRows},
		{"beside rows that somebody has locked", flowBesideLockedRows},
		{"beside a parked key with a bound for statements", flowBesideAParkedKey},
		{"beside a partition without a leader", func(t *testing.T, _ float64) { flowBesideAPartition(t) }},
		{"beside a sink that is away", func(t *testing.T, _ float64) { flowBesideASink(t) }},
		{"beside a transaction and rows that wait", flowBesideBoth},
	}...) {
		t.Run(c.name, func(t *testing.T) { c.play(t, usual) })
	}
}

func flowBesideATransaction(t *testing.T, usual float64) {
	f := newFlow(t, nil)
	tx := f.begin(t)
	f.execIn(t, tx, `INSERT INTO outbox (topic, key) VALUES ($1, 'of a batch job')`, f.stage.Topic())
	f.insert(t, backlog, `'key-' || i % 1000`, `NULL`)
	f.start(t)
	f.rate(t, backlog/10, backlog*2/3)
	f.compare(t, "the last third of the rows", f.rate(t, backlog*2/3, backlog), usual)
}

func flowOfDelayedRows(t *testing.T, usual float64) {
	f := newFlow(t, nil)
	rows := sized(dueRows, dueRowsSoak)
	f.insert(t, rows, `'key-' || i % 1000`, `clock_timestamp()`)
	f.start(t)
	f.compare(t, fmt.Sprint(rows, " delayed rows"), f.rate(t, int64(rows/20), int64(rows)), usual)
}

func flowBesideLockedRows(t *testing.T, usual float64) {
	f := newFlow(t, nil)
	f.insert(t, 20_000, `'locked-' || i % 5000`, `NULL`)
	tx := f.begin(t)
	f.execIn(t, tx, `SELECT FROM outbox FOR UPDATE`)
	f.insert(t, others, `'key-' || i % 1000`, `NULL`)
	f.start(t)
	f.compare(t, "rows that nobody has locked", f.rate(t, others/10, others), usual)
}

func flowBesideAParkedKey(t *testing.T, usual float64) {
	f := newFlow(t, nil)
	f.as(t, `statement_timeout = '1s'`)
	parked := sized(parkedRows, parkedRowsSoak)
	f.insert(t, parked, `'parked'`, `NULL`)
	f.park(t)
	f.insert(t, others, `'key-' || i % 1000`, `NULL`)
	f.start(t)
	f.compare(t, fmt.Sprint("rows of other keys beside ", parked), f.rate(t, others/10, mostOthers), usual)
}

// Rows wait behind a parked key, and a transaction stays open.
func flowBesideBoth(t *testing.T, usual float64) {
	f := newFlow(t, nil)
	parked := sized(parkedRows, awayRowsSoak)
	f.insert(t, parked, `'parked'`, `NULL`)
	f.park(t)
	tx := f.begin(t)
	f.execIn(t, tx, `INSERT INTO outbox (topic, key) VALUES ($1, 'of a batch job')`, f.stage.Topic())
	f.insert(t, others, `'key-' || i % 1000`, `NULL`)
	f.start(t)
	f.compare(t, fmt.Sprint("rows of other keys beside an open transaction, and ", parked), f.rate(t, others/10, mostOthers), usual)
}

// park records that the first row was refused.
func (f *flow) park(t *testing.T) {
	t.Helper()
	f.stage.Database.Exec(t, `
INSERT INTO outbox_parked (id, message_id, topic, key, state, attempts, reason, error, first_failed_at, last_failed_at, parked_at, next_retry_at)
SELECT id, message_id, topic, key, 'parked', 5, 'test', 'refused by the test', now(), now(), now(), now() + interval '1 hour'
FROM outbox ORDER BY id LIMIT 1`)
}

// sized is how many rows there are, more in a soak.
func sized(rows, soak int) int {
	if os.Getenv(scenario.LanesVariable) == "all" {
		return soak
	}
	return rows
}

// usualRate drains rows beside which there is nothing else.
func usualRate(t *testing.T, rows int) float64 {
	t.Helper()
	f := newFlow(t, nil)
	f.insert(t, rows, `'key-' || i % 1000`, `NULL`)
	f.start(t)
	defer f.relay.Kill()
	rate := f.rate(t, int64(rows/10), int64(rows))
	t.Logf("usual rate: %.0f rows/s", rate)
	return rate
}

// flow is a relay that drains a table.
type flow struct {
	stage *scenario.Stage
	log   *scenario.KafkaLog
	relay *scenario.Relay
}

func newFlow(t *testing.T, more scenario.Settings) *flow {
	t.Helper()
	log := scenario.NewKafkaLog(t)
	settings := scenario.Settings{"log.level": "info"}
	for path, value := range more {
		settings[path] = value
	}
	return &flow{stage: scenario.NewStage(t, scenario.NewDatabase(t), log, settings), log: log}
}

// insert commits rows of 200 bytes. key and available are SQL.
func (f *flow) insert(t *testing.T, rows int, key, available string) {
	t.Helper()
	f.insertInto(t, f.stage.Topic(), rows, key, available)
}

func (f *flow) insertInto(t *testing.T, topic string, rows int, key, available string) {
	t.Helper()
	f.stage.Database.Exec(t, `INSERT INTO outbox (topic, key, type, payload, available_at)
SELECT $1, `+key+`, 'Tested', convert_to(repeat('x', 200), 'UTF8'), `+available+` FROM generate_series(1, $2::int) i`, topic, rows)
	f.stage.Database.Exec(t, `ANALYZE outbox`)
}

// begin begins a transaction that stays open until the test ends.
func (f *flow) begin(t *testing.T) pgx.Tx {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), f.stage.Database.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

func (f *flow) execIn(t *testing.T, tx pgx.Tx, sql string, arguments ...any) {
	t.Helper()
	if _, err := tx.Exec(t.Context(), sql, arguments...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// as has the relay connect as a role of its own with the setting.
func (f *flow) as(t *testing.T, setting string) {
	t.Helper()
	role := f.stage.Database.Name + "_relay"
	f.stage.Database.Exec(t, fmt.Sprintf(`CREATE ROLE %[1]s LOGIN; ALTER ROLE %[1]s SET %[2]s;
GRANT ALL ON ALL TABLES IN SCHEMA public TO %[1]s; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO %[1]s`, role, setting))
	t.Cleanup(func() {
		_, _ = f.stage.Database.Pool.Exec(context.Background(), fmt.Sprintf(`DROP OWNED BY %[1]s; DROP ROLE %[1]s`, role))
	})
	address, err := url.Parse(f.stage.Database.URL)
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.User(role)
	f.stage.Config = f.stage.Config.With(scenario.Settings{"database.url": address.String()})
}

// start starts the relay, which need not become ready beside a sink that is away.
func (f *flow) start(t *testing.T) {
	t.Helper()
	f.relay = f.stage.Relay(nil)
	f.relay.Launch()
	scenario.Await(t, 30*time.Second, "the relay to answer", func() (bool, string) {
		return f.relay.Get("/livez") != 0, "it does not"
	})
}

// rate waits until the broker has so many records and returns how many came per
// second from the first number on.
func (f *flow) rate(t *testing.T, from, to int64) float64 {
	t.Helper()
	return rateOf(from, to, func() int64 {
		n, err := f.log.Len(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	})
}

// rateOf is rate for what count counts.
func rateOf(from, to int64, count func() int64) float64 {
	began := time.Now()
	deadline := began.Add(flowLimit)
	var n int64
	var at time.Time
	pause := time.Duration(0)
	until := func(most int64) {
		for n < most && time.Now().Before(deadline) {
			time.Sleep(pause)
			looked := time.Now()
			n, at = count(), time.Now()
			// Counting takes a tenth of the time at most from what is counted.
			pause = max(10*time.Millisecond, 10*at.Sub(looked))
		}
	}
	until(from)
	first, since := n, at
	if n < from {
		first, since = 0, began
	}
	until(to)
	return float64(n-first) / at.Sub(since).Seconds()
}

// compare fails the test when the rate is far from the usual one, which is
// measured again before: the machine may have other things to do than it had.
func (f *flow) compare(t *testing.T, what string, rate, usual float64) {
	t.Helper()
	f.relay.Kill() // it has nothing more to tell
	if rate < flowShare*usual {
		usual = min(usual, usualRate(t, others))
	}
	compareRates(t, what, rate, usual)
}

func compareRates(t *testing.T, what string, rate, usual float64) {
	t.Helper()
	t.Logf("%s: %.0f rows/s, usual %.0f: %.2f of it", what, rate, usual, rate/usual)
	if rate < flowShare*usual {
		t.Errorf("%s flow with %.0f rows/s, want at least a quarter of the usual %.0f", what, rate, usual)
	}
}

// A broker of three is killed that leads, without replicas, two of six partitions.
// The rows of 50,000 keys drain but for a third, at first with all brokers and
// then without one.
func flowBesideAPartition(t *testing.T) {
	cluster, err := servers.StartKafkaCluster(t.Context(), servers.KafkaClusterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	servers.CleanUp(t, cluster)
	const rows, partitions = 200_000, 6
	drain := func(alive bool) float64 {
		topic := unreplicated(t, cluster, partitions)
		log := scenario.ReadKafkaTopics(t, cluster.Brokers(), []string{topic}, partitions)
		f := &flow{stage: scenario.NewStage(t, scenario.NewDatabase(t), log, scenario.Settings{"log.level": "info"}), log: log}
		f.insert(t, rows, `'key-' || i % 50000`, `NULL`)
		if !alive {
			killLeaderOf(t, cluster, topic)
		}
		f.start(t)
		defer f.relay.Kill()
		// The log cannot count a partition without a leader.
		return rateOf(rows/20, rows*6/10, func() int64 {
			return scenario.One[int64](t, f.stage.Database, `SELECT count(*) FROM outbox WHERE published_at IS NOT NULL`)
		})
	}
	usual := drain(true)
	compareRates(t, "rows of partitions with a leader", drain(false), usual)
}

// unreplicated makes a topic without replicas.
func unreplicated(t *testing.T, cluster *servers.KafkaCluster, partitions int) string {
	t.Helper()
	topic := fmt.Sprintf("flow-%08x", rand.Uint32())
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(cluster.Brokers()...), Timeout: 30 * time.Second, Transport: transport}
	scenario.Await(t, 30*time.Second, "the topic", func() (bool, string) {
		response, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
			Topic: topic, NumPartitions: partitions, ReplicationFactor: 1,
			ConfigEntries: []kafka.ConfigEntry{{ConfigName: "min.insync.replicas", ConfigValue: "1"}},
		}}})
		if err == nil {
			err = response.Errors[topic]
		}
		return err == nil, fmt.Sprint(err)
	})
	if err := cluster.AwaitReplicas(t.Context(), 1, topic); err != nil {
		t.Fatal(err)
	}
	return topic
}

// killLeaderOf kills the broker that leads the topic's first partition, and waits
// until the cluster knows.
func killLeaderOf(t *testing.T, cluster *servers.KafkaCluster, topic string) {
	t.Helper()
	leader, err := cluster.Leader(t.Context(), topic, 0)
	if err != nil {
		t.Fatal(err)
	}
	leader.Kill()
	scenario.Await(t, 60*time.Second, "the partition to lose its leader", func() (bool, string) {
		_, err := cluster.Leader(t.Context(), topic, 0)
		return err != nil, "it has one"
	})
}

// One of two sinks is away, at first with nothing to take and then with many rows
// waiting for it. The other one's rows keep their latency.
func flowBesideASink(t *testing.T) {
	latency := func(waiting int) time.Duration {
		address, release, err := servers.TakeAddress()
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		f := newFlow(t, scenario.Settings{
			"sinks.mail": scenario.Config{"kafka": scenario.Config{"brokers": []string{address}}},
			"routes": []scenario.Config{
				{"match": scenario.Config{"topic": "mail.*"}, "sink": "mail"},
				{"match": scenario.Config{"topic": "*"}, "sink": "main"},
			},
		})
		f.insertInto(t, "mail.away", waiting, `'key-' || i % 10000`, `NULL`)
		f.start(t)
		defer f.relay.Kill()
		return f.medianLatency(t, 10*time.Second)
	}
	usual := latency(1)
	waiting := sized(awayRows, awayRowsSoak)
	beside := latency(waiting)
	t.Logf("median latency beside a sink that is away: %v with %d rows that wait for it, %v with one", beside, waiting, usual)
	// On a busy machine this much is a matter of whose turn it is.
	if limit := max(time.Duration(float64(usual)/flowShare), 300*time.Millisecond); beside > limit {
		t.Errorf("the median latency is %v beside %d rows that wait, want at most %v", beside, waiting, limit)
	}
}

// medianLatency writes a row each 20 ms for a while and returns the median of the
// time to their marks.
func (f *flow) medianLatency(t *testing.T, span time.Duration) time.Duration {
	t.Helper()
	topic := f.stage.Topic()
	f.stage.Database.Exec(t, `INSERT INTO outbox (topic, key) VALUES ($1, 'first')`, topic)
	scenario.Await(t, flowLimit, "the first row", func() (bool, string) {
		n, err := f.log.Len(t.Context())
		return n > 0, fmt.Sprintf("it is not in the broker (%v)", err)
	})
	for deadline := time.Now().Add(span); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		f.stage.Database.Exec(t, `INSERT INTO outbox (topic, key) VALUES ($1, 'key-' || (random() * 1000)::int)`, topic)
	}
	seconds := scenario.One[float64](t, f.stage.Database, `
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM coalesce(published_at, clock_timestamp()) - created_at))
FROM outbox WHERE topic = $1 AND key <> 'first'`, topic)
	return time.Duration(seconds * float64(time.Second)).Round(100 * time.Microsecond)
}
