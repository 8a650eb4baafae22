package pgarray_test

import (
	"testing"
	"time"

	"github.com/outboxrelay/relay/internal/pgarray"
	"github.com/outboxrelay/relay/internal/pgtest"
)

func TestLiterals(t *testing.T) {
	db := pgtest.New(t)
	texts := []string{"", "a", `"\{},' NULL `, "NULL", "ключ\n\t", `\x00`}
	var text, number, id, at, raw, pauses, none pgarray.Array
	for _, s := range texts {
		text.Text(s)
	}
	text.Null()
	number.Integer(-1 << 63)
	number.Null()
	id.UUID([16]byte{1, 15: 255})
	at.Time(time.Date(2031, 1, 2, 3, 4, 5, 678901234, time.FixedZone("", 3600)))
	raw.Bytes([]byte{0, '\\', 0xff})
	raw.Bytes(nil)
	pauses.Seconds(1500 * time.Millisecond)
	var got []*string
	var rest string
	err := db.Pool.QueryRow(t.Context(), `SELECT $1::text::text[], concat_ws(' ', $2::text::bigint[], $3::text::uuid[], $4::text::timestamptz[] = ARRAY['2031-01-02 02:04:05.678901+00'::timestamptz],
		$5::text::bytea[] = ARRAY['\x005cff'::bytea, ''], $6::text::float8[], $7::text::text[])`,
		text.Literal(), number.Literal(), id.Literal(), at.Literal(), raw.Literal(), pauses.Literal(), none.Literal()).Scan(&got, &rest)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range texts {
		if i >= len(got) || got[i] == nil || *got[i] != want {
			t.Errorf("text %d is not %q", i, want)
		}
	}
	if len(got) != len(texts)+1 || got[len(texts)] != nil {
		t.Errorf("%d texts", len(got))
	}
	if want := "{-9223372036854775808,NULL} {01000000-0000-0000-0000-0000000000ff} t t {1.5} {}"; rest != want {
		t.Errorf("%s, want %s", rest, want)
	}
}
