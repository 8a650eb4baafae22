package servers

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// startPostgres starts a server that goes with the test.
func startPostgres(t *testing.T, options PostgresOptions) *Postgres {
	t.Helper()
	p, err := StartPostgres(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	CleanUp(t, p)
	return p
}

// queryText returns the one value that the query yields.
func queryText(t *testing.T, url, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	var value string
	if err := conn.QueryRow(t.Context(), sql).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"14", "18"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			p := startPostgres(t, PostgresOptions{Version: version, Settings: map[string]string{"work_mem": "5MB"}})
			url, err := p.CreateDatabase(t.Context(), `odd "name"/?`)
			if err != nil {
				t.Fatal(err)
			}
			if got := queryText(t, url, "SELECT current_database()"); got != `odd "name"/?` {
				t.Errorf("connected to database %q", got)
			}
			for name, want := range map[string]string{"work_mem": "5MB", "wal_level": "logical", "fsync": "off"} {
				if got := queryText(t, url, "SHOW "+name); got != want {
					t.Errorf("%s is %s, want %s", name, got, want)
				}
			}
			if got := queryText(t, url, "SHOW server_version"); !strings.HasPrefix(got, version+".") {
				t.Errorf("server version %s, want %s", got, version)
			}
		})
	}
}

func TestPostgresRestarts(t *testing.T) {
	t.Parallel()
	p := startPostgres(t, PostgresOptions{})
	ctx := t.Context()
	if err := p.Exec(ctx, "CREATE TABLE kept (n int)"); err != nil {
		t.Fatal(err)
	}
	end := map[string]func() error{
		"smart":     func() error { return p.Stop(Smart) },
		"fast":      func() error { return p.Stop(Fast) },
		"immediate": func() error { return p.Stop(Immediate) },
		"kill":      func() error { p.Kill(); return nil },
	}
	port := p.Port()
	for name, stop := range end {
		if err := p.Exec(ctx, "INSERT INTO kept VALUES (1)"); err != nil {
			t.Fatalf("before %s: %v", name, err)
		}
		if err := stop(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if p.Running() {
			t.Errorf("%s: it still runs", name)
		}
		if err := p.Start(ctx); err != nil {
			t.Fatalf("start after %s: %v", name, err)
		}
	}
	if err := p.Start(ctx); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("second start: %v", err)
	}
	if err := p.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if got := queryText(t, p.URL("postgres"), "SELECT count(*)::text FROM kept"); got != "4" {
		t.Errorf("%s rows survived, want 4", got)
	}
	if p.Port() != port {
		t.Errorf("the port changed from %d to %d", port, p.Port())
	}
}

func TestPostgresPauses(t *testing.T) {
	t.Parallel()
	p := startPostgres(t, PostgresOptions{})
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := p.Exec(short, "SELECT 1"); err == nil {
		t.Error("a paused server accepted a session")
	}
	if err := p.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := p.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Error(err)
	}
}

func TestStartErrorHasTheLog(t *testing.T) {
	t.Parallel()
	_, err := StartPostgres(t.Context(), PostgresOptions{Settings: map[string]string{"wal_level": "nonsense"}})
	if err == nil || !strings.Contains(err.Error(), `invalid value for parameter "wal_level": "nonsense"`) {
		t.Errorf("error without the reason: %v", err)
	}
	_, err = StartPostgres(t.Context(), PostgresOptions{Version: "9"})
	if err == nil || !strings.Contains(err.Error(), "14.24.0") {
		t.Errorf("error without the known versions: %v", err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	t.Parallel()
	p := startPostgres(t, PostgresOptions{OnDisk: true})
	pid, dir := p.PID(), p.scratch.dir
	if !strings.HasPrefix(dir, os.TempDir()) {
		t.Errorf("data on disk is in %s", dir)
	}
	logs := t.TempDir()
	if err := p.KeepLogs(logs); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := syscall.Kill(pid, 0); err == nil {
		t.Errorf("process %d still exists", pid)
	}
	if exists(dir) {
		t.Errorf("folder %s still exists", dir)
	}
	if err := p.Start(t.Context()); err == nil {
		t.Error("a closed server started")
	}
	kept, err := os.ReadDir(logs)
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept %v (%v), want one folder", kept, err)
	}
}

func TestPgBouncer(t *testing.T) {
	t.Parallel()
	p := startPostgres(t, PostgresOptions{})
	if _, err := p.CreateDatabase(t.Context(), "pooled"); err != nil {
		t.Fatal(err)
	}
	b, err := StartPgBouncer(t.Context(), PgBouncerOptions{PostgresPort: p.Port()})
	if err != nil {
		t.Fatal(err)
	}
	CleanUp(t, b)
	url := b.URL("pooled") + "&default_query_exec_mode=exec"
	if got := queryText(t, url, "SELECT current_database()"); got != "pooled" {
		t.Errorf("connected to database %q", got)
	}
	if err := b.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := queryText(t, url, "SELECT inet_server_port()::text"); got == "" {
		t.Error("no answer after a restart")
	}
}
