package kafka

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/findcoordinator"
	"github.com/segmentio/kafka-go/protocol/heartbeat"
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

	// id is what the coordinator calls this member, empty before it joined and
	// after it was thrown out.
	id         string
	connection *connection
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
	if !m.connection.usable() {
		connection, err := m.dialCoordinator(ctx)
		if err != nil {
			return nil, err
		}
		m.connection = connection
	}
	return m.connection.roundTrip(ctx, limit, request)
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
	case kafkago.UnknownMemberId, kafkago.FencedInstanceID:
		m.id = ""
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
	joined, err := m.joinGroup(ctx)
	if err != nil {
		return nil, err
	}
	result := &assignment{generation: joined.GenerationID}
	request := &syncgroup.Request{GroupID: m.config.Group, GenerationID: joined.GenerationID, MemberID: m.id}
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
	}
	for _, balancer := range m.config.GroupBalancers {
		userData, err := balancer.UserData()
		if err != nil {
			return nil, fmt.Errorf("GroupBalancer %s: %w", balancer.ProtocolName(), err)
		}
		request.Protocols = append(request.Protocols, joingroup.RequestProtocol{
			Name: balancer.ProtocolName(), Metadata: encodeSubscription(m.config.Topics, userData),
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

// share is the leader's work: it assigns the partitions to the members.
func (m *member) share(ctx context.Context, joined *joingroup.Response) ([]syncgroup.RequestAssignment, map[string]int, error) {
	members := make([]kafkago.GroupMember, 0, len(joined.Members))
	var topics []string
	for _, other := range joined.Members {
		wanted, userData, err := decodeSubscription(other.Metadata)
		if err != nil {
			return nil, nil, fmt.Errorf("consumer group %q: member %s: %w", m.config.Group, other.MemberID, err)
		}
		members = append(members, kafkago.GroupMember{ID: other.MemberID, Topics: wanted, UserData: userData})
		topics = append(topics, wanted...)
	}
	slices.Sort(topics)
	topics = slices.Compact(topics)
	known, err := m.cluster.of(ctx, topics)
	if err != nil {
		return nil, nil, err
	}
	var assigned kafkago.GroupMemberAssignments
	for _, balancer := range m.config.GroupBalancers {
		if balancer.ProtocolName() == joined.ProtocolName {
			assigned = balancer.AssignGroups(members, known.partitions(topics))
		}
	}
	if assigned == nil {
		return nil, nil, fmt.Errorf("consumer group %q: the coordinator chose balancer %q, which this member did not offer", m.config.Group, joined.ProtocolName)
	}
	var list []syncgroup.RequestAssignment
	for _, other := range members {
		partitions := make(map[string][]int32)
		for topic, ids := range assigned[other.ID] {
			for _, id := range ids {
				partitions[topic] = append(partitions[topic], int32(id)) //nolint:gosec // it was an int32
			}
		}
		list = append(list, syncgroup.RequestAssignment{MemberID: other.ID, Assignment: encodeAssignment(partitions)})
	}
	return list, known.counts(topics), nil
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
			offsets[partitionID{topic, id}] = position{offset: -1}
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
			offsets[partitionID{topic.Name, p.PartitionIndex}] = position{p.CommittedOffset, decodeNote(p.Metadata)}
		}
	}
	return offsets, nil
}

// heartbeat tells the coordinator that this member lives.
func (m *member) heartbeat(ctx context.Context, generation int32) error {
	message, err := m.call(ctx, requestTimeout, &heartbeat.Request{GroupID: m.config.Group, GenerationID: generation, MemberID: m.id})
	if err != nil {
		return err
	}
	if code := message.(*heartbeat.Response).ErrorCode; code != 0 {
		return m.explain("heartbeat", code)
	}
	return nil
}

// commit records offsets of this member's partitions. An error means that none
// or some are recorded. The coordinator refuses a member that is not part of
// the generation any more, so what was assigned to somebody else since is
// never set back.
func (m *member) commit(ctx context.Context, generation int32, positions map[partitionID]position) error {
	request := &offsetcommit.Request{GroupID: m.config.Group, GenerationID: generation, MemberID: m.id, RetentionTimeMs: -1}
	byTopic := make(map[string]int)
	for p, position := range positions {
		index, ok := byTopic[p.topic]
		if !ok {
			index = len(request.Topics)
			byTopic[p.topic] = index
			request.Topics = append(request.Topics, offsetcommit.RequestTopic{Name: p.topic})
		}
		request.Topics[index].Partitions = append(request.Topics[index].Partitions, offsetcommit.RequestPartition{
			PartitionIndex: p.id, CommittedOffset: position.offset, CommittedLeaderEpoch: -1, CommittedMetadata: encodeNote(position.topic),
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
// instead of after SessionTimeout.
func (m *member) leave(ctx context.Context) error {
	if m.id == "" {
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
