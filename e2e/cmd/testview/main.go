// Command testview makes the output of `go test -json` readable: it names each
// top-level test when it begins and when it ends, shows what a test printed
// only if the test failed, says why a test was skipped, and ends with a tally.
// Its exit code is 1 if anything failed, and with -some also if nothing ran.
//
//	go test -json ./... | testview
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"
)

func main() {
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "Usage: go test -json ./... | testview [-some]")
		flag.PrintDefaults()
	}
	some := flag.Bool("some", false, "fail when no test ran")
	flag.Parse()
	v := newView(os.Stdout)
	if err := v.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testview:", err)
		os.Exit(1)
	}
	if !v.finish(*some) {
		os.Exit(1)
	}
}

// read shows the events as they come, until the input ends. A line that is no
// event is shown as it is.
func (v *view) read(in io.Reader) error {
	reader := bufio.NewReader(in)
	for {
		line, err := reader.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				v.show(e)
			} else {
				fmt.Fprintf(v.out, "%s", line)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading the test events: %w", err)
		}
	}
}

// event is what `go test -json` writes, see `go doc test2json`.
type event struct {
	Time    time.Time
	Action  string
	Package string
	Test    string
	Elapsed float64
	Output  string
}
