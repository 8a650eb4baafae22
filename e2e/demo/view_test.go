package demo

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func shown() state {
	return state{
		title: "a → b", phase: "load", elapsed: 20 * time.Second, total: 45 * time.Second,
		committed: 12345, published: 12340, shipped: 4321, refused: 99, rolledBack: 77, commitRate: 400, publishRate: 395, shipRate: 130,
		commitHistory: []int{0, 200, 400}, publishHistory: []int{0, 395}, shipHistory: []int{10, 130},
		relays:   []memberStatus{{"relay-1", true, false, 2}, {"relay-2", false, true, 1}, {"relay-3", false, false, 0}},
		shippers: []memberStatus{{"shipping-1", false, true, 1}, {"shipping-2", true, false, 0}},
	}
}

func TestPlainView(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	v := &View{Out: &out}
	for range 5 {
		v.Show(shown()) // more often than once a second
	}
	v.Close()
	want := "load   20 s  commits/s   400  published/s   395  lag     5  shipped/s  130  refused   99  kills  4  relays 1 of 3  shipping 1 of 2\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
}

func TestTerminalView(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	v := &View{Out: &out, Terminal: true}
	v.Show(shown())
	first := out.String()
	for _, want := range []string{"12 345", "400/s", "▁▄█", "relay-1      ● running   killed 2 times", "relay-2      ✗ killed    killed once", "relay-3      ○ stopped", "20 s of 45 s",
		"4 321", "130/s", "99   duplicates", "shipping-1   ✗ killed    killed once", "shipping-2   ● running"} {
		if !strings.Contains(first, want) {
			t.Errorf("the view lacks %q:\n%s", want, first)
		}
	}
	if strings.Contains(first, "A\r") {
		t.Error("the first drawing goes up")
	}
	lines := strings.Count(first, "\n")
	out.Reset()
	v.Show(shown())
	if up := "\x1b[" + thousands(lines) + "A"; !strings.Contains(out.String(), up) {
		t.Errorf("the second drawing does not go up %d lines", lines)
	}
	out.Reset()
	v.Line("below")
	if got := out.String(); got != "\x1b[?25hbelow\n" {
		t.Errorf("after the drawing comes %q", got)
	}
}

func TestTallyView(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		tally    Tally
		toll     Toll
		problems []error
		want     string
	}{
		{"clean", Tally{Committed: 10, Records: 12, Duplicates: 2}, Toll{Relays: 1, Explained: 5}, nil, "Nothing lost"},
		{"duplicates without a kill", Tally{Committed: 10, Records: 12, Duplicates: 2}, Toll{}, nil, "not clean"},
		{"missing", Tally{Committed: 10, Records: 9, Missing: []string{"this one"}}, Toll{Relays: 1, Explained: 5}, nil, "missing: this one"},
		{"shipped twice", Tally{Committed: 10, Records: 10, Shipping: Shipping{Paid: 4, Once: 3, Twice: []string{"that one"}}}, Toll{}, nil, "shipped twice: that one"},
		{"refused", Tally{Committed: 10, Records: 10, Shipping: Shipping{Paid: 4, Once: 4, Refused: 7}}, Toll{Shippers: 3}, nil, "refused                7"},
		{"problem", Tally{Committed: 10, Records: 10}, Toll{}, []error{errors.New("relay-1 hung")}, "relay-1 hung"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			(&View{Out: &out}).Tally(test.tally, test.toll, test.problems)
			if !strings.Contains(out.String(), test.want) {
				t.Errorf("the tally lacks %q:\n%s", test.want, out.String())
			}
			clean := test.tally.Clean(test.toll.Explained) && test.problems == nil
			if strings.Contains(out.String(), "Nothing lost") != clean {
				t.Errorf("clean is %v:\n%s", clean, out.String())
			}
		})
	}
}

func TestThousands(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1 000", 12345: "12 345", 1234567: "1 234 567"} {
		if got := thousands(n); got != want {
			t.Errorf("%d is %q", n, got)
		}
	}
}
