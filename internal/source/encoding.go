package source

import (
	"fmt"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/outboxrelay/relay/sinks"
)

// isRaw reports whether text comes as it lies in the database, of which nobody
// has checked that it is UTF-8.
func isRaw(conn *pgconn.PgConn) bool { return conn.ParameterStatus("client_encoding") == asciiEncoding }

// refuseText refuses the message that is about to be appended if text of it is
// not UTF-8: as brokers' clients do not expect anything else, it must not leave.
func (b *rowBatch) refuseText(m *sinks.Message) {
	column := ""
	switch {
	case !utf8.ValidString(m.Topic):
		column = "topic"
	case !utf8.Valid(m.Key):
		column = "key"
	case !utf8.ValidString(m.Type):
		column = "type"
	case !utf8.ValidString(m.ContentType):
		column = "content_type"
	default:
		for _, h := range m.Headers {
			if !utf8.ValidString(h.Name) || !utf8.ValidString(h.Value) {
				column = "headers"
			}
		}
	}
	if column == "" {
		return
	}
	if b.refused == nil {
		b.refused = make(map[int]error)
	}
	b.refused[len(b.messages)] = &sinks.Error{
		Scope: sinks.ScopeMessage, Permanent: true, Reason: "encoding",
		Err: fmt.Errorf("the column %s holds bytes that are no UTF-8, which a database in SQL_ASCII does not check: correct the row", column),
	}
}
