package source

import (
	"testing"
)

func TestLockedRowsHoldTheirKeys(t *testing.T) {
	l := newLockedRows()
	a, b := Key{Topic: "t", Key: "a"}, Key{Topic: "t", Key: "b"}
	l.add(1, a, true)
	l.add(2, a, true)
	l.add(3, b, true)
	l.add(4, Key{Topic: "t"}, false)
	holds := func(want bool, row Row) {
		t.Helper()
		if got := l.holds(&row); got != want {
			t.Errorf("%+v is left out: %t, want %t", row, got, want)
		}
	}
	holds(true, Row{ID: 9, Topic: "t", Key: []byte("a")})
	holds(false, Row{ID: 9, Topic: "u", Key: []byte("a")})
	holds(true, Row{ID: 4, Topic: "t"})
	holds(false, Row{ID: 5, Topic: "t"})
	holds(false, Row{ID: 5, Topic: "t", Key: []byte{}})
	freed := l.freed
	l.remove(1)
	holds(true, Row{ID: 9, Topic: "t", Key: []byte("a")}) // row 2 still is
	l.remove(2)
	holds(false, Row{ID: 9, Topic: "t", Key: []byte("a")})
	if l.freed == freed {
		t.Error("nobody is told that rows are free")
	}
	l.clear()
	if !l.empty() {
		t.Error("not empty")
	}
	holds(false, Row{ID: 9, Topic: "t", Key: []byte("b")})
}
