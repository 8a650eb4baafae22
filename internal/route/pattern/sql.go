package pattern

import (
	"encoding/hex"
	"strings"
	"unicode/utf8"
)

// SQL returns a boolean expression that is true where column, an expression of
// type text that is never null, matches the glob. It holds constants only and
// means the same whatever the database's encoding and collation, the column's
// collation and standard_conforming_strings are.
//
// Without wildcards it is an equality, with * alone a LIKE. Only ? and classes
// need a regular expression.
func (g *Glob) SQL(column string) string {
	switch {
	case g.matchesAll:
		return "true"
	case g.hasClass():
		// Of the text's UTF-8 in hexadecimal: characters as such would depend on
		// the database's encoding. LIKE sorts out most texts for a tenth of the cost.
		match := "encode(" + bytesOf(column) + ", 'hex') ~ " + Quote(g.hexRegexp())
		if like := g.like(); like != "%" && IsASCII(like) {
			return "(" + column + ` COLLATE "C" LIKE ` + Quote(like) + " AND " + match + ")"
		}
		return match
	case IsASCII(g.source):
		if g.isLiteral {
			return column + ` COLLATE "C" = ` + Quote(g.literal)
		}
		return column + ` COLLATE "C" LIKE ` + Quote(g.like())
	case g.isLiteral:
		// The database's encoding may lack a character, which is an error in a
		// constant of type text.
		return bytesOf(column) + " = " + quoteBytes(g.literal)
	}
	return bytesOf(column) + " LIKE " + quoteBytes(g.like())
}

// bytesOf is the text in UTF-8, as SQL. A database in SQL_ASCII does not know what its bytes are, and one row with
// other bytes would be an error for the whole statement.
func bytesOf(column string) string {
	return "convert_to(" + column + ", CASE getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)"
}

// Quote returns text as a constant of SQL, whatever standard_conforming_strings
// is. An encoding that lacks one of its characters refuses it.
func Quote(text string) string {
	quoted := "'" + strings.ReplaceAll(text, "'", "''") + "'"
	if strings.Contains(text, `\`) {
		return "E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}

func quoteBytes(text string) string {
	return "decode('" + hex.EncodeToString([]byte(text)) + "', 'hex')"
}

// IsASCII reports whether every encoding of PostgreSQL has the text.
func IsASCII(text string) bool {
	return !strings.ContainsFunc(text, func(c rune) bool { return c >= utf8.RuneSelf })
}

func (g *Glob) hasClass() bool {
	for _, part := range g.parts {
		if part.wildcard == oneOf {
			return true
		}
	}
	return false
}

// like returns the glob as a pattern of LIKE, in which ? and classes are *.
func (g *Glob) like() string {
	escape := strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`)
	var out strings.Builder
	wild := false
	for _, part := range g.parts {
		switch {
		case part.wildcard == noWildcard:
			out.WriteString(escape.Replace(part.text))
		case !wild:
			out.WriteByte('%')
		}
		wild = part.wildcard != noWildcard
	}
	return out.String()
}

// hexRegexp returns a regular expression of the matching texts' UTF-8 in
// hexadecimal digits. What follows a * begins with a whole character, so that
// the * ends at one.
func (g *Glob) hexRegexp() string {
	var out strings.Builder
	out.WriteByte('^')
	for _, part := range g.parts {
		switch part.wildcard {
		case anyText:
			out.WriteString("(?:..)*")
		case oneOf:
			part.class.writeHexRegexp(&out)
		default:
			out.WriteString(hex.EncodeToString([]byte(part.text)))
		}
	}
	out.WriteByte('$')
	return out.String()
}

func (c class) writeHexRegexp(out *strings.Builder) {
	if len(c.ranges) == 0 {
		out.WriteString("(?:[0-7].|[cd].{3}|e.{5}|f.{7})") // the first byte tells the length
		return
	}
	ranges := c.ranges
	if c.negated {
		ranges = complement(ranges)
	}
	out.WriteString("(?:")
	separator := ""
	for _, r := range ranges {
		eachUTF8(r, func(low, high []byte) {
			out.WriteString(separator)
			separator = "|"
			for i := range low {
				writeHexByte(out, low[i], high[i])
			}
		})
	}
	if separator == "" {
		out.WriteByte('x') // no character, and no hexadecimal digit
	}
	out.WriteByte(')')
}

const hexDigits = "0123456789abcdef"

// writeHexByte writes the two digits of the bytes from low to high.
func writeHexByte(out *strings.Builder, low, high byte) {
	if low>>4 == high>>4 {
		out.WriteByte(hexDigits[low>>4])
		writeHexDigit(out, low&15, high&15)
		return
	}
	out.WriteString("(?:")
	out.WriteByte(hexDigits[low>>4])
	writeHexDigit(out, low&15, 15)
	if low>>4+1 < high>>4 {
		out.WriteByte('|')
		writeHexDigit(out, low>>4+1, high>>4-1)
		out.WriteByte('.')
	}
	out.WriteByte('|')
	out.WriteByte(hexDigits[high>>4])
	writeHexDigit(out, 0, high&15)
	out.WriteByte(')')
}

func writeHexDigit(out *strings.Builder, low, high byte) {
	switch {
	case low == high:
		out.WriteByte(hexDigits[low])
	case low == 0 && high == 15:
		out.WriteByte('.')
	default:
		out.WriteString("[" + hexDigits[low:high+1] + "]")
	}
}
