package route

import (
	"strings"
	"testing"

	"github.com/outboxrelay/relay/sinks"
)

var bothSinks = map[string]Broker{
	"main": Kafka,
	"mail": RabbitMQ,
}

func compile(t *testing.T, routes []Config, sinks map[string]Broker) *Table {
	t.Helper()
	table, err := Compile(routes, sinks)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestResolve(t *testing.T) {
	table := compile(t, []Config{
		{Match: Match{Topic: "mail.*"}, Sink: "mail", Exchange: "notifications"},
		{Match: Match{Topic: "audit", Type: "*Failed"}, Sink: "main", Destination: "audit.failures"},
		{Match: Match{Topic: "audit"}, Sink: "main", Destination: "audit.{type}"},
		{Match: Match{Topic: "tenant"}, Sink: "main", Destination: "tenant-{key}"},
		{Match: Match{Topic: "bare"}, Sink: "mail", Destination: "{key}"},
		{Match: Match{Topic: "[!x]*"}, Sink: "main"},
	}, bothSinks)
	for _, test := range []struct {
		topic, typ, key string
		route           int
		destination     string
		exchange        string
		reason          string
	}{
		{topic: "mail.welcome", route: 0, destination: "mail.welcome", exchange: "notifications"},
		{topic: "mail.welcome.again", route: 0, destination: "mail.welcome.again", exchange: "notifications"},
		{topic: "mail", route: 5, destination: "mail"},
		{topic: "audit", typ: "LoginFailed", route: 1, destination: "audit.failures"},
		{topic: "audit", typ: "Login", route: 2, destination: "audit.Login"},
		{topic: "audit", typ: "Log in", route: 2, reason: "invalid_destination"},
		{topic: "audit", typ: "Logout", route: 2, destination: "audit.Logout"},
		{topic: "tenant", key: "a1", route: 3, destination: "tenant-a1"},
		{topic: "tenant", key: "b2", route: 3, destination: "tenant-b2"},
		{topic: "tenant", key: "b/2", route: 3, reason: "invalid_destination"},
		{topic: "bare", key: "k", route: 4, destination: "k"},
		{topic: "bare", route: 4, reason: "invalid_destination"},
		{topic: "orders", typ: "OrderPlaced", route: 5, destination: "orders"},
		{topic: "..", route: 5, reason: "invalid_destination"},
		{topic: strings.Repeat("a", 250), route: 5, reason: "invalid_destination"},
		{topic: "xenon", route: -1, reason: "no_route"},
		{topic: "", route: -1, reason: "no_route"},
	} {
		for _, attempt := range []string{"first", "cached"} {
			var key []byte
			if test.key != "" {
				key = []byte(test.key)
			}
			target, err := table.Resolve(test.topic, test.typ, key)
			if route := indexOf(target.Route); route != test.route {
				t.Errorf("%s %q %q %q: route %d, want %d", attempt, test.topic, test.typ, test.key, route, test.route)
			}
			if target.Destination != test.destination || target.Exchange != test.exchange && err == nil {
				t.Errorf("%s %q %q %q: got %q via %q, want %q via %q", attempt, test.topic, test.typ, test.key,
					target.Destination, target.Exchange, test.destination, test.exchange)
			}
			switch {
			case test.reason == "" && err != nil:
				t.Errorf("%s %q: %v", attempt, test.topic, err)
			case test.reason == "no_route" && (sinks.ReasonOf(err) != test.reason || sinks.ScopeOf(err) != sinks.ScopeDestination || sinks.IsPermanent(err)):
				t.Errorf("%s %q: no route gives %v", attempt, test.topic, err)
			case test.reason == "invalid_destination" && (sinks.ReasonOf(err) != test.reason || sinks.ScopeOf(err) != sinks.ScopeMessage || !sinks.IsPermanent(err)):
				t.Errorf("%s %q: an invalid destination gives %v", attempt, test.topic, err)
			}
			if err != nil && test.key != "" && strings.Contains(err.Error(), test.key) {
				t.Errorf("%q: the error shows the key: %v", test.topic, err)
			}
		}
	}
}

func indexOf(route *Route) int {
	if route == nil {
		return -1
	}
	return route.Index()
}

func TestSoleSinkTakesEverything(t *testing.T) {
	table := compile(t, nil, map[string]Broker{"only": Kafka})
	target, err := table.Resolve("orders.placed", "", nil)
	if err != nil || target.Destination != "orders.placed" || target.Route.Sink() != "only" || len(table.Routes()) != 1 {
		t.Fatalf("%+v, %v", target, err)
	}
	if _, err := Compile(nil, bothSinks); err == nil {
		t.Fatal("two sinks without routes compiled")
	}
}

func TestResolveKeepsNothingOfTheRow(t *testing.T) {
	table := compile(t, nil, map[string]Broker{"only": Kafka})
	for i := range cacheSize + 10 {
		topic := strings.Repeat("t", i%200+1) + string(rune('a'+i%26))
		if _, err := table.Resolve(topic, "", nil); err != nil {
			t.Fatal(err)
		}
	}
	if len(table.cache) > cacheSize {
		t.Fatalf("the cache holds %d entries", len(table.cache))
	}
}

func TestResolveDoesNotAllocate(t *testing.T) {
	table := compile(t, []Config{
		{Match: Match{Topic: "mail.*", Type: "*d"}, Sink: "mail", Destination: "{type}"},
		{Match: Match{Topic: "*"}, Sink: "main"},
	}, bothSinks)
	for _, topic := range []string{"mail.a", "orders"} {
		allocations := testing.AllocsPerRun(100, func() {
			if _, err := table.Resolve(topic, "OrderPlaced", []byte("k")); err != nil {
				t.Fatal(err)
			}
		})
		if allocations != 0 {
			t.Errorf("%s: %v allocations", topic, allocations)
		}
	}
}

func TestDependencies(t *testing.T) {
	for _, test := range []struct {
		route           Config
		topic, typ, key bool
		fixed           string
	}{
		{route: Config{Match: Match{Topic: "a.b"}}, topic: true, fixed: "a.b"},
		{route: Config{Match: Match{Topic: "a*"}}, topic: true},
		{route: Config{Match: Match{Type: "X"}, Destination: "all.{type}"}, typ: true, fixed: "all.X"},
		{route: Config{Destination: "all"}, fixed: "all"},
		{route: Config{Destination: "all.{key}"}, key: true},
	} {
		test.route.Sink = "main"
		route := compile(t, []Config{test.route}, bothSinks).Routes()[0]
		fixed, ok := route.Fixed()
		if route.DependsOnTopic() != test.topic || route.DependsOnType() != test.typ || route.DependsOnKey() != test.key ||
			fixed != test.fixed || ok != (test.fixed != "") {
			t.Errorf("%+v: %v %v %v %q", test.route, route.DependsOnTopic(), route.DependsOnType(), route.DependsOnKey(), fixed)
		}
	}
}

func TestCompileFindsEveryMistake(t *testing.T) {
	_, err := Compile([]Config{
		{Sink: "nowhere", Destination: "{tpoic}", Match: Match{Topic: "[a", Type: `a\`}},
		{Sink: "main", Exchange: "x", OnFailure: "retry"},
		{Sink: "main", Destination: "a b {key}", Match: Match{Topic: "b"}},
		{Sink: "mail", Exchange: strings.Repeat("x", 256), Destination: strings.Repeat("x", 256)},
	}, bothSinks)
	if err == nil {
		t.Fatal("compiled")
	}
	const want = `routes[0].sink: "nowhere" is not one of the sinks: mail, main
routes[0].destination: "{tpoic}": unknown placeholder; known are {topic}, {type} and {key}
routes[0].match.topic: "[a": [ has no matching ]; write \[ for a bracket
routes[0].match.type: "a\\": a pattern must not end with \; write \\ for a backslash
routes[1].exchange: is for RabbitMQ only, and main is a Kafka sink; remove it
routes[1].on_failure: "retry" is not allowed; it must be park, dead_letter or skip
routes[2].destination: "a b {key}" has a character that Kafka does not allow (letters, digits, '.', '_' and '-' are)
routes[2]: never matches: routes[1] takes all of its rows; the first match wins, so put the narrower route first
routes[3].exchange: is longer than the 255 bytes that AMQP allows
routes[3].destination: "xxx… is longer than the 255 bytes that AMQP allows
routes[3]: never matches: routes[1] takes all of its rows; the first match wins, so put the narrower route first`
	if got := strings.ReplaceAll(err.Error(), strings.Repeat("x", 256)+`"`, "xxx…"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func BenchmarkResolve(b *testing.B) {
	table, err := Compile([]Config{
		{Match: Match{Topic: "mail.*"}, Sink: "mail"},
		{Match: Match{Topic: "*"}, Sink: "main"},
	}, bothSinks)
	if err != nil {
		b.Fatal(err)
	}
	key := []byte("key")
	for b.Loop() {
		if _, err := table.Resolve("orders", "OrderPlaced", key); err != nil {
			b.Fatal(err)
		}
	}
}
