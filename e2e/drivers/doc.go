// Package drivers tests the outbox library with the drivers and poolers that
// the main module does not depend on.
package drivers
