// Package proxy is a TCP proxy that breaks connections between the relay and its
// servers, at the moments that matter: in the middle of a frame, or after a
// request reached the server and before its answer reached the client.
//
// It is our own because those moments depend on what a connection carries.
// Toxiproxy, which is what one would take, has toxics for a whole direction of
// all connections, counted from each connection's beginning: it can swallow every
// answer from now on, but not the answer to the next large request, nor cut that
// request after its first 200 bytes while the metadata requests beside it pass,
// nor tell a test that it just did, so that the test could only sleep and hope.
//
// A proxy knows no protocol. It counts a burst: the bytes that went in one
// direction since the last byte in the other. Where a client awaits each answer,
// as with Kafka and PostgreSQL, a burst is a request or an answer, and its size
// tells a batch of records from the small talk beside it.
//
// The states, which exclude each other and hold for all connections, those to
// come included:
//
//	Pass      forward, slowed by Delay and Bandwidth
//	Stall     nothing moves and nothing is lost, as behind a frozen host
//	Freeze    both directions are swallowed: the peer of a half-open connection
//	Swallow   one direction is swallowed: requests arrive, answers do not
//	Refuse    nobody listens, as when the server's process has ended
//
// A connection that lost bytes can never go on: Pass cuts it. Bytes that came
// before a stall go on after it.
//
// Cut and HalfOpen break the connections that there are, CutAfter and DropAnswer
// a single one, while new ones pass.
package proxy
