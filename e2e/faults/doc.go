// Package faults plays what goes wrong in production, one scenario each and all
// of it at random, and checks every guarantee after it. Its tests are its only
// content; docs/guarantees.md says which of them proves what.
//
// A fault is a function that breaks something, watches that it took effect and
// what has to hold meanwhile, and puts it right. The scenarios inflict each one
// on two relays under load; the soak inflicts random ones on several relays,
// their database and their broker at the same time:
//
//	go test ./faults                                          # each scenario once
//	go test ./faults -run TestFaults/mix -soak 10m -timeout 0 # the random mix
//	RELAY_TEST_SEED=… go test ./faults -run …                 # the same choices again
//
// The servers are the package's own, shared by the scenarios of a test, which
// therefore run one after the other: PostgreSQL, and three Kafka brokers or a
// RabbitMQ node, each behind a proxy that relays cannot bypass. Relays with two
// sinks have the shared RabbitMQ beside the Kafka brokers, behind a proxy too.
// Scenarios that end a server for good start one for themselves.
package faults
