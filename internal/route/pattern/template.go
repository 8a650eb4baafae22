package pattern

import (
	"errors"
	"fmt"
	"strings"
)

// Variables are the placeholders that a template may have.
const Variables = "{topic}, {type} and {key}"

// Template makes a destination out of a row. It is immutable and its zero
// value is the empty text.
type Template struct {
	source string
	parts  []part
}

type part struct {
	kind kind
	text string
}

type kind uint8

const (
	text kind = iota
	topic
	typ
	key
)

// ParseTemplate compiles a template. Errors say what is wrong without
// repeating more than the placeholder.
func ParseTemplate(source string) (*Template, error) {
	template := &Template{source: source}
	for rest := source; rest != ""; {
		before, after, found := strings.Cut(rest, "{")
		if strings.Contains(before, "}") {
			return nil, errors.New("} has no matching {")
		}
		if before != "" {
			template.parts = append(template.parts, part{text, before})
		}
		if !found {
			break
		}
		name, after, closed := strings.Cut(after, "}")
		if !closed {
			return nil, errors.New("{ has no matching }")
		}
		switch name {
		case "topic":
			template.parts = append(template.parts, part{kind: topic})
		case "type":
			template.parts = append(template.parts, part{kind: typ})
		case "key":
			template.parts = append(template.parts, part{kind: key})
		default:
			return nil, fmt.Errorf("unknown placeholder; known are %s", Variables)
		}
		rest = after
	}
	return template, nil
}

// Expand returns the template's text for a row. It allocates nothing when the
// template is a single placeholder of topic or type, or has none.
func (t *Template) Expand(rowTopic, rowType string, rowKey []byte) string {
	if len(t.parts) == 1 && t.parts[0].kind != key {
		return t.parts[0].value(rowTopic, rowType)
	}
	var out strings.Builder
	for _, p := range t.parts {
		if p.kind == key {
			out.Write(rowKey)
		} else {
			out.WriteString(p.value(rowTopic, rowType))
		}
	}
	return out.String()
}

func (p part) value(rowTopic, rowType string) string {
	switch p.kind {
	case topic:
		return rowTopic
	case typ:
		return rowType
	}
	return p.text
}

// UsesTopic reports whether the text depends on the row's topic.
func (t *Template) UsesTopic() bool { return t.uses(topic) }

// UsesType reports whether the text depends on the row's type.
func (t *Template) UsesType() bool { return t.uses(typ) }

// UsesKey reports whether the text depends on the row's key.
func (t *Template) UsesKey() bool { return t.uses(key) }

func (t *Template) uses(k kind) bool {
	for _, p := range t.parts {
		if p.kind == k {
			return true
		}
	}
	return false
}

// Text returns what the template has beside its placeholders.
func (t *Template) Text() string {
	var out strings.Builder
	for _, p := range t.parts {
		out.WriteString(p.text)
	}
	return out.String()
}

// String returns the template as it was written.
func (t *Template) String() string { return t.source }
