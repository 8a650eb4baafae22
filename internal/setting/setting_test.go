package setting

import (
	"errors"
	"testing"
	"time"
)

func TestErrors(t *testing.T) {
	for want, err := range map[string]error{
		`mode: "p" is not allowed; it must be poll`:                        OneOf("mode", "p", "poll"),
		`policy: "" is not allowed; it must be park, dead_letter or skip`:  OneOf("policy", "", "park", "dead_letter", "skip"),
		`workers: 0 is out of range; it must be between 1 and 64`:          Between("workers", 0, 1, 64),
		`jitter: 1.5 is out of range; it must be between 0 and 1`:          Between("jitter", 1.5, 0, 1),
		`backoff.max: 25h is out of range; it must be between 1ms and 24h`: Between("backoff.max", 25*time.Hour, time.Millisecond, 24*time.Hour),
		`table: is empty; leave the key out for the default`:               Identifier("table", "", 3),
		`table: must be UTF-8 without NUL`:                                 Identifier("table", "a\x00", 3),
		`table: "abcd" has 4 bytes; at most 3 fit`:                         Identifier("table", "abcd", 3),
		`tls: cert_file and key_file belong together`:                      Errorf("tls", "%s and %s belong together", "cert_file", "key_file"),
	} {
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if err := errors.Join(OneOf("a", "b", "b"), Between("c", 2, 2, 2), Identifier("d", "e", 1)); err != nil {
		t.Error(err)
	}
}

func TestFormat(t *testing.T) {
	for want, duration := range map[string]time.Duration{
		"24h": 24 * time.Hour, "1h30m": 90 * time.Minute, "1m30s": 90 * time.Second, "5m": 5 * time.Minute, "10ms": 10 * time.Millisecond, "0s": 0,
	} {
		if got := Format(duration); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
