package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzParse feeds any text with an environment in which every variable is
// secret: nothing may panic, no error and no printed configuration may show
// the secret, and what was printed must load again.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range append(files, exampleFile) {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	f.Add(everySecret)
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "4n4r") || strings.Contains(text, "_file: /") || strings.Contains(text, "ssl") {
			return
		}
		lookup := func(name string) (string, bool) { return canary, name != "NOT_SET" }
		config, err := Parse("relay.yaml", []byte(text), lookup)
		if err != nil {
			if strings.Contains(err.Error(), canary) {
				t.Errorf("%v", err)
			}
			for line := range strings.Lines(err.Error()) {
				if !strings.HasPrefix(line, "relay.yaml:") {
					t.Errorf("no file and line: %q", line)
				}
			}
			return
		}
		var out strings.Builder
		if err := config.Print(&out); err != nil {
			t.Fatal(err)
		}
		if _, err := Parse("printed.yaml", []byte(out.String()), environment{}.lookup); err != nil {
			t.Errorf("printed:\n%s\n%v", out.String(), err)
		}
	})
}
