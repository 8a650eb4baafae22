package source_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/internal/source"
)

// BenchmarkClaimAndSettle drains rows without a broker: what claiming and
// settling cost, ours and the server's. One operation is one row.
func BenchmarkClaimAndSettle(b *testing.B) {
	for _, on := range []source.OnPublished{source.Mark, source.Delete} {
		for _, size := range []int{1000, 4000} {
			b.Run(fmt.Sprintf("%s/%d", on, size), func(b *testing.B) {
				db := pgtest.NewOutbox(b)
				db.Exec(b, fmt.Sprintf(`INSERT INTO outbox (topic, key, type, payload) SELECT 't', 'key-' || i %% 1000, 'Measured', convert_to(repeat('x', 200), 'UTF8') FROM generate_series(1, %d) i`, b.N),
					`ANALYZE outbox`)
				c := claimer(db.Pool, func(o *source.Options) { o.BatchSize = size; o.OnPublished = on })
				before := serverCPU(b, db)
				b.ReportAllocs()
				b.ResetTimer()
				for rows := 0; rows < b.N; {
					batch, err := c.Claim(b.Context(), source.Exclusion{})
					if err != nil {
						b.Fatal(err)
					}
					if batch == nil {
						b.Fatal("rows are missing")
					}
					rows += len(batch.Messages())
					if err := batch.Settle(b.Context(), nil); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				if cpu := serverCPU(b, db) - before; cpu > 0 {
					b.ReportMetric(cpu*1e6/float64(b.N), "server-us/op")
				}
			})
		}
	}
}

// serverCPU is the CPU time of the server's sessions in seconds, 0 where the
// server is not on this machine.
func serverCPU(b *testing.B, db *pgtest.Database) float64 {
	rows, err := db.Pool.Query(b.Context(), `SELECT pid FROM pg_stat_activity WHERE datname = current_database()`)
	if err != nil {
		b.Fatal(err)
	}
	defer rows.Close()
	total := 0
	for rows.Next() {
		var pid int
		if err := rows.Scan(&pid); err != nil {
			b.Fatal(err)
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		user, _ := strconv.Atoi(fields[11])
		system, _ := strconv.Atoi(fields[12])
		total += user + system
	}
	return float64(total) / 100
}
