package otlp

import (
	"fmt"
	"net/url"
	"os"
	"strings"
)

// The values of OTEL_EXPORTER_OTLP_PROTOCOL.
const (
	protocolGRPC = "grpc"
	protocolHTTP = "http/protobuf"
	protocolJSON = "http/json"
)

// The values of OTEL_TRACES_EXPORTER.
const (
	exporterOTLP = "otlp"
	exporterNone = "none"
)

// The variables that decide here; the SDK reads those and all others by itself.
const (
	envDisabled      = "OTEL_SDK_DISABLED"
	envExporter      = "OTEL_TRACES_EXPORTER"
	envSampler       = "OTEL_TRACES_SAMPLER"
	envSamplerArg    = "OTEL_TRACES_SAMPLER_ARG"
	envResource      = "OTEL_RESOURCE_ATTRIBUTES"
	envQueueSize     = "OTEL_BSP_MAX_QUEUE_SIZE"
	envQueueBatch    = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
	envQueueDelay    = "OTEL_BSP_SCHEDULE_DELAY"
	envOTLP          = "OTEL_EXPORTER_OTLP_"
	envTraces        = envOTLP + "TRACES_"
	suffixProtocol   = "PROTOCOL"
	suffixEndpoint   = "ENDPOINT"
	suffixHeaders    = "HEADERS"
	defaultHTTP      = "http://localhost:4318"
	defaultGRPC      = "http://localhost:4317"
	tracesPath       = "/v1/traces"
	disabledByStdVar = "true"
)

// variables is the environment.
type variables func(name string) string

// readVariables returns the process's environment, as the SDK reads it.
func readVariables() variables {
	return func(name string) string { return strings.TrimSpace(os.Getenv(name)) }
}

// wanted reports whether traces are asked for: a collector is named, or the
// exporter. An empty variable is one that is not set.
func (v variables) wanted() bool {
	if strings.EqualFold(v(envDisabled), disabledByStdVar) || v(envExporter) == exporterNone {
		return false
	}
	_, endpoint := v.otlp(suffixEndpoint)
	return endpoint != "" || v(envExporter) == exporterOTLP
}

// otlp returns a variable of the exporter: the one for traces before the one
// for all signals.
func (v variables) otlp(suffix string) (name, value string) {
	if value := v(envTraces + suffix); value != "" {
		return envTraces + suffix, value
	}
	return envOTLP + suffix, v(envOTLP + suffix)
}

// protocol returns the exporter's protocol; one that does not exist counts as
// not set.
func (v variables) protocol() string {
	switch _, value := v.otlp(suffixProtocol); value {
	case protocolGRPC, protocolJSON:
		return value
	default:
		return protocolHTTP
	}
}

// endpoint returns where the spans go, for logs: without credentials and query.
func (v variables) endpoint() string {
	name, value := v.otlp(suffixEndpoint)
	grpc := v.protocol() == protocolGRPC
	switch {
	case value == "" && grpc:
		value = defaultGRPC
	case value == "":
		value = defaultHTTP
	}
	u, err := url.Parse(value)
	if err != nil || u.Host == "" {
		return value // a target of gRPC's, host:port; faults has seen all others
	}
	shown := url.URL{Scheme: u.Scheme, Host: u.Host}
	if !grpc {
		shown.Path = u.Path
		if name == envOTLP+suffixEndpoint {
			shown.Path = strings.TrimSuffix(u.Path, "/") + tracesPath
		}
	}
	return shown.String()
}

// headers returns the pairs of a variable of headers, and the numbers of those
// that are none.
func (v variables) headers(name string) (values []string, wrong []int) {
	if v(name) == "" {
		return nil, nil
	}
	for i, pair := range strings.Split(v(name), ",") {
		key, value, found := strings.Cut(pair, "=")
		decoded, err := url.PathUnescape(value)
		if !found || err != nil || !isToken(strings.TrimSpace(key)) {
			wrong = append(wrong, i+1)
			continue
		}
		values = append(values, strings.TrimSpace(value), strings.TrimSpace(decoded))
	}
	return values, wrong
}

// secrets returns what no error may show.
func (v variables) secrets() secrets {
	ofAll, _ := v.headers(envOTLP + suffixHeaders)
	ofTraces, _ := v.headers(envTraces + suffixHeaders)
	return newSecrets(append(ofAll, ofTraces...))
}

// isToken reports whether the SDK takes it for the name of a header.
func isToken(name string) bool {
	return name != "" && strings.IndexFunc(name, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", c)
	}) < 0
}

// fault is what is wrong with a variable. It never has the value of one that
// may be a secret.
type fault struct {
	variable, problem string
	// fatal: there is no sense in exporting anything.
	fatal bool
}

func faultf(variable, format string, arguments ...any) []fault {
	return []fault{{variable: variable, problem: fmt.Sprintf(format, arguments...)}}
}
