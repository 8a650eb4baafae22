package config

import (
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/outboxrelay/relay/internal/setting"
)

// Print writes the configuration as YAML: every key in the order of the
// documentation, defaults filled in, every secret replaced by ***. URLs keep
// all but their passwords. A secret that was read from a file shows the file
// instead. What it writes can be loaded again.
func (c *Config) Print(w io.Writer) error {
	encoder := yaml.NewEncoder(w)
	encoder.SetIndent(2)
	node, err := c.node("", reflect.ValueOf(c).Elem())
	if err != nil {
		return err
	}
	if err := encoder.Encode(node); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return encoder.Close()
}

func (c *Config) node(path string, value reflect.Value) (*yaml.Node, error) {
	if duration, ok := reflect.TypeAssert[time.Duration](value); ok {
		return stringNode(setting.Format(duration)), nil
	}
	switch value.Kind() {
	case reflect.Struct:
		return c.structNode(path, value)
	case reflect.Pointer:
		return c.node(path, value.Elem())
	case reflect.Map:
		node := &yaml.Node{Kind: yaml.MappingNode}
		for _, key := range sortedKeys(value) {
			child, err := c.node(join(path, key.String()), value.MapIndex(key))
			if err != nil {
				return nil, err
			}
			node.Content = append(node.Content, wordNode(key.String()), child)
		}
		return node, nil
	case reflect.Slice:
		node := &yaml.Node{Kind: yaml.SequenceNode}
		if value.Len() == 0 || value.Index(0).Kind() == reflect.String {
			node.Style = yaml.FlowStyle
		}
		for i := range value.Len() {
			child, err := c.node(fmt.Sprintf("%s[%d]", path, i), value.Index(i))
			if err != nil {
				return nil, err
			}
			node.Content = append(node.Content, child)
		}
		return node, nil
	case reflect.String:
		return stringNode(value.String()), nil
	}
	node := &yaml.Node{}
	if err := node.Encode(value.Interface()); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return node, nil
}

func (c *Config) structNode(path string, value reflect.Value) (*yaml.Node, error) {
	keys := map[string]bool{}
	for i := range value.NumField() {
		keys[keyOf(value.Type().Field(i))] = true
	}
	node := &yaml.Node{Kind: yaml.MappingNode}
	for i := range value.NumField() {
		key, field := keyOf(value.Type().Field(i)), value.Field(i)
		if key == "" || field.Kind() == reflect.Pointer && field.IsNil() {
			continue
		}
		below := join(path, key)
		var child *yaml.Node
		switch secret, isTwin := strings.CutSuffix(key, twinSuffix); {
		case keys[key+twinSuffix]:
			child = stringNode(hide(key, field.String()))
			if c.files[below] != "" {
				child = stringNode("")
			}
		case isTwin && keys[secret]:
			file := field.String()
			if file == "" {
				file = c.files[join(path, secret)]
			}
			child = stringNode(file)
		default:
			var err error
			if child, err = c.node(below, field); err != nil {
				return nil, err
			}
		}
		node.Content = append(node.Content, wordNode(key), child)
	}
	return node, nil
}

// stringNode is a value, in which ${ must not be expanded when it is read.
func stringNode(text string) *yaml.Node { return wordNode(unexpand(text)) }

// wordNode is a string as the encoder would quote it: yes and 1e3 are strings
// for this package, and something else for other readers of YAML.
func wordNode(text string) *yaml.Node {
	node := &yaml.Node{}
	if err := node.Encode(text); err != nil {
		node.SetString(text)
	}
	return node
}
