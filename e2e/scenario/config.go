package scenario

import (
	"maps"
	"strings"
)

// Config is a relay's configuration, the tree that its YAML file is.
type Config map[string]any

// Settings are values by their path in a configuration, such as
// "outbox.batch_size".
type Settings map[string]any

// With returns a copy of the configuration that has the settings.
func (c Config) With(settings Settings) Config {
	changed := c.clone()
	for path, value := range settings {
		changed.set(strings.Split(path, "."), value)
	}
	return changed
}

func (c Config) clone() Config {
	copied := maps.Clone(c)
	if copied == nil {
		copied = Config{}
	}
	for key, value := range copied {
		if tree, ok := value.(Config); ok {
			copied[key] = tree.clone()
		}
	}
	return copied
}

func (c Config) set(path []string, value any) {
	if len(path) == 1 {
		c[path[0]] = value
		return
	}
	tree, ok := c[path[0]].(Config)
	if !ok {
		tree = Config{}
		c[path[0]] = tree
	}
	tree.set(path[1:], value)
}

// get returns the value at the path, or otherwise.
func get[T any](c Config, path string, otherwise T) T {
	var node any = c
	for name := range strings.SplitSeq(path, ".") {
		tree, ok := node.(Config)
		if !ok {
			return otherwise
		}
		node = tree[name]
	}
	if value, ok := node.(T); ok {
		return value
	}
	return otherwise
}

// InFlight is how many rows a relay with this configuration has in flight at
// most: what may become duplicates when it dies.
func (c Config) InFlight() int {
	return get(c, "outbox.workers", 4) * get(c, "outbox.batch_size", 1000)
}
