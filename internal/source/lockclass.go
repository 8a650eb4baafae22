package source

import "hash/crc32"

// LockClass is the class of the advisory locks that stand for the shards of one
// outbox; it tells them from those of another. Whoever holds lock (class, shard)
// owns the keys of the shard: no Claimer, but for ordering none, has rows of
// them under way.
func LockClass(schema, table string) int32 {
	return int32(crc32.ChecksumIEEE([]byte("outbox-relay:" + newStatements(schema, table).outbox))) //nolint:gosec // the bits matter, not the sign
}

// pipelineClass is the class of the locks that the Claimers of one pipeline of an outbox take besides: they
// have the table's in common.
func pipelineClass(schema, table, pipeline string) int32 {
	return int32(crc32.ChecksumIEEE([]byte("outbox-relay:" + newStatements(schema, table).outbox + ":" + pipeline))) //nolint:gosec // the bits matter, not the sign
}
