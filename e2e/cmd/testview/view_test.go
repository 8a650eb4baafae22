package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// goTest runs a package with the given test file and shows what go test says.
func goTest(t *testing.T, source string, some bool) (shown string, ok bool) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"go.mod": "module example.com/seen\n", "seen_test.go": source} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.CommandContext(t.Context(), "go", "test", "-json", "./...")
	command.Dir = dir
	command.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	// It fails when a test does.
	output, err := command.Output()
	if err != nil && len(output) == 0 {
		t.Fatal(err)
	}
	var out strings.Builder
	v := newView(&out)
	if err := v.read(strings.NewReader(string(output))); err != nil {
		t.Fatal(err)
	}
	ok = v.finish(some)
	return out.String(), ok
}

func TestView(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		source  string
		some    bool
		ok      bool
		want    []string
		wantNot []string
	}{
		"passing": {
			source:  "package seen\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Log(\"noise\"); t.Run(\"part\", func(*testing.T) {}) }\n",
			ok:      true,
			want:    []string{"=== RUN   TestA\n", "--- PASS: TestA (", "ok  \texample.com/seen\t", "2 tests passed, 0 failed, 0 skipped"},
			wantNot: []string{"noise", "part"},
		},
		"failing": {
			source: "package seen\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Run(\"part\", func(t *testing.T) { t.Error(\"the reason\") }) }\n",
			want:   []string{"--- FAIL: TestA/part (", "the reason", "FAIL\texample.com/seen\t", "0 tests passed, 2 failed"},
		},
		"skipped": {
			source: "package seen\nimport \"testing\"\nfunc TestA(t *testing.T) { t.Skip(\"the reason\") }\n",
			ok:     true,
			want:   []string{"--- SKIP: TestA", "the reason", "0 tests passed, 0 failed, 1 skipped"},
		},
		"nothing ran": {
			source: "package seen\n",
			some:   true,
			want:   []string{"0 tests passed"},
		},
		"panicking": {
			source: "package seen\nimport \"testing\"\nfunc TestA(*testing.T) { panic(\"the reason\") }\n",
			want:   []string{"panic: the reason", "FAIL\texample.com/seen\t"},
		},
		"not compiling": {
			source: "package seen\nfunc f() { undefined() }\n",
			want:   []string{"undefined: undefined", "FAIL: 1 packages"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			shown, ok := goTest(t, test.source, test.some)
			if ok != test.ok {
				t.Errorf("success %v, want %v", ok, test.ok)
			}
			for _, want := range test.want {
				if !strings.Contains(shown, want) {
					t.Errorf("no %q", want)
				}
			}
			for _, want := range test.wantNot {
				if strings.Contains(shown, want) {
					t.Errorf("unwanted %q", want)
				}
			}
			if t.Failed() {
				t.Logf("shown:\n%s", shown)
			}
		})
	}
}

func TestLinesThatAreNoEvents(t *testing.T) {
	t.Parallel()
	event, err := json.Marshal(event{Action: "run", Test: "TestA"})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := newView(&out).read(strings.NewReader("plain\n" + string(event) + "\nlast")); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "plain\n=== RUN   TestA\nlast"; got != want {
		t.Errorf("shown %q, want %q", got, want)
	}
}
