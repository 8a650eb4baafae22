package servers

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// certificates are the files of a certificate authority of a server's own, of
// the server and of a client, all as PEM. They are valid for a day.
type certificates struct {
	ca, serverCert, serverKey, clientCert, clientKey string
	// serverPEM has the server's key and then its certificate, as Kafka wants it.
	serverPEM string
}

// makeCertificates writes them into dir. The server's certificate is for
// localhost and 127.0.0.1.
func makeCertificates(dir string) (*certificates, error) {
	c := &certificates{
		ca:         filepath.Join(dir, "ca.pem"),
		serverCert: filepath.Join(dir, "server-cert.pem"),
		serverKey:  filepath.Join(dir, "server-key.pem"),
		serverPEM:  filepath.Join(dir, "server.pem"),
		clientCert: filepath.Join(dir, "client-cert.pem"),
		clientKey:  filepath.Join(dir, "client-key.pem"),
	}
	if err := c.write(); err != nil {
		return nil, fmt.Errorf("making certificates in %s: %w", dir, err)
	}
	return c, nil
}

func (c *certificates) write() error {
	authority, err := newAuthority()
	if err != nil {
		return err
	}
	serverCert, serverKey, err := authority.issue("localhost", x509.ExtKeyUsageServerAuth)
	if err != nil {
		return err
	}
	clientCert, clientKey, err := authority.issue(kafkaClientName, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return err
	}
	for path, content := range map[string][]byte{
		c.ca:         encodeCertificate(authority.certificate.Raw),
		c.serverCert: serverCert,
		c.serverKey:  serverKey,
		c.serverPEM:  append(append([]byte{}, serverKey...), serverCert...),
		c.clientCert: clientCert,
		c.clientKey:  clientKey,
	} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (c *certificates) caFile() string {
	if c == nil {
		return ""
	}
	return c.ca
}

func (c *certificates) clientCertFile() string {
	if c == nil {
		return ""
	}
	return c.clientCert
}

func (c *certificates) clientKeyFile() string {
	if c == nil {
		return ""
	}
	return c.clientKey
}

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := certificateTemplate("Outbox Relay test authority")
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	return &authority{certificate, key}, err
}

// issue returns a certificate and its PKCS#8 key, as PEM.
func (a *authority) issue(name string, usage x509.ExtKeyUsage) (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := certificateTemplate(name)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{usage}
	if usage == x509.ExtKeyUsageServerAuth {
		template.DNSNames = []string{"localhost"}
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &private.PublicKey, a.key)
	if err != nil {
		return nil, nil, err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return encodeCertificate(der), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), nil
}

func certificateTemplate(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
	}
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
