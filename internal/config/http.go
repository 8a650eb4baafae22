package config

import (
	"crypto/tls"
	"net"
	"strconv"
	"strings"
)

func (d *document) validateHTTP(h HTTP) {
	if h.Listen != "" {
		_, port, err := net.SplitHostPort(h.Listen)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			d.errorf("http.listen", `%s is not host:port; expected for example 127.0.0.1:9464 or :9464, or "" to turn it off`, d.show("http.listen", h.Listen))
		}
	}
	if strings.ContainsFunc(h.Token, isSpaceOrControl) {
		d.errorf("http.token", "it holds a space or a control character, which a bearer token cannot")
	}
	if (h.TLS.CertFile == "") != (h.TLS.KeyFile == "") {
		d.errorf("http.tls", "cert_file and key_file belong together: give both or neither")
		return
	}
	if _, err := h.TLS.Certificate(); err != nil {
		d.errorf("http.tls", "%v", err)
	}
}

// Certificate loads the files, and is nil without any.
func (t HTTPTLS) Certificate() (*tls.Certificate, error) {
	if t.CertFile == "" {
		return nil, nil
	}
	certificate, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, err
	}
	return &certificate, nil
}
