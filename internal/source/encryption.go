package source

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// explainTLS says what is wrong where TLS with the server could not be agreed
// on, and false where that is not the matter.
func explainTLS(err error) (Problem, bool) {
	const kind = "tls"
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch {
		case strings.Contains(pgErr.Message, "client certificate"):
			return Problem{kind, "the server wants a client certificate: set sslcert and sslkey in database.url, to one that it trusts"}, true
		case pgErr.Code == "28000" && strings.Contains(pgErr.Message, "no encryption"):
			return Problem{kind, "the server may want TLS from this user: set sslmode=verify-full and sslrootcert in database.url, or check its pg_hba.conf"}, true
		}
		return Problem{}, false
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return Problem{kind, "the server's certificate is signed by an authority that is not trusted: set sslrootcert in database.url to that authority's certificate"}, true
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return Problem{kind, "the server's certificate is for another name: use a name in database.url that it has"}, true
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if invalid.Reason == x509.Expired {
			return Problem{kind, "the server's certificate has expired or is not valid yet: renew it, or correct this machine's clock"}, true
		}
		return Problem{kind, "the server's certificate is not valid: replace it"}, true
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok || strings.Contains(err.Error(), "remote error: tls:") {
		return Problem{kind, "the server ended the TLS handshake: check that it trusts the authority of sslcert in database.url, and the versions of TLS that it allows"}, true
	}
	if strings.Contains(err.Error(), "refused TLS") {
		return Problem{kind, "the server does not offer TLS: turn ssl on there; without it, everything would cross the network in the clear"}, true
	}
	if strings.Contains(err.Error(), "tls:") || strings.Contains(err.Error(), "x509:") {
		return Problem{kind, "check sslmode and sslrootcert in database.url, and the server's certificate"}, true
	}
	return Problem{}, false
}
