package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/e2e/scenario"
)

// All rows at once would take more than the limit several times over.
func TestLargeBacklogDrainsInLittleMemory(t *testing.T) {
	t.Parallel()
	const (
		rows  = 400_000
		limit = 100 << 10 // kB
	)
	log := scenario.NewKafkaLog(t)
	// Batches of four times the default's rows take more memory, and less time.
	stage := scenario.NewStage(t, scenario.NewDatabase(t), log, scenario.Settings{"log.level": "info", "outbox.batch_size": 4000})
	stage.Database.Exec(t, `INSERT INTO `+stage.Table+` (topic, key, type, payload)
SELECT $1, 'key-' || i % 1000, 'Tested', convert_to(repeat('x', 100), 'UTF8') FROM generate_series(1, $2::int) i`, stage.Topic(), rows)
	began := time.Now()
	relay := stage.Start()
	// Counting in the broker costs nothing, in the table a lot.
	scenario.Await(t, 4*time.Minute, "the rows in the broker", func() (bool, string) {
		n, err := log.Len(t.Context())
		return n >= rows, fmt.Sprintf("%d of %d are there (%v)", n, rows, err)
	})
	took := time.Since(began)
	stage.Drain(20 * time.Second)
	peak := peakMemory(t, relay.PID())
	relay.Stop()
	if n, err := log.Len(t.Context()); err != nil || n != rows {
		t.Errorf("the broker has %d records (%v), want %d", n, err, rows)
	}
	t.Logf("%d rows in %v, %.0f/s, with at most %d kB resident", rows, took.Round(time.Millisecond), rows/took.Seconds(), peak)
	if peak >= limit {
		t.Errorf("the relay needed %d kB of memory, want less than %d", peak, limit)
	}
}

// peakMemory is VmHWM in kB.
func peakMemory(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(status) {
		if fields := strings.Fields(string(line)); len(fields) == 3 && fields[0] == "VmHWM:" {
			peak, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return peak
		}
	}
	t.Fatalf("no VmHWM in\n%s", status)
	return 0
}

func TestIdleRelayNeedsLittleProcessorTime(t *testing.T) {
	t.Parallel()
	const span = 15 * time.Second
	stage := scenario.NewKafkaStage(t, scenario.Settings{"log.level": "info"})
	relay := stage.Start()
	key := "key"
	stage.AwaitRecord(stage.Insert(stage.Topic(), &key, "the last for a while").MessageID, 20*time.Second)
	time.Sleep(3 * time.Second) // it rests
	// What runs beside it makes it dearer at times, and never cheaper.
	share := 1.0
	for range 3 {
		began, before := time.Now(), processorTime(t, relay.PID())
		time.Sleep(span)
		used := processorTime(t, relay.PID()) - before
		latest := used.Seconds() / time.Since(began).Seconds()
		share = min(share, latest)
		t.Logf("the idle relay used %v in %v: %.2f %% of a core", used, span, 100*latest)
		if share < 0.01 {
			break
		}
	}
	if share >= 0.01 {
		t.Errorf("the idle relay used %.2f %% of a core at least, want less than 1 %%", 100*share)
	}
	relay.Stop()
}

// processorTime is what the process used so far, of user and system time. The
// kernel counts it in ticks of 10 ms.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	// The fields begin after the command's name, which is in parentheses.
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	ticks := 0
	for _, field := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
