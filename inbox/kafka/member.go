package kafka

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/findcoordinator"
	"github.com/segmentio/kafka-go/protocol/joingroup"
	"github.com/segmentio/kafka-go/protocol/leavegroup"
	"github.com/segmentio/kafka-go/protocol/offsetcommit"
	"github.com/segmentio/kafka-go/protocol/offsetfetch"
	"github.com/segmentio/kafka-go/protocol/syncgroup"
)

// member is this process in its consumer group. It talks to the group's
// coordinator by one connection, one request at a time.
type member struct {
	config  *Config
	cluster *cluster
	topics  *topics

	// id is what the coordinator calls this member, empty before it joined and
	// after it was thrown out.
	id         string
	connection *connection
	// generation is the last one; crew are the partitions that go on while the
	// group rebalances.
	generation int32
	crew       *crew
}

// assignment is what a member got when the group last rebalanced.
type assignment struct {
	generation int32
	members    int // as the leader knows; 0 for the others
	// partitions are those of this member, with the position that the group has
	// committed; its offset is -1 where there is none.
	partitions map[partitionID]position
	// counts are the partitions of each topic that the leader shared out; nil
	// for the others.
	counts map[string]int
}

// partitionID names a partition.
type partitionID struct {
	topic string
	id    int32
}

// String is how Kafka itself writes it.
func (p partitionID) String() string { return p.topic + "-" + strconv.Itoa(int(p.id)) }

// call sends a request to the coordinator, which it looks for first where
// there is no connection.
func (m *member) call(ctx context.Context, limit time.Duration, request protocol.Message) (protocol.Message, error) {
	connection, err := m.connect(ctx)
	if err != nil {
		return nil, err
	}
	return connection.roundTrip(ctx, limit, request)
}

func (m *member) connect(ctx context.Context) (*connection, error) {
	if !m.connection.usable() {
		connection, err := m.dialCoordinator(ctx)
		if err != nil {
			return nil, err
		}
		m.connection = connection
	}
	return m.connection, nil
}

func (m *member) dialCoordinator(ctx context.Context) (*connection, error) {
	connection, err := m.cluster.dialAny(ctx)
	if err != nil {
		return nil, err
	}
	defer connection.close()
	message, err := connection.roundTrip(ctx, requestTimeout, &findcoordinator.Request{Key: m.config.Group, KeyType: int8(kafkago.CoordinatorKeyTypeConsumer)})
	if err != nil {
		return nil, err
	}
	response := message.(*findcoordinator.Response)
	if response.ErrorCode != 0 {
		return nil, m.explain("find the coordinator", response.ErrorCode)
	}
	return dial(ctx, m.config.Dialer, net.JoinHostPort(response.Host, strconv.Itoa(int(response.Port))))
}

// explain names what failed and does what the code asks for: a coordinator
// that is none any more is looked for anew, and a member that the coordinator
// does not know joins as a new one.
func (m *member) explain(what string, code int16) error {
	reason := kafkago.Error(code)
	err := fmt.Errorf("consumer group %q: %s: %w", m.config.Group, what, reason)
	switch reason {
	case kafkago.GroupCoordinatorNotAvailable, kafkago.NotCoordinatorForGroup:
		m.hangUp()
	case kafkago.UnknownMemberId:
		m.id = ""
	case kafkago.FencedInstanceID:
		m.id = ""
		return fmt.Errorf("%w: another process has joined as InstanceID %q: give each process one of its own", err, m.config.InstanceID)
	case kafkago.GroupAuthorizationFailed:
		return fmt.Errorf("%w: allow this user READ on the group", err)
	case kafkago.InvalidSessionTimeout:
		return fmt.Errorf("%w: SessionTimeout %s is not between the broker's group.min.session.timeout.ms and group.max.session.timeout.ms", err, m.config.SessionTimeout)
	case kafkago.InconsistentGroupProtocol:
		return fmt.Errorf("%w: the other members offer none of the same GroupBalancers, or are no consumers: give the group another name, or them range or roundrobin", err)
	}
	return err
}

// join takes part in a rebalance until the group has shared out its
// partitions.
func (m *member) join(ctx context.Context) (*assignment, error) {
	if _, err := m.topics.refresh(ctx); err != nil {
		return nil, err
	}
	joined, err := m.joinGroup(ctx)
	if err != nil {
		return nil, err
	}
	result := &assignment{generation: joined.GenerationID}
	m.generation = joined.GenerationID
	request := &syncgroup.Request{
		GroupID: m.config.Group, GenerationID: joined.GenerationID, MemberID: m.id, GroupInstanceID: m.config.InstanceID,
	}
	if joined.LeaderID == m.id {
		result.members = len(joined.Members)
		if request.Assignments, result.counts, err = m.share(ctx, joined); err != nil {
			return nil, err
		}
	}
	// Who waits for the leader need not send heartbeats.
	message, err := m.call(ctx, m.config.RebalanceTimeout+requestTimeout, request)
	if err != nil {
		return nil, err
	}
	synced := message.(*syncgroup.Response)
	if synced.ErrorCode != 0 {
		return nil, m.explain("get an assignment", synced.ErrorCode)
	}
	partitions, err := decodeAssignment(synced.Assignments)
	if err != nil {
		return nil, fmt.Errorf("consumer group %q: the leader's assignment: %w", m.config.Group, err)
	}
	result.partitions, err = m.committed(ctx, partitions)
	return result, err
}

func (m *member) joinGroup(ctx context.Context) (*joingroup.Response, error) {
	request := &joingroup.Request{
		GroupID:            m.config.Group,
		SessionTimeoutMS:   milliseconds(m.config.SessionTimeout),
		RebalanceTimeoutMS: milliseconds(m.config.RebalanceTimeout),
		ProtocolType:       "consumer",
		GroupInstanceID:    m.config.InstanceID,
	}
	for _, balancer := range m.config.GroupBalancers {
		userData, err := balancer.UserData()
		if err != nil {
			return nil, fmt.Errorf("GroupBalancer %s: %w", balancer.ProtocolName(), err)
		}
		request.Protocols = append(request.Protocols, joingroup.RequestProtocol{
			Name: balancer.ProtocolName(), Metadata: m.subscribe(balancer.ProtocolName(), userData),
		})
	}
	for {
		request.MemberID = m.id
		// The coordinator answers when all members have joined, or the slowest
		// one's time is over.
		message, err := m.call(ctx, m.config.RebalanceTimeout+requestTimeout, request)
		if err != nil {
			return nil, err
		}
		response := message.(*joingroup.Response)
		switch code := kafkago.Error(response.ErrorCode); {
		case code == 0:
			m.id = response.MemberID
			return response, nil
		case code == kafkago.MemberIDRequired && m.id != response.MemberID:
			m.id = response.MemberID // known from now on, so that leaving works
		default:
			return nil, m.explain("join", response.ErrorCode)
		}
	}
}

// subscribe says what this member wants.
func (m *member) subscribe(protocol string, userData []byte) []byte {
	wanted := subscription{topics: m.topics.wanted, userData: userData, generation: -1}
	if protocol != cooperativeSticky {
		return wanted.encode(false)
	}
	if m.crew != nil && m.id != "" {
		wanted.owned, wanted.generation = m.crew.owned(), m.generation
	}
	// Where version 1 is all that others read.
	wanted.userData = appendInt32(nil, wanted.generation)
	return wanted.encode(true)
}

// share is the leader's work: it assigns the partitions to the members.
func (m *member) share(ctx context.Context, joined *joingroup.Response) ([]syncgroup.RequestAssignment, map[string]int, error) {
	wants := make(map[string]subscription)
	var topics []string
	for _, other := range joined.Members {
		wanted, err := decodeSubscription(other.Metadata)
		if err != nil {
			return nil, nil, fmt.Errorf("consumer group %q: the metadata of member %s: %w", m.config.Group, other.MemberID, err)
		}
		wants[other.MemberID] = wanted
		topics = append(topics, wanted.topics...)
	}
	slices.Sort(topics)
	topics = slices.Compact(topics)
	known, err := m.cluster.of(ctx, topics)
	if err != nil {
		return nil, nil, err
	}
	assigned, err := m.balance(joined.ProtocolName, wants, known.partitions(topics))
	if err != nil {
		return nil, nil, err
	}
	var list []syncgroup.RequestAssignment
	for id := range wants {
		partitions := make(map[string][]int32)
		for _, p := range assigned[id] {
			partitions[p.topic] = append(partitions[p.topic], p.id)
		}
		list = append(list, syncgroup.RequestAssignment{MemberID: id, Assignment: encodeAssignment(partitions)})
	}
	return list, known.counts(topics), nil
}

// balance assigns by the balancer that the coordinator chose.
func (m *member) balance(protocol string, wants map[string]subscription, partitions []kafkago.Partition) (map[string][]partitionID, error) {
	if protocol == cooperativeSticky {
		all := make([]partitionID, len(partitions))
		for i, p := range partitions {
			all[i] = partitionID{p.Topic, int32(p.ID)} //nolint:gosec // it was an int32
		}
		return cooperate(wants, all), nil
	}
	for _, balancer := range m.config.GroupBalancers {
		if balancer.ProtocolName() != protocol {
			continue
		}
		members := make([]kafkago.GroupMember, 0, len(wants))
		for _, id := range slices.Sorted(maps.Keys(wants)) {
			members = append(members, kafkago.GroupMember{ID: id, Topics: wants[id].topics, UserData: wants[id].userData})
		}
		assigned := make(map[string][]partitionID)
		for id, topics := range balancer.AssignGroups(members, partitions) {
			for topic, ids := range topics {
				for _, partition := range ids {
					assigned[id] = append(assigned[id], partitionID{topic, int32(partition)}) //nolint:gosec // it was an int32
				}
			}
		}
		return assigned, nil
	}
	return nil, fmt.Errorf("consumer group %q: the coordinator chose balancer %q, which this member did not offer", m.config.Group, protocol)
}

// committed returns the group's offsets of partitions.
func (m *member) committed(ctx context.Context, partitions map[string][]int32) (map[partitionID]position, error) {
	offsets := make(map[partitionID]position)
	if len(partitions) == 0 {
		return offsets, nil
	}
	request := &offsetfetch.Request{GroupID: m.config.Group}
	for topic, ids := range partitions {
		request.Topics = append(request.Topics, offsetfetch.RequestTopic{Name: topic, PartitionIndexes: ids})
		for _, id := range ids {
			offsets[partitionID{topic, id}] = position{offset: -1, epoch: -1}
		}
	}
	message, err := m.call(ctx, requestTimeout, request)
	if err != nil {
		return nil, err
	}
	response := message.(*offsetfetch.Response)
	if response.ErrorCode != 0 {
		return nil, m.explain("read its offsets", response.ErrorCode)
	}
	for _, topic := range response.Topics {
		for _, p := range topic.Partitions {
			if p.ErrorCode != 0 {
				return nil, m.explain(fmt.Sprintf("read its offset of %s", partitionID{topic.Name, p.PartitionIndex}), p.ErrorCode)
			}
			committed := position{p.CommittedOffset, decodeNote(p.Metadata), p.ComittedLeaderEpoch}
			if committed.topic == (topicID{}) {
				committed.epoch = -1 // kafka-go's client commits 0
			}
			offsets[partitionID{topic.Name, p.PartitionIndex}] = committed
		}
	}
	return offsets, nil
}

// heartbeat tells the coordinator that this member lives. Kafka-go takes the
// throttle time of later versions for the error.
func (m *member) heartbeat(ctx context.Context, generation int32) error {
	connection, err := m.connect(ctx)
	if err != nil {
		return err
	}
	version := connection.versions[protocol.Heartbeat]
	b := appendString(nil, m.config.Group)
	b = appendInt32(b, generation)
	b = appendString(b, m.id)
	if version >= 3 {
		b = appendNullable(b, m.config.InstanceID)
	}
	response, err := connection.exchange(ctx, requestTimeout, protocol.Heartbeat, version, b, nil)
	if err != nil {
		return err
	}
	r := reader{rest: response}
	if version >= 1 {
		r.int32() // throttled
	}
	if code := r.int16(); code != 0 {
		return m.explain("heartbeat", code)
	}
	return r.err
}

// commit records offsets of this member's partitions. An error means that none
// or some are recorded. The coordinator refuses a member that is not part of
// the generation any more, so what was assigned to somebody else since is
// never set back.
func (m *member) commit(ctx context.Context, generation int32, positions map[partitionID]position) error {
	request := &offsetcommit.Request{GroupID: m.config.Group, GenerationID: generation, MemberID: m.id, GroupInstanceID: m.config.InstanceID, RetentionTimeMs: -1}
	byTopic := make(map[string]int)
	for p, position := range positions {
		index, ok := byTopic[p.topic]
		if !ok {
			index = len(request.Topics)
			byTopic[p.topic] = index
			request.Topics = append(request.Topics, offsetcommit.RequestTopic{Name: p.topic})
		}
		request.Topics[index].Partitions = append(request.Topics[index].Partitions, offsetcommit.RequestPartition{
			PartitionIndex: p.id, CommittedOffset: position.offset, CommittedLeaderEpoch: position.epoch, CommittedMetadata: encodeNote(position.topic),
		})
	}
	message, err := m.call(ctx, requestTimeout, request)
	if err != nil {
		return err
	}
	var errs []error
	for _, topic := range message.(*offsetcommit.Response).Topics {
		for _, p := range topic.Partitions {
			if p.ErrorCode != 0 {
				errs = append(errs, m.explain(fmt.Sprintf("commit the offset of %s", partitionID{topic.Name, p.PartitionIndex}), p.ErrorCode))
			}
		}
	}
	if len(errs) > 0 {
		return errs[0] // the others say the same
	}
	return nil
}

// notePrefix begins what is committed beside an offset: the id of the topic
// that it belongs to.
const notePrefix = "topic-id="

func encodeNote(topic topicID) string {
	if topic == (topicID{}) {
		return ""
	}
	return notePrefix + topic.String()
}

// decodeNote returns zero for what somebody else has committed.
func decodeNote(note string) (topic topicID) {
	if text, ok := strings.CutPrefix(note, notePrefix); ok {
		if id, err := base64.RawURLEncoding.DecodeString(text); err == nil && len(id) == len(topic) {
			copy(topic[:], id)
		}
	}
	return topic
}

// leave tells the coordinator, which then shares out the partitions at once
// instead of after SessionTimeout. A static member stays, for when it comes
// back.
func (m *member) leave(ctx context.Context) error {
	if m.id == "" || m.config.InstanceID != "" {
		return nil
	}
	message, err := m.call(ctx, requestTimeout, &leavegroup.Request{GroupID: m.config.Group, Members: []leavegroup.RequestMember{{MemberID: m.id}}})
	if err != nil {
		return err
	}
	response := message.(*leavegroup.Response)
	code := response.ErrorCode
	for _, member := range response.Members {
		if code == 0 {
			code = member.ErrorCode
		}
	}
	m.id = ""
	if code != 0 && kafkago.Error(code) != kafkago.UnknownMemberId {
		return m.explain("leave", code)
	}
	return nil
}

func (m *member) hangUp() {
	if m.connection != nil {
		m.connection.close()
		m.connection = nil
	}
}

// rebalancing reports whether the group only wants this member to join again.
func rebalancing(err error) bool {
	return errors.Is(err, kafkago.RebalanceInProgress)
}

// expelled reports whether the coordinator does not count this member in the
// generation any more.
func expelled(err error) bool {
	return errors.Is(err, kafkago.IllegalGeneration) || errors.Is(err, kafkago.UnknownMemberId) || errors.Is(err, kafkago.FencedInstanceID)
}

// passing reports whether joining usually works a moment later.
func passing(err error) bool {
	return rebalancing(err) || expelled(err) || errors.Is(err, kafkago.GroupLoadInProgress) ||
		errors.Is(err, kafkago.GroupCoordinatorNotAvailable) || errors.Is(err, kafkago.NotCoordinatorForGroup)
}

func milliseconds(d time.Duration) int32 {
	return int32(d.Milliseconds()) //nolint:gosec // Config.check bounds it
}
