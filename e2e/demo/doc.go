// Package demo runs the whole thing for everybody to see: a real application
// commits orders, real relays publish them to a real broker while one of them
// is killed every few seconds, and a tally compares what the database
// committed with what the broker holds.
package demo
