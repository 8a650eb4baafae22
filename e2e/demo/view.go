package demo

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// View shows the demo to people: on a terminal it redraws a few lines in
// place, elsewhere it writes a line each second. Its methods are called by one
// goroutine at a time.
type View struct {
	Out io.Writer
	// Terminal: Out understands control sequences.
	Terminal bool
	// Color: Out is a terminal that shows colours.
	Color bool

	drawn     int // lines to go up before the next drawing
	lastPlain time.Time
}

// state is what the view shows of one moment.
type state struct {
	title          string
	phase          string
	elapsed, total time.Duration
	committed      int
	rolledBack     int
	published      int // messages, not records
	shipped        int // orders
	refused        int // duplicates
	commitRate     int
	publishRate    int
	shipRate       int
	commitHistory  []int
	publishHistory []int
	shipHistory    []int
	relays         []memberStatus
	shippers       []memberStatus
}

// running counts those that run.
func running(members []memberStatus) (n int) {
	for _, m := range members {
		if m.running {
			n++
		}
	}
	return n
}

// Line writes a line that stays.
func (v *View) Line(format string, args ...any) {
	v.finish()
	_, _ = fmt.Fprintf(v.Out, format+"\n", args...)
}

// Done writes a line about a step that took some time.
func (v *View) Done(what string, took time.Duration) {
	v.Line("  %s %-58s %5.1f s", v.paint(green, "✓"), what, took.Seconds())
}

// Show draws the state.
func (v *View) Show(s state) {
	if !v.Terminal {
		if time.Since(v.lastPlain) < 950*time.Millisecond {
			return
		}
		v.lastPlain = time.Now()
		_, _ = fmt.Fprintf(v.Out, "%-5s %3.0f s  commits/s %5d  published/s %5d  lag %5d  shipped/s %4d  refused %4d  kills %2d  relays %d of %d  shipping %d of %d\n",
			s.phase, s.elapsed.Seconds(), s.commitRate, s.publishRate, s.lag(), s.shipRate, s.refused,
			kills(s.relays)+kills(s.shippers), running(s.relays), len(s.relays), running(s.shippers), len(s.shippers))
		return
	}
	lines := v.lines(s)
	var b strings.Builder
	// Lines that are too long for the window are cut off instead of wrapped,
	// which would spoil the counting of them.
	b.WriteString("\x1b[?25l\x1b[?7l")
	if v.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", v.drawn)
	}
	for _, line := range lines {
		b.WriteString("\r" + line + "\x1b[K\n")
	}
	b.WriteString("\x1b[J\x1b[?7h")
	v.drawn = len(lines)
	_, _ = io.WriteString(v.Out, b.String())
}

// lag is how many messages committed and have not arrived.
func (s state) lag() int { return max(0, s.committed-s.published) }

func (v *View) lines(s state) []string {
	lines := []string{
		"",
		"  " + v.paint(bold, s.title),
		"",
		fmt.Sprintf("  %-10s %s  %2.0f s of %.0f s", s.phase, v.bar(s.elapsed, s.total, 36), s.elapsed.Seconds(), s.total.Seconds()),
		"",
		fmt.Sprintf("  committed  %9s %6d/s  %s", thousands(s.committed), s.commitRate, v.paint(cyan, sparkline(s.commitHistory))),
		fmt.Sprintf("  published  %9s %6d/s  %s", thousands(s.published), s.publishRate, v.paint(cyan, sparkline(s.publishHistory))),
		fmt.Sprintf("  shipped    %9s %6d/s  %s", thousands(s.shipped), s.shipRate, v.paint(cyan, sparkline(s.shipHistory))),
		fmt.Sprintf("  lag        %9s   committed and not in the broker", thousands(s.lag())),
		fmt.Sprintf("  rolled back%9s", thousands(s.rolledBack)),
		fmt.Sprintf("  refused    %9s   duplicates, by the inbox of shipping", thousands(s.refused)),
		"",
	}
	for _, m := range slices.Concat(s.relays, s.shippers) {
		status := v.paint(green, "● running")
		switch {
		case m.killed:
			status = v.paint(red, "✗ killed ")
		case !m.running:
			status = "○ stopped"
		}
		lines = append(lines, fmt.Sprintf("  %-10s   %s   %s", m.name, status, times("killed", m.kills)))
	}
	return append(lines, "")
}

// finish leaves what was drawn where it is and gives the cursor back.
func (v *View) finish() {
	if v.drawn > 0 {
		_, _ = io.WriteString(v.Out, "\x1b[?25h")
		v.drawn = 0
	}
}

// Close gives the terminal back.
func (v *View) Close() { v.finish() }

// Toll is what the demo did to the processes.
type Toll struct {
	// Relays and Shippers are how many were killed.
	Relays, Shippers int
	// Explained is how many duplicates in the broker the relays' kills explain.
	Explained int
}

// Tally shows the result.
func (v *View) Tally(t Tally, toll Toll, problems []error) {
	v.Line("")
	row := func(name string, n int, note string) { v.Line("  %-14s %9s   %s", name, thousands(n), note) }
	mark := func(ok bool) string {
		if ok {
			return v.paint(green, "✓")
		}
		return v.paint(red, "✗")
	}
	verdict := func(name string, n int, note string) { row(name, n, strings.TrimSpace(mark(n == 0)+" "+note)) }

	v.Line("  %s", v.paint(bold, "Tally of the outbox: the orders' database and the broker"))
	row("committed", t.Committed, "messages of transactions that committed")
	row("rolled back", t.RolledBack, "messages of transactions and savepoints that rolled back")
	row("in the broker", t.Records, "records, read from the first to the last")
	verdict("missing", len(t.Missing), "")
	verdict("phantom", len(t.Phantom), "")
	verdict("out of order", len(t.OutOfOrder), "")
	note := mark(t.Duplicates <= toll.Explained)
	if toll.Relays > 0 {
		note += " at most " + thousands(toll.Explained) + " were in flight when a relay was killed"
	}
	row("duplicates", t.Duplicates, note)
	row("kills", toll.Relays, "kill -9 of a relay, started again after "+downTime.String())

	v.Line("")
	v.Line("  %s", v.paint(bold, "Tally of the inbox: the orders' database and the shipping service's"))
	row("paid", t.Shipping.Paid, "orders whose payment committed")
	row("shipped once", t.Shipping.Once, "")
	verdict("shipped twice", len(t.Shipping.Twice), "")
	verdict("never shipped", len(t.Shipping.Never), "")
	verdict("shipped unpaid", len(t.Shipping.Unpaid), "")
	row("refused", t.Shipping.Refused, "deliveries of a message that had been processed before")
	row("kills", toll.Shippers, "kill -9 of a shipping service, started again after "+downTime.String())
	v.Line("")
	for line := range strings.Lines(t.Offenders()) {
		v.Line("  %s", strings.TrimSuffix(line, "\n"))
	}
	for _, problem := range problems {
		v.Line("  %s %v", v.paint(red, "✗"), problem)
	}
	if t.Clean(toll.Explained) && len(problems) == 0 {
		v.Line("  %s", v.paint(green, "Nothing lost, nothing phantom, nothing out of order; every paid order shipped exactly once."))
	} else {
		v.Line("  %s", v.paint(red, "The tally is not clean."))
	}
}

// The colours, as terminals number them.
const (
	bold  = "1"
	red   = "31"
	green = "32"
	cyan  = "36"
)

func (v *View) paint(color, text string) string {
	if !v.Color {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

func (v *View) bar(elapsed, total time.Duration, width int) string {
	full := width
	if elapsed < total {
		full = int(int64(width) * int64(elapsed) / int64(total))
	}
	return v.paint(green, strings.Repeat("━", full)) + strings.Repeat("─", width-full)
}

// sparkline draws the values, the highest as a full block.
func sparkline(values []int) string {
	levels := []rune("▁▂▃▄▅▆▇█")
	highest := 1
	for _, n := range values {
		highest = max(highest, n)
	}
	var b strings.Builder
	for _, n := range values {
		b.WriteRune(levels[max(0, n)*(len(levels)-1)/highest])
	}
	return b.String()
}

// thousands groups digits: 12 345.
func thousands(n int) string {
	digits := strconv.Itoa(n)
	var b strings.Builder
	for i, digit := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(' ')
		}
		b.WriteRune(digit)
	}
	return b.String()
}

func times(what string, n int) string {
	switch n {
	case 0:
		return ""
	case 1:
		return what + " once"
	}
	return fmt.Sprintf("%s %d times", what, n)
}
