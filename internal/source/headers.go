package source

import (
	"bytes"
	"encoding/json"
	"errors"

	"github.com/outboxrelay/relay/sinks"
)

var errHeaders = errors.New("not a JSON object")

// appendHeaders appends the members of a JSON object, in jsonb's text form, to
// headers. Strings without escapes share the object's memory; a value that is
// not a string is kept as its JSON text, so that nothing is lost where somebody
// dropped the table's check.
func appendHeaders(headers []sinks.Header, object []byte) ([]sinks.Header, error) {
	rest, ok := bytes.CutPrefix(object, []byte{'{'})
	if !ok {
		return nil, errHeaders
	}
	for {
		rest = bytes.TrimLeft(rest, " ,")
		if len(rest) == 0 {
			return nil, errHeaders
		}
		if rest[0] == '}' {
			return headers, nil
		}
		name, after, err := jsonString(rest)
		if err != nil {
			return nil, err
		}
		rest, ok = bytes.CutPrefix(after, []byte{':'})
		if !ok {
			return nil, errHeaders
		}
		rest = bytes.TrimLeft(rest, " ")
		var value string
		if len(rest) > 0 && rest[0] == '"' {
			value, rest, err = jsonString(rest)
		} else {
			value, rest, err = jsonValue(rest)
		}
		if err != nil {
			return nil, err
		}
		headers = append(headers, sinks.Header{Name: name, Value: value})
	}
}

// jsonString splits a string literal off the front.
func jsonString(b []byte) (value string, rest []byte, err error) {
	if len(b) == 0 || b[0] != '"' {
		return "", nil, errHeaders
	}
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			// The common case has no escapes: find the end, leave the rest to the library.
			for ; i < len(b); i++ {
				if b[i] == '\\' {
					i++
				} else if b[i] == '"' {
					err = json.Unmarshal(b[:i+1], &value)
					return value, b[i+1:], err
				}
			}
		case '"':
			return text(b[1:i]), b[i+1:], nil
		}
	}
	return "", nil, errHeaders
}

// jsonValue splits a value that is not a string off the front.
func jsonValue(b []byte) (value string, rest []byte, err error) {
	decoder := json.NewDecoder(bytes.NewReader(b))
	var raw json.RawMessage
	if err := decoder.Decode(&raw); err != nil {
		return "", nil, errHeaders
	}
	return string(raw), b[decoder.InputOffset():], nil
}
