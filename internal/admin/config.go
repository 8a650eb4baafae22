package admin

import (
	"crypto/tls"
	"errors"
	"net"
	"strconv"
	"strings"

	"github.com/outboxrelay/relay/internal/setting"
)

// Config is the section http of the configuration file; an empty Listen turns
// the listener off.
type Config struct {
	Listen string `yaml:"listen"`
	// Token, unless empty, is asked for, as a bearer token, by whatever tells more
	// than whether the relay lives and is ready.
	Token     string `yaml:"token"`
	TokenFile string `yaml:"token_file"`
	TLS       TLS    `yaml:"tls"`
	// Pprof serves profiles below /debug/pprof.
	Pprof bool `yaml:"pprof"`
}

// TLS makes the listener speak TLS; both files or neither.
type TLS struct {
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

// Defaults returns the configuration that an empty mapping stands for.
func Defaults() Config { return Config{Listen: "127.0.0.1:9464"} }

// Validate reports every mistake, as joined errors of type *setting.Error. It
// reads the certificate's files.
func (c Config) Validate() error {
	return errors.Join(c.validateListen(), c.validateToken(), c.TLS.validate())
}

func (c Config) validateListen() error {
	if c.Listen == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(c.Listen)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err == nil {
		return nil
	}
	return &setting.Error{Path: "listen", Value: c.Listen, Problem: ` is not host:port; expected for example 127.0.0.1:9464 or :9464, or "" to turn it off`}
}

func (c Config) validateToken() error {
	if !strings.ContainsFunc(c.Token, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return nil
	}
	return setting.Errorf("token", "it holds a space or a control character, which a bearer token cannot")
}

func (t TLS) validate() error {
	if (t.CertFile == "") != (t.KeyFile == "") {
		return setting.Errorf("tls", "cert_file and key_file belong together: give both or neither")
	}
	if _, err := t.certificate(); err != nil {
		return setting.Errorf("tls", "%v", err)
	}
	return nil
}

// certificate loads the files, and is nil without any.
func (t TLS) certificate() (*tls.Certificate, error) {
	if t.CertFile == "" {
		return nil, nil
	}
	certificate, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, err
	}
	return &certificate, nil
}
