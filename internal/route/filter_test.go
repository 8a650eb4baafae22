package route

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/outboxrelay/relay/internal/pgtest"
)

var threeSinks = map[string]Broker{"a": Kafka, "b": Kafka, "c": Kafka}

func TestFilterSQL(t *testing.T) {
	to := func(sink, topic, typ string) Config {
		return Config{Sink: sink, Match: Match{Topic: topic, Type: typ}}
	}
	for name, test := range map[string]struct {
		routes         []Config
		a, c, unrouted string
	}{
		"everything":          {[]Config{to("a", "*", "")}, "true", "false", "false"},
		"everything, finally": {[]Config{to("a", "x", ""), to("a", "y*", "Z"), to("a", "", "")}, "true", "false", "false"},
		"a topic": {
			[]Config{to("a", "orders", "")},
			`topic COLLATE "C" IN ('orders')`, "false", `NOT topic COLLATE "C" IN ('orders')`,
		},
		"the others first": {
			[]Config{to("b", "mail.*", ""), to("a", "*", "")},
			`NOT topic COLLATE "C" LIKE 'mail.%'`, "false", "false",
		},
		"in between": {
			[]Config{to("a", "x", ""), to("b", "*_b", "Sent"), to("a", "y", ""), to("a", "z", "")},
			`(topic COLLATE "C" IN ('x') OR (NOT (topic COLLATE "C" LIKE E'%\\_b' AND type COLLATE "C" = 'Sent') AND topic COLLATE "C" IN ('y', 'z')))`, "false",
			`NOT (topic COLLATE "C" IN ('x', 'y', 'z') OR (topic COLLATE "C" LIKE E'%\\_b' AND type COLLATE "C" = 'Sent'))`,
		},
	} {
		table := compile(t, test.routes, threeSinks)
		for want, filter := range map[*string]Filter{&test.a: table.Filter("a"), &test.c: table.Filter("c"), &test.unrouted: table.Unrouted()} {
			if got := filter.SQL("topic", "type"); got != *want || filter.All() != (*want == "true") || filter.None() != (*want == "false") {
				t.Errorf("%s: got %s (all %v, none %v), want %s", name, got, filter.All(), filter.None(), *want)
			}
		}
	}
}

func TestZeroFilterSelectsEverything(t *testing.T) {
	if f := (Filter{}); !f.All() || f.None() || !f.Match("a", "b") || f.SQL("topic", "type") != "true" {
		t.Error("it does not")
	}
}

// place is a database, or a column's type, in which filters have to mean the
// same as in Go.
type place struct {
	column string
	// letters are what its encoding has beside ASCII.
	letters string
	// conforming is standard_conforming_strings.
	conforming string
}

func TestFilterMeansTheSameInPostgreSQL(t *testing.T) {
	const unicode = "üéÉ日語🙂\u0301"
	for encoding, places := range map[string][]place{
		"UTF8": {
			{"text", unicode, "on"},
			{"varchar", unicode, "off"},
			{`text COLLATE "en-x-icu"`, unicode, "on"},
			{"text COLLATE insensitive", unicode, "on"},
		},
		"LATIN1":    {{"text", "üéÉß", "off"}},
		"LATIN2":    {{"text", "üéÉőŁ", "on"}},
		"WIN1251":   {{"text", "жЖя€", "on"}},
		"EUC_JP":    {{"text", "日語あ", "on"}},
		"SQL_ASCII": {{"text", "üéÉ日語🙂", "on"}},
	} {
		t.Run(encoding, func(t *testing.T) {
			connection := connect(t, encoding)
			for _, place := range places {
				t.Run(place.column, func(t *testing.T) { agree(t, connection, place) })
			}
		})
	}
}

const ascii = "aAabB.[]!^-\\*?:=|(){}+$#\n'\"%_ 1;/&,"

func agree(t *testing.T, connection *pgx.Conn, place place) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	texts := []string{"", "orders", "mail.a", "mail.", "Mail.a", "ORDERS", "a%b", "a_b", `a\b`, "a'b", "$1", strings.Repeat("x", 300)}
	for range 150 {
		texts = append(texts, randomText(random, ascii+place.letters, 5))
	}
	for _, sql := range []string{
		"SET standard_conforming_strings = " + place.conforming,
		"DROP TABLE IF EXISTS rows",
		"CREATE TEMPORARY TABLE rows (n int, topic " + place.column + ", type " + place.column + ")",
	} {
		if _, err := connection.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	topics, types := make([]string, 400), make([]string, 400)
	for i := range topics {
		topics[i], types[i] = texts[random.IntN(len(texts))], texts[random.IntN(len(texts))]
	}
	_, err := connection.Exec(t.Context(), "INSERT INTO rows SELECT n - 1, topic, type FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS u (topic, type, n)", topics, types)
	if err != nil {
		t.Fatal(err)
	}
	selected := 0
	for range 40 {
		table, routes := randomTable(random, texts, "üéжЖ日őß🙂"+place.letters)
		filters := []Filter{table.Filter("a"), table.Filter("b"), table.Filter("c"), table.Unrouted()}
		columns := make([]string, len(filters))
		for i, filter := range filters {
			columns[i] = filter.SQL("r.topic", "r.type")
		}
		query := "SELECT r.n, " + strings.Join(columns, ", ") + " FROM rows AS r"
		var n int
		got := make([]bool, len(filters))
		answer, err := connection.Query(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		_, err = pgx.ForEachRow(answer, []any{&n, &got[0], &got[1], &got[2], &got[3]}, func() error {
			topic, typ := topics[n], types[n]
			matches := 0
			for i, filter := range filters {
				want := filter.Match(topic, typ)
				if got[i] != want || filter.All() && !want || filter.None() && want {
					return fmt.Errorf("filter %d selects %q, %q: %v in PostgreSQL, %v in Go: %s", i, topic, typ, got[i], want, columns[i])
				}
				if got[i] {
					matches++
				}
			}
			if !got[3] && !filters[0].All() && !filters[1].All() && !filters[2].All() {
				selected++
			}
			if target, _ := table.Resolve(topic, typ, nil); (target.Route == nil) != got[3] {
				return fmt.Errorf("%q, %q is unrouted: %v, though its route is %v", topic, typ, got[3], target.Route)
			}
			if matches != 1 {
				return fmt.Errorf("%q, %q belongs to %d filters", topic, typ, matches)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("%+q: %v", routes, err)
		}
	}
	if selected < 300 {
		t.Errorf("only %d rows were selected; the texts and patterns hardly meet", selected)
	}
}

// randomTable returns routes that match some of the texts.
func randomTable(random *rand.Rand, texts []string, letters string) (*Table, []Config) {
	glob := func() string {
		for {
			var source string
			switch text := []rune(texts[random.IntN(len(texts))]); random.IntN(8) {
			case 0:
				return ""
			case 1:
				return "*"
			case 2:
				source = escape(string(text))
			case 3:
				source = escape(string(text[:random.IntN(len(text)+1)])) + "*"
			case 4:
				source = "*" + escape(string(text[random.IntN(len(text)+1):]))
			case 5:
				for _, c := range text {
					source += []string{escape(string(c)), "?", "*", "[" + string(c) + "]", "[!" + string(c) + "]", "[\\" + string(c) + "-\U0010FFFF]", "[!b-日]"}[random.IntN(7)]
				}
			default:
				source = randomText(random, "**??[[]]!-\\"+ascii+letters, 7)
			}
			// Empty ones mean everything, as those that do not compile may be.
			if _, err := Compile([]Config{{Sink: "a", Match: Match{Topic: source}}}, threeSinks); err == nil && source != "" {
				return source
			}
		}
	}
	for {
		routes := make([]Config, 1+random.IntN(6))
		for i := range routes {
			routes[i].Sink = string(rune('a' + random.IntN(3)))
			routes[i].Match.Topic = glob()
			if random.IntN(3) == 0 {
				routes[i].Match.Type = glob()
			}
		}
		if table, err := Compile(routes, threeSinks); err == nil {
			return table, routes
		}
	}
}

func escape(text string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(text)
}

func randomText(random *rand.Rand, alphabet string, longest int) string {
	runes := []rune(alphabet)
	out := make([]rune, random.IntN(longest+1))
	for i := range out {
		out[i] = runes[random.IntN(len(runes))]
	}
	return string(out)
}

// connect returns a connection to a new database of the encoding.
func connect(t *testing.T, encoding string) *pgx.Conn {
	t.Helper()
	server := os.Getenv(pgtest.Variable)
	if server == "" {
		t.Skip("needs " + pgtest.Variable + "; `make test` provides it")
	}
	admin, err := pgx.Connect(t.Context(), server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close(context.Background()) })
	name := fmt.Sprintf("relay_test_%08x", rand.Uint32())
	if _, err := admin.Exec(t.Context(), "CREATE DATABASE "+name+" TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C' ENCODING '"+encoding+"'"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Log(err)
		}
	})
	parsed, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	parsed.Path = "/" + name
	settings, err := pgx.ParseConfig(parsed.String())
	if err != nil {
		t.Fatal(err)
	}
	settings.RuntimeParams["client_encoding"] = "UTF8"
	settings.DefaultQueryExecMode = pgx.QueryExecModeExec
	connection, err := pgx.ConnectConfig(t.Context(), settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close(context.Background()) })
	if encoding == "UTF8" {
		if _, err := connection.Exec(t.Context(), "CREATE COLLATION insensitive (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"); err != nil {
			t.Fatal(err)
		}
	}
	return connection
}
