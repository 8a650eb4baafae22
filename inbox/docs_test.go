package inbox_test

import (
	"os"
	"strings"
	"testing"
)

// example returns the SQL example of docs/inbox.md that holds a text.
func example(t *testing.T, holds string) string {
	t.Helper()
	page, err := os.ReadFile("../docs/inbox.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(page), "```sql\n")[1:] {
		if sql, _, _ := strings.Cut(part, "```"); strings.Contains(sql, holds) {
			return sql
		}
	}
	t.Fatalf("docs/inbox.md has no SQL example with %q", holds)
	return ""
}
