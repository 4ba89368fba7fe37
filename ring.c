/*
 * ring.c owns the frames' bytes, the index from id to place, the topics'
 * chains through the ring, and the rule of eviction; sse.h describes all of
 * them. It makes no system call and reads no clock.
 *
 * Invariants:
 *   oldest <= next, next - oldest <= limit, used <= size;
 *   the held frames lie one behind the other in memory, modulo its size;
 *   ids grow with ordinals;
 *   a topic's oldest and newest are held, or both are 0;
 *   topic->evicted < topic->oldest, if it has an oldest.
 */
#include "sse.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct frame *at(const struct ring *ring, uint64_t ordinal)
{
    return &ring->frames[ordinal & ring->mask];
}

int ring_init(struct ring *ring, uint64_t limit, size_t size,
              uint64_t newest_id, struct slice splice_text)
{
    uint64_t slots = 1;

    while (slots < limit)
        slots *= 2;
    *ring = (struct ring){
        .frames = calloc(slots, sizeof(struct frame)),
        .memory = malloc(size),
        .size = size,
        .mask = slots - 1,
        .limit = limit,
        .oldest = 1,
        .next = 1,
        .newest_id = newest_id,
        .splice_text = splice_text,
    };
    if (ring->frames && ring->memory)
        return 0;
    ring_release(ring);
    errno = ENOMEM;
    return -1;
}

void ring_release(struct ring *ring)
{
    free(ring->frames);
    free(ring->memory);
    *ring = (struct ring){ 0 };
}

void topic_init(struct topic *topic, const struct ring *ring)
{
    *topic = (struct topic){ .mark = ring->newest_id };
}

const struct frame *ring_frame(const struct ring *ring, uint64_t ordinal)
{
    assert(ordinal >= ring->oldest && ordinal < ring->next);
    return at(ring, ordinal);
}

uint64_t ring_oldest_after(const struct ring *ring, size_t length)
{
    uint64_t oldest = ring->oldest;
    size_t used = ring->used;

    while (oldest < ring->next &&
           (ring->next - oldest >= ring->limit || ring->size - used < length))
        used -= at(ring, oldest++)->length;
    return oldest;
}

static void evict_oldest(struct ring *ring)
{
    uint64_t ordinal = ring->oldest++;
    const struct frame *frame = at(ring, ordinal);
    struct topic *topic = frame->topic;

    ring->used -= frame->length;
    topic->evicted = ordinal;
    topic->mark = frame->id;
    topic->oldest = frame->next;
    if (frame->next)
        at(ring, frame->next)->previous = 0;
    else
        topic->newest = 0;
}

static void copy_in(struct ring *ring, struct slice bytes)
{
    size_t before_wrap = ring->size - ring->offset;
    size_t first = bytes.length < before_wrap ? bytes.length : before_wrap;

    memcpy(ring->memory + ring->offset, bytes.data, first);
    memcpy(ring->memory, bytes.data + first, bytes.length - first);
    ring->offset = (ring->offset + bytes.length) % ring->size;
    ring->used += bytes.length;
}

static void put_size(char digits[8], size_t size)
{
    for (int i = 7; i >= 0; i--, size >>= 4)
        digits[i] = "0123456789abcdef"[size & 15];
}

static void link_to_topic(struct ring *ring, struct topic *topic,
                          uint64_t ordinal)
{
    if (topic->newest)
        at(ring, topic->newest)->next = ordinal;
    else
        topic->oldest = ordinal;
    topic->newest = ordinal;
    topic->count++;
}

uint64_t ring_append(struct ring *ring, struct topic *topic, uint64_t id,
                     struct slice bytes, uint32_t splice)
{
    uint64_t oldest = ring_oldest_after(ring, bytes.length);
    uint64_t ordinal = ring->next;
    struct frame *frame = at(ring, ordinal);

    assert(id > ring->newest_id && bytes.length <= ring->size);
    while (ring->oldest < oldest)
        evict_oldest(ring);
    *frame = (struct frame){
        .id = id,
        .previous = topic->newest,
        .number = topic->count + 1,
        .offset = ring->offset,
        .topic = topic,
        .length = (uint32_t)bytes.length,
        .splice = splice,
    };
    if (splice)
        put_size(frame->spliced_size, bytes.length - FRAME_HEAD - FRAME_TAIL +
                                          ring->splice_text.length);
    copy_in(ring, bytes);
    link_to_topic(ring, topic, ordinal);
    ring->next++;
    ring->newest_id = id;
    return ordinal;
}

uint64_t ring_find(const struct ring *ring, uint64_t id)
{
    uint64_t low = ring->oldest, high = ring->next;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;

        if (at(ring, middle)->id <= id)
            low = middle + 1;
        else
            high = middle;
    }
    return low - 1;
}

uint64_t topic_start(const struct topic *topic)
{
    return topic->evicted;
}

uint64_t topic_end(const struct topic *topic)
{
    return topic->newest ? topic->newest : topic->evicted;
}

uint64_t topic_seek(const struct ring *ring, const struct topic *topic,
                    uint64_t id)
{
    uint64_t found = ring_find(ring, id);

    if (found >= ring->oldest && at(ring, found)->topic == topic)
        return found;
    found = topic->newest;
    while (found && at(ring, found)->id > id)
        found = at(ring, found)->previous;
    return found ? found : topic_start(topic);
}

uint64_t topic_back(const struct ring *ring, const struct topic *topic,
                    uint64_t count)
{
    uint64_t place = topic->newest;

    while (place && count-- > 0)
        place = at(ring, place)->previous;
    return place ? place : topic_start(topic);
}

uint64_t topic_after(const struct ring *ring, const struct topic *topic,
                     uint64_t last)
{
    if (last >= topic->newest)
        return 0;
    if (last < topic->oldest)
        return topic->oldest;
    return at(ring, last)->next;
}

uint64_t topic_count_after(const struct ring *ring, const struct topic *topic,
                           uint64_t last)
{
    uint64_t after = topic_after(ring, topic, last);

    return after ? topic->count - at(ring, after)->number + 1 : 0;
}

bool topic_overrun(const struct topic *topic, const struct cursor *cursor)
{
    return cursor->last < topic->evicted;
}

/* iovecs being filled. The first `skip` bytes put in are left out: they have
 * been sent already. */
struct gathering {
    struct iovec *iov;
    int count;
    int room;
    size_t skip;
    size_t bytes;
    bool full;
};

static void put(struct gathering *g, const char *data, size_t length)
{
    size_t skipped = length < g->skip ? length : g->skip;
    struct iovec *previous = g->count ? &g->iov[g->count - 1] : NULL;

    g->skip -= skipped;
    data += skipped;
    length -= skipped;
    if (length == 0 || g->full)
        return;
    if (previous && (char *)previous->iov_base + previous->iov_len == data) {
        previous->iov_len += length;
    } else if (g->count < g->room) {
        g->iov[g->count++] = (struct iovec){ (void *)(uintptr_t)data, length };
    } else {
        g->full = true; /* whatever would follow must not go in either */
        return;
    }
    g->bytes += length;
}

/* Puts in the frame's bytes [from, to). */
static void put_part(struct gathering *g, const struct ring *ring,
                     const struct frame *frame, size_t from, size_t to)
{
    size_t begin = (frame->offset + from) % ring->size;
    size_t length = to - from;
    size_t before_wrap = ring->size - begin;
    size_t first = length < before_wrap ? length : before_wrap;

    put(g, ring->memory + begin, first);
    put(g, ring->memory, length - first);
}

static bool is_spliced(const struct frame *frame, unsigned form)
{
    return frame->splice && (form & FORM_SPLICED);
}

static void put_frame(struct gathering *g, const struct ring *ring,
                      const struct frame *frame, unsigned form)
{
    size_t begin = form & FORM_CHUNKED ? 0 : FRAME_HEAD;
    size_t end = frame->length - (form & FORM_CHUNKED ? 0 : FRAME_TAIL);

    if (is_spliced(frame, form)) {
        if (form & FORM_CHUNKED) {
            put(g, frame->spliced_size, sizeof(frame->spliced_size));
            begin = sizeof(frame->spliced_size);
        }
        put_part(g, ring, frame, begin, frame->splice);
        put(g, ring->splice_text.data, ring->splice_text.length);
        begin = frame->splice;
    }
    put_part(g, ring, frame, begin, end);
}

/* How many bytes put_frame() puts in. */
static size_t form_length(const struct ring *ring, const struct frame *frame,
                          unsigned form)
{
    return frame->length - (form & FORM_CHUNKED ? 0 : FRAME_HEAD + FRAME_TAIL) +
           (is_spliced(frame, form) ? ring->splice_text.length : 0);
}

int ring_gather(const struct ring *ring, const struct topic *topic,
                const struct cursor *cursor, uint64_t until, unsigned form,
                struct iovec *iov, int room, size_t budget)
{
    struct gathering g = { .iov = iov, .room = room, .skip = cursor->sent };
    uint64_t ordinal = topic_after(ring, topic, cursor->last);

    while (ordinal && ordinal <= until && !g.full && g.bytes < budget) {
        const struct frame *frame = at(ring, ordinal);

        put_frame(&g, ring, frame, form);
        ordinal = frame->next;
    }
    return g.count;
}

size_t ring_advance(const struct ring *ring, const struct topic *topic,
                    struct cursor *cursor, uint64_t until, unsigned form,
                    size_t bytes)
{
    uint64_t ordinal = topic_after(ring, topic, cursor->last);

    while (bytes > 0 && ordinal && ordinal <= until) {
        const struct frame *frame = at(ring, ordinal);
        size_t left = form_length(ring, frame, form) - cursor->sent;

        if (bytes < left) {
            cursor->sent += (uint32_t)bytes;
            return 0;
        }
        bytes -= left;
        cursor->last = ordinal;
        cursor->sent = 0;
        cursor->events++;
        ordinal = frame->next;
    }
    return bytes;
}
