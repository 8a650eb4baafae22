package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"
)

func TestDisplay(t *testing.T) {
	for text, want := range map[string]string{
		"orders": "orders", "a b": "a b", "Zoë": "Zoë", "": `""`, "-": `"-"`, " a": `" a"`, `a"b`: `"a\"b"`,
		"a\nb": `"a\nb"`, "\x1b[31mred": `"\x1b[31mred"`, "\u009b31m": `"\u009b31m"`, "\u202ereversed": `"\u202ereversed"`,
		"\xff": `"\xff"`, "\a": `"\a"`, "tab\t": `"tab\t"`,
	} {
		if got := display(text); got != want {
			t.Errorf("display(%q) = %s, want %s", text, got, want)
		}
	}
	if got := displayKey(nil); got != "-" {
		t.Errorf("no key is shown as %s", got)
	}
	long := strings.Repeat("é", 100)
	if got := displayKey(&long); got != strings.Repeat("é", shortCell-1)+"…" {
		t.Errorf("a long key is shown as %s", got)
	}
	if got, want := displayError("too\n large: \"k\" \x1b[2J"), `too large: "k" \x1b[2J`; got != want {
		t.Errorf("an error is shown as %s, want %s", got, want)
	}
	if got, want := displayText("{\n\t\"a\": \"\x07\u202e\"\r\n}"), "{\n\t\"a\": \"\\a\\u202e\"\\r\n}"; got != want {
		t.Errorf("a text is shown as %q, want %q", got, want)
	}
}

func TestJSONHasNoControlCharacters(t *testing.T) {
	var odd strings.Builder
	for r := range rune(0x3000) {
		odd.WriteRune(r)
	}
	odd.WriteString("\U000e0041 <&> \u2028 😀 \U000110bd")
	text, err := marshal(map[string]string{"key": odd.String()}, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range text {
		if r != '\n' && !unicode.IsPrint(r) && !unicode.IsSpace(r) || r == 0x85 {
			t.Fatalf("%U is in it", r)
		}
	}
	if !strings.Contains(text, " <&> ") || !strings.Contains(text, "😀") {
		t.Errorf("it escapes more than it must: %s", text[len(text)-80:])
	}
	var back map[string]string
	if err := json.Unmarshal([]byte(text), &back); err != nil || back["key"] != odd.String() {
		t.Errorf("it does not mean the same: error %v", err)
	}
}

func TestAgo(t *testing.T) {
	now := time.Now()
	for span, want := range map[time.Duration]string{
		1500 * time.Millisecond: "1s ago", 90 * time.Second: "1m ago", 47 * time.Hour: "47h ago", 49 * time.Hour: "2d ago", -30 * time.Second: "in 30s", 0: "0s ago",
	} {
		if got := ago(now.Add(-span), now); got != want {
			t.Errorf("%s: %s, want %s", span, got, want)
		}
	}
}
