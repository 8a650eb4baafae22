package delivery

import (
	"log/slog"

	canonical "github.com/outboxrelay/relay/internal/uuid"
)

// uuid is the canonical text of a message id, made only where a log shows it.
type uuid [16]byte

// LogValue implements slog.LogValuer.
func (u uuid) LogValue() slog.Value { return slog.StringValue(u.String()) }

// String implements fmt.Stringer.
func (u uuid) String() string { return canonical.String(u) }
