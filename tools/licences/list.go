package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const introduction = `Outbox Relay is under the Apache License 2.0, which is in LICENSE. Its binaries
are built from the following modules too, whose licences and notices come after
the list.

`

// renderList writes all modules and all texts, each text once.
func renderList(modules []module) []byte {
	var out bytes.Buffer
	out.WriteString(introduction)
	var order []string
	users := map[string][]string{}
	for _, m := range modules {
		fmt.Fprintf(&out, "%-52s %s\n", m.Path, strings.Join(m.Licences, ", "))
		for _, path := range slices.Sorted(maps.Keys(m.Texts)) {
			text := strings.TrimSpace(m.Texts[path])
			if users[text] == nil {
				order = append(order, text)
			}
			users[text] = append(users[text], m.Path+": "+path)
		}
	}
	for _, text := range order {
		fmt.Fprintf(&out, "\n%s\n%s\n\n%s\n", strings.Repeat("=", 80), strings.Join(users[text], "\n"), text)
	}
	return out.Bytes()
}
