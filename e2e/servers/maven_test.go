package servers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckSum(t *testing.T) {
	t.Parallel()
	const sum = "d29eae1372c396247daf62745d10c3513eb46f9f232b4527e0f5298e5dca5cd0"
	path := filepath.Join(t.TempDir(), "archive.tar.gz")
	for content, same := range map[string]bool{"released": true, "another": false} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		err := checkSum(path, sum)
		if same && err != nil {
			t.Errorf("the file itself: %v", err)
		}
		if !same && (err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), sum)) {
			t.Errorf("expected an error that names the file and the sum, got %v", err)
		}
	}
}
