package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// cacheVariable overrides where downloads are kept.
const cacheVariable = "RELAY_TEST_CACHE"

// CacheDir is where downloads are kept between runs: $RELAY_TEST_CACHE, else
// outbox-relay in the user's cache folder. For root that is
// /var/cache/outbox-relay: PostgreSQL runs as nobody then, and must reach its
// programs, which a private home does not allow.
func CacheDir() (string, error) {
	if dir := os.Getenv(cacheVariable); dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return "/var/cache/outbox-relay", nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no folder for downloads: %w; set %s to one", err, cacheVariable)
	}
	return filepath.Join(dir, "outbox-relay"), nil
}

// openCache makes the cache folder and says where it is.
func openCache() (string, error) {
	dir, err := CacheDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the download cache: %w; set %s to a folder that can be written", err, cacheVariable)
	}
	if err := checkReachable(dir); err != nil {
		return "", fmt.Errorf("download cache %s: %w; set %s to another folder", dir, err, cacheVariable)
	}
	return dir, nil
}

// lockCache excludes every other process that fills the part of the cache which
// the file path stands for, until the returned function is called. It waits as
// long as ctx allows.
func lockCache(ctx context.Context, path string, out io.Writer) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("locking the cache: %w", err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the cache: %w", err)
	}
	for told := false; ; {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			// Closing releases the lock, as does the end of the process.
			return func() { _ = file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = file.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		if !told {
			progress(out, "waiting for another process, which holds %s", path)
			told = true
		}
		select {
		case <-ctx.Done():
			_ = file.Close()
			return nil, fmt.Errorf("waiting for the lock %s: %w", path, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// install makes the folder target appear at once and complete: make fills a
// folder beside it, which is renamed when make succeeded. A target that exists
// is left as it is. The caller holds the cache's lock.
func install(target string, fill func(dir string) error) error {
	if exists(target) {
		return nil
	}
	parent := filepath.Dir(target)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(parent, ".partial-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := fill(dir); err != nil {
		return err
	}
	return os.Rename(dir, target)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// checkReachable refuses a path that servers which run as nobody could not
// enter. Only root has such servers.
func checkReachable(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	for dir := path; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("%s has mode %04o, which the user nobody (as whom PostgreSQL runs) cannot enter", dir, info.Mode().Perm())
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func progress(out io.Writer, format string, args ...any) {
	fmt.Fprintf(out, "deps: "+format+"\n", args...)
}
