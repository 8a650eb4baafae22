package kafka

import (
	"cmp"
	"maps"
	"slices"

	kafkago "github.com/segmentio/kafka-go"
)

// CooperativeSticky is the balancer that Java's and librdkafka's consumers call
// cooperative-sticky: members go on with their partitions while the group
// rebalances, and give up only those that move. It balances the partitions and
// moves as few as that takes.
//
// It has to be the only one of GroupBalancers for that; beside others it assigns
// the same, and members give up everything before they join, which is how a
// group gets from one to the other: first all members offer both, then all
// offer only this one.
type CooperativeSticky struct{}

const cooperativeSticky = "cooperative-sticky"

// ProtocolName implements kafka.GroupBalancer.
func (CooperativeSticky) ProtocolName() string { return cooperativeSticky }

// UserData implements kafka.GroupBalancer.
func (CooperativeSticky) UserData() ([]byte, error) { return nil, nil }

// AssignGroups implements kafka.GroupBalancer, for members that own nothing.
func (CooperativeSticky) AssignGroups(members []kafkago.GroupMember, partitions []kafkago.Partition) kafkago.GroupMemberAssignments {
	wants := make(map[string]subscription)
	for _, m := range members {
		wants[m.ID] = subscription{topics: m.Topics}
	}
	all := make([]partitionID, len(partitions))
	for i, p := range partitions {
		all[i] = partitionID{p.Topic, int32(p.ID)} //nolint:gosec // it was an int32
	}
	assigned := make(kafkago.GroupMemberAssignments)
	for member, ids := range stick(wants, all) {
		assigned[member] = make(map[string][]int)
		for _, id := range ids {
			assigned[member][id.topic] = append(assigned[member][id.topic], int(id.id))
		}
	}
	return assigned
}

// cooperate assigns partitions to members. One that moves is assigned to nobody
// yet: its owner gives it up and joins again, and then it is assigned.
func cooperate(wants map[string]subscription, all []partitionID) map[string][]partitionID {
	assigned, owners := stick(wants, all), ownersOf(wants)
	for member, ids := range assigned {
		assigned[member] = slices.DeleteFunc(ids, func(id partitionID) bool {
			owner, owned := owners[id]
			return owned && owner != member
		})
	}
	return assigned
}

// ownersOf are those who go on with partitions. Of two who say so the one of
// the later generation is right.
func ownersOf(wants map[string]subscription) map[partitionID]string {
	owners := make(map[partitionID]string)
	for _, member := range slices.Sorted(maps.Keys(wants)) {
		for topic, ids := range wants[member].owned {
			for _, id := range ids {
				p := partitionID{topic, id}
				if other, taken := owners[p]; !taken || wants[other].generation < wants[member].generation {
					owners[p] = member
				}
			}
		}
	}
	return owners
}

// stick shares partitions out evenly, and leaves as many as that allows to
// their owners.
func stick(wants map[string]subscription, all []partitionID) map[string][]partitionID {
	members := slices.Sorted(maps.Keys(wants))
	assigned := make(map[string][]partitionID, len(members))
	for _, member := range members {
		assigned[member] = nil
	}
	wanted := func(member, topic string) bool { return slices.Contains(wants[member].topics, topic) }
	owners := ownersOf(wants)
	var free []partitionID
	for _, p := range all {
		if owner, owned := owners[p]; owned && wanted(owner, p.topic) {
			assigned[owner] = append(assigned[owner], p)
		} else {
			free = append(free, p)
		}
	}
	byLoad := func(a, b string) int {
		return cmp.Or(cmp.Compare(len(assigned[a]), len(assigned[b])), cmp.Compare(a, b))
	}
	for _, p := range free {
		candidates := slices.DeleteFunc(slices.Clone(members), func(member string) bool { return !wanted(member, p.topic) })
		if len(candidates) > 0 {
			least := slices.MinFunc(candidates, byLoad)
			assigned[least] = append(assigned[least], p)
		}
	}
	// Each move makes two members more equal, so there is a last one.
	for moved := true; moved; {
		moved = false
		slices.SortFunc(members, byLoad)
		for _, least := range members {
			for _, most := range slices.Backward(members) {
				if len(assigned[most])-len(assigned[least]) < 2 {
					break
				}
				at := -1
				for i, p := range assigned[most] {
					if wanted(least, p.topic) {
						at = i // the last one
					}
				}
				if at >= 0 {
					assigned[least] = append(assigned[least], assigned[most][at])
					assigned[most] = slices.Delete(assigned[most], at, at+1)
					moved = true
					break
				}
			}
			if moved {
				break
			}
		}
	}
	return assigned
}
