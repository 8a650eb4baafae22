package kafka

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// Members come and go at random; partitions are shared out evenly, none is
// assigned while another member goes on with it, and no more move than have to.
func TestCooperativeSticky(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // not a secret
		all := make([]partitionID, 1+random.IntN(30))
		for i := range all {
			all[i] = partitionID{fmt.Sprint("topic-", i%3), int32(i / 3)} //nolint:gosec // small
		}
		wants := make(map[string]subscription)
		generation := int32(0)
		for step := range 20 {
			if len(wants) == 0 || random.IntN(2) == 0 {
				wants[fmt.Sprint("member-", step)] = subscription{topics: []string{"topic-0", "topic-1", "topic-2"}, generation: -1}
			} else {
				gone := slices.Sorted(maps.Keys(wants))
				delete(wants, gone[random.IntN(len(gone))])
			}
			if len(wants) == 0 {
				continue
			}
			for round := 0; ; round++ {
				owners := ownersOf(wants)
				assigned := cooperate(wants, all)
				generation++
				given, again := 0, false
				for member, ids := range assigned {
					owned := make(map[string][]int32)
					for _, id := range ids {
						if owner, ok := owners[id]; ok && owner != member {
							t.Fatalf("%s is assigned to %s while %s goes on with it", id, member, owner)
						}
						owned[id.topic] = append(owned[id.topic], id.id)
					}
					for topic, before := range wants[member].owned {
						again = again || len(before) > 0 && slices.ContainsFunc(before, func(id int32) bool { return !slices.Contains(owned[topic], id) })
					}
					given += len(ids)
					want := wants[member]
					want.owned, want.generation = owned, generation
					wants[member] = want
				}
				if !again {
					if given != len(all) {
						t.Fatalf("%d of %d partitions are assigned", given, len(all))
					}
					break
				}
				if round > 1 {
					t.Fatal("the group does not come to rest")
				}
			}
			least, most := len(all), 0
			for _, want := range wants {
				n := 0
				for _, ids := range want.owned {
					n += len(ids)
				}
				least, most = min(least, n), max(most, n)
			}
			if most-least > 1 {
				t.Fatalf("one member has %d partitions, another %d", least, most)
			}
		}
	}
}

// A member that was away claims what it had; who has it by now keeps it.
func TestOwnersOfTwoGenerations(t *testing.T) {
	p := map[string][]int32{"orders": {0}}
	wants := map[string]subscription{
		"a": {topics: []string{"orders"}, owned: p, generation: 7},
		"b": {topics: []string{"orders"}, owned: p, generation: 8},
		"c": {topics: []string{"orders"}, owned: p, generation: 3},
	}
	if got := ownersOf(wants)[partitionID{"orders", 0}]; got != "b" {
		t.Errorf("it is of %s", got)
	}
}
