package pattern

import (
	"strings"
	"testing"
)

func TestTemplate(t *testing.T) {
	for _, test := range []struct {
		source, want                 string
		usesTopic, usesType, usesKey bool
	}{
		{"", "", false, false, false},
		{"events", "events", false, false, false},
		{"{topic}", "orders", true, false, false},
		{"{type}", "OrderPlaced", false, true, false},
		{"{key}", "42", false, false, true},
		{"a.{topic}.{type}-{key}_z", "a.orders.OrderPlaced-42_z", true, true, true},
		{"{topic}{topic}", "ordersorders", true, false, false},
	} {
		template, err := ParseTemplate(test.source)
		if err != nil {
			t.Errorf("%q: %v", test.source, err)
			continue
		}
		if got := template.Expand("orders", "OrderPlaced", []byte("42")); got != test.want {
			t.Errorf("%q: got %q, want %q", test.source, got, test.want)
		}
		if template.UsesTopic() != test.usesTopic || template.UsesType() != test.usesType || template.UsesKey() != test.usesKey {
			t.Errorf("%q: uses %v %v %v", test.source, template.UsesTopic(), template.UsesType(), template.UsesKey())
		}
		if template.String() != test.source {
			t.Errorf("%q became %q", test.source, template.String())
		}
	}
	template, err := ParseTemplate("{key}")
	if err != nil || template.Expand("t", "", nil) != "" {
		t.Errorf("a null key is not empty: %v", err)
	}
}

func TestTemplateErrors(t *testing.T) {
	for source, want := range map[string]string{
		"{tpoic}":  "unknown placeholder",
		"{}":       "unknown placeholder",
		"{TOPIC}":  "unknown placeholder",
		"{topic":   "{ has no matching }",
		"topic}":   "} has no matching {",
		"{{topic}": "unknown placeholder",
	} {
		if _, err := ParseTemplate(source); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", source, err, want)
		}
	}
}

func TestValidKafkaTopic(t *testing.T) {
	for name, valid := range map[string]bool{
		"orders": true, "a.b_c-D9": true, strings.Repeat("a", 249): true, "...": true,
		"": false, ".": false, "..": false, "a b": false, "ü": false, "a/b": false, strings.Repeat("a", 250): false,
	} {
		if err := ValidKafkaTopic(name); (err == nil) != valid {
			t.Errorf("%q: %v", name, err)
		}
	}
}
