package chart_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/outboxrelay/relay/e2e/servers"
)

var update = flag.Bool("update", false, "write the chart's README.md")

// The chart's README.md is what helm-docs makes of README.md.gotmpl and the
// comments of values.yaml; go test ./chart -run README -update writes it.
func TestREADMEIsGenerated(t *testing.T) {
	t.Parallel()
	program := built(t, servers.HelmDocs)
	folder := filepath.Join(copyCharts(t), filepath.Base(chart))
	if output := runTool(t, program, "--chart-search-root", folder, "--sort-values-order", "file", "--log-level", "warning"); strings.TrimSpace(output) != "" {
		t.Fatalf("helm-docs: %s", output)
	}
	want, err := os.ReadFile(folder + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(chart+"/README.md", want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(chart + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s/README.md is not what helm-docs makes; go test ./chart -run README -update writes it", chart)
	}
	for _, undocumented := range regexp.MustCompile(`(?m)^\| ([a-zA-Z.]+) \|.*\|  \|$`).FindAllStringSubmatch(string(got), -1) {
		t.Errorf("values.yaml does not say what %s is", undocumented[1])
	}
	for _, file := range examples(t) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		shown := strings.TrimSpace(string(text))
		if filepath.Base(file) == "strimzi-tls.yaml" {
			_, shown, _ = strings.Cut(shown, "\ncredentials:")
		}
		if !strings.Contains(string(got), shown) {
			t.Errorf("%s is not in the README", file)
		}
	}
}

// The schema of config has the configuration's keys, those of the example that
// is compared with the code, and no others.
func TestSchemaKnowsTheConfiguration(t *testing.T) {
	t.Parallel()
	var schema struct {
		Definitions map[string]map[string]any
	}
	content, err := os.ReadFile(chart + "/values.schema.json")
	if err == nil {
		err = json.Unmarshal(content, &schema)
	}
	if err != nil {
		t.Fatal(err)
	}
	var known, want []string
	var describe func(path string, node map[string]any)
	describe = func(path string, node map[string]any) {
		if name, ok := node["$ref"].(string); ok {
			node = schema.Definitions[strings.TrimPrefix(name, "#/definitions/")]
		}
		properties, isObject := node["properties"].(map[string]any)
		if isObject && node["additionalProperties"] != false {
			t.Errorf("the schema of %s allows unknown keys", path)
		}
		for key, property := range properties {
			describe(path+"."+key, property.(map[string]any))
		}
		if more, ok := node["additionalProperties"].(map[string]any); ok {
			describe(path+".*", more)
			isObject = true
		}
		if items, ok := node["items"].(map[string]any); ok && items["properties"] != nil {
			describe(path+"[]", items)
			isObject = true
		}
		if !isObject {
			known = append(known, path)
		}
	}
	describe("", schema.Definitions["config"])

	var example yaml.Node
	readYAML(t, "../../config.example.yaml", &example)
	var walk func(path string, node *yaml.Node)
	walk = func(path string, node *yaml.Node) {
		switch {
		case node.Kind == yaml.MappingNode:
			for i := 0; i < len(node.Content); i += 2 {
				key := node.Content[i].Value
				if path == ".sinks" {
					key = "*"
				}
				walk(path+"."+key, node.Content[i+1])
			}
		case node.Kind == yaml.SequenceNode && node.Content[0].Kind == yaml.MappingNode:
			walk(path+"[]", node.Content[0])
		default:
			want = append(want, path)
		}
	}
	walk("", example.Content[0])
	slices.Sort(known)
	slices.Sort(want)
	if want = slices.Compact(want); !slices.Equal(known, want) {
		t.Errorf("config.example.yaml and the schema differ:\n%s", difference(want, known))
	}
}

// difference lists what is in one of two lists only.
func difference(want, got []string) string {
	var text strings.Builder
	for _, path := range want {
		if !slices.Contains(got, path) {
			fmt.Fprintf(&text, "the schema lacks %s\n", path)
		}
	}
	for _, path := range got {
		if !slices.Contains(want, path) {
			fmt.Fprintf(&text, "the schema has %s\n", path)
		}
	}
	return text.String()
}

// What the example shows, the schema lets through.
func TestSchemaTakesTheExample(t *testing.T) {
	t.Parallel()
	var config map[string]any
	readYAML(t, "../../config.example.yaml", &config)
	// The chart gives these itself.
	delete(config, "database")
	delete(config, "http")
	file := values{"config": config, "database": values{"existingSecret": values{"name": "orders-db-app"}}}.file(t)
	render(t, "--values", file)
}
