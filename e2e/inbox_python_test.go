package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/outboxrelay/relay/e2e/child"
	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/e2e/servers"
	"github.com/outboxrelay/relay/outbox"
)

const pythonProgram = "testdata/consumer.py"

// TestPythonConsumer kills a consumer in another language between its effect
// and its commit, and then gives the messages, each twice, to two of them.
func TestPythonConsumer(t *testing.T) {
	t.Parallel()
	python, err := servers.Python(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	const messages = 200
	rabbit := servers.FromEnvironment().RabbitMQURL
	database := scenario.NewDatabase(t)
	expect(t, migrator(t, database, nil).Command("migrate", "--only", "inbox"), 0, "applied: 1 inbox")
	// Nothing but the inbox refuses a second effect of a message.
	database.Exec(t, `CREATE TABLE effects (message_id uuid, body text)`)

	channel := channelTo(t, rabbit)
	queue := fmt.Sprintf("python-%d", time.Now().UnixNano())
	if _, err := channel.QueueDeclare(queue, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = channelTo(t, rabbit).QueueDelete(queue, false, false, false) })
	ids := make([]string, messages)
	for i := range ids {
		ids[i] = outbox.NewUUID().String()
	}
	for i := range 2 * messages {
		message := amqp.Publishing{MessageId: ids[i%messages], Body: []byte("é"), DeliveryMode: amqp.Persistent}
		if err := channel.PublishWithContext(t.Context(), "", queue, false, false, message); err != nil {
			t.Fatal(err)
		}
	}

	logs := t.TempDir()
	start := func(name, hold string) (*child.Process, func() string) {
		t.Helper()
		log := filepath.Join(logs, name)
		command := exec.Command(python, "-u", pythonProgram, database.URL, rabbit, queue)
		command.Env = append(os.Environ(), "HOLD="+hold)
		process, err := child.Start(command, log)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(process.Kill)
		return process, func() string {
			text, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
	}
	await := func(what string, process *child.Process, condition func() bool) {
		t.Helper()
		for deadline := time.Now().Add(2 * time.Minute); !condition(); time.Sleep(20 * time.Millisecond) {
			if process != nil && !process.Running() {
				t.Fatalf("before %s the consumer ended: %s", what, process.Tail(30))
			}
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain for %s", what)
			}
		}
	}

	held := ids[messages/2]
	first, output := start("killed", held)
	await("the held message", first, func() bool { return strings.Contains(output(), "holding") })
	first.Kill()
	await("the end of its session", nil, func() bool {
		return scenario.One[int](t, database, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = '' AND backend_type = 'client backend'`) == 0
	})
	// It was killed after a hundred messages, in the transaction of one more.
	if n := scenario.One[int](t, database, `SELECT count(*) FROM effects`); n != messages/2 {
		t.Errorf("%d effects, want %d", n, messages/2)
	}
	if n := scenario.One[int](t, database, `SELECT count(*) FROM inbox WHERE message_id = $1`, held); n != 0 {
		t.Error("the message whose transaction was killed is seen")
	}

	var outputs []func() string
	for _, name := range []string{"second", "third"} {
		_, output := start(name, "")
		outputs = append(outputs, output)
	}
	lines := func(word string) (n int) {
		for _, output := range outputs {
			n += strings.Count(output(), word+" ")
		}
		return n
	}
	// All but those that the first one acknowledged, 100 at most, come again.
	await("all effects", nil, func() bool {
		q, err := channel.QueueDeclarePassive(queue, true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		return q.Messages == 0 && lines("processed")+lines("duplicate") >= 2*messages-messages/2
	})
	if n := lines("duplicate"); n < messages {
		t.Errorf("%d duplicates were refused, want at least %d", n, messages)
	}
	if n := scenario.One[int](t, database, `SELECT count(*) FROM effects WHERE body = 'é'`); n != messages {
		t.Errorf("%d effects, want %d", n, messages)
	}
	if n := scenario.One[int](t, database, `SELECT count(DISTINCT message_id) FROM effects`); n != messages {
		t.Errorf("effects of %d messages, want %d", n, messages)
	}
}

// The documentation shows the program that is tested.
func TestPythonExample(t *testing.T) {
	program, err := os.ReadFile(pythonProgram)
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../docs/inbox.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```python\n")
	example, _, found := strings.Cut(rest, "```")
	if !found || !strings.Contains(string(program), strings.TrimSpace(example)) {
		t.Errorf("docs/inbox.md does not show the function of %s:\n%s", pythonProgram, example)
	}
}
