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

// pause waits a moment, unless ctx ends.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(20 * time.Millisecond):
		return nil
	}
}

// meter measures what relay, PostgreSQL and Kafka use between its start and
// its reading.
type meter struct {
	pids  []int
	began time.Time
	used  []time.Duration
}

func newMeter(pids ...int) (*meter, error) {
	m := &meter{pids: pids}
	var err error
	m.used, err = m.read()
	m.began = time.Now()
	return m, err
}

func (m *meter) read() ([]time.Duration, error) {
	used := make([]time.Duration, len(m.pids))
	for i, pid := range m.pids {
		var err error
		if used[i], err = processTime(pid); err != nil {
			return nil, err
		}
	}
	return used, nil
}

// since returns the wall time and the CPU time of each process.
func (m *meter) since() (time.Duration, []time.Duration, error) {
	took := time.Since(m.began)
	used, err := m.read()
	for i := range used {
		used[i] -= m.used[i]
	}
	return took, used, err
}
