package pattern

import (
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestGlob(t *testing.T) {
	for _, test := range []struct {
		glob, matches, misses string
	}{
		{"", "|a|a.b", ""},
		{"*", "|a|a.b|a\nb|ü", ""},
		{"**", "|a", ""},
		{"mail.*", "mail.|mail.a|mail.a.b", "mail|mailxa|amail.a|Mail.a"},
		{"*.dlq", ".dlq|a.b.dlq", "dlq|a.dlqx|a.dlq\n"},
		{"a?c", "abc|a.c|aüc|a\nc", "ac|abbc"},
		{"[abc]x", "ax|bx|cx", "dx|x|[abc]x"},
		{"[a-c]", "a|b|c", "d|-"},
		{"[!a-c]", "d|-|\n", "a|b|c|"},
		{"[^a]", "b", "a"},
		{"[]a]", "]|a", "b|"},
		{"[a-]", "a|-", "b"},
		{"[-a]", "a|-", "b"},
		{`[\]\-\\]`, `]|-|\`, "a"},
		{"[[:a]", "[|:|a", "b"},
		{"[&&a]", "&|a", "b"},
		{`\*`, "*", `a|\*`},
		{`\a`, "a", `\a`},
		{`a.b+c(d)|{1}^$`, "", "axb+c(d)|{1}^$"},
		{"a{1}", "a{1}", "a"},
		{"日本*", "日本|日本語", "日"},
	} {
		glob, err := ParseGlob(test.glob)
		if err != nil {
			t.Errorf("%q: %v", test.glob, err)
			continue
		}
		if test.matches != "" {
			for text := range strings.SplitSeq(test.matches, "|") {
				if !glob.Match(text) {
					t.Errorf("%q does not match %q (%s)", test.glob, text, glob.regex)
				}
			}
		}
		if test.misses != "" {
			for text := range strings.SplitSeq(test.misses, "|") {
				if glob.Match(text) {
					t.Errorf("%q matches %q (%s)", test.glob, text, glob.regex)
				}
			}
		}
		if glob.String() != test.glob {
			t.Errorf("%q became %q", test.glob, glob.String())
		}
	}
	literal, err := ParseGlob(`a.b+c(d)|{1}^$\*`)
	if err != nil || !literal.Match("a.b+c(d)|{1}^$*") {
		t.Errorf("metacharacters are not literal: %v", err)
	}
}

func TestGlobErrors(t *testing.T) {
	for glob, want := range map[string]string{
		"[":          "[ has no matching ]",
		"a[b":        "[ has no matching ]",
		"[]":         "[ has no matching ]",
		"[!]":        "[ has no matching ]",
		"[a-":        "[ has no matching ]",
		`[a\`:        `must not end with \`,
		`a\`:         `must not end with \`,
		"[z-a]":      "upside down",
		"a\x00":      "without NUL",
		"a\xff":      "UTF-8",
		"[\xff]":     "UTF-8",
		`\` + "\xff": "UTF-8",
	} {
		if _, err := ParseGlob(glob); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", glob, err, want)
		}
	}
}

func TestCovers(t *testing.T) {
	for _, test := range []struct {
		first, second string
		covers        bool
	}{
		{"*", "a*", true},
		{"", "*", true},
		{"a*", "a*", true},
		{"a*", "a**", true},
		{"a*", "abc", true},
		{"abc", "abc", true},
		{"a*", "*", false},
		{"abc", "a*", false},
		{"a*", "ab*", false}, // it does, but that is not looked for
		{"mail.*", "orders", false},
	} {
		if got := parse(t, test.first).Covers(parse(t, test.second)); got != test.covers {
			t.Errorf("%q covers %q: %v", test.first, test.second, got)
		}
	}
}

func parse(t *testing.T, source string) *Glob {
	t.Helper()
	glob, err := ParseGlob(source)
	if err != nil {
		t.Fatalf("%q: %v", source, err)
	}
	return glob
}

// naive matches by the definition of globs, with no regular expression.
func naive(glob, text []rune) bool {
	if len(glob) == 0 {
		return len(text) == 0
	}
	switch glob[0] {
	case '*':
		return naive(glob[1:], text) || len(text) > 0 && naive(glob, text[1:])
	case '?':
		return len(text) > 0 && naive(glob[1:], text[1:])
	case '[':
		if len(text) == 0 {
			return false
		}
		matched, rest := naiveClass(glob[1:], text[0])
		return matched && naive(rest, text[1:])
	case '\\':
		return len(text) > 0 && glob[1] == text[0] && naive(glob[2:], text[1:])
	}
	return len(text) > 0 && glob[0] == text[0] && naive(glob[1:], text[1:])
}

func naiveClass(class []rune, c rune) (matched bool, rest []rune) {
	negated := class[0] == '!' || class[0] == '^'
	if negated {
		class = class[1:]
	}
	member := func() rune {
		if class[0] == '\\' {
			class = class[1:]
		}
		r := class[0]
		class = class[1:]
		return r
	}
	for first := true; first || class[0] != ']'; first = false {
		low := member()
		high := low
		if class[0] == '-' && class[1] != ']' {
			class = class[1:]
			high = member()
		}
		matched = matched || low <= c && c <= high
	}
	return matched != negated, class[1:]
}

// generate makes globs and texts of few characters, so that they often match,
// with every character that is special in a glob, in RE2 or in PostgreSQL.
func generate(random *rand.Rand, alphabet string, longest int) string {
	runes := []rune(alphabet)
	out := make([]rune, random.IntN(longest))
	for i := range out {
		out[i] = runes[random.IntN(len(runes))]
	}
	return string(out)
}

const (
	globAlphabet = "ab**??[[]]!^-\\.:=|(){}+$#\nüé,&~ 1"
	textAlphabet = "aaabb.[]!^-\\*?:=|(){}+$#\nüé,&~ 1"
)

func FuzzGlob(f *testing.F) {
	f.Add("mail.*", "mail.x")
	f.Add("[!a-z]?", "1\n")
	f.Fuzz(func(t *testing.T, source, text string) {
		if len(source) > 20 || len(text) > 20 || strings.Count(source, "*") > 6 {
			return
		}
		glob, err := ParseGlob(source)
		if err != nil || strings.ToValidUTF8(text, "") != text {
			return
		}
		want := source == "" || naive([]rune(source), []rune(text))
		if glob.Match(text) != want {
			t.Errorf("%q matches %q: %v", source, text, !want)
		}
	})
}

func TestGlobAgreesWithItsDefinition(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	matches, valid := 0, 0
	for range 60_000 {
		source, text := generate(random, globAlphabet, 8), generate(random, textAlphabet, 6)
		glob, err := ParseGlob(source)
		if err != nil {
			continue
		}
		valid++
		want := source == "" || naive([]rune(source), []rune(text))
		if want {
			matches++
		}
		if glob.Match(text) != want || glob.machine.MatchString(text) != want {
			t.Fatalf("%q matches %q: %v (%s)", source, text, !want, glob.regex)
		}
	}
	if valid < 15_000 || matches < 1_500 {
		t.Fatalf("only %d globs were valid and %d matched", valid, matches)
	}
}

func TestGlobMeansTheSameInPostgreSQL(t *testing.T) {
	url := os.Getenv("RELAY_TEST_POSTGRES_URL")
	if url == "" {
		t.Skip("needs RELAY_TEST_POSTGRES_URL; `make test` provides it")
	}
	connection, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close(t.Context())
	random := rand.New(rand.NewPCG(3, 4))
	globs := []string{"", "*", "mail.*", "[]]", "[!]a]", "[[.a.]", "[[=a=]", "[[:alpha:]]", `[\w]`, `\d`, "***", "***=a", "(?i)a", `[a\-z]`, "[^^]", "[+--]", "[ü-é]", "[é-ü]"}
	for range 400 {
		globs = append(globs, generate(random, globAlphabet, 8))
	}
	texts := []string{"", "mail.a", "A", ".", "=", ":", "w", "d", "z"}
	for range 60 {
		texts = append(texts, generate(random, textAlphabet, 6))
	}
	matches := 0
	for _, source := range globs {
		glob, err := ParseGlob(source)
		if err != nil {
			continue
		}
		rows, err := connection.Query(t.Context(), "select "+glob.SQL("t")+" from unnest($1::text[]) with ordinality as u(t, n) order by n", texts)
		if err != nil {
			t.Fatal(err)
		}
		got, err := pgx.CollectRows(rows, pgx.RowTo[bool])
		if err != nil {
			t.Fatalf("%q, %s: %v", source, glob.SQL("t"), err)
		}
		for i, text := range texts {
			if got[i] != glob.Match(text) {
				t.Errorf("%q (%s) matches %q: %v in PostgreSQL, %v in Go", source, glob.SQL("t"), text, got[i], !got[i])
			}
			if got[i] {
				matches++
			}
		}
	}
	if matches < 500 {
		t.Fatalf("only %d matches", matches)
	}
}
