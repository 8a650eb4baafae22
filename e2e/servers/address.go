package servers

// TakeAddress returns an address on 127.0.0.1, host:port, that no server of
// this package gets, in any process, until release is called, so that a server
// of the caller's can come back to it.
func TakeAddress() (address string, release func(), err error) {
	p, err := takePort()
	if err != nil {
		return "", nil, err
	}
	return p.address(), p.release, nil
}
