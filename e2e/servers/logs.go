package servers

import (
	"os"
	"path/filepath"
	"strings"
)

// LogsDir is where logs worth keeping go: $RELAY_TEST_LOGS, else the logs
// folder of the e2e module that the working directory is in or beside, else
// logs in the working directory.
func LogsDir() string {
	if dir := os.Getenv("RELAY_TEST_LOGS"); dir != "" {
		return dir
	}
	wd, err := os.Getwd()
	if err != nil {
		return "logs"
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		for _, candidate := range []string{dir, filepath.Join(dir, "e2e")} {
			module, err := os.ReadFile(filepath.Join(candidate, "go.mod"))
			if err == nil && strings.HasPrefix(string(module), "module github.com/outboxrelay/relay/e2e\n") {
				return filepath.Join(candidate, "logs")
			}
		}
		if dir == filepath.Dir(dir) {
			return filepath.Join(wd, "logs")
		}
	}
}

// Server is any of the servers of this package.
type Server interface {
	// Close stops the server and removes what it wrote. It may be called
	// more than once.
	Close() error
	// KeepLogs copies the logs into a folder in dir; before Close.
	KeepLogs(dir string) error
	// LogTail is the end of the log.
	LogTail() string
}

// TB is the part of testing.TB that CleanUp needs.
type TB interface {
	Helper()
	Name() string
	Failed() bool
	Logf(format string, args ...any)
	Cleanup(func())
}

// CleanUp closes the server when the test ends, after keeping its logs under
// LogsDir if the test failed.
func CleanUp(t TB, s Server) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			dir := filepath.Join(LogsDir(), strings.NewReplacer("/", "_", " ", "_").Replace(t.Name()))
			if err := s.KeepLogs(dir); err != nil {
				t.Logf("%v", err)
			} else {
				t.Logf("the logs are kept in %s", dir)
			}
		}
		if err := s.Close(); err != nil {
			t.Logf("%v", err)
		}
	})
}
