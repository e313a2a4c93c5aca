package native

import (
	"context"
	"os/exec"
	"runtime"
	"syscall"
)

// startTied starts a child that dies with this process, however it dies. The kernel ties a child to the thread that started it, so that
// thread is kept until ctx ends.
func startTied(ctx context.Context, cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			<-ctx.Done()
		}
	}()
	return <-started
}
