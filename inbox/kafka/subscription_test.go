package kafka

import (
	"slices"
	"testing"
)

func TestSubscriptionsOfAllVersions(t *testing.T) {
	mine := encodeSubscription([]string{"orders", "mail"}, []byte("rack"))
	for name, b := range map[string][]byte{
		"mine":              mine,
		"kafka-go's":        append([]byte{0, 1}, mine[2:]...),
		"a later version's": append(append([]byte{0, 3}, mine[2:]...), 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff),
	} {
		topics, userData, err := decodeSubscription(b)
		if err != nil || !slices.Equal(topics, []string{"orders", "mail"}) || string(userData) != "rack" {
			t.Errorf("%s: %v, %q, %v", name, topics, userData, err)
		}
	}
	for n := range mine {
		if _, _, err := decodeSubscription(mine[:n]); err == nil {
			t.Errorf("a subscription of %d bytes of %d was taken", n, len(mine))
		}
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
