package config

import (
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// document is a file while it becomes a Config: where its keys are, which of
// its values must not be shown, and what is wrong with it.
type document struct {
	name   string
	lookup lookupFunc
	// at holds the line of each path that the file has.
	at map[string]int
	// secret holds the paths that have a *_file twin.
	secret map[string]bool
	// expanded holds the paths whose values come from the environment.
	expanded map[string]expansion
	// opaque holds the paths whose value is no mapping or list where one is
	// expected: nothing inside them can be judged.
	opaque []string
	errors Errors
	syntax Errors
}

func newDocument(name string, lookup lookupFunc) *document {
	return &document{
		name:     name,
		lookup:   lookup,
		at:       map[string]int{"": 1},
		secret:   map[string]bool{},
		expanded: map[string]expansion{},
	}
}

type expansion struct {
	variables []string
	value     string
}

// reference names the variables of an expansion.
func (e expansion) reference() string { return "${" + strings.Join(e.variables, "}, ${") + "}" }

// errorf records a mistake at path, at most one for each path and nothing for
// a path below which something is wrong already: what else is wrong there is
// likely to follow from it.
func (d *document) errorf(path, format string, arguments ...any) {
	for _, outer := range d.opaque {
		if outer == "" || below(path, outer) {
			return
		}
	}
	for _, known := range d.errors {
		if below(known.Path, path) {
			return
		}
	}
	d.errors = append(d.errors, &Error{File: d.name, Line: d.line(path), Path: path, Message: fmt.Sprintf(format, arguments...)})
}

// line returns the line of path or of the nearest ancestor that the file has.
func (d *document) line(path string) int {
	for {
		if line, ok := d.at[path]; ok {
			return line
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
}

// below reports whether path is ancestor itself or inside it.
func below(path, ancestor string) bool {
	rest, ok := strings.CutPrefix(path, ancestor)
	return ok && ancestor != "" && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// show returns the value at path as an error may show it.
func (d *document) show(path, value string) string {
	if from, ok := d.expanded[path]; ok {
		return "the value of " + from.reference()
	}
	if d.secret[path] {
		return "the value"
	}
	const longest = 80
	if len(value) > longest {
		value = value[:longest] + "…"
	}
	return strconv.Quote(value)
}

func join(path, key string) string {
	if path == "" || key == "" {
		return path + key
	}
	return path + "." + key
}

// decode fills target, which holds defaults, from node. It reports what does
// not fit and goes on.
func (d *document) decode(path string, node *yaml.Node, target reflect.Value) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if target.Type() == reflect.TypeFor[time.Duration]() {
		d.decodeDuration(path, node, target)
		return
	}
	switch target.Kind() {
	case reflect.Struct:
		d.decodeStruct(path, node, target)
	case reflect.Pointer:
		value := newDefault(target.Type().Elem())
		d.decode(path, node, value.Elem())
		target.Set(value)
	case reflect.Map:
		d.decodeMap(path, node, target)
	case reflect.Slice:
		d.decodeSlice(path, node, target)
	default:
		d.decodeScalar(path, node, target)
	}
}

func isNull(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null"
}

// pairs returns the keys and values of a mapping, and reports keys that are
// there twice or are no plain words.
func (d *document) pairs(path string, node *yaml.Node) (keys, values []*yaml.Node) {
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			d.reject(path, key.Line, "a key must be a plain word, not a list or mapping")
			continue
		}
		if first, twice := seen[key.Value]; twice {
			d.reject(join(path, key.Value), key.Line, "duplicate key, first given in line %d", first)
			continue
		}
		seen[key.Value] = key.Line
		keys, values = append(keys, key), append(values, value)
	}
	return keys, values
}

// reject records a mistake in a line that is not the line of path.
func (d *document) reject(path string, line int, format string, arguments ...any) {
	d.errors = append(d.errors, &Error{File: d.name, Line: line, Path: path, Message: fmt.Sprintf(format, arguments...)})
}

func (d *document) decodeStruct(path string, node *yaml.Node, target reflect.Value) {
	fields := map[string]int{}
	var known []string
	for i := range target.NumField() {
		if name := keyOf(target.Type().Field(i)); name != "" {
			fields[name] = i
			known = append(known, name)
		}
	}
	for name := range fields {
		if _, ok := fields[name+"_file"]; ok {
			d.secret[join(path, name)] = true
		}
	}
	if isNull(node) {
		return
	}
	if node.Kind != yaml.MappingNode {
		d.wrongType(path, node, "a mapping with the keys "+strings.Join(known, ", "))
		return
	}
	keys, values := d.pairs(path, node)
	for i, key := range keys {
		field, ok := fields[key.Value]
		if !ok {
			d.unknownKey(path, node, key, values[i], known)
			continue
		}
		below := join(path, key.Value)
		d.at[below] = key.Line
		d.decode(below, values[i], target.Field(field))
	}
}

func (d *document) unknownKey(path string, mapping, key, value *yaml.Node, known []string) {
	switch near := nearest(key.Value, known); {
	case key.ShortTag() == "!!merge":
		d.reject(path, key.Line, "merge keys (<<) are not supported; repeat the keys")
	case mapping.Style&yaml.FlowStyle != 0 && isNull(value) && value.Value == "":
		// {password: a,b}: the key may be the rest of a secret.
		d.reject(path, key.Line, "a word without a value inside {…}; a value with a comma, brace or bracket must be in quotes")
	case near != "":
		d.reject(join(path, key.Value), key.Line, "unknown key; did you mean %s?", near)
	default:
		d.reject(join(path, key.Value), key.Line, "unknown key; known here: %s", strings.Join(known, ", "))
	}
}

func (d *document) decodeMap(path string, node *yaml.Node, target reflect.Value) {
	if isNull(node) {
		return
	}
	if node.Kind != yaml.MappingNode {
		d.wrongType(path, node, "a mapping")
		return
	}
	target.Set(reflect.MakeMap(target.Type()))
	keys, values := d.pairs(path, node)
	for i, key := range keys {
		below := join(path, key.Value)
		d.at[below] = key.Line
		value := reflect.New(target.Type().Elem()).Elem()
		d.decode(below, values[i], value)
		target.SetMapIndex(reflect.ValueOf(key.Value), value)
	}
}

func (d *document) decodeSlice(path string, node *yaml.Node, target reflect.Value) {
	if isNull(node) {
		return
	}
	if node.Kind != yaml.SequenceNode {
		d.wrongType(path, node, "a list")
		return
	}
	target.Set(reflect.MakeSlice(target.Type(), len(node.Content), len(node.Content)))
	for i, element := range node.Content {
		below := path + "[" + strconv.Itoa(i) + "]"
		d.at[below] = element.Line
		d.decode(below, element, target.Index(i))
	}
}

// scalar returns the text of a scalar with its variables expanded, and the type
// of the result.
func (d *document) scalar(path string, node *yaml.Node) (text, tag string, ok bool) {
	tag = node.ShortTag()
	if !strings.Contains(node.Value, "${") {
		return node.Value, tag, true
	}
	text, variables, err := expand(node.Value, d.lookup)
	if err != nil {
		d.errorf(path, "%v", err)
		return "", "", false
	}
	if len(variables) > 0 {
		d.expanded[path] = expansion{variables, text}
	}
	if !utf8.ValidString(text) {
		d.errorf(path, "%s is not UTF-8", d.show(path, ""))
		return "", "", false
	}
	// Inside {…} YAML wants quotes around ${…}, so that quotes say nothing
	// about the type here: a string is what a string is wanted for.
	return text, (&yaml.Node{Kind: yaml.ScalarNode, Value: text}).ShortTag(), true
}

func (d *document) decodeScalar(path string, node *yaml.Node, target reflect.Value) {
	expected := map[reflect.Kind]string{
		reflect.String: "a string", reflect.Bool: "true or false", reflect.Int: "a whole number", reflect.Float64: "a number",
	}[target.Kind()]
	if node.Kind != yaml.ScalarNode {
		d.wrongType(path, node, expected)
		return
	}
	text, tag, ok := d.scalar(path, node)
	if !ok {
		return
	}
	if target.Kind() == reflect.String {
		switch {
		case tag == "!!str" || tag == "!!timestamp" || strings.Contains(node.Value, "${"):
			target.SetString(text)
		case tag != "!!null":
			d.errorf(path, "expected a string, found %s; put it in quotes", describe(tag))
		}
		return
	}
	if tag == "!!null" {
		return
	}
	digits := strings.ReplaceAll(text, "_", "")
	switch target.Kind() {
	case reflect.Bool:
		value, err := strconv.ParseBool(strings.ToLower(text))
		if ok = err == nil && tag == "!!bool"; ok {
			target.SetBool(value)
		}
	case reflect.Int:
		value, err := strconv.ParseInt(digits, 10, 64)
		if ok = err == nil && tag == "!!int" && !target.OverflowInt(value); ok {
			target.SetInt(value)
		}
	case reflect.Float64:
		value, err := strconv.ParseFloat(digits, 64)
		ok = err == nil && (tag == "!!float" || tag == "!!int") && !math.IsInf(value, 0) && !math.IsNaN(value)
		if ok {
			target.SetFloat(value)
		}
	default:
		panic("config: no decoder for " + target.Type().String())
	}
	if !ok {
		d.errorf(path, "expected %s, found %s", expected, d.show(path, text))
	}
}

func (d *document) decodeDuration(path string, node *yaml.Node, target reflect.Value) {
	const expected = "a duration such as 500ms, 30s or 24h"
	if node.Kind != yaml.ScalarNode {
		d.wrongType(path, node, expected)
		return
	}
	text, tag, ok := d.scalar(path, node)
	if !ok || tag == "!!null" {
		return
	}
	value, err := time.ParseDuration(text)
	switch {
	case err == nil && value < 0:
		d.errorf(path, "%s is negative", d.show(path, text))
	case err == nil:
		target.SetInt(int64(value))
	case tag == "!!int" || tag == "!!float":
		d.errorf(path, "expected %s, found %s without a unit", expected, d.show(path, text))
	default:
		d.errorf(path, "expected %s, found %s; the units are ns, us, ms, s, m and h", expected, d.show(path, text))
	}
}

// wrongType reports a node whose kind does not fit; it shows no more of it
// than a plain scalar, and not what stands where a mapping should: a section may
// hold secrets, and so may what somebody wrote instead of it.
func (d *document) wrongType(path string, node *yaml.Node, expected string) {
	found := describe(node.ShortTag())
	if node.Kind == yaml.ScalarNode && !strings.HasPrefix(expected, "a mapping") && !d.secret[path] && !strings.Contains(node.Value, "${") {
		found += " (" + d.show(path, node.Value) + ")"
	}
	d.errorf(path, "expected %s, found %s", expected, found)
	d.opaque = append(d.opaque, path)
}

func describe(tag string) string {
	switch tag {
	case "!!map":
		return "a mapping"
	case "!!seq":
		return "a list"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!null":
		return "nothing"
	case "!!str", "!!timestamp":
		return "a string"
	}
	return "something with a tag"
}

// keyOf returns the key of a field in the file, empty when it has none.
func keyOf(field reflect.StructField) string {
	name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
	if name == "-" {
		return ""
	}
	return name
}
