package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/e2e/scenario"
	"github.com/outboxrelay/relay/outbox"
)

// limited refuses payloads of 5,000 bytes, for good, and then waits for
// operators: its own retries are far off.
var limited = scenario.Settings{
	"sinks.main.kafka.max_message_bytes": 3000, "failures.backoff.initial": "10m", "failures.backoff.max": "10m", "log.level": "info",
}

// unlimited takes them.
var unlimited = scenario.Settings{"sinks.main.kafka.max_message_bytes": 1_000_000}

var large = strings.Repeat("x", 5000)

// parkedRow is an element of `relay parked list`, deadRow of `relay dead list`.
type parkedRow struct {
	Topic     string      `json:"topic"`
	Key       *string     `json:"key"`
	MessageID outbox.UUID `json:"message_id"`
	ID        int64       `json:"id"`
	Attempts  int         `json:"attempts"`
	Error     string      `json:"error"`
	Waiting   int64       `json:"waiting"`
}

type deadRow struct {
	MessageID outbox.UUID `json:"message_id"`
	ID        int64       `json:"id"`
	Topic     string      `json:"topic"`
	Key       *string     `json:"key"`
	Attempts  int         `json:"attempts"`
	Error     string      `json:"error"`
}

type retriedRow struct {
	MessageID outbox.UUID `json:"message_id"`
	InOrder   *bool       `json:"in_order"`
}

// listed runs a command that writes a JSON array.
func listed[T any](t *testing.T, relay *scenario.Relay, arguments ...string) (rows []T) {
	t.Helper()
	result := relay.Command(append(arguments, "--output", "json")...)
	if err := json.Unmarshal([]byte(result.Stdout), &rows); err != nil || result.Code != 0 {
		t.Errorf("relay %s: %v, %s", strings.Join(arguments, " "), err, result)
	}
	return rows
}

// awaitParked waits until the rows, and no others, are parked.
func awaitParked(t *testing.T, relay *scenario.Relay, rows ...scenario.Row) (entries []parkedRow) {
	t.Helper()
	var want []int64
	for _, row := range rows {
		want = append(want, row.ID)
	}
	slices.Sort(want)
	scenario.Await(t, 30*time.Second, fmt.Sprintf("rows %v to be parked", want), func() (bool, string) {
		entries = listed[parkedRow](t, relay, "parked", "list")
		var got []int64
		for _, e := range entries {
			got = append(got, e.ID)
		}
		slices.Sort(got)
		return slices.Equal(got, want), fmt.Sprintf("parked are %v", got)
	})
	return entries
}

// sequences are the ids in the broker by key, in its order.
func sequences(stage *scenario.Stage) map[string][]int64 {
	byKey := map[string][]int64{}
	for _, r := range stage.Records() {
		byKey[r.Key] = append(byKey[r.Key], r.Sequence)
	}
	return byKey
}

func ids(rows ...scenario.Row) (all []int64) {
	for _, row := range rows {
		all = append(all, row.ID)
	}
	return all
}

func expectSequence(t *testing.T, stage *scenario.Stage, key string, want ...int64) {
	t.Helper()
	if got := sequences(stage)[key]; !slices.Equal(got, want) {
		t.Errorf("key %q: the broker has %v, want %v", key, got, want)
	}
}

// topicStatus reads the counts of `relay status`.
func topicStatus(t *testing.T, relay *scenario.Relay, topic string) (pending, parked, dead int64) {
	t.Helper()
	var document struct {
		Topics []struct {
			Topic   string `json:"topic"`
			Pending int64  `json:"pending"`
			Parked  int64  `json:"parked_keys"`
			Dead    int64  `json:"dead_letters"`
		} `json:"topics"`
	}
	result := relay.Command("status", "--output", "json")
	if err := json.Unmarshal([]byte(result.Stdout), &document); err != nil {
		t.Fatalf("%v: %s", err, result)
	}
	for _, s := range document.Topics {
		if s.Topic == topic {
			return s.Pending, s.Parked, s.Dead
		}
	}
	return 0, 0, 0
}

func TestParkedMessageIsSkippedAndRetriedAfterItsKey(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, limited)
	topic := stage.Topic()
	a := insert(stage, topic, "a", "1", large, "3", "4")
	b := insert(stage, topic, "b", "1", "2")
	null := stage.Insert(topic, nil, large)
	relay := stage.Start()
	published(t, stage, a[0], b[0], b[1])
	for _, e := range awaitParked(t, relay, a[1], null) {
		switch {
		case e.Attempts < 1 || e.Error == "" || e.Topic != topic:
			t.Errorf("parked as %+v", e)
		case e.ID == a[1].ID && (e.Key == nil || *e.Key != "a" || e.Waiting != 2 || e.MessageID != a[1].MessageID):
			t.Errorf("key a is parked as %+v", e)
		case e.ID == null.ID && (e.Key != nil || e.Waiting != 0):
			t.Errorf("the message without key is parked as %+v", e)
		}
	}
	if pending, parked, dead := topicStatus(t, relay, topic); pending != 4 || parked != 2 || dead != 0 {
		t.Errorf("status: %d pending, %d parked, %d dead; want 4, 2, 0", pending, parked, dead)
	}
	expect(t, relay.Command("parked", "list"), 0, a[1].MessageID.String())

	expect(t, relay.Command("parked", "skip", "--topic", topic, "--key", "a", "--yes"), 0, "1 message was skipped")
	expect(t, relay.Command("parked", "skip", "--message-id", null.MessageID.String(), "--yes"), 0, "1 message was skipped")
	published(t, stage, a[2], a[3])
	awaitParked(t, relay)
	expectSequence(t, stage, "a", ids(a[0], a[2], a[3])...)
	scenario.Await(t, 20*time.Second, "the relay to let go of the keys", func() (bool, string) {
		n := scenario.One[int](t, stage.Database, `SELECT count(*) FROM outbox_parked`)
		return n == 0, fmt.Sprintf("%d are held", n)
	})
	dead := listed[deadRow](t, relay, "dead", "list", "--topic", topic)
	if len(dead) != 2 || dead[0].Attempts < 1 || dead[0].Error == "" {
		t.Fatalf("dead letters %+v, want two", dead)
	}
	if _, _, n := topicStatus(t, relay, topic); n != 2 {
		t.Errorf("status: %d dead letters, want 2", n)
	}
	if show := relay.Command("dead", "show", "--payload", "raw", a[1].MessageID.String()); show.Stdout != large || show.Code != 0 {
		t.Errorf("the payload is not what was written: %.200s", show)
	}
	relay.Stop()

	// The limit is raised.
	relay = stage.Relay(unlimited)
	relay.Start()
	retried := listed[retriedRow](t, relay, "dead", "retry", a[1].MessageID.String(), "--yes")
	if len(retried) != 1 || retried[0].InOrder == nil || *retried[0].InOrder {
		t.Errorf("retried %+v; want one that comes late", retried)
	}
	expect(t, relay.Command("dead", "discard", "--all", "--yes"), 0, null.MessageID.String())
	published(t, stage, a[1])
	published(t, stage, insert(stage, topic, "a", "5")...)
	relay.Stop()
	if got := sequences(stage)["a"]; len(got) != 5 || !slices.Equal(got[:4], ids(a[0], a[2], a[3], a[1])) {
		t.Errorf("key a: %v", got)
	}
	actions := scenario.One[string](t, stage.Database, `SELECT string_agg(action || ' ' || id, ', ' ORDER BY audit_id) FROM outbox_audit`)
	if want := fmt.Sprintf("parked skip %d, parked skip %d, dead retry %d, dead discard %d", a[1].ID, null.ID, a[1].ID, null.ID); actions != want {
		t.Errorf("the audit has %s, want %s", actions, want)
	}
}

func TestParkedMessageIsRetriedInItsPlace(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, limited)
	topic := stage.Topic()
	a := insert(stage, topic, "", "1", large, "3")
	relay := stage.Start()
	awaitParked(t, relay, a[1])
	// It is tried at once, and fails again.
	failedAt := scenario.One[time.Time](t, stage.Database, `SELECT last_failed_at FROM outbox_parked`)
	expect(t, relay.Command("parked", "retry", "--all", "--yes"), 0, a[1].MessageID.String())
	scenario.Await(t, 20*time.Second, "another attempt", func() (bool, string) {
		again := scenario.One[time.Time](t, stage.Database, `SELECT last_failed_at FROM outbox_parked`)
		return again.After(failedAt), fmt.Sprintf("the last one is of %s", again)
	})
	awaitParked(t, relay, a[1])
	relay.Stop()

	relay = stage.Relay(unlimited)
	relay.Start()
	a = append(a, insert(stage, topic, "", "4")...)
	expect(t, relay.Command("parked", "retry", "--topic", topic, "--key", "", "--yes"), 0, a[1].MessageID.String())
	published(t, stage, a...)
	relay.Stop()
	expectSequence(t, stage, "", ids(a...)...)
	stage.Verify(0)
}

// What is skipped and retried while no relay runs keeps its place.
func TestOperatorsWithoutARelay(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, limited)
	topic := stage.Topic()
	a := insert(stage, topic, "a", "1", large, large, "4")
	relay := stage.Start()
	awaitParked(t, relay, a[1])
	relay.Stop()

	expect(t, relay.Command("parked", "skip", "--all", "--yes"), 0, "1 message was skipped")
	unmarked(t, stage, a[2], a[3])
	retried := listed[retriedRow](t, relay, "dead", "retry", "--all", "--yes")
	if len(retried) != 1 || retried[0].InOrder == nil || !*retried[0].InOrder {
		t.Errorf("retried %+v; want one that is in order", retried)
	}
	relay = stage.Relay(unlimited)
	relay.Start()
	published(t, stage, a...)
	relay.Stop()
	expectSequence(t, stage, "a", ids(a...)...)
	stage.Verify(0)
}

func TestReplayPublishesAgain(t *testing.T) {
	t.Parallel()
	stage := scenario.NewKafkaStage(t, scenario.Settings{"log.level": "info"})
	topic := stage.Topic()
	a, b := insert(stage, topic, "a", "1", "2", "3"), insert(stage, topic, "b", "1")
	relay := stage.Start()
	published(t, stage, slices.Concat(a, b)...)
	expect(t, relay.Command("replay", "--topic", topic, "--dry-run"), 0, "4 messages would be published again")
	expect(t, relay.Command("replay", "--topic", topic, "--limit", "3", "--yes"), 1, "")
	expect(t, relay.Command("replay", "--topic", topic, "--key", "a", "--since", "1h", "--yes"), 0, "3 messages are published again")
	scenario.Await(t, 20*time.Second, "the replayed messages", func() (bool, string) {
		n := len(stage.Records())
		return n == 7, fmt.Sprintf("%d records", n)
	})
	expectSequence(t, stage, "a", slices.Concat(ids(a...), ids(a...))...)
	published(t, stage, a...)
	relay.Stop()
	seen := map[outbox.UUID]bool{}
	for _, r := range stage.Records() {
		if want := map[bool]string{false: "", true: "true"}[seen[r.MessageID]]; r.Headers["message-replayed"] != want {
			t.Errorf("%s: header message-replayed is %q, want %q", r.Where, r.Headers["message-replayed"], want)
		}
		seen[r.MessageID] = true
	}
}

// grantsOf are what docs/operations.md grants to the role.
func grantsOf(t *testing.T, documented, role string) string {
	t.Helper()
	page, err := os.ReadFile("../docs/operations.md")
	try(t, err)
	grants := regexp.MustCompile(`(?m)^GRANT [^;]* TO `+documented+`;`).FindAllString(string(page), -1)
	if len(grants) < 4 {
		t.Fatalf("the documented privileges of %s are %q", documented, grants)
	}
	return strings.ReplaceAll(strings.Join(grants, "\n"), " TO "+documented+";", " TO "+role+";")
}

// The privileges that the documentation grants are enough for a relay that parks
// and buries, and for whoever is on call.
func TestDocumentedPrivileges(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"park", "dead_letter"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			stage := scenario.NewKafkaStage(t, together(limited, scenario.Settings{"outbox.schema": "messaging", "failures.policy": policy}))
			topic := stage.Topic()
			role := func(documented string) string {
				name := documented + "_" + stage.Database.Name
				stage.Database.Exec(t, "CREATE ROLE "+name+" LOGIN; "+grantsOf(t, documented, name))
				t.Cleanup(func() {
					_, _ = stage.Database.Pool.Exec(context.Background(), "DROP OWNED BY "+name+"; DROP ROLE "+name, pgx.QueryExecModeSimpleProtocol)
				})
				return as(t, stage.Database.URL, name, "")
			}
			relay := stage.Relay(scenario.Settings{"database.url": role("relay")})
			oncall := stage.Relay(scenario.Settings{"database.url": role("oncall")})
			a := insert(stage, topic, "a", "1", large, "3")
			b := insert(stage, topic, "b", "1")
			poison, replayed := a[1].MessageID.String(), b[0].MessageID.String()
			check := relay.Command("check")
			expect(t, check, 0, `table "messaging"."outbox_dead_letters": present; grants sufficient`)
			relay.Start()
			if policy == "park" {
				scenario.Await(t, 30*time.Second, "the message to be parked", func() (bool, string) {
					entries := listed[parkedRow](t, oncall, "parked", "list")
					return len(entries) == 1 && entries[0].Waiting == 1, fmt.Sprint(entries)
				})
				expect(t, oncall.Command("parked", "retry", "--all", "--yes"), 0, poison)
				scenario.Await(t, 30*time.Second, "the message to be parked again", func() (bool, string) {
					result := oncall.Command("parked", "skip", "--all", "--yes")
					return strings.Contains(result.Stdout, "1 message was skipped"), result.String()
				})
			}
			scenario.Await(t, 30*time.Second, "the dead letter, and the others in the broker", func() (bool, string) {
				dead := listed[deadRow](t, oncall, "dead", "list")
				return len(dead) == 1 && len(stage.Records()) == 3, fmt.Sprintf("%v, %d records", dead, len(stage.Records()))
			})
			expect(t, oncall.Command("dead", "show", poison), 0, poison)
			expect(t, oncall.Command("dead", "retry", poison, "--yes"), 0, "AFTER LATER MESSAGES")
			expect(t, oncall.Command("replay", "--message-id", replayed, "--yes"), 0, "1 message is published again")
			scenario.Await(t, 30*time.Second, "the replayed message", func() (bool, string) {
				n := len(stage.Records())
				return n == 4, fmt.Sprintf("%d records", n)
			})
			expect(t, oncall.Command("status"), 0, topic)
			for _, word := range []string{"permission", "42501", "missing_grant"} {
				if found := lines(relay.Log(), word); len(found) > 0 {
					t.Errorf("the relay lacks a privilege: %q", found)
				}
			}
			relay.Stop()
		})
	}
}

// Two relays, only one of which can publish large messages, so that chance
// decides what is refused; and an operator who retries and skips whatever is
// there. All is published once, and in order but for what an operator was told
// comes late.
func TestOperatorsAtWorkUnderLoad(t *testing.T) {
	for name, settings := range map[string]scenario.Settings{
		"parking":      {"failures.max_attempts": 2},
		"dead letters": {"failures.policy": "dead_letter"},
		"total order":  {"outbox.ordering": "total"},
		"no order":     {"outbox.ordering": "none"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := scenario.NewKafkaTopics(t, kafkaBrokers(), 1, 1) // one partition, for the total order
			operatorsAtWork(t, scenario.NewStage(t, scenario.NewDatabase(t), log, together(limited, scenario.Settings{
				"failures.backoff.initial": "200ms", "failures.backoff.max": "1s", "outbox.batch_size": 20, "outbox.workers": 2,
			}, settings)), settings)
		})
	}
}

func operatorsAtWork(t *testing.T, stage *scenario.Stage, settings scenario.Settings) {
	topic := stage.Topic()
	weak := stage.Start()
	strong := stage.Relay(unlimited)
	strong.Start()

	const rounds = 40
	var committed []scenario.Row
	late := map[outbox.UUID]bool{}
	done := map[string]int{}
	revive := func(relay *scenario.Relay) {
		for _, r := range operate[retriedRow](t, relay, "dead", "retry") {
			done["revived"]++
			late[r.MessageID] = r.InOrder == nil || !*r.InOrder
		}
	}
	random := stage.Random(1)
	for range rounds {
		for range 15 {
			payload := "small"
			if random.IntN(8) == 0 {
				payload = large
			}
			var key *string
			if random.IntN(10) > 0 {
				text := fmt.Sprint("key ", random.IntN(12))
				key = &text
			}
			committed = append(committed, stage.Insert(topic, key, payload))
		}
		switch random.IntN(4) {
		case 0:
			done["retried"] += len(operate[parkedRow](t, weak, "parked", "retry"))
		case 1:
			done["skipped"] += len(operate[parkedRow](t, weak, "parked", "skip"))
		case 2:
			revive(weak)
		default:
			listed[parkedRow](t, weak, "parked", "list")
		}
	}
	weak.Stop()
	operate[parkedRow](t, strong, "parked", "skip")
	revive(strong)
	stage.Drain(60 * time.Second)
	scenario.Await(t, 30*time.Second, "all keys to go on", func() (bool, string) {
		n := scenario.One[int](t, stage.Database, `SELECT count(*) FROM outbox_parked`)
		return n == 0, fmt.Sprintf("%d are held", n)
	})
	strong.Stop()
	if n := scenario.One[int](t, stage.Database, `SELECT count(*) FROM outbox_dead_letters`); n != 0 {
		t.Errorf("%d dead letters are left", n)
	}
	inOrder := 0
	for i := range committed {
		isLate, revived := late[committed[i].MessageID]
		committed[i].Delayed = isLate // it has no place in the order
		if revived && !isLate {
			inOrder++
		}
	}
	order := scenario.OrderKey
	if given, ok := settings["outbox.ordering"].(string); ok {
		order = scenario.Order(given)
	}
	findings := scenario.Check{Committed: committed, Records: stage.Records(), Order: order}.Run()
	if len(findings.Violations) > 0 {
		t.Errorf("%d violations:\n%s", len(findings.Violations), findings)
	}
	t.Logf("%v of %d messages; of those that were revived, %d kept their place and %d did not", done, len(committed), inOrder, len(late)-inOrder)
	if done["revived"] == 0 {
		t.Error("nothing was revived, so little was tested")
	}
}

// operate does something with all there is; it may meet a relay that is at it.
func operate[T any](t *testing.T, relay *scenario.Relay, group, verb string) (rows []T) {
	t.Helper()
	result := relay.Command(group, verb, "--all", "--yes", "--output", "json")
	if result.Code == 1 && strings.Contains(result.Stderr, "try again in a moment") && result.Stdout == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(result.Stdout), &rows); err != nil || result.Code != 0 {
		t.Errorf("relay %s %s: %v, %s", group, verb, err, result)
	}
	return rows
}
