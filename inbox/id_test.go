package inbox_test

import (
	"strings"
	"testing"

	"github.com/outboxrelay/relay/inbox"
)

func TestParseID(t *testing.T) {
	const text = "0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5f"
	id, err := inbox.ParseID(strings.ToUpper(text))
	if err != nil || id.String() != text || id.IsZero() {
		t.Errorf("%v, %v", id, err)
	}
	const digits = "0198f2c47b1e7c3a9d550a1b2c3d4e5f"
	for _, form := range []string{digits, strings.ToUpper(digits), `"` + text + `"`, `"` + digits + `"`, "{" + text + "}", "urn:uuid:" + text, "URN:UUID:" + text} {
		if id, err := inbox.ParseID(form); err != nil || id.String() != text {
			t.Errorf("%s: %v, %v", form, id, err)
		}
	}
	for _, wrong := range []string{"", `""`, `"`, "{}", "urn:uuid:", digits[1:], digits + "0", "g" + digits[1:], `"` + text, text + "}", text + "0", "0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5g", "{198f2c4-7b1e-7c3a-9d55-0a1b2c3d4e5}"} {
		if id, err := inbox.ParseID(wrong); err == nil || !id.IsZero() || !strings.Contains(err.Error(), "is not a UUID") {
			t.Errorf("%q: %v, %v", wrong, id, err)
		}
	}
}

func TestIDFrom(t *testing.T) {
	dns, err := inbox.ParseID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
	if err != nil {
		t.Fatal(err)
	}
	// The example of RFC 9562, appendix A.4.
	if got := inbox.IDFrom(dns, "www.example.com").String(); got != "2ed6657d-e927-568b-95e1-2665a8aea6a2" {
		t.Error(got)
	}
	if inbox.IDFrom(inbox.ID{}, "1") == inbox.IDFrom(dns, "1") {
		t.Error("the namespace does not count")
	}
}
