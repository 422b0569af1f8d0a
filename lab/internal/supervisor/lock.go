package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

const lockFile = "supervisor.lock"

// takeLock makes this process the one supervisor of a lab and writes its number, as the machine sees it, into the locked file.
// The lock ends with the process, so the number is never another process's.
func takeLock(state string, pid int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(state, lockFile), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another supervisor holds %s: %w", f.Name(), err), f.Close())
	}
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	_, err = f.WriteAt([]byte(strconv.Itoa(pid)), 0)
	return f, err
}

// Alive returns the process number of a lab's supervisor, also of one that is still starting; 0 when there is none.
func Alive(state string) (int, error) {
	f, err := os.Open(filepath.Join(state, lockFile))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		return 0, nil // nobody holds it; closing the file gives it back
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, err
	}
	content, err := io.ReadAll(f)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(string(content))
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return pid, nil
}
