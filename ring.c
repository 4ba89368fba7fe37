/*
 * ring.c: events and their history.
 *
 * It owns the frames' bytes, the index of frames, the topics with their chains
 * through the index, the rule of eviction, the order of delivery, and the
 * history file; sse.h describes the data structures. It reads no clock, and
 * makes system calls for the history file alone.
 *
 * Invariants:
 *   oldest <= next, next - oldest <= limit, used <= size;
 *   the held frames are adjacent in memory, modulo its size;
 *   ids grow with ordinals;
 *   a topic's oldest and newest frames are both held, or both ordinals are 0;
 *   topic->evicted < topic->oldest, if the topic has an oldest frame;
 *   a topic in the tree has a held frame or a reference.
 *
 * Sections, each of which uses those before it (and three functions of the
 * history file, declared in "the ring"): event text; reading event
 * streams; the ring; topics; frames and eviction; passes and appending;
 * readers; starts; the history file; recovery; opening a history file; making
 * one.
 */
#include "sse.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <search.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ------------------------------------------------------------- event text
 *
 * How an event is spelled: a block of an event stream (WHATWG HTML, section
 * 9.2.5) with values that are UTF-8 or JSON. sse.c makes frames and the
 * server's own blocks with it.
 *
 * A text never grows: its owner has made room for the longest result
 * (FRAME_FACTOR, FRAME_REST), so running out of room is a bug, not an error.
 * Whatever bytes a publisher sends, valid UTF-8 comes out, with U+FFFD where a
 * browser's decoder would put it.
 */

size_t utf8_malformed(struct slice text)
{
    size_t whole;

    return utf8_prefix(text, &whole);
}

__attribute__((format(printf, 2, 0))) static void
text_put_list(struct text *text, const char *format, va_list arguments)
{
    size_t room = text->room - text->length;
    int length = vsnprintf(text->bytes + text->length, room, format, arguments);

    assert(length >= 0 && (size_t)length < room);
    text->length += (size_t)length;
}

void text_put(struct text *text, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    text_put_list(text, format, arguments);
    va_end(arguments);
}

static void text_put_bytes(struct text *text, const char *bytes, size_t length)
{
    assert(length < text->room - text->length);
    memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
}

/* How many bytes at the start of a text go out as they are: they are UTF-8,
 * and, for JSON, need no escape. */
static size_t plain_length(struct slice text, bool json)
{
    size_t at = 0, length = 1;

    while (at < text.length && length) {
        unsigned char c = (unsigned char)text.data[at];

        if (json && (c < ' ' || c == '"' || c == '\\'))
            break;
        length = c < 0x80 ? 1 : utf8_sequence(slice_from(text, at));
        at += length;
    }
    return at;
}

bool utf8_valid(struct slice text)
{
    return plain_length(text, false) == text.length;
}

/* Adds what is at the start of `value` and is not plain. Returns how many
 * bytes of the value that was. */
static size_t text_put_special(struct text *text, struct slice value, bool json)
{
    static const char letters[] = "btn\0fr"; /* for the bytes 8 to 13 */
    unsigned char c = (unsigned char)*value.data;

    if (c >= 0x80) {
        text_put_bytes(text, json ? "\\ufffd" : "\xEF\xBF\xBD", json ? 6 : 3);
        return utf8_malformed(value);
    }
    if (c == '"' || c == '\\')
        text_put(text, "\\%c", c);
    else if (c >= 8 && c <= 13 && letters[c - 8])
        text_put(text, "\\%c", letters[c - 8]);
    else
        text_put(text, "\\u%04x", c);
    return 1;
}

static void text_put_value(struct text *text, struct slice value, bool json)
{
    while (value.length) {
        size_t plain = plain_length(value, json);

        text_put_bytes(text, value.data, plain);
        value = slice_from(value, plain);
        if (value.length)
            value = slice_from(value, text_put_special(text, value, json));
    }
}

void text_put_json(struct text *text, struct slice value)
{
    text_put_value(text, value, true);
}

/* Where the next LF or CR is in [at, end); `end` if there is none. It searches
 * for both in windows: else data with many LFs and no CR would be searched for
 * a CR to its end once for each line. */
static const char *line_end(const char *at, const char *end)
{
    const ptrdiff_t window = 256;

    while (at < end) {
        size_t length = (size_t)(end - at < window ? end - at : window);
        const char *lf = memchr(at, '\n', length);
        const char *cr = memchr(at, '\r', lf ? (size_t)(lf - at) : length);

        if (lf || cr)
            return cr ? cr : lf;
        at += length;
    }
    return end;
}

/* Adds each line of the data as a field. A line end at the very end of the data
 * is followed by one more line, which is empty. */
static void text_put_data(struct text *text, struct slice data)
{
    const char *at = data.data, *end = at + data.length;

    for (;;) {
        const char *stop = line_end(at, end);

        text_put_bytes(text, "data: ", 6);
        text_put_value(text, (struct slice){ at, (size_t)(stop - at) }, false);
        text_put_bytes(text, "\n", 1);
        if (stop == end)
            return;
        at = stop + 1;
        if (*stop == '\r' && at < end && *at == '\n')
            at++;
    }
}

/* Writes a chunk size of constant width, so that it can be filled in when the
 * chunk is complete. */
static void put_size(char digits[8], size_t size)
{
    for (int i = 7; i >= 0; i--, size >>= 4)
        digits[i] = "0123456789abcdef"[size & 15];
}

size_t text_begin_block(struct text *text, unsigned form,
                        const struct block *block)
{
    size_t begin;

    if (form & FORM_CHUNKED)
        text_put(text, "%08x\r\n", 0);
    begin = text->length;
    if (block->retry)
        text_put(text, "retry: %" PRIu64 "\n", *block->retry);
    if (block->id)
        text_put(text, "id: %" PRIu64 "\n", *block->id);
    if (block->event.length) {
        text_put(text, "event: ");
        text_put_value(text, block->event, false);
        text_put(text, "\n");
    }
    return begin;
}

void text_end_block(struct text *text, unsigned form, size_t begin)
{
    text_put(text, "\n");
    if (!(form & FORM_CHUNKED))
        return;
    put_size(text->bytes + begin - FRAME_HEAD, text->length - begin);
    text_put(text, "\r\n");
}

void text_put_block(struct text *text, unsigned form, const struct block *block,
                    const char *format, ...)
{
    size_t begin = text_begin_block(text, form, block);

    if (format) {
        va_list arguments;

        text_put(text, "data: ");
        va_start(arguments, format);
        text_put_list(text, format, arguments);
        va_end(arguments);
        text_put(text, "\n");
    }
    text_end_block(text, form, begin);
}

void text_put_event(struct text *text, uint64_t id, const struct event *event)
{
    struct block block = { .id = &id, .event = event->name };
    size_t begin = text_begin_block(text, FORM_CHUNKED, &block);

    if (event->retry.length)
        text_put(text, "retry: %.*s\n", (int)event->retry.length,
                 event->retry.data);
    text_put_data(text, event->data);
    text_end_block(text, FORM_CHUNKED, begin);
}

/* ----------------------------------------------------- reading event streams
 *
 * The reverse of the section before: bytes of an event stream, in pieces of any
 * length, become events (WHATWG HTML, section 9.2.6). Publishers and standard
 * input send such streams; sse.c has a parser for each.
 *
 * The state machine looks at single bytes in field names and around line ends.
 * Values go in runs, up to the next line end or the end of the piece. Of a
 * value that is too long one byte more than its maximum is stored, so that the
 * caller can tell: it is never cut to something that looks valid.
 *
 * The value of an id or a retry field goes to `candidate` first. If it turns
 * out to have a NUL or a byte that is no digit, the field is ignored, and the
 * value of an earlier one stays.
 */

void event_parser_init(struct event_parser *parser, char *data, size_t room)
{
    *parser =
        (struct event_parser){ .at_start = true, .data = data, .room = room };
}

/* Drops the event, complete or not. The buffers keep their bytes: the lengths
 * say what is valid. */
static void event_reset(struct event_parser *parser)
{
    parser->length = parser->name_length = 0;
    parser->id_length = parser->retry_length = parser->topic_length = 0;
    parser->has_data = parser->has_id = parser->has_topic = false;
    parser->too_long = parser->complete = false;
}

/* Adds to a value of at most `maximum` bytes; of a longer one, one byte more
 * is stored. */
static void append_bounded(char *value, size_t *length, size_t maximum,
                           struct slice bytes)
{
    size_t room = maximum + 1 - *length;

    if (bytes.length > room)
        bytes.length = room;
    memcpy(value + *length, bytes.data, bytes.length);
    *length += bytes.length;
}

static void event_append_value(struct event_parser *parser, struct slice bytes)
{
    if (parser->field == FIELD_DATA &&
        bytes.length > parser->room - parser->length) {
        parser->too_long = true;
    } else if (parser->field == FIELD_DATA) {
        memcpy(parser->data + parser->length, bytes.data, bytes.length);
        parser->length += bytes.length;
    } else if (parser->field == FIELD_EVENT) {
        append_bounded(parser->name, &parser->name_length, EVENT_NAME_MAX,
                       bytes);
    } else if (parser->field == FIELD_TOPIC) {
        append_bounded(parser->topic, &parser->topic_length, TOPIC_NAME_MAX,
                       bytes);
    } else if (parser->field != FIELD_OTHER) {
        append_bounded(parser->candidate, &parser->candidate_length,
                       EVENT_NUMBER_MAX, bytes);
        if (memchr(bytes.data, '\0', bytes.length))
            parser->candidate_has_nul = true;
    }
}

/* The field's name is complete. The value replaces the one before, but data is
 * added to data. */
static void event_begin_value(struct event_parser *parser)
{
    struct slice name = { parser->field_name, parser->field_length };

    parser->field = slice_is(name, "data")                     ? FIELD_DATA
                    : slice_is(name, "event")                  ? FIELD_EVENT
                    : slice_is(name, "id")                     ? FIELD_ID
                    : slice_is(name, "retry")                  ? FIELD_RETRY
                    : parser->topic && slice_is(name, "topic") ? FIELD_TOPIC
                                                               : FIELD_OTHER;
    parser->candidate_length = 0;
    parser->candidate_has_nul = false;
    if (parser->field == FIELD_EVENT)
        parser->name_length = 0;
    if (parser->field == FIELD_TOPIC) {
        parser->topic_length = 0;
        parser->has_topic = true;
    }
    if (parser->field != FIELD_DATA)
        return;
    if (parser->has_data)
        event_append_value(parser, SLICE("\n"));
    parser->has_data = true;
}

static void event_end_value(struct event_parser *parser)
{
    size_t length = parser->candidate_length;

    if (parser->field == FIELD_ID && !parser->candidate_has_nul) {
        memcpy(parser->id, parser->candidate, length);
        parser->id_length = length;
        parser->has_id = true;
    } else if (parser->field == FIELD_RETRY && length > 0 &&
               length <= EVENT_NUMBER_MAX) {
        parser->candidate[length] = '\0';
        if (strspn(parser->candidate, "0123456789") < length)
            return;
        memcpy(parser->retry, parser->candidate, length);
        parser->retry_length = length;
    }
}

static void event_end_line(struct event_parser *parser, char end)
{
    bool blank = parser->state == EVENT_NAME && parser->field_length == 0;

    if (parser->state == EVENT_NAME && !blank)
        event_begin_value(parser); /* no colon: the value is empty */
    if (!blank)
        event_end_value(parser);
    else if (parser->has_data)
        parser->complete = true;
    else
        event_reset(parser);
    parser->field_length = 0;
    parser->at_start = false;
    parser->state = end == '\r' ? EVENT_AFTER_CR : EVENT_NAME;
}

/* Takes a byte of a field's name, or the one after it. A byte order mark at the
 * start of the stream is dropped when it is complete; an incomplete one is the
 * start of an unknown field's name. */
static void event_take_name(struct event_parser *parser, char byte)
{
    if (byte == '\n' || byte == '\r') {
        event_end_line(parser, byte);
    } else if (byte == ':') {
        event_begin_value(parser);
        parser->state = EVENT_SPACE;
    } else {
        append_bounded(parser->field_name, &parser->field_length,
                       EVENT_FIELD_NAME_MAX, (struct slice){ &byte, 1 });
        if (!parser->at_start || parser->field_length < 3)
            return;
        parser->at_start = false;
        if (memcmp(parser->field_name, "\xEF\xBB\xBF", 3) == 0)
            parser->field_length = 0;
    }
}

size_t event_parser_read(struct event_parser *parser, struct slice data)
{
    const char *at = data.data, *end = at + data.length;

    if (parser->complete)
        event_reset(parser);
    while (at < end && !parser->complete) {
        if (parser->state == EVENT_NAME) {
            event_take_name(parser, *at++);
        } else if (parser->state == EVENT_AFTER_CR) {
            parser->state = EVENT_NAME;
            at += *at == '\n';
        } else if (parser->state == EVENT_SPACE) {
            parser->state = EVENT_VALUE;
            at += *at == ' ';
        } else {
            const char *stop = line_end(at, end);

            event_append_value(parser,
                               (struct slice){ at, (size_t)(stop - at) });
            at = stop;
            if (at < end)
                event_end_line(parser, *at++);
        }
    }
    return (size_t)(at - data.data);
}

/* ---------------------------------------------------------------- the ring
 *
 * Making and releasing it, and the arithmetic that all sections after this one
 * share. All offsets are below ring->size, and nothing that is read or written
 * is longer than that, so a range of bytes wraps once at most.
 */

/* Of the section on the history file, below. Without a file only write_mark()
 * is called, and does nothing. */
static void write_record(struct ring *ring);
static void write_mark(struct ring *ring, uint64_t id);
static uint32_t write_promise(struct ring *ring, struct slice name);
static void clear_promise(struct ring *ring, uint32_t slot);
static void close_file(struct history_file *file);

static struct frame *frame_at(const struct ring *ring, uint64_t ordinal)
{
    return &ring->frames[ordinal & ring->mask];
}

static void raise_to(uint64_t *value, uint64_t least)
{
    if (*value < least)
        *value = least;
}

/* How many of the bytes from `offset` on come before the memory's end; the
 * others are at its start. */
static size_t length_to_wrap(const struct ring *ring, size_t offset,
                             size_t length)
{
    size_t room = ring->size - offset;

    return length < room ? length : room;
}

static size_t offset_after(const struct ring *ring, size_t offset,
                           size_t length)
{
    size_t end = offset + length;

    return end < ring->size ? end : end - ring->size;
}

/* How many slots the index has: a power of two, so that a mask finds the slot
 * of an ordinal. Two at least: while a record is being written, the one before
 * it stays whole. */
static uint64_t slots_for(uint64_t limit)
{
    uint64_t slots = 2;

    while (slots < limit)
        slots *= 2;
    return slots;
}

static void free_topic(void *memory)
{
    struct topic *topic = memory;

    free(topic->subscribers);
    free(topic);
}

void ring_release(struct ring *ring)
{
    tdestroy(ring->topics, free_topic);
    free(ring->frames);
    if (ring->file)
        close_file(ring->file);
    else
        free(ring->memory);
    memset(ring, 0, sizeof(*ring));
}

/* Makes a ring in that memory. Owns the memory and the file from now on, also
 * if it fails. */
static int begin_ring(struct ring *ring, struct history_file *file,
                      char *memory, uint64_t limit, size_t size,
                      uint64_t newest_id, struct slice splice_text)
{
    uint64_t slots = slots_for(limit);

    *ring = (struct ring){
        .frames = calloc(slots, sizeof(struct frame)),
        .memory = memory,
        .size = size,
        .mask = slots - 1,
        .limit = limit,
        .max_topics = TOPICS_MAX,
        .oldest = 1,
        .next = 1,
        .newest_id = newest_id,
        .mark = newest_id,
        .splice_text = splice_text,
        .file = file,
    };
    if (ring->frames && ring->memory)
        return 0;
    ring_release(ring);
    errno = ENOMEM;
    return -1;
}

int ring_init(struct ring *ring, uint64_t limit, size_t size,
              uint64_t newest_id, struct slice splice_text)
{
    return begin_ring(ring, NULL, malloc(size), limit, size, newest_id,
                      splice_text);
}

/* ------------------------------------------------------------------ topics
 *
 * Making, finding and forgetting topics, and what their readers may have lost.
 * A topic lasts while one of its frames is held or somebody holds a reference;
 * otherwise names that clients make up would fill the memory. sse.c holds the
 * main topic always, others while a request or a subscriber needs them.
 *
 * How many there can be. A topic that nobody holds has a frame, so there are
 * ring->limit of these at the most, and a bound on those that are held bounds
 * all. ring->held counts them, whatever holds them. Eviction can leave a held
 * topic without a frame; that changes neither that count nor the bound.
 *
 *   for a reader     a name that is not known makes a topic only while fewer
 *                    than max_topics have no frame, so names that clients make
 *                    up do not take the room of topics that have events; and
 *                    one topic more is held only while fewer than max_topics +
 *                    limit are
 *   for a publisher  while TOPICS_SPARE more are: readers cannot keep it out
 *   for the server   always: its own topics, and those whose event is there
 *
 * What may be lost. A subscriber that comes back names the id that it had last.
 * It may have missed something if that id is below its topic's mark: this one
 * comparison decides. All other fields here exist to get the mark right, also
 * of a topic that has been forgotten, and after a restart. A mark that is too
 * high costs a needless report of a gap; one that is too low hides a loss.
 *
 *   topic->mark     the greatest of: the id of its newest evicted frame;
 *                   ring->mark when the topic was made; what
 *                   topic_raise_mark() and ring_begin_after() have said
 *   topic->evicted  the ordinal of its newest evicted frame: tells whether a
 *                   reader that is connected has been overrun
 *   ring->mark      the greatest mark of a forgotten topic, or the id after
 *                   which the history began: what a new topic's mark is
 *   ring->emptied   the newest id whose eviction left its topic without a
 *                   frame: what ring->mark has to be after a restart, when all
 *                   such topics are forgotten
 *   record.mark     its topic's mark if it is the oldest that is recovered
 *   record.emptied  ring->emptied when the frame was appended
 *   record.before   the newest id of all topics when the frame was appended
 *   state.mark      the greatest mark that no record has; after a restart it
 *                   counts for all topics
 *
 * An example: a history that begins after id 0 and holds three frames. Id 1
 * goes to topic a; 2, 3, 4 and 5 go to b.
 *
 *   Eviction. 4 evicts 1: a's mark and ring->emptied become 1. 5 evicts 2: b's
 *   mark becomes 2. A reader of b that has 1 has missed 2. One that has 2 has
 *   missed nothing: 2 is not below 2.
 *
 *   A forgotten topic. Nobody holds a reference to a, so it is forgotten, and
 *   ring->mark becomes 1. A reader comes to a with 0: the topic is made with
 *   mark 1, and 0 is below that. A reader that comes with 0 to topic c, which
 *   never had a frame, is told of a gap too: nothing tells a and c apart now.
 *
 *   A restart. 3, 4 and 5 are recovered. b's mark is record 3's: 2, which was
 *   b's newest id when 3 was appended. ring->mark is record 5's `emptied`: 1.
 *   If a crash has damaged 4, only 5 is recovered. Then b's mark is record 5's:
 *   4. ring->mark is record 5's `before`, which is also 4, because what is gone
 *   may have been of any topic. If the machine went down, subscribers may have
 *   seen ids that are not in the file at all: ring_begin_after() raises all
 *   marks to an id above those.
 */

static int compare_topics(const void *a, const void *b)
{
    struct slice x = ((const struct topic *)a)->name;
    struct slice y = ((const struct topic *)b)->name;

    size_t common = x.length < y.length ? x.length : y.length;
    int order = memcmp(x.data, y.data, common);

    return order ? order : (x.length > y.length) - (x.length < y.length);
}

struct topic *topic_find(const struct ring *ring, struct slice name)
{
    struct topic key = { .name = name };
    struct topic *const *found = tfind(&key, &ring->topics, compare_topics);

    return found ? *found : NULL;
}

/* What note_topic() looks for, and what it has found: tfind(3) hands nothing
 * on. */
static struct {
    const struct topic *key, *found;
    bool or_same;
} seek;

/* Of the topics that a search meets, those behind the key come ever nearer to
 * it: the last one is the next. POSIX does not say which of the two is the
 * key. */
static int note_topic(const void *a, const void *b)
{
    bool key_first = a == seek.key;
    int order = compare_topics(a, b);

    if (order == 0 && !seek.or_same)
        return key_first ? 1 : -1;
    if (order == 0 || (order < 0) == key_first)
        seek.found = key_first ? b : a;
    return order;
}

const struct topic *topic_next(const struct ring *ring, struct slice name,
                               bool or_same)
{
    struct topic key = { .name = name };

    seek.key = &key;
    seek.found = NULL;
    seek.or_same = or_same;
    tfind(&key, &ring->topics, note_topic);
    seek.key = NULL;
    return seek.found;
}

/* Counts the topics that have no frame. The main stream is no topic. */
static void count_empty(struct ring *ring, const struct topic *topic,
                        bool is_empty)
{
    if (topic->name.length == 0)
        return;
    if (is_empty)
        ring->empty++;
    else
        ring->empty--;
}

static struct topic *make_topic(struct ring *ring, struct slice name)
{
    struct topic *topic = malloc(sizeof(*topic) + name.length);

    if (!topic)
        return NULL;
    memcpy(topic + 1, name.data, name.length);
    *topic = (struct topic){
        .mark = ring->mark,
        .name = { (const char *)(topic + 1), name.length },
    };
    if (!tsearch(topic, &ring->topics, compare_topics)) {
        free(topic);
        return NULL;
    }
    ring->topic_count++;
    count_empty(ring, topic, true);
    return topic;
}

/* Finds or makes a topic, without a reference to it. */
static struct topic *get_topic(struct ring *ring, struct slice name)
{
    struct topic *topic = topic_find(ring, name);

    return topic ? topic : make_topic(ring, name);
}

static void add_reference(struct ring *ring, struct topic *topic)
{
    if (topic->references++ == 0)
        ring->held++;
}

static void remove_reference(struct ring *ring, struct topic *topic)
{
    assert(topic->references > 0);
    if (--topic->references == 0)
        ring->held--;
}

/* A topic is made only while there are fewer than `empty` without a frame, and
 * one more held only while there are fewer than `held`. */
static struct topic *hold_within(struct ring *ring, struct slice name,
                                 uint64_t empty, uint64_t held)
{
    struct topic *topic = topic_find(ring, name);

    if ((!topic && ring->empty >= empty) ||
        ((!topic || !topic->references) && ring->held >= held)) {
        errno = EAGAIN;
        return NULL;
    }
    if (!topic)
        topic = make_topic(ring, name);
    if (topic)
        add_reference(ring, topic);
    return topic;
}

struct topic *topic_hold(struct ring *ring, struct slice name)
{
    return hold_within(ring, name, UINT64_MAX, UINT64_MAX);
}

struct topic *topic_hold_to_read(struct ring *ring, struct slice name)
{
    return hold_within(ring, name, ring->max_topics,
                       ring->max_topics + ring->limit);
}

struct topic *topic_hold_to_publish(struct ring *ring, struct slice name)
{
    return hold_within(ring, name, UINT64_MAX,
                       ring->max_topics + ring->limit + TOPICS_SPARE);
}

uint64_t ring_topics_size(const struct ring *ring)
{
    enum {
        OWN = 8, /* topics of the server's */
        /* a node of the tree, the first subscribers; malloc's own of three */
        TOPIC = (sizeof(struct topic) + TOPIC_NAME_MAX) * 5 / 4 + 144,
    };

    return (ring->max_topics + 2 * ring->limit + TOPICS_SPARE + OWN) * TOPIC;
}

static void forget_if_unused(struct ring *ring, struct topic *topic)
{
    if (topic->references || topic->newest)
        return;
    ring->topic_count--;
    count_empty(ring, topic, false);
    raise_to(&ring->mark, topic->mark);
    tdelete(topic, &ring->topics, compare_topics);
    free_topic(topic);
}

void topic_drop(struct ring *ring, struct topic *topic)
{
    remove_reference(ring, topic);
    forget_if_unused(ring, topic);
}

void topic_raise_mark(struct ring *ring, struct topic *topic, uint64_t id)
{
    raise_to(&topic->mark, id);
    raise_to(&ring->newest_id, id);
    write_mark(ring, id);
}

static void queue_topic(struct ring *ring, enum topic_queue queue,
                        struct topic *topic)
{
    if (topic->queued[queue])
        return;
    add_reference(ring, topic);
    topic->queued[queue] = true;
    topic->queue_next[queue] = NULL;
    if (ring->queue_first[queue])
        ring->queue_last[queue]->queue_next[queue] = topic;
    else
        ring->queue_first[queue] = topic;
    ring->queue_last[queue] = topic;
}

/* The first topic of a queue, which is for the caller to drop; or NULL. */
static struct topic *unqueue_topic(struct ring *ring, enum topic_queue queue)
{
    struct topic *topic = ring->queue_first[queue];

    if (topic) {
        topic->queued[queue] = false;
        ring->queue_first[queue] = topic->queue_next[queue];
    }
    return topic;
}

/* The file forgets a topic's promises when none is left to be kept. */
static void forget_promise(struct ring *ring, struct topic *topic)
{
    if (topic->promise && !topic->promises && !topic->broken) {
        clear_promise(ring, topic->promise);
        topic->promise = 0;
    }
}

bool topic_promise(struct ring *ring, struct topic *topic)
{
    if (ring->file && !topic->promise) {
        topic->promise = write_promise(ring, topic->name);
        if (!topic->promise)
            return false;
    }
    topic->promises++;
    return true;
}

void topic_settle(struct ring *ring, struct topic *topic, bool broken)
{
    assert(topic->promises > 0);
    topic->promises--;
    if (broken) {
        topic->broken = true;
        queue_topic(ring, TOPICS_BROKEN, topic);
    }
    forget_promise(ring, topic);
}

void topic_mended(struct ring *ring)
{
    struct topic *topic = unqueue_topic(ring, TOPICS_BROKEN);

    topic->broken = false;
    forget_promise(ring, topic);
    topic_drop(ring, topic);
}

/* What set_mark() sets: twalk(3) hands nothing on, and twalk_r(3) is glibc's
 * alone. */
static uint64_t mark_to_set;

static void set_mark(const void *node, VISIT visit, int depth)
{
    struct topic *topic = *(struct topic *const *)node;

    (void)depth;
    if (visit == preorder || visit == leaf)
        topic->mark = mark_to_set;
}

void ring_begin_after(struct ring *ring, uint64_t id)
{
    assert(id >= ring->newest_id);
    mark_to_set = id;
    twalk(ring->topics, set_mark);
    ring->mark = ring->newest_id = id;
    ring->unbegun = false;
    write_mark(ring, id);
}

void ring_pass(struct ring *ring, uint64_t id)
{
    assert(!ring->file);
    raise_to(&ring->newest_id, id);
}

const char *topic_name_refused(struct slice name)
{
    size_t begin = 0;

    if (name.length == 0 || name.length > TOPIC_NAME_MAX)
        return "a topic has 1 to 255 bytes";
    for (size_t i = 0; i < name.length; i++)
        if (!isalnum((unsigned char)name.data[i]) &&
            !memchr("-/.:_@~", name.data[i], 7))
            return "a topic is made of A-Z a-z 0-9 . _ ~ : @ - and slashes";
    if (name.data[0] == '/' || name.data[name.length - 1] == '/')
        return "a topic neither begins nor ends with a slash";
    for (size_t i = 0; i <= name.length; i++) {
        struct slice segment = { name.data + begin, i - begin };

        if (i < name.length && name.data[i] != '/')
            continue;
        if (segment.length == 0)
            return "a topic has no empty segment";
        /* clients and proxies resolve these before they ask */
        if (slice_is(segment, ".") || slice_is(segment, ".."))
            return "a topic has no . or .. segment";
        begin = i + 1;
    }
    return NULL;
}

/* ----------------------------------------------------- frames and eviction
 *
 * What the ring holds, where an id or a topic's next frame is, and what has to
 * go before a frame can be appended.
 *
 * A topic's frames are a list through the index. Delivery follows `next`. A
 * search goes backwards from the newest frame, along `previous` and `jump`: see
 * topic_seek() in sse.h. `previous` and `next` lead to held frames or nowhere;
 * a `jump` may lead to an evicted frame, so jump_from() checks that.
 */

static void evict_oldest(struct ring *ring)
{
    uint64_t ordinal = ring->oldest++;
    const struct frame *frame = frame_at(ring, ordinal);
    struct topic *topic = frame->topic;

    ring->used -= frame->length;
    topic->evicted = ordinal;
    raise_to(&topic->mark, frame->id);
    topic->oldest = frame->next;
    if (frame->next) {
        frame_at(ring, frame->next)->previous = 0;
    } else {
        topic->newest = 0;
        ring->emptied = frame->id;
        count_empty(ring, topic, true);
        forget_if_unused(ring, topic);
    }
}

void ring_forget(struct ring *ring)
{
    while (ring->oldest < ring->next)
        evict_oldest(ring);
}

/* When a frame was appended is kept in ticks, so few bits of them that an age
 * of more than four years is told wrong. */
enum {
    TICK_BITS = 6, /* ms of one, as a power of two */
    TICKS = INT32_MAX,
};

/* How many of a topic's frames the jump of the one with this number leads
 * back: what the lowest digit stands for. Takes away the greatest digit that
 * is left until nothing is. */
static uint64_t jump_length(uint64_t number)
{
    uint64_t digit = 0;

    while (number) {
        digit = (UINT64_C(1) << (63 - __builtin_clzll(number + 1))) - 1;
        number -= digit;
    }
    return digit;
}

/* The ordinal that a frame's jump leads to; 0 if that is not held. */
static uint64_t jump_from(const struct ring *ring, uint64_t ordinal)
{
    uint64_t jump = ordinal - frame_at(ring, ordinal)->jump;

    return jump < ordinal && jump >= ring->oldest ? jump : 0;
}

/* How many ordinals back the jump of a topic's next frame leads. One of length
 * 1 leads to the frame before. Any other is one frame back and then two jumps
 * of half the length: from there, and from where that jump ends. */
static uint32_t jump_for_next(const struct ring *ring,
                              const struct topic *topic)
{
    uint64_t end = topic->newest;

    if (jump_length(topic->count + 1) > 1) {
        end = end ? jump_from(ring, end) : 0;
        end = end ? jump_from(ring, end) : 0;
    }
    return end ? (uint32_t)(ring->next - end) : 0;
}

/* A splice point outside of the text would have lengths wrap where they are
 * gathered; a history file may say anything. */
static bool splice_fits(size_t splice, size_t length)
{
    return splice >= FRAME_HEAD && splice + FRAME_TAIL <= length;
}

/* Appends the frame whose bytes are in the memory, and whose own values are in
 * its entry: completes the entry, and links it to its topic. */
static void append_entry(struct ring *ring)
{
    struct frame *frame = frame_at(ring, ring->next);
    struct topic *topic = frame->topic;

    frame->appended = (uint32_t)(ring->now >> TICK_BITS) & TICKS;
    frame->jump = jump_for_next(ring, topic);
    frame->previous = topic->newest;
    frame->number = ++topic->count;
    if (!splice_fits(frame->splice, frame->length))
        frame->splice = 0;
    if (frame->splice)
        put_size(frame->spliced_size, frame->length - FRAME_HEAD - FRAME_TAIL +
                                          ring->splice_text.length);
    if (topic->newest) {
        frame_at(ring, topic->newest)->next = ring->next;
    } else {
        topic->oldest = ring->next;
        count_empty(ring, topic, false);
    }
    topic->newest = ring->next++;
    topic->newest_id = ring->newest_id = frame->id;
    ring->offset = offset_after(ring, frame->offset, frame->length);
    ring->used += frame->length;
}

/* A value for a place's `last`, so that what follows is what comes after
 * `ordinal`. */
static uint64_t topic_seek_ordinal(const struct ring *ring,
                                   const struct topic *topic, uint64_t ordinal)
{
    uint64_t found = topic->newest;

    while (found > ordinal) {
        uint64_t jump = jump_from(ring, found);

        found =
            jump && jump >= ordinal ? jump : frame_at(ring, found)->previous;
    }
    return found ? found : topic_start(topic);
}

const struct frame *ring_frame(const struct ring *ring, uint64_t ordinal)
{
    assert(ordinal >= ring->oldest && ordinal < ring->next);
    return frame_at(ring, ordinal);
}

uint64_t ring_age(const struct ring *ring, uint64_t ordinal)
{
    uint64_t now = ring->now >> TICK_BITS;
    int64_t age = ring->time - ring_time(ring, ordinal);

    if (ring->file)
        return age > 0 ? (uint64_t)age : 0;
    return ((now - ring_frame(ring, ordinal)->appended) & TICKS) << TICK_BITS;
}

uint64_t ring_oldest_after(const struct ring *ring, size_t length)
{
    uint64_t oldest = ring->oldest;
    size_t used = ring->used;

    while (oldest < ring->next &&
           (ring->next - oldest >= ring->limit || ring->size - used < length))
        used -= frame_at(ring, oldest++)->length;
    return oldest;
}

uint64_t ring_find(const struct ring *ring, uint64_t id)
{
    uint64_t low = ring->oldest, high = ring->next;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;

        if (frame_at(ring, middle)->id <= id)
            low = middle + 1;
        else
            high = middle;
    }
    return low - 1;
}

uint64_t topic_seek(const struct ring *ring, const struct topic *topic,
                    uint64_t id)
{
    return topic_seek_ordinal(ring, topic, ring_find(ring, id));
}

uint64_t topic_after(const struct ring *ring, const struct topic *topic,
                     uint64_t last)
{
    if (last >= topic->newest)
        return 0;
    if (last < topic->oldest)
        return topic->oldest;
    return frame_at(ring, last)->next;
}

uint64_t topic_count_after(const struct ring *ring, const struct topic *topic,
                           uint64_t last)
{
    uint64_t after = topic_after(ring, topic, last);

    return after ? topic->count - frame_at(ring, after)->number + 1 : 0;
}

bool topic_finished(const struct ring *ring, const struct topic *topic)
{
    return topic->newest && frame_at(ring, topic->newest)->end;
}

/* --------------------------------------------------- passes and appending
 *
 * The order in which what is new reaches a topic's subscribers. ring_append()
 * begins it; sse.c's delivery calls pass_next() for the next subscriber to send
 * to, until its time is up.
 *
 * While a topic has frames that have not been offered to all of its
 * subscribers, it is in TOPICS_IN_PASS, or rests before its next pass. A pass
 * visits the subscribers [0, unvisited) from the last to the first, so that one
 * that leaves is replaced by one that has been visited. Frames that are
 * appended meanwhile go out with those of the pass to each subscriber that has
 * not been visited yet; another pass follows for the rest.
 *
 * With ring->pace a topic rests from the begin of a pass on: the next one does
 * not begin before that time is over. All rest equally long, so the one that
 * went first into TOPICS_RESTING is the first to come out.
 *
 * topic->undelivered is the oldest frame of the pass, or of the next one.
 * Publishers wait if they would evict it or one after it: see
 * ring_would_overrun().
 */

static void begin_pass(struct ring *ring, struct topic *topic)
{
    topic->unvisited = topic->subscriber_count;
    topic->pass_newest = topic->newest;
    queue_topic(ring, TOPICS_IN_PASS, topic);
    if (ring->pace) {
        topic->rests_until = ring->now + ring->pace;
        queue_topic(ring, TOPICS_RESTING, topic);
    }
}

void pass_yield(struct ring *ring)
{
    struct topic *topic = unqueue_topic(ring, TOPICS_IN_PASS);

    if (!topic)
        return;
    if (topic->unvisited) {
        queue_topic(ring, TOPICS_IN_PASS, topic);
    } else {
        topic->undelivered = topic_after(ring, topic, topic->pass_newest);
        if (topic->undelivered && !topic->queued[TOPICS_RESTING])
            begin_pass(ring, topic);
    }
    topic_drop(ring, topic);
}

void pass_wake(struct ring *ring)
{
    const struct topic *first;

    while ((first = ring->queue_first[TOPICS_RESTING]) &&
           first->rests_until <= ring->now) {
        struct topic *topic = unqueue_topic(ring, TOPICS_RESTING);

        if (topic->undelivered && !topic->queued[TOPICS_IN_PASS])
            begin_pass(ring, topic);
        topic_drop(ring, topic);
    }
}

uint64_t ring_due(const struct ring *ring)
{
    const struct topic *rests = ring->queue_first[TOPICS_RESTING];

    if (ring->queue_first[TOPICS_IN_PASS])
        return 0;
    return rests ? rests->rests_until : NEVER;
}

uint32_t pass_next(struct ring *ring)
{
    struct topic *topic;

    while ((topic = ring->queue_first[TOPICS_IN_PASS])) {
        if (topic->unvisited)
            return topic->subscribers[--topic->unvisited];
        pass_yield(ring);
    }
    return NONE;
}

static bool set_room(struct topic *topic, uint32_t room)
{
    uint32_t *subscribers =
        realloc(topic->subscribers, room * sizeof(*subscribers));

    if (!subscribers)
        return false;
    topic->subscribers = subscribers;
    topic->subscriber_room = room;
    topic->subscriber_peak = topic->subscriber_count;
    return true;
}

/* From some size on the memory is pages of its own, which cost nothing before
 * they are used, and move without a copy: so it grows by much then, and leaves
 * no large hole behind. */
bool topic_reserve(struct topic *topic)
{
    uint32_t room = topic->subscriber_room;

    return topic->subscriber_count < room ||
           set_room(topic, room == 0     ? 4
                           : room < 4096 ? room * 2
                                         : room * 16);
}

void topic_join(const struct ring *ring, struct place *place,
                uint32_t subscriber)
{
    struct topic *topic = place->topic;

    assert(topic->subscriber_count < topic->subscriber_room);
    place->ended = topic_finished(ring, topic) && place->last == topic->newest;
    place->index = topic->subscriber_count;
    topic->subscribers[topic->subscriber_count++] = subscriber;
    if (topic->subscriber_peak < topic->subscriber_count)
        topic->subscriber_peak = topic->subscriber_count;
}

/* When most have left, what they took is given back: else few connections could
 * leave room for many behind, in one topic after the other. */
uint32_t topic_leave(const struct place *place)
{
    struct topic *topic = place->topic;
    uint32_t moved = topic->subscribers[--topic->subscriber_count];

    topic->subscribers[place->index] = moved;
    if (topic->unvisited > topic->subscriber_count)
        topic->unvisited = topic->subscriber_count;
    if (topic->subscriber_count == 0) { /* it may stay for long */
        free(topic->subscribers);
        topic->subscribers = NULL;
        topic->subscriber_room = topic->subscriber_peak = 0;
    } else if (topic->subscriber_count < topic->subscriber_peak / 4) {
        set_room(topic, topic->subscriber_count * 2);
    }
    return moved;
}

bool ring_would_overrun(const struct ring *ring, size_t length, uint64_t needed)
{
    uint64_t oldest = ring_oldest_after(ring, length);

    if (needed && oldest > needed)
        return true;
    for (uint64_t ordinal = ring->oldest; ordinal < oldest; ordinal++) {
        uint64_t undelivered = frame_at(ring, ordinal)->topic->undelivered;

        if (undelivered && ordinal >= undelivered)
            return true;
    }
    return false;
}

/* The record is written after the bytes, which it vouches for, and before the
 * entry is appended: it says what the newest id was until then. */
uint64_t ring_append(struct ring *ring, struct topic *topic, uint64_t id,
                     struct slice bytes, uint32_t splice, bool end)
{
    uint64_t oldest = ring_oldest_after(ring, bytes.length);
    uint64_t ordinal = ring->next;
    size_t first = length_to_wrap(ring, ring->offset, bytes.length);

    assert(topic->references && id > ring->newest_id);
    assert(bytes.length <= ring->size);
    while (ring->oldest < oldest)
        evict_oldest(ring);
    memcpy(ring->memory + ring->offset, bytes.data, first);
    memcpy(ring->memory, bytes.data + first, bytes.length - first);
    *frame_at(ring, ordinal) = (struct frame){
        .id = id,
        .offset = ring->offset,
        .topic = topic,
        .length = (uint32_t)bytes.length,
        .splice = splice,
        .end = end,
    };
    if (ring->file)
        write_record(ring);
    append_entry(ring);
    if (end)
        topic->broken = false;
    if (!topic->undelivered && topic->subscriber_count) {
        topic->undelivered = ordinal;
        if (!topic->queued[TOPICS_RESTING])
            begin_pass(ring, topic);
    }
    return ordinal;
}

/* ----------------------------------------------------------------- readers
 *
 * What a reader gets: the frames of its topics after its places, in the order
 * of their ordinals, as iovecs that point into the ring. sse.c sends live
 * events and replays with it, to each subscriber: it is the hot path. Nothing
 * here changes the ring or a topic, only the reader's places and its progress.
 *
 * There are two ways. On a busy topic what a reader gets is mostly a run:
 * adjacent frames that are sent as they are, of which only the first and the
 * last are looked at. Anything else (several topics, frames of other topics in
 * between, another form) is a walk from frame to frame.
 */

/* The next frame of each of a reader's topics, 0 where there is none; and which
 * of them is the oldest. */
struct walk {
    const struct ring *ring;
    unsigned count;
    unsigned at;
    uint64_t next[READER_TOPICS_MAX];
};

/* Sets `at`; returns the ordinal there, 0 if no topic has a next frame. */
static uint64_t choose_oldest(struct walk *walk)
{
    uint64_t oldest = walk->next[0];

    walk->at = 0;
    for (unsigned i = 1; i < walk->count; i++)
        if (walk->next[i] && (!oldest || walk->next[i] <= oldest)) {
            oldest = walk->next[i];
            walk->at = i;
        }
    return oldest;
}

static uint64_t begin_walk(struct walk *walk, const struct ring *ring,
                           const struct reader *reader)
{
    assert(reader->count > 0);
    walk->ring = ring;
    walk->count = reader->count;
    for (unsigned i = 0; i < reader->count; i++)
        walk->next[i] =
            topic_after(ring, reader->places[i].topic, reader->places[i].last);
    return choose_oldest(walk);
}

static uint64_t walk_on(struct walk *walk)
{
    walk->next[walk->at] = frame_at(walk->ring, walk->next[walk->at])->next;
    return choose_oldest(walk);
}

static void move_place(const struct ring *ring, struct place *place,
                       uint64_t ordinal)
{
    place->last = ordinal;
    place->ended = frame_at(ring, ordinal)->end;
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

static inline void put(struct gathering *g, const char *data, size_t length)
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
        g->full = true; /* nothing may go in after what is left out */
        return;
    }
    g->bytes += length;
}

/* Puts in the frame's bytes [from, to). */
static void put_part(struct gathering *g, const struct ring *ring,
                     const struct frame *frame, size_t from, size_t to)
{
    size_t begin = offset_after(ring, frame->offset, from);
    size_t first = length_to_wrap(ring, begin, to - from);

    put(g, ring->memory + begin, first);
    put(g, ring->memory, to - from - first);
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

/* Where the ring holds nothing else between a reader's next frame and its
 * newest: ordinals, `first` is 0 if there is no run. */
struct run {
    uint64_t first, last;
};

static inline struct run find_run(const struct ring *ring,
                                  const struct reader *reader)
{
    const struct place *place = reader->places;
    uint64_t first = topic_after(ring, place->topic, place->last);
    uint64_t newest = place->topic->newest;

    if (reader->count != 1 || reader->form != FORM_CHUNKED || !first ||
        newest > reader->until ||
        frame_at(ring, newest)->number - frame_at(ring, first)->number !=
            newest - first)
        return (struct run){ 0, 0 };
    return (struct run){ first, newest };
}

/* How many bytes of the run come before one of its frames. */
static size_t run_before(const struct ring *ring, const struct run *run,
                         uint64_t ordinal)
{
    size_t first = frame_at(ring, run->first)->offset;
    size_t offset = frame_at(ring, ordinal)->offset;

    return offset >= first ? offset - first : offset + ring->size - first;
}

static size_t run_length(const struct ring *ring, const struct run *run)
{
    return run_before(ring, run, run->last) + frame_at(ring, run->last)->length;
}

int ring_gather(const struct ring *ring, const struct reader *reader,
                uint32_t sent, struct iovec *iov, int room, size_t budget)
{
    struct gathering g = { .iov = iov, .room = room, .skip = sent };
    struct run run = find_run(ring, reader);
    struct walk walk;
    uint64_t ordinal;

    if (run.first) {
        size_t length = run_length(ring, &run) - sent;

        put_part(&g, ring, frame_at(ring, run.first), 0,
                 sent + (length < budget ? length : budget));
        return g.count;
    }
    ordinal = begin_walk(&walk, ring, reader);
    while (ordinal && ordinal <= reader->until && !g.full && g.bytes < budget) {
        put_frame(&g, ring, frame_at(ring, ordinal), reader->form);
        ordinal = walk_on(&walk);
    }
    return g.count;
}

/* As ring_advance(), along a run: finds the frame in which the bytes end. */
static size_t advance_run(const struct ring *ring, const struct run *run,
                          struct place *place, struct progress *progress,
                          size_t bytes)
{
    size_t total = run_length(ring, run), taken = progress->sent + bytes;
    uint64_t low = run->first, high = run->last + 1;

    if (taken < total) {
        while (high - low > 1) { /* low begins at or before `taken` */
            uint64_t middle = low + (high - low) / 2;

            if (run_before(ring, run, middle) <= taken)
                low = middle;
            else
                high = middle;
        }
        progress->sent = (uint32_t)(taken - run_before(ring, run, low));
    } else {
        low = run->last + 1;
        progress->sent = 0;
    }
    progress->events += (uint32_t)(low - run->first);
    if (low > run->first)
        move_place(ring, place, low - 1);
    return taken < total ? 0 : taken - total;
}

size_t ring_advance(const struct ring *ring, const struct reader *reader,
                    struct progress *progress, size_t bytes)
{
    struct run run = find_run(ring, reader);
    struct walk walk;
    uint64_t ordinal;

    if (run.first)
        return advance_run(ring, &run, reader->places, progress, bytes);
    ordinal = begin_walk(&walk, ring, reader);
    while (bytes > 0 && ordinal && ordinal <= reader->until) {
        const struct frame *frame = frame_at(ring, ordinal);
        size_t left = form_length(ring, frame, reader->form) - progress->sent;

        if (bytes < left) {
            progress->sent += (uint32_t)bytes;
            return 0;
        }
        bytes -= left;
        move_place(ring, &reader->places[walk.at], ordinal);
        progress->sent = 0;
        progress->events++;
        ordinal = walk_on(&walk);
    }
    return bytes;
}

uint64_t reader_next(const struct ring *ring, const struct reader *reader)
{
    struct walk walk;

    return begin_walk(&walk, ring, reader);
}

bool reader_overrun(const struct reader *reader)
{
    for (unsigned i = 0; i < reader->count; i++)
        if (reader->places[i].last < reader->places[i].topic->evicted)
            return true;
    return false;
}

bool reader_finished(const struct ring *ring, const struct reader *reader)
{
    for (unsigned i = 0; i < reader->count; i++)
        if (!topic_finished(ring, reader->places[i].topic))
            return false;
    return reader_next(ring, reader) == 0;
}

bool reader_ended(const struct reader *reader)
{
    for (unsigned i = 0; i < reader->count; i++)
        if (!reader->places[i].ended)
            return false;
    return true;
}

void reader_skip(const struct ring *ring, const struct reader *reader,
                 uint64_t id)
{
    for (unsigned i = 0; i < reader->count; i++) {
        struct place *place = &reader->places[i];
        uint64_t last = topic_seek(ring, place->topic, id);

        if (last > place->last && last > place->topic->evicted)
            move_place(ring, place, last);
    }
}

/* ----------------------------------------------------------------- starts
 *
 * Where a reader begins, and what it may have missed until then. sse.c calls
 * this once for each subscriber, and says in the stream what it finds. The rule
 * is one comparison with the topics' marks, see "What may be lost" above: no
 * other place decides about a gap. A connected reader that misses something is
 * cut off, and judged here when it comes back.
 */

/* Moves the places to `ordinal`; returns how many frames follow them. */
static uint64_t seek_places(const struct ring *ring,
                            const struct reader *reader, uint64_t ordinal)
{
    uint64_t count = 0;

    for (unsigned i = 0; i < reader->count; i++) {
        struct place *place = &reader->places[i];

        place->last = topic_seek_ordinal(ring, place->topic, ordinal);
        count += topic_count_after(ring, place->topic, place->last);
    }
    return count;
}

uint64_t reader_back(const struct ring *ring, const struct reader *reader,
                     uint64_t count)
{
    uint64_t low = ring->oldest - 1, high = ring->next - 1;

    while (low < high) { /* at most `count` frames come after `high` */
        uint64_t middle = low + (high - low) / 2;

        if (seek_places(ring, reader, middle) <= count)
            high = middle;
        else
            low = middle + 1;
    }
    return seek_places(ring, reader, high);
}

bool start_lost(const struct start *start, const struct topic *topic)
{
    return start->unusable || (start->known && start->id < topic->mark);
}

void reader_start(const struct ring *ring, const struct reader *reader,
                  struct slice requested, uint64_t count, struct start *start)
{
    uint64_t maximum = ring->kept_ids ? ID_MAX : ring->newest_id, next;

    *start = (struct start){ .requested = requested };
    start->known = slice_number(requested, maximum, &start->id);
    start->unusable =
        requested.length && !start->known && !slice_is(requested, "earliest");
    if (requested.length) /* if it is not known, the id is 0: before all */
        start->replay = seek_places(ring, reader, ring_find(ring, start->id));
    else
        start->replay = reader_back(ring, reader, count);
    for (unsigned i = 0; i < reader->count; i++)
        start->gap = start->gap || start_lost(start, reader->places[i].topic);
    next = reader_next(ring, reader);
    start->position = next ? frame_at(ring, next)->id - 1 : ring->newest_id;
    if (start->known && !start->gap)
        start->position = start->id;
    /* before ids from outside have begun, any id may prove to be ahead */
    start->ahead = start->known && ring->kept_ids &&
                   (start->id > ring->newest_id || ring->newest_id == 0);
}

uint64_t start_oldest(const struct ring *ring, const struct reader *reader,
                      const struct start *start)
{
    uint64_t oldest = 0;

    for (unsigned i = 0; i < reader->count; i++) {
        const struct topic *topic = reader->places[i].topic;
        uint64_t after =
            topic_after(ring, topic, topic_seek(ring, topic, topic->mark));

        if (start_lost(start, topic) && after && (!oldest || after < oldest))
            oldest = after;
    }
    return oldest ? frame_at(ring, oldest)->id : 0;
}

/* -------------------------------------------------------- the history file
 *
 * The format, the checks, and the file's state. sse.h shows the layout: the
 * header and two copies of the state in the first page, a record for each slot
 * of the index, and the ring's memory.
 *
 * The file is mapped and shared, so what has been written to it outlives the
 * process, which may be killed between any two instructions. Bytes therefore
 * count only if their check is right. A record's check is zeroed before, and
 * written after, all else. Of the state there are two copies, which are written
 * in turn, each in a sector of its own.
 *
 * A machine that goes down may lose any page that has not been synced, and have
 * later ones on the disk. sse.c calls ring_sync() when --sync asks for it.
 */

enum {
    FILE_VERSION = 3,     /* version 2 had no promises */
    PROMISES_MAX = 16384, /* topics whose end is promised at the same time */
    PAGE = 4096,
    STATE_OFFSET = 512, /* of the first copy; the second is as far behind it */
    BOOT_ID_MAX = 64,
};

/* "ssed log" as a number of this machine: a file from a machine of the other
 * byte order is refused as foreign. */
#define FILE_MAGIC UINT64_C(0x676f6c2064657373)

struct file_header {
    uint64_t magic;
    uint32_t version;
    uint32_t check; /* of what follows */
    uint64_t limit;
    uint64_t size;
    uint32_t record_size;
    uint32_t kept_ids;
};

struct file_state {
    uint32_t check; /* of what follows */
    uint32_t pid;
    uint64_t sequence; /* counts what is written: the newer copy has more */
    uint64_t mark;     /* for all topics: see "What may be lost" */
    uint64_t newest_id;
    uint32_t clean; /* the server has ended well */
    uint32_t unbegun;
    char boot_id[BOOT_ID_MAX];
};

/* A frame's record, in the slot of its ordinal. */
struct record {
    uint32_t check;       /* of what follows, to the end of the name */
    uint32_t bytes_check; /* of the frame's bytes */
    uint64_t ordinal;
    uint64_t id;
    uint64_t before;  /* the newest id when it was appended */
    uint64_t mark;    /* its topic's, were all before it gone */
    uint64_t emptied; /* the ring's, when it was appended */
    uint64_t offset;
    int64_t time;
    uint32_t length;
    uint32_t splice;
    uint8_t end;
    uint8_t name_length;
    char name[TOPIC_NAME_MAX + 1];
};

/* A topic to which a publisher has promised an end. */
struct promise {
    uint32_t check; /* of what follows, to the end of the name; 0: it is free */
    uint8_t name_length;
    char name[TOPIC_NAME_MAX];
};

struct history_file {
    int fd;
    size_t length;
    char *map;
    struct history_file *next_mapped;
    struct file_header header;
    struct file_state state;
    struct record *records;
    struct promise *promises;
    uint32_t promise_count;
    uint32_t promise_last; /* the slot that was taken last */
};

static uint64_t whole_pages(uint64_t length)
{
    return (length + PAGE - 1) / PAGE * PAGE;
}

static uint64_t memory_offset(uint64_t limit)
{
    return PAGE + whole_pages(slots_for(limit) * sizeof(struct record));
}

static uint64_t promises_offset(const struct file_header *header)
{
    return memory_offset(header->limit) + whole_pages(header->size);
}

/* As many topics as there may be events, but not without end. */
static uint32_t promises_room(const struct file_header *header)
{
    if (header->version != FILE_VERSION)
        return 0;
    return header->limit < PROMISES_MAX ? (uint32_t)header->limit
                                        : PROMISES_MAX;
}

static uint64_t file_length(const struct file_header *header)
{
    return promises_offset(header) +
           whole_pages(promises_room(header) * sizeof(struct promise));
}

uint64_t ring_history_size(const struct ring *ring)
{
    uint64_t bytes = ring->file ? file_length(&ring->file->header) : ring->size;

    return bytes + (ring->mask + 1) * sizeof(struct frame);
}

/* CRC-32C (RFC 3720, appendix B.4): what a byte does to the sum. */
static uint32_t crc_table[256];

#ifdef __x86_64__
__attribute__((target("sse4.2"))) static uint32_t
crc_eights(uint32_t sum, const unsigned char *bytes, size_t count)
{
    for (; count > 0; count--, bytes += 8) {
        uint64_t eight;

        memcpy(&eight, bytes, 8);
        sum = (uint32_t)__builtin_ia32_crc32di(sum, eight);
    }
    return sum;
}
#endif

static uint32_t crc(uint32_t sum, const void *data, size_t length)
{
    const unsigned char *bytes = data, *end = bytes + length;

    sum = ~sum;
#ifdef __x86_64__ /* nearly all of them have the instruction */
    if (__builtin_cpu_supports("sse4.2")) {
        sum = crc_eights(sum, bytes, length / 8);
        bytes += length / 8 * 8;
    }
#endif
    for (; bytes < end; bytes++)
        sum = sum >> 8 ^ crc_table[(sum ^ *bytes) & 255];
    return ~sum;
}

/* The sum must not depend on the machine, or a file would look damaged on the
 * next one. That of these digits is published with the polynomial. */
static void init_crc(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t sum = i;

        for (int bit = 0; bit < 8; bit++)
            sum = sum >> 1 ^ (sum & 1 ? 0x82F63B78 : 0);
        crc_table[i] = sum;
    }
    assert(crc(0, "123456789", 9) == 0xE3069283);
}

/* The check of a structure, which is of all that follows its check. */
static uint32_t check_between(const void *begin, const void *end)
{
    return crc(0, begin, (size_t)((const char *)end - (const char *)begin));
}

static uint32_t bytes_check(const struct ring *ring, size_t offset,
                            size_t length)
{
    size_t first = length_to_wrap(ring, offset, length);

    return crc(crc(0, ring->memory + offset, first), ring->memory,
               length - first);
}

static struct record *record_at(const struct ring *ring, uint64_t ordinal)
{
    return &ring->file->records[ordinal & ring->mask];
}

static void write_record(struct ring *ring)
{
    const struct frame *frame = frame_at(ring, ring->next);
    const struct topic *topic = frame->topic;
    struct record *record = record_at(ring, ring->next);

    /* if the process is killed here, the check is wrong and the record does not
     * count; the fences keep the compiler from moving the stores */
    record->check = 0;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    *record = (struct record){
        .bytes_check = bytes_check(ring, frame->offset, frame->length),
        .ordinal = ring->next,
        .id = frame->id,
        .before = ring->newest_id,
        .mark = topic->mark,
        .emptied = ring->emptied,
        .offset = frame->offset,
        .time = ring->time,
        .length = frame->length,
        .splice = frame->splice,
        .end = frame->end,
        .name_length = (uint8_t)topic->name.length,
    };
    raise_to(&record->mark, topic->newest_id);
    memcpy(record->name, topic->name.data, topic->name.length);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    record->check =
        check_between(&record->bytes_check, record->name + record->name_length);
    ring->unsynced = true;
}

static uint32_t promise_check(const struct promise *promise)
{
    return check_between(&promise->name_length,
                         promise->name + promise->name_length);
}

/* Remembers a promise. Returns its slot, counted from 1; 0 if none is free. */
static uint32_t write_promise(struct ring *ring, struct slice name)
{
    struct history_file *file = ring->file;
    uint32_t room = promises_room(&file->header);
    struct promise *promise;

    if (file->promise_count >= room)
        return 0;
    do {
        file->promise_last = (file->promise_last + 1) % room;
        promise = &file->promises[file->promise_last];
    } while (promise->check);
    file->promise_count++;
    promise->name_length = (uint8_t)name.length;
    memcpy(promise->name, name.data, name.length);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    promise->check = promise_check(promise);
    ring->unsynced = true;
    return file->promise_last + 1;
}

static void clear_promise(struct ring *ring, uint32_t slot)
{
    ring->file->promises[slot - 1].check = 0;
    ring->file->promise_count--;
    ring->unsynced = true;
}

/* Raises the file's mark to `id`, and writes the state as it is now. */
static void write_mark(struct ring *ring, uint64_t id)
{
    struct file_state *state;

    if (!ring->file)
        return;
    state = &ring->file->state;
    raise_to(&state->mark, id);
    state->newest_id = ring->newest_id;
    state->unbegun = ring->unbegun;
    state->sequence++;
    state->check = check_between(&state->pid, state + 1);
    memcpy(ring->file->map + STATE_OFFSET * (1 + state->sequence % 2), state,
           sizeof(*state));
    ring->unsynced = true;
}

/* Whether it is printable up to a NUL, and all NULs from there on. */
static bool is_text(const char *text, size_t size)
{
    size_t length = strnlen(text, size);

    for (size_t i = 0; i < size; i++)
        if (i < length ? text[i] < ' ' || text[i] > '~' : text[i] != '\0')
            return false;
    return length < size;
}

/* Reads the newer of the two copies. False if neither is one that a server can
 * have written. */
static bool read_state(struct history_file *file, const char *pages)
{
    bool found = false;

    for (uint64_t copy = 0; copy < 2; copy++) {
        struct file_state state;

        memcpy(&state, pages + STATE_OFFSET * (1 + copy), sizeof(state));
        if (state.check != check_between(&state.pid, &state + 1) ||
            state.sequence % 2 != copy || state.sequence >= INT64_MAX ||
            state.mark > ID_MAX || state.newest_id > ID_MAX ||
            state.clean > 1 || state.unbegun > 1 ||
            !is_text(state.boot_id, BOOT_ID_MAX) ||
            (found && state.sequence < file->state.sequence))
            continue;
        file->state = state;
        found = true;
    }
    return found;
}

/* All that are mapped, for ring_is_mapped(). */
static struct history_file *mapped;

static int map_file(struct history_file *file, int protection)
{
    uint64_t length = file_length(&file->header);
    void *map = MAP_FAILED;

    if (length <= SIZE_MAX / 2)
        map = mmap(NULL, (size_t)length, protection, MAP_SHARED, file->fd, 0);
    else
        errno = EFBIG;
    if (map == MAP_FAILED)
        return -1;
    file->length = (size_t)length;
    file->map = map;
    file->records = (struct record *)(void *)(file->map + PAGE);
    file->promises = (void *)(file->map + promises_offset(&file->header));
    file->next_mapped = mapped;
    mapped = file;
    return 0;
}

static void close_file(struct history_file *file)
{
    struct history_file **link = &mapped;

    if (file->map) {
        while (*link != file)
            link = &(*link)->next_mapped;
        *link = file->next_mapped;
        munmap(file->map, file->length);
    }
    close(file->fd);
    free(file);
}

bool ring_is_mapped(const void *address)
{
    for (const struct history_file *file = mapped; file;
         file = file->next_mapped)
        if ((uintptr_t)address - (uintptr_t)file->map < file->length)
            return true;
    return false;
}

int ring_sync(struct ring *ring)
{
    if (!ring->file || !ring->unsynced)
        return 0;
    if (msync(ring->file->map, ring->file->length, MS_SYNC) < 0)
        return -1;
    ring->unsynced = false;
    return 0;
}

bool ring_deleted(const struct ring *ring)
{
    struct stat status;

    return ring->file && fstat(ring->file->fd, &status) == 0 &&
           status.st_nlink == 0;
}

/* In two steps: the state must not say on the disk that the end was good
 * before all else is there. */
int ring_end(struct ring *ring)
{
    if (!ring->file)
        return 0;
    ring->unsynced = true;
    if (ring_sync(ring) < 0)
        return -1;
    ring->file->state.clean = true;
    write_mark(ring, 0);
    return ring_sync(ring);
}

int64_t ring_time(const struct ring *ring, uint64_t ordinal)
{
    return ring->file ? record_at(ring, ordinal)->time : 0;
}

/* ---------------------------------------------------------------- recovery
 *
 * Finding the frames again that are in a history file. A look at all records
 * gives the newest ordinal. From there back, the first frame whose bytes are
 * whole becomes the newest. From that one back, frames are loaded as long as
 * each is whole and adjacent to the one after it, and the ring has room. Then
 * their entries are appended, from the oldest on.
 *
 * In what a crash has left, a check is right only by accident. But anyone can
 * compute one. A record is therefore whole only if a server can have written
 * it, so that a forged file gives wrong events at worst. Records are copied
 * before they are checked: ring_inspect() reads a file that a server may be
 * writing.
 */

/* Some 285,000 years in ms, for which localtime(3) still works. */
#define TIME_MAX (INT64_C(1) << 53)

/* Whether a server can have written that. */
static bool record_is_valid(const struct ring *ring,
                            const struct record *record)
{
    struct slice name = { record->name, record->name_length };

    /* ordinals and ids begin with 1 or later and grow, ids at least as fast. A
     * mark is above `before` in a file that was written anew, where `before` is
     * the frame before; the state's mark is then as great. */
    if (record->ordinal == 0 || record->ordinal > record->id ||
        record->id > ID_MAX || record->before >= record->id ||
        record->emptied > record->before ||
        (record->mark > record->before &&
         record->mark > ring->file->state.mark))
        return false;
    if (record->length < FRAME_HEAD + FRAME_TAIL ||
        record->length > FRAME_MAX || record->length > ring->size ||
        record->offset >= ring->size || record->time < -TIME_MAX ||
        record->time > TIME_MAX || record->end > 1 ||
        (record->splice && !splice_fits(record->splice, record->length)))
        return false;
    /* the main topic has no name, and no end */
    return name.length ? !topic_name_refused(name) : !record->end;
}

/* Copies the record of that ordinal. False if it is not there or not whole,
 * which says nothing of the frame's bytes. */
static bool read_record(const struct ring *ring, uint64_t ordinal,
                        struct record *record)
{
    const struct record *mapped_record = record_at(ring, ordinal);

    memcpy(record, mapped_record, offsetof(struct record, name));
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* it is not read once more */
    memcpy(record->name, mapped_record->name, record->name_length);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    return record->ordinal == ordinal && record_is_valid(ring, record) &&
           record->check == check_between(&record->bytes_check,
                                          record->name + record->name_length);
}

/* Whether the record in a slot says an ordinal in [from, to) that belongs in
 * that slot. */
static bool slot_is_in(const struct ring *ring, uint64_t slot, uint64_t from,
                       uint64_t to)
{
    uint64_t ordinal = ring->file->records[slot].ordinal;

    return ordinal >= from && ordinal < to && (ordinal & ring->mask) == slot;
}

/* Copies the record in a slot, if it is whole and its ordinal is in [from, to).
 * To look at the ordinal first saves the checks of most records. */
static bool read_slot(const struct ring *ring, uint64_t slot, uint64_t from,
                      uint64_t to, struct record *record)
{
    return slot_is_in(ring, slot, from, to) &&
           read_record(ring, ring->file->records[slot].ordinal, record);
}

/* Whether these bytes are in the ring's memory there. */
static bool memory_has(const struct ring *ring, size_t offset,
                       const char *bytes, size_t length)
{
    size_t first = length_to_wrap(ring, offset, length);

    return memcmp(ring->memory + offset, bytes, first) == 0 &&
           memcmp(ring->memory, bytes + first, length - first) == 0;
}

/* Whether the frame of a whole record is whole too. With another chunk size a
 * stream would lose its framing; with another id, or without a blank line at
 * the end, a subscriber its place. The start is written backwards, and not with
 * text_put(): that would be a tenth of the instructions of a recovery. */
static bool frame_is_whole(const struct ring *ring, const struct record *record)
{
    static const char tail[] = { '\n', '\n', '\r', '\n' };
    size_t tail_at = record->length - sizeof(tail), length;
    char start[FRAME_HEAD + sizeof("id: 9007199254740991\n")];
    char *at = start + sizeof(start), *end = at;
    uint64_t id = record->id;

    *--at = '\n';
    do
        *--at = (char)('0' + id % 10);
    while ((id /= 10) > 0);
    at -= FRAME_HEAD + sizeof("id: ") - 1;
    put_size(at, record->length - FRAME_HEAD - FRAME_TAIL);
    memcpy(at + 8, "\r\nid: ", 6);
    length = (size_t)(end - at);
    /* the id's line end may be the first of the two at the end */
    return record->bytes_check ==
               bytes_check(ring, record->offset, record->length) &&
           length <= tail_at + 1 &&
           memory_has(ring, record->offset, at, length) &&
           memory_has(ring, offset_after(ring, record->offset, tail_at), tail,
                      sizeof(tail));
}

/* From that ordinal back to a record whose bytes are whole too; its ordinal is
 * 0 if there is none. It stops where the bytes passed fill the memory: what is
 * older has been overwritten. */
static void find_newest_whole(const struct ring *ring, uint64_t ordinal,
                              struct record *record)
{
    uint64_t slots = ring->mask + 1;
    size_t bytes = 0;

    for (; ordinal && slots > 0 && bytes < ring->size; ordinal--, slots--) {
        bytes += FRAME_HEAD + FRAME_TAIL;
        if (!read_record(ring, ordinal, record))
            continue;
        if (frame_is_whole(ring, record))
            return;
        bytes += record->length;
    }
    record->ordinal = 0;
}

/* How many whole records there are with an ordinal in [from, to). */
static uint64_t count_records(const struct ring *ring, uint64_t from,
                              uint64_t to)
{
    struct record record;
    uint64_t count = 0;

    for (uint64_t slot = 0; slot <= ring->mask; slot++)
        count += read_slot(ring, slot, from, to, &record);
    return count;
}

/* Makes the entries, for append_entry() to complete, of that frame and of those
 * before it that are whole and adjacent; *oldest becomes the last one. Returns
 * 1 if the frame before that is not whole, 0 if there is none or no room. */
static int load_back(struct ring *ring, struct record *oldest)
{
    struct record before;
    size_t used = 0;

    for (uint64_t count = 1;; count++) {
        struct slice name = { oldest->name, oldest->name_length };
        struct topic *topic = get_topic(ring, name);

        if (!topic)
            return -1;
        topic->mark = oldest->mark; /* that of its oldest one stays */
        raise_to(&topic->mark, ring->file->state.mark);
        *frame_at(ring, oldest->ordinal) = (struct frame){
            .id = oldest->id,
            .offset = (size_t)oldest->offset,
            .topic = topic,
            .length = oldest->length,
            .splice = oldest->splice,
            .end = oldest->end,
        };
        used += oldest->length;
        if (oldest->ordinal == 1 || count == ring->limit)
            return 0;
        if (!read_record(ring, oldest->ordinal - 1, &before))
            return 1;
        if (before.length > ring->size - used)
            return 0;
        if (before.id >= oldest->id ||
            offset_after(ring, before.offset, before.length) !=
                oldest->offset ||
            !frame_is_whole(ring, &before))
            return 1;
        *oldest = before;
    }
}

static int recover_frames(struct ring *ring, const struct record *newest,
                          struct recovery *recovery)
{
    struct record oldest = *newest;
    int broken = load_back(ring, &oldest);
    uint64_t next = newest->ordinal + 1;

    if (broken < 0)
        return -1;
    ring->oldest = ring->next = oldest.ordinal;
    while (ring->next < next)
        append_entry(ring);
    ring->emptied = broken ? oldest.before : newest->emptied;
    raise_to(&ring->mark, ring->emptied);
    recovery->count = next - oldest.ordinal;
    recovery->first_id = oldest.id;
    recovery->last_id = newest->id;
    if (broken)
        recovery->dropped += count_records(
            ring, next > ring->limit ? next - ring->limit : 0, oldest.ordinal);
    return 0;
}

/* Recovers the newest frames. Ids go on above all that are known to have been
 * given; but after a crash with ids from outside only above those that are
 * recovered, because the publisher may send again what was lost. */
static int recover(struct ring *ring, struct recovery *recovery)
{
    const struct history_file *file = ring->file;
    struct record newest, record;
    uint64_t newest_id = 0, ordinal = 0, next;

    for (uint64_t slot = 0; slot <= ring->mask; slot++)
        if (read_slot(ring, slot, ordinal + 1, UINT64_MAX, &record)) {
            ordinal = record.ordinal;
            newest_id = record.id;
        }
    find_newest_whole(ring, ordinal, &newest);
    next = newest.ordinal + 1;
    ring->mark = ring->newest_id = file->state.mark;
    ring->unbegun = file->state.unbegun;
    if (newest.ordinal != ordinal)
        recovery->dropped = count_records(ring, next, UINT64_MAX);
    /* if the next slot has a check, but not that of a whole record that is
     * older, a frame was appended there and has been lost */
    recovery->crashed = newest.ordinal != ordinal ||
                        (record_at(ring, next)->check &&
                         !read_slot(ring, next & ring->mask, 0, next, &record));
    if (newest.ordinal && recover_frames(ring, &newest, recovery) < 0)
        return -1;
    raise_to(&ring->newest_id, file->state.mark);
    if (recovery->crashed && file->header.kept_ids)
        return 0;
    raise_to(&ring->newest_id, file->state.newest_id);
    raise_to(&ring->newest_id, newest_id);
    return 0;
}

/* -------------------------------------------------- opening a history file
 *
 * Finding, locking and checking a file that exists; ring_inspect() looks at one
 * without a lock. A refusal is one line that says what is wrong and what to do.
 *
 * The path is resolved once. From then on the file is a name in a folder that
 * is held open, so that nobody can put another folder in between. What somebody
 * else could change is refused: a symbolic link, a file of another user, one
 * that others can write, and one that has a second name.
 *
 * flock(2) keeps two servers from using one file. It locks the file and not its
 * name, so the name is looked up again after locking: another server may have
 * renamed a new file over it.
 */

struct opening {
    const struct history_wanted *wanted;
    struct recovery *recovery;
    char *error; /* ERROR_SIZE bytes, the caller's */
    bool read_only;
    int folder;
    const char *name;    /* in `path` */
    char path[PATH_MAX]; /* without symbolic links, if the file exists */
    char new_name[NAME_MAX + 1]; /* where a file is made */
};

enum {
    OPEN_FLAGS = O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC,
};

/* Says what could not be done to the file, and errno. */
static int fail_errno(const struct opening *opening, const char *verb)
{
    return fail_with(opening->error, "cannot %s '%s': %s", verb, opening->path,
                     strerror(errno));
}

/* The messages have the path as it was given. */
static int open_folder(struct opening *opening)
{
    const char *given = opening->wanted->path, *slash;
    char *path = opening->path, folder[PATH_MAX + 1];
    struct stat status;

    if (!realpath(given, path)) {
        if (errno != ENOENT || strlen(given) >= PATH_MAX)
            return fail_with(opening->error, "cannot open '%s': %s", given,
                             strerror(errno));
        if (lstat(given, &status) == 0 && S_ISLNK(status.st_mode))
            return fail_with(opening->error,
                             "'%s' is a symbolic link to a file that does not "
                             "exist: name that file, or remove the link",
                             given);
        strcpy(path, given);
    }
    slash = strrchr(path, '/');
    opening->name = slash ? slash + 1 : path;
    snprintf(folder, sizeof(folder), "%.*s.", (int)(opening->name - path),
             path);
    opening->folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (opening->folder < 0)
        return fail_with(opening->error, "cannot open the folder of '%s': %s",
                         given, strerror(errno));
    if (*opening->name)
        return 0;
    close(opening->folder);
    return fail_with(opening->error, "'%s' names no file", given);
}

static int refuse_damaged(const struct opening *opening)
{
    return fail_with(opening->error,
                     "the header of '%s' is damaged: move the file away to "
                     "begin a new history",
                     opening->path);
}

static int refuse_foreign(const struct opening *opening)
{
    return fail_with(opening->error,
                     "'%s' is no history file of ssed: name another one",
                     opening->path);
}

static int check_header(const struct opening *opening,
                        const struct file_header *header)
{
    if (header->magic != FILE_MAGIC)
        return refuse_foreign(opening);
    if (header->version != FILE_VERSION && header->version != 2)
        return fail_with(opening->error,
                         "'%s' is a history file of version %u, and this ssed "
                         "knows version %d: use the one that wrote it, or name "
                         "another file",
                         opening->path, header->version, FILE_VERSION);
    if (header->check != check_between(&header->limit, header + 1) ||
        header->limit < 1 || header->limit > HISTORY_EVENTS_MAX ||
        header->size < 1 || header->size > HISTORY_BYTES_MAX ||
        header->record_size != sizeof(struct record) || header->kept_ids > 1)
        return refuse_damaged(opening);
    if (!opening->read_only && header->kept_ids != opening->wanted->kept_ids)
        return fail_with(opening->error,
                         "the ids in '%s' are %s --ids keep, or name another "
                         "file",
                         opening->path,
                         header->kept_ids ? "its publishers': use"
                                          : "its own: leave out");
    return 0;
}

/* Reads the header and maps the file. */
static int load_file(const struct opening *opening, struct history_file *file)
{
    int protection = opening->read_only ? PROT_READ : PROT_READ | PROT_WRITE;
    struct stat status;
    ssize_t n;

    if (fstat(file->fd, &status) < 0)
        return fail_errno(opening, "read");
    if (!S_ISREG(status.st_mode))
        return refuse_foreign(opening);
    n = pread(file->fd, &file->header, sizeof(file->header), 0);
    if (n < 0)
        return fail_errno(opening, "read");
    if (n < (ssize_t)sizeof(file->header))
        return refuse_foreign(opening);
    if (check_header(opening, &file->header) < 0)
        return -1;
    /* a file that has been cut would give a SIGBUS where it is mapped */
    if ((uint64_t)status.st_size != file_length(&file->header))
        return fail_with(opening->error,
                         "'%s' has %jd bytes, and its header says %" PRIu64
                         ": it is damaged; move it away to begin a new history",
                         opening->path, (intmax_t)status.st_size,
                         file_length(&file->header));
    if (map_file(file, protection) < 0)
        return fail_errno(opening, "map");
    return read_state(file, file->map) ? 0 : refuse_damaged(opening);
}

/* Owns the descriptor from now on, also if it fails. */
static struct history_file *new_file(const struct opening *opening, int fd)
{
    struct history_file *file = calloc(1, sizeof(*file));

    if (file) {
        file->fd = fd;
    } else {
        close(fd);
        fail_with(opening->error, "no memory");
    }
    return file;
}

/* The pid that the file says; 0 if it says none. */
static uint32_t read_pid(struct history_file *file)
{
    char pages[PAGE];

    return pread(file->fd, pages, PAGE, 0) == PAGE && read_state(file, pages)
               ? file->state.pid
               : 0;
}

/* False if another process has the lock. A file system without locks has to do
 * without. */
static bool try_lock(int fd)
{
    return flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
}

/* Whether the name still leads to the file that was opened by it. */
static bool has_name(int fd, int folder, const char *name)
{
    struct stat opened, named;

    return fstat(fd, &opened) == 0 &&
           fstatat(folder, name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
           named.st_ino == opened.st_ino && named.st_dev == opened.st_dev;
}

/* Locks the file, and refuses one that others can change: it is not the
 * server's own history. Returns 1 if the name leads to another file by now. */
static int lock_file(const struct opening *opening, struct history_file *file)
{
    struct stat status;

    if (fstat(file->fd, &status) < 0)
        return fail_errno(opening, "read");
    if (!S_ISREG(status.st_mode))
        return refuse_foreign(opening);
    if (!try_lock(file->fd))
        return fail_with(opening->error,
                         "another ssed has '%s', its process is %u: end that "
                         "one first, or name another file",
                         opening->path, read_pid(file));
    if (!has_name(file->fd, opening->folder, opening->name))
        return 1;
    if (status.st_uid != geteuid())
        return fail_with(opening->error,
                         "'%s' belongs to user %u, and this ssed runs as user "
                         "%u: chown the file, or name another one",
                         opening->path, status.st_uid, geteuid());
    if (status.st_mode & (S_IWGRP | S_IWOTH))
        return fail_with(opening->error,
                         "'%s' has mode %03o, so others than its owner can "
                         "write it: chmod 600 it, or name another file",
                         opening->path, status.st_mode & 07777);
    if (status.st_nlink > 1)
        return fail_with(opening->error,
                         "'%s' has %ju names: remove the others, which can be "
                         "found with find -inum %ju, or name another file",
                         opening->path, (uintmax_t)status.st_nlink,
                         (uintmax_t)status.st_ino);
    return 0;
}

/* Opens and locks a file that exists. Returns 1 if there is none. */
static int open_file(const struct opening *opening,
                     struct history_file **result)
{
    struct history_file *file;
    int outcome;

    do {
        int fd = openat(opening->folder, opening->name, O_RDWR | OPEN_FLAGS);

        if (fd < 0 && errno == ENOENT)
            return 1;
        if (fd < 0)
            return fail_errno(opening, "open");
        file = new_file(opening, fd);
        if (!file)
            return -1;
        outcome = lock_file(opening, file);
        if (outcome == 0)
            outcome = load_file(opening, file);
        if (outcome == 0)
            *result = file;
        else
            close_file(file);
    } while (outcome == 1);
    return outcome;
}

/* Makes a ring whose memory is in the file, and owns the file, also if it
 * fails. */
static int begin_file_ring(const struct opening *opening, struct ring *ring,
                           struct history_file *file)
{
    const struct file_header *header = &file->header;

    if (begin_ring(ring, file, file->map + memory_offset(header->limit),
                   header->limit, (size_t)header->size, 0,
                   opening->wanted->splice_text) < 0)
        return fail_with(opening->error, "no memory for the index: --history");
    ring->kept_ids = header->kept_ids;
    return 0;
}

/* Makes the ring of a file that has been loaded, with the frames in it. */
static int load_ring(const struct opening *opening, struct ring *ring,
                     struct history_file *file)
{
    if (begin_file_ring(opening, ring, file) < 0)
        return -1;
    if (recover(ring, opening->recovery) < 0)
        return fail_with(opening->error, "no memory for the topics in '%s'",
                         opening->path);
    return 0;
}

int ring_inspect(struct ring *ring, const struct history_wanted *wanted,
                 struct recovery *recovery, uint32_t *pid,
                 char error[ERROR_SIZE])
{
    struct opening opening = { .wanted = wanted,
                               .recovery = recovery,
                               .error = error,
                               .read_only = true };
    int fd = open(wanted->path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    struct history_file *file;

    init_crc();
    *ring = (struct ring){ 0 };
    *recovery = (struct recovery){ 0 };
    snprintf(opening.path, sizeof(opening.path), "%s", wanted->path);
    if (fd < 0)
        return fail_errno(&opening, "open");
    file = new_file(&opening, fd);
    if (!file)
        return -1;
    if (load_file(&opening, file) < 0) {
        close_file(file);
        return -1;
    }
    /* a lock for a moment tells whether a server has one */
    *pid = flock(fd, LOCK_SH | LOCK_NB) < 0 ? file->state.pid : 0;
    flock(fd, LOCK_UN);
    if (load_ring(&opening, ring, file) == 0)
        return 0;
    ring_release(ring);
    return -1;
}

/* --------------------------------------------------- making a history file
 *
 * A new file, or one of another size, is completed under the new name,
 * NAME.new, and then renamed, so that NAME leads to a whole file at every
 * moment. All its blocks are allocated first: a full disk is then an error
 * here, and not a SIGBUS later.
 *
 * All servers that are about to make this file use the same new name, and one
 * that was killed may have left a file there. A file that is not locked is
 * stale, and is removed. A server may remove one that has just been created and
 * is not locked yet, so each server looks, once it has its lock, whether its
 * file still has the name.
 *
 * ring_open() uses all of this, and begins the server's run: from then on the
 * file says that the server has not ended well, until ring_end().
 */

/* Removes what a server that was killed has left at the new name, or what
 * somebody else has put there. Fails with EWOULDBLOCK if it is locked: another
 * server is making it. */
static int unlink_stale(const struct opening *opening)
{
    int fd = openat(opening->folder, opening->new_name, O_RDWR | OPEN_FLAGS);
    int outcome = -1, why;

    if (fd < 0 && errno == ELOOP) /* a symbolic link */
        return unlinkat(opening->folder, opening->new_name, 0);
    if (fd < 0)
        return errno == ENOENT ? 0 : -1;
    if (try_lock(fd))
        outcome = has_name(fd, opening->folder, opening->new_name)
                      ? unlinkat(opening->folder, opening->new_name, 0)
                      : 0;
    why = errno;
    close(fd);
    errno = why;
    return outcome;
}

/* Makes an empty file at the new name, and locks it. */
static int create_new(struct opening *opening)
{
    if (snprintf(opening->new_name, sizeof(opening->new_name), "%s.new",
                 opening->name) >= (int)sizeof(opening->new_name))
        return fail_with(opening->error, "the name of '%.100s...' is too long",
                         opening->path);
    for (int tries = 10; tries > 0; tries--) {
        int fd = openat(opening->folder, opening->new_name,
                        O_RDWR | O_CREAT | O_EXCL | OPEN_FLAGS, 0600);

        if (fd >= 0 && try_lock(fd) &&
            has_name(fd, opening->folder, opening->new_name))
            return fd;
        if (fd >= 0) {
            close(fd); /* another server took it for a stale one */
            continue;
        }
        if (errno != EEXIST)
            return fail_with(opening->error, "cannot make '%s.new': %s",
                             opening->path, strerror(errno));
        if (unlink_stale(opening) == 0)
            continue;
        if (errno == EWOULDBLOCK)
            break;
        return fail_with(opening->error, "'%s.new' is in the way: %s",
                         opening->path, strerror(errno));
    }
    return fail_with(opening->error, "another ssed is making '%s.new'",
                     opening->path);
}

/* Makes a file of the wanted size at the new name, with all its blocks, and a
 * ring in it. */
static int make_ring(struct opening *opening, struct ring *ring)
{
    struct file_header header = {
        .magic = FILE_MAGIC,
        .version = FILE_VERSION,
        .limit = opening->wanted->limit,
        .size = opening->wanted->size,
        .record_size = sizeof(struct record),
        .kept_ids = opening->wanted->kept_ids,
    };
    struct history_file *file;
    int fd, why;

    fd = create_new(opening);
    file = fd < 0 ? NULL : new_file(opening, fd);
    if (!file)
        return -1;
    header.check = check_between(&header.limit, &header + 1);
    file->header = header;
    why = posix_fallocate(fd, 0, (off_t)file_length(&header));
    if (why == 0 && map_file(file, PROT_READ | PROT_WRITE) < 0)
        why = errno;
    if (file->map) {
        memcpy(file->map, &header, sizeof(header));
        return begin_file_ring(opening, ring, file);
    }
    unlinkat(opening->folder, opening->new_name, 0);
    fail_with(opening->error,
              "no room for '%s.new', which needs %" PRIu64 " bytes: %s "
              "(--history, --history-bytes)",
              opening->path, file_length(&header), strerror(why));
    close_file(file);
    return -1;
}

/* Without `replace` a file that another server has made meanwhile stays, unless
 * the file system cannot tell. */
static int rename_new(const struct opening *opening, bool replace)
{
    const int no_replace = 1; /* RENAME_NOREPLACE, which not every libc has */

    if (!replace && syscall(SYS_renameat2, opening->folder, opening->new_name,
                            opening->folder, opening->name, no_replace) == 0)
        return 0;
    if (!replace && errno != EINVAL)
        return -1;
    return renameat(opening->folder, opening->new_name, opening->folder,
                    opening->name);
}

/* Gives the file that was made its name. The folder is synced, or else the name
 * could be lost when the machine goes down. */
static int name_file(const struct opening *opening, struct history_file *file,
                     bool replace)
{
    if (msync(file->map, file->length, MS_SYNC) == 0 &&
        rename_new(opening, replace) == 0 && fsync(opening->folder) == 0)
        return 0;
    fail_errno(opening, "make");
    unlinkat(opening->folder, opening->new_name, 0);
    return -1;
}

static int make_history(struct opening *opening, struct ring *ring)
{
    if (make_ring(opening, ring) < 0)
        return -1;
    ring->mark = ring->newest_id = opening->wanted->newest_id;
    ring->unbegun = opening->wanted->kept_ids;
    ring->file->state.clean = true;
    write_mark(ring, ring->mark);
    return name_file(opening, ring->file, false);
}

/* The ordinal of the oldest frame that still fits into the wanted size; that of
 * the next frame if none does. */
static uint64_t first_that_fits(const struct ring *old,
                                const struct history_wanted *wanted)
{
    uint64_t first = old->next;
    size_t used = 0;

    while (first > old->oldest && old->next - first < wanted->limit &&
           frame_at(old, first - 1)->length <= wanted->size - used)
        used += frame_at(old, --first)->length;
    return first;
}

/* Appends a copy. The topic's first one brings what it has lost until now: its
 * mark, and the frame before, which is not taken over. */
static int copy_frame(struct ring *ring, const struct ring *old,
                      uint64_t ordinal)
{
    const struct frame *frame = frame_at(old, ordinal);
    size_t first = length_to_wrap(old, frame->offset, frame->length);
    struct topic *topic = topic_hold(ring, frame->topic->name);
    char *bytes = malloc(frame->length);

    if (!topic || !bytes) {
        free(bytes);
        return -1;
    }
    if (topic->count == 0)
        topic->mark = frame->topic->mark;
    if (topic->count == 0 && frame->previous)
        raise_to(&topic->mark, frame_at(old, frame->previous)->id);
    memcpy(bytes, old->memory + frame->offset, first);
    memcpy(bytes + first, old->memory, frame->length - first);
    ring->time = ring_time(old, ordinal);
    ring_append(ring, topic, frame->id, (struct slice){ bytes, frame->length },
                frame->splice, frame->end);
    remove_reference(ring, topic); /* no topic_drop(): it has a frame */
    free(bytes);
    return 0;
}

/* As many as there is room for. */
static void copy_promises(struct history_file *file,
                          const struct history_file *old)
{
    uint32_t room = promises_room(&file->header), taken = 0;

    for (uint32_t i = 0; i < promises_room(&old->header) && taken < room; i++)
        if (old->promises[i].check)
            file->promises[taken++] = old->promises[i];
}

/* Copies the frames from `first` on, and what the old ring knows beside them.
 * The frames before `first` count as evicted. */
static int copy_history(struct ring *ring, const struct ring *old,
                        uint64_t first)
{
    ring->file->state = old->file->state;
    ring->unbegun = old->unbegun;
    ring->mark = old->mark;
    ring->emptied =
        first > old->oldest ? frame_at(old, first - 1)->id : old->emptied;
    raise_to(&ring->mark, ring->emptied);
    if (first < old->next)
        ring->newest_id = frame_at(old, first)->id - 1;
    for (uint64_t ordinal = first; ordinal < old->next; ordinal++)
        if (copy_frame(ring, old, ordinal) < 0)
            return -1;
    ring->newest_id = old->newest_id;
    copy_promises(ring->file, old->file);
    /* without a frame there is no record that has the mark */
    write_mark(ring, first < old->next ? 0 : ring->mark);
    return 0;
}

/* Replaces the ring by one of the wanted size with the newest of its frames. */
static int resize(struct opening *opening, struct ring *ring)
{
    uint64_t first = first_that_fits(ring, opening->wanted);
    struct ring resized = { 0 };
    int outcome = make_ring(opening, &resized);

    if (outcome == 0 && copy_history(&resized, ring, first) < 0) {
        unlinkat(opening->folder, opening->new_name, 0);
        outcome = fail_with(opening->error, "no memory to write '%s' anew",
                            opening->path);
    }
    if (outcome == 0)
        outcome = name_file(opening, resized.file, true);
    ring_release(outcome == 0 ? ring : &resized);
    if (outcome == 0)
        *ring = resized;
    return outcome;
}

/* Has the topics finished to which an end was promised when the server was
 * killed. After a good end the promises were taken back. False without memory.
 */
static bool recover_promises(struct ring *ring, bool killed)
{
    struct history_file *file = ring->file;

    for (uint32_t i = 0; i < promises_room(&file->header); i++) {
        struct promise *promise = &file->promises[i];
        struct slice name = { promise->name, promise->name_length };
        struct topic *topic;

        if (promise->check == 0)
            continue;
        if (!killed || ring->kept_ids || topic_name_refused(name) ||
            promise->check != promise_check(promise)) {
            promise->check = 0;
            continue;
        }
        topic = topic_hold(ring, name);
        if (!topic)
            return false;
        if (topic->promise || topic_finished(ring, topic)) {
            promise->check = 0;
        } else {
            file->promise_count++;
            topic->promise = i + 1;
            topic->broken = true;
            queue_topic(ring, TOPICS_BROKEN, topic);
        }
        topic_drop(ring, topic);
    }
    return true;
}

/* Begins the server's run. What did not end well before another boot of the
 * machine may lack events that were given ids. That the server runs has to be
 * on the disk before anything is published. */
static int begin_run(struct ring *ring, const struct history_wanted *wanted,
                     struct recovery *recovery)
{
    struct file_state *state = &ring->file->state;

    if (!recover_promises(ring, !state->clean)) {
        errno = ENOMEM;
        return -1;
    }
    if (!state->clean &&
        (!*wanted->boot_id || strcmp(state->boot_id, wanted->boot_id) != 0))
        recovery->crashed = true;
    /* what was not recovered must not be taken for something newer later */
    if (recovery->dropped || recovery->crashed)
        for (uint64_t slot = 0; slot <= ring->mask; slot++)
            if (!slot_is_in(ring, slot, ring->oldest, ring->next))
                ring->file->records[slot].check = 0;
    state->clean = false;
    state->pid = (uint32_t)getpid();
    memset(state->boot_id, 0, BOOT_ID_MAX);
    snprintf(state->boot_id, BOOT_ID_MAX, "%s", wanted->boot_id);
    if (recovery->crashed && wanted->kept_ids)
        ring->unbegun = true;
    else if (recovery->crashed)
        ring_begin_after(ring, wanted->clock_id > ring->newest_id
                                   ? wanted->clock_id
                                   : ring->newest_id);
    write_mark(ring, 0);
    return ring_sync(ring);
}

int ring_open(struct ring *ring, const struct history_wanted *wanted,
              struct recovery *recovery, char error[ERROR_SIZE])
{
    struct opening opening = { .wanted = wanted,
                               .recovery = recovery,
                               .error = error };
    struct history_file *file = NULL;
    int outcome;

    init_crc();
    *ring = (struct ring){ 0 };
    *recovery = (struct recovery){ 0 };
    if (open_folder(&opening) < 0)
        return -1;
    outcome = open_file(&opening, &file);
    recovery->made = outcome == 1;
    if (outcome == 1)
        outcome = make_history(&opening, ring);
    else if (file)
        outcome = load_ring(&opening, ring, file);
    if (outcome == 0 &&
        (ring->limit != wanted->limit || ring->size != wanted->size ||
         ring->file->header.version != FILE_VERSION)) {
        recovery->resized = true;
        outcome = resize(&opening, ring);
    }
    if (outcome == 0 && begin_run(ring, wanted, recovery) < 0)
        outcome = fail_errno(&opening, "write");
    close(opening.folder);
    if (outcome != 0)
        ring_release(ring);
    return outcome;
}
