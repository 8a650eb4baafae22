package servers

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestStandbyTakesOver(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	primary := startPostgres(t, PostgresOptions{})
	standby, err := primary.StartStandby(ctx, true)
	if err != nil {
		t.Fatal(err)
	}
	CleanUp(t, standby)
	url := FailoverURL("postgres", primary, standby)
	if err := execSQL(ctx, url, "CREATE TABLE t AS SELECT 'acknowledged' AS a"); err != nil {
		t.Fatal(err)
	}
	primary.Kill()
	if err := execSQL(ctx, url, "SELECT"); err == nil {
		t.Error("a standby is taken for a server that takes writes")
	}
	if err := standby.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	if got := queryText(t, url, "SELECT a FROM t"); got != "acknowledged" {
		t.Errorf("the new primary has %q", got)
	}
	if err := execSQL(ctx, url, "INSERT INTO t VALUES ('again')"); err != nil {
		t.Errorf("the new primary takes no writes: %v", err)
	}
}

func TestSynchronousStandbyHoldsCommitsUp(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	primary := startPostgres(t, PostgresOptions{})
	standby, err := primary.StartStandby(ctx, true)
	if err != nil {
		t.Fatal(err)
	}
	CleanUp(t, standby)
	standby.Kill()
	done := make(chan error, 1)
	go func() { done <- primary.Exec(ctx, "CREATE TABLE t ()") }()
	select {
	case err := <-done:
		t.Errorf("a commit does not wait for the standby: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := standby.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	p, err := StartPostgres(t.Context(), PostgresOptions{DiskMB: 128})
	if errors.Is(err, ErrNoDisk) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	CleanUp(t, p)
	if err := p.FillDisk(); err != nil {
		t.Fatal(err)
	}
	const fill = "CREATE UNLOGGED TABLE t AS SELECT repeat('x', 1000) FROM generate_series(1, 10000)"
	if err := p.Exec(t.Context(), fill); err == nil || !strings.Contains(err.Error(), "No space left on device") {
		t.Errorf("writing on a full disk gives %v", err)
	}
	if err := p.EmptyDisk(); err != nil {
		t.Fatal(err)
	}
	if !p.Running() {
		if err := p.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Exec(t.Context(), fill); err != nil {
		t.Errorf("writing with space again: %v", err)
	}
}
