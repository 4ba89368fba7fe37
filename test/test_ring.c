/*
 * ring.c: wrap, eviction by count and by bytes, gaps between ids, places at
 * every boundary, topics' chains, gathering in every form and from every byte
 * on, and a model: 100,000 random operations against a naive array.
 */
#include "test/one_reader.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    IOV_MAX_HERE = 128,
    EVERYTHING = 1 << 20
};

#define SPLICE "<spliced>"

static struct topic *begin(struct ring *ring, uint64_t limit, size_t size,
                           uint64_t newest_id)
{
    cr_assert(ring_init(ring, limit, size, newest_id, SLICE(SPLICE)) == 0);
    return topic_hold(ring, SLICE(""));
}

/* A frame whose content is `length` bytes that depend on its id, written
 * into `bytes`; the splice text goes in before its last byte. */
static struct slice make_frame(char *bytes, uint64_t id, size_t length,
                               uint32_t *splice)
{
    int head = sprintf(bytes, "%08zx\r\n", length);

    cr_assert(head == FRAME_HEAD);
    for (size_t i = 0; i < length; i++)
        bytes[head + (int)i] = (char)('a' + (id * 7 + i) % 26);
    memcpy(bytes + head + length, "\r\n", FRAME_TAIL);
    *splice = (uint32_t)(FRAME_HEAD + length - 1);
    return (struct slice){ bytes, FRAME_HEAD + length + FRAME_TAIL };
}

/* What a reader gets of that frame in a form; appended to `out`. */
static size_t expect_frame(char *out, uint64_t id, size_t length, bool spliced,
                           unsigned form)
{
    char bytes[600];
    uint32_t splice;
    size_t at = 0, content = length;

    make_frame(bytes, id, length, &splice);
    if (spliced && (form & FORM_SPLICED))
        content += strlen(SPLICE);
    if (form & FORM_CHUNKED)
        at += (size_t)sprintf(out, "%08zx\r\n", content);
    memcpy(out + at, bytes + FRAME_HEAD, length - 1);
    at += length - 1;
    if (content > length)
        at += (size_t)sprintf(out + at, "%s", SPLICE);
    out[at++] = bytes[splice];
    if (form & FORM_CHUNKED)
        at += (size_t)sprintf(out + at, "\r\n");
    return at;
}

static uint64_t append(struct ring *ring, struct topic *topic, uint64_t id,
                       size_t length, bool spliced)
{
    char bytes[600];
    uint32_t splice;
    struct slice frame = make_frame(bytes, id, length, &splice);

    return ring_append(ring, topic, id, frame, spliced ? splice : 0, false);
}

/* Gathers what follows the cursor; returns the bytes and moves nothing. */
static size_t gather(const struct ring *ring, struct topic *topic,
                     const struct one *cursor, uint64_t until, unsigned form,
                     char *out, int room, size_t budget)
{
    struct iovec iov[IOV_MAX_HERE];
    int count = one_gather(ring, topic, cursor, until, form, iov, room, budget);
    size_t length = 0;

    cr_assert(count <= room);
    for (int i = 0; i < count; i++) {
        cr_assert(iov[i].iov_len > 0);
        memcpy(out + length, iov[i].iov_base, iov[i].iov_len);
        length += iov[i].iov_len;
    }
    return length;
}

Test(ring, refuses_what_memory_cannot_hold)
{
    struct ring ring;

    cr_assert(ring_init(&ring, 1, SIZE_MAX / 2, 0, SLICE("")) == -1);
}

Test(ring, holds_nothing_at_first)
{
    struct ring ring;
    struct topic *topic;
    struct one cursor = { 0 };
    char out[16];

    topic = begin(&ring, 4, 100, 41);
    cr_assert(ring.oldest == ring.next && ring.newest_id == 41);
    cr_assert(topic->mark == 41);
    cr_assert(ring_find(&ring, 100) == ring.oldest - 1);
    cr_assert(topic_start(topic) == 0 && topic_end(topic) == 0);
    cr_assert(topic_seek(&ring, topic, 41) == 0);
    cr_assert(one_back(&ring, topic, 3) == 0);
    cr_assert(topic_after(&ring, topic, 0) == 0);
    cr_assert(topic_count_after(&ring, topic, 0) == 0);
    cr_assert(!one_overrun(topic, &cursor));
    cr_assert(gather(&ring, topic, &cursor, UINT64_MAX, FORM_CHUNKED, out, 4,
                     100) == 0);
    ring_release(&ring);
}

Test(ring, evicts_by_count)
{
    struct ring ring;
    struct topic *topic;

    topic = begin(&ring, 3, 10000, 0);
    for (uint64_t id = 1; id <= 10; id++) {
        cr_assert(append(&ring, topic, id, 5, false) == id);
        cr_assert(ring.next - ring.oldest == (id < 3 ? id : 3));
    }
    cr_assert(ring.oldest == 8 && topic->oldest == 8 && topic->newest == 10);
    cr_assert(topic->evicted == 7 && topic->mark == 7 && topic->count == 10);
    ring_release(&ring);
}

Test(ring, evicts_by_bytes)
{
    struct ring ring;
    struct topic *topic;

    topic = begin(&ring, 100, 100, 0);
    for (uint64_t id = 1; id <= 3; id++)
        append(&ring, topic, id, 8, false); /* 20 bytes each */
    cr_assert(ring.used == 60 && ring.oldest == 1);
    append(&ring, topic, 4, 28, false); /* 40: fits just */
    cr_assert(ring.used == 100 && ring.oldest == 1);
    cr_assert(ring_oldest_after(&ring, 1) == 2);
    cr_assert(ring_oldest_after(&ring, 21) == 3);
    append(&ring, topic, 5, 9, false); /* 21: two have to go */
    cr_assert(ring.used == 81 && ring.oldest == 3);
    append(&ring, topic, 6, 88, false); /* all of it */
    cr_assert(ring.used == 100 && ring.oldest == 6 && topic->oldest == 6);
    ring_release(&ring);
}

/* Frames of every length begin at every offset of a small memory. */
Test(ring, wraps_anywhere)
{
    char expected[700], out[700];

    for (size_t length = 1; length <= 25; length++) {
        struct ring ring;
        struct topic *topic;

        topic = begin(&ring, 1, 37, 0);
        for (uint64_t id = 1; id <= 74; id++) {
            struct one cursor = { .last = topic_end(topic) };
            size_t size =
                expect_frame(expected, id, length, false, FORM_CHUNKED);

            append(&ring, topic, id, length, false);
            cr_assert(gather(&ring, topic, &cursor, UINT64_MAX, FORM_CHUNKED,
                             out, 2, EVERYTHING) == size);
            cr_assert(memcmp(out, expected, size) == 0);
        }
        ring_release(&ring);
    }
}

/* Ids 10, 20, ... 100 of which 60 and older are evicted. */
Test(ring, finds_ids_with_gaps)
{
    struct ring ring;
    struct topic *topic;

    topic = begin(&ring, 4, 10000, 0);
    for (uint64_t i = 1; i <= 10; i++)
        append(&ring, topic, i * 10, 5, false);
    for (uint64_t id = 0; id <= 120; id++) {
        uint64_t expected = id < 70 ? 6 : id > 100 ? 10 : id / 10;

        cr_assert(ring_find(&ring, id) == expected, "%d", (int)id);
        cr_assert(topic_seek(&ring, topic, id) == expected);
        cr_assert(topic_count_after(&ring, topic, expected) == 10 - expected);
        cr_assert(topic_after(&ring, topic, expected) ==
                  (expected < 10 ? expected + 1 : 0));
    }
    cr_assert(topic_start(topic) == 6 && topic_end(topic) == 10);
    for (uint64_t count = 0; count < 7; count++)
        cr_assert(one_back(&ring, topic, count) ==
                  (count < 4 ? 10 - count : 6));
    ring_release(&ring);
}

Test(ring, chains_topics)
{
    struct ring ring;
    struct topic *busy, *quiet;
    struct one cursor = { 0 };

    busy = begin(&ring, 6, 10000, 0);
    quiet = topic_hold(&ring, SLICE("quiet"));
    append(&ring, quiet, 1, 5, false);
    for (uint64_t id = 2; id <= 4; id++)
        append(&ring, busy, id, 5, false);
    append(&ring, quiet, 5, 5, false);
    append(&ring, busy, 6, 5, false);
    cr_assert(topic_after(&ring, quiet, 0) == 1);
    cr_assert(topic_after(&ring, quiet, 1) == 5);
    cr_assert(topic_seek(&ring, quiet, 4) == 1, "4 is another topic's");
    cr_assert(topic_seek(&ring, busy, 5) == 4);
    cr_assert(topic_count_after(&ring, quiet, 0) == 2);
    cr_assert(!one_overrun(quiet, &cursor));
    append(&ring, busy, 7, 5, false); /* evicts 1 */
    cr_assert(one_overrun(quiet, &cursor));
    cr_assert(topic_after(&ring, quiet, 0) == 5);
    cr_assert(topic_count_after(&ring, quiet, 0) == 1);
    cr_assert(quiet->oldest == 5 && quiet->mark == 1);
    cr_assert(ring_frame(&ring, 5)->previous == 0);
    cursor.last = topic_end(quiet);
    for (uint64_t id = 8; id <= 20; id++)
        append(&ring, busy, id, 5, false);
    /* all of it is gone, and a reader that had all of it has lost nothing */
    cr_assert(quiet->oldest == 0 && quiet->newest == 0 && quiet->mark == 5);
    cr_assert(!one_overrun(quiet, &cursor));
    cr_assert(topic_after(&ring, quiet, cursor.last) == 0);
    cr_assert(topic_start(quiet) == 5 && topic_end(quiet) == 5);
    cr_assert(topic_seek(&ring, quiet, 100) == 5);
    cr_assert(topic_seek(&ring, quiet, 0) == 5);
    cr_assert(one_back(&ring, quiet, 1) == 5);
    append(&ring, quiet, 21, 5, false);
    cr_assert(topic_after(&ring, quiet, cursor.last) == 21);
    cr_assert(ring_frame(&ring, 21)->number == 3);
    ring_release(&ring);
}

/* How many steps lead from the topic's newest frame back to `ordinal` or to
 * what is before it, where each takes the long way if that is not too far. */
static unsigned steps_back(const struct ring *ring, const struct topic *topic,
                           uint64_t ordinal)
{
    uint64_t found = topic->newest;
    unsigned steps = 0;

    while (found > ordinal) {
        const struct frame *frame = ring_frame(ring, found);
        uint64_t jump = found - frame->jump;

        if (!frame->jump || jump < ordinal || jump < ring->oldest)
            jump = frame->previous;
        cr_assert(jump < found);
        found = jump;
        steps++;
    }
    return steps;
}

/* However much is held and has been evicted, a search is short: a topic with
 * every second frame, one with every hundredth, and the rest. */
Test(ring, seeks_in_logarithmic_time)
{
    enum {
        LIMIT = 30000,
        COUNT = 100000,
        STEPS = 48 /* of a chain of 30,000: 3 log2 */
    };
    static uint8_t topic_of[COUNT + 1];
    struct topic *topics[3];
    struct ring ring;

    srandom(3);
    topics[0] = begin(&ring, LIMIT, 16 << 20, 0);
    topics[1] = topic_hold(&ring, SLICE("seldom"));
    topics[2] = topic_hold(&ring, SLICE("rest"));
    for (uint64_t id = 1; id <= COUNT; id++) {
        topic_of[id] = id % 2 ? 0 : id % 100 == 0 ? 1 : 2;
        append(&ring, topics[topic_of[id]], id, 5, false);
    }
    for (int round = 0; round < 3000; round++) {
        uint64_t id = ring.oldest + (uint64_t)random() % LIMIT, expected = id;
        int i = (int)(random() % 3);

        while (expected >= ring.oldest && topic_of[expected] != i)
            expected--;
        if (expected < ring.oldest)
            expected = topics[i]->evicted;
        cr_assert(topic_seek(&ring, topics[i], id) == expected);
        cr_assert(steps_back(&ring, topics[i], id) <= STEPS, "%u steps",
                  steps_back(&ring, topics[i], id));
    }
    ring_release(&ring);
}

/* A topic without frames looks at no other topic's, wherever they lie. */
Test(ring, a_new_topic_is_empty)
{
    struct ring ring;
    struct topic *busy, *empty;
    struct one cursor = { 0 };

    busy = begin(&ring, 4, 10000, 0);
    for (uint64_t id = 1; id <= 20; id++) {
        append(&ring, busy, id, 5, false);
        empty = topic_hold(&ring, SLICE("empty"));
        cr_assert(empty->mark == 0 && empty->count == 0);
        cr_assert(topic_after(&ring, empty, 0) == 0);
        cr_assert(topic_count_after(&ring, empty, 0) == 0);
        cr_assert(topic_seek(&ring, empty, id) == 0);
        cr_assert(one_back(&ring, empty, 2) == 0);
        cr_assert(!one_overrun(empty, &cursor));
        topic_drop(&ring, empty);
    }
    ring_release(&ring);
}

/* Whatever the limit: a power of two, one more, one less. */
Test(ring, holds_as_many_as_it_may)
{
    for (uint64_t limit = 1; limit <= 33; limit++) {
        struct ring ring;
        struct topic *topic;

        topic = begin(&ring, limit, 10000, 0);
        for (uint64_t id = 1; id <= 2 * limit; id++)
            append(&ring, topic, id, 5, false);
        cr_assert(ring.next - ring.oldest == limit);
        cr_assert(topic_count_after(&ring, topic, topic_start(topic)) == limit);
        for (uint64_t id = limit + 1; id <= 2 * limit; id++)
            cr_assert(ring_frame(&ring, id)->id == id);
        ring_release(&ring);
    }
}

/* A reader that has all but the oldest held frame, as that goes. */
Test(ring, an_overrun_begins_with_the_first_frame_missed)
{
    struct ring ring;
    struct topic *topic;
    struct one cursor = { 0 };

    topic = begin(&ring, 2, 10000, 0);
    append(&ring, topic, 1, 5, false);
    append(&ring, topic, 2, 5, false);
    cr_assert(!one_overrun(topic, &cursor));
    append(&ring, topic, 3, 5, false); /* evicts 1 */
    cr_assert(one_overrun(topic, &cursor));
    cursor.last = 1;
    cr_assert(!one_overrun(topic, &cursor), "1 was passed before it went");
    cursor.sent = 3; /* in the middle of 2 */
    append(&ring, topic, 4, 5, false);
    cr_assert(one_overrun(topic, &cursor));
    ring_release(&ring);
}

/* Three frames, of which the second has no place for the splice text, in
 * memory in which the third wraps. */
static struct topic *begin_three(struct ring *ring)
{
    struct topic *topic = begin(ring, 8, 120, 0);

    append(ring, topic, 1, 40, false);
    append(ring, topic, 2, 20, true);
    append(ring, topic, 3, 5, false);
    append(ring, topic, 4, 30, true); /* evicts the first; wraps */
    cr_assert(ring->oldest == 2);
    cr_assert(ring_frame(ring, 4)->offset + ring_frame(ring, 4)->length >
              ring->size);
    return topic;
}

static size_t expect_three(char *out, unsigned form)
{
    size_t length = expect_frame(out, 2, 20, true, form);

    length += expect_frame(out + length, 3, 5, false, form);
    return length + expect_frame(out + length, 4, 30, true, form);
}

/* However many bytes are taken at a time, each comes once and in order. */
Test(ring, gathers_in_every_form_from_every_byte)
{
    struct ring ring;
    struct topic *topic;
    char expected[600], out[600];

    topic = begin_three(&ring);
    for (unsigned form = 0; form < 4; form++) {
        size_t total = expect_three(expected, form);

        for (size_t step = 1; step <= total; step++) {
            struct one cursor = { .last = topic_start(topic) };
            size_t at = 0;

            while (at < total) {
                size_t got = gather(&ring, topic, &cursor, UINT64_MAX, form,
                                    out, IOV_MAX_HERE, EVERYTHING);
                size_t taken = step < got ? step : got;

                cr_assert(got == total - at, "%u %zu %zu", form, step, at);
                cr_assert(memcmp(out, expected + at, got) == 0);
                cr_assert(one_advance(&ring, topic, &cursor, UINT64_MAX, form,
                                      taken) == 0);
                at += taken;
            }
            cr_assert(cursor.last == 4 && cursor.sent == 0);
            cr_assert(cursor.events == 3);
        }
    }
    ring_release(&ring);
}

Test(ring, joins_what_is_adjacent)
{
    struct ring ring;
    struct topic *topic;
    struct one cursor = { 0 };
    struct iovec iov[8];

    topic = begin(&ring, 100, 1000, 0);
    for (uint64_t id = 1; id <= 10; id++)
        append(&ring, topic, id, 8, false);
    cr_assert(one_gather(&ring, topic, &cursor, UINT64_MAX, FORM_CHUNKED, iov,
                         8, EVERYTHING) == 1);
    cr_assert(iov[0].iov_len == 200);
    cr_assert(one_gather(&ring, topic, &cursor, UINT64_MAX, FORM_PLAIN, iov, 8,
                         EVERYTHING) == 8);
    for (uint64_t id = 11; id <= 60; id++)
        append(&ring, topic, id, 8, false);
    cursor.last = topic_start(topic);
    cr_assert(one_gather(&ring, topic, &cursor, UINT64_MAX, FORM_CHUNKED, iov,
                         8, EVERYTHING) == 2);
    cr_assert(iov[0].iov_len + iov[1].iov_len == 1000);
    ring_release(&ring);
}

/* Where the frame ends with which at least so many bytes are gathered. */
static size_t end_of_frame(unsigned form, size_t budget)
{
    char frame[600];
    size_t end = expect_frame(frame, 2, 20, true, form);

    if (end < budget)
        end += expect_frame(frame, 3, 5, false, form);
    if (end < budget)
        end += expect_frame(frame, 4, 30, true, form);
    return end;
}

Test(ring, stops_at_its_budget)
{
    struct ring ring;
    struct topic *topic;
    char expected[600], out[600];

    topic = begin_three(&ring);
    for (unsigned form = 0; form < 4; form++) {
        struct one cursor = { .last = topic_start(topic) };
        size_t total = expect_three(expected, form);

        for (size_t budget = 1; budget <= total; budget++) {
            size_t got = gather(&ring, topic, &cursor, UINT64_MAX, form, out,
                                IOV_MAX_HERE, budget);

            /* what is one range of bytes can end anywhere */
            cr_assert(got == (form == FORM_CHUNKED
                                  ? budget
                                  : end_of_frame(form, budget)),
                      "%zu: %zu", budget, got);
            cr_assert(memcmp(out, expected, got) == 0);
        }
    }
    ring_release(&ring);
}

/* With less room it gathers the same, only less of it. */
Test(ring, stops_when_there_is_no_room)
{
    struct ring ring;
    struct topic *topic;
    struct iovec whole[IOV_MAX_HERE], part[IOV_MAX_HERE];

    topic = begin_three(&ring);
    for (unsigned form = 0; form < 4; form++) {
        struct one cursor = { .last = topic_start(topic) };
        int count = one_gather(&ring, topic, &cursor, UINT64_MAX, form, whole,
                               IOV_MAX_HERE, EVERYTHING);

        for (int room = 0; room <= count; room++) {
            cr_assert(one_gather(&ring, topic, &cursor, UINT64_MAX, form, part,
                                 room, EVERYTHING) == room);
            for (int i = 0; i < room; i++)
                cr_assert(part[i].iov_base == whole[i].iov_base &&
                          part[i].iov_len == whole[i].iov_len);
        }
    }
    ring_release(&ring);
}

Test(ring, stops_at_the_frame_it_is_told)
{
    struct ring ring;
    struct topic *topic;
    char expected[600], out[600];

    topic = begin_three(&ring);
    for (unsigned form = 0; form < 4; form++) {
        struct one cursor = { .last = topic_start(topic) };
        size_t total = expect_three(expected, form), got;

        cr_assert(gather(&ring, topic, &cursor, 1, form, out, IOV_MAX_HERE,
                         EVERYTHING) == 0);
        cr_assert(one_advance(&ring, topic, &cursor, 1, form, 5) == 5);
        got = gather(&ring, topic, &cursor, 3, form, out, IOV_MAX_HERE,
                     EVERYTHING);
        cr_assert(got == total - expect_frame(out, 4, 30, true, form));
        cr_assert(one_advance(&ring, topic, &cursor, 3, form, got + 17) == 17);
        cr_assert(cursor.last == 3 && cursor.sent == 0 && cursor.events == 2);
        cr_assert(one_advance(&ring, topic, &cursor, 3, form, 9) == 9);
    }
    ring_release(&ring);
}

/* What another topic has put between is passed over, and not joined. */
Test(ring, gathers_one_topic_of_several)
{
    struct ring ring;
    struct topic *topics[3];
    char expected[600], out[600];
    struct iovec iov[IOV_MAX_HERE];

    topics[0] = begin(&ring, 100, 300, 0);
    for (int i = 1; i < 3; i++)
        topics[i] = topic_hold(&ring, (struct slice){ &"abc"[i], 1 });
    for (uint64_t id = 1; id <= 60; id++) {
        append(&ring, topics[id % 3], id, 8, false); /* 20 bytes; holds 15 */
        for (uint64_t i = 0; i < 3; i++) {
            struct one cursor = { .last = topic_start(topics[i]) };
            size_t length = 0;

            for (uint64_t held = ring.oldest; held < ring.next; held++)
                if (held % 3 == i)
                    length += expect_frame(expected + length, held, 8, false,
                                           FORM_CHUNKED);
            cr_assert(gather(&ring, topics[i], &cursor, UINT64_MAX,
                             FORM_CHUNKED, out, IOV_MAX_HERE,
                             EVERYTHING) == length);
            cr_assert(memcmp(out, expected, length) == 0);
            cr_assert(one_gather(&ring, topics[i], &cursor, UINT64_MAX,
                                 FORM_CHUNKED, iov, IOV_MAX_HERE,
                                 EVERYTHING) == (int)(length / 20));
        }
    }
    ring_release(&ring);
}

/* ---------------------------------------------------------------- topics */

Test(topics, last_while_held_or_in_the_ring)
{
    struct ring ring;
    struct topic *main = begin(&ring, 2, 10000, 5), *a, *b;

    cr_assert(topic_find(&ring, SLICE("a")) == NULL);
    a = topic_hold(&ring, SLICE("a"));
    cr_assert(a && topic_find(&ring, SLICE("a")) == a);
    cr_assert(topic_hold(&ring, SLICE("a")) == a);
    b = topic_hold(&ring, SLICE("ab"));
    cr_assert(b != a && topic_find(&ring, SLICE("ab")) == b);
    topic_drop(&ring, a);
    cr_assert(topic_find(&ring, SLICE("a")) == a, "one hold is left");
    append(&ring, a, 6, 5, false);
    topic_drop(&ring, a);
    cr_assert(topic_find(&ring, SLICE("a")) == a, "a frame is held");
    topic_drop(&ring, b);
    cr_assert(topic_find(&ring, SLICE("ab")) == NULL);
    append(&ring, main, 7, 5, false);
    append(&ring, main, 8, 5, false); /* evicts 6 */
    cr_assert(topic_find(&ring, SLICE("a")) == NULL);
    ring_release(&ring);
}

Test(topics, what_is_forgotten_leaves_its_mark)
{
    struct ring ring;
    struct topic *main = begin(&ring, 2, 10000, 5), *topic;

    topic = topic_hold(&ring, SLICE("a"));
    cr_assert(topic->mark == 5);
    append(&ring, topic, 10, 5, false);
    append(&ring, main, 20, 5, false);
    append(&ring, main, 30, 5, false); /* evicts 10 */
    cr_assert(topic->mark == 10 && main->mark == 5);
    topic_drop(&ring, topic);
    topic = topic_hold(&ring, SLICE("never seen"));
    cr_assert(topic->mark == 10, "it may be one that was forgotten");
    append(&ring, main, 40, 5, false); /* evicts 20 */
    cr_assert(topic->mark == 10, "what is known is not touched by others");
    cr_assert(main->mark == 20);
    topic_drop(&ring, topic);
    topic = topic_hold(&ring, SLICE("b"));
    cr_assert(topic->mark == 10, "main is not forgotten");
    ring_release(&ring);
}

Test(topics, a_mark_can_be_raised)
{
    struct ring ring;
    struct topic *main = begin(&ring, 2, 10000, 5), *topic;

    topic = topic_hold(&ring, SLICE("a"));
    append(&ring, topic, 10, 5, false);
    topic_raise_mark(&ring, topic, 8);
    cr_assert(topic->mark == 8 && main->mark == 5 && ring.newest_id == 10);
    topic_raise_mark(&ring, topic, 15);
    cr_assert(topic->mark == 15 && main->mark == 5 && ring.newest_id == 15);
    topic_raise_mark(&ring, topic, 9);
    cr_assert(topic->mark == 15);
    append(&ring, main, 16, 5, false);
    append(&ring, main, 17, 5, false); /* evicts 10 */
    cr_assert(topic->mark == 15, "it does not fall");
    topic_drop(&ring, topic);
    cr_assert(ring.mark == 15);
    ring_release(&ring);
}

Test(topics, a_history_can_begin_later)
{
    struct ring ring;
    struct topic *main = begin(&ring, 2, 10000, 0), *topic;

    topic = topic_hold(&ring, SLICE("a"));
    ring_begin_after(&ring, 99);
    cr_assert(main->mark == 99 && topic->mark == 99 && ring.newest_id == 99);
    topic_drop(&ring, topic);
    topic = topic_hold(&ring, SLICE("b"));
    cr_assert(topic->mark == 99);
    cr_assert(append(&ring, topic, 100, 5, false) == 1);
    ring_release(&ring);
}

Test(topics, are_finished_by_their_newest_frame)
{
    struct ring ring;
    struct topic *main = begin(&ring, 2, 10000, 0), *topic;
    char bytes[64];
    uint32_t splice;

    topic = topic_hold(&ring, SLICE("a"));
    cr_assert(!topic_finished(&ring, topic));
    append(&ring, topic, 1, 5, false);
    cr_assert(!topic_finished(&ring, topic));
    ring_append(&ring, topic, 2, make_frame(bytes, 2, 5, &splice), 0, true);
    cr_assert(topic_finished(&ring, topic) && !topic_finished(&ring, main));
    append(&ring, topic, 3, 5, false);
    cr_assert(!topic_finished(&ring, topic), "it has been opened again");
    ring_append(&ring, topic, 4, make_frame(bytes, 4, 5, &splice), 0, true);
    append(&ring, main, 5, 5, false);
    cr_assert(topic_finished(&ring, topic));
    append(&ring, main, 6, 5, false); /* evicts the end */
    cr_assert(!topic_finished(&ring, topic));
    ring_release(&ring);
}

/* A thousand names, in no order, come and go; each is found as itself. */
Test(topics, are_found_by_name)
{
    enum {
        NAMES = 1000
    };
    static struct topic *topics[NAMES];
    struct ring ring;
    char name[16];

    begin(&ring, 1, 1000, 0);
    srandom(1);
    for (int i = 0; i < 20 * NAMES; i++) {
        int which = (int)(random() % NAMES);
        struct slice slice = { name, (size_t)sprintf(name, "%x/%d",
                                                     which * 7919, which) };

        cr_assert(topic_find(&ring, slice) == topics[which]);
        if (topics[which]) {
            topic_drop(&ring, topics[which]);
            topics[which] = NULL;
        } else {
            topics[which] = topic_hold(&ring, slice);
            cr_assert(topics[which]->references == 1);
            cr_assert(topics[which]->name.length == slice.length);
        }
    }
    ring_release(&ring);
}

static struct slice name_of(const char *text)
{
    return (struct slice){ text, strlen(text) };
}

/* ------------------------------------------------- how many there can be */

enum {
    FRAMES_MOST = 4, /* frames */
    MAX_TOPICS = 3,
};

/* The name of a topic; for the next ones, other memory. */
static struct slice numbered(unsigned number)
{
    static char names[8][16];
    static unsigned which;
    char *name = names[which++ % 8];

    return (struct slice){ name, (size_t)sprintf(name, "topic/%u", number) };
}

/* In the order of their bytes, whatever has come and gone. */
Test(topics, follow_one_another_by_name)
{
    enum {
        MANY = 300
    };
    static const char *const order[] = { "a",  "a-b", "a/b", "aa",
                                         "a~", "b",   "ba" };
    static struct topic *topics[MANY];
    struct ring ring;
    const struct topic *topic;
    char name[16];

    srandom(3);
    begin(&ring, 4, 4096, 0);
    for (size_t i = COUNT(order); i > 0; i--)
        topic_hold(&ring, name_of(order[i - 1]));
    topic = topic_next(&ring, SLICE(""), true);
    cr_assert(topic && topic->name.length == 0, "the main stream is the first");
    topic = topic_next(&ring, SLICE(""), false);
    for (size_t i = 0; i < COUNT(order); i++) {
        cr_assert(topic && slice_is(topic->name, order[i]), "%s", order[i]);
        cr_assert(topic_next(&ring, topic->name, true) == topic);
        topic = topic_next(&ring, topic->name, false);
    }
    cr_assert(!topic);
    ring_release(&ring);
    begin(&ring, 4, 4096, 0);
    for (int round = 0; round < 5000; round++) {
        int i = (int)random() % MANY, from = (int)random() % MANY;
        int next = from;

        snprintf(name, sizeof(name), "%03d", i);
        if (topics[i]) {
            topic_drop(&ring, topics[i]);
            topics[i] = NULL;
        } else {
            topics[i] = topic_hold(&ring, slice_of(name));
        }
        snprintf(name, sizeof(name), "%03d", from);
        while (next < MANY && !topics[next])
            next++;
        cr_assert(topic_next(&ring, slice_of(name), true) ==
                  (next < MANY ? topics[next] : NULL));
        for (next = from + 1; next < MANY && !topics[next];)
            next++;
        cr_assert(topic_next(&ring, slice_of(name), false) ==
                  (next < MANY ? topics[next] : NULL));
    }
    ring_release(&ring);
}

/* In memory to within a tick, over its whole range. */
Test(ring, knows_how_old_a_frame_is)
{
    struct ring ring;
    struct topic *topic = begin(&ring, 4, 4096, 0);

    for (int bit = 0; bit < 62; bit++) {
        uint64_t began = (UINT64_C(1) << bit) + 17;

        ring.now = began;
        append(&ring, topic, ring.newest_id + 1, 10, false);
        for (uint64_t age = 0; age < UINT64_C(100000000000);
             age = age * 2 + 1) {
            uint64_t told;

            ring.now = began + age;
            told = ring_age(&ring, ring.next - 1);
            cr_assert(told + 64 > age && told < age + 64, "%d: %llu, not %llu",
                      bit, (unsigned long long)told, (unsigned long long)age);
        }
    }
    ring_release(&ring);
}

Test(topics, without_an_event_are_bounded_for_readers)
{
    struct ring ring;
    struct topic *main = begin(&ring, FRAMES_MOST, 10000, 0), *old, *topic;

    ring.max_topics = MAX_TOPICS;
    cr_assert(ring.empty == 0 && ring.held == 1, "the main stream is no topic");
    old = topic_hold_to_publish(&ring, SLICE("old"));
    append(&ring, old, 1, 5, false);
    topic_drop(&ring, old);
    cr_assert(ring.empty == 0 && ring.held == 1);
    for (unsigned i = 0; i < MAX_TOPICS; i++)
        cr_assert(topic_hold_to_read(&ring, numbered(i)));
    errno = 0;
    cr_assert(!topic_hold_to_read(&ring, SLICE("one more")));
    cr_assert(errno == EAGAIN && !topic_find(&ring, SLICE("one more")));
    cr_assert(topic_hold_to_read(&ring, numbered(0)), "it is there");
    cr_assert(topic_hold_to_read(&ring, SLICE("old")), "it has an event");
    cr_assert(topic_hold_to_read(&ring, SLICE("")) == main);
    topic = topic_hold_to_publish(&ring, SLICE("one more"));
    cr_assert(topic && ring.empty == MAX_TOPICS + 1);
    append(&ring, topic, 2, 5, false);
    cr_assert(ring.empty == MAX_TOPICS);
    append(&ring, topic_find(&ring, numbered(1)), 3, 5, false);
    cr_assert(topic_hold_to_read(&ring, SLICE("another")));
    cr_assert(ring.empty == MAX_TOPICS);
    ring_release(&ring);
}

/* Eviction leaves those that are held without a frame: more than may be made,
 * but a publisher still has its topic, and so has the server. */
Test(topics, that_are_held_are_bounded_whatever_is_evicted)
{
    enum {
        HELD = FRAMES_MOST + MAX_TOPICS,
    };
    struct ring ring;
    struct topic *topic;
    unsigned number = 0;

    begin(&ring, FRAMES_MOST, 10000, 0);
    ring.max_topics = MAX_TOPICS;
    while (ring.held < HELD) { /* published, and followed by a reader */
        topic = topic_hold_to_publish(&ring, numbered(number));
        append(&ring, topic, ring.newest_id + 1, 5, false);
        cr_assert(topic_hold_to_read(&ring, numbered(number++)) == topic);
        topic_drop(&ring, topic);
    }
    cr_assert(ring.empty + FRAMES_MOST == HELD - 1, "but for the main stream");
    for (unsigned i = 0; i < TOPICS_SPARE; i++) {
        topic = topic_hold_to_publish(&ring, numbered(number));
        cr_assert(topic);
        append(&ring, topic, ring.newest_id + 1, 5, false);
        topic_drop(&ring, topic);
        errno = 0;
        cr_assert(!topic_hold_to_read(&ring, numbered(number++)));
        cr_assert(errno == EAGAIN, "it has an event, but is not held");
    }
    for (unsigned i = 0; i < TOPICS_SPARE; i++)
        cr_assert(topic_hold_to_publish(&ring, numbered(number++)));
    errno = 0;
    cr_assert(!topic_hold_to_publish(&ring, numbered(number)));
    cr_assert(errno == EAGAIN);
    cr_assert(topic_hold(&ring, numbered(number)));
    cr_assert(ring.held == HELD + TOPICS_SPARE + 1);
    ring_release(&ring);
}

/* What is done at random to a few topics is done to a naive count as well. */
Test(topics, are_counted)
{
    enum {
        NAMES = 12,
        ROUNDS = 100000,
    };
    unsigned held[NAMES] = { 0 }, refused = 0;
    struct ring ring;

    begin(&ring, FRAMES_MOST, 10000, 0);
    ring.max_topics = MAX_TOPICS;
    srandom(4);
    for (int round = 0; round < ROUNDS; round++) {
        unsigned which = (unsigned)random() % NAMES, empties = 0, holds = 1;
        struct topic *topic = topic_find(&ring, numbered(which));
        bool known = topic, may = known || ring.empty < MAX_TOPICS;

        may = may && (held[which] || ring.held < MAX_TOPICS + FRAMES_MOST);
        switch (random() % 3) {
        case 0:
            cr_assert((topic_hold_to_read(&ring, numbered(which)) != NULL) ==
                      may);
            held[which] += may;
            refused += !may;
            break;
        case 1:
            if (held[which]) {
                topic_drop(&ring, topic);
                held[which]--;
            }
            break;
        default:
            topic = topic_hold(&ring, numbered(which));
            append(&ring, topic, ring.newest_id + 1, 5, false);
            topic_drop(&ring, topic);
        }
        for (unsigned i = 0; i < NAMES; i++) {
            topic = topic_find(&ring, numbered(i));
            cr_assert((topic && topic->references) == (held[i] > 0));
            empties += topic && !topic->newest;
            holds += held[i] > 0;
        }
        cr_assert(ring.empty == empties && ring.held == holds);
    }
    cr_assert(refused > ROUNDS / 100);
    ring_release(&ring);
}

Test(topic, has_a_name_made_of_segments)
{
    static const char *const good[] = {
        "a", "chat/42", "A-Z.a_z~0:9@x", "a/b/c", "...", ".a/b.", "-", "a/...",
    };
    static const struct {
        const char *name, *why;
    } bad[] = {
        { "", "255" },
        { "/", "slash" },
        { "/a", "slash" },
        { "a/", "slash" },
        { "a//b", "segment" },
        { ".", "segment" },
        { "..", "segment" },
        { "a/..", "segment" },
        { "./a", "segment" },
        { "a/./b", "segment" },
        { "a b", "made of" },
        { "a%20", "made of" },
        { "\xC3\xA9", "made of" },
        { "a\x7F", "made of" },
        { "a?", "made of" },
        { "a\"", "made of" },
        { "a\n", "made of" },
        { "a\\", "made of" },
    };
    char longest[TOPIC_NAME_MAX + 1];

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        cr_assert(!topic_name_refused(name_of(good[i])), "%s", good[i]);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        const char *why = topic_name_refused(name_of(bad[i].name));

        cr_assert(why && strstr(why, bad[i].why), "%s: %s", bad[i].name,
                  why ? why : "taken");
    }
    cr_assert(topic_name_refused((struct slice){ "a\0b", 3 }));
    memset(longest, 'x', sizeof(longest));
    cr_assert(!topic_name_refused((struct slice){ longest, TOPIC_NAME_MAX }));
    cr_assert(
        topic_name_refused((struct slice){ longest, TOPIC_NAME_MAX + 1 }));
}

/* --------------------------------------------------------------- readers
 *
 * Readers of several topics, against a list of all frames.
 */
enum {
    MANY = 6,
    ROUNDS = 20000
};

static struct {
    uint64_t id;
    size_t length;
    int topic;
} listed[ROUNDS + 1];

/* What a reader of the topics in `set` gets after the ordinal `after`. */
static size_t expect_several(const struct ring *ring, unsigned set,
                             uint64_t after, char *out)
{
    uint64_t ordinal = after + 1 > ring->oldest ? after + 1 : ring->oldest;
    size_t length = 0;

    for (; ordinal < ring->next; ordinal++)
        if (set >> listed[ordinal].topic & 1)
            length += expect_frame(out + length, listed[ordinal].id,
                                   listed[ordinal].length, false, FORM_CHUNKED);
    return length;
}

static size_t gather_several(const struct ring *ring,
                             const struct reader *reader, uint32_t sent,
                             char *out)
{
    struct iovec iov[IOV_MAX_HERE];
    int parts = ring_gather(ring, reader, sent, iov, IOV_MAX_HERE, EVERYTHING);
    size_t length = 0;

    for (int i = 0; i < parts; i++) {
        memcpy(out + length, iov[i].iov_base, iov[i].iov_len);
        length += iov[i].iov_len;
    }
    return length;
}

static struct reader several(struct place *places, struct topic **topics,
                             unsigned set)
{
    struct reader reader = { .places = places,
                             .form = FORM_CHUNKED,
                             .until = UINT64_MAX };

    for (int i = 0; i < MANY; i++)
        if (set >> i & 1)
            places[reader.count++] = (struct place){ .topic = topics[i] };
    return reader;
}

/* Where a reader's places are, as one number: the newest frame behind it. */
static uint64_t behind(const struct ring *ring, const struct reader *reader)
{
    uint64_t next = reader_next(ring, reader);

    return next ? next - 1 : ring->next - 1;
}

static void check_several(const struct ring *ring, struct topic **topics)
{
    struct place places[MANY];
    unsigned set = 1 + (unsigned)random() % ((1 << MANY) - 1);
    struct reader reader = several(places, topics, set);
    struct progress cursor = { 0 };
    uint64_t back = (uint64_t)random() % 20, newest = ring->next - 1;
    char expected[4096], got[4096];
    size_t length, taken;

    /* the newest `back` of them */
    reader_back(ring, &reader, back);
    for (uint64_t left = back; newest >= ring->oldest && left > 0; newest--)
        left -= set >> listed[newest].topic & 1;
    length = expect_several(ring, set, newest, expected);
    cr_assert(gather_several(ring, &reader, 0, got) == length);
    cr_assert(memcmp(got, expected, length) == 0);
    cr_assert(!reader_overrun(&reader));
    /* some of the bytes are taken, and the rest follows */
    taken = (size_t)random() % (length + 1);
    cr_assert(ring_advance(ring, &reader, &cursor, taken) == 0);
    cr_assert(gather_several(ring, &reader, cursor.sent, got) ==
              length - taken);
    cr_assert(memcmp(got, expected + taken, length - taken) == 0);
    /* those up to an id are passed over */
    if (cursor.sent == 0 && ring->next > ring->oldest) {
        uint64_t ordinal =
            ring->oldest + (uint64_t)random() % (ring->next - ring->oldest);
        uint64_t place = behind(ring, &reader);

        reader_skip(ring, &reader, listed[ordinal].id);
        length = expect_several(ring, set, place > ordinal ? place : ordinal,
                                expected);
        cr_assert(gather_several(ring, &reader, 0, got) == length);
        cr_assert(memcmp(got, expected, length) == 0);
    }
}

Test(readers, get_several_topics_as_one_sequence)
{
    struct ring ring;
    struct topic *topics[MANY];
    uint64_t id = 0;

    srandom(2);
    begin(&ring, 30, 800, 0);
    for (int i = 0; i < MANY; i++)
        topics[i] = topic_hold(&ring, (struct slice){ &"abcdef"[i], 1 });
    for (int i = 0; i < ROUNDS; i++) {
        int topic = (int)(random() % MANY);
        size_t length = 1 + (size_t)random() % 40;
        uint64_t ordinal;

        id += 1 + (uint64_t)random() % 3;
        ordinal = append(&ring, topics[topic], id, length, false);
        listed[ordinal].id = id;
        listed[ordinal].length = length;
        listed[ordinal].topic = topic;
        check_several(&ring, topics);
    }
    ring_release(&ring);
}

/* Whichever of its topics has lost the frame. */
Test(readers, are_overrun_in_any_of_their_topics)
{
    struct ring ring;
    struct topic *topics[MANY];
    struct place places[MANY];
    struct reader reader;

    topics[0] = begin(&ring, 2, 10000, 0);
    for (int i = 1; i < MANY; i++)
        topics[i] = topic_hold(&ring, (struct slice){ &"abcdef"[i], 1 });
    reader = several(places, topics, 7);
    append(&ring, topics[2], 1, 5, false);
    append(&ring, topics[3], 2, 5, false);
    cr_assert(!reader_overrun(&reader));
    append(&ring, topics[3], 3, 5, false); /* evicts 1 */
    cr_assert(reader_overrun(&reader));
    places[2].last = topic_end(topics[2]);
    cr_assert(!reader_overrun(&reader));
    append(&ring, topics[3], 4, 5, false);
    cr_assert(!reader_overrun(&reader), "another's is none of its own");
    ring_release(&ring);
}

/* ----------------------------------------------------------------- model
 *
 * The naive ring: all frames ever, and the ordinal of the oldest held.
 */
enum {
    TOPICS = 3,
    READERS = 4,
    OPERATIONS = 100000,
    LIMIT = 20,
    SIZE = 1500
};

struct model_frame {
    uint64_t id;
    size_t length;
    int topic;
    bool spliced;
};

struct model_reader {
    int topic;
    unsigned form;
    struct one cursor;
    size_t sent; /* bytes of the frame after cursor.last */
};

static struct model_frame all[OPERATIONS + 1];
static uint64_t count, oldest = 1;

#define MODEL_SEED 20261123

/* Asserts, and says what a failure needs to be repeated. */
#define must(condition) \
    cr_assert(condition, "seed %d, %d frames", MODEL_SEED, (int)count)

static void model_append(size_t length)
{
    size_t used = length + FRAME_HEAD + FRAME_TAIL;
    uint64_t ordinal = count;

    /* the newest ones that fit */
    while (ordinal >= oldest && count - ordinal + 1 < LIMIT &&
           used + all[ordinal].length + FRAME_HEAD + FRAME_TAIL <= SIZE) {
        used += all[ordinal].length + FRAME_HEAD + FRAME_TAIL;
        ordinal--;
    }
    oldest = ordinal + 1;
}

static uint64_t model_after(int topic, uint64_t last)
{
    uint64_t ordinal = last + 1 > oldest ? last + 1 : oldest;

    while (ordinal <= count && all[ordinal].topic != topic)
        ordinal++;
    return ordinal <= count ? ordinal : 0;
}

static bool model_overrun(int topic, uint64_t last)
{
    for (uint64_t ordinal = last + 1; ordinal < oldest; ordinal++)
        if (all[ordinal].topic == topic)
            return true;
    return false;
}

/* The invariants at the head of ring.c. */
static void check_invariants(const struct ring *ring)
{
    size_t used = 0;

    for (uint64_t ordinal = oldest; ordinal <= count; ordinal++) {
        const struct frame *frame = ring_frame(ring, ordinal);
        size_t end = (frame->offset + frame->length) % ring->size;

        must(frame->id == all[ordinal].id);
        must(end == (ordinal < count ? ring_frame(ring, ordinal + 1)->offset
                                     : ring->offset));
        used += frame->length;
    }
    must(ring->used == used && used <= ring->size);
    must(ring->oldest == oldest && ring->next == count + 1);
}

static void random_append(struct ring *ring, struct topic **topics)
{
    struct model_frame frame = {
        .id = ring->newest_id + 1 + (uint64_t)(random() % 3),
        .length = 1 + (size_t)random() % 200,
        .topic = (int)(random() % TOPICS),
        .spliced = random() % 2,
    };
    uint64_t before = oldest, predicted;

    model_append(frame.length);
    all[++count] = frame;
    predicted = ring_oldest_after(ring, frame.length + FRAME_HEAD + FRAME_TAIL);
    must(predicted == oldest && predicted >= before);
    must(append(ring, topics[frame.topic], frame.id, frame.length,
                frame.spliced) == count);
    check_invariants(ring);
}

/* The topic's newest evicted frame, 0: none. */
static uint64_t model_evicted(int topic)
{
    uint64_t ordinal = oldest - 1;

    while (ordinal && all[ordinal].topic != topic)
        ordinal--;
    return ordinal;
}

static void check_places(const struct ring *ring, struct topic *topic,
                         int number)
{
    uint64_t id = ring->newest_id > 200
                      ? ring->newest_id - (uint64_t)random() % 200
                      : (uint64_t)random() % 10;
    uint64_t place = topic_seek(ring, topic, id), expected = 0, held = 0;
    uint64_t back = (uint64_t)random() % 10;

    for (uint64_t ordinal = oldest; ordinal <= count; ordinal++) {
        if (all[ordinal].topic != number)
            continue;
        expected = expected ? expected : all[ordinal].id > id ? ordinal : 0;
        held++;
    }
    must(topic_after(ring, topic, place) == expected);
    place = one_back(ring, topic, back);
    must(topic_count_after(ring, topic, place) == (back < held ? back : held));
    must(topic_count_after(ring, topic, topic_start(topic)) == held);
    must(topic_after(ring, topic, topic_end(topic)) == 0);
    must(topic_start(topic) == model_evicted(number));
    must(topic->mark == all[model_evicted(number)].id);
}

/* How many bytes a reader has before it. */
static size_t model_left(const struct model_reader *reader)
{
    uint64_t next = reader->cursor.last;
    char frame[800];
    size_t left = 0;

    while ((next = model_after(reader->topic, next)) != 0)
        left += expect_frame(frame, all[next].id, all[next].length,
                             all[next].spliced, reader->form);
    return left - reader->sent;
}

static void random_read(struct ring *ring, struct topic **topics,
                        struct model_reader *reader)
{
    struct topic *topic = topics[reader->topic];
    uint64_t next = model_after(reader->topic, reader->cursor.last);
    char out[SIZE * 2], expected[800];
    size_t budget = 1 + (size_t)random() % 500, got, taken, size;
    int room = random() % 2 ? IOV_MAX_HERE : 1 + (int)(random() % 8);

    if (model_overrun(reader->topic, reader->cursor.last)) {
        must(one_overrun(topic, &reader->cursor));
        reader->cursor = (struct one){ .last = topic_start(topic) };
        reader->sent = 0;
        return;
    }
    must(!one_overrun(topic, &reader->cursor));
    got = gather(ring, topic, &reader->cursor, UINT64_MAX, reader->form, out,
                 room, budget);
    must((got > 0) == (next != 0));
    must(got >= budget || got == model_left(reader) || room < IOV_MAX_HERE);
    taken = got ? 1 + (size_t)random() % got : 0;
    must(one_advance(ring, topic, &reader->cursor, UINT64_MAX, reader->form,
                     taken) == 0);
    for (size_t at = 0; at < taken; at += size) {
        size_t length = expect_frame(expected, all[next].id, all[next].length,
                                     all[next].spliced, reader->form);

        size = length - reader->sent < taken - at ? length - reader->sent
                                                  : taken - at;
        must(memcmp(out + at, expected + reader->sent, size) == 0);
        reader->sent += size;
        if (reader->sent < length)
            break;
        reader->sent = 0;
        next = model_after(reader->topic, next);
    }
    must(reader->cursor.sent == reader->sent);
}

static void random_operation(struct ring *ring, struct topic **topics,
                             struct model_reader *readers)
{
    int topic = (int)(random() % TOPICS);

    switch (random() % 4) {
    case 0:
        random_append(ring, topics);
        break;
    case 1:
        check_places(ring, topics[topic], topic);
        break;
    default:
        random_read(ring, topics, &readers[random() % READERS]);
        break;
    }
}

Test(ring, agrees_with_a_naive_one)
{
    struct ring ring;
    struct topic *topics[TOPICS];
    struct model_reader readers[READERS];

    srandom(MODEL_SEED);
    topics[0] = begin(&ring, LIMIT, SIZE, 0);
    for (int i = 0; i < TOPICS; i++)
        topics[i] = topic_hold(&ring, (struct slice){ &"abc"[i], 1 });
    for (int i = 0; i < READERS; i++)
        readers[i] =
            (struct model_reader){ .topic = i % TOPICS, .form = (unsigned)i };
    for (int i = 0; i < OPERATIONS; i++)
        random_operation(&ring, topics, readers);
    ring_release(&ring);
}
