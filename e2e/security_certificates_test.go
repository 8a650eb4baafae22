package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// nobody runs PostgreSQL where this process is root, and has to own its key.
const nobody = 65534

// authority signs certificates into a folder that servers can read.
type authority struct {
	t           *testing.T
	dir, file   string
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	dir, err := os.MkdirTemp("", "outbox-relay-tls-")
	try(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	try(t, os.Chmod(dir, 0o755))
	a := &authority{t: t, dir: dir, file: filepath.Join(dir, "ca.pem")}
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	try(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	try(t, err)
	a.certificate, err = x509.ParseCertificate(der)
	try(t, err)
	a.write(a.file, "CERTIFICATE", der)
	return a
}

// write makes a PEM file that only its owner, the server's user, can read.
func (a *authority) write(path, kind string, der []byte) {
	a.t.Helper()
	try(a.t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	if os.Geteuid() == 0 {
		try(a.t, os.Chown(path, nobody, nobody))
	}
}

// issue writes a certificate of the name, for the hosts, that ends at the time,
// and its key, over those of the same file name.
func (a *authority) issue(file, name string, hosts []string, until time.Time) (certificate, key string) {
	a.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	try(a.t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotBefore:   time.Now().Add(-24 * time.Hour), NotAfter: until,
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &private.PublicKey, a.key)
	try(a.t, err)
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	try(a.t, err)
	certificate, key = filepath.Join(a.dir, file+".pem"), filepath.Join(a.dir, file+".key")
	a.write(certificate, "CERTIFICATE", der)
	a.write(key, "PRIVATE KEY", encoded)
	return certificate, key
}
