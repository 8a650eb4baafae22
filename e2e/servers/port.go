package servers

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports are taken from below the ephemeral range, which begins at 32768: an
// outgoing connection that had the port as its source would block a server
// from binding it for a minute.
const (
	firstPort = 10000
	lastPort  = 32767
)

// port is a TCP port of 127.0.0.1 that this process has to itself among all
// that use this package, also while nothing listens on it, so that a server
// comes back on the port that it had.
type port struct {
	number int
	// claim is an abstract socket named after the port: the kernel frees it
	// with the process, whatever becomes of that.
	claim net.Listener
}

// takePort finds a free port.
func takePort() (*port, error) {
	for range 1000 {
		number := firstPort + rand.IntN(lastPort-firstPort+1)
		claim, err := net.Listen("unix", "@outbox-relay-port-"+strconv.Itoa(number))
		if err != nil {
			continue
		}
		probe, err := net.Listen("tcp", address(number))
		if err != nil {
			_ = claim.Close()
			continue
		}
		if err := probe.Close(); err != nil {
			_ = claim.Close()
			continue
		}
		return &port{number, claim}, nil
	}
	return nil, fmt.Errorf("found no free TCP port between %d and %d on 127.0.0.1 in 1000 tries", firstPort, lastPort)
}

func (p *port) String() string { return strconv.Itoa(p.number) }

func (p *port) address() string { return address(p.number) }

func (p *port) release() { _ = p.claim.Close() }

func address(number int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(number)) }

// takePorts finds several free ports, all or none.
func takePorts(n int) ([]*port, error) {
	var ports []*port
	for range n {
		p, err := takePort()
		if err != nil {
			for _, taken := range ports {
				taken.release()
			}
			return nil, err
		}
		ports = append(ports, p)
	}
	return ports, nil
}
