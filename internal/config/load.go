package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Load reads the file at path; see Parse. A file that cannot be read is an
// error that names the path and the remedy.
func Load(path string, lookupEnv func(string) (string, bool)) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w; name another with --config FILE or $RELAY_CONFIG", path, withoutPath(err))
	}
	return Parse(path, data, lookupEnv)
}

// Parse reads a configuration: it expands environment variables with lookupEnv
// (nil means os.LookupEnv), fills in defaults, reads the files of *_file keys
// and validates. The name stands for the file in errors.
//
// The error of a configuration that is wrong is of type Errors and holds all
// mistakes. The configuration is nil then.
func Parse(name string, data []byte, lookupEnv func(string) (string, bool)) (*Config, error) {
	if lookupEnv == nil {
		lookupEnv = os.LookupEnv
	}
	d := newDocument(name, lookupEnv)
	config := Default()
	if root := d.parse(data); root != nil {
		d.decode("", root, reflect.ValueOf(config).Elem())
	}
	if len(d.syntax) > 0 {
		return nil, d.syntax
	}
	config.files = map[string]string{}
	d.readSecrets("", reflect.ValueOf(config).Elem(), config.files)
	d.validate(config)
	if len(d.errors) > 0 {
		d.errors.sort()
		return nil, d.errors
	}
	config.completeRoutes()
	_, config.namesInbox = d.at["inbox"]
	return config, nil
}

// parse returns the root of the only YAML document, nil when there is none.
func (d *document) parse(data []byte) *yaml.Node {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var root, next yaml.Node
	if err := decoder.Decode(&root); err != nil {
		if !errors.Is(err, io.EOF) {
			d.syntaxError(err, data)
		}
		return nil
	}
	if err := decoder.Decode(&next); !errors.Is(err, io.EOF) {
		line := max(next.Line, 1)
		if err != nil {
			line, _ = syntaxLine(err)
		}
		d.syntax = Errors{{File: d.name, Line: line, Message: "the file has a second YAML document (after ---); one is allowed"}}
		return nil
	}
	if root.Kind != yaml.DocumentNode || len(root.Content) != 1 {
		return nil
	}
	return root.Content[0]
}

func (d *document) syntaxError(err error, data []byte) {
	line, message := syntaxLine(err)
	if strings.Contains(message, "did not find expected ','") && bytes.Contains(data, []byte("${")) {
		message += "; inside {…} and […] a value with ${…} must be in quotes"
	}
	// This one quotes the file, and *… in the place of a password is the
	// likeliest way to get there. It has no line.
	if match := unknownAnchor.FindStringSubmatch(message); match != nil {
		before, _, _ := bytes.Cut(data, []byte("*"+match[1]))
		line = 1 + bytes.Count(before, []byte("\n"))
		message = "a value begins with * and names an anchor that does not exist; put the value in quotes"
	}
	d.syntax = Errors{{File: d.name, Line: line, Message: "not valid YAML: " + message}}
}

var unknownAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced`)

var syntaxErrorLine = regexp.MustCompile(`^line (\d+): `)

func syntaxLine(err error) (line int, message string) {
	message = strings.TrimPrefix(err.Error(), "yaml: ")
	match := syntaxErrorLine.FindStringSubmatch(message)
	if match == nil {
		return 1, message
	}
	line, _ = strconv.Atoi(match[1])
	return max(line, 1), message[len(match[0]):]
}
