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
		{words{"parked", "frobnicate"}, `unknown command "frobnicate"`},
		{words{"parked", "list", "--limit", "-1", "--config", file}, "must not be negative"},
		{words{"parked", "retry", "--yes", "--config", file}, "nothing is selected"},
		{words{"parked", "skip", "--topic", "t", "--yes", "--config", file}, "--topic and --key go together"},
		{words{"parked", "skip", "--key", "", "--yes", "--config", file}, "--topic and --key go together"},
		{words{"parked", "skip", "--topic", "", "--key", "k", "--yes", "--config", file}, "--topic is empty"},
		{words{"parked", "retry", "--all", "--topic", "t", "--key", "k", "--yes", "--config", file}, "too much is selected"},
		{words{"parked", "retry", "--all", "--message-id", someID, "--yes", "--config", file}, "too much is selected"},
		{words{"parked", "retry", "--message-id", "4711", "--yes", "--config", file}, "message id 4711 is not a UUID"},
		{words{"parked", "retry", someID, "--yes", "--config", file}, "unknown command"},
		{words{"parked", "retry", "--all", "--config", file}, "use --yes"},
		{words{"parked", "skip", "--all", "--config", file}, "use --yes"},
		{words{"dead", "frobnicate"}, `unknown command "frobnicate"`},
		{words{"dead", "show", "--config", file}, "nothing is selected"},
		{words{"dead", "show", "--all", "--payload", "hex", "--config", file}, "must be text or raw"},
		{words{"dead", "show", "--all", "--payload", "raw", "--output", "json", "--config", file}, "cannot be combined"},
		{words{"dead", "retry", "\x1b[2J", "--yes", "--config", file}, `message id "\x1b[2J" is not a UUID`},
		{words{"dead", "retry", someID, "--all", "--yes", "--config", file}, "too much is selected"},
		{words{"dead", "discard", "--topic", "t", "--all", "--yes", "--config", file}, "too much is selected"},
		{words{"dead", "retry", someID, "--config", file}, "use --yes"},
		{words{"dead", "discard", "--topic", "t", "--config", file}, "use --yes"},
		{words{"replay", "--yes", "--config", file}, "nothing is selected"},
		{words{"replay", "--all", "--topic", "t", "--yes", "--config", file}, "cannot be combined"},
		{words{"replay", "--topic", "t", "--since", "yesterday", "--yes", "--config", file}, "--since yesterday: must be a time"},
		{words{"replay", "--topic", "t", "--until", "-1h", "--yes", "--config", file}, "--until -1h: must be a time"},
		{words{"replay", "--topic", "t", "--since", "1h", "--until", "2h", "--yes", "--config", file}, "does not lie before"},
		{words{"replay", "--topic", "t", "--limit", "0", "--yes", "--config", file}, "at least 1"},
		{words{"replay", "--message-id", "x", "--yes", "--config", file}, "message id x is not a UUID"},
		{words{"replay", "--topic", "t", "--config", file}, "use --yes"},
		{words{"replay", "--topic", "t", "--yes", "--config", write(t, minimal+"outbox: {on_published: delete}\n")}, "on_published is delete"},
	} {
		t.Run(strings.Join(test.arguments, " "), func(t *testing.T) {
			execute(t, test.arguments...).expect(t, 2, nil, words{"relay: ", test.says})
		})
	}
}

const someID = "0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f"

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
	for _, name := range []string{
		"check", "status", "version", "parked list", "parked retry", "parked skip",
		"dead list", "dead show", "dead retry", "dead discard", "replay",
	} {
		command, _, err := newRoot().Find(strings.Fields(name))
		if err != nil {
			t.Fatal(err)
		}
		if command.Flags().Lookup("output") == nil {
			t.Errorf("%s has no --output", name)
		}
	}
}
