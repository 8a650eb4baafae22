package servers

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	scratchPrefix = "outbox-relay-"
	memoryDir     = "/dev/shm"
	// memoryNeeded is the free space below which data goes to disk instead:
	// containers often have a /dev/shm of 64 MB.
	memoryNeeded = 2 << 30
)

// scratch is a folder of one server, removed with it. The process holds a lock
// on a file in it, by which others see that it is in use.
type scratch struct {
	dir  string
	lock *os.File
}

// scratchPlace is the folder that scratch folders are made in: in memory when
// there is enough, unless the disk is asked for.
func scratchPlace(onDisk bool, dir string) string {
	switch {
	case onDisk && dir != "":
		return dir
	case !onDisk && memoryFree() >= memoryNeeded:
		return memoryDir
	}
	return os.TempDir()
}

// newScratch makes a folder named after the server in parent, and removes what
// dead processes left there.
func newScratch(name, parent string) (*scratch, error) {
	sweep(parent)
	dir, err := os.MkdirTemp(parent, scratchPrefix+name+"-")
	if err != nil {
		return nil, fmt.Errorf("making a scratch folder for %s: %w", name, err)
	}
	s := &scratch{dir: dir}
	if err := s.prepare(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("scratch folder of %s: %w", name, err)
	}
	return s, nil
}

func (s *scratch) prepare() error {
	// Servers that run as nobody pass through.
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return err
	}
	if err := checkReachable(s.dir); err != nil {
		return fmt.Errorf("%w; set TMPDIR to another folder", err)
	}
	lock, err := os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	s.lock = lock
	return nil
}

func (s *scratch) path(elements ...string) string {
	return filepath.Join(append([]string{s.dir}, elements...)...)
}

func (s *scratch) remove() error {
	err := os.RemoveAll(s.dir)
	_ = s.lock.Close()
	return err
}

// sweep removes the scratch folders of processes that died. Folders younger
// than a minute are left, as their owner may not have locked them yet, and so
// are those of other users.
func sweep(parent string) {
	locks, err := filepath.Glob(filepath.Join(parent, scratchPrefix+"*", "lock"))
	if err != nil {
		return
	}
	for _, path := range locks {
		info, err := os.Stat(path)
		if err != nil || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = unmountDisk(filepath.Dir(path))
			_ = os.RemoveAll(filepath.Dir(path))
		}
		_ = file.Close()
	}
}

func memoryFree() uint64 {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(memoryDir, &stat); err != nil {
		return 0
	}
	return stat.Bavail * uint64(stat.Bsize)
}
