package servers

import (
	"os/exec"
	"runtime"
	"sync"
)

// spawner starts child processes, all from one operating system thread that
// lives as long as this process does. The kernel delivers Pdeathsig when the
// thread that made the child ends, and the Go runtime ends threads as it likes.
type spawner struct{ requests chan spawnRequest }

type spawnRequest struct {
	command *exec.Cmd
	result  chan<- error
}

// processSpawner returns the process's one spawner. A process has one for the
// same reason that it has one parent: the thread stands for the process's life.
var processSpawner = sync.OnceValue(func() *spawner {
	s := &spawner{requests: make(chan spawnRequest)}
	go s.run()
	return s
})

// run never returns: its end would kill every child.
func (s *spawner) run() {
	runtime.LockOSThread()
	for request := range s.requests {
		request.result <- request.command.Start()
	}
}

// start starts the command. The caller waits for it, from any goroutine.
func (s *spawner) start(command *exec.Cmd) error {
	result := make(chan error, 1)
	s.requests <- spawnRequest{command, result}
	return <-result
}
