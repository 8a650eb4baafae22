// Package servers runs real PostgreSQL, Kafka, RabbitMQ and PgBouncer servers
// for tests, the demo and benchmarks, without containers.
//
// The programs come from a download cache outside the source tree (see
// CacheDir and Deps) or from the operating system's packages. Every server
// listens on 127.0.0.1 only, on ports of its own, and keeps its data in a
// scratch folder of its own, so that any number of them run side by side and
// beside whatever the machine runs already.
//
// Nothing outlives the process that started it: Close stops a server and
// removes its folder, and should the process die before that, by whatever
// signal, the kernel kills the servers with it and the next process that uses
// this package removes the folders they left.
//
// As root, PostgreSQL and PgBouncer, which refuse to be root, run as nobody.
//
// The package needs Linux. Its values may be used from several goroutines;
// the methods that start and stop one server exclude each other.
package servers
