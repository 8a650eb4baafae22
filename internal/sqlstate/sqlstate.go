// Package sqlstate finds PostgreSQL's own code in an error, for the packages that
// take errors of any driver.
package sqlstate

import "errors"

// Of returns the SQLSTATE of a driver's error, wrapped or not, and an empty string
// where there is none. *pgconn.PgError and lib/pq's *Error both have it.
func Of(err error) string {
	if state, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err); ok {
		return state.SQLState()
	}
	return ""
}
