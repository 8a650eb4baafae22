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

	"github.com/outboxrelay/relay/internal/config"
	"github.com/outboxrelay/relay/internal/pgtest"
	"github.com/outboxrelay/relay/sinks/kafka"
)

var threeSinks = map[string]config.Sink{"a": {Kafka: &kafka.Config{}}, "b": {Kafka: &kafka.Config{}}, "c": {Kafka: &kafka.Config{}}}

func TestFilterSQL(t *testing.T) {
	to := func(sink, topic, typ string) config.Route {
		return config.Route{Sink: sink, Match: config.Match{Topic: topic, Type: typ}}
	}
	for name, test := range map[string]struct {
		routes         []config.Route
		a, c, unrouted string
	}{
		"everything":          {[]config.Route{to("a", "*", "")}, "true", "false", "false"},
		"everything, finally": {[]config.Route{to("a", "x", ""), to("a", "y*", "Z"), to("a", "", "")}, "true", "false", "false"},
		"a topic": {
			[]config.Route{to("a", "orders", "")},
			`topic COLLATE "C" IN ('orders')`, "false", `NOT topic COLLATE "C" IN ('orders')`,
		},
		"the others first": {
			[]config.Route{to("b", "mail.*", ""), to("a", "*", "")},
			`NOT topic COLLATE "C" LIKE 'mail.%'`, "false", "false",
		},
		"in between": {
			[]config.Route{to("a", "x", ""), to("b", "*_b", "Sent"), to("a", "y", ""), to("a", "z", "")},
			`(topic COLLATE "C" IN ('x') OR (NOT (topic COLLATE "C" LIKE E'%\\_b' AND type COLLATE "C" = 'Sent') AND topic COLLATE "C" IN ('y', 'z')))`, "false",
			`NOT (topic COLLATE "C" IN ('x', 'y', 'z') OR (topic COLLATE "C" LIKE E'%\\_b' AND type COLLATE "C" = 'Sent'))`,
		},
		"behind everything": {[]config.Route{to("b", "*", ""), to("a", "x", "")}, "false", "false", "false"},
	} {
		table := compile(t, test.routes, threeSinks)
		for want, filter := range map[*string]Filter{&test.a: table.Filter("a"), &test.c: table.Filter("c"), &test.unrouted: table.Unrouted()} {
			if got := filter.SQL("topic", "type"); got != *want || filter.All() != (*want == "true") || filter.None() != (*want == "false") {
				t.Errorf("%s: got %s (all %v, none %v), want %s", name, got, filter.All(), filter.None(), *want)
			}
		}
	}
}

// place is a database, or a column's type, in which filters have to mean the
// same as in Go.
type place struct {
	encoding, column string
	// letters are what its encoding has beside ASCII.
	letters string
	strings string // standard_conforming_strings
}

func TestFilterMeansTheSameInPostgreSQL(t *testing.T) {
	for name, place := range map[string]place{
		"UTF8":             {"UTF8", "text", "üéÉ日語🙂\u0301", "on"},
		"UTF8, old quotes": {"UTF8", "varchar", "üéÉ日語🙂\u0301", "off"},
		"case-insensitive": {"UTF8", `text COLLATE insensitive`, "üéÉ日語🙂\u0301", "on"},
		"English":          {"UTF8", `text COLLATE "en-x-icu"`, "üéÉ日語🙂\u0301", "on"},
		"LATIN1":           {"LATIN1", "text", "üéÉß", "off"},
		"LATIN2":           {"LATIN2", "text", "üéÉőŁ", "on"},
		"WIN1251":          {"WIN1251", "text", "жЖя€", "on"},
		"EUC_JP":           {"EUC_JP", "text", "日語あ", "on"},
		"SQL_ASCII":        {"SQL_ASCII", "text", "üéÉ日語🙂", "on"},
	} {
		t.Run(name, func(t *testing.T) { agree(t, place) })
	}
}

const ascii = "aAabB.[]!^-\\*?:=|(){}+$#\n'\"%_ 1;/&,"

func agree(t *testing.T, place place) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	connection := connect(t, place)
	texts := []string{"", "orders", "mail.a", "mail.", "Mail.a", "ORDERS", "a%b", "a_b", `a\b`, "a'b", "$1", strings.Repeat("x", 300)}
	for range 150 {
		texts = append(texts, randomText(random, ascii+place.letters, 5))
	}
	_, err := connection.Exec(t.Context(), "CREATE TEMPORARY TABLE rows (n int, topic "+place.column+", type "+place.column+")")
	if err != nil {
		t.Fatal(err)
	}
	type row struct{ topic, typ string }
	rows := make([]row, 400)
	for i := range rows {
		rows[i] = row{texts[random.IntN(len(texts))], texts[random.IntN(len(texts))]}
		if _, err := connection.Exec(t.Context(), "INSERT INTO rows VALUES ($1, $2, $3)", i, rows[i].topic, rows[i].typ); err != nil {
			t.Fatalf("%+q: %v", rows[i], err)
		}
	}
	selected := 0
	for range 100 {
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
			matches := 0
			for i, filter := range filters {
				want := filter.Match(rows[n].topic, rows[n].typ)
				if got[i] != want || filter.All() && !want || filter.None() && want {
					return fmt.Errorf("filter %d selects %q: %v in PostgreSQL, %v in Go: %s", i, rows[n], got[i], want, columns[i])
				}
				if got[i] {
					matches++
				}
			}
			if !got[3] && !filters[0].All() && !filters[1].All() && !filters[2].All() {
				selected++
			}
			if target, _ := table.Resolve(rows[n].topic, rows[n].typ, nil); (target.Route == nil) != got[3] {
				return fmt.Errorf("%q is unrouted: %v, though its route is %v", rows[n], got[3], target.Route)
			}
			if matches != 1 {
				return fmt.Errorf("%q belongs to %d filters", rows[n], matches)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("%+q: %v", routes, err)
		}
	}
	if selected < 5000 {
		t.Errorf("only %d rows were selected; the texts and patterns hardly meet", selected)
	}
}

// randomTable returns routes that match some of the texts.
func randomTable(random *rand.Rand, texts []string, letters string) (*Table, []config.Route) {
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
			if _, err := Compile([]config.Route{{Sink: "a", Match: config.Match{Topic: source}}}, threeSinks); err == nil && source != "" {
				return source
			}
		}
	}
	for {
		routes := make([]config.Route, 1+random.IntN(6))
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

// connect returns a connection to a new database of the place's encoding.
func connect(t *testing.T, place place) *pgx.Conn {
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
	if _, err := admin.Exec(t.Context(), "CREATE DATABASE "+name+" TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C' ENCODING '"+place.encoding+"'"); err != nil {
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
	settings.RuntimeParams["standard_conforming_strings"] = place.strings
	settings.DefaultQueryExecMode = pgx.QueryExecModeExec
	connection, err := pgx.ConnectConfig(t.Context(), settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close(context.Background()) })
	if strings.Contains(place.column, "insensitive") {
		if _, err := connection.Exec(t.Context(), "CREATE COLLATION insensitive (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"); err != nil {
			t.Skipf("without ICU: %v", err)
		}
	}
	return connection
}
