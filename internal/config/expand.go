package config

import (
	"errors"
	"fmt"
	"strings"
)

// lookupFunc is os.LookupEnv or a test's own.
type lookupFunc func(string) (string, bool)

// expand replaces ${NAME} and ${NAME:-fallback} in text; $${ stands for ${.
// It returns the variables whose values went into the result. Errors name the
// variable and never a value.
func expand(text string, lookup lookupFunc) (expanded string, variables []string, err error) {
	var out strings.Builder
	for {
		start := strings.IndexByte(text, '$')
		if start < 0 {
			out.WriteString(text)
			return out.String(), variables, nil
		}
		out.WriteString(text[:start])
		text = text[start:]
		switch {
		case strings.HasPrefix(text, "$${"):
			out.WriteString("${")
			text = text[len("$${"):]
		case strings.HasPrefix(text, "${"):
			reference, rest, closed := strings.Cut(text[len("${"):], "}")
			name, fallback, hasFallback := strings.Cut(reference, ":-")
			if !closed || !isVariable(name) {
				return "", nil, errors.New("${ begins an environment variable, ${NAME} or ${NAME:-default}; write $${ for a literal ${")
			}
			value, set := lookup(name)
			switch {
			case set && (value != "" || !hasFallback):
				out.WriteString(value)
				variables = append(variables, name)
			case hasFallback:
				out.WriteString(fallback)
			default:
				return "", nil, fmt.Errorf("the environment variable %s is not set; set it, or write ${%s:-default}", name, name)
			}
			text = rest
		default:
			out.WriteByte('$')
			text = text[1:]
		}
	}
}

// unexpand returns text so that expand returns it unchanged.
func unexpand(text string) string {
	return strings.ReplaceAll(text, "${", "$${")
}

func isVariable(name string) bool {
	for i := range len(name) {
		c := name[i]
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}
