package config

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// clearEnvironment hides the tester's own PG* variables.
func clearEnvironment(t *testing.T) {
	t.Helper()
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "PG") {
			t.Setenv(name, "")
		}
	}
	t.Setenv("PGPASSFILE", "/nowhere")
}

var ourParameters = map[string]string{"application_name": "outbox-relay", "client_encoding": "UTF8", "DateStyle": "ISO, MDY"}

func TestPoolConfig(t *testing.T) {
	clearEnvironment(t)
	pool, err := Database{URL: "postgres://u:p@h:5433/d", MaxConnections: 12}.PoolConfig()
	if err != nil {
		t.Fatal(err)
	}
	c := pool.ConnConfig
	if c.Host != "h" || c.Port != 5433 || c.User != "u" || c.Password != "p" || c.Database != "d" || pool.MaxConns != 12 {
		t.Errorf("%+v", c)
	}
	if c.DefaultQueryExecMode != pgx.QueryExecModeExec || c.ConnectTimeout != 5*time.Second {
		t.Errorf("mode %v, timeout %v", c.DefaultQueryExecMode, c.ConnectTimeout)
	}
	// Anything else here might be refused by PgBouncer.
	if !maps.Equal(c.RuntimeParams, ourParameters) {
		t.Errorf("startup parameters: %v, want %v", c.RuntimeParams, ourParameters)
	}
}

// Text leaves for the broker as the server sends it.
func TestNothingChangesTheEncoding(t *testing.T) {
	clearEnvironment(t)
	pool, err := Database{URL: "postgres://h/d?client_encoding=LATIN1&CLIENT_ENCODING=WIN1252&datestyle=German"}.PoolConfig()
	if err != nil {
		t.Fatal(err)
	}
	if got := pool.ConnConfig.RuntimeParams; !maps.Equal(got, ourParameters) {
		t.Errorf("startup parameters: %v, want %v", got, ourParameters)
	}
}

func TestPoolConfigKeepsWhatTheUserSays(t *testing.T) {
	clearEnvironment(t)
	pool, err := Database{
		URL:      "host=h user=u password=p application_name=mine connect_timeout=2 default_query_exec_mode=simple_protocol pool_max_conns=3",
		Password: "q", MaxConnections: 8,
	}.PoolConfig()
	if err != nil {
		t.Fatal(err)
	}
	c := pool.ConnConfig
	if c.Password != "q" || c.RuntimeParams["application_name"] != "mine" || c.ConnectTimeout != 2*time.Second ||
		c.DefaultQueryExecMode != pgx.QueryExecModeSimpleProtocol || pool.MaxConns != 8 {
		t.Errorf("%+v, %d connections", c, pool.MaxConns)
	}
}

func TestPoolConfigReadsPGVariables(t *testing.T) {
	clearEnvironment(t)
	t.Setenv("PGHOST", "pghost")
	t.Setenv("PGUSER", "pguser")
	t.Setenv("PGDATABASE", "pgdatabase")
	t.Setenv("PGAPPNAME", "pgapp")
	passfile := secretFile(t, "pghost:5432:pgdatabase:pguser:frompgpass\n")
	t.Setenv("PGPASSFILE", passfile)
	pool, err := Database{}.PoolConfig()
	if err != nil {
		t.Fatal(err)
	}
	c := pool.ConnConfig
	if c.Host != "pghost" || c.User != "pguser" || c.Database != "pgdatabase" || c.Password != "frompgpass" || c.RuntimeParams["application_name"] != "pgapp" {
		t.Errorf("%+v", c)
	}
}

func TestDirectConfig(t *testing.T) {
	clearEnvironment(t)
	database := Database{URL: "postgres://u@pooler/d?pool_max_conns=3", DirectURL: "postgres://u@direct/d?pool_min_conns=1", Password: "p"}
	direct, err := database.DirectConfig()
	if err != nil || direct.Host != "direct" || direct.Password != "p" || !maps.Equal(direct.RuntimeParams, ourParameters) || direct.ConnectTimeout != 5*time.Second {
		t.Errorf("%+v, %v", direct, err)
	}
	database.DirectURL = ""
	if direct, err = database.DirectConfig(); err != nil || direct.Host != "pooler" || !maps.Equal(direct.RuntimeParams, ourParameters) {
		t.Errorf("%+v, %v", direct, err)
	}
}

// badURLs are connection strings that are refused, with the canary where a
// password is or may have been meant.
var badURLs = []string{
	"postgres://u:c4n4ry@h:port/d",
	"postgres://u:c4n4ry@h:99999/d",
	"postgres://u:c4n4ry/x@h/d",
	"postgres://u:x/c4n4ry@h/d",
	"postgres://u:x@c4n4ry@h/d",
	"postgres://u:x@c4n4ry@h:1,h2:2/d",
	"postgres://u:%zzc4n4ry@h/d",
	"postgres://u:c4n4ry@[::1/d",
	"postgres://u:c4n4ry@h/d?sslmode=c4n4ry",
	"postgres://u:c4n4ry@h/d?target_session_attrs=c4n4ry",
	"postgres://u:c4n4ry@h/d?connect_timeout=c4n4ry",
	"postgres://u:c4n4ry@h/d?pool_max_conns=c4n4ry",
	"postgres://u:c4n4ry@h/d?pool_ping_timeout=c4n4ry",
	"postgres://u:c4n4ry@h/d?default_query_exec_mode=c4n4ry",
	"postgres://u:c4n4ry@h/d?service=c4n4ry&servicefile=/c4n4ry",
	"postgres://u:c4n4ry@h/d?sslrootcert=/c4n4ry",
	"postgres://u:c4n4ry@h/d?sslcert=/c4n4ry",
	"postgres://u:c4n4ry@h/d?min_protocol_version=c4n4ry",
	"postgres://u:c4n4ry@h/d?channel_binding=c4n4ry",
	"postgres://u:c4n4ry@h/d?require_auth=c4n4ry",
	"postgres://u:c4n4ry@h/d?sslcertmode=c4n4ry",
	"postgres://u:c4n4ry@h/d?x%00=c4n4ry",
	"postgres://u:c4n4ry@h1,h2:1,h3:2,:3/d?port=1,2",
	"mysql://u:c4n4ry@h/d",
	"mysql://u:c4n4ry@h/d?sslmode=disable",
	"c4n4ry",
	"host=h password=x c4n4ry",
	"host=h password=x c4n4ry user=u",
	"host=h password='c4n4ry",
	"host=h password=x c4n4ry!=y",
	"host=h port=c4n4ry",
	"u:c4n4ry@h/d?a=b",
	"=c4n4ry",
	"host='a c4n4ry@b'",
}

func TestBadConnectionStringsAreNotShown(t *testing.T) {
	clearEnvironment(t)
	for _, text := range badURLs {
		for _, database := range []Database{{URL: text}, {DirectURL: text}} {
			_, poolErr := database.PoolConfig()
			_, directErr := database.DirectConfig()
			err := errors.Join(poolErr, directErr)
			if err == nil {
				t.Errorf("%s is accepted", text)
				continue
			}
			shown := fmt.Sprintf("%v %+v %#v", err, err, err)
			if strings.Contains(shown, "c4n4ry") || strings.Contains(shown, "4n4r") {
				t.Errorf("%s: %v", text, err)
			}
			if _, ok := errors.AsType[*pgconn.ParseConfigError](err); ok {
				t.Errorf("%s: the error holds the connection string", text)
			}
		}
		for _, key := range []string{"url", "direct_url"} {
			_, err := Parse("relay.yaml", fmt.Appendf(nil, "%sdatabase:\n  %s: %q\n", minimal, key, text), environment{}.lookup)
			if err == nil || !strings.HasPrefix(err.Error(), "relay.yaml:3: database."+key+": ") || strings.Contains(err.Error(), "c4n4ry") {
				t.Errorf("%s: %v", text, err)
			}
		}
	}
}

func FuzzPoolConfig(f *testing.F) {
	for _, text := range badURLs {
		f.Add(text)
	}
	f.Add("postgres://u:c4n4ry@h/d")
	f.Add("host=h password='c4n4ry'")
	f.Fuzz(func(t *testing.T, text string) {
		// Reading files or the user's own passwords is not what is tested.
		if strings.Contains(text, "file") || strings.Contains(text, "ssl") || strings.Contains(text, "service") {
			return
		}
		pool, err := Database{URL: text}.PoolConfig()
		if err != nil {
			if strings.Contains(err.Error(), "c4n4ry") {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if password := pool.ConnConfig.Password; strings.Contains(password, "c4n4ry") && strings.Count(text, "c4n4ry") == 1 && strings.Contains(hide("url", text), "c4n4ry") {
			t.Errorf("%q is printed as %q", text, hide("url", text))
		}
	})
}

func TestPoolConfigConnects(t *testing.T) {
	server := os.Getenv("RELAY_TEST_POSTGRES_URL")
	if server == "" {
		t.Skip("needs RELAY_TEST_POSTGRES_URL; `make test` provides it")
	}
	if parsed, err := url.Parse(server); err != nil || parsed.Host == "" {
		t.Fatal("RELAY_TEST_POSTGRES_URL is no URL")
	}
	settings, err := Database{URL: server, MaxConnections: 2}.PoolConfig()
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), settings)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var name string
	var prepared int
	if err := pool.QueryRow(t.Context(), "select current_setting('application_name') where $1 = 'x'", "x").Scan(&name); err != nil || name != "outbox-relay" {
		t.Errorf("%q, %v", name, err)
	}
	if err := pool.QueryRow(t.Context(), "select count(*) from pg_prepared_statements").Scan(&prepared); err != nil || prepared != 0 {
		t.Errorf("%d prepared statements, %v", prepared, err)
	}
}
