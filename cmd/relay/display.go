package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// shortCell bounds a key or type in a table, longCell an error.
	shortCell, longCell = 40, 80
	// mostLines is how many results a command lists by themselves.
	mostLines = 20
)

// display returns the text as it may be shown on a terminal: quoted and escaped
// unless it is plain, so that no key or error can move the cursor, change colours
// or pass for something else.
func display(s string) string {
	if s == "" || s == "-" || strings.TrimSpace(s) != s || strings.Contains(s, `"`) {
		return strconv.Quote(s)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// displayKey shows a key, - where there is none.
func displayKey(key *string) string {
	if key == nil {
		return "-"
	}
	return display(shorten(*key, shortCell))
}

// displayError shows an error on one line.
func displayError(text string) string {
	return displayText(shorten(strings.Join(strings.Fields(text), " "), longCell))
}

// displayText shows a text of several lines: lines and tabs stay, what else is
// not printable is escaped.
func displayText(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
	}
	return b.String()
}

// shorten cuts a text to so many characters.
func shorten(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-1]) + "…"
}

// ago shows how far back a time lies, or how far ahead: "3m ago", "in 20s".
func ago(t, now time.Time) string {
	d := now.Sub(t)
	if d < 0 {
		return "in " + age(-d)
	}
	return age(d) + " ago"
}

func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return d.Truncate(time.Second).String()
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/day)
}

func newTable(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) }

// row writes a line of a table.
func row(table *tabwriter.Writer, cells ...string) {
	_, _ = fmt.Fprintln(table, strings.Join(cells, "\t"))
}

// limited lists the first results, one a line, and how many there are more.
func limited[T any](w io.Writer, results []T, cells func(T) []string) {
	table := newTable(w)
	for i, result := range results {
		if i == mostLines {
			break
		}
		row(table, cells(result)...)
	}
	_ = table.Flush()
	if more := len(results) - mostLines; more > 0 {
		_, _ = fmt.Fprintf(w, "… and %d more\n", more)
	}
}

// jsonArray writes one JSON array whose elements arrive one by one.
type jsonArray struct {
	w     io.Writer
	began bool
}

func (a *jsonArray) add(element any) error {
	text, err := marshal(element, "  ")
	if err != nil {
		return failed(err)
	}
	separator := ",\n  "
	if !a.began {
		separator = "[\n  "
	}
	a.began = true
	_, err = io.WriteString(a.w, separator+text)
	return failed(err)
}

func (a *jsonArray) end() error {
	text := "\n]\n"
	if !a.began {
		text = "[]\n"
	}
	_, err := io.WriteString(a.w, text)
	return failed(err)
}

// marshal is JSON that a terminal may show: no control character is in it. All
// that is not ASCII stands in strings, and there escapes mean the same.
func marshal(document any, prefix string) (string, error) {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent(prefix, "  ")
	if err := encoder.Encode(document); err != nil {
		return "", err
	}
	text := strings.TrimSuffix(b.String(), "\n")
	if !strings.ContainsFunc(text, hidden) {
		return text, nil
	}
	b.Reset()
	for _, r := range text {
		switch {
		case !hidden(r):
			b.WriteRune(r)
		case r > 0xffff: // as UTF-16 has it
			r -= 0x10000
			_, _ = fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			_, _ = fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String(), nil
}

// hidden reports whether a terminal shows no sign for the character.
func hidden(r rune) bool { return r != '\n' && !unicode.IsPrint(r) && !unicode.IsSpace(r) || r == 0x85 }
