package source

import (
	"slices"

	"github.com/outboxrelay/relay/sinks"
)

// ReplayMark is the member of the column headers by which an operator's replay
// marks a row. It is not the header message-replayed that consumers get: an
// application may pass on the headers of a message that it received, and must
// not claim a replay. This one never reaches a broker.
const ReplayMark = "outbox-relay:replayed"

// takeReplayMark removes the mark from the headers and reports whether it was
// there.
func takeReplayMark(headers []sinks.Header) ([]sinks.Header, bool) {
	for i := range headers {
		if headers[i].Name == ReplayMark {
			return slices.Delete(headers, i, i+1), true
		}
	}
	return headers, false
}
