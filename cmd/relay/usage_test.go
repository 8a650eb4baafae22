package main

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestWrongCommandLines(t *testing.T) {
	file := write(t, minimal)
	for _, test := range []struct {
		arguments []string
		says      string
	}{
		{words{"frobnicate"}, `unknown command "frobnicate"`},
		{words{"run", "now"}, `unknown command "now"`},
		{words{"config", "frobnicate"}, `unknown command "frobnicate"`},
		{words{"status", "--frob"}, "unknown flag: --frob"},
		{words{"--frob"}, "unknown flag: --frob"},
		{words{"status", "--output", "xml"}, "must be text or json"},
		{words{"status", "--config"}, "flag needs an argument"},
		{words{"migrate", "--only", "everything", "--config", file}, "--only everything"},
		{words{"migrate", "--print", "--dry-run", "--config", file}, "[dry-run print]"},
		{words{"healthcheck", "--timeout", "soon"}, "invalid argument"},
	} {
		t.Run(strings.Join(test.arguments, " "), func(t *testing.T) {
			execute(t, test.arguments...).expect(t, 2, nil, words{"relay: ", test.says})
		})
	}
}

func TestMissingFile(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "no-such.yaml")
	for _, command := range commands {
		t.Run(strings.Join(command, " "), func(t *testing.T) {
			execute(t, append(command, "--config", missing)...).expect(t, 2, nil, words{missing})
		})
	}
	execute(t, "check").expect(t, 2, nil, words{"relay.yaml"}) // the default
	executeWith(t, words{"RELAY_CONFIG=" + missing}, "check").expect(t, 2, nil, words{missing})
}

func TestBadFileIsRefusedWithAllErrors(t *testing.T) {
	bad := write(t, `
database: {url: "postgres://relay:hunter2@127.0.0.1:1/shop?sslmode=disable", max_connections: -1}
outbox:
  mode: push
  batchsize: 10
sinks:
  main:
    kafka:
      brokers: localhost
routes:
  - sink: nowhere
failures: {backoff: {initial: soon}}
`)
	for _, command := range commands {
		t.Run(strings.Join(command, " "), func(t *testing.T) {
			execute(t, append(command, "--config", bad)...).expect(t, 2, nil, words{
				bad, "database.max_connections", "outbox.mode", "outbox.batchsize", "sinks.main.kafka.brokers", "routes[0].sink", "failures.backoff.initial",
			})
		})
	}
}

func TestHelpEverywhereHasAnExample(t *testing.T) {
	var visit func(path []string)
	visit = func(path []string) {
		root := newRoot()
		command, _, err := root.Find(path)
		if err != nil {
			t.Fatal(err)
		}
		help := execute(t, append(path, "--help")...)
		help.expect(t, 0, words{"Usage:", "Examples:\n  relay ", "--config"}, nil)
		for _, below := range command.Commands() {
			if below.Name() == "help" || below.Name() == "completion" {
				continue
			}
			if !strings.Contains(help.stdout, below.Name()+" ") {
				t.Errorf("the help of %v does not name %s", path, below.Name())
			}
			visit(append(path[:len(path):len(path)], below.Name()))
		}
	}
	visit(nil)
	execute(t).expect(t, 0, words{"Usage:", "healthcheck"}, nil) // no command at all
}

func TestEveryListingCommandHasJSON(t *testing.T) {
	for _, name := range []string{"check", "status", "version"} {
		command, _, err := newRoot().Find(words{name})
		if err != nil {
			t.Fatal(err)
		}
		if command.Flags().Lookup("output") == nil {
			t.Errorf("%s has no --output", name)
		}
	}
}
