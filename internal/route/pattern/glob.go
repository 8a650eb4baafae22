// Package pattern holds the two small languages of routes: globs, which
// select rows, and templates, which name where they go.
package pattern

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Glob is a compiled glob: * stands for any characters, dots included, ? for
// one, [abc], [a-z] and [!a] for one of a class, and \ takes what follows it
// literally. The whole text has to match. It is immutable; the zero value is
// not usable.
type Glob struct {
	source  string
	regex   string
	machine *regexp.Regexp
	// literal is the only text that matches, when isLiteral.
	literal    string
	isLiteral  bool
	matchesAll bool
}

// ParseGlob compiles a glob. An empty one matches everything. Errors say what
// is wrong without repeating the glob.
func ParseGlob(source string) (*Glob, error) {
	if !utf8.ValidString(source) || strings.ContainsRune(source, 0) {
		return nil, errors.New("a pattern must be UTF-8 without NUL")
	}
	glob := &Glob{source: source}
	if strings.Trim(source, "*") == "" {
		glob.matchesAll = true
		source = "*"
	}
	var regex, literal strings.Builder
	isLiteral := true
	// Go's RE2 and PostgreSQL's ARE read this subset alike. (?s) is the
	// default in PostgreSQL and makes Go's dot match a newline too.
	regex.WriteString("(?s)^")
	for rest := source; rest != ""; {
		c, size := utf8.DecodeRuneInString(rest)
		rest = rest[size:]
		switch c {
		case '*':
			isLiteral = false
			regex.WriteString(".*")
			rest = strings.TrimLeft(rest, "*")
		case '?':
			isLiteral = false
			regex.WriteByte('.')
		case '[':
			isLiteral = false
			class, after, err := parseClass(rest)
			if err != nil {
				return nil, err
			}
			regex.WriteString(class)
			rest = after
		case '\\':
			if rest == "" {
				return nil, errors.New(`a pattern must not end with \; write \\ for a backslash`)
			}
			c, size = utf8.DecodeRuneInString(rest)
			rest = rest[size:]
			fallthrough
		default:
			literal.WriteRune(c)
			regex.WriteString(regexp.QuoteMeta(string(c)))
		}
	}
	regex.WriteString("$")
	glob.regex = regex.String()
	glob.literal, glob.isLiteral = literal.String(), isLiteral
	machine, err := regexp.Compile(glob.regex)
	if err != nil {
		return nil, errors.New("the pattern is too large")
	}
	glob.machine = machine
	return glob, nil
}

// parseClass reads a class behind its opening bracket and returns it as a
// regular expression, and what follows it.
func parseClass(rest string) (class, after string, err error) {
	var out strings.Builder
	out.WriteByte('[')
	if rest != "" && (rest[0] == '!' || rest[0] == '^') {
		out.WriteByte('^')
		rest = rest[1:]
	}
	// A class has at least one member, so that a ] in its first place is one.
	for first := true; ; first = false {
		if !first && strings.HasPrefix(rest, "]") {
			out.WriteByte(']')
			return out.String(), rest[1:], nil
		}
		var low, high rune
		if low, rest, err = parseMember(rest); err != nil {
			return "", "", err
		}
		writeMember(&out, low)
		if len(rest) < 2 || rest[0] != '-' || rest[1] == ']' {
			continue
		}
		if high, rest, err = parseMember(rest[1:]); err != nil {
			return "", "", err
		}
		if high < low {
			return "", "", fmt.Errorf("the range [%c-%c] is upside down", low, high)
		}
		out.WriteByte('-')
		writeMember(&out, high)
	}
}

func parseMember(rest string) (member rune, after string, err error) {
	rest, escaped := strings.CutPrefix(rest, `\`)
	if rest == "" {
		if escaped {
			return 0, "", errors.New(`a pattern must not end with \; write \\ for a backslash`)
		}
		return 0, "", errors.New(`[ has no matching ]; write \[ for a bracket`)
	}
	member, size := utf8.DecodeRuneInString(rest)
	return member, rest[size:], nil
}

func writeMember(out *strings.Builder, member rune) {
	if strings.ContainsRune(`\[]^-`, member) {
		out.WriteByte('\\')
	}
	out.WriteRune(member)
}

// Match reports whether the whole text matches.
func (g *Glob) Match(text string) bool {
	switch {
	case g.matchesAll:
		return true
	case g.isLiteral:
		return text == g.literal
	}
	return g.machine.MatchString(text)
}

// MatchesAll reports whether every text matches.
func (g *Glob) MatchesAll() bool { return g.matchesAll }

// Literal returns the only text that matches, when the glob has no wildcard.
func (g *Glob) Literal() (text string, ok bool) { return g.literal, g.isLiteral }

// Regexp returns an anchored regular expression that matches the same texts in
// Go and, as an advanced regular expression (text ~ $1), in PostgreSQL.
func (g *Glob) Regexp() string { return g.regex }

// String returns the glob as it was written.
func (g *Glob) String() string { return g.source }

// Covers reports whether every text that other matches is certain to match
// this one. It may miss cases, and never claims a wrong one.
func (g *Glob) Covers(other *Glob) bool {
	return g.matchesAll || g.regex == other.regex || other.isLiteral && g.Match(other.literal)
}
