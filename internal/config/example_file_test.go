package config

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

const exampleFile = "../../config.example.yaml"

func TestExampleFileLoads(t *testing.T) {
	config, err := Load(exampleFile, environment{"DATABASE_URL": "postgres://relay@db.example/orders"}.lookup)
	if err != nil {
		t.Fatal(err)
	}
	if len(config.Sinks) != 2 || len(config.Routes) != 2 || config.Sinks["mail"].RabbitMQ.URL != "amqp://guest:guest@localhost:5672/" {
		t.Errorf("%+v", config)
	}
}

// notDefaults are the paths at which the example shows something of its own.
var notDefaults = []string{"database.url", "sinks.main.kafka.brokers", "sinks.mail.rabbitmq.url", "routes"}

func TestExampleFileShowsEveryKeyWithItsDefault(t *testing.T) {
	data, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		t.Fatal(err)
	}
	seen := compareWithDefaults(t, "", document.Content[0], reflect.ValueOf(Default()).Elem())
	// database 7, outbox 11, kafka 4 + 6 + 4, rabbitmq 7 + 6, failures 6, …
	if seen < 50 {
		t.Errorf("only %d keys were compared", seen)
	}
}

// compareWithDefaults walks the types, so that a new key cannot be forgotten.
func compareWithDefaults(t *testing.T, path string, node *yaml.Node, defaults reflect.Value) (seen int) {
	t.Helper()
	for _, own := range notDefaults {
		if path == own && path != "routes" {
			return 1
		}
	}
	switch defaults.Kind() {
	case reflect.Pointer:
		return compareWithDefaults(t, path, node, newDefault(defaults.Type().Elem()).Elem())
	case reflect.Map:
		// Each sink shows one of its two kinds.
		kinds := map[string]bool{}
		for i := 0; i < len(node.Content); i += 2 {
			kind := node.Content[i+1].Content[0].Value
			kinds[kind] = true
			sink := defaults.Type().Elem()
			for j := range sink.NumField() {
				if keyOf(sink.Field(j)) == kind {
					seen += compareWithDefaults(t, join(join(path, node.Content[i].Value), kind), node.Content[i+1].Content[1], reflect.Zero(sink.Field(j).Type))
				}
			}
		}
		if len(kinds) != defaults.Type().Elem().NumField() {
			t.Errorf("%s: the example shows %v", path, kinds)
		}
		return seen
	case reflect.Slice:
		// The first route shows every key.
		return compareWithDefaults(t, path+"[0]", node.Content[0], reflect.Zero(defaults.Type().Elem()))
	case reflect.Struct:
		values := map[string]*yaml.Node{}
		for i := 0; i < len(node.Content); i += 2 {
			values[node.Content[i].Value] = node.Content[i+1]
		}
		for i := range defaults.NumField() {
			key := keyOf(defaults.Type().Field(i))
			if key == "" {
				continue
			}
			if values[key] == nil {
				t.Errorf("%s is not in the example", join(path, key))
				continue
			}
			seen += compareWithDefaults(t, join(path, key), values[key], defaults.Field(i))
		}
		return seen
	}
	if strings.HasPrefix(path, "routes[") {
		return 1
	}
	d := newDocument("example", environment{}.lookup)
	shown := reflect.New(defaults.Type()).Elem()
	d.decode(path, node, shown)
	if len(d.errors) > 0 || !reflect.DeepEqual(shown.Interface(), defaults.Interface()) {
		t.Errorf("%s: the example shows %v, the default is %v %v", path, shown, defaults, d.errors)
	}
	return 1
}
