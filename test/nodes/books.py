"""The books of a crowd: what publishers were told and what subscribers got.

Each event's data is unique, so that it can be told who published it. A
publisher knows of each event that it was acknowledged, refused, or that its
outcome is unknown. At the end they must balance:

- no id names two events, and no event has two ids;
- nothing that was refused appears;
- what was acknowledged before something else was sent has the smaller id;
- each subscriber got every event of its topics that was acknowledged, or that
  anybody got, once and in the order of ids; or it was told of a gap there.
"""

from bisect import bisect_right
from collections import defaultdict

END = "(the end)"  # the data of an event that finishes a topic


class Gap:
    """What a subscriber that stood at `begin` was told. What it covers ends,
    for each topic, with the next event or position that the subscriber gets."""

    def __init__(self, begin, topics):
        self.begin = begin
        self.open = set(topics)
        self.until = {}

    def close(self, topic, until):
        if topic in self.open:
            self.open.remove(topic)
            self.until[topic] = until

    def covers(self, topic, id_):
        if topic in self.open:
            return id_ > self.begin
        return self.begin < id_ <= self.until.get(topic, 0)


class Books:
    def __init__(self):
        self.names = {}            # id: (topic, data)
        self.ids = {}              # data: id
        self.acknowledged = {}     # id: (topic, data)
        self.without_id = {}       # data: topic, acknowledged in a stream
        self.ends = {}             # id: topic, which a DELETE was answered
        self.newest = 0            # that was acknowledged
        self.refused = set()       # data
        self.faults = []

    def fault(self, text):
        self.faults.append(text)

    def appeared(self, id_, topic, data):
        """Somebody got it, or was told its id."""
        name = self.names.setdefault(id_, (topic, data))
        if name != (topic, data):
            self.fault(f"{id_} is {name} and also {(topic, data)}")
        if data != END and self.ids.setdefault(data, id_) != id_:
            self.fault(f"{data} is {self.ids[data]} and also {id_}")

    def acknowledge(self, id_, topic, data, floor):
        """`floor` is self.newest when it was sent."""
        self.appeared(id_, topic, data)
        self.acknowledged[id_] = (topic, data)
        if id_ <= floor:
            self.fault(f"{data} has {id_}, sent when {floor} was acknowledged")
        self.newest = max(self.newest, id_)

    def acknowledge_data(self, topic, data):
        self.without_id[data] = topic

    def acknowledge_end(self, id_, topic):
        """Of a topic that was finished already it is an earlier end. Two that
        finish it at once append two ends; the second is no event."""
        self.ends[id_] = topic

    def take_dump(self, dump):
        """What is in the log now."""
        finished = set()
        for name, fields in dump:
            high, id_ = name.split("-")
            kind, topic = fields.get("k", ""), fields.get("t")
            if high != "0" or kind == "begin" or topic is None or \
                    kind and topic in finished:
                continue
            (finished.add if kind else finished.discard)(topic)
            self.appeared(int(id_), topic, END if kind else fields["d"])

    def check_dump(self, dump):
        """Where nothing can have been lost, the log has all of it."""
        held = {int(name.split("-")[1]) for name, _ in dump}
        for id_, name in self.names.items():
            if id_ not in held:
                self.fault(f"{id_} {name} is not in the log")

    def settle(self, subscribers):
        for data in self.refused & self.ids.keys():
            self.fault(f"{data} was refused and is {self.ids[data]}")
        for data, topic in self.without_id.items():
            if data not in self.ids:
                self.fault(f"{data} in {topic} was acknowledged and is nowhere")
        for id_, topic in self.ends.items():
            if self.names.get(id_, (topic, END)) != (topic, END):
                self.fault(f"the answer to a DELETE of {topic} has {id_}, "
                           f"which is {self.names[id_]}")
        topics = defaultdict(list)
        for id_, (topic, _) in self.names.items():
            topics[topic].append(id_)
        for subscriber in subscribers:
            self.faults += subscriber.faults
            for topic in subscriber.topics:
                self.settle_topic(subscriber, topic, sorted(topics[topic]))
        return self.faults

    def settle_topic(self, subscriber, topic, ids):
        seen = set(subscriber.seen)
        begin = bisect_right(ids, subscriber.first)
        end = bisect_right(ids, subscriber.position)
        missing = [id_ for id_ in ids[begin:end] if id_ not in seen and
                   not any(gap.covers(topic, id_) for gap in subscriber.gaps)]
        if missing:
            names = [(id_, self.names[id_][1]) for id_ in missing[:3]]
            self.fault(f"{subscriber.name} lost {len(missing)} of {topic!r}: "
                       f"{names}; {subscriber.history(missing[0])}")

    def lost(self, dump):
        """How many acknowledged events are in the log no more."""
        held = {int(name.split("-")[1]) for name, _ in dump}
        return len(self.acknowledged.keys() - held)
