package source

import (
	"fmt"
	"strings"
)

// Exclusion names pending rows that a claim leaves where they are, because
// they wait for a retry. The zero value excludes nothing and costs nothing.
type Exclusion struct {
	// Topics are held back as a whole.
	Topics []string
	// Keys are held back one by one.
	Keys []Key
	// IDs are held back one by one: rows without a key.
	IDs []int64
	// Rules, the first that matches a row decides whether it is held back.
	Rules []Rule
}

// Key is one ordered sequence: the rows of one topic with one key.
type Key struct {
	Topic, Key string
}

// Rule holds back the rows whose topic and type match, or lets them pass.
type Rule struct {
	// TopicPattern and TypePattern are anchored regular expressions.
	TopicPattern, TypePattern string
	// AnyType: TypePattern matches all types.
	AnyType  bool
	HoldBack bool
}

// sql returns the clause that excludes, beginning with AND, its first
// parameter numbered from first on. The row is called o.
func (e *Exclusion) sql(first int) string {
	var b strings.Builder
	next := first
	parameter := func() int { next++; return next - 1 }
	if len(e.Topics) > 0 {
		fmt.Fprintf(&b, " AND o.topic <> ALL ($%d::text[])", parameter())
	}
	if len(e.Keys) > 0 {
		fmt.Fprintf(&b, " AND NOT EXISTS (SELECT FROM unnest($%d::text[], $%d::text[]) AS h(topic, key) WHERE h.topic = o.topic AND h.key = o.key)", parameter(), parameter())
	}
	if len(e.IDs) > 0 {
		fmt.Fprintf(&b, " AND o.id <> ALL ($%d::bigint[])", parameter())
	}
	if len(e.Rules) > 0 {
		b.WriteString(" AND CASE")
		for _, rule := range e.Rules {
			fmt.Fprintf(&b, " WHEN o.topic ~ $%d::text AND o.type ~ $%d::text THEN %t", parameter(), parameter(), !rule.HoldBack)
		}
		b.WriteString(" ELSE true END")
	}
	return b.String()
}

// heldSQL is sql for an entry p of the held back rows. The types of a key's rows
// are not known before they are read: it is not drained while a rule holds back
// that may be the first to match one of them.
func (e *Exclusion) heldSQL(first int) string {
	var b strings.Builder
	next := first
	parameter := func() int { next++; return next - 1 }
	if len(e.Topics) > 0 {
		fmt.Fprintf(&b, " AND p.topic <> ALL ($%d::text[])", parameter())
	}
	if len(e.Keys) > 0 {
		fmt.Fprintf(&b, " AND NOT EXISTS (SELECT FROM unnest($%d::text[], $%d::text[]) AS h(topic, key) WHERE h.topic = p.topic AND h.key = p.key)", parameter(), parameter())
	}
	if len(e.IDs) > 0 {
		fmt.Fprintf(&b, " AND p.id <> ALL ($%d::bigint[])", parameter())
	}
	if len(e.Rules) > 0 {
		var messages, keys strings.Builder
		for _, rule := range e.Rules {
			topic, typ := parameter(), parameter()
			fmt.Fprintf(&messages, " WHEN p.topic ~ $%d::text AND (SELECT o.type FROM {outbox} o WHERE o.id = p.id) ~ $%d::text THEN %t", topic, typ, !rule.HoldBack)
			if rule.HoldBack || rule.AnyType {
				fmt.Fprintf(&keys, " WHEN p.topic ~ $%d::text THEN %t", topic, !rule.HoldBack)
			}
		}
		fmt.Fprintf(&b, " AND CASE WHEN p.state = 'draining' THEN CASE WHEN false THEN false%s ELSE true END ELSE CASE%s ELSE true END END", keys.String(), messages.String())
	}
	return b.String()
}

// parameters returns the values of sql's parameters, in text format.
func (e *Exclusion) parameters() [][]byte {
	var values [][]byte
	if len(e.Topics) > 0 {
		values = append(values, textArray(e.Topics))
	}
	if len(e.Keys) > 0 {
		topics, keys := make([]string, len(e.Keys)), make([]string, len(e.Keys))
		for i, k := range e.Keys {
			topics[i], keys[i] = k.Topic, k.Key
		}
		values = append(values, textArray(topics), textArray(keys))
	}
	if len(e.IDs) > 0 {
		values = append(values, idArray(e.IDs))
	}
	for _, rule := range e.Rules {
		values = append(values, []byte(rule.TopicPattern), []byte(rule.TypePattern))
	}
	return values
}
