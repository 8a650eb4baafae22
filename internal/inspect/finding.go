// Package inspect finds out what would keep a relay from working: in the
// database, at the brokers, in the routes. It changes nothing: what it tries in the
// database is rolled back.
package inspect

// Level is how bad a finding is.
type Level string

// The levels.
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Error   Level = "error"
)

// Finding is one line of `relay check`.
type Finding struct {
	Level Level `json:"level"`
	// Subject is what was looked at: database, table public.outbox, sink main …
	Subject string `json:"subject"`
	Message string `json:"message"`
	// Remedy says what to do; empty for OK.
	Remedy string `json:"remedy"`
}
