package config

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	applicationName = "outbox-relay"
	connectTimeout  = 5 * time.Second
)

// startupParameters are what each connection asks for, spelt as the server
// reports it: a pooler that compares the two would set it again each time. They
// win over the settings of the role and of the database, and PgBouncer keeps
// them for each client. Names and keys leave for the broker as they come from
// the server, so its text is UTF-8; times are read from text.
var startupParameters = map[string]string{
	"client_encoding": "UTF8",
	"DateStyle":       "ISO, MDY",
}

// PoolConfig returns what pgxpool connects with: URL and Password, with what
// they leave open from the PG* environment variables and the password file, as
// libpq does; at most MaxConnections connections; 5 s for each attempt and
// application_name outbox-relay unless the URL or the environment has others.
//
// Statements are neither prepared nor described by default
// ([pgx.QueryExecModeExec]), and beside application_name only those startup
// parameters are set that PgBouncer knows, client_encoding and DateStyle, so that
// a pooler in transaction mode may be in between. These two the URL cannot change.
//
// Errors name no part of the URL.
func (d Database) PoolConfig() (*pgxpool.Config, error) {
	if err := checkURL(d.URL); err != nil {
		return nil, err
	}
	pool, err := pgxpool.ParseConfig(d.URL)
	if err != nil {
		return nil, parseError(err)
	}
	if err := d.apply(pool.ConnConfig); err != nil {
		return nil, err
	}
	if d.MaxConnections > 0 {
		pool.MaxConns = int32(min(d.MaxConnections, maxConnections))
	}
	return pool, nil
}

// DirectConfig returns what a single connection that bypasses a pooler is made
// with: as PoolConfig, but from DirectURL when that is set.
func (d Database) DirectConfig() (*pgx.ConnConfig, error) {
	url := d.DirectURL
	if url == "" {
		url = d.URL
	}
	direct := Database{URL: url, Password: d.Password}
	// pgxpool's parser also takes away its own pool_* parameters, which would
	// otherwise be sent to the server.
	pool, err := direct.PoolConfig()
	if err != nil {
		return nil, err
	}
	return pool.ConnConfig, nil
}

func (d Database) apply(connection *pgx.ConnConfig) error {
	for name := range connection.RuntimeParams {
		if !isKeyword(name) {
			return errInvalidKeywords
		}
	}
	// The rest of a password with an unescaped @ or : ends up in the host, and
	// with it in every error of the network.
	hosts := []string{connection.Host}
	for _, fallback := range connection.Fallbacks {
		hosts = append(hosts, fallback.Host)
	}
	for _, host := range hosts {
		if strings.ContainsAny(host, "@? ") && !strings.HasPrefix(host, "/") {
			return errInvalidURL
		}
	}
	if d.Password != "" {
		connection.Password = d.Password
	}
	if connection.RuntimeParams["application_name"] == "" {
		connection.RuntimeParams["application_name"] = applicationName
	}
	for name, value := range startupParameters {
		maps.DeleteFunc(connection.RuntimeParams, func(other, _ string) bool { return strings.EqualFold(other, name) })
		connection.RuntimeParams[name] = value
	}
	if connection.ConnectTimeout == 0 {
		connection.ConnectTimeout = connectTimeout
	}
	if connection.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement {
		connection.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
	return nil
}

var (
	errInvalidURL      = errors.New("is not a valid postgres:// URL; characters such as @ : / ? # % in the password must be percent-encoded, or use database.password")
	errInvalidKeywords = errors.New("is malformed; expected postgres://user@host:port/database, or key=value pairs with values in '…' where they have spaces")
)

// checkURL refuses what pgx would take for keywords and values.
func checkURL(url string) error {
	scheme, _, found := strings.Cut(url, "://")
	if found && isKeyword(scheme) && scheme != "postgres" && scheme != "postgresql" {
		return errors.New("has an unknown scheme; expected postgres:// or postgresql://")
	}
	return nil
}

// parseError says why a connection string is refused without repeating any of
// it: pgx masks passwords only as well as it can, and its error holds the
// whole string.
func parseError(err error) error {
	failure, ok := errors.AsType[*pgconn.ParseConfigError](err)
	if !ok {
		return errInvalidKeywords
	}
	text := failure.Error()
	has := func(reason string) bool { return strings.Contains(text, "`: "+reason) }
	if has("failed to parse as URL") {
		return errInvalidURL
	}
	if has("failed to parse as keyword/value") {
		return errInvalidKeywords
	}
	if has("invalid port") {
		return fmt.Errorf("has an invalid port; %w", hintOf(failure.ConnString))
	}
	if has("failed to configure TLS") {
		return errors.New("has TLS settings that do not work: sslmode must be disable, allow, prefer, require, verify-ca or verify-full, and the files of sslrootcert, sslcert and sslkey must be readable PEM files that fit together")
	}
	if has("failed to read service") {
		return errors.New("names a service that is not in the service file, or the file is unreadable")
	}
	for _, parameter := range []string{
		"connect_timeout", "sslcertmode", "target_session_attrs", "min_protocol_version", "max_protocol_version",
		"channel_binding", "require_auth", "default_query_exec_mode", "statement_cache_capacity",
		"description_cache_capacity", "pool_max_conns", "pool_min_conns", "pool_min_idle_conns",
		"pool_max_conn_lifetime", "pool_max_conn_idle_time", "pool_health_check_period",
		"pool_max_conn_lifetime_jitter", "pool_ping_timeout",
	} {
		for _, reason := range []string{"invalid ", "unknown ", "cannot parse ", ""} {
			if has(reason + parameter) {
				return fmt.Errorf("has an invalid value of %s", parameter)
			}
		}
	}
	return hintOf(failure.ConnString)
}

func hintOf(connString string) error {
	if strings.Contains(connString, "://") {
		return errInvalidURL
	}
	return errInvalidKeywords
}
