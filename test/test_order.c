/*
 * ring.c: in which order what is new reaches a topic's subscribers, that none
 * of them is missed or overrun meanwhile; where a reader begins, and what it
 * is told that it may have missed.
 */
#include "sse.h"

#include <criterion/criterion.h>
#include <stdlib.h>

/* Appends an event; returns its ordinal. */
static uint64_t append(struct ring *ring, struct topic *topic, uint64_t id,
                       bool finishes)
{
    char bytes[256];
    struct text text = { bytes, sizeof(bytes), 0 };
    struct event event = { .data = SLICE("x") };

    text_put_event(&text, id, &event);
    return ring_append(ring, topic, id, text_slice(&text), 0, finishes);
}

/* ------------------------------------------------------------------ passes */

enum {
    SUBSCRIBERS = 40,
    TOPICS = 3,
    ROUNDS = 20000,
};

/* Subscribers that have room in their sockets, each of one topic. */
struct crowd {
    struct ring ring;
    struct topic *topics[TOPICS];
    struct place places[SUBSCRIBERS]; /* no topic: it does not subscribe */
};

static void join(struct crowd *crowd, uint32_t number)
{
    struct place *place = &crowd->places[number];
    struct topic *topic = crowd->topics[random() % TOPICS];

    *place = (struct place){ .topic = topic, .last = topic_end(topic) };
    topic->references++;
    cr_assert(topic_reserve(topic));
    topic_join(&crowd->ring, place, number);
}

static void leave(struct crowd *crowd, uint32_t number)
{
    struct place *place = &crowd->places[number];
    uint32_t moved = topic_leave(place);

    crowd->places[moved].index = place->index;
    topic_drop(&crowd->ring, place->topic);
    place->topic = NULL;
}

static void publish(struct crowd *crowd)
{
    struct topic *topic = crowd->topics[random() % TOPICS];

    if (!ring_would_overrun(&crowd->ring, 64, 0))
        append(&crowd->ring, topic, crowd->ring.newest_id + 1, false);
}

/* Visits some of those that are to be offered what is new. */
static void deliver(struct crowd *crowd, long visits)
{
    uint32_t number = 0;

    while (visits-- > 0 && (number = pass_next(&crowd->ring)) != NONE)
        crowd->places[number].last = topic_end(crowd->places[number].topic);
    pass_yield(&crowd->ring);
}

static void check(const struct crowd *crowd)
{
    for (uint32_t i = 0; i < SUBSCRIBERS; i++) {
        const struct place *place = &crowd->places[i];

        if (!place->topic)
            continue;
        cr_assert(place->last >= place->topic->evicted, "%u is overrun", i);
        cr_assert(place->topic->subscribers[place->index] == i);
    }
}

/* However subscribers come and go and events come, all are offered all. */
Test(passes, reach_every_subscriber)
{
    static struct crowd crowd;

    srandom(3);
    cr_assert(ring_init(&crowd.ring, 16, 4096, 0, SLICE("")) == 0);
    for (int i = 0; i < TOPICS; i++)
        crowd.topics[i] =
            topic_hold(&crowd.ring, (struct slice){ &"abc"[i], 1 });
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t number = (uint32_t)random() % SUBSCRIBERS;

        if (random() % 4 == 0 && crowd.places[number].topic)
            leave(&crowd, number);
        else if (random() % 4 == 0 && !crowd.places[number].topic)
            join(&crowd, number);
        for (long i = random() % 6; i > 0; i--)
            publish(&crowd);
        deliver(&crowd, random() % 20);
        check(&crowd);
    }
    cr_assert(crowd.ring.newest_id > ROUNDS / 4);
    while (crowd.ring.queue_first[TOPICS_IN_PASS])
        deliver(&crowd, SUBSCRIBERS);
    for (uint32_t i = 0; i < SUBSCRIBERS; i++)
        if (crowd.places[i].topic) {
            cr_assert(crowd.places[i].last == topic_end(crowd.places[i].topic));
            leave(&crowd, i);
        }
    for (int i = 0; i < TOPICS; i++) {
        cr_assert(!crowd.topics[i]->undelivered &&
                  !crowd.topics[i]->subscribers &&
                  crowd.topics[i]->references == 1);
        topic_drop(&crowd.ring, crowd.topics[i]);
    }
    ring_release(&crowd.ring);
}

/* Many in one topic after the other, of whom a few stay: what they leave behind
 * follows from the number of those that stay. */
Test(subscribers, leave_no_room_behind)
{
    enum {
        MANY = 6000,
        STEP = 37,
    };
    static struct place places[MANY];
    struct ring ring;
    struct topic *topic;

    cr_assert(ring_init(&ring, 2, 4096, 0, SLICE("")) == 0);
    topic = topic_hold(&ring, SLICE("a"));
    for (uint32_t count = 0; count < MANY; count++) {
        places[count] = (struct place){ .topic = topic };
        cr_assert(topic_reserve(topic));
        topic_join(&ring, &places[count], count);
        cr_assert(topic->subscriber_room <= 8 * (count + 1) ||
                  topic->subscriber_room >= 65536);
    }
    for (uint32_t count = MANY; count-- > 0;) {
        uint32_t number = count * STEP % (count + 1);
        uint32_t last = topic->subscribers[count];

        /* the place of each is where its index says */
        cr_assert(topic_leave(&places[topic->subscribers[number]]) == last);
        places[last].index = number;
        cr_assert(topic->subscriber_count == count);
        cr_assert(topic->subscriber_peak <= 4 * count + 3);
        cr_assert(topic->subscriber_room <= 8 * count + 6 ||
                  topic->subscriber_peak > 4096);
        if (count)
            cr_assert(places[topic->subscribers[0]].index == 0);
    }
    cr_assert(!topic->subscribers && !topic->subscriber_room);
    ring_release(&ring);
}

/* Publishers wait for what has not been offered, or is waited for; not for
 * what all have been offered. */
Test(passes, hold_up_publishers)
{
    struct ring ring;
    struct topic *topic;
    struct place place;
    uint64_t first;

    cr_assert(ring_init(&ring, 2, 4096, 0, SLICE("")) == 0);
    topic = topic_hold(&ring, SLICE("a"));
    place = (struct place){ .topic = topic };
    first = append(&ring, topic, 1, false);
    append(&ring, topic, 2, false);
    cr_assert(!ring_would_overrun(&ring, 64, 0), "nobody subscribes");
    cr_assert(ring_would_overrun(&ring, 64, first), "it is waited for");
    cr_assert(!ring_would_overrun(&ring, 64, first + 1));
    cr_assert(topic_reserve(topic));
    topic_join(&ring, &place, 7);
    append(&ring, topic, 3, false);
    cr_assert(!ring_would_overrun(&ring, 64, 0), "2 goes, 3 stays");
    append(&ring, topic, 4, false);
    cr_assert(ring_would_overrun(&ring, 64, 0), "3 has not been offered");
    cr_assert(pass_next(&ring) == 7);
    cr_assert(pass_next(&ring) == 7, "4 came after the pass had begun");
    cr_assert(pass_next(&ring) == NONE);
    cr_assert(!ring_would_overrun(&ring, 64, 0));
    cr_assert(topic_leave(&place) == 7, "the last one takes its own index");
    topic_drop(&ring, topic);
    ring_release(&ring);
}

/* A topic that has many subscribers does not hold up another one. */
Test(passes, go_on_with_another_topic)
{
    struct ring ring;
    struct topic *topics[2];
    struct place places[4];

    cr_assert(ring_init(&ring, 8, 4096, 0, SLICE("")) == 0);
    for (uint32_t i = 0; i < 2; i++)
        topics[i] = topic_hold(&ring, (struct slice){ &"ab"[i], 1 });
    for (uint32_t i = 0; i < 4; i++) {
        places[i] = (struct place){ .topic = topics[i == 3] };
        cr_assert(topic_reserve(places[i].topic));
        topic_join(&ring, &places[i], i);
    }
    append(&ring, topics[0], 1, false);
    append(&ring, topics[1], 2, false);
    cr_assert(pass_next(&ring) == 2);
    pass_yield(&ring);
    cr_assert(pass_next(&ring) == 3);
    pass_yield(&ring);
    cr_assert(pass_next(&ring) == 1);
    cr_assert(pass_next(&ring) == 0);
    cr_assert(pass_next(&ring) == NONE);
    ring_release(&ring);
}

/* With a pace a topic's passes begin that far apart; what comes meanwhile goes
 * out with the next one, and is not evicted before. The first does not wait. */
Test(passes, keep_their_pace)
{
    struct ring ring;
    struct topic *topics[2];
    struct place places[2];

    cr_assert(ring_init(&ring, 3, 4096, 0, SLICE("")) == 0);
    ring.pace = 50;
    ring.now = 1000;
    for (uint32_t i = 0; i < 2; i++) {
        topics[i] = topic_hold(&ring, (struct slice){ &"ab"[i], 1 });
        places[i] = (struct place){ .topic = topics[i] };
        cr_assert(topic_reserve(topics[i]));
        topic_join(&ring, &places[i], i);
    }
    cr_assert(ring_due(&ring) == NEVER);
    append(&ring, topics[0], 1, false);
    cr_assert(ring_due(&ring) == 0 && pass_next(&ring) == 0);
    cr_assert(pass_next(&ring) == NONE && ring_due(&ring) == 1050);
    ring.now = 1020;
    append(&ring, topics[1], 2, false);
    cr_assert(pass_next(&ring) == 1);
    cr_assert(pass_next(&ring) == NONE);
    append(&ring, topics[0], 3, false);
    pass_wake(&ring);
    cr_assert(pass_next(&ring) == NONE && ring_due(&ring) == 1050);
    cr_assert(!ring_would_overrun(&ring, 64, 0));
    append(&ring, topics[0], 4, false);
    append(&ring, topics[1], 5, false);
    cr_assert(ring_would_overrun(&ring, 64, 0), "3 waits for its pass");
    ring.now = 1050;
    pass_wake(&ring);
    cr_assert(pass_next(&ring) == 0, "3 and 4 at once");
    cr_assert(pass_next(&ring) == NONE && ring_due(&ring) == 1070);
    cr_assert(!ring_would_overrun(&ring, 64, 0));
    ring.now = 2000;
    pass_wake(&ring);
    cr_assert(pass_next(&ring) == 1);
    cr_assert(pass_next(&ring) == NONE);
    ring.now = 3000;
    pass_wake(&ring);
    cr_assert(ring_due(&ring) == NEVER && topics[0]->references == 1);
    for (int i = 0; i < 2; i++) {
        topic_leave(&places[i]);
        topic_drop(&ring, topics[i]);
    }
    ring_release(&ring);
}

/* A pass that takes longer than the pace is followed by the next one at once,
 * and a topic that is forgotten meanwhile is let go. */
Test(passes, may_be_slower_than_their_pace)
{
    struct ring ring;
    struct topic *topic;
    struct place places[2];

    cr_assert(ring_init(&ring, 8, 4096, 0, SLICE("")) == 0);
    ring.pace = 50;
    topic = topic_hold(&ring, SLICE("a"));
    for (uint32_t i = 0; i < 2; i++) {
        places[i] = (struct place){ .topic = topic };
        cr_assert(topic_reserve(topic));
        topic_join(&ring, &places[i], i);
    }
    append(&ring, topic, 1, false);
    cr_assert(pass_next(&ring) == 1);
    append(&ring, topic, 2, false);
    ring.now = 60;
    pass_wake(&ring);
    cr_assert(pass_next(&ring) == 0);
    cr_assert(pass_next(&ring) == 1, "2, at once");
    append(&ring, topic, 3, false);
    cr_assert(pass_next(&ring) == 0);
    cr_assert(pass_next(&ring) == NONE);
    cr_assert(ring_due(&ring) == 110, "3 waits");
    for (int i = 0; i < 2; i++)
        topic_leave(&places[i]);
    topic_drop(&ring, topic);
    ring.now = 110;
    pass_wake(&ring);
    cr_assert(pass_next(&ring) == NONE && !topic->undelivered);
    ring_release(&ring);
}

/* ------------------------------------------------------------------ starts
 *
 * Topic a has the ids 10, 20, ... 80, of which 50 to 80 are held; b has 81 to
 * 83, all held, the last of which finishes it; c, of which nothing is known,
 * was forgotten with the id 5.
 */
struct row {
    const char *topics; /* a letter each */
    const char *requested;
    uint64_t count; /* last= */
    uint64_t next;  /* the id of what is sent first; 0: nothing */
    uint64_t position;
    uint64_t replay;
    uint64_t oldest;  /* of a gap; 0: null */
    const char *lost; /* topics */
};

static const struct row rows[] = {
    { "a", "", 0, 0, 83, 0, 0, "" },
    { "a", "", 2, 70, 69, 2, 0, "" },
    { "a", "", 99, 50, 49, 4, 0, "" },
    { "a", "83", 0, 0, 83, 0, 0, "" },
    { "a", "80", 0, 0, 80, 0, 0, "" },
    { "a", "79", 0, 80, 79, 1, 0, "" },
    { "a", "40", 0, 50, 40, 4, 0, "" },
    { "a", "39", 0, 50, 49, 4, 50, "a" },
    { "a", "0", 0, 50, 49, 4, 50, "a" },
    { "a", "39", 1, 50, 49, 4, 50, "a" },
    { "a", "earliest", 0, 50, 49, 4, 0, "" },
    { "a", "84", 0, 50, 49, 4, 50, "a" },
    { "a", "x", 0, 50, 49, 4, 50, "a" },
    { "a", "050", 0, 50, 49, 4, 50, "a" },
    { "a", "9007199254740992", 0, 50, 49, 4, 50, "a" },
    { "b", "81", 0, 82, 81, 2, 0, "" },
    { "b", "6", 0, 81, 6, 3, 0, "" },
    { "b", "4", 0, 81, 80, 3, 81, "b" },
    { "c", "5", 0, 0, 5, 0, 0, "" },
    { "c", "4", 0, 0, 83, 0, 0, "c" },
    { "ab", "", 4, 80, 79, 4, 0, "" },
    { "ab", "79", 0, 80, 79, 4, 0, "" },
    { "ab", "39", 0, 50, 49, 7, 50, "a" },
    { "ab", "4", 0, 50, 49, 7, 50, "ab" },
    { "ab", "earliest", 0, 50, 49, 7, 0, "" },
    { "abc", "81", 0, 82, 81, 2, 0, "" },
};

/* The history of the rows. */
static void begin_history(struct ring *ring)
{
    struct topic *c, *a, *b;

    cr_assert(ring_init(ring, 7, 4096, 0, SLICE("")) == 0);
    c = topic_hold(ring, SLICE("z"));
    append(ring, c, 5, false);
    topic_drop(ring, c);
    a = topic_hold(ring, SLICE("a"));
    for (uint64_t id = 10; id <= 80; id += 10)
        append(ring, a, id, false);
    topic_drop(ring, a);
    b = topic_hold(ring, SLICE("b"));
    for (uint64_t id = 81; id <= 83; id++)
        append(ring, b, id, id == 83);
    topic_drop(ring, b);
}

static void check_row(struct ring *ring, const struct row *row, size_t i)
{
    struct place places[3] = { 0 };
    struct reader reader = { .places = places, .until = UINT64_MAX };
    struct start start;
    uint64_t next;

    for (const char *name = row->topics; *name; name++)
        places[reader.count++].topic =
            topic_hold(ring, (struct slice){ name, 1 });
    reader_start(ring, &reader, slice_of(row->requested), row->count, &start);
    next = reader_next(ring, &reader);
    cr_assert((next ? ring_frame(ring, next)->id : 0) == row->next, "%zu", i);
    cr_assert(start.position == row->position, "row %zu: %llu", i,
              (unsigned long long)start.position);
    cr_assert(start.replay == row->replay, "row %zu", i);
    cr_assert(start.gap == (*row->lost != '\0'), "row %zu", i);
    cr_assert(start_oldest(ring, &reader, &start) == row->oldest, "row %zu", i);
    for (unsigned k = 0; k < reader.count; k++) {
        cr_assert(start_lost(&start, places[k].topic) ==
                      (strchr(row->lost, row->topics[k]) != NULL),
                  "row %zu", i);
        topic_drop(ring, places[k].topic);
    }
}

Test(starts, are_where_the_request_says)
{
    struct ring ring;

    begin_history(&ring);
    for (size_t i = 0; i < COUNT(rows); i++)
        check_row(&ring, &rows[i], i);
    ring_release(&ring);
}

/* With ids from outside a position above the newest id is a valid one. */
Test(starts, may_be_ahead_of_ids_from_outside)
{
    static const struct {
        const char *requested;
        bool ahead, gap;
    } ids[] = {
        { "83", false, false }, { "84", true, false }, { "", false, false },
        { "x", false, true },   { "30", false, true },
    };
    struct ring ring;
    struct place place = { 0 };
    struct reader reader = { .places = &place, .count = 1 };

    begin_history(&ring);
    ring.kept_ids = true;
    place.topic = topic_hold(&ring, SLICE("a"));
    for (size_t i = 0; i < COUNT(ids); i++) {
        struct start start;

        reader_start(&ring, &reader, slice_of(ids[i].requested), 0, &start);
        cr_assert(start.ahead == ids[i].ahead, "%zu", i);
        cr_assert(start.gap == ids[i].gap, "%zu", i);
        cr_assert(!start.ahead || start.position == 84, "%zu", i);
    }
    topic_drop(&ring, place.topic);
    ring_release(&ring);
}

/* A finished topic that has nothing left for the reader; and a reader that has
 * been sent its end. */
Test(starts, may_be_behind_the_end)
{
    struct ring ring;
    struct place places[2] = { 0 };
    struct reader reader = { .places = places, .count = 1 };
    struct start start;

    begin_history(&ring);
    places[0].topic = topic_hold(&ring, SLICE("b"));
    places[1].topic = topic_hold(&ring, SLICE("a"));
    reader_start(&ring, &reader, SLICE("82"), 0, &start);
    cr_assert(!reader_finished(&ring, &reader), "the end is still to come");
    reader_start(&ring, &reader, SLICE("83"), 0, &start);
    cr_assert(reader_finished(&ring, &reader));
    cr_assert(topic_reserve(places[0].topic));
    topic_join(&ring, &places[0], 0);
    cr_assert(reader_ended(&reader));
    topic_leave(&places[0]);
    reader.count = 2;
    reader_start(&ring, &reader, SLICE("83"), 0, &start);
    cr_assert(!reader_finished(&ring, &reader) && !reader_ended(&reader),
              "the other topic goes on");
    append(&ring, places[0].topic, 84, false);
    reader.count = 1;
    cr_assert(!reader_finished(&ring, &reader), "it has been opened again");
    ring_release(&ring);
}
