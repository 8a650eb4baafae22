package otlp

import (
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
)

// faults returns all that is wrong with the variables. The SDK ignores what it
// does not understand, and speaks of it in words that name no variable and
// show its value.
func (v variables) faults() (all []fault) {
	all = append(all, v.oneOf(envDisabled, strings.ToLower(v(envDisabled)), "true", "false")...)
	all = append(all, v.oneOf(envExporter, v(envExporter), exporterOTLP, exporterNone)...)
	for _, prefix := range []string{envOTLP, envTraces} {
		all = append(all, v.oneOf(prefix+suffixProtocol, v(prefix+suffixProtocol), protocolHTTP, protocolGRPC, protocolJSON)...)
		all = append(all, v.oneOf(prefix+"COMPRESSION", v(prefix+"COMPRESSION"), "gzip", "none")...)
		all = append(all, v.oneOf(prefix+"INSECURE", strings.ToLower(v(prefix+"INSECURE")), "true", "false")...)
		all = append(all, v.number(prefix+"TIMEOUT", "a number of milliseconds, such as 10000")...)
		all = append(all, v.headerFaults(prefix+suffixHeaders)...)
		all = append(all, v.certificateFaults(prefix)...)
	}
	all = append(all, v.endpointFaults()...)
	all = append(all, v.samplerFaults()...)
	all = append(all, v.resourceFaults()...)
	all = append(all, v.bounded(envQueueDelay, maxQueueDelay, "a number of milliseconds, such as 5000")...)
	all = append(all, v.number("OTEL_BSP_EXPORT_TIMEOUT", "a number of milliseconds, such as 30000")...)
	for _, name := range []string{envQueueSize, envQueueBatch} {
		all = append(all, v.bounded(name, maxQueueSize, "a whole number, such as 512,")...)
	}
	for _, name := range []string{
		"OTEL_SPAN_LINK_COUNT_LIMIT", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_EVENT_COUNT_LIMIT",
		"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
		"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT",
	} {
		all = append(all, v.number(name, "a whole number, such as 128")...)
	}
	return all
}

func (v variables) oneOf(name, value string, values ...string) []fault {
	if value == "" || slices.Contains(values, value) {
		return nil
	}
	return faultf(name, "%q is not one of %s", value, strings.Join(values, ", "))
}

func (v variables) number(name, what string) []fault {
	if _, err := strconv.Atoi(v(name)); v(name) == "" || err == nil {
		return nil
	}
	return faultf(name, "%q is not %s", v(name), what)
}

func (v variables) bounded(name string, most int, what string) []fault {
	if v.within(name, most) {
		return nil
	}
	return faultf(name, "%q is not %s between 1 and %d", v(name), what, most)
}

func (v variables) headerFaults(name string) []fault {
	_, wrong := v.headers(name)
	if len(wrong) == 0 {
		return nil
	}
	numbers := make([]string, len(wrong))
	for i, n := range wrong {
		numbers[i] = strconv.Itoa(n)
	}
	return faultf(name, "entry %s is not name=value, as in authorization=Bearer%%20token; entries are separated by commas, and special characters in values are percent-encoded",
		strings.Join(numbers, ", "))
}

// endpointFaults looks at the endpoint that counts. A wrong one is not replaced
// by the default: nobody wants spans at localhost who wrote something else.
func (v variables) endpointFaults() []fault {
	name, value := v.otlp(suffixEndpoint)
	if value == "" {
		return nil
	}
	example := defaultHTTP
	if v.protocol() == protocolGRPC {
		example = defaultGRPC
	}
	u, err := url.Parse(value)
	switch {
	case err != nil: // whose words show the value
	case u.Scheme == "http" || u.Scheme == "https":
		if u.Hostname() == "" {
			break
		}
		if u.User != nil {
			return faultf(name, "it has a user or a password, which are not sent; set %s instead", envOTLP+suffixHeaders)
		}
		return nil
	case v.protocol() == protocolGRPC && (u.Host != "" || u.Opaque != "" || u.Path != ""):
		return nil // one of gRPC's own targets
	}
	return []fault{{variable: name, fatal: true, problem: "it is not a URL that begins with http:// or https:// and names a host, such as " + example}}
}

func (v variables) samplerFaults() []fault {
	sampler := strings.ToLower(v(envSampler))
	all := v.oneOf(envSampler, sampler, "always_on", "always_off", "traceidratio",
		"parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio")
	if argument := v(envSamplerArg); argument != "" && strings.HasSuffix(sampler, "traceidratio") {
		if ratio, err := strconv.ParseFloat(argument, 64); err != nil || !(ratio >= 0 && ratio <= 1) {
			all = append(all, faultf(envSamplerArg, "%q is not a ratio between 0 and 1", argument)...)
		}
	}
	return all
}

func (v variables) resourceFaults() (all []fault) {
	if v(envResource) == "" {
		return nil
	}
	for pair := range strings.SplitSeq(v(envResource), ",") {
		if _, _, found := strings.Cut(pair, "="); !found {
			all = append(all, faultf(envResource, "%q is not key=value", strings.TrimSpace(pair))...)
		}
	}
	return all
}

func (v variables) certificateFaults(prefix string) (all []fault) {
	if path := v(prefix + "CERTIFICATE"); path != "" {
		pem, err := os.ReadFile(path) // the operator named it
		switch {
		case err != nil:
			all = append(all, faultf(prefix+"CERTIFICATE", "%v", err)...)
		case !x509.NewCertPool().AppendCertsFromPEM(pem):
			all = append(all, faultf(prefix+"CERTIFICATE", "%s has no certificate in PEM", path)...)
		}
	}
	certificate, key := v(prefix+"CLIENT_CERTIFICATE"), v(prefix+"CLIENT_KEY")
	switch {
	case certificate == "" && key == "":
	case certificate == "" || key == "":
		all = append(all, faultf(prefix+"CLIENT_CERTIFICATE", "it goes together with %sCLIENT_KEY: set both or neither", prefix)...)
	default:
		if _, err := tls.LoadX509KeyPair(certificate, key); err != nil {
			all = append(all, faultf(prefix+"CLIENT_CERTIFICATE", "%v", err)...)
		}
	}
	return all
}
