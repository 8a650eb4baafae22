package scenario

import (
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/e2e/servers"
)

// withCanary puts a password into the database's URLs that have none. The tests'
// PostgreSQL trusts everybody, whatever password they send. That of RabbitMQ's
// user is the canary anyway.
func (c Config) withCanary() Config {
	settings := Settings{}
	for _, path := range []string{"database.url", "database.direct_url"} {
		parsed, err := url.Parse(get(c, path, ""))
		if err != nil || parsed.Scheme != "postgres" || parsed.User == nil {
			continue
		}
		if _, has := parsed.User.Password(); !has {
			parsed.User = url.UserPassword(parsed.User.Username(), servers.Canary)
			settings[path] = parsed.String()
		}
	}
	if len(settings) == 0 {
		return c
	}
	return c.With(settings)
}

// checkCanary fails the test when a secret is in what was written.
func checkCanary(t testing.TB, what, text string) {
	t.Helper()
	if at := strings.Index(text, servers.Canary); at >= 0 {
		t.Errorf("%s shows a password: …%s…", what, text[max(0, at-200):min(len(text), at+100)])
	}
}

// checkLog is checkCanary for a file, which need not be there.
func checkLog(t testing.TB, path string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
	checkCanary(t, path, string(content))
}
