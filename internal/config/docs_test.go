package config

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

const reference = "../../docs/configuration.md"

func TestReferenceNamesEveryKey(t *testing.T) {
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	eachKey(reflect.TypeFor[Config](), func(key string) {
		seen[key] = true
		for _, form := range []string{"`" + key + "`", "`" + key + ".", "# " + key + "\n", key + "**", "." + key + "`", key + ":"} {
			if strings.Contains(string(data), form) {
				return
			}
		}
		t.Errorf("%s is not in the reference", key)
	})
	if len(seen) < 50 {
		t.Errorf("only %d keys", len(seen))
	}
}

func eachKey(t reflect.Type, visit func(key string)) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Map, reflect.Slice:
		eachKey(t.Elem(), visit)
	case reflect.Struct:
		for i := range t.NumField() {
			if key := keyOf(t.Field(i)); key != "" {
				visit(key)
				eachKey(t.Field(i).Type, visit)
			}
		}
	}
}

// TestReferenceExamples decodes the examples of the reference: they are
// fragments, so that they need not be complete.
func TestReferenceExamples(t *testing.T) {
	data, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	variables := environment{"DATABASE_URL": "x", "DB_PASSWORD": "x", "KAFKA_BROKER": "a:1"}
	examples := 0
	for i, part := range strings.Split(string(data), "```") {
		example, isYAML := strings.CutPrefix(part, "yaml\n")
		if i%2 == 0 || !isYAML {
			continue
		}
		examples++
		var node yaml.Node
		if err := yaml.Unmarshal([]byte(example), &node); err != nil {
			t.Errorf("%v\n%s", err, example)
			continue
		}
		d := newDocument("example", variables.lookup)
		d.decode("", node.Content[0], reflect.ValueOf(Default()).Elem())
		if len(d.errors) > 0 {
			t.Errorf("%v\n%s", d.errors, example)
		}
	}
	if examples < 4 {
		t.Errorf("only %d examples", examples)
	}
}
