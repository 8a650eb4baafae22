package e2e_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/child"
	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/inbox"
	"github.com/outboxrelay/relay/migrations"
)

// inboxLimit bounds what a consumer has to do in these tests.
const inboxLimit = 4 * time.Minute

// inboxStage is what the tests of consumers have with either broker: a database
// with an inbox and a table of effects, which refuses no second effect of a
// message.
type inboxStage struct {
	t         *testing.T
	database  *scenario.Database
	published int
}

func newInboxStage(t *testing.T, postgres string) inboxStage {
	t.Helper()
	s := inboxStage{t: t, database: scenario.NewDatabaseOn(t, postgres)}
	conn, err := pgx.Connect(t.Context(), s.database.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if err := (migrations.Target{Schema: "public", Table: "inbox", Set: migrations.Inbox}).Apply(t.Context(), conn, nil); err != nil {
		t.Fatal(err)
	}
	s.database.Exec(t, `CREATE TABLE effects (at bigint GENERATED ALWAYS AS IDENTITY, message_id text, sequence bigint, key text)`)
	return s
}

// messageID is that of a message by its number.
func messageID(number int) string { return fmt.Sprintf("00000000-0000-7000-8000-%012d", number) }

// insertEffect is the handler of consumers that run in the test.
func insertEffect(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
	_, err := tx.Exec(ctx, `INSERT INTO effects (message_id, sequence, key) VALUES ($1, $2, $3)`, m.ID.String(), m.Sequence, string(m.Key))
	return err
}

// done counts the messages that had an effect.
func (s *inboxStage) done() (n int) {
	// The database may be away.
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	_ = s.database.Pool.QueryRow(ctx, `SELECT count(DISTINCT message_id) FROM effects`).Scan(&n)
	return n
}

// check demands one effect of each message and, if ordered, in the order of its
// key.
func (s *inboxStage) check(ordered bool) {
	s.t.Helper()
	queries := map[string]string{
		"messages had more than one effect": `SELECT count(*) FROM (SELECT FROM effects GROUP BY message_id HAVING count(*) > 1) x`,
		"messages are parked":               `SELECT count(*) FROM inbox_parked`,
	}
	if ordered {
		queries["effects came after a later one of their key"] = `SELECT count(*) FROM (SELECT sequence < max(sequence) OVER (PARTITION BY key ORDER BY at) AS late FROM effects) x WHERE late`
	}
	for what, query := range queries {
		if n := scenario.One[int](s.t, s.database, query); n != 0 {
			s.t.Errorf("%d %s", n, what)
		}
	}
	if n := s.done(); n != s.published {
		s.t.Errorf("%d messages had an effect, %d were published", n, s.published)
	}
}

// await polls until the condition holds.
func (s *inboxStage) await(what string, condition func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(inboxLimit); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not within %s: %s; %d of %d messages had an effect", inboxLimit, what, s.done(), s.published)
		}
	}
}

// mortals runs processes of e2e/cmd/consumer side by side, each again whenever
// it has killed itself, until all is finished, and demands that they did so
// often enough.
func (s *inboxStage) mortals(processes, leastKills int, finished func() bool, arguments ...string) {
	s.t.Helper()
	binary, err := buildConsumer()
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), inboxLimit)
	defer cancel()
	var crew sync.WaitGroup
	kills := make([]int, processes)
	for i := range processes {
		log := filepath.Join(s.t.TempDir(), "consumer.log")
		crew.Go(func() {
			for ok := true; ok && ctx.Err() == nil && !finished(); {
				var killed bool
				if killed, ok = s.live(ctx, exec.Command(binary, arguments...), log, finished); killed {
					kills[i]++
				}
			}
		})
	}
	crew.Wait()
	total := 0
	for _, n := range kills {
		total += n
	}
	s.t.Logf("%d kills", total)
	if total < leastKills {
		s.t.Errorf("%d kills, want at least %d", total, leastKills)
	}
}

// live runs a process until it has killed itself or all is finished. It reports
// whether it has, and whether it ended as it should.
func (s *inboxStage) live(ctx context.Context, command *exec.Cmd, log string, finished func() bool) (killed, ok bool) {
	life, err := child.Start(command, log)
	if err != nil {
		s.t.Error(err)
		return false, false
	}
	for stopped := false; life.Running(); {
		if ctx.Err() != nil {
			life.Kill()
			s.t.Errorf("not within %s: %d of %d messages had an effect\n%s", inboxLimit, s.done(), s.published, life.Tail(20))
			return false, false
		}
		if !stopped && finished() {
			life.Signal(syscall.SIGTERM)
			stopped = true
		}
		life.Wait(50 * time.Millisecond)
	}
	status, _ := life.Command.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() && status.Signal() == syscall.SIGKILL {
		return true, true
	}
	if life.Err() != nil {
		s.t.Errorf("the consumer ended: %v\n%s", life.Err(), life.Tail(20))
	}
	return false, life.Err() == nil
}

// buildConsumer makes e2e/cmd/consumer once.
var buildConsumer = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "outbox-relay-consumer-")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "consumer")
	if output, err := exec.Command("go", "build", "-o", binary, "./cmd/consumer").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the consumer: %w\n%s", err, output)
	}
	return binary, nil
})

// lockedLog is a log that may be read while it is written.
type lockedLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// logger logs to it.
func (l *lockedLog) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
