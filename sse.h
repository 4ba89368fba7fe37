/*
 * ssed: broadcasts Server-Sent Events to many subscribers, and lets none of
 * them miss an event unknowingly.
 *
 *  socket --read--> exchange.in --http_parse()--> struct request
 *                    bounded       pure, slices         |
 *     +---------------------------+------------- handlers.request
 *     |                           |                     |
 *  GET a page               POST: encode once     GET: subscribe
 *  memory or sendfile       ring_append()         reader_start()
 *                           copies once            = places
 *
 *  ring: [ oldest ....frames....frames....frames.... newest ]   ordinals
 *                 ^ places of A ^ of B           ^ of C: caught up
 *                 +-- ring_gather() -> iovecs -> send(2); ring_advance()
 *
 * An event is encoded once, when it is published, into the bytes that go on
 * the wire (a frame), and copied once, into the ring. A subscriber is a
 * socket, its place in each of its topics, and how much of the next frame it
 * has been sent. Live delivery, replay and catching up after a full socket are
 * one act: send from the places to the end. No subscriber has a queue of its
 * own. A publisher never waits for a slow subscriber, whose socket is full:
 * when its next frame has been evicted, it is overrun, and is cut off; it comes
 * back with its Last-Event-ID and is told of the gap.
 *
 * Reading order: this file, ring.c (events and their history), http.c
 * (connections and what is said on them), sse.c (what the server does). sse.c
 * calls the other two; neither of them calls the other, nor sse.c, but through
 * struct handlers. What is called stands above its caller, but the sections of
 * sse.c follow the path of a request. Each part of this file is one of theirs:
 * a structure stands above the functions that take it.
 */
#ifndef SSE_H
#define SSE_H

#include <netinet/in.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

/* Bytes that belong to somebody else; not NUL-terminated. */
struct slice {
    const char *data;
    size_t length;
};

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

/* A slice of a string literal. */
#define SLICE(literal) ((struct slice){ (literal), sizeof(literal) - 1 })

static inline struct slice slice_of(const char *text)
{
    return (struct slice){ text, strlen(text) };
}

/* What is left without the first `begin` bytes. */
static inline struct slice slice_from(struct slice slice, size_t begin)
{
    return (struct slice){ slice.data + begin, slice.length - begin };
}

/* Whether the bytes are those of `text`. */
static inline bool slice_is(struct slice slice, const char *text)
{
    return strlen(text) == slice.length &&
           memcmp(slice.data, text, slice.length) == 0;
}

/* The value of decimal digits and nothing else: no sign, no leading zero.
 * False if it is anything else or over `maximum`. */
static inline bool slice_number(struct slice slice, uint64_t maximum,
                                uint64_t *number)
{
    uint64_t value = 0;

    if (slice.length == 0 || (slice.length > 1 && slice.data[0] == '0'))
        return false;
    for (size_t i = 0; i < slice.length; i++) {
        unsigned digit = (unsigned char)slice.data[i] - '0';

        if (digit > 9 || digit > maximum || value > (maximum - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    *number = value;
    return true;
}

/* How many bytes of a UTF-8 sequence a text that is not empty starts with, 1 at
 * least; *whole is how many a complete one would have. The bounds of the second
 * byte leave out overlong forms, surrogates and all over U+10FFFF. */
static inline size_t utf8_prefix(struct slice text, size_t *whole)
{
    const unsigned char *s = (const unsigned char *)text.data;
    unsigned char low = s[0] == 0xE0 ? 0xA0 : s[0] == 0xF0 ? 0x90 : 0x80;
    unsigned char high = s[0] == 0xED ? 0x9F : s[0] == 0xF4 ? 0x8F : 0xBF;
    size_t length = 2;

    *whole = s[0] < 0x80 ? 1 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    if (s[0] < 0xC2 || s[0] > 0xF4 || text.length < 2 || s[1] < low ||
        s[1] > high)
        return 1;
    while (length < *whole && length < text.length &&
           (s[length] & 0xC0) == 0x80)
        length++;
    return length;
}

/* How many bytes the UTF-8 sequence (RFC 3629) at the start of a text that is
 * not empty has; 0 if there is none. */
static inline size_t utf8_sequence(struct slice text)
{
    size_t whole, length = utf8_prefix(text, &whole);

    return length == whole ? length : 0;
}

#define NEVER UINT64_MAX /* a time, in ms */

/* For functions that can fail for a reason that people are told: one line, in
 * a buffer of the caller's. fail_with() writes it and returns -1. */
enum {
    ERROR_SIZE = 512
};

__attribute__((format(printf, 2, 3))) static inline int
fail_with(char error[ERROR_SIZE], const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(error, ERROR_SIZE, format, arguments);
    va_end(arguments);
    return -1;
}

/* ------------------------------------------------------------------ ring.c
 *
 * Events and their history. First how an event is spelled and read; then the
 * ring that holds events, and what a reader gets of it. Nothing here knows of
 * sockets, of HTTP, or of the time of day.
 */

/* What a reader gets of a frame, or of a block of the server's own. */
enum form {
    FORM_PLAIN = 0,   /* the event stream's bytes alone: HTTP/1.0 */
    FORM_CHUNKED = 1, /* with the chunk envelope */
    FORM_SPLICED = 2, /* with the splice text, where there is a splice point */
};

/* Text being put together, in a buffer that is known to be large enough. */
struct text {
    char *bytes; /* not owned */
    size_t room;
    size_t length;
};

static inline struct slice text_slice(const struct text *text)
{
    return (struct slice){ text->bytes, text->length };
}

/* Each adds to the text: what printf(3) makes; a value as JSON spells it
 * between quotes (RFC 8259, section 7), at most six bytes for one. What is no
 * UTF-8 becomes U+FFFD. */
__attribute__((format(printf, 2, 3))) void text_put(struct text *text,
                                                    const char *format, ...);
void text_put_json(struct text *text, struct slice value);

/* Whether all of the text is UTF-8 (RFC 3629). */
bool utf8_valid(struct slice text);

/* How many bytes at the start of a text that is not UTF-8 there one U+FFFD
 * stands for: the Encoding standard's UTF-8 decoder, which is the practice of
 * Unicode 15.0, section 3.9 ("maximal subparts"). */
size_t utf8_malformed(struct slice text);

/* The fields that a block of an event stream begins with; what is NULL or
 * empty is left out. */
struct block {
    const uint64_t *retry; /* ms */
    const uint64_t *id;
    struct slice event;
};

/*
 * Adds a block of an event stream (WHATWG HTML, section 9.2.5) in a form:
 * text_begin_block(), then "data:" lines, then text_end_block() with what the
 * first has returned. text_put_block() does all of it, with one line of data
 * as printf(3) makes it, or without data if `format` is NULL.
 */
size_t text_begin_block(struct text *text, unsigned form,
                        const struct block *block);
void text_end_block(struct text *text, unsigned form, size_t begin);
__attribute__((format(printf, 4, 5))) void
text_put_block(struct text *text, unsigned form, const struct block *block,
               const char *format, ...);

/* An event as it is published. */
struct event {
    struct slice name;
    struct slice retry; /* digits */
    struct slice data;  /* its lines end in LF, CR LF or CR */
    uint64_t id;        /* 0: the next one */
    int64_t time;       /* of a message, ms since 1970; 0: now */
    bool finishes;      /* it is the end of its topic, and has nothing else */
    bool incomplete;    /* an end that the publisher did not come to */
};

/*
 * Adds the frame of an event with that id. Each byte of data and name becomes
 * FRAME_FACTOR bytes at the most ("data: " before each line, U+FFFD for a byte
 * that is no UTF-8), and all else is at most FRAME_REST.
 */
void text_put_event(struct text *text, uint64_t id, const struct event *event);

/*
 * An event stream that is being read (WHATWG HTML, section 9.2.6,
 * "Interpreting an event stream"), in pieces of any length. It buffers an
 * event's values and no lines: comments and unknown fields may be of any
 * length. The values are as they came; what is no UTF-8 is for the caller to
 * replace.
 *
 * An id is its own block's and does not last beyond it.
 */
enum {
    TOPIC_NAME_MAX = 255,
    EVENT_NAME_MAX = 255,
    EVENT_NUMBER_MAX = 16, /* digits of an id or a retry */
    EVENT_FIELD_NAME_MAX = 5,
};

struct event_parser {
    enum {
        EVENT_NAME, /* of a field, or at the start of a line */
        EVENT_SPACE,
        EVENT_VALUE,
        EVENT_AFTER_CR,
    } state;
    enum event_field {
        FIELD_OTHER,
        FIELD_DATA,
        FIELD_EVENT,
        FIELD_ID,
        FIELD_RETRY,
        FIELD_TOPIC, /* not of the standard: for standard input */
    } field;
    bool at_start; /* of the stream: a byte order mark may come */
    bool complete; /* the values are those of an event */
    bool has_data;
    bool has_id;
    bool has_topic;
    bool too_long; /* the data has more than `room` bytes */
    bool candidate_has_nul;
    char *data;         /* not owned */
    char *topic;        /* likewise: room for a name, and one byte; or NULL,
                           and the field is ignored */
    size_t room;        /* of it */
    size_t length;      /* of the data; its lines end in LF, but the last */
    size_t name_length; /* over EVENT_NAME_MAX: it is longer than that */
    size_t id_length;   /* over EVENT_NUMBER_MAX: likewise */
    size_t retry_length;
    size_t topic_length; /* over TOPIC_NAME_MAX: likewise */
    size_t candidate_length;
    size_t field_length;
    char name[EVENT_NAME_MAX + 1];
    char id[EVENT_NUMBER_MAX + 1];
    char retry[EVENT_NUMBER_MAX + 1]; /* digits alone */
    char candidate[EVENT_NUMBER_MAX + 1];
    char field_name[EVENT_FIELD_NAME_MAX + 1];
};

/* Begins a stream. `data` has `room` bytes and is the caller's. */
void event_parser_init(struct event_parser *parser, char *data, size_t room);

/*
 * Reads until an event is complete or the bytes are used up; returns how many
 * it took. With parser->complete the values hold until the next call, which
 * begins the next event. What comes after the last blank line is no event.
 */
size_t event_parser_read(struct event_parser *parser, struct slice data);

/*
 * The history: frames in a byte ring, and an index with an entry for each.
 *
 * The bytes. A frame lies in the ring with its chunk envelope (RFC 9112,
 * section 7.1) around it, so that adjacent frames are one contiguous range
 * for an HTTP/1.1 subscriber:
 *
 *   "0000004e\r\n"  "id: 7\ndata: ...\n\n"  "\r\n"
 *    FRAME_HEAD      the event stream's own   FRAME_TAIL
 *
 * A frame may begin near the end of the memory and go on at its start; that
 * is the only wrap, and only ring.c knows of it.
 *
 * The index. Frames are numbered from 1 on as they are appended: the
 * ordinal, which only grows. [oldest, next) are held. Ids grow with the
 * ordinals, but may have gaps. Each frame belongs to one topic and names the
 * topic's frame before and after it, so a topic is a chain through the ring.
 *
 * Eviction. The ring is bounded by count and by bytes at once; appending
 * evicts from the old end until the new frame fits. Nothing protects a frame
 * from eviction. A reader notices by its place: reader_overrun().
 *
 * Topics. Each has a mark: the newest id that may be lost, mostly that of its
 * newest evicted frame. A position below it may have lost something, however
 * often the ring has turned for other topics. When a topic is forgotten, the
 * ring remembers its mark: see "What may be lost" in ring.c.
 *
 * The history file. With it the memory is a part of a file that is mapped, and
 * each frame has a record there beside its entry of the index:
 *
 *   header | records, one for each slot of the index | the memory | promises
 *
 * A record has checks of itself and of the frame's bytes, so what a crash
 * left can be found again without trusting anything else. What the process
 * wrote before it was killed is in the kernel's cache; ring_sync() brings it
 * to the disk.
 *
 * Splicing. A frame with a splice point goes to a subscriber that catches up
 * with the ring's splice text inserted there. This makes a catch_up_message
 * out of a message with the stored bytes untouched and nothing copied.
 */
enum {
    FRAME_HEAD = 10, /* a chunk size of constant width and its CR LF */
    FRAME_TAIL = 2,  /* the CR LF after the chunk's data */

    FRAME_FACTOR = 7,
    FRAME_REST = 3 * EVENT_NAME_MAX + 1024,

    /* bytes of the longest, of the longest data that there may be; lengths and
     * their sums with what is added fit 32 bits, and the chunk size eight
     * digits */
    FRAME_MAX = 1 << 28,
};

/* The largest ring that can be asked for. */
#define HISTORY_EVENTS_MAX (UINT64_C(1) << 28)
#define HISTORY_BYTES_MAX (UINT64_C(1) << 40)

/* Topics without an event: as many as can be asked for; and how many topics
 * more publishers may hold than readers. */
#define TOPICS_MAX (UINT64_C(1) << 28)
enum {
    TOPICS_SPARE = 1024
};

/* Ids stay exact in a JavaScript number. */
#define ID_MAX ((UINT64_C(1) << 53) - 1)

struct topic;
struct server; /* sse.c's */

/* An entry of the index. */
struct frame {
    uint64_t id;
    uint64_t
        previous;    /* ordinal of the topic's frame before, 0: none is held */
    uint64_t next;   /* ordinal of the topic's frame after, 0: none yet */
    uint64_t number; /* counts the topic's frames, from 1 on */
    size_t offset;   /* where it begins in the memory */
    struct topic *topic;
    uint32_t length;      /* bytes, the envelope included */
    uint32_t splice;      /* where the splice text goes in, 0: nowhere */
    char spliced_size[8]; /* the chunk size of the spliced form */
    uint32_t jump;        /* so many ordinals back: see topic_seek(); 0: none */
    uint32_t appended : 31; /* when: see ring_age() */
    bool end : 1;           /* finishes its topic */
};

struct history_file;

/* Topics that wait for something. A topic is held while it is in a queue. */
enum topic_queue {
    TOPICS_IN_PASS, /* see pass_next() */
    TOPICS_RESTING, /* no pass begins until ring->now is topic->rests_until */
    TOPICS_BROKEN,  /* see topic_settle() */
    TOPIC_QUEUES,
};

struct ring {
    struct frame *frames; /* owned; frame with ordinal o at o & mask */
    char *memory;         /* owned; a part of the file, if there is one */
    size_t size;          /* of the memory */
    size_t used;          /* sum of the held frames' lengths */
    size_t offset;        /* where the next frame begins */
    uint64_t mask;
    uint64_t limit;     /* frames held at most */
    uint64_t oldest;    /* ordinal; == next when nothing is held */
    uint64_t next;      /* ordinal of the next frame */
    uint64_t newest_id; /* of the newest frame ever, or where ids began */
    uint64_t mark;      /* of a topic that is made: see "What may be lost" */
    uint64_t emptied; /* the newest id whose eviction left its topic nothing */
    void *topics;     /* owned: a tree by name, tsearch(3) */
    uint64_t topic_count; /* all of them */
    uint64_t empty;       /* topics without a frame, but the main stream */
    uint64_t held;        /* topics with a reference */
    uint64_t max_topics;  /* see topic_hold_to_read(); the caller's */
    struct topic *queue_first[TOPIC_QUEUES], *queue_last[TOPIC_QUEUES];
    struct slice splice_text;  /* not owned */
    struct history_file *file; /* owned; NULL: it is in memory alone */
    int64_t time;  /* milliseconds since 1970, for records; the caller's */
    uint64_t now;  /* ms, monotonic; the caller's */
    uint64_t pace; /* ms between the begins of two passes; the caller's */
    bool kept_ids; /* publishers give the ids; without a file the caller sets it
                    */
    bool unbegun; /* kept ids: the history begins (again) with the next event */
    bool unsynced; /* something has been appended since ring_sync() */
};

enum {
    READER_TOPICS_MAX = 16
};

/*
 * A topic: a name and a chain through the ring; its subscribers, and how far
 * the delivery of what is new has come. It lasts while a frame of it is held or
 * somebody holds it, and is then forgotten.
 */
struct topic {
    uint64_t oldest;     /* ordinal of its oldest held frame, 0: none held */
    uint64_t newest;     /* ordinal of its newest held frame, 0: none held */
    uint64_t evicted;    /* ordinal of its newest evicted frame, 0: none */
    uint64_t mark;       /* newest id that may be lost: see ring.c */
    uint64_t newest_id;  /* of the newest event it ever had, 0: none is known */
    uint64_t count;      /* frames it ever had: the newest one's number */
    uint32_t references; /* topic_hold() less topic_drop() */

    uint32_t subscriber_count;
    uint32_t subscriber_room;
    uint32_t subscriber_peak; /* most there were in that memory */
    uint32_t *subscribers;    /* owned: numbers of the caller's, in no order */
    uint32_t unvisited;       /* those at [0, unvisited) in this pass */
    uint64_t pass_newest;     /* newest frame when the pass began */
    uint64_t undelivered;     /* oldest frame not yet offered to all; 0: none */
    uint64_t rests_until;     /* ms */

    struct publication *publications; /* the caller's: streams into it */
    uint32_t promises;                /* topic_promise() less topic_settle() */
    uint32_t promise; /* the file's slot that remembers them; 0: none */
    bool broken;      /* a promise was, and the topic has not been finished */

    bool queued[TOPIC_QUEUES];
    struct topic *queue_next[TOPIC_QUEUES];

    struct slice name; /* in the same piece of memory */
};

/* Where a reader stands in one topic: it has passed everything up to and
 * including the ordinal `last`. */
struct place {
    struct topic *topic;
    uint64_t last;
    uint32_t index; /* in topic->subscribers, of one that has joined */
    bool ended;     /* what was passed last has finished the topic */
};

/* How far a reader has come: bytes of the frame after its places, counted in
 * the form that it gets; and how many frames it has passed. */
struct progress {
    uint32_t sent;
    uint32_t events;
};

/* What is read: the frames of up to READER_TOPICS_MAX topics as one sequence,
 * up to and including an ordinal. */
struct reader {
    struct place *places; /* not owned; one for each topic */
    unsigned count;
    unsigned form; /* a set of enum form, the same from one frame's begin to
                      its end */
    uint64_t until;
};

/*
 * Allocates a ring for at most `limit` frames and `size` bytes, whose first
 * event comes after the id `newest_id`. `splice_text` must outlive it.
 * Returns 0, or -1 with errno (ENOMEM). ring_release() frees it and all its
 * topics.
 */
int ring_init(struct ring *ring, uint64_t limit, size_t size,
              uint64_t newest_id, struct slice splice_text);
void ring_release(struct ring *ring);

/* Bytes of memory: of the frames and their index; and of as many topics as
 * there can be with ring->max_topics, with malloc(3)'s own. */
uint64_t ring_history_size(const struct ring *ring);
uint64_t ring_topics_size(const struct ring *ring);

/* What a history file is asked to be. */
struct history_wanted {
    const char *path;
    uint64_t limit;      /* as for ring_init() */
    size_t size;         /* likewise */
    uint64_t newest_id;  /* where a new one begins; at most ID_MAX */
    uint64_t clock_id;   /* where one at least goes on after a crash of the
                            machine: beyond every id that may have been seen;
                            at most ID_MAX */
    bool kept_ids;       /* they come from outside */
    const char *boot_id; /* of this boot of the machine; "": not known */
    struct slice splice_text;
};

/* What has been found in it. */
struct recovery {
    uint64_t count;    /* events */
    uint64_t first_id; /* of the oldest of them */
    uint64_t last_id;  /* and of the newest */
    uint64_t dropped;  /* records not whole, or older than one that is not */
    bool made;         /* there was none */
    bool crashed;      /* the machine went down with the server running */
    bool resized;      /* it has been written anew, in the size wanted */
};

/*
 * As ring_init(), with a history file: opens and locks it (flock(2)), and
 * finds the newest events again that follow one another whole; makes it, with
 * all its blocks, if there is none; writes it anew beside the old one and
 * renames it if its size is another. After a crash of the machine every
 * position so far may have lost something. Symbolic links in the path are
 * followed once. A file that somebody else owns or can write, or that has
 * another name, is refused. Whatever bytes are in it, nothing that a server
 * cannot have written becomes an event. Returns 0, or -1 with one line in
 * `error` that says what is wrong and the way out; the file is then as it was.
 */
int ring_open(struct ring *ring, const struct history_wanted *wanted,
              struct recovery *recovery, char error[ERROR_SIZE]);

/*
 * The same for looking at a file alone, of any owner: it is mapped, not
 * locked and not written. Of `wanted` only `path` and `splice_text` count. A
 * server may be writing the file: *pid is then that of the server, else 0.
 */
int ring_inspect(struct ring *ring, const struct history_wanted *wanted,
                 struct recovery *recovery, uint32_t *pid,
                 char error[ERROR_SIZE]);

/*
 * Whether an address lies in a history file that is mapped: a SIGBUS there
 * means that the file has been truncated, or that its disk has failed. For a
 * signal handler.
 */
bool ring_is_mapped(const void *address);

/* Brings what has been appended to the disk (msync(2)). Returns 0, or -1 with
 * errno: some of it may then be lost, whatever a later call returns. */
int ring_sync(struct ring *ring);

/* Whether the file has been deleted: what is appended is lost at the end. */
bool ring_deleted(const struct ring *ring);

/* At a good end: syncs, and notes in the file that nothing is missing. */
int ring_end(struct ring *ring);

/* When a held frame was appended, by its record; 0 without a file. */
int64_t ring_time(const struct ring *ring, uint64_t ordinal);

/* How many ms ago a held frame came into the ring; with a file, by its record,
 * else to within 64 ms. */
uint64_t ring_age(const struct ring *ring, uint64_t ordinal);

/* Why this is not the name of a topic, NULL if it is one. The main stream's
 * name, which is empty, is none. */
const char *topic_name_refused(struct slice name);

/*
 * The topic of that name, held until topic_drop(). topic_hold() makes it if
 * there is none; NULL if there is no memory for it. topic_find() does not
 * hold it, and returns NULL if nothing is known of it.
 */
struct topic *topic_hold(struct ring *ring, struct slice name);

/*
 * The same for a client, whose names are its own idea. NULL with errno: EAGAIN
 * if there are as many topics as there may be, ENOMEM if there is no memory. A
 * reader makes a topic only while fewer than ring->max_topics have no frame.
 * However many readers there are, there is room for a publisher's.
 */
struct topic *topic_hold_to_read(struct ring *ring, struct slice name);
struct topic *topic_hold_to_publish(struct ring *ring, struct slice name);

struct topic *topic_find(const struct ring *ring, struct slice name);

/* The topic whose name comes next after a name, in the order of their bytes;
 * with `or_same`, that of this name if there is one. NULL behind the last.
 * Logarithmic. */
const struct topic *topic_next(const struct ring *ring, struct slice name,
                               bool or_same);

void topic_drop(struct ring *ring, struct topic *topic);

/*
 * A publisher promises to finish a topic, which it holds. The history file
 * remembers that until topic_settle(). False if it has no room for it. A
 * promise that is `broken`, or that was open when the server was killed, puts
 * the topic into TOPICS_BROKEN, from where the caller finishes it if it is
 * `broken` still; topic_mended() takes the first one out.
 */
bool topic_promise(struct ring *ring, struct topic *topic);
void topic_settle(struct ring *ring, struct topic *topic, bool broken);
void topic_mended(struct ring *ring);

/* From now on a position below `id` on this topic may have lost something;
 * ids go on above it. */
void topic_raise_mark(struct ring *ring, struct topic *topic, uint64_t id);

/* From now on every position below `id` may have lost something; ids go on
 * above it, and the history is begun. */
void ring_begin_after(struct ring *ring, uint64_t id);

/* The id has been used, by nothing that is kept here; ids go on above it. */
void ring_pass(struct ring *ring, uint64_t id);

/* Evicts all that is held. */
void ring_forget(struct ring *ring);

/*
 * The oldest ordinal that would still be held if a frame of `length` bytes
 * were appended: what is below is evicted by it. `length` <= ring->size.
 */
uint64_t ring_oldest_after(const struct ring *ring, size_t length);

/*
 * Appends a whole frame, envelope included, copying its bytes, and evicts
 * what has to go. The topic is held. `id` is greater than ring->newest_id;
 * `splice` is the splice point's offset in `bytes`, or 0; `end` is set for the
 * frame that finishes its topic. bytes.length <= ring->size. Returns the
 * frame's ordinal. Cannot fail.
 */
uint64_t ring_append(struct ring *ring, struct topic *topic, uint64_t id,
                     struct slice bytes, uint32_t splice, bool end);

/* The entry of a held frame. */
const struct frame *ring_frame(const struct ring *ring, uint64_t ordinal);

/* The ordinal of the newest held frame whose id is <= `id`; oldest - 1 if
 * there is none. Logarithmic. */
uint64_t ring_find(const struct ring *ring, uint64_t id);

/*
 * Values for a place's `last`, so that what follows is: all that is held;
 * nothing but what comes from now on; what is newer than `id`.
 *
 * Each frame names, beside the topic's frame before it, one further back, its
 * jump: as many frames back as the lowest digit of its number stands for, with
 * the number written in skew binary (digits that stand for 1, 3, 7, 15...). A
 * search that takes each jump that does not lead too far takes logarithmic
 * time: E. W. Myers, "An applicative random-access stack", Information
 * Processing Letters 17 (1983).
 */
static inline uint64_t topic_start(const struct topic *topic)
{
    return topic->evicted;
}

static inline uint64_t topic_end(const struct topic *topic)
{
    return topic->newest ? topic->newest : topic->evicted;
}

uint64_t topic_seek(const struct ring *ring, const struct topic *topic,
                    uint64_t id);

/* The ordinal of the topic's frame after `last` (a value as above, or an
 * ordinal of this topic), 0 if there is none yet. */
uint64_t topic_after(const struct ring *ring, const struct topic *topic,
                     uint64_t last);

/* How many of the topic's held frames come after `last`. */
uint64_t topic_count_after(const struct ring *ring, const struct topic *topic,
                           uint64_t last);

/* Whether the newest thing that happened to the topic is that it was
 * finished. */
bool topic_finished(const struct ring *ring, const struct topic *topic);

/*
 * A topic's subscribers: numbers of the caller's. topic_reserve() makes room
 * for one more, false without memory; topic_join() then cannot fail. With
 * topic_leave() the last subscriber takes the index that becomes free: it is
 * returned, and its place is for the caller to change; it may be the one that
 * leaves. The memory for each is at most 32 bytes, and 24 for a topic. The
 * topic is held meanwhile.
 */
#define NONE                                                        \
    UINT32_MAX /* no subscriber, and no descriptor, has this number \
                */
bool topic_reserve(struct topic *topic);
void topic_join(const struct ring *ring, struct place *place,
                uint32_t subscriber);
uint32_t topic_leave(const struct place *place);

/*
 * The next subscriber that is to be offered what is new in its topic; NONE
 * when all have been. pass_yield(), when the caller has done enough for now,
 * lets other topics go first. A subscriber comes again if more was appended
 * after its topic's pass had begun. pass_wake() begins the passes of topics
 * that have rested.
 */
uint32_t pass_next(struct ring *ring);
void pass_yield(struct ring *ring);
void pass_wake(struct ring *ring);

/* When pass_next() or pass_wake() has something to do: ring->now, 0 for at
 * once, or NEVER. */
uint64_t ring_due(const struct ring *ring);

/*
 * Whether appending a frame of `length` bytes would evict one that a pass has
 * not offered to all subscribers yet, or the frame `needed` (0: none), the
 * oldest that a subscriber outside of passes waits for. Publishers wait then.
 */
bool ring_would_overrun(const struct ring *ring, size_t length,
                        uint64_t needed);

/* The ordinal of the frame that the reader gets next, 0 if there is none. */
uint64_t reader_next(const struct ring *ring, const struct reader *reader);

/* Whether a frame that the reader has not passed is gone. */
bool reader_overrun(const struct reader *reader);

/* Moves the reader's places: back, over the newest `count` held frames of
 * all its topics together, from where each ends, and returns how many these
 * are; or on, over those whose id is at most `id`. The time is logarithmic in
 * the frames held, squared for the first, and in proportion to the topics. */
uint64_t reader_back(const struct ring *ring, const struct reader *reader,
                     uint64_t count);
void reader_skip(const struct ring *ring, const struct reader *reader,
                 uint64_t id);

/* Where a stream begins. */
struct start {
    struct slice requested; /* the id that was given; empty if none was */
    uint64_t id;            /* its number, if it is `known` */
    uint64_t position;      /* the id that the client is told to begin at */
    uint64_t replay;        /* how many frames are replayed */
    bool known;    /* not above the newest id; with kept ids any id is */
    bool unusable; /* neither an id that is known nor "earliest" */
    bool gap;      /* something that was asked for may be gone */
    bool ahead;    /* of the newest id: others have had it */
};

/*
 * Moves the reader's places to where it begins: behind the id that is
 * requested; before all that is held, if that is no id of this history; before
 * the newest `count` events, if nothing is requested. Says what that means.
 */
void reader_start(const struct ring *ring, const struct reader *reader,
                  struct slice requested, uint64_t count, struct start *start);

/* Whether something that was asked for may be gone from this topic; and the id
 * of the oldest event behind all that may be gone, 0 if none is held. */
bool start_lost(const struct start *start, const struct topic *topic);
uint64_t start_oldest(const struct ring *ring, const struct reader *reader,
                      const struct start *start);

/* Whether every topic has been finished and the reader has nothing to get; and
 * whether that was the last that it got of each. */
bool reader_finished(const struct ring *ring, const struct reader *reader);
bool reader_ended(const struct reader *reader);

/*
 * Fills at most `room` iovecs with about `budget` bytes (a frame more, at the
 * most) of what follows the reader's places, without the first
 * `sent`; adjacent bytes are joined. Returns how many iovecs. They point into
 * the ring and hold until the next append. The reader must not be overrun.
 * ring_advance() then moves places and progress by the bytes that were taken;
 * it returns those that go beyond reader->until.
 */
int ring_gather(const struct ring *ring, const struct reader *reader,
                uint32_t sent, struct iovec *iov, int room, size_t budget);
size_t ring_advance(const struct ring *ring, const struct reader *reader,
                    struct progress *progress, size_t bytes);

/* ------------------------------------------------------------------ http.c
 *
 * Connections, and HTTP/1.1 (RFC 9110, RFC 9112). First what bytes mean and how
 * answers are written, which does no I/O but to open a file; then connections.
 *
 * Lines end in CR LF and in nothing else: a bare CR or LF in a head or
 * around a chunk is a 400, so that no two readers can see two different
 * requests in the same bytes (RFC 9112, section 2.2, leaves the choice).
 * What could be delimited in two ways is refused: Content-Length beside
 * Transfer-Encoding, more than one of either, line folding, blanks before a
 * colon.
 */
enum {
    REQUEST_LINE_MAX = 8192,  /* over it: 414; RFC 9112 asks for >= 8000 */
    HEAD_MAX = 16384,         /* request line and fields; over it: 431 */
    FIELD_COUNT_MAX = 100,    /* over it: 431 */
    CHUNK_LINE_MAX = 256,     /* size and extensions; over it: 400 */
    TRAILER_MAX = 4096,       /* over it: 400 */
    RESPONSE_HEAD_MAX = 1024, /* every head fits, but for a long --cors */
};

enum method {
    METHOD_OTHER, /* known (PUT, PATCH...), but no resource takes it */
    METHOD_DELETE,
    METHOD_GET,
    METHOD_HEAD,
    METHOD_OPTIONS,
    METHOD_POST,
};

/* A parsed request head. The slices point into the parsed bytes. */
struct request {
    /* how far an incomplete head has been looked at; zero for a new one */
    size_t scanned; /* bytes known to hold whole lines */
    size_t start;   /* where the request line begins: after CR LFs */
    unsigned lines; /* whole lines among them */
    unsigned hosts; /* Host fields seen */

    enum method method;
    int minor;          /* HTTP/1.minor: 0 or 1 */
    struct slice path;  /* percent-decoded, begins with a slash, or is "*" */
    struct slice query; /* after the "?", as it came */
    struct slice authorization;
    struct slice content_type;
    struct slice cookie;
    struct slice host;
    struct slice if_modified_since;
    struct slice if_none_match;
    struct slice if_range;
    struct slice last_event_id;
    struct slice origin;
    struct slice range;
    int64_t content_length; /* -1: not given */
    bool chunked;
    bool close;           /* the connection ends with this exchange */
    bool expect_continue; /* RFC 9110, section 10.1.1 */
    bool forwarded;       /* passed a proxy: Forwarded, X-Forwarded-*, Via... */
    bool cross_site;      /* a page of another origin: Sec-Fetch-Site */
    const char *error;    /* why the parser refused it: one line, no end */
};

/*
 * Parses a request head from the bytes that have arrived so far. Returns how
 * many bytes the head takes, 0 when it is not complete (call again with more,
 * with the same *request, the old bytes first and unchanged), or minus the
 * status to answer with, request->error then says why. Decodes the path in
 * place. *request is zeroed by the caller for a new request.
 */
ssize_t http_parse(char *data, size_t length, struct request *request);

/* Whether there is a body to read before the next request. */
bool http_has_body(const struct request *request);

/*
 * The value of a query's parameter: percent-decoded ("+" is a blank; a broken
 * escape stays as it is) into `value` of `size` bytes, cut where it is
 * longer. The first one counts. False if there is none of that name.
 */
bool http_query(struct slice query, const char *name, char *value, size_t size,
                struct slice *result);

/* The same for the first one of that name in *query, which is then what
 * comes after it. */
bool http_query_next(struct slice *query, const char *name, char *value,
                     size_t size, struct slice *result);

/* Whether a Host is that name, with or without a port. */
bool http_host_is(struct slice host, const char *name);

/* Whether a Host (or its like) is "localhost" or an IP address, with or
 * without a port: a name that no DNS server can have made up. */
bool http_host_is_local(struct slice host);

/* Whether an Origin (RFC 6454, section 6.1) is that of `host`. */
bool http_origin_is_host(struct slice origin, struct slice host);

/* Whether a Content-Type is that media type, whatever its parameters. */
bool http_media_type_is(struct slice content_type, const char *media_type);

/* Whether the bytes are those of `text`, ASCII letters of either case alike. */
bool slice_equals(struct slice slice, const char *text);

/* The body of a request, as its bytes arrive. */
struct body {
    enum {
        BODY_DATA, /* `left` bytes of the body or of the chunk */
        BODY_DATA_END_CR,
        BODY_DATA_END_LF,
        BODY_SIZE,      /* before the first digit of a chunk size */
        BODY_SIZE_MORE, /* after it */
        BODY_EXTENSION,
        BODY_SIZE_LF,
        BODY_TRAILER, /* at the begin of a line after the last chunk */
        BODY_TRAILER_LINE,
        BODY_TRAILER_LF,
        BODY_END_LF,
        BODY_DONE,
    } state;
    bool chunked;
    uint32_t overhead; /* bytes of this chunk's line, or of the trailer */
    uint64_t left;
};

/* Begins with the body that the request's head announces. */
void http_body_init(struct body *body, const struct request *request);

/*
 * Takes bytes of the body from `data` and sets *piece to the next run of
 * them that is content (part of `data`; may be empty). Returns how many bytes
 * were taken, or -400. Call it until body->state is BODY_DONE or the data is
 * used up.
 */
ssize_t http_body_read(struct body *body, struct slice data,
                       struct slice *piece);

/* A response head to be written; what is zero is left out. */
struct response {
    int status;
    bool close;
    bool stream;       /* an event stream, with its fields; no Content-Length */
    bool chunked;      /* the stream's framing */
    bool preflight;    /* the answer to an OPTIONS of a resource with CORS */
    bool no_cache;     /* a later answer may be another */
    uint64_t length;   /* of the content: Content-Length */
    const char *date;  /* now, see http_date() */
    const char *type;  /* Content-Type */
    const char *allow; /* methods */
    const char *cors;  /* Access-Control-Allow-Origin */
    unsigned retry_after;     /* s; at 429 and 503 it is 2 if none is given */
    bool made;                /* the content is made as it goes: no length */
    const uint64_t *position; /* of a stream: Last-Event-ID */
    const char *etag;      /* of a file, with its quotes; ranges are served */
    time_t modified;       /* Last-Modified */
    struct slice location; /* Location: this path, with a slash at its end */
    uint64_t range_first;  /* Content-Range, at 206 and 416 */
    uint64_t range_last;
    uint64_t range_total;
};

/* Writes a response head, its empty line included. Returns its length, or 0
 * if `size` was too small. */
size_t http_head(char *buffer, size_t size, const struct response *response);

/* A status's reason phrase. */
const char *http_reason(int status);

/* An HTTP date (RFC 9110, section 5.6.7), into HTTP_DATE_SIZE bytes. */
enum {
    HTTP_DATE_SIZE = 30
};
void http_date(char *buffer, time_t when);

/* A file to be sent, from memory or from a descriptor. */
struct file {
    const char *data; /* bundled: its bytes; not owned */
    int fd;           /* from a folder: open, the caller's to close; or -1 */
    uint64_t length;
    const char *type;
    time_t modified;
    char etag[64]; /* strong: changes whenever the bytes may have */
};

/* In the place of a folder's descriptor: the bundled pages of a public
 * listener, and those of the one of --admin. */
enum {
    ROOT_BUNDLED = -1,
    ROOT_ADMIN = -2,
};

/*
 * Finds the file for a path: compiled in when `root` is one of those above,
 * else below that directory, which nothing can lead out of (openat2(2),
 * RESOLVE_BENEATH). A path that ends in a slash means the index.html there, or
 * the status.html of ROOT_ADMIN. Returns 0, or minus
 * the status to answer with: 301 for a folder named without its slash, 404,
 * 501 when the kernel has no openat2, 503 when descriptors or memory have run
 * out.
 */
int http_file_open(struct file *file, int root, struct slice path);

/* Makes the bundled files' validators; once, before the first is opened. */
void http_bundle_init(time_t modified);

/*
 * Decides what a GET of `file` is answered with (RFC 9110, sections 13 and
 * 14): sets the response's status (200, 206, 304, 416), its validators,
 * Content-Type, length and range. *first is where to begin sending; nothing
 * is sent at 304 and 416.
 */
void http_file_response(const struct file *file, const struct request *request,
                        struct response *response, uint64_t *first);

/*
 * A reply of Redis (RESP2, "Redis serialization protocol specification"), read
 * in pieces of any length. Nothing is kept but a line: what is in a bulk string
 * is handed on as it comes. What no Redis sends is RESP_MALFORMED, for good.
 */
enum {
    RESP_DEPTH_MAX = 8,  /* arrays in arrays */
    RESP_LINE_MAX = 512, /* bytes; of a longer error the first ones are kept */
    RESP_BULK_MAX = 64 << 20,
};

struct resp {
    enum resp_token {
        RESP_NOTHING,   /* the bytes are used up */
        RESP_ARRAY,     /* with `number` elements, which follow */
        RESP_TEXT,      /* a `piece` of a string; `last` at its end */
        RESP_INTEGER,   /* `number` */
        RESP_NIL,       /* in the place of an array or a string */
        RESP_ERROR,     /* `piece` is its line */
        RESP_MALFORMED, /* `piece` says what it is */
    } token;
    struct slice piece;
    int64_t number;
    unsigned level; /* how many arrays the token is in */
    bool last;
    bool done; /* the token is the last of the reply */

    enum {
        RESP_AT_TYPE,
        RESP_IN_LINE,
        RESP_AT_LINE_LF,
        RESP_IN_BULK,
        RESP_AT_BULK_CR,
        RESP_AT_BULK_LF,
    } state;
    char type;
    unsigned depth;               /* arrays that are open */
    int64_t left[RESP_DEPTH_MAX]; /* elements of each that are to come */
    size_t bulk_left;
    size_t line_length;
    char line[RESP_LINE_MAX];
};

/* Reads until there is a token or the bytes are used up; returns how many it
 * took. A `piece` points into the bytes or into *resp. All zero begins. */
size_t resp_read(struct resp *resp, struct slice data);

/* An entry of the log. A field that is not given has no data. A value that is
 * longer than it may be is cut after a byte more than that. */
enum entry_field {
    ENTRY_TOPIC,
    ENTRY_DATA,
    ENTRY_EVENT,
    ENTRY_RETRY,
    ENTRY_KIND,
    ENTRY_TIME, /* ms since 1970 */
    ENTRY_FIELDS,
};

struct log_entry {
    uint64_t ms, id; /* its id is "ms-id"; an event's is "0-id" */
    struct slice fields[ENTRY_FIELDS];
};

/* ------------------------------------------------------------ connections
 *
 * A connection is known by its descriptor, which is its index in http->conns.
 * It is in one state, in at most one queue, and has at most one timer. What
 * has happened on it is told to sse.c through struct handlers.
 *
 *   FREE -> LISTENER -> FREE
 *   FREE -> REDIS -> CLOSED
 *   FREE -> REQUEST <-> RESPOND          a request, its answer, the next one
 *           REQUEST <-> BODY <-> WAITING a body to publish; room in the ring
 *           REQUEST  -> STREAM           a subscriber
 *           REQUEST  -> STATUS           watches the server
 *           REQUEST <-> WAITING          one that is ahead of this node's log
 *           REQUEST, RESPOND -> LINGER   the last answer has been sent
 *   FREE -> BODY                         standard input
 *           WAITING -> REQUEST           refused while it waited
 *   any but FREE and LISTENER -> CLOSED -> FREE
 *                                        the end: conn_close(), then the
 *                                        end of the turn
 */

enum conn_state {
    CONN_FREE,     /* no connection has this number */
    CONN_LISTENER, /* a listening socket */
    CONN_REDIS,    /* to Redis */
    CONN_REQUEST,  /* reading a request head, or idle between two */
    CONN_BODY,     /* reading a body to publish */
    CONN_WAITING,  /* publishes, and waits for room in the ring or for the log;
                    * or is to subscribe, and waits for the log */
    CONN_RESPOND,  /* sending a file, or answers to a full socket */
    CONN_STREAM,   /* subscribes */
    CONN_STATUS,   /* a stream as well, of the server's figures */
    CONN_LINGER,   /* has sent the last answer; reads until the peer ends */
    CONN_CLOSED,   /* until the end of the turn */
    CONN_STATES,
};

/*
 * A connection is in at most one queue. For work, answers and waiting there
 * are two each, one after the other. The second is for connections that send
 * more than a visit can take, and for streams that are published: so one that
 * asks now and then, and waits for the answer, is never behind them.
 */
enum queue_name {
    QUEUE_NONE,
    QUEUE_WORK, /* something has arrived, and is to be looked at */
    QUEUE_WORK_BUSY,
    QUEUE_ANSWERS, /* has answers to send */
    QUEUE_ANSWERS_BUSY,
    QUEUE_WAITING, /* CONN_WAITING */
    QUEUE_WAITING_BUSY,
    QUEUE_READY,   /* sse.c's: subscribers that are to be sent more */
    QUEUE_LOG,     /* CONN_WAITING: until more is known of the log */
    QUEUE_STARVED, /* waits for --request-memory */
    QUEUE_CLOSED,  /* CONN_CLOSED */
    QUEUES,
};

enum {
    FLAG_UNIX = 1,    /* the peer, or the listener, is on a Unix socket */
    FLAG_SURPLUS = 2, /* came when --max-connections were there */
    FLAG_BUSY = 4,    /* what it sent last took more than a visit; or it is
                       * new, and not known to be different */
    /* a listener on a loopback address, and what came by it */
    FLAG_LOOPBACK = 8,
    FLAG_INPUT = 16, /* standard input: see http_read_input() */
    FLAG_OWN = 32,   /* made by this process: counts as no connection */
    /* FLAG_SURPLUS, since its network had --max-per-address */
    FLAG_CROWDED = 64,
    FLAG_ADMIN = 128, /* the listener of --admin, and what came by it */
};

/* Limits that clients meet; how often, http->limits_hit counts. */
enum limit {
    LIMIT_CONNECTIONS, /* a connection beyond --max-connections */
    LIMIT_ADDRESS,     /* one beyond --max-per-address */
    LIMIT_ADMIN,       /* one beyond ADMIN_MAX */
    LIMIT_ACCEPT,      /* none is accepted for a while: all places are taken,
                        * or no descriptor is free */
    LIMIT_MEMORY,      /* --request-memory was asked for more */
    LIMIT_FAILURES,    /* a token that --max-failures has not looked at */
    LIMIT_TOPICS,      /* a topic beyond --max-topics */
    LIMIT_EVENT,       /* an event that is longer than --max-event */
    LIMITS,
};

/* What has a part of a turn; how often it was used up before all was done,
 * http->used_up counts. */
enum budget {
    BUDGET_TIMERS,
    BUDGET_REQUESTS, /* and the same of busy connections */
    BUDGET_REQUESTS_BUSY,
    BUDGET_ANSWERS,
    BUDGET_ANSWERS_BUSY,
    BUDGET_PUBLISHERS, /* those that waited */
    BUDGET_EVENTS,     /* to subscribers: new ones */
    BUDGET_CATCH_UP,   /* to subscribers: in QUEUE_READY */
    BUDGETS,
};

/* Bytes [start, end) of `room`, which grows as they arrive. */
struct buffer {
    char *bytes; /* owned; memory_cost(room) in http->request_memory */
    size_t room;
    size_t start;
    size_t end;
};

static inline size_t buffer_length(const struct buffer *buffer)
{
    return buffer->end - buffer->start;
}

/*
 * What sse.c knows of one that publishes, and of one that subscribes. They lie
 * in the structures below to be one piece of memory with them; http.c does not
 * look at them, but has them all zero when they begin.
 */
struct publication {
    struct topic *topic; /* held; NULL: nothing is being published */
    enum {
        FROM_PLAIN,  /* the content is the data of one event */
        FROM_EVENTS, /* it is an event stream */
        FROM_LINES,  /* each line is an event */
        FROM_DELETE, /* there may be some, which is dropped */
    } from;
    enum {
        STEP_TAKE,   /* takes in content until an event is complete */
        STEP_APPEND, /* appends `event` */
        STEP_FINISH, /* finishes the topic, if that is asked for */
        STEP_ANSWER,
    } step;
    bool finishes;           /* the topic is to be finished at last */
    bool skips;              /* a line that is too long, until it ends */
    uint64_t count, skipped; /* events */
    uint64_t first, last;    /* ids */
    struct event event;
    char *content; /* owned: what belongs to the event under way */
    size_t content_length;
    size_t content_room;        /* bytes there are */
    size_t content_max;         /* bytes there may be */
    struct event_parser parser; /* without a stream only its name is used */
    /* FROM_EVENTS: it is in topic->publications, by what leads to it there */
    struct publication **link, *next;
    uint32_t fd;     /* of its connection */
    bool promises;   /* the end: topic_promise() */
    bool stopped;    /* somebody else has finished the topic */
    uint64_t flight; /* redis_append(), 0: nothing is on its way to the log */
    uint64_t logged; /* the id that the log has given the event, 0: none yet */
};

/* Content that is made while it is sent, and how far it has come: sse.c's as
 * well. */
struct listing {
    enum {
        LISTS_FIGURES,
        LISTS_TOPICS,
    } what;
    uint64_t scan; /* of the subscribers: this one has to be over */
    unsigned row, line;
    uint64_t left; /* topics */
    size_t prefix_length, after_length;
    char prefix[TOPIC_NAME_MAX];
    char after[TOPIC_NAME_MAX]; /* the topic that came last */
};

struct subscriber {
    union {
        struct place place;   /* of one topic */
        struct place *places; /* owned; of several */
    };
    struct own *own; /* owned; goes before all else; or NULL */
    struct progress progress;
    union {
        uint64_t replay_end; /* newest frame of the replay, 0: over */
        uint64_t ahead;      /* is_ahead: the id it has from another server */
    };
    uint64_t bytes;
    uint32_t replay_count;
    uint32_t since;  /* second of arrival, monotonic */
    uint32_t active; /* when the stream's bytes last went: ms, low 32 bits */
    uint8_t form;    /* enum form */
    uint8_t topic_count;
    bool is_ahead; /* came with an id newer than the newest */
    enum __attribute__((packed)) {
        STREAM_GOES_ON,
        STREAM_LEAVES,  /* it is ended at the next occasion: there is a gap */
        STREAM_EXPIRES, /* likewise, and is told so: its token has expired */
        STREAM_ENDS,    /* its last bytes are under way */
    } end;
};

/*
 * Everything about a connection that is not needed while it subscribes or
 * idles: it begins with a request's first bytes, and ends when what has arrived
 * is used up and answered. The slices of `request` point into `in`: they hold
 * until the request is answered or its body begins.
 */
struct exchange {
    struct buffer in;  /* has not been parsed */
    struct buffer out; /* has not been sent; OUT_ROOM is left for an answer */
    struct exchange *next_spare;
    struct listing listing; /* set when it begins */
    /* from here on all is zero for a new one */
    struct request request;
    struct body body;
    struct slice piece; /* content in `in` that the handler has not taken */
    struct publication publication;
    struct file file; /* being sent; fd is owned, -1 if none */
    uint64_t file_at; /* the next byte of it */
    uint64_t file_left;
    bool makes;    /* content: handlers->content() has more */
    bool chunked;  /* its framing */
    int error;     /* standard input: what read(2) failed with */
    uint64_t asks; /* the round that has to be over: redis_round() */
    bool streams;  /* the body may be silent for as long as it likes */
    bool left;     /* not all of `in` has been looked at */
    bool close;    /* the connection ends once its answers are sent */
    /* out[promise, end) says of events that they are on the disk: respond() */
    bool promises;
    size_t promise;
};

/* One intrusive, doubly linked list for all queues and timers. */
struct link {
    uint32_t previous, next; /* descriptors; or NONE */
};

struct list {
    uint32_t first, last;
};

struct conn {
    uint8_t state; /* enum conn_state; conn_set_state() alone sets it */
    uint8_t flags;
    uint8_t queue;     /* enum queue_name */
    uint16_t port;     /* of the peer */
    uint16_t interest; /* what epoll has been asked for */
    uint32_t expires;  /* sse.c's: of the token, seconds since 1970; 0: never */
    struct link queue_link, timer_link;
    uint32_t deadline; /* tick of the timer wheel; 0: none */
    struct in6_addr address;
    union {
        struct exchange *exchange;    /* owned; NULL while idle */
        struct subscriber subscriber; /* CONN_STREAM, CONN_STATUS */
    };
};

_Static_assert(sizeof(struct conn) <= 120, "an idle subscriber's memory");

struct listener {
    int fd;                /* -1: closed */
    const char *unix_path; /* to be unlinked, part of `address`; or NULL */
    dev_t device;          /* what was made there */
    ino_t inode;
    char address[128];
};

/*
 * Credentials: the token that publishers share, --token-file; or signed tokens,
 * that is JSON Web Tokens (RFC 7519) with HS256 (RFC 7518, section 3.2), made
 * with the secret in --secret-file.
 */
enum {
    TOKEN_MAX = 512,
    SECRET_MIN = 32, /* bytes; RFC 7518, section 3.2 */
    SECRET_MAX = 4096,
    SECRET_KEY = 64, /* what HMAC makes of a secret: a block of SHA-256 */
    SIGNED_TOKEN_MAX = 8192,
    CLAIMS_MAX = SIGNED_TOKEN_MAX / 4 * 3, /* base64 has four for three */
    TOKEN_LEEWAY = 60, /* seconds that the clocks of two machines may differ */
};

/*
 * What a signed token allows. A list of patterns has a NUL behind each. A
 * pattern is a topic's name; or a prefix of names and a "*" behind its last
 * slash; or "*", which is everything; or empty, which is the main stream.
 * Anything else covers no topic. The slices lie in `bytes`: a copy of the
 * structure has those of the first.
 */
struct rights {
    uint64_t expires; /* seconds since 1970; TOKEN_LEEWAY is not in it */
    struct slice read, write;
    char bytes[CLAIMS_MAX + 1];
};

/* The failed tokens of one conn_network(), in a minute that the first began. */
struct failures {
    struct in6_addr network;
    uint32_t count;
    uint64_t until; /* ms: the end of the minute */
};

enum {
    FAILURE_SETS = 256, /* 8 bits of a hash */
    FAILURE_WAYS = 8,   /* networks of one hash that are known at once */
};

enum {
    LISTENERS_MAX = 16, /* and that of --admin */
    WHEEL_SLOTS = 512,
    /* descriptors beside the subscribers': surplus clients, which still
     * get their answer; and files, listeners, the log */
    SURPLUS = 64,
    RESERVE = SURPLUS + 64,
    ADDRESS_SURPLUS = 8, /* surplus clients of one network */
    ADMIN_MAX = 64,      /* connections to --admin, with a reserve of its own */
};

/*
 * The log: a stream in a Redis server (7.0 or newer) that several nodes share.
 * Two connections: by the first, events are appended, by a script; the second
 * reads, and waits for more. Both are made again together, with growing pauses.
 *
 *   RESTING -> OPENING -> CATCHING_UP -> READY -> RESTING
 *                     any but RESTING -> RESTING
 *
 * The cursor is the entry that was read last. That nothing is missing behind it
 * is proven with every read: XRANGE from the cursor on begins with the cursor
 * itself. The script tells of a log that went back, or may have.
 *
 * A flight is an event on its way: appended, answered with its id, and read.
 * They are in the order in which they were appended.
 */
enum redis_state {
    REDIS_RESTING,
    REDIS_OPENING,     /* connects, says AUTH, loads the script */
    REDIS_CATCHING_UP, /* reads to the end of the log */
    REDIS_READY,
};

/* What has become of a flight. */
enum flight_end {
    FLIGHT_LOGGED,  /* it is in the log, and has been read */
    FLIGHT_REFUSED, /* it is not in the log */
    FLIGHT_UNKNOWN, /* it may be in the log */
    FLIGHT_AGAIN,   /* it is not, but may be if it is appended again */
};

enum {
    FLIGHTS_MAX = 1024, /* at once; a power of two */
    REDIS_KEY_MAX = 512,
    REDIS_WORDS_MAX = 16,
    RUN_ID_SIZE = 48,
    SHA_SIZE = 48,
};

struct flight {
    enum {
        FLIGHT_SENT, /* no answer has come */
        FLIGHT_HAS_ID,
        FLIGHT_OVER,
    } state;
    uint32_t fd;    /* of the publisher; NONE: there is none (any more) */
    void *context;  /* the caller's */
    uint64_t begin; /* of its command, in all bytes that were to be sent */
    uint64_t since; /* ms */
    uint64_t id;
};

enum redis_reply {
    REPLY_NONE,
    REPLY_AUTH,
    REPLY_INFO,
    REPLY_SCRIPT,
    REPLY_WAIT,   /* XREAD: there is something to read, or time is up */
    REPLY_RANGE,  /* XRANGE */
    REPLY_APPEND, /* of a flight */
};

/* One of the two connections. */
struct redis_peer {
    int fd;             /* -1: none */
    struct buffer in;   /* owned */
    struct buffer out;  /* owned */
    uint64_t out_total; /* bytes that were ever to be sent */
    struct resp resp;
    enum redis_reply expected[4];
    unsigned expected_count;
    uint64_t since;  /* ms: what is expected has been since then */
    char text[8192]; /* of a reply that is no entry, cut */
    size_t text_length;
    bool readable;
};

struct redis {
    /* the caller's, set before redis_init() */
    const char *address; /* "ADDR:PORT", "unix:PATH"; NULL: there is none */
    const char *key;
    const char *auth_file; /* or NULL */
    uint64_t length;       /* entries to keep in the stream */
    uint64_t max_event;    /* bytes of an entry's data */

    enum redis_state state;
    char reason[256]; /* why it is not ready */
    struct sockaddr_storage peer_address;
    socklen_t peer_address_length;
    struct redis_peer writer, reader;
    uint64_t again;           /* ms: when REDIS_RESTING ends */
    unsigned failures;        /* since it was ready */
    char run_id[RUN_ID_SIZE]; /* of the server, 40 digits */
    char sha[SHA_SIZE];       /* of the script; "": not loaded */
    bool has_cursor;
    uint64_t cursor_ms, cursor;    /* "ms-id" */
    uint64_t newest;               /* greatest id "0-id" that was read */
    uint64_t rounds_begun, rounds; /* reads to the end, and those that ended */
    unsigned doubts;      /* empty ranges in a row, though the stream goes on */
    bool asks;            /* ask_log() is to be called again */
    uint64_t range_count; /* entries in the reply so far */
    bool entry_waits;     /* the entry is whole, and there is no room for it */
    struct log_entry entry;
    char *entry_bytes; /* owned */
    char entry_id[48];
    size_t entry_id_length, name_length;
    char name;              /* the first byte of a field's */
    enum entry_field field; /* that the value is of; ENTRY_FIELDS: of none */
    uint64_t field_count;   /* names and values, of this entry */
    /* numbers: of the first that is kept, and of the next that begins; of the
     * first that has no answer; of the next when all was sent last */
    uint64_t flight_first, flight_next, flight_answered, flight_flushed;
    struct flight flights[FLIGHTS_MAX];
};

/* What has happened on a connection. They may nest: respond() calls `answered`
 * and conn_close() calls `closing`, also within another handler. */
struct handlers {
    /* A request's head has been parsed. It is answered, its body is begun, or
     * the connection becomes a stream. */
    void (*request)(struct server *server, struct conn *conn);

    /* A piece of the body is there, to be taken from exchange->piece; or the
     * piece is empty and the body complete. At most one event is published; it
     * is called again for the rest. */
    void (*body)(struct server *server, struct conn *conn);

    /* All that has come of a body has been taken in, and it is silent. */
    void (*silent)(struct server *server, struct conn *conn);

    /* The body cannot be read to its end: answers with that status. */
    void (*body_failed)(struct server *server, struct conn *conn, int status,
                        const char *why);

    /* An answer has been put down: what the request holds can go. */
    void (*answered)(struct server *server, struct conn *conn, int status,
                     uint64_t length);

    /* Adds the next piece of content to the text, at least 512 bytes less than
     * its room. Nothing: others have their turn first. False if it is the last
     * piece. */
    bool (*content)(struct server *server, struct conn *conn,
                    struct text *text);

    /* Answers that promise something are about to be sent. NULL, or why the
     * promise cannot be kept. */
    const char *(*keep_promises)(struct server *server);

    /* A stream's socket has room again; its timer has expired. */
    void (*writable)(struct server *server, struct conn *conn);
    void (*expired)(struct server *server, struct conn *conn);

    /* The connection is about to end: what it holds of sse.c's can go. */
    void (*closing)(struct server *server, struct conn *conn,
                    const char *reason);

    /* The time is up for a request that waits for the log. */
    void (*waited)(struct server *server, struct conn *conn);

    /* The log can be used now, or not any more: redis->state and ->reason. */
    void (*log_changed)(struct server *server);

    /* The next entry of the log has been read. False if there is no room for
     * it: it is offered again. */
    bool (*entry)(struct server *server, const struct log_entry *entry);

    /* Something before the id after `id` is missing. */
    void (*log_gap)(struct server *server, uint64_t id);

    /* All that the log had when a round began has been read. */
    void (*log_round)(struct server *server);

    /* The end of a flight: that of the publisher `fd`, or of what the caller
     * gave as `context`. `id` is the event's; `why` is for a refusal. */
    void (*flight_ended)(struct server *server, uint32_t fd, void *context,
                         enum flight_end end, uint64_t id, const char *why);

    /* No connection is accepted for a while: `error` says why (errno), or is 0
     * when there are as many as there may be. */
    void (*accept_paused)(struct server *server, int error);

    /* A connection came when there were --max-per-address from its network. It
     * is surplus, or is reset at once: of `conn` only the peer counts. */
    void (*crowded)(struct server *server, const struct conn *conn);
};

struct networks; /* how many connections each has; http.c's */

struct queue {
    struct list list;
    uint32_t count;
};

/* All connections. */
struct http {
    /* the caller's, set before http_init(); times are in ms */
    const struct handlers *handlers;
    struct server *server;    /* what the handlers get */
    uint64_t max_connections; /* 0: what the limit on descriptors allows */
    uint64_t max_per_address; /* connections of one conn_network(); 0: any */
    uint64_t memory_limit;    /* bytes that requests may hold */
    uint64_t head_timeout;
    uint64_t idle_timeout;
    uint64_t max_failures; /* tokens a minute, 1 or more */
    const char *admin;     /* where to listen for those who watch; or NULL */

    bool reuse_port; /* other processes may listen on the same address */
    struct redis redis;

    int epoll;
    int root; /* the folder whose files are served, -1: bundled pages */
    unsigned listener_count;
    struct listener listeners[LISTENERS_MAX + 1];
    bool accepting;
    uint64_t accept_again; /* ms, when !accepting */
    int input_fd;          /* what is read: standard input, or the same pipe
                            * by a description of our own */
    bool input_is_socket;
    struct conn *conns; /* owned, conn_limit of them */
    uint32_t conn_limit;
    struct networks *networks; /* owned; NULL: they are not counted */
    uint32_t conn_end; /* no descriptor from here on has been a connection */
    uint32_t connections;
    uint32_t files;             /* of --root that are open, to be sent */
    uint32_t admin_connections; /* not among them */
    uint32_t in_state[CONN_STATES];
    uint64_t limits_hit[LIMITS];
    uint64_t used_up[BUDGETS];
    struct queue queues[QUEUES];
    struct list wheel[WHEEL_SLOTS];
    uint64_t wheel_tick; /* the last one that was looked at */
    struct exchange *spare;
    unsigned spare_count;
    uint64_t request_memory; /* bytes that requests hold now */
    uint64_t visit_end;      /* us, monotonic */
    unsigned steps;          /* until the next look at the clock */
    uint64_t turn;           /* us, monotonic: when this turn began */
    uint64_t now;            /* ms, monotonic; of this turn */
    time_t date_of;          /* the second that `date` says */
    char date[HTTP_DATE_SIZE];
    char token[TOKEN_MAX];
    size_t token_length;
    bool has_secret;
    uint8_t secret[SECRET_KEY];
    uint64_t failure_key[2];
    struct failures failures[FAILURE_SETS][FAILURE_WAYS];
};

/*
 * Makes the table of connections, for as many as http->max_connections says and
 * the limit on descriptors allows, which it raises. Returns 0, or -1 with
 * `error`. http_release() closes all that is left.
 */
int http_init(struct http *http, char error[ERROR_SIZE]);
void http_release(struct http *http);

/* Bytes that http_init() has allocated; and those that --request-memory does
 * not bound: what requests may leave behind, to be used again, and what those
 * who watch have. */
uint64_t http_table_size(const struct http *http);
uint64_t http_spare_size(void);

/*
 * Listens on "ADDR:PORT", "[V6]:PORT", "PORT" or "unix:PATH[,mode=MODE]"; or on
 * a socket that the service manager has handed over, sd_listen_fds(3). What
 * comes by it has the flags: 0 or FLAG_ADMIN. Returns 0, or -1 with `error`;
 * -2 if the name is malformed. http_close_listeners() closes all but those with
 * a flag of `kept`.
 */
int http_listen(struct http *http, const char *name, uint8_t flags,
                char error[ERROR_SIZE]);
int http_take_listener(struct http *http, int fd, char error[ERROR_SIZE]);
void http_close_listeners(struct http *http, uint8_t kept);

/* Has the Unix sockets that were made belong to a user, and to the group unless
 * their folder has given them one. Returns 0, or -1 with `error`. */
int http_give_sockets(struct http *http, uid_t user, gid_t group,
                      char error[ERROR_SIZE]);

/* Serves the files of a folder, not the bundled pages. Returns 0; 1 if it has
 * no index.html that can be read; or -1 with `error`. */
int http_serve_root(struct http *http, const char *root,
                    char error[ERROR_SIZE]);

/*
 * Reads standard input as the body of a request that never ends, but with the
 * descriptor; nobody is answered. Returns the connection, in CONN_BODY, whose
 * publication is the caller's to set; or NULL with `error`.
 */
struct conn *http_read_input(struct http *http, char error[ERROR_SIZE]);

/* Takes the token from a file. Returns 0, or -1 with `error`: the one before
 * stays. *mode is the file's. */
int http_load_token(struct http *http, const char *path, mode_t *mode,
                    char error[ERROR_SIZE]);

/* Whether a request has that token. Takes as long for every token of that
 * length, right or wrong. */
bool http_token_matches(const struct http *http, const struct request *request);

/* Takes the secret of signed tokens from a file, likewise: SECRET_MIN to
 * SECRET_MAX bytes of any kind, without one line end behind them. */
int http_load_secret(struct http *http, const char *path, mode_t *mode,
                     char error[ERROR_SIZE]);

/*
 * The signed token that a request bears: that of "Authorization: Bearer", of
 * the cookie "ssed_token", or of the query's parameter "token". The first that
 * is there counts, whatever it is. False if there is none. *token points into
 * the request or into `buffer`: it holds until the request's body begins.
 */
bool http_find_token(const struct request *request,
                     char buffer[SIGNED_TOKEN_MAX + 1], struct slice *token);

/*
 * Checks a signed token at a time, in seconds since 1970. Returns NULL, and
 * what it allows in *rights; or why it is refused: one line for the client,
 * without a byte of the token. The longest takes some 100 us, and what nobody
 * has signed less. There must be a secret.
 */
const char *http_verify_token(const struct http *http, struct slice token,
                              uint64_t time, struct rights *rights);

/* Whether one of the patterns covers a topic, whose name is valid; the main
 * stream's is empty. */
bool patterns_cover(struct slice patterns, struct slice topic);

/* Writes the signed token of a claims set, which is JSON. Returns its length,
 * or 0 if `size` is too small. There must be a secret. */
size_t http_sign(const struct http *http, struct slice claims, char *token,
                 size_t size);

/*
 * The throttle of those who guess: after http->max_failures failed tokens from
 * one conn_network() the next are not looked at until a minute after the first.
 * Returns how many seconds that is from now, for Retry-After, or 0. It is
 * always 0 for a peer on this machine. http_count_failure() counts one. Both
 * take the same short time however many networks there are.
 */
unsigned http_failure_wait(const struct http *http, const struct conn *conn);
void http_count_failure(struct http *http, const struct conn *conn);

/*
 * The parts of a turn, in this order: http_update_time(); http_event() for each
 * of epoll's, which only queues; http_expire(); http_serve(), which works on
 * what has arrived and sends the answers, both for a bounded time; and
 * http_end_turn(). http_next() is when the next turn has to be, in ms, 0 for
 * at once.
 */
void http_update_time(struct http *http);
void http_event(struct http *http, const struct epoll_event *event);
void http_expire(struct http *http);
void http_serve(struct http *http);
void http_end_turn(struct http *http);
uint64_t http_next(const struct http *http);

/* Whether no answer is under way any more. */
bool http_is_idle(const struct http *http);

/* The microseconds of a clock, and the milliseconds. */
uint64_t clock_us(clockid_t clock);
uint64_t clock_ms(clockid_t clock);

static inline struct conn *conn_at(const struct http *http, uint32_t fd)
{
    return &http->conns[fd];
}

static inline uint32_t conn_fd(const struct http *http, const struct conn *conn)
{
    return (uint32_t)(conn - http->conns);
}

/* The peer as text, into PEER_SIZE bytes. */
enum {
    PEER_SIZE = INET6_ADDRSTRLEN + 9
};
const char *conn_peer(char *buffer, const struct conn *conn);

/* Whether the peer is on this machine. */
bool conn_is_local(const struct conn *conn);

/* What one client is counted by: its IPv4 address, as IPv6 maps it, or the /64
 * of its IPv6 address, which it has all of (RFC 6177, section 2). */
struct in6_addr conn_network(const struct conn *conn);

/* Puts a connection at the end of a queue, takes it out of the one it is in, or
 * takes the first one out. */
void queue_push(struct http *http, enum queue_name name, struct conn *conn);
void queue_remove(struct http *http, struct conn *conn);
struct conn *queue_pop(struct http *http, enum queue_name name);

/* Has the connection's time expire in `delay` ms, a tick later at the most. */
void timer_start(struct http *http, struct conn *conn, uint64_t delay);

/* The only end of a connection; conn_cut() with a reset, so that the kernel
 * lets go of what was not sent. `reason` is for the log. */
void conn_close(struct http *http, struct conn *conn, const char *reason);
void conn_cut(struct http *http, struct conn *conn, const char *reason);

/* Reallocates bytes of a request, which are counted, from `room` to `wanted`
 * bytes: what memory_cost() says of each. False if that is not to be had:
 * nothing has changed. memory_free() lets go of them. */
size_t memory_cost(size_t room);
bool memory_grow(struct http *http, char **bytes, size_t *room, size_t wanted);
void memory_free(struct http *http, char **bytes, size_t *room);

/*
 * Puts an answer after those that wait to be sent, and makes the exchange ready
 * for the next request. response->length is that of the content; what of it is
 * not in `content` is sent by the caller. respond_text() has a line of text as
 * content, respond_error() nothing else but that; respond_promise() says of
 * events that they are on the disk, which handlers->keep_promises() sees to.
 */
void respond(struct http *http, struct conn *conn, struct response *response,
             struct slice content);
void respond_text(struct http *http, struct conn *conn,
                  struct response response, const char *text);
void respond_error(struct http *http, struct conn *conn, int status,
                   const char *text);
void respond_promise(struct http *http, struct conn *conn,
                     struct response *response, struct slice content);

/* Answers a request whose method is not among those in `allow`: OPTIONS as it
 * should be, others with 405. */
void respond_method(struct http *http, struct conn *conn, const char *allow);

/* Answers with content of response->type that handlers->content() makes, piece
 * by piece, as there is room for it. */
void respond_made(struct http *http, struct conn *conn,
                  struct response *response);

/* Answers with the file that the request's path names. */
void respond_page(struct http *http, struct conn *conn);

/* Reads the request's body. One that `streams` may take its time; all else has
 * to get on, with `size` bytes at the most. */
void conn_begin_body(struct http *http, struct conn *conn, bool streams,
                     uint64_t size);

/*
 * The body is not read until conn_go_on(). The connection waits in
 * QUEUE_WAITING (or the one for busy ones), in QUEUE_LOG, or in none until it
 * is called for by name. conn_go_on() does nothing if it does not wait.
 */
void conn_wait(struct http *http, struct conn *conn, enum queue_name queue);
void conn_go_on(struct http *http, struct conn *conn);

/* A request that is not answered waits in QUEUE_LOG until conn_resume() has it
 * handled once more; or for `patience` ms, see handlers->waited. 0: as long as
 * was said before. */
void conn_park(struct http *http, struct conn *conn, uint64_t patience);
void conn_resume(struct http *http, struct conn *conn);

/*
 * Begins to use the log; the rest goes on in the loop. Returns 0, or -1 with
 * `error`; -2 if the address is malformed. http_release() ends it.
 */
int redis_init(struct http *http, char error[ERROR_SIZE]);

/* The script that appends to the log, in Lua. */
extern const char redis_script[];

/*
 * Has an event appended to the log: pairs of field and value. Returns the
 * flight, 0 if there is no room for it now. redis->state is REDIS_READY. Its
 * end is told to handlers->flight_ended(), with `fd` and `context`;
 * redis_abandon() replaces them with NONE and another context.
 */
uint64_t redis_append(struct http *http, const struct slice *pairs,
                      unsigned count, uint32_t fd, void *context);
void redis_abandon(struct http *http, uint64_t flight, void *context);

/* The first round that will begin after this: when redis->rounds has reached
 * it, all that the log has now has been read. */
static inline uint64_t redis_round(const struct redis *redis)
{
    return redis->rounds_begun + 1;
}

/*
 * The connection becomes a stream, CONN_STREAM or CONN_STATUS. Before it,
 * stream_head() puts what is to go before its first byte into `bytes`: answers
 * to earlier requests that have not been sent, and the head. Returns the
 * length; 0 if a promise among the answers could not be kept, and the
 * connection ends with that answer. conn->subscriber is zero then.
 */
size_t stream_head(struct http *http, struct conn *conn,
                   struct response *response, char *bytes, size_t size);
void conn_begin_stream(struct http *http, struct conn *conn,
                       enum conn_state state);

/* Why sending has stopped. */
enum io {
    IO_DONE,
    IO_FULL,   /* the socket has no room */
    IO_BUDGET, /* others have their turn */
    IO_ERROR,
    IO_OVERRUN, /* sse.c's: what is next for a stream has been evicted */
};

/* Sizes that a build for tests may have otherwise, with -D. */
#ifndef IOV_ROOM
#define IOV_ROOM 1024 /* iovecs to a writev: bounds the time to fill it */
#endif
#ifndef SEND_BUDGET
#define SEND_BUDGET 65536 /* bytes to one before others have theirs */
#endif
#ifndef OUT_SIZE
#define OUT_SIZE 8192 /* bytes of answers to pipelined requests in a turn */
#endif

/* Sends to a stream, as writev(2), but never interrupted; `bytes` is the sum of
 * all. */
ssize_t stream_send_iovecs(const struct http *http, const struct conn *conn,
                           const struct iovec *iov, int count, size_t bytes);

/* Has a stream's handler called when its socket has room; or no more. */
void conn_await_room(struct http *http, struct conn *conn, bool awaits);

static inline bool conn_awaits_room(const struct conn *conn)
{
    return conn->interest & EPOLLOUT;
}

#endif
