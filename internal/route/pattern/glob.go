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
	parts   []globPart
	regex   string
	machine *regexp.Regexp
	// literal is the only text that matches, when isLiteral.
	literal    string
	isLiteral  bool
	matchesAll bool
}

// globPart is a literal text, or a wildcard.
type globPart struct {
	wildcard wildcard
	text     string // of noWildcard
	class    class  // of oneOf
}

type wildcard uint8

const (
	noWildcard wildcard = iota
	anyText             // *
	oneOf               // ? and […]
)

// class is one character: of the ranges, or of none of them. ? is none of none.
type class struct {
	negated bool
	ranges  []runeRange
}

type runeRange struct{ low, high rune }

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
	for rest := source; rest != ""; {
		c, size := utf8.DecodeRuneInString(rest)
		rest = rest[size:]
		switch c {
		case '*':
			glob.parts = append(glob.parts, globPart{wildcard: anyText})
			rest = strings.TrimLeft(rest, "*")
		case '?':
			glob.parts = append(glob.parts, globPart{wildcard: oneOf, class: class{negated: true}})
		case '[':
			class, after, err := parseClass(rest)
			if err != nil {
				return nil, err
			}
			glob.parts = append(glob.parts, globPart{wildcard: oneOf, class: class})
			rest = after
		case '\\':
			if rest == "" {
				return nil, errors.New(`a pattern must not end with \; write \\ for a backslash`)
			}
			c, size = utf8.DecodeRuneInString(rest)
			rest = rest[size:]
			fallthrough
		default:
			glob.addLiteral(c)
		}
	}
	if len(glob.parts) == 1 && glob.parts[0].wildcard == noWildcard {
		glob.literal, glob.isLiteral = glob.parts[0].text, true
	}
	glob.regex = glob.regexp()
	machine, err := regexp.Compile(glob.regex)
	if err != nil {
		return nil, errors.New("the pattern is too large")
	}
	glob.machine = machine
	return glob, nil
}

func (g *Glob) addLiteral(c rune) {
	if last := len(g.parts) - 1; last >= 0 && g.parts[last].wildcard == noWildcard {
		g.parts[last].text += string(c)
		return
	}
	g.parts = append(g.parts, globPart{text: string(c)})
}

// parseClass reads a class behind its opening bracket and returns it, and what
// follows it.
func parseClass(rest string) (found class, after string, err error) {
	if rest != "" && (rest[0] == '!' || rest[0] == '^') {
		found.negated = true
		rest = rest[1:]
	}
	// A class has at least one member, so that a ] in its first place is one.
	for len(found.ranges) == 0 || !strings.HasPrefix(rest, "]") {
		var low, high rune
		if low, rest, err = parseMember(rest); err != nil {
			return class{}, "", err
		}
		high = low
		if len(rest) >= 2 && rest[0] == '-' && rest[1] != ']' {
			if high, rest, err = parseMember(rest[1:]); err != nil {
				return class{}, "", err
			}
			if high < low {
				return class{}, "", fmt.Errorf("the range [%c-%c] is upside down", low, high)
			}
		}
		found.ranges = append(found.ranges, runeRange{low, high})
	}
	return found, rest[1:], nil
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

// regexp returns the glob as a regular expression of Go's.
func (g *Glob) regexp() string {
	var out strings.Builder
	out.WriteString("(?s)^") // a dot matches a newline too
	for _, part := range g.parts {
		switch part.wildcard {
		case anyText:
			out.WriteString(".*")
		case oneOf:
			part.class.writeRegexp(&out)
		default:
			out.WriteString(regexp.QuoteMeta(part.text))
		}
	}
	out.WriteByte('$')
	return out.String()
}

func (c class) writeRegexp(out *strings.Builder) {
	if len(c.ranges) == 0 {
		out.WriteByte('.')
		return
	}
	out.WriteByte('[')
	if c.negated {
		out.WriteByte('^')
	}
	for _, r := range c.ranges {
		writeMember(out, r.low)
		if r.high != r.low {
			out.WriteByte('-')
			writeMember(out, r.high)
		}
	}
	out.WriteByte(']')
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

// String returns the glob as it was written.
func (g *Glob) String() string { return g.source }

// Covers reports whether every text that other matches is certain to match
// this one. It may miss cases, and never claims a wrong one.
func (g *Glob) Covers(other *Glob) bool {
	return g.matchesAll || g.regex == other.regex || other.isLiteral && g.Match(other.literal)
}
