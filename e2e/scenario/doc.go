// Package scenario is what the end-to-end tests share: a stage with a database
// and a broker of its own, relay processes that can be killed, frozen and
// stopped, a workload that writes down the truth in the very transactions that
// it tests, and a check that compares the truth with what the broker holds.
//
// The invariants have letters:
//
//	L  no committed row is missing from the broker
//	P  no row that was rolled back or cancelled is in it
//	O  first occurrences ascend in id per topic and key
//	M  a row that is marked, or deleted as published, is in the broker
//	D  duplicates are at most what was in flight
//	E  every committed row has one effect of a consumer with an inbox, no other any
//	C  the broker has the key, the id and the bytes that were committed
//
// Everything random comes from a seed that a failing test prints;
// RELAY_TEST_SEED repeats it.
package scenario
