package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// processTime is the CPU time that a process and its children, ended ones
// included, have used so far.
func processTime(pid int) (time.Duration, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	ticks := 0
	for _, path := range stats {
		fields, err := statFields(path)
		if err != nil {
			continue // it ended meanwhile
		}
		parent, _ := strconv.Atoi(fields[1])
		if path != fmt.Sprintf("/proc/%d/stat", pid) && parent != pid {
			continue
		}
		for _, field := range fields[11:15] { // user, system, and those of ended children
			n, err := strconv.Atoi(field)
			if err != nil {
				return 0, err
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// statFields returns the fields of a stat file that follow the command, which
// stands in parentheses: the state, the parent, …
func statFields(path string) ([]string, error) {
	stat, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	text := string(stat)
	return strings.Fields(text[strings.LastIndexByte(text, ')')+1:]), nil
}

// peakMiB is the most memory that a process has had resident.
func peakMiB(pid int) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.Atoi(strings.Fields(value)[0])
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("process %d: no VmHWM", pid)
}

// pollInterval is between two looks at how far something came.
const pollInterval = 20 * time.Millisecond

// pause waits until the next look, unless ctx ends.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pollInterval):
		return nil
	}
}

// meter measures what a process that relays, PostgreSQL and Kafka use between
// its start and its reading.
type meter struct {
	pids  [3]int
	began time.Time
	used  [3]time.Duration
}

func newMeter(relaying, postgres, kafka int) (*meter, error) {
	m := &meter{pids: [3]int{relaying, postgres, kafka}}
	var err error
	m.used, err = m.read()
	m.began = time.Now()
	return m, err
}

func (m *meter) read() (used [3]time.Duration, err error) {
	for i, pid := range m.pids {
		if used[i], err = processTime(pid); err != nil {
			return used, err
		}
	}
	return used, nil
}

// since is what so many rows took and cost until now.
func (m *meter) since(rows int) (result, error) {
	took := time.Since(m.began)
	used, err := m.read()
	if err != nil {
		return result{}, err
	}
	r := result{rate: float64(rows) / took.Seconds()}
	for i := range used {
		r.cpu[i] = (used[i] - m.used[i]).Seconds() * 100_000 / float64(rows)
	}
	peak, err := peakMiB(m.pids[0])
	r.peak = float64(peak)
	return r, err
}
