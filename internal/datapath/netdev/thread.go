package netdev

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Throwaway runs f, as go does, on a thread that ends with it: f may leave the namespaces of the process. It is never the first thread of the
// process, which would not end: who joins the namespaces of a process, such as kubectl exec, joins those of its first thread.
func Throwaway(f func()) {
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		defer runtime.UnlockOSThread()
		done := make(chan struct{})
		go func() { // on another thread: this goroutine holds the first one
			defer close(done)
			runtime.LockOSThread()
			f()
		}()
		<-done
	}()
}
