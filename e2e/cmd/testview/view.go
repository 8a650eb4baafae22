package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// view turns events into lines.
type view struct {
	out   io.Writer
	began time.Time
	// printed is what each test, or package, printed so far.
	printed                 map[testName][]string
	passed, failed, skipped int
	packagesFailed          int
}

// testName is a test in its package, or a package with an empty test.
type testName struct{ pkg, test string }

func newView(out io.Writer) *view {
	return &view{out: out, began: time.Now(), printed: map[testName][]string{}}
}

func (v *view) show(e event) {
	name := testName{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(v.out, e.Output)
	case "run":
		if !strings.Contains(e.Test, "/") {
			fmt.Fprintf(v.out, "=== RUN   %s\n", e.Test)
		}
	case "output":
		if !framing(e.Output) {
			v.printed[name] = append(v.printed[name], e.Output)
		}
	case "pass", "fail", "skip":
		if e.Test == "" {
			v.endPackage(name, e)
		} else {
			v.endTest(name, e)
		}
		delete(v.printed, name)
	}
}

func (v *view) endTest(name testName, e event) {
	// What the parts of a test are called matters when they fail.
	top := !strings.Contains(e.Test, "/")
	switch e.Action {
	case "pass":
		v.passed++
		if top {
			fmt.Fprintf(v.out, "--- PASS: %s (%.2fs)\n", e.Test, e.Elapsed)
		}
	case "fail":
		v.failed++
		fmt.Fprintf(v.out, "--- FAIL: %s (%.2fs)\n", e.Test, e.Elapsed)
		v.print(name)
	case "skip":
		v.skipped++
		fmt.Fprintf(v.out, "--- SKIP: %s (%.2fs)\n", e.Test, e.Elapsed)
		v.print(name)
	}
}

func (v *view) endPackage(name testName, e event) {
	switch e.Action {
	case "pass":
		fmt.Fprintf(v.out, "ok  \t%s\t%.3fs\n", e.Package, e.Elapsed)
	case "fail":
		v.packagesFailed++
		v.print(name)
		fmt.Fprintf(v.out, "FAIL\t%s\t%.3fs\n", e.Package, e.Elapsed)
	}
}

func (v *view) print(name testName) {
	for _, line := range v.printed[name] {
		fmt.Fprint(v.out, line)
	}
}

// framing is what go test prints about the progress, which the view does itself.
func framing(line string) bool {
	line = strings.TrimLeft(line, " ")
	for _, prefix := range []string{"=== RUN", "=== PAUSE", "=== CONT", "=== NAME", "--- PASS", "--- FAIL", "--- SKIP", "ok  \t", "FAIL\t", "?   \t"} {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return line == "PASS\n" || line == "FAIL\n"
}

// finish writes the tally and says whether all is well, which with some needs
// a test that passed.
func (v *view) finish(some bool) bool {
	fmt.Fprintf(v.out, "%d tests passed, %d failed, %d skipped in %v\n",
		v.passed, v.failed, v.skipped, time.Since(v.began).Round(100*time.Millisecond))
	if v.packagesFailed > 0 {
		fmt.Fprintf(v.out, "FAIL: %d packages\n", v.packagesFailed)
	}
	return v.failed == 0 && v.packagesFailed == 0 && (v.passed > 0 || !some)
}
