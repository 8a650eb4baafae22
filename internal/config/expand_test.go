package config

import (
	"strings"
	"testing"
	"time"
)

func TestExpand(t *testing.T) {
	lookup := environment{"A": "1", "B_2": "two", "EMPTY": "", "_X": "${A}"}.lookup
	for text, want := range map[string]string{
		"plain":             "plain",
		"${A}":              "1",
		"x${A}y${B_2}z":     "x1ytwoz",
		"${EMPTY}":          "",
		"${EMPTY:-d}":       "d",
		"${NONE:-}":         "",
		"${NONE:-a:b-c/$d}": "a:b-c/$d",
		"${A:-d}":           "1",
		"${_X}":             "${A}", // not expanded again
		"$${A}":             "${A}",
		"$$${A}":            "$${A}",
		"$A $ $$":           "$A $ $$",
		"pa$$word":          "pa$$word",
		"{A}":               "{A}",
	} {
		if got, _, err := expand(text, lookup); err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"${NONE}":   "the environment variable NONE is not set",
		"${":        "write $${ for a literal ${",
		"${A":       "write $${ for a literal ${",
		"${}":       "write $${ for a literal ${",
		"${1A}":     "write $${ for a literal ${",
		"${A-B}":    "write $${ for a literal ${",
		"${a b:-c}": "write $${ for a literal ${",
	} {
		if _, _, err := expand(text, lookup); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func FuzzUnexpand(f *testing.F) {
	for _, text := range []string{"", "a", "${A}", "$${A}", "$$${", "$", "${${"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, variables, err := expand(unexpand(text), environment{}.lookup)
		if err != nil || got != text || len(variables) > 0 {
			t.Errorf("%q became %q, %v", text, got, err)
		}
	})
}

func TestExpansionTakesTheTypeThatIsWanted(t *testing.T) {
	variables := environment{
		"NUMBER": "12", "BOOL": "false", "DURATION": "3s", "NOTHING": "",
		"STRUCTURE": "a: [b, {c: d}]\n- e # f", "BROKER": "b:1", "YES": "true",
	}
	config, err := Parse("relay.yaml", []byte(`
# ${NOT_SET} in a comment is nothing
outbox:
  batch_size: ${NUMBER}
  notify: ${BOOL}
  poll_interval: ${DURATION}
  retention: "${NUMBER}h"
  workers: ${NOTHING}
  table: ${NUMBER}
  schema: ${STRUCTURE}
failures: {max_attempts: "1${NUMBER}", backoff: {multiplier: '1.${NUMBER}'}}
sinks: {main: {kafka: {brokers: ["${BROKER}", '${BROKER}2'], client_id: "${YES}", tls: {enabled: "${YES}"}}}}
`), variables.lookup)
	if err != nil {
		t.Fatal(err)
	}
	o := config.Outbox
	if o.BatchSize != 12 || o.Notify || o.PollInterval != 3*time.Second || o.Retention != 12*time.Hour || o.Workers != 4 || o.Table != "12" || o.Schema != variables["STRUCTURE"] {
		t.Errorf("%+v", o)
	}
	if k := config.Sinks["main"].Kafka; k.ClientID != "true" || k.Brokers[0] != "b:1" || k.Brokers[1] != "b:12" || !k.TLS.Enabled {
		t.Errorf("%+v", k)
	}
	if config.Failures.MaxAttempts != 112 || config.Failures.Backoff.Multiplier != 1.12 {
		t.Errorf("%+v", config.Failures)
	}
}

func TestExpansionMustBeUTF8(t *testing.T) {
	_, err := Parse("relay.yaml", []byte(minimal+"source: /${BYTES}"), environment{"BYTES": "\xff"}.lookup)
	if err == nil || err.Error() != "relay.yaml:2: source: the value of ${BYTES} is not UTF-8" {
		t.Error(err)
	}
}
