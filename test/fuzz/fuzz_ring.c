/*
 * Fuzzes the ring: the input says how small it is, and then what is done with
 * it: frames of three topics are appended, places are looked for, a reader of
 * each form takes some bytes. After each step the invariants at the head of
 * ring.c hold, and all agrees with a list of every frame that ever was.
 */
#include "test/one_reader.h"

#include <stdlib.h>
#include <string.h>

enum {
    TOPICS = 3,
    EMPTY = 5,   /* topics without a frame, that are held now and then */
    READERS = 4, /* one for each form */
    FRAMES = 1000,
    LIMIT_MAX = 16,
    SIZE_MIN = FRAME_HEAD + 1 + FRAME_TAIL, /* no frame is empty */
    SIZE_MAX_HERE = SIZE_MIN + 255,
    ROOM_MAX = 8,
    STREAM_MAX = 1024, /* more than all that is held has in any form */
};

#define SPLICE "<spliced>"

/* A frame that was appended; the one with ordinal o is kept[o]. */
struct kept {
    uint64_t id;
    uint32_t length;
    uint32_t splice;
    const struct topic *topic;
};

struct one_of {
    struct topic *topic;
    unsigned form;
    struct one cursor;
};

struct state {
    struct ring ring;
    struct topic *topics[TOPICS];
    unsigned empty[EMPTY]; /* how often each is held */
    struct one_of readers[READERS];
    struct kept kept[FRAMES + 1];
    uint64_t count; /* of those */
    const uint8_t *input;
    const uint8_t *end;
};

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length);

static void check(bool holds)
{
    if (!holds)
        abort();
}

/* The next byte of the input; 0 after its end. */
static unsigned next_byte(struct state *state)
{
    return state->input < state->end ? *state->input++ : 0;
}

/* ------------------------------------------------------------ invariants */

static void check_frames(const struct state *state)
{
    const struct ring *ring = &state->ring;
    size_t used = 0;

    check(ring->oldest <= ring->next && ring->used <= ring->size);
    check(ring->next - ring->oldest <= ring->limit);
    check(ring->next == state->count + 1 && ring->offset < ring->size);
    for (uint64_t ordinal = ring->oldest; ordinal < ring->next; ordinal++) {
        const struct frame *frame = ring_frame(ring, ordinal);
        size_t end = (frame->offset + frame->length) % ring->size;

        check(frame->id == state->kept[ordinal].id);
        check(frame->length == state->kept[ordinal].length);
        check(frame->topic == state->kept[ordinal].topic);
        if (ordinal + 1 < ring->next) {
            check(ring_frame(ring, ordinal + 1)->offset == end);
            check(ring_frame(ring, ordinal + 1)->id > frame->id);
        } else {
            check(ring->offset == end && ring->newest_id == frame->id);
        }
        used += frame->length;
    }
    check(used == ring->used);
}

static struct slice empty_name(unsigned which)
{
    return (struct slice){ &"defgh"[which], 1 };
}

/* Counts again what the ring counts. */
static void check_counts(const struct state *state)
{
    uint64_t held = TOPICS, empty = 0;

    for (unsigned i = 0; i < TOPICS; i++)
        empty += state->topics[i]->newest == 0;
    for (unsigned i = 0; i < EMPTY; i++) {
        held += state->empty[i] > 0;
        empty += state->empty[i] > 0;
        check((state->empty[i] > 0) ==
              (topic_find(&state->ring, empty_name(i)) != NULL));
    }
    check(state->ring.held == held && state->ring.empty == empty);
}

/* The chain has each held frame of the topic, in both directions. */
static void check_topic(const struct state *state, const struct topic *topic)
{
    uint64_t previous = 0, number = 0, evicted = 0;

    for (uint64_t ordinal = 1; ordinal <= state->count; ordinal++) {
        const struct frame *frame;

        if (state->kept[ordinal].topic != topic)
            continue;
        number++;
        if (ordinal < state->ring.oldest) {
            evicted = ordinal;
            continue;
        }
        frame = ring_frame(&state->ring, ordinal);
        check(frame->previous == previous && frame->number == number);
        check(previous ? ring_frame(&state->ring, previous)->next == ordinal
                       : topic->oldest == ordinal);
        previous = ordinal;
    }
    check(topic->newest == previous && topic->count == number);
    check(previous ? ring_frame(&state->ring, previous)->next == 0
                   : topic->oldest == 0);
    check(topic->evicted == evicted && (!previous || evicted < topic->oldest));
    check(!evicted || topic->mark == state->kept[evicted].id);
}

/* ------------------------------------------------------------- operations */

/* What a reader gets of a frame; its bytes follow from its id. */
static size_t put_frame(const struct kept *kept, unsigned form, char *out)
{
    size_t content = kept->length - FRAME_HEAD - FRAME_TAIL, at = 0;
    size_t added =
        kept->splice && (form & FORM_SPLICED) ? sizeof(SPLICE) - 1 : 0;

    for (int shift = 28; (form & FORM_CHUNKED) && shift >= 0; shift -= 4)
        out[at++] = "0123456789abcdef"[(content + added) >> shift & 15];
    if (form & FORM_CHUNKED) {
        out[at++] = '\r';
        out[at++] = '\n';
    }
    for (size_t i = 0; i <= content; i++) {
        if (added && i == kept->splice - FRAME_HEAD) {
            memcpy(out + at, SPLICE, added);
            at += added;
        }
        if (i < content)
            out[at++] = (char)(kept->id * 31 + i * 7);
    }
    if (form & FORM_CHUNKED) {
        out[at++] = '\r';
        out[at++] = '\n';
    }
    return at;
}

/* The oldest frame held when the newest `count` frames were appended. */
static uint64_t naive_oldest(const struct state *state)
{
    uint64_t oldest = state->count + 1;
    size_t used = 0;

    while (oldest > state->ring.oldest &&
           state->count - oldest + 1 < state->ring.limit &&
           used + state->kept[oldest - 1].length <= state->ring.size)
        used += state->kept[--oldest].length;
    return oldest;
}

static void append(struct state *state)
{
    unsigned which = next_byte(state), length = next_byte(state);
    struct topic *topic = state->topics[which % TOPICS];
    struct kept *kept = &state->kept[state->count + 1];
    char bytes[SIZE_MAX_HERE];
    uint64_t predicted;

    if (state->count == FRAMES)
        return;
    length %= (unsigned)state->ring.size - SIZE_MIN + 1;
    *kept = (struct kept){
        .id = state->ring.newest_id + 1 + which / TOPICS % 4,
        .length = length + SIZE_MIN,
        .splice =
            which >= 128 ? FRAME_HEAD + next_byte(state) % (length + 2) : 0,
        .topic = topic,
    };
    put_frame(kept, FORM_CHUNKED, bytes);
    predicted = ring_oldest_after(&state->ring, kept->length);
    check(ring_append(&state->ring, topic, kept->id,
                      (struct slice){ bytes, kept->length }, kept->splice,
                      false) == state->count + 1);
    state->count++;
    check(state->ring.oldest == predicted);
    check(state->ring.oldest == naive_oldest(state));
}

/* The topic's first held frame with an ordinal over `last`, and an id over
 * `id`; 0: none. */
static uint64_t naive_after(const struct state *state,
                            const struct topic *topic, uint64_t last,
                            uint64_t id)
{
    uint64_t ordinal = last + 1;

    if (ordinal < state->ring.oldest)
        ordinal = state->ring.oldest;
    while (ordinal <= state->count && (state->kept[ordinal].topic != topic ||
                                       state->kept[ordinal].id <= id))
        ordinal++;
    return ordinal <= state->count ? ordinal : 0;
}

static uint64_t naive_count_after(const struct state *state,
                                  const struct topic *topic, uint64_t last)
{
    uint64_t count = 0;

    while ((last = naive_after(state, topic, last, 0)) != 0)
        count++;
    return count;
}

static void look(struct state *state)
{
    const struct ring *ring = &state->ring;
    unsigned which = next_byte(state), back = next_byte(state);
    struct topic *topic = state->topics[which % TOPICS];
    uint64_t id = ring->newest_id + 2, place, found, held;

    id -= back < id ? back : id;
    place = topic_seek(ring, topic, id);
    check(topic_after(ring, topic, place) == naive_after(state, topic, 0, id));
    found = ring_find(ring, id);
    check(found + 1 >= ring->oldest && found < ring->next);
    check(found < ring->oldest || state->kept[found].id <= id);
    check(found + 1 == ring->next || state->kept[found + 1].id > id);
    held = naive_count_after(state, topic, 0);
    place = one_back(ring, topic, back % 20);
    check(topic_count_after(ring, topic, place) ==
          (back % 20 < held ? back % 20 : held));
    check(topic_count_after(ring, topic, topic_start(topic)) == held);
    check(topic_count_after(ring, topic, topic_end(topic)) == 0);
    check(topic_count_after(ring, topic, place) ==
          naive_count_after(state, topic, place));
}

/* Puts all that follows the cursor into `out`. */
static size_t naive_stream(const struct state *state,
                           const struct one_of *reader, uint64_t until,
                           char *out)
{
    uint64_t ordinal = reader->cursor.last;
    size_t length = 0;

    while ((ordinal = naive_after(state, reader->topic, ordinal, 0)) != 0 &&
           ordinal <= until)
        length += put_frame(&state->kept[ordinal], reader->form, out + length);
    memmove(out, out + (length ? reader->cursor.sent : 0),
            length ? length - reader->cursor.sent : 0);
    return length ? length - reader->cursor.sent : 0;
}

/* Where the cursor has to be, `bytes` further on. */
static void naive_advance(const struct state *state, struct one_of *reader,
                          size_t bytes)
{
    char frame[STREAM_MAX];

    while (bytes > 0) {
        uint64_t next =
            naive_after(state, reader->topic, reader->cursor.last, 0);
        size_t left = put_frame(&state->kept[next], reader->form, frame) -
                      reader->cursor.sent;

        if (bytes < left) {
            reader->cursor.sent += (uint32_t)bytes;
            return;
        }
        bytes -= left;
        reader->cursor = (struct one){
            .last = next,
            .events = reader->cursor.events + 1,
        };
    }
}

static bool naive_overrun(const struct state *state,
                          const struct one_of *reader)
{
    for (uint64_t ordinal = reader->cursor.last + 1;
         ordinal < state->ring.oldest; ordinal++)
        if (state->kept[ordinal].topic == reader->topic)
            return true;
    return false;
}

/* Compares what is gathered with `expected`; returns how much it was. */
static size_t check_gathered(const struct iovec *iov, int count,
                             const char *expected, size_t length)
{
    size_t got = 0;

    for (int i = 0; i < count; i++) {
        check(iov[i].iov_len > 0 && iov[i].iov_len <= length - got);
        check(memcmp(iov[i].iov_base, expected + got, iov[i].iov_len) == 0);
        check(i == 0 || (char *)iov[i - 1].iov_base + iov[i - 1].iov_len !=
                            (char *)iov[i].iov_base);
        got += iov[i].iov_len;
    }
    return got;
}

static void check_advance(const struct state *state, struct one_of *reader,
                          uint64_t until, size_t bytes, size_t beyond)
{
    struct one_of naive = *reader;

    naive_advance(state, &naive, bytes);
    check(one_advance(&state->ring, reader->topic, &reader->cursor, until,
                      reader->form, bytes + beyond) == beyond);
    check(reader->cursor.last == naive.cursor.last);
    check(reader->cursor.sent == naive.cursor.sent);
    check(reader->cursor.events == naive.cursor.events);
}

static void read_some(struct state *state)
{
    unsigned how = next_byte(state);
    struct one_of *reader = &state->readers[how % READERS];
    int room = (int)(how / READERS % ROOM_MAX) + 1, count;
    size_t budget = next_byte(state) + 1, length, got;
    uint64_t until = state->ring.next - 1;
    char expected[STREAM_MAX];
    struct iovec iov[ROOM_MAX];

    check(one_overrun(reader->topic, &reader->cursor) ==
          naive_overrun(state, reader));
    if (one_overrun(reader->topic, &reader->cursor)) {
        reader->cursor = (struct one){ .last = topic_start(reader->topic) };
        return;
    }
    /* a frame that is begun is not behind the end */
    if (how >= 128 && reader->cursor.sent == 0)
        until -= next_byte(state) % 4 % (until + 1);
    length = naive_stream(state, reader, until, expected);
    count = one_gather(&state->ring, reader->topic, &reader->cursor, until,
                       reader->form, iov, room, budget);
    check(count <= room);
    got = check_gathered(iov, count, expected, length);
    check(got == length || got >= budget || count == room);
    check(got < budget + SIZE_MAX_HERE + sizeof(SPLICE) - 1);
    if (got == length && how % 5 == 0)
        check_advance(state, reader, until, got, next_byte(state));
    else
        check_advance(state, reader, until, next_byte(state) % (got + 1), 0);
}

/* A topic without a frame is held once more, or less. */
static void hold_or_drop(struct state *state)
{
    struct ring *ring = &state->ring;
    unsigned which = next_byte(state), *holds = &state->empty[which % EMPTY];
    struct slice name = empty_name(which % EMPTY);

    if (which < 128) {
        bool may = *holds || (ring->empty < ring->max_topics &&
                              ring->held < ring->max_topics + ring->limit);

        check((topic_hold_to_read(ring, name) != NULL) == may);
        *holds += may;
    } else if (*holds) {
        topic_drop(ring, topic_find(ring, name));
        --*holds;
    }
}

/* A reader begins anew, at some frame of its topic. */
static void move_reader(struct state *state)
{
    unsigned which = next_byte(state);
    struct one_of *reader = &state->readers[which % READERS];

    reader->topic = state->topics[which / READERS % TOPICS];
    reader->cursor = (struct one){
        .last = one_back(&state->ring, reader->topic, which / 16),
    };
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length)
{
    static struct state state;

    state = (struct state){ .input = input, .end = input + length };
    check(ring_init(&state.ring, 1 + next_byte(&state) % LIMIT_MAX,
                    SIZE_MIN + next_byte(&state), next_byte(&state),
                    SLICE(SPLICE)) == 0);
    state.ring.max_topics = next_byte(&state) % (TOPICS + EMPTY);
    for (unsigned i = 0; i < TOPICS; i++)
        state.topics[i] =
            topic_hold(&state.ring, (struct slice){ &"abc"[i], 1 });
    for (unsigned i = 0; i < READERS; i++)
        state.readers[i] =
            (struct one_of){ .topic = state.topics[i % 2], .form = i };
    while (state.input < state.end) {
        static void (*const operations[])(struct state *) = {
            append,    append,      look,         read_some,
            read_some, move_reader, hold_or_drop,
        };

        operations[next_byte(&state) % 7](&state);
        check_frames(&state);
        check_counts(&state);
        for (unsigned i = 0; i < TOPICS; i++)
            check_topic(&state, state.topics[i]);
    }
    ring_release(&state.ring);
    return 0;
}
