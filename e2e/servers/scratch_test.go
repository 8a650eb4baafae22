package servers

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSweepSparesWhatIsUsed(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	if os.Geteuid() == 0 {
		// Its own parents are private.
		parent = openTemp(t)
	}
	used, err := newScratch("used", parent)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := used.remove(); err != nil {
			t.Error(err)
		}
	}()
	left, err := newScratch("left", parent)
	if err != nil {
		t.Fatal(err)
	}
	// As the end of its process would.
	if err := left.lock.Close(); err != nil {
		t.Fatal(err)
	}
	young, err := newScratch("young", parent)
	if err != nil {
		t.Fatal(err)
	}
	if err := young.lock.Close(); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	for _, s := range []*scratch{used, left} {
		if err := os.Chtimes(s.path("lock"), old, old); err != nil {
			t.Fatal(err)
		}
	}
	sweep(parent)
	for s, want := range map[*scratch]bool{used: true, left: false, young: true} {
		if exists(s.dir) != want {
			t.Errorf("%s exists: %v, want %v", s.dir, !want, want)
		}
	}
}

// openTemp is a folder that every user may enter.
func openTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "outbox-relay-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestInstallIsAllOrNothing(t *testing.T) {
	t.Parallel()
	target := filepath.Join(t.TempDir(), "versions", "1.0")
	broken := errors.New("the connection broke")
	err := install(target, func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	left, err := os.ReadDir(filepath.Dir(target))
	if err != nil || len(left) != 0 {
		t.Errorf("a failed download left %v (%v)", left, err)
	}
	fills := 0
	for range 2 {
		err := install(target, func(dir string) error {
			fills++
			return os.WriteFile(filepath.Join(dir, "all"), nil, 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if fills != 1 || !exists(filepath.Join(target, "all")) {
		t.Errorf("filled %d times, want once", fills)
	}
}

func TestPortsAreOnesOwn(t *testing.T) {
	t.Parallel()
	ports, err := takePorts(50)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, p := range ports {
		defer p.release()
		if p.number < firstPort || p.number > lastPort || seen[p.number] {
			t.Errorf("port %d is outside of the range or given twice", p.number)
		}
		seen[p.number] = true
	}
}

func TestMissingPackagesNamesTheCommand(t *testing.T) {
	t.Parallel()
	message := missingPackages([]string{"maven", "rabbitmq-server"}).Error()
	if want := "sudo apt-get update && sudo apt-get install -y --no-install-recommends maven rabbitmq-server\n"; !strings.Contains(message, want) {
		t.Errorf("%q lacks %q", message, want)
	}
}

func TestEnvironmentReadsItself(t *testing.T) {
	want := Environment{PostgresURL: "postgres://x/y", KafkaBrokers: []string{"a:1", "b:2"}, RabbitMQURL: "amqp://z/"}
	for _, variable := range want.Variables() {
		name, value, _ := strings.Cut(variable, "=")
		t.Setenv(name, value)
	}
	got := FromEnvironment()
	if got.PostgresURL != want.PostgresURL || got.RabbitMQURL != want.RabbitMQURL || strings.Join(got.KafkaBrokers, ",") != "a:1,b:2" {
		t.Errorf("%+v, want %+v", got, want)
	}
}
