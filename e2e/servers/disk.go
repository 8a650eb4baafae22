package servers

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// ErrNoDisk says that a server cannot have a disk of its own here: mounting a
// file system needs root with the capability to do so.
var ErrNoDisk = errors.New("a disk of its own for a server needs root and the right to mount a tmpfs")

const (
	diskFolder = "disk"
	// ballast is the file that fills the disk.
	ballast = "ballast"
)

// mountDisk mounts a file system of so many megabytes in the scratch folder,
// which the server's user owns. It goes with the folder.
func (i *instance) mountDisk(megabytes int) error {
	dir := i.scratch.path(diskFolder)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("%s's disk: %w", i.name, err)
	}
	err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_NODEV|syscall.MS_NOSUID, fmt.Sprintf("size=%dm,mode=0755", megabytes))
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("%w: %w", ErrNoDisk, err)
	}
	if err != nil {
		return fmt.Errorf("mounting %s's disk on %s: %w", i.name, dir, err)
	}
	i.mounted = true
	return nil
}

// unmountDisk lets go of the disk, if a scratch folder has one.
func unmountDisk(scratch string) error {
	// Detached, it goes when the last file in it is closed.
	err := syscall.Unmount(filepath.Join(scratch, diskFolder), syscall.MNT_DETACH)
	if err == nil || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EPERM) {
		return nil // EINVAL: nothing is mounted there
	}
	return fmt.Errorf("unmounting the disk in %s: %w", scratch, err)
}

// FillDisk leaves not a byte on the server's disk; only for servers that were
// started with one.
func (i *instance) FillDisk() error {
	file, err := os.Create(i.scratch.path(diskFolder, ballast))
	if err != nil {
		return fmt.Errorf("filling %s's disk: %w", i.name, err)
	}
	defer func() { _ = file.Close() }()
	// Writing, unlike allocating, ends with what there is and no less.
	for block := make([]byte, 1<<20); len(block) > 0; {
		switch n, err := file.Write(block); {
		case errors.Is(err, syscall.ENOSPC) && n == 0 && len(block) == 1:
			return nil
		case errors.Is(err, syscall.ENOSPC):
			block = block[:max(1, len(block)/2)]
		case err != nil:
			return fmt.Errorf("filling %s's disk: %w", i.name, err)
		}
	}
	return nil
}

// EmptyDisk gives back what FillDisk took.
func (i *instance) EmptyDisk() error {
	if err := os.Remove(i.scratch.path(diskFolder, ballast)); err != nil {
		return fmt.Errorf("making space on %s's disk: %w", i.name, err)
	}
	return nil
}

// DiskUsed is how many bytes the server itself has on its disk.
func (i *instance) DiskUsed() (int64, error) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(i.scratch.path(diskFolder), &stat); err != nil {
		return 0, err
	}
	used := int64(stat.Blocks-stat.Bfree) * stat.Bsize
	if info, err := os.Stat(i.scratch.path(diskFolder, ballast)); err == nil {
		used -= info.Size()
	}
	return used, nil
}
