package uuid_test

import (
	"strings"
	"testing"

	"github.com/outboxrelay/relay/internal/uuid"
)

func TestText(t *testing.T) {
	const text = "0198f2c4-7b1e-7c3a-9d55-0a1b2c3d4eff"
	for _, form := range []string{text, strings.ToUpper(text)} {
		id, ok := uuid.Parse([]byte(form))
		if !ok || uuid.String(id) != text || string(uuid.Append([]byte("x"), id)) != "x"+text {
			t.Errorf("%s became %s, %t", form, uuid.String(id), ok)
		}
	}
	for _, bad := range []string{"", text[1:], text + "0", "g" + text[1:], strings.ReplaceAll(text, "-", ""), strings.ReplaceAll(text, "-", "0"), strings.Replace(text, "0", "-", 1), "{" + text[2:] + "}"} {
		if id, ok := uuid.Parse([]byte(bad)); ok || id != [16]byte{} {
			t.Errorf("%q passes as %v", bad, id)
		}
	}
	id, _ := uuid.Parse([]byte(text))
	if n := testing.AllocsPerRun(100, func() { uuid.Append(make([]byte, 0, 36), id) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
