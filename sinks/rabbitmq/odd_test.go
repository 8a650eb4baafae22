package rabbitmq_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/outboxrelay/relay/sinks"
)

// TestOddContent has what rows may hold and brokers may not expect, between good
// messages and all in flight together. What the broker refuses fails alone, and
// all else arrives.
func TestOddContent(t *testing.T) {
	orders(t, func(t *testing.T, b broker) {
		queue := b.queue(t, nil)
		publisher := b.open(t, nil)
		header := func(name, value string) func(*sinks.Message) {
			return func(m *sinks.Message) { m.Headers = []sinks.Header{{Name: name, Value: value}} }
		}
		odd := []struct {
			name    string
			change  func(*sinks.Message)
			refused bool
		}{
			{"no header name", header("", "v"), false},
			{"control characters", header("a\x01\x1f\r\n\t", "\x01\x02\r\n"), false},
			{"NUL", header("n\x00n", "v\x00v"), false},
			{"invalid UTF-8", header("\xff\xfe", "\xc3\x28"), false},
			{"a long name", header(strings.Repeat("n", 255), "v"), false},
			{"a key of every byte", func(m *sinks.Message) {
				m.Key = make([]byte, 256)
				for i := range m.Key {
					m.Key[i] = byte(i)
				}
			}, false},
			{"type and content type", func(m *sinks.Message) { m.Type, m.ContentType = "\x00\xff", "\r\n\xff" }, false},
			{"x-death as text", header("x-death", "never"), false},
			{"x-delay as text", header("x-delay", "soon"), false},
			{"x-match as text", header("x-match", "all"), false},
			{"x-stream-filter-value", header("x-stream-filter-value", "v"), false},
			{"CC", header("CC", "somewhere"), true},
			{"BCC", header("BCC", "somewhere"), true},
			{"before 1970", func(m *sinks.Message) { m.CreatedAt = m.CreatedAt.AddDate(-3000, 0, 0) }, false},
			{"far ahead", func(m *sinks.Message) { m.CreatedAt = m.CreatedAt.AddDate(200_000, 0, 0) }, false},
			{"thousands of headers", func(m *sinks.Message) {
				for i := range 5000 {
					m.Headers = append(m.Headers, sinks.Header{Name: fmt.Sprint("header-", i), Value: "v"})
				}
			}, false},
		}
		var messages []sinks.Message
		for i, o := range odd {
			m := message("", queue, fmt.Sprint("odd-", i), int64(2*i))
			o.change(&m)
			messages = append(messages, m, message("", queue, "good", int64(2*i+1)))
		}
		arrived := 0
		for i, err := range publish(t, publisher, messages) {
			name := "good"
			if i%2 == 0 {
				name = odd[i/2].name
			}
			if i%2 == 0 && odd[i/2].refused {
				failure{sinks.ScopeMessage, true, "invalid", messageText(messages[i])}.check(t, name, err)
				continue
			}
			arrived++
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		b.wantCount(t, queue, arrived)
	})
}

// messageText is what an error must name.
func messageText(m sinks.Message) string { return fmt.Sprintf("%x", m.ID[:4]) }

func (b broker) wantCount(t *testing.T, queue string, n int) {
	t.Helper()
	if got := len(b.read(t, queue, n, 10*time.Second)); got != n {
		t.Errorf("%d messages in %s, want %d", got, queue, n)
	}
}
