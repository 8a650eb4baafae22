package inbox_test

import (
	"testing"
	"time"

	"github.com/outboxrelay/relay/inbox"
)

// A publication FOR ALL TABLES, such as Debezium makes for another purpose, hinders
// no consumer.
func TestUnderAPublicationForAllTables(t *testing.T) {
	db := newDatabase(t)
	db.Exec(t, `ALTER TABLE effects ADD PRIMARY KEY (n)`)
	db.Exec(t, `CREATE PUBLICATION everything FOR ALL TABLES`)
	box := &inbox.Inbox{Consumer: "c", Order: inbox.OrderReport, Retention: time.Nanosecond}
	for sequence := range int64(3) {
		m := newMessage()
		m.Topic, m.Key, m.Sequence = "orders", []byte("k"), sequence+1
		if result, err := box.Process(t.Context(), db.Pool, m, apply); result != inbox.Processed || err != nil {
			t.Fatal(result, err)
		}
	}
	if n, err := box.Prune(t.Context(), db.Pool); n != 3 || err != nil {
		t.Errorf("%d ids pruned, %v", n, err)
	}
	if n := db.Int(t, `SELECT count(*) FROM inbox_order`); n != 0 {
		t.Errorf("%d keys are left", n)
	}
}
