package otlp

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// environment returns variables of a test's own.
func environment(set map[string]string) variables {
	return func(name string) string { return strings.TrimSpace(set[name]) }
}

func TestWanted(t *testing.T) {
	const endpoint, traces = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	for _, test := range []struct {
		set  map[string]string
		want bool
	}{
		{nil, false},
		{map[string]string{endpoint: ""}, false},
		{map[string]string{"OTEL_SERVICE_NAME": "x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_TRACES_SAMPLER": "always_on"}, false},
		{map[string]string{endpoint: "http://c:4318"}, true},
		{map[string]string{traces: "http://c:4318/v1/traces"}, true},
		{map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, true},
		{map[string]string{"OTEL_TRACES_EXPORTER": "none", endpoint: "http://c:4318"}, false},
		{map[string]string{"OTEL_TRACES_EXPORTER": "zipkin", endpoint: "http://c:4318"}, true},
		{map[string]string{"OTEL_TRACES_EXPORTER": "zipkin"}, false},
		{map[string]string{"OTEL_SDK_DISABLED": "TRUE", endpoint: "http://c:4318"}, false},
		{map[string]string{"OTEL_SDK_DISABLED": "false", endpoint: "http://c:4318"}, true},
	} {
		if got := environment(test.set).wanted(); got != test.want {
			t.Errorf("%v: wanted %t, want %t", test.set, got, test.want)
		}
	}
}

func TestFaults(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.pem")
	if err := os.WriteFile(garbage, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	const secret = "s3cr3t-token"
	for _, test := range []struct {
		name, value string
		// and is one more variable, NAME=value.
		and string
		// want is in the problem; empty: there is none.
		want  string
		fatal bool
	}{
		{name: "OTEL_SDK_DISABLED", value: "yes", want: `"yes" is not one of true, false`},
		{name: "OTEL_TRACES_EXPORTER", value: "zipkin", want: "not one of otlp, none"},
		{name: "OTEL_EXPORTER_OTLP_PROTOCOL", value: "http", want: "not one of http/protobuf, grpc, http/json"},
		{name: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", value: "http/json"},
		{name: "OTEL_EXPORTER_OTLP_COMPRESSION", value: "zstd", want: "not one of gzip, none"},
		{name: "OTEL_EXPORTER_OTLP_TRACES_INSECURE", value: "1", want: "not one of true, false"},
		{name: "OTEL_EXPORTER_OTLP_TIMEOUT", value: "10s", want: "milliseconds"},
		{name: "OTEL_EXPORTER_OTLP_TIMEOUT", value: "10000"},
		{name: "OTEL_EXPORTER_OTLP_HEADERS", value: "a=b,authorization " + secret, want: "entry 2 is not name=value"},
		{name: "OTEL_EXPORTER_OTLP_TRACES_HEADERS", value: "a key=" + secret + ",ok=1,=" + secret, want: "entry 1, 3 is not"},
		{name: "OTEL_EXPORTER_OTLP_HEADERS", value: "a=%zz" + secret, want: "entry 1 is not"},
		{name: "OTEL_EXPORTER_OTLP_HEADERS", value: "authorization=Bearer%20" + secret + ", x-scope = 1"},
		{name: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "http://collector:4318"},
		{name: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "collector:4318", want: "begins with http:// or https://", fatal: true},
		{name: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "10.0.0.1:4318", want: "such as http://localhost:4318", fatal: true},
		{name: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "http://user:" + secret + "@ c:1", want: "begins with", fatal: true},
		{name: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "http://", want: "names a host", fatal: true},
		{name: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", value: "amqp://c", want: "begins with", fatal: true},
		{name: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "http://user:" + secret + "@c:4318", want: "which are not sent"},
		{name: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "collector:4317", and: "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"},
		{name: "OTEL_EXPORTER_OTLP_ENDPOINT", value: "10.0.0.1:4317", and: "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", want: "such as http://localhost:4317", fatal: true},
		{name: "OTEL_TRACES_SAMPLER", value: "sometimes", want: "not one of always_on"},
		{name: "OTEL_TRACES_SAMPLER_ARG", value: "2", and: "OTEL_TRACES_SAMPLER=traceidratio", want: "between 0 and 1"},
		{name: "OTEL_TRACES_SAMPLER_ARG", value: "NaN", and: "OTEL_TRACES_SAMPLER=parentbased_traceidratio", want: "between 0 and 1"},
		{name: "OTEL_TRACES_SAMPLER_ARG", value: "0.25", and: "OTEL_TRACES_SAMPLER=parentbased_traceidratio"},
		{name: "OTEL_RESOURCE_ATTRIBUTES", value: "deployment.environment.name=test,oops", want: `"oops" is not key=value`},
		{name: "OTEL_RESOURCE_ATTRIBUTES", value: "a=b,c=d"},
		{name: "OTEL_BSP_SCHEDULE_DELAY", value: "5s", want: "milliseconds"},
		{name: "OTEL_BSP_MAX_QUEUE_SIZE", value: "lots", want: "whole number"},
		{name: "OTEL_SPAN_LINK_COUNT_LIMIT", value: "-1"},
		{name: "OTEL_EXPORTER_OTLP_CERTIFICATE", value: filepath.Join(dir, "missing.pem"), want: "missing.pem: no such file"},
		{name: "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", value: garbage, want: "no certificate"},
		{name: "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", value: garbage, want: "OTEL_EXPORTER_OTLP_CLIENT_KEY: set both"},
		{name: "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", value: garbage, and: "OTEL_EXPORTER_OTLP_CLIENT_KEY=" + garbage, want: "certificate"},
	} {
		set := map[string]string{test.name: " " + test.value + " "}
		if name, value, ok := strings.Cut(test.and, "="); ok {
			set[name] = value
		}
		faults := environment(set).faults()
		if test.want == "" {
			if len(faults) != 0 {
				t.Errorf("%v is right, and yet: %+v", set, faults)
			}
			continue
		}
		if len(faults) != 1 || faults[0].variable != test.name || !strings.Contains(faults[0].problem, test.want) || faults[0].fatal != test.fatal {
			t.Errorf("%v: got %+v, want one of %s with %q, fatal: %t", set, faults, test.name, test.want, test.fatal)
			continue
		}
		if strings.Contains(faults[0].problem, secret) {
			t.Errorf("%s: the problem shows a secret: %s", test.name, faults[0].problem)
		}
	}
}

func TestEndpointShown(t *testing.T) {
	for want, set := range map[string]map[string]string{
		"http://localhost:4318/v1/traces": {},
		"http://localhost:4317":           {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
		"https://c/otlp/v1/traces":        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://user:password@c/otlp/?token=1"},
		"http://c:1/mine":                 {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://other", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:1/mine"},
		"collector:4317":                  {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
	} {
		if got := environment(set).endpoint(); got != want {
			t.Errorf("%v: %s, want %s", set, got, want)
		}
	}
}
