package source

// Exclusion says which pending rows a claim leaves where they are for the time being, besides
// those that the tables hold back. The zero value leaves out nothing.
type Exclusion struct {
	// Holds reports whether a row waits; nil: none does. It decides alike for all rows of
	// one topic and key, and it is called once for each row that a claim reads. A row that it once held it
	// holds as long as Shrunk is the same: the claim may have passed others of its key.
	Holds func(row *Row) bool
	// Shrunk changes whenever rows that waited do no longer.
	Shrunk uint64
}

// Row is what an Exclusion knows of a pending row. Its key lives as long as the call.
type Row struct {
	ID          int64
	Topic, Type string
	// Key is nil for SQL's null.
	Key []byte
}

// Key is one ordered sequence: the rows of one topic with one key.
type Key struct {
	Topic, Key string
}
