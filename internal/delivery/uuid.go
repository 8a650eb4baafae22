package delivery

import "github.com/jackc/pgx/v5/pgtype"

// uuid is the canonical text of a message id, made only where a log shows it.
type uuid [16]byte

// String implements fmt.Stringer.
func (u uuid) String() string { return pgtype.UUID{Bytes: u, Valid: true}.String() }
