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
 *   topic->evicted < topic->oldest, if it has an oldest;
 *   a topic in the tree has a frame that is held, or a reference.
 */
#include "sse.h"

#include <assert.h>
#include <errno.h>
#include <search.h>
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
        .mark = newest_id,
        .splice_text = splice_text,
    };
    if (ring->frames && ring->memory)
        return 0;
    ring_release(ring);
    errno = ENOMEM;
    return -1;
}

static void topic_free(void *memory)
{
    struct topic *topic = memory;

    free(topic->subscribers);
    free(topic);
}

void ring_release(struct ring *ring)
{
    tdestroy(ring->topics, topic_free);
    free(ring->frames);
    free(ring->memory);
    *ring = (struct ring){ 0 };
}

/* ------------------------------------------------------------------ topics */

static int compare_topics(const void *a, const void *b)
{
    struct slice x = ((const struct topic *)a)->name;
    struct slice y = ((const struct topic *)b)->name;

    if (x.length != y.length)
        return x.length < y.length ? -1 : 1;
    return memcmp(x.data, y.data, x.length);
}

struct topic *topic_find(const struct ring *ring, struct slice name)
{
    struct topic key = { .name = name };
    struct topic *const *found = tfind(&key, &ring->topics, compare_topics);

    return found ? *found : NULL;
}

static struct topic *topic_make(struct ring *ring, struct slice name)
{
    struct topic *topic = malloc(sizeof(*topic) + name.length);

    if (!topic)
        return NULL;
    memcpy(topic + 1, name.data, name.length);
    *topic = (struct topic){
        .mark = ring->mark,
        .name = { (const char *)(topic + 1), name.length },
    };
    if (tsearch(topic, &ring->topics, compare_topics))
        return topic;
    free(topic);
    return NULL;
}

struct topic *topic_hold(struct ring *ring, struct slice name)
{
    struct topic *topic = topic_find(ring, name);

    if (!topic)
        topic = topic_make(ring, name);
    if (topic)
        topic->references++;
    return topic;
}

/* What is known of a topic that nobody holds and that has no frame any more
 * is its mark alone. */
static void forget_unused(struct ring *ring, struct topic *topic)
{
    if (topic->references || topic->newest)
        return;
    if (ring->mark < topic->mark)
        ring->mark = topic->mark;
    tdelete(topic, &ring->topics, compare_topics);
    topic_free(topic);
}

void topic_drop(struct ring *ring, struct topic *topic)
{
    assert(topic->references > 0);
    topic->references--;
    forget_unused(ring, topic);
}

void topic_raise_mark(struct ring *ring, struct topic *topic, uint64_t id)
{
    if (topic->mark < id)
        topic->mark = id;
    if (ring->newest_id < id)
        ring->newest_id = id;
}

static void raise_each(const void *node, VISIT visit, void *closure)
{
    struct topic *topic = *(struct topic *const *)node;

    if (visit == preorder || visit == leaf)
        topic->mark = *(const uint64_t *)closure;
}

void ring_begin_after(struct ring *ring, uint64_t id)
{
    assert(ring->next == 1 && id >= ring->newest_id);
    twalk_r(ring->topics, raise_each, &id);
    ring->mark = id;
    ring->newest_id = id;
}

/* ------------------------------------------------------------------ frames */

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
    topic->evicted_id = frame->id;
    if (topic->mark < frame->id)
        topic->mark = frame->id;
    topic->oldest = frame->next;
    if (frame->next) {
        at(ring, frame->next)->previous = 0;
    } else {
        topic->newest = 0;
        forget_unused(ring, topic);
    }
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
                     struct slice bytes, uint32_t splice, bool end)
{
    uint64_t oldest = ring_oldest_after(ring, bytes.length);
    uint64_t ordinal = ring->next;
    struct frame *frame = at(ring, ordinal);

    assert(topic->references && id > ring->newest_id);
    assert(bytes.length <= ring->size);
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
        .end = end,
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

bool topic_finished(const struct ring *ring, const struct topic *topic)
{
    return topic->newest && at(ring, topic->newest)->end;
}

/* ----------------------------------------------------------------- readers */

/* The next frame of each of a reader's topics, 0 where there is none; and of
 * which of them the oldest is. */
struct walk {
    const struct ring *ring;
    unsigned count;
    unsigned at;
    uint64_t next[READER_TOPICS_MAX];
};

/* The ordinal that `at` has; 0 if no topic has any. */
static uint64_t walk_choose(struct walk *walk)
{
    uint64_t oldest = walk->next[0];

    walk->at = 0;
    for (unsigned i = 1; i < walk->count; i++) {
        if (!walk->next[i] || (oldest && walk->next[i] > oldest))
            continue;
        oldest = walk->next[i];
        walk->at = i;
    }
    return oldest;
}

static uint64_t walk_begin(struct walk *walk, const struct ring *ring,
                           const struct reader *reader)
{
    assert(reader->count > 0);
    walk->ring = ring;
    walk->count = reader->count;
    for (unsigned i = 0; i < reader->count; i++)
        walk->next[i] =
            topic_after(ring, reader->places[i].topic, reader->places[i].last);
    return walk_choose(walk);
}

static uint64_t walk_on(struct walk *walk)
{
    walk->next[walk->at] = at(walk->ring, walk->next[walk->at])->next;
    return walk_choose(walk);
}

uint64_t reader_next(const struct ring *ring, const struct reader *reader)
{
    struct walk walk;

    return walk_begin(&walk, ring, reader);
}

bool reader_overrun(const struct reader *reader)
{
    for (unsigned i = 0; i < reader->count; i++)
        if (reader->places[i].last < reader->places[i].topic->evicted)
            return true;
    return false;
}

/* The place with the newest frame behind it; NULL if none has any. */
static struct place *newest_place(const struct reader *reader)
{
    struct place *newest = NULL;

    for (unsigned i = 0; i < reader->count; i++) {
        struct place *place = &reader->places[i];

        if (place->last > place->topic->evicted &&
            (!newest || place->last > newest->last))
            newest = place;
    }
    return newest;
}

void reader_back(const struct ring *ring, const struct reader *reader,
                 uint64_t count)
{
    struct place *place;

    for (unsigned i = 0; i < reader->count; i++)
        reader->places[i].last = topic_end(reader->places[i].topic);
    while (count-- > 0 && (place = newest_place(reader)) != NULL) {
        place->last = at(ring, place->last)->previous;
        if (!place->last)
            place->last = topic_start(place->topic);
    }
}

static void place_pass(const struct ring *ring, struct place *place,
                       uint64_t ordinal)
{
    place->last = ordinal;
    place->ended = at(ring, ordinal)->end;
}

void reader_skip(const struct ring *ring, const struct reader *reader,
                 uint64_t id)
{
    struct walk walk;
    uint64_t ordinal = walk_begin(&walk, ring, reader);

    for (; ordinal && at(ring, ordinal)->id <= id; ordinal = walk_on(&walk))
        place_pass(ring, &reader->places[walk.at], ordinal);
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

/*
 * Frames that lie one behind the other and all go out as they are: where the
 * ring holds nothing else between a reader's next frame and his newest, which
 * is the rule on a busy topic, there is no need to look at each.
 */
struct run {
    uint64_t first, last; /* ordinals; first is 0 if it is none */
};

static struct run run_of(const struct ring *ring, const struct reader *reader,
                         uint64_t ordinal)
{
    uint64_t newest = reader->places[0].topic->newest;

    if (reader->count != 1 || reader->form != FORM_CHUNKED || !ordinal ||
        newest > reader->until ||
        at(ring, newest)->number - at(ring, ordinal)->number !=
            newest - ordinal)
        return (struct run){ 0, 0 };
    return (struct run){ ordinal, newest };
}

/* How many bytes of the run come before one of its frames. */
static size_t run_before(const struct ring *ring, const struct run *run,
                         uint64_t ordinal)
{
    size_t first = at(ring, run->first)->offset;
    size_t offset = at(ring, ordinal)->offset;

    return offset >= first ? offset - first : offset + ring->size - first;
}

static size_t run_length(const struct ring *ring, const struct run *run)
{
    return run_before(ring, run, run->last) + at(ring, run->last)->length;
}

static int gather_run(const struct ring *ring, const struct run *run,
                      struct gathering *g, size_t budget)
{
    size_t length = run_length(ring, run) - g->skip;

    put_part(g, ring, at(ring, run->first), 0,
             g->skip + (length < budget ? length : budget));
    return g->count;
}

/* Moves to the frame in which the bytes end; as ring_advance(). */
static size_t advance_run(const struct ring *ring, const struct run *run,
                          struct place *place, struct cursor *cursor,
                          size_t bytes)
{
    size_t total = run_length(ring, run), taken = cursor->sent + bytes;
    uint64_t low = run->first, high = run->last + 1;

    if (taken < total) {
        while (high - low > 1) { /* low begins at or before `taken` */
            uint64_t middle = low + (high - low) / 2;

            if (run_before(ring, run, middle) <= taken)
                low = middle;
            else
                high = middle;
        }
        cursor->sent = (uint32_t)(taken - run_before(ring, run, low));
    } else {
        low = run->last + 1;
        cursor->sent = 0;
    }
    cursor->events += (uint32_t)(low - run->first);
    if (low > run->first)
        place_pass(ring, place, low - 1);
    return taken < total ? 0 : taken - total;
}

int ring_gather(const struct ring *ring, const struct reader *reader,
                uint32_t sent, struct iovec *iov, int room, size_t budget)
{
    struct gathering g = { .iov = iov, .room = room, .skip = sent };
    struct walk walk;
    uint64_t ordinal = walk_begin(&walk, ring, reader);
    struct run run = run_of(ring, reader, ordinal);

    if (run.first)
        return gather_run(ring, &run, &g, budget);
    while (ordinal && ordinal <= reader->until && !g.full && g.bytes < budget) {
        put_frame(&g, ring, at(ring, ordinal), reader->form);
        ordinal = walk_on(&walk);
    }
    return g.count;
}

size_t ring_advance(const struct ring *ring, const struct reader *reader,
                    struct cursor *cursor, size_t bytes)
{
    struct walk walk;
    uint64_t ordinal = walk_begin(&walk, ring, reader);
    struct run run = run_of(ring, reader, ordinal);

    if (run.first)
        return advance_run(ring, &run, reader->places, cursor, bytes);
    while (bytes > 0 && ordinal && ordinal <= reader->until) {
        size_t left =
            form_length(ring, at(ring, ordinal), reader->form) - cursor->sent;

        if (bytes < left) {
            cursor->sent += (uint32_t)bytes;
            return 0;
        }
        bytes -= left;
        place_pass(ring, &reader->places[walk.at], ordinal);
        cursor->sent = 0;
        cursor->events++;
        ordinal = walk_on(&walk);
    }
    return bytes;
}
