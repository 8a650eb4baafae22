package operator

import (
	"context"
	"encoding/json"
	"os"
	"os/user"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/outbox"
)

// record is what the audit table keeps of one message.
type record struct {
	id        int64
	messageID outbox.UUID
	topic     string
	key       *string
	details   map[string]any
}

// audit records what is done, in the transaction that does it.
func (o *Operator) audit(ctx context.Context, tx pgx.Tx, action string, records []record) error {
	n := len(records)
	ids, messages, topics, keys, details := make([]int64, n), make([]string, n), make([]string, n), make([]*string, n), make([]string, n)
	for i, r := range records {
		text, err := json.Marshal(r.details)
		if err != nil {
			return err
		}
		if r.details == nil {
			text = []byte("{}")
		}
		ids[i], messages[i], topics[i], keys[i], details[i] = r.id, r.messageID.String(), r.topic, r.key, string(text)
	}
	_, err := tx.Exec(ctx, o.statements.expand(auditSQL), exec, o.options.User, action, ids, messages, topics, keys, details)
	return err
}

// CurrentUser names who runs the process, as far as the system tells: user@host,
// with the one who called sudo in front.
func CurrentUser() string {
	name := "uid " + strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	if caller := os.Getenv("SUDO_USER"); caller != "" && caller != name {
		name = caller + " as " + name
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown host"
	}
	return name + "@" + host
}
