package kafka

import (
	"slices"
	"testing"
)

func TestSubscriptionsOfAllVersions(t *testing.T) {
	wanted := subscription{topics: []string{"orders", "mail"}, userData: []byte("rack"), owned: map[string][]int32{"mail": {3}}, generation: 7}
	mine := wanted.encode(false)
	cooperative := wanted.encode(true)
	for name, b := range map[string][]byte{
		"mine":              mine,
		"kafka-go's":        append([]byte{0, 1}, mine[2:]...),
		"a later version's": append(append([]byte{0, 3}, mine[2:]...), 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff),
	} {
		got, err := decodeSubscription(b)
		if err != nil || !slices.Equal(got.topics, []string{"orders", "mail"}) || string(got.userData) != "rack" || len(got.owned["mail"]) != 0 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for n := range mine {
		if _, err := decodeSubscription(mine[:n]); err == nil {
			t.Errorf("a subscription of %d bytes of %d was taken", n, len(mine))
		}
	}
	if got, err := decodeSubscription(cooperative); err != nil || got.generation != 7 || !slices.Equal(got.owned["mail"], []int32{3}) {
		t.Errorf("a cooperative one: %v, %v", got, err)
	}
	partitions := map[string][]int32{"orders": {0, 5}, "mail": {2}}
	got, err := decodeAssignment(encodeAssignment(partitions))
	if err != nil || len(got) != 2 || !slices.Equal(got["orders"], partitions["orders"]) || !slices.Equal(got["mail"], partitions["mail"]) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := decodeAssignment(nil); err != nil || len(got) != 0 {
		t.Errorf("no assignment at all: %v, %v", got, err)
	}
}
