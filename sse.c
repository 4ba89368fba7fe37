/*
 * sse.c is what happens: options, the event loop, connections, subscribers,
 * publishing, timers, signals, the log. It makes the system calls and reads
 * the clock; how bytes lie in the ring and how a header is spelled is for
 * ring.c and http.c to know.
 *
 * A connection is known by its file descriptor, which is its index in
 * server.conns. Only conn_close() ends one; its descriptor is closed after
 * the batch (reap()), so that an event of the same batch never meets another
 * connection under the number.
 *
 * A turn of the loop: work on what has arrived and append what is published
 * (the answers wait), send the answers, deliver a slice, look at epoll again.
 * A turn has a budget: each of these steps stops when its time or its slice is
 * used up, and goes on in the next turn. epoll's word only queues.
 */
#include "sse.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "unknown"
#endif

/* Sizes that a build for tests may have otherwise, with -D. */
#ifndef QUANTUM_SENDS
#define QUANTUM_SENDS 64 /* sends of a turn's delivery */
#endif
#ifndef QUANTUM_BYTES
#define QUANTUM_BYTES (2 << 20)
#endif
#ifndef EVENTS_MAX
#define EVENTS_MAX 256 /* of one epoll_wait */
#endif
#ifndef CONTENT_FIRST
#define CONTENT_FIRST 1024 /* bytes of an event under way */
#endif

enum {
    HOSTS_MAX = 16,
    LISTEN_FDS_START = 3,
    CORS_MAX = 256,
    REQUESTED_MAX = 256, /* of an unusable id, what is shown in a gap */
    OWN_MAX = RESPONSE_HEAD_MAX + 6 * REQUESTED_MAX +
              READER_TOPICS_MAX * (TOPIC_NAME_MAX + 3) + 1024,
    PIECE_COST = 32,         /* bytes that gathering one counts as */
    TURN_RETRY = 250,        /* us of a turn for publishers that waited */
    INTERVAL_DEFAULT = 1000, /* ms */
    SYNC_DEFAULT = 1000,     /* ms */
    LOG_BURST = 200,         /* lines that the outside can cause at once */
    LOG_REPORT = 1000,       /* ms between two lines about lines left out */
    LOG_RATE = 100,          /* and in a second */
    RETRY_LATER_MIN = 2000,  /* ms, when there is no room for a subscriber */
    RETRY_LATER_MAX = 10000,
};

/* The greatest id that a publisher may give: one without room for those to
 * come would end publishing for ever. */
#define ID_KEPT_MAX (ID_MAX + 1 - (UINT64_C(1) << 32))
#define ID_KEPT_RANGE                                                      \
    "a number from 1 to 9007194959773696, which leaves room for those to " \
    "come"

#define YEAR_S (UINT64_C(366) * 86400)
#define UNGIVEN UINT32_MAX /* an option that was not given */

/* Makes a catch_up_message of a stored message, put in after "type":". */
#define CATCH_UP_SPLICE "catch_up_message\",\"originalType\":\""

enum {
    TIMESTAMP_SIZE = 25
};

enum level {
    LEVEL_ERROR,
    LEVEL_WARN,
    LEVEL_INFO,
    LEVEL_DEBUG
};

enum publish {
    PUBLISH_LOCAL,
    PUBLISH_UNIX,
    PUBLISH_NONE,
    PUBLISH_TOKEN
};

enum ids {
    IDS_OWN,
    IDS_KEEP
};

enum stdin_form {
    STDIN_LINES,
    STDIN_EVENTS
};

#define SYNC_ALWAYS UINT64_C(0)
#define SYNC_NEVER (UINT64_MAX - 1)

struct options {
    const char *listen[LISTENERS_MAX];
    unsigned listen_count;
    const char *root;
    const char *cors; /* the one origin; NULL: all, or with no_cors none */
    const char *hosts[HOSTS_MAX];
    unsigned host_count;
    const char *token_file;
    const char *topic; /* of what comes on standard input; NULL: main */
    const char *history_file;
    const char *check; /* a history file to look at, and nothing else */
    uint64_t history;
    uint64_t history_bytes;
    uint64_t first_id; /* 0: the clock */
    uint64_t interval; /* ms, as all of them but where said */
    uint64_t heartbeat;
    uint64_t retry;
    uint64_t max_event;
    uint64_t max_connections; /* 0: what the limit on descriptors allows */
    uint64_t request_memory;  /* bytes */
    uint64_t drain;
    uint64_t drain_spread;
    uint64_t drain_delay;
    uint64_t head_timeout;
    uint64_t idle_timeout;
    uint64_t sync;       /* SYNC_ALWAYS, SYNC_NEVER, UNGIVEN */
    unsigned publish;    /* enum publish, UINT_MAX: not given */
    unsigned log_level;  /* enum level */
    unsigned ids;        /* enum ids */
    unsigned stdin_form; /* enum stdin_form, UINT_MAX: not given */
    bool no_cors;
    bool access_log;
    bool end;         /* the topic is finished at the end of standard input */
    bool reads_input; /* standard input is published */
};

enum phase {
    PHASE_SERVE,
    PHASE_ANNOUNCE, /* about to drain: only /healthz tells */
    PHASE_DRAIN,    /* listeners closed; subscribers are sent off */
    PHASE_STOP,
};

struct server {
    struct http http;
    struct ring ring;
    struct options options;
    struct topic *main_topic; /* held */
    char *frame;              /* owned: where a frame is made */
    uint32_t frame_size;      /* bytes of it */
    int signals;

    enum phase phase;
    uint64_t phase_end;     /* ms, when the phase ends by itself; or NEVER */
    uint64_t next_clock;    /* ms; or NEVER */
    uint64_t next_sync;     /* ms, if something is to be synced; or NEVER */
    uint64_t watchdog;      /* ms between two signs of life */
    uint64_t next_watchdog; /* ms; or NEVER */

    bool sync_failed;  /* what is on the disk can no longer be relied on */
    bool file_deleted; /* it has been said */

    /* the oldest frame that some subscriber in QUEUE_READY may need, and the
     * same for those queued since this round of the queue began; 0: none */
    uint64_t ready_from, ready_from_next;
    uint32_t ready_round; /* how many of the round are left */
    unsigned quantum_sends;
    size_t quantum_bytes;
};

/* ----------------------------------------------------------------- log */

static struct {
    enum level level;
    double tokens;
    uint64_t refilled;   /* ms */
    uint64_t suppressed; /* lines, since that was reported */
    uint64_t reported;   /* ms */
} logger = { .level = LEVEL_INFO, .tokens = LOG_BURST };

static const char *const level_names[] = { "error", "warn", "info", "debug",
                                           NULL };

static void format_timestamp(char *text, uint64_t wall_ms)
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm tm;
    size_t length;

    gmtime_r(&seconds, &tm);
    length = strftime(text, TIMESTAMP_SIZE, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(text + length, TIMESTAMP_SIZE - length, ".%03uZ",
             (unsigned)(wall_ms % 1000));
}

/* The name of an error that a call can fail with here, errno(3). */
static const char *error_name(int error)
{
#define NAMED(name) \
    {               \
        name, #name \
    }
    static const struct {
        int error;
        const char *name;
    } names[] = {
        NAMED(EACCES),     NAMED(EAGAIN),       NAMED(ECONNREFUSED),
        NAMED(ECONNRESET), NAMED(EHOSTUNREACH), NAMED(EIO),
        NAMED(EISDIR),     NAMED(EMFILE),       NAMED(ENETUNREACH),
        NAMED(ENFILE),     NAMED(ENOBUFS),      NAMED(ENOENT),
        NAMED(ENOMEM),     NAMED(ENOSPC),       NAMED(EPIPE),
        NAMED(ETIMEDOUT),
    };
#undef NAMED

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (names[i].error == error)
            return names[i].name;
    return "other";
}

/*
 * A line must not block the loop: where the reader of stderr is stuck it is
 * dropped. POLLOUT on a pipe promises PIPE_BUF bytes (pipe(7)), and a line
 * has no more.
 */
static bool log_write(const char *line, size_t length)
{
    struct pollfd stderr_room = { .fd = STDERR_FILENO, .events = POLLOUT };

    if (poll(&stderr_room, 1, 0) != 1 || !(stderr_room.revents & POLLOUT))
        return false;
    return write(STDERR_FILENO, line, length) == (ssize_t)length;
}

__attribute__((format(printf, 3, 0))) static void log_line(enum level level,
                                                           const char *event,
                                                           const char *format,
                                                           va_list arguments)
{
    char line[PIPE_BUF];
    char timestamp[TIMESTAMP_SIZE];
    size_t room = sizeof(line) - 1, length;

    format_timestamp(timestamp, clock_ms(CLOCK_REALTIME));
    length = (size_t)snprintf(line, room, "time=%s level=%s event=%s ",
                              timestamp, level_names[level], event);
    length +=
        (size_t)vsnprintf(line + length, room - length, format, arguments);
    if (length > room - 1)
        length = room - 1;
    while (line[length - 1] == ' ')
        length--;
    line[length++] = '\n';
    if (!log_write(line, length))
        logger.suppressed++;
}

/* What the process does by itself: never limited. */
__attribute__((format(printf, 3, 4))) static void
log_event(enum level level, const char *event, const char *format, ...)
{
    va_list arguments;

    if (level > logger.level)
        return;
    va_start(arguments, format);
    log_line(level, event, format, arguments);
    va_end(arguments);
}

static bool log_allowed(uint64_t now)
{
    logger.tokens += (double)(now - logger.refilled) * LOG_RATE / 1000;
    logger.refilled = now;
    if (logger.tokens > LOG_BURST)
        logger.tokens = LOG_BURST;
    if (logger.tokens < 1) {
        logger.suppressed++;
        return false;
    }
    logger.tokens--;
    return true;
}

/* Says, once a second at most, how many lines have been left out. */
static void log_report(uint64_t now)
{
    uint64_t suppressed = logger.suppressed;

    if (!suppressed || now < logger.reported + LOG_REPORT)
        return;
    logger.suppressed = 0;
    logger.reported = now;
    log_event(LEVEL_WARN, "log_suppressed", "lines=%llu",
              (unsigned long long)suppressed);
}

/* What the outside causes: limited. */
__attribute__((format(printf, 4, 5))) static void
log_client(const struct server *server, enum level level, const char *event,
           const char *format, ...)
{
    va_list arguments;

    if (level > logger.level || !log_allowed(server->http.now))
        return;
    va_start(arguments, format);
    log_line(level, event, format, arguments);
    va_end(arguments);
}

/*
 * A value as it stands in a log line: as it is if it is plain, else in
 * quotes with C's escapes, and cut to fit `size`; so that no byte from
 * outside can end a line or a value.
 */
static const char *log_quote(char *buffer, size_t size, struct slice value)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyz0123456789-._:/@"
                                "ABCDEFGHIJKLMNOPQRSTUVWXYZ+%~,*?&";
    size_t out = 0, in = 0;

    while (in < value.length && value.data[in] && strchr(plain, value.data[in]))
        in++;
    if (in == value.length && in > 0 && in < size) {
        memcpy(buffer, value.data, in);
        buffer[in] = '\0';
        return buffer;
    }
    buffer[out++] = '"';
    for (in = 0; in < value.length && out + 6 < size; in++) {
        unsigned char c = (unsigned char)value.data[in];

        if (c == '"' || c == '\\') {
            buffer[out++] = '\\';
            buffer[out++] = (char)c;
        } else if (c >= ' ' && c < 0x7F) {
            buffer[out++] = (char)c;
        } else {
            out += (size_t)snprintf(buffer + out, size - out, "\\x%02x", c);
        }
    }
    buffer[out++] = '"';
    buffer[out] = '\0';
    return buffer;
}

__attribute__((noreturn, format(printf, 2, 3))) static void
die(int status, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    fputs("ssed: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(status);
}

enum {
    EXIT_RUN_TIME = 1,
    EXIT_USAGE = 2
};

/* --------------------------------------------------------- subscribers
 *
 * A connection in CONN_STREAM is a subscriber: what it reads, and what only it
 * gets. Nothing is kept for it but its places and how much of the next frame it
 * has been sent; what a full socket did not take of its own bytes is in
 * subscriber->own.
 */

/* What one subscriber alone gets and the socket did not take at once. */
struct own {
    uint32_t sent;
    uint32_t length;
    char bytes[];
};

/* A subscriber's places: one for each topic. */
static struct place *subscriber_places(struct subscriber *subscriber)
{
    return subscriber->topic_count == 1 ? &subscriber->place
                                        : subscriber->places;
}

/* Whether it reads the main stream: alone then. */
static bool reads_main(const struct server *server,
                       struct subscriber *subscriber)
{
    return subscriber_places(subscriber)->topic == server->main_topic;
}

static bool is_replaying(const struct subscriber *subscriber)
{
    return !subscriber->is_ahead && subscriber->replay_end;
}

/* What a subscriber reads. */
static struct reader subscriber_reader(struct subscriber *subscriber)
{
    bool replays = is_replaying(subscriber);

    return (struct reader){
        .places = subscriber_places(subscriber),
        .count = subscriber->topic_count,
        .form = subscriber->form | (replays ? FORM_SPLICED : 0U),
        .until = replays ? subscriber->replay_end : UINT64_MAX,
    };
}

static void own_free(struct server *server, struct subscriber *subscriber)
{
    struct own *own = subscriber->own;

    if (own)
        memory_return(&server->http, sizeof(*own) + own->length);
    free(own);
    subscriber->own = NULL;
}

/* Keeps what the socket did not take of the bytes that are this one's own:
 * the rest of subscriber->own, or others. False without memory. */
static bool own_keep(struct server *server, struct subscriber *subscriber,
                     struct slice rest)
{
    struct own *own = subscriber->own;
    size_t size = sizeof(*own) + rest.length;

    if (!own && rest.length == 0)
        return true; /* the rule */
    if (own && rest.length &&
        rest.data + rest.length == own->bytes + own->length) {
        own->sent = own->length - (uint32_t)rest.length;
        return true;
    }
    own_free(server, subscriber);
    if (rest.length == 0)
        return true;
    if (!memory_take(&server->http, size))
        return false;
    own = malloc(size);
    if (!own) {
        memory_return(&server->http, size);
        return false;
    }
    *own = (struct own){ .length = (uint32_t)rest.length };
    memcpy(own->bytes, rest.data, rest.length);
    subscriber->own = own;
    return true;
}

/* Leaves a topic. The subscriber that takes the index there is told. */
static void leave(struct server *server, const struct place *left)
{
    struct topic *topic = left->topic;
    struct conn *moved = conn_at(&server->http, topic_leave(left));
    struct place *place = subscriber_places(&moved->subscriber);

    while (place->topic != topic)
        place++;
    place->index = left->index;
    topic_drop(&server->ring, topic);
}

/* It ends: lets go of all that it has. */
static void unsubscribe(struct server *server, struct conn *conn,
                        const char *reason)
{
    struct subscriber *subscriber = &conn->subscriber;
    struct place *places = subscriber_places(subscriber);
    char peer[PEER_SIZE];

    for (unsigned i = 0; i < subscriber->topic_count; i++)
        leave(server, &places[i]);
    own_free(server, subscriber);
    if (subscriber->topic_count > 1)
        free(places);
    log_client(server, LEVEL_INFO, "unsubscribed",
               "peer=%s reason=%s events=%u bytes=%" PRIu64 " seconds=%u",
               conn_peer(peer, conn), reason, subscriber->progress.events,
               subscriber->bytes,
               (uint32_t)(server->http.now / 1000) - subscriber->since);
}

/* Where a subscriber stands that has been sent everything. */
static uint64_t position_of(const struct server *server,
                            const struct subscriber *subscriber)
{
    uint64_t newest = server->ring.newest_id;

    return subscriber->is_ahead && subscriber->ahead > newest
               ? subscriber->ahead
               : newest;
}

static void put_catch_up_end(struct text *text,
                             const struct subscriber *subscriber)
{
    text_put_block(text, subscriber->form, &(struct block){ 0 },
                   "{\"type\":\"catch_up_end\","
                   "\"message\":\"消息同步完成\",\"syncCount\":%u}",
                   subscriber->replay_count);
}

static uint64_t random_below(uint64_t limit)
{
    uint64_t number;

    if (getrandom(&number, sizeof(number), GRND_NONBLOCK) !=
        (ssize_t)sizeof(number))
        number = (uint64_t)random();
    return limit ? number % limit : 0;
}

static void put_last_chunk(struct text *text, unsigned form)
{
    if (form & FORM_CHUNKED)
        text_put(text, "0\r\n\r\n");
}

/* The end of a stream: where it stands, if it has begun; when to come back;
 * and the last chunk. */
static void put_farewell(struct text *text, unsigned form,
                         const uint64_t *position, uint64_t retry)
{
    text_put_block(text, form,
                   &(struct block){ .retry = &retry, .id = position }, NULL);
    put_last_chunk(text, form);
}

/* ------------------------------------------------------------- delivery
 *
 * Sends to subscribers what there is for them, from a subscriber's places to
 * the end. A turn has two quanta for it: for the passes over topics with new
 * frames, and for those that had room in their sockets for more. Within one,
 * stream_send() is all that sends: live delivery, replays and catching up are
 * the same.
 */

/* Has the subscriber offered more as soon as the others had their turn. */
static void ready_push(struct server *server, struct conn *conn)
{
    struct reader reader = subscriber_reader(&conn->subscriber);
    uint64_t needs = reader_next(&server->ring, &reader);

    if (conn->queue == QUEUE_READY)
        return;
    queue_push(&server->http, QUEUE_READY, conn);
    if (needs && (!server->ready_from || needs < server->ready_from))
        server->ready_from = needs;
    if (needs && (!server->ready_from_next || needs < server->ready_from_next))
        server->ready_from_next = needs;
}

/* What comes next in a stream whose bytes so far have all been sent. One that
 * is ahead has had what finished its topics here, and maybe more, elsewhere:
 * its stream goes on. */
static struct slice next_own(struct server *server,
                             struct subscriber *subscriber,
                             const struct reader *reader, struct text *text)
{
    bool drains = server->phase == PHASE_DRAIN;
    uint64_t position;

    text->length = 0;
    if (is_replaying(subscriber)) {
        if (subscriber->place.last >= subscriber->replay_end) {
            put_catch_up_end(text, subscriber);
            subscriber->replay_end = 0;
        }
        return text_slice(text);
    }
    if ((!drains && (subscriber->is_ahead || !reader_ended(reader))) ||
        subscriber->ends || reader_next(&server->ring, reader))
        return text_slice(text);
    position = position_of(server, subscriber);
    if (drains)
        put_farewell(text, subscriber->form, &position,
                     1000 + random_below(server->options.drain_spread + 1));
    else
        put_last_chunk(text, subscriber->form);
    subscriber->ends = true;
    return text_slice(text);
}

/* Gathers a stream's next bytes; returns how many iovecs, and their bytes. */
static int stream_gather(const struct server *server,
                         const struct subscriber *subscriber,
                         const struct reader *reader, struct slice own,
                         struct iovec *iov, size_t *bytes)
{
    int count = 0;

    if (own.length)
        iov[count++] =
            (struct iovec){ (void *)(uintptr_t)own.data, own.length };
    if (!subscriber->ends)
        count += ring_gather(&server->ring, reader, subscriber->progress.sent,
                             iov + count, IOV_ROOM - count, SEND_BUDGET);
    *bytes = 0;
    for (int i = 0; i < count; i++)
        *bytes += iov[i].iov_len;
    return count;
}

static void stream_advance(struct server *server, struct subscriber *subscriber,
                           const struct reader *reader, struct slice *own,
                           size_t sent, size_t pieces)
{
    size_t first = sent < own->length ? sent : own->length;

    *own = slice_from(*own, first);
    ring_advance(&server->ring, reader, &subscriber->progress, sent - first);
    subscriber->bytes += sent;
    subscriber->active = (uint32_t)server->http.now;
    server->quantum_sends++;
    server->quantum_bytes += sent + pieces * PIECE_COST;
}

/* Passes over what a subscriber that was ahead has had elsewhere. */
static void stream_skip(struct server *server, struct subscriber *subscriber)
{
    struct reader reader = subscriber_reader(subscriber);

    reader_skip(&server->ring, &reader, subscriber->ahead);
    if (server->ring.newest_id < subscriber->ahead || !server->ring.newest_id)
        return;
    subscriber->is_ahead = false;
    subscriber->replay_end = 0;
}

/* Sends from the places to the end, `own` first; *own is then what is left
 * of it. Says why it stopped. */
static enum io stream_write(struct server *server, struct conn *conn,
                            struct slice *own, struct text *text)
{
    struct subscriber *subscriber = &conn->subscriber;
    struct iovec iov[IOV_ROOM];
    size_t total = 0, bytes = SEND_BUDGET;
    struct reader reader;
    int count = 0;

    if (subscriber->is_ahead)
        stream_skip(server, subscriber);
    reader = subscriber_reader(subscriber);
    if (reader_overrun(&reader))
        return IO_OVERRUN;
    for (;;) {
        ssize_t sent;

        if (own->length == 0)
            *own = next_own(server, subscriber, &reader, text);
        if (own->length == 0 && bytes < SEND_BUDGET && count < IOV_ROOM)
            return IO_DONE; /* there was room for more than there is */
        reader = subscriber_reader(subscriber);
        count = stream_gather(server, subscriber, &reader, *own, iov, &bytes);
        if (count == 0)
            return IO_DONE;
        if (total >= SEND_BUDGET)
            return IO_BUDGET;
        sent = stream_send_iovecs(&server->http, conn, iov, count, bytes);
        if (sent < 0)
            return errno == EAGAIN ? IO_FULL : IO_ERROR;
        stream_advance(server, subscriber, &reader, own, (size_t)sent,
                       (size_t)count);
        total += (size_t)sent;
        if ((size_t)sent < bytes)
            return IO_FULL;
    }
}

/*
 * Sends a subscriber what there is for it: `own`, which goes to it alone and
 * is empty for most, then the frames from its places on. What does not fit
 * goes when its socket has room again.
 */
static void stream_send(struct server *server, struct conn *conn,
                        struct slice own)
{
    struct subscriber *subscriber = &conn->subscriber;
    struct http *http = &server->http;
    char bytes[512];
    struct text text = { bytes, sizeof(bytes), 0 };
    enum io outcome;

    assert(!subscriber->own || own.length == 0);
    if (subscriber->own)
        own = (struct slice){ subscriber->own->bytes + subscriber->own->sent,
                              subscriber->own->length - subscriber->own->sent };
    outcome = stream_write(server, conn, &own, &text);
    if (outcome == IO_OVERRUN) {
        conn_cut(http, conn, "overrun");
    } else if (outcome == IO_ERROR) {
        conn_close(http, conn, error_name(errno));
    } else if (!own_keep(server, subscriber, own)) {
        conn_close(http, conn, error_name(ENOMEM));
    } else if (outcome == IO_DONE && subscriber->ends) {
        conn_close(http, conn,
                   server->phase == PHASE_DRAIN ? "drained" : "finished");
    } else {
        conn_await_room(http, conn, outcome == IO_FULL);
        if (outcome == IO_BUDGET)
            ready_push(server, conn);
    }
}

static void begin_quantum(struct server *server)
{
    server->quantum_sends = 0;
    server->quantum_bytes = 0;
}

static bool quantum_is_over(const struct server *server)
{
    return server->quantum_sends >= QUANTUM_SENDS ||
           server->quantum_bytes >= QUANTUM_BYTES;
}

/* In a pass: one with a full socket waits for room in it, or is overrun. */
static void pass_visit(struct server *server, struct conn *conn)
{
    struct reader reader = subscriber_reader(&conn->subscriber);

    if (!conn_awaits_room(conn) || reader_overrun(&reader))
        stream_send(server, conn, SLICE(""));
}

/* While a pass is under way, frames pile up, and each subscriber gets all of
 * them at once when its turn comes. */
static void deliver_topics(struct server *server)
{
    uint32_t fd;

    begin_quantum(server);
    while (!quantum_is_over(server) && (fd = pass_next(&server->ring)) != NONE)
        pass_visit(server, conn_at(&server->http, fd));
    pass_yield(&server->ring);
}

/*
 * Offers more to those that had room for more, each once in a round, so that
 * after a round what they need is known anew: server->ready_from holds up
 * publishers, and must not do so for what has been sent since.
 */
static void deliver_ready(struct server *server)
{
    const struct queue *ready = &server->http.queues[QUEUE_READY];

    begin_quantum(server);
    while (ready->count && !quantum_is_over(server)) {
        if (server->ready_round == 0) {
            server->ready_round = ready->count;
            server->ready_from = server->ready_from_next;
            server->ready_from_next = 0;
        }
        server->ready_round--;
        stream_send(server, queue_pop(&server->http, QUEUE_READY), SLICE(""));
    }
    if (ready->count == 0) {
        server->ready_round = 0;
        server->ready_from = 0;
        server->ready_from_next = 0;
    }
}

/* Everything that the turn's publishes lead to. Live delivery and replays
 * have a quantum each, so that however much is replayed, what is new goes
 * out. */
static void deliver(struct server *server)
{
    deliver_topics(server);
    deliver_ready(server);
}

static void send_heartbeat(struct server *server, struct conn *conn)
{
    struct subscriber *subscriber = &conn->subscriber;
    char bytes[256], timestamp[TIMESTAMP_SIZE];
    struct text text = { bytes, sizeof(bytes), 0 };
    uint64_t position = position_of(server, subscriber);
    struct block block = { .id = &position };

    format_timestamp(timestamp, clock_ms(CLOCK_REALTIME));
    if (reads_main(server, subscriber))
        text_put_block(&text, subscriber->form, &block,
                       "{\"type\":\"heartbeat\",\"timestamp\":\"%s\"}",
                       timestamp);
    else
        text_put_block(&text, subscriber->form, &block, NULL);
    stream_send(server, conn, text_slice(&text));
}

/* The heartbeat's time has come. One that has been sent everything gets the
 * newest id with it. */
static void handle_expired(struct server *server, struct conn *conn)
{
    struct subscriber *subscriber = &conn->subscriber;
    struct reader reader = subscriber_reader(subscriber);
    uint64_t period = server->options.heartbeat;
    uint32_t silence = (uint32_t)server->http.now - subscriber->active;

    timer_start(&server->http, conn,
                silence < period ? period - silence : period);
    if (silence >= period && !subscriber->own && !is_replaying(subscriber) &&
        !reader_next(&server->ring, &reader))
        send_heartbeat(server, conn);
}

/* ------------------------------------------------------------- publishing
 *
 * An event becomes a frame and is appended; or it must wait, for the ring is
 * about to overrun a subscriber that ssed has not come round to.
 */

enum outcome {
    PUBLISHED,
    MUST_WAIT,
    STALE, /* the id is not greater than the newest */
    IDS_USED_UP,
    NOT_KEPT /* --sync always, and the disk has failed */
};

/*
 * With ids from outside a history begins where its first event is, and so
 * does one that goes on after a crash of the machine: what was before that may
 * be gone. A subscriber whose position is older is cut: it is told of the gap
 * when it comes again.
 */
static void begin_kept_history(struct server *server, uint64_t id)
{
    uint64_t newest = server->ring.newest_id;

    if (id <= newest)
        return;
    ring_begin_after(&server->ring, id - 1);
    for (uint32_t fd = 0; fd < server->http.conn_limit; fd++) {
        struct conn *conn = conn_at(&server->http, fd);
        bool ahead = conn->state == CONN_STREAM && conn->subscriber.is_ahead;

        if (conn->state == CONN_STREAM && (ahead || newest) &&
            (ahead ? conn->subscriber.ahead : newest) < id - 1)
            conn_cut(&server->http, conn, "gap");
    }
}

/* What --sync always promises can no longer be kept. */
static bool has_failed_disk(const struct server *server)
{
    return server->sync_failed && server->options.sync == SYNC_ALWAYS;
}

static enum outcome publish_frame(struct server *server, struct topic *topic,
                                  uint64_t id, const struct text *frame,
                                  size_t splice, bool end)
{
    struct ring *ring = &server->ring;

    if (has_failed_disk(server))
        return NOT_KEPT;
    if (ring_would_overrun(ring, frame->length, server->ready_from))
        return MUST_WAIT;
    if (ring->unbegun)
        begin_kept_history(server, id);
    ring_append(ring, topic, id, text_slice(frame), (uint32_t)splice, end);
    return PUBLISHED;
}

/* A message of the main stream. Returns where the splice text goes. */
static size_t put_message(struct text *text, uint64_t id, struct slice message)
{
    char timestamp[TIMESTAMP_SIZE];
    size_t begin, splice;

    format_timestamp(timestamp, clock_ms(CLOCK_REALTIME));
    begin = text_begin_block(text, FORM_CHUNKED, &(struct block){ .id = &id });
    text_put(text, "data: {\"type\":\"");
    splice = text->length;
    text_put(text, "message\",\"id\":%" PRIu64 ",\"message\":\"", id);
    text_put_json(text, message);
    text_put(text, "\",\"timestamp\":\"%s\"}\n", timestamp);
    text_end_block(text, FORM_CHUNKED, begin);
    return splice;
}

/* Finishes a topic; *id is then that of its end. With kept ids another server
 * of the group has the end, so it is stored whatever is known of the topic. */
static enum outcome publish_topic_end(struct server *server,
                                      struct topic *topic, uint64_t given,
                                      uint64_t *id)
{
    struct text text = { server->frame, server->frame_size, 0 };
    uint64_t last = topic->newest_id;
    struct block block = { .id = id, .event = SLICE("ssed.end") };
    char text_of_last[24] = "null";

    *id = last;
    if (!given && topic_finished(&server->ring, topic))
        return PUBLISHED;
    *id = given ? given : server->ring.newest_id + 1;
    if (*id > ID_MAX)
        return IDS_USED_UP;
    if (last)
        snprintf(text_of_last, sizeof(text_of_last), "\"%" PRIu64 "\"", last);
    text_put_block(&text, FORM_CHUNKED, &block,
                   "{\"topic\":\"%.*s\",\"last\":%s}", (int)topic->name.length,
                   topic->name.data, text_of_last);
    return publish_frame(server, topic, *id, &text, 0, true);
}

/* Appends an event to its topic's history, or finishes the topic; *id is then
 * its id. */
static enum outcome publish_event(struct server *server, struct topic *topic,
                                  const struct event *event, uint64_t *id)
{
    struct text text = { server->frame, server->frame_size, 0 };
    size_t splice = 0;

    if (event->finishes)
        return publish_topic_end(server, topic, event->id, id);
    *id = event->id ? event->id : server->ring.newest_id + 1;
    if (*id > ID_MAX)
        return IDS_USED_UP;
    if (topic == server->main_topic)
        splice = put_message(&text, *id, event->data);
    else
        text_put_event(&text, *id, event);
    return publish_frame(server, topic, *id, &text, splice, false);
}

/* The clock of the main stream. A message that would overrun somebody is
 * left for the next turn; what was missed is not made up for. */
static void publish_clock(struct server *server)
{
    char message[64] = "当前时间: ";
    size_t length = strlen(message);
    time_t seconds = time(NULL);
    struct event event = { 0 };
    struct tm tm;
    uint64_t id;

    if (server->http.now < server->next_clock)
        return;
    localtime_r(&seconds, &tm);
    length += strftime(message + length, sizeof(message) - length,
                       "%Y-%m-%d %H:%M:%S", &tm);
    event.data = (struct slice){ message, length };
    if (publish_event(server, server->main_topic, &event, &id) == MUST_WAIT)
        return;
    server->next_clock += server->options.interval;
    if (server->next_clock <= server->http.now)
        server->next_clock = server->http.now + server->options.interval;
}

/* ------------------------------------------------------- the history file */

#define NOT_KEPT_TEXT "the history file cannot be written: see the log"

/* Brings the history to the disk. That it failed once is never forgotten: the
 * kernel may have dropped what it could not write. */
static void sync_history(struct server *server)
{
    if (ring_sync(&server->ring) == 0)
        return;
    log_event(LEVEL_ERROR, "sync_failed", "file=\"%s\" error=%s",
              server->options.history_file, error_name(errno));
    server->sync_failed = true;
}

/* Says once that the file has been deleted. */
static void look_for_file(struct server *server)
{
    if (server->file_deleted || !ring_deleted(&server->ring))
        return;
    server->file_deleted = true;
    log_event(LEVEL_ERROR, "history_file_deleted",
              "file=\"%s\" meaning=\"the next start begins a new one\"",
              server->options.history_file);
}

/* --sync SECONDS; or at the end of a turn what nobody waits for. */
static void sync_when_due(struct server *server)
{
    bool pause = server->sync_failed && server->options.sync < SYNC_DEFAULT;

    if (!server->ring.unsynced || server->http.now < server->next_sync)
        return;
    server->next_sync =
        server->http.now + (pause ? SYNC_DEFAULT : server->options.sync);
    look_for_file(server);
    sync_history(server);
}

static void end_history(struct server *server)
{
    look_for_file(server);
    if (!server->sync_failed && ring_end(&server->ring) == 0)
        return;
    log_event(LEVEL_ERROR, "sync_failed",
              "file=\"%s\" meaning=\"if the machine goes down now, the next "
              "start tells of a gap\"",
              server->options.history_file);
}

/* --------------------------------------------------------- subscribing */

static void log_access(const struct server *server, const struct conn *conn,
                       int status, uint64_t length)
{
    static const char *const methods[] = { "-",    "DELETE",  "GET",
                                           "HEAD", "OPTIONS", "POST" };
    const struct request *request = &conn->exchange->request;
    const struct topic *topic = conn->exchange->publication.topic;
    char peer[PEER_SIZE], path[512];

    if (!server->options.access_log)
        return;
    if (topic) /* the body lies where the request was */
        snprintf(path, sizeof(path), "/events%s%.*s",
                 topic->name.length ? "/" : "", (int)topic->name.length,
                 topic->name.data);
    else
        log_quote(path, sizeof(path), request->path);
    log_client(server, LEVEL_INFO, "request",
               "peer=%s method=%s path=%s status=%d bytes=%" PRIu64,
               conn_peer(peer, conn), methods[request->method], path, status,
               length);
}

static const char *stream_cors(const struct server *server)
{
    const struct options *options = &server->options;

    return options->no_cors ? NULL : options->cors ? options->cors : "*";
}

/* The first id that is given and not empty: the header's, which a browser
 * sends when it reconnects, is newer than the query's. */
static struct slice find_requested(const struct request *request,
                                   char buffer[REQUESTED_MAX])
{
    static const char *const names[] = { "lastEventId", "last_event_id" };
    struct slice requested = request->last_event_id;

    for (int i = 0; i < 2 && requested.length == 0; i++)
        http_query(request->query, names[i], buffer, REQUESTED_MAX, &requested);
    return requested;
}

/* How many events before what is new are asked for. False if `last=` is not a
 * number. */
static bool find_count(const struct request *request, uint64_t *count)
{
    char digits[24];
    struct slice last = SLICE("");

    *count = 0;
    http_query(request->query, "last", digits, sizeof(digits), &last);
    return last.length == 0 || slice_number(last, ID_MAX, count);
}

static void put_connected(struct text *text, const struct server *server,
                          unsigned form, const struct start *start)
{
    char timestamp[TIMESTAMP_SIZE];
    struct block block = { .retry = &server->options.retry,
                           .id = start->gap ? NULL : &start->position };

    format_timestamp(timestamp, clock_ms(CLOCK_REALTIME));
    text_put_block(text, form, &block,
                   "{\"type\":\"connected\",\"message\":\"连接建立成功\","
                   "\"timestamp\":\"%s\"}",
                   timestamp);
}

/* The values of a gap that both kinds of streams tell: the id asked for, and
 * the oldest one held behind all that may be gone. What is held before that
 * is sent as well: after a crash of the machine the hole is behind it. */
static void put_requested_and_oldest(struct text *text,
                                     const struct server *server,
                                     const struct reader *reader,
                                     const struct start *start)
{
    struct slice requested = start->requested;
    uint64_t oldest = start_oldest(&server->ring, reader, start);

    if (requested.length > REQUESTED_MAX)
        requested.length = REQUESTED_MAX;
    text_put(text, "\"requested\":\"");
    text_put_json(text, requested);
    if (oldest)
        text_put(text, "\",\"oldest\":\"%" PRIu64 "\"", oldest);
    else
        text_put(text, "\",\"oldest\":null");
}

static void put_gap(struct text *text, const struct server *server,
                    unsigned form, const struct reader *reader,
                    const struct start *start)
{
    struct block block = { .id = &start->position };
    size_t begin = text_begin_block(text, form, &block);

    text_put(text, "data: {\"type\":\"gap\",\"message\":"
                   "\"部分历史消息已无法补发\",");
    put_requested_and_oldest(text, server, reader, start);
    text_put(text, "}\n");
    text_end_block(text, form, begin);
}

/* The same in a stream of topics. */
static void put_topics_gap(struct text *text, const struct server *server,
                           unsigned form, const struct reader *reader,
                           const struct start *start)
{
    struct block block = { .id = &start->position, .event = SLICE("ssed.gap") };
    size_t begin = text_begin_block(text, form, &block);
    const char *separator = "";

    text_put(text, "data: {");
    put_requested_and_oldest(text, server, reader, start);
    text_put(text, ",\"topics\":[");
    for (unsigned i = 0; i < reader->count; i++) {
        struct slice name = reader->places[i].topic->name;

        if (!start_lost(start, reader->places[i].topic))
            continue;
        text_put(text, "%s\"%.*s\"", separator, (int)name.length, name.data);
        separator = ",";
    }
    text_put(text, "]}\n");
    text_end_block(text, form, begin);
}

/* The first block of a stream of topics: it dispatches nothing. */
static void put_position(struct text *text, const struct server *server,
                         unsigned form, const struct start *start)
{
    struct block block = { .retry = &server->options.retry,
                           .id = start->gap ? NULL : &start->position };

    text_put_block(text, form, &block, NULL);
}

static void put_catch_up_start(struct text *text, unsigned form, uint64_t count)
{
    text_put_block(text, form, &(struct block){ 0 },
                   "{\"type\":\"catch_up_start\",\"message\":\"开始同步 "
                   "%" PRIu64 " 条错过的消息\",\"count\":%" PRIu64 "}",
                   count, count);
}

/* Makes sure that nothing can fail when the connection becomes a subscriber's:
 * room in the topics, and for several places. */
static bool stream_reserve(const struct reader *reader, struct place **places)
{
    size_t size = reader->count * sizeof(**places);

    for (unsigned i = 0; i < reader->count; i++)
        if (!topic_reserve(reader->places[i].topic))
            return false;
    if (reader->count == 1)
        return true;
    *places = malloc(size);
    if (*places)
        memcpy(*places, reader->places, size);
    return *places;
}

/* The connection becomes a subscriber's, and the reader's places its own, with
 * the hold on their topics. False without memory: nothing has changed. */
static bool stream_begin(struct server *server, struct conn *conn,
                         const struct reader *reader, const struct start *start)
{
    struct subscriber *subscriber = &conn->subscriber;
    struct http *http = &server->http;
    struct place *places = NULL;

    if (!stream_reserve(reader, &places))
        return false;
    conn_begin_stream(http, conn);
    subscriber->form = (uint8_t)reader->form;
    subscriber->topic_count = (uint8_t)reader->count;
    if (places)
        subscriber->places = places;
    else
        subscriber->place = reader->places[0];
    for (unsigned i = 0; i < reader->count; i++)
        topic_join(&server->ring, &subscriber_places(subscriber)[i],
                   conn_fd(http, conn));
    subscriber->since = (uint32_t)(http->now / 1000);
    subscriber->active = (uint32_t)http->now;
    subscriber->replay_count = (uint32_t)start->replay;
    subscriber->is_ahead = start->ahead;
    if (start->ahead)
        subscriber->ahead = start->position;
    else if (start->replay && reads_main(server, subscriber))
        subscriber->replay_end = server->main_topic->newest;
    if (server->options.heartbeat)
        timer_start(http, conn, server->options.heartbeat);
    return true;
}

static struct response stream_response(const struct server *server,
                                       const struct conn *conn)
{
    return (struct response){
        .status = 200,
        .stream = true,
        .chunked = conn->exchange->request.minor > 0,
        .cors = stream_cors(server),
    };
}

/* No error status: at any but 200 an EventSource gives up for good. */
static void refuse_subscriber(struct server *server, struct conn *conn)
{
    struct response response = stream_response(server, conn);
    char bytes[256];
    struct text text = { bytes, sizeof(bytes), 0 };

    put_farewell(&text, response.chunked ? FORM_CHUNKED : FORM_PLAIN, NULL,
                 RETRY_LATER_MIN +
                     random_below(RETRY_LATER_MAX - RETRY_LATER_MIN + 1));
    response.close = true;
    respond(&server->http, conn, &response, text_slice(&text));
}

static void log_subscribed(const struct server *server, const struct conn *conn,
                           const struct reader *reader,
                           const struct start *start)
{
    char peer[PEER_SIZE], requested[REQUESTED_MAX], topic[TOPIC_NAME_MAX + 1];
    bool is_main = reader->places[0].topic == server->main_topic;

    log_client(server, LEVEL_INFO, "subscribed",
               "peer=%s topic=%s topics=%u last_event_id=%s replay=%llu gap=%s",
               conn_peer(peer, conn),
               is_main ? "-"
                       : log_quote(topic, sizeof(topic),
                                   reader->places[0].topic->name),
               reader->count,
               log_quote(requested, sizeof(requested), start->requested),
               (unsigned long long)start->replay, start->gap ? "yes" : "no");
}

/* All that goes before the first frame. False if it is not to be: the
 * connection ends. */
static bool put_stream_begin(struct text *text, struct server *server,
                             struct conn *conn, const struct reader *reader,
                             const struct start *start)
{
    struct response response = stream_response(server, conn);
    unsigned form = reader->form;

    text->length =
        stream_head(&server->http, conn, &response, text->bytes, text->room);
    if (!text->length)
        return false;
    if (reader->places[0].topic != server->main_topic) {
        put_position(text, server, form, start);
        if (start->gap)
            put_topics_gap(text, server, form, reader, start);
        return true;
    }
    put_connected(text, server, form, start);
    if (start->gap)
        put_gap(text, server, form, reader, start);
    if (start->replay)
        put_catch_up_start(text, form, start->replay);
    return true;
}

/* Answers a request to subscribe. True if the connection is now a
 * subscriber's and has the hold on the topics. */
static bool subscribe_to(struct server *server, struct conn *conn,
                         const struct reader *reader, uint64_t count)
{
    const struct request *request = &conn->exchange->request;
    char bytes[OUT_SIZE + OWN_MAX], requested[REQUESTED_MAX];
    struct text text = { bytes, sizeof(bytes), 0 };
    struct response head = stream_response(server, conn);
    struct start start;

    reader_start(&server->ring, reader, find_requested(request, requested),
                 count, &start);
    if (!start.ahead && reader_finished(&server->ring, reader)) {
        head.status = 204;
        head.stream = false;
        head.no_cache = true;
        respond(&server->http, conn, &head, SLICE(""));
    } else if (request->method == METHOD_HEAD) {
        respond(&server->http, conn, &head, SLICE(""));
    } else if (conn->flags & FLAG_SURPLUS) {
        refuse_subscriber(server, conn);
    } else if (put_stream_begin(&text, server, conn, reader, &start)) {
        log_access(server, conn, 200, 0);
        log_subscribed(server, conn, reader, &start);
        if (stream_begin(server, conn, reader, &start)) {
            stream_send(server, conn, text_slice(&text));
            return true;
        }
        refuse_subscriber(server, conn);
    }
    return false;
}

/* Holds the topic as one more of the reader's, unless it is one already. */
static bool reader_add(struct server *server, struct reader *reader,
                       struct slice name)
{
    struct topic *topic = topic_hold(&server->ring, name);

    if (!topic)
        return false;
    for (unsigned i = 0; i < reader->count; i++) {
        if (reader->places[i].topic != topic)
            continue;
        topic_drop(&server->ring, topic);
        return true;
    }
    reader->places[reader->count++] = (struct place){ .topic = topic };
    return true;
}

/* Adds the topics of the query. Returns why they are refused, or NULL. */
static const char *reader_add_query(struct server *server,
                                    struct reader *reader, struct slice query,
                                    bool *no_memory)
{
    char name[TOPIC_NAME_MAX + 1];
    struct slice topic;

    while (!*no_memory &&
           http_query_next(&query, "topic", name, sizeof(name), &topic)) {
        const char *refused = topic_name_refused(topic);

        if (refused)
            return refused;
        if (reader->count == READER_TOPICS_MAX)
            return "one connection takes at most 16 topics";
        *no_memory = !reader_add(server, reader, topic);
    }
    return NULL;
}

/* `path_topic` is the one in the path, NULL if the path has none. */
static void subscribe(struct server *server, struct conn *conn,
                      const struct slice *path_topic)
{
    const struct request *request = &conn->exchange->request;
    struct place places[READER_TOPICS_MAX];
    struct reader reader = {
        .places = places,
        .form = request->minor > 0 ? FORM_CHUNKED : FORM_PLAIN,
        .until = UINT64_MAX,
    };
    bool no_memory = false, subscribed = false;
    const char *refused = NULL;
    uint64_t count;

    if (path_topic)
        no_memory = !reader_add(server, &reader, *path_topic);
    else
        refused = reader_add_query(server, &reader, request->query, &no_memory);
    if (!refused && !no_memory && reader.count == 0)
        no_memory = !reader_add(server, &reader, SLICE(""));
    if (!refused && !no_memory && !find_count(request, &count))
        refused = "last= is not a number of events";
    if (refused)
        respond_error(&server->http, conn, 400, refused);
    else if (no_memory)
        refuse_subscriber(server, conn);
    else
        subscribed = subscribe_to(server, conn, &reader, count);
    for (unsigned i = 0; !subscribed && i < reader.count; i++)
        topic_drop(&server->ring, places[i].topic);
}

/* ------------------------------------------------------------ publications
 *
 * What is published by one publisher: a request, or standard input. It goes in
 * steps: content is taken in until an event is complete (STEP_TAKE), the event
 * is appended (STEP_APPEND), and again; at the end the topic is finished, if
 * that is asked for (STEP_FINISH), and the publisher is answered
 * (STEP_ANSWER). A step that must wait is taken again later. handle_body()
 * and retry_publishers() take steps.
 */

static bool is_input(const struct conn *conn)
{
    return conn->flags & FLAG_INPUT;
}

/* Whether content is an event stream or lines: what is wrong with one event is
 * then nothing to the others. */
static bool is_streamed(const struct publication *publication)
{
    return publication->from == FROM_EVENTS || publication->from == FROM_LINES;
}

static void publication_release(struct server *server,
                                struct publication *publication)
{
    memory_free(&server->http, &publication->content,
                &publication->content_room);
    if (publication->topic)
        topic_drop(&server->ring, publication->topic);
    publication->topic = NULL;
}

/* An answer in JSON to a publisher. */
static void respond_json(struct server *server, struct conn *conn, int status,
                         const struct text *json)
{
    struct response response = {
        .status = status,
        .type = "application/json",
        .length = json->length,
        .retry_after = status == 503 ? 2 : 0,
        .cors = server->options.cors,
    };

    if (server->options.sync == SYNC_ALWAYS && status < 300)
        respond_promise(&server->http, conn, &response, text_slice(json));
    else
        respond(&server->http, conn, &response, text_slice(json));
}

/* The answer to a publish that is in the history. */
static void respond_published(struct server *server, struct conn *conn,
                              uint64_t id)
{
    const struct publication *publication = &conn->exchange->publication;
    char bytes[80];
    struct text json = { bytes, sizeof(bytes), 0 };

    text_put(&json, "{\"id\":\"%" PRIu64 "\",\"subscribers\":%u}\n", id,
             publication->topic->subscriber_count);
    respond_json(server, conn, publication->from == FROM_DELETE ? 200 : 201,
                 &json);
}

static void put_id(struct text *json, const char *name, uint64_t id)
{
    if (id)
        text_put(json, ",\"%s\":\"%" PRIu64 "\"", name, id);
    else
        text_put(json, ",\"%s\":null", name);
}

/* The answer to a streamed publish: what of it is in the history; and why no
 * more, if `error` is not NULL. */
static void respond_streamed(struct server *server, struct conn *conn,
                             int status, const char *error)
{
    const struct publication *publication = &conn->exchange->publication;
    char bytes[400];
    struct text json = { bytes, sizeof(bytes), 0 };

    text_put(&json, "{\"count\":%" PRIu64 ",\"skipped\":%" PRIu64,
             publication->count, publication->skipped);
    put_id(&json, "first", publication->first);
    put_id(&json, "last", publication->last);
    if (error)
        text_put(&json, ",\"error\":\"%s\"", error);
    text_put(&json, "}\n");
    respond_json(server, conn, status, &json);
}

/* A publication ends before its body does: the rest is not read. */
static void publication_fail(struct server *server, struct conn *conn,
                             int status, const char *why)
{
    if (is_input(conn))
        conn_close(&server->http, conn, why);
    else if (conn->exchange->publication.from == FROM_EVENTS)
        respond_streamed(server, conn, status, why);
    else
        respond_error(&server->http, conn, status, why);
}

/* An event is not published. On standard input the next ones are: nobody could
 * be told. */
static void refuse_event(struct server *server, struct conn *conn, int status,
                         const char *why)
{
    if (!is_input(conn)) {
        publication_fail(server, conn, status, why);
        return;
    }
    conn->exchange->publication.skipped++;
    log_client(server, LEVEL_WARN, "input_skipped", "reason=\"%s\"", why);
}

#define NO_MEMORY_TEXT "no memory for requests now: --request-memory"
#define DRAINING_TEXT "draining: about to end"

static void refuse_too_long(struct server *server, struct conn *conn)
{
    char why[64];

    snprintf(why, sizeof(why),
             is_input(conn) ? "more than %" PRIu64 " bytes: --max-event"
                            : "the event has more than %" PRIu64 " bytes",
             server->options.max_event);
    refuse_event(server, conn, 413, why);
}

/* What a plain body holds as data: one line end at its end is no part. */
static struct slice content_data(const struct publication *publication)
{
    struct slice data = { publication->content, publication->content_length };

    if (data.length && data.data[data.length - 1] == '\n')
        data.length--;
    if (data.length && data.data[data.length - 1] == '\r')
        data.length--;
    return data;
}

/* Makes room for content, twice what there was if that is not too much. If
 * there is no memory, the publisher has been answered: false. */
static bool make_room(struct server *server, struct conn *conn, size_t wanted)
{
    struct publication *publication = &conn->exchange->publication;
    size_t room = publication->content_room * 2;

    if (wanted <= publication->content_room)
        return true;
    if (room < CONTENT_FIRST)
        room = CONTENT_FIRST;
    if (room < wanted)
        room = wanted;
    if (room > publication->content_max)
        room = publication->content_max;
    if (memory_grow(&server->http, &publication->content,
                    &publication->content_room, room))
        return true;
    conn->exchange->request.close = true;
    publication_fail(server, conn, 503, NO_MEMORY_TEXT);
    return false;
}

static void append_content(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct slice *piece = &conn->exchange->piece;

    if (piece->length > publication->content_max - publication->content_length)
        refuse_too_long(server, conn);
    else if (make_room(server, conn,
                       publication->content_length + piece->length)) {
        memcpy(publication->content + publication->content_length, piece->data,
               piece->length);
        publication->content_length += piece->length;
        piece->length = 0;
    }
}

/* A plain body is complete. */
static void take_content(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct http *http = &server->http;

    publication->event.data = content_data(publication);
    if (publication->content_length == 0)
        respond_error(http, conn, 400, "the request has no body");
    else if (publication->event.data.length > server->options.max_event)
        refuse_too_long(server, conn);
    else if (!utf8_valid(publication->event.data))
        respond_error(http, conn, 400, "the body is not valid UTF-8");
    else
        publication->step = STEP_APPEND;
}

/* A line is complete: its bytes stay where they are until the next begins. */
static void line_ends(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct slice line = { publication->content, publication->content_length };
    bool too_long = publication->skips;

    if (line.length && line.data[line.length - 1] == '\r')
        line.length--;
    publication->skips = false;
    publication->content_length = 0;
    publication->event = (struct event){ .data = line };
    if (too_long || line.length > server->options.max_event)
        refuse_too_long(server, conn);
    else if (line.length)
        publication->step = STEP_APPEND;
}

/* Takes in what has arrived, up to the end of the line. */
static void take_line(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct slice *piece = &conn->exchange->piece;
    const char *lf = memchr(piece->data, '\n', piece->length);
    size_t length = lf ? (size_t)(lf - piece->data) : piece->length;

    if (length > publication->content_room - publication->content_length) {
        publication->skips = true;
    } else if (!publication->skips) {
        memcpy(publication->content + publication->content_length, piece->data,
               length);
        publication->content_length += length;
    }
    *piece = slice_from(*piece, length + (lf != NULL));
    if (lf)
        line_ends(server, conn);
}

/* Takes the id of the event that the parser has. False if it is none. */
static bool take_parsed_id(const struct event_parser *parser, uint64_t *id)
{
    struct slice text = { parser->id, parser->id_length };

    return parser->has_id && slice_number(text, ID_KEPT_MAX, id) && *id > 0;
}

/* Why no event may have this name; NULL if one may. */
static const char *refused_name(struct slice name)
{
    if (name.length > EVENT_NAME_MAX)
        return "an event name has at most 255 bytes";
    if (name.length >= 5 && memcmp(name.data, "ssed.", 5) == 0)
        return "event names that begin with ssed. are the server's own";
    for (size_t i = 0; i < name.length; i++)
        if ((unsigned char)name.data[i] < ' ' || name.data[i] == 0x7F)
            return "an event name has no control characters";
    return NULL;
}

/*
 * Another ssed, which is the source, tells that something was lost before its
 * position: readers that are behind it are told too, connected ones by coming
 * again. Without ids of the source, that is all readers so far. Returns why it
 * is refused, or NULL.
 */
static const char *take_gap(struct server *server,
                            struct publication *publication)
{
    struct topic *topic = publication->topic;
    uint64_t position = server->ring.newest_id + 1;

    if (server->options.ids == IDS_KEEP &&
        !take_parsed_id(&publication->parser, &position))
        return "a gap without the id of its position: " ID_KEPT_RANGE;
    if (server->ring.unbegun)
        begin_kept_history(server, position + 1);
    topic_raise_mark(&server->ring, topic, position);
    for (uint32_t i = topic->subscriber_count; i-- > 0;)
        conn_cut(&server->http, conn_at(&server->http, topic->subscribers[i]),
                 "gap");
    return NULL;
}

/* The event that the parser has is to be appended. Standard input may be
 * another ssed's stream, with what that has to say itself. Returns why the
 * event is refused, or NULL. */
static const char *take_parsed(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    const struct event_parser *parser = &publication->parser;
    struct event *event = &publication->event;
    bool is_main = publication->topic == server->main_topic;
    const char *refused = NULL;

    *event = (struct event){
        .name = { parser->name, parser->name_length },
        .retry = { parser->retry, parser->retry_length },
        .data = { parser->data, parser->length },
    };
    if (is_input(conn) && slice_is(event->name, "ssed.gap"))
        return take_gap(server, publication);
    if (server->options.ids == IDS_KEEP && !take_parsed_id(parser, &event->id))
        return "with --ids keep each event has its id: " ID_KEPT_RANGE;
    event->finishes =
        is_input(conn) && !is_main && slice_is(event->name, "ssed.end");
    if (!is_main && !event->finishes)
        refused = refused_name(event->name);
    if (!refused)
        publication->step = STEP_APPEND;
    return refused;
}

/* Makes room for all that a piece can add to the data of an event. */
static bool make_parser_room(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct event_parser *parser = &publication->parser;
    size_t wanted = conn->exchange->piece.length + 1;

    if (!parser->complete)
        wanted += parser->length;
    if (wanted > publication->content_max)
        wanted = publication->content_max;
    if (!make_room(server, conn, wanted))
        return false;
    parser->data = publication->content;
    parser->room = publication->content_room;
    return true;
}

/* Takes in what has arrived, up to the end of an event. */
static void parse_piece(struct server *server, struct conn *conn)
{
    struct event_parser *parser = &conn->exchange->publication.parser;
    struct slice *piece = &conn->exchange->piece;
    const char *refused = NULL;

    if (!make_parser_room(server, conn))
        return;
    *piece = slice_from(*piece, event_parser_read(parser, *piece));
    if (parser->too_long && (parser->complete || !is_input(conn)))
        refuse_too_long(server, conn);
    else if (parser->complete)
        refused = take_parsed(server, conn);
    if (refused)
        refuse_event(server, conn, 400, refused);
}

/* All content has been taken in. */
static void content_ends(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;

    if (publication->from == FROM_PLAIN)
        take_content(server, conn);
    else if (publication->content_length && publication->from == FROM_LINES)
        line_ends(server, conn); /* the last one has no line end */
    else if (publication->skips)
        line_ends(server, conn);
    else
        publication->step = STEP_FINISH;
}

static void step_take(struct server *server, struct conn *conn)
{
    struct slice *piece = &conn->exchange->piece;

    if (piece->length == 0) {
        content_ends(server, conn);
        return;
    }
    switch (conn->exchange->publication.from) {
    case FROM_PLAIN:
        append_content(server, conn);
        break;
    case FROM_EVENTS:
        parse_piece(server, conn);
        break;
    case FROM_LINES:
        take_line(server, conn);
        break;
    case FROM_DELETE:
        piece->length = 0;
        break;
    }
}

/* An id that is not greater than the newest was there before: a feeder may
 * start again from an earlier place. */
static void skip_event(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    char text[96];

    publication->skipped++;
    publication->step = STEP_TAKE;
    if (is_streamed(publication))
        return;
    snprintf(text, sizeof(text),
             "the newest id is %" PRIu64 ": ids only increase",
             server->ring.newest_id);
    respond_error(&server->http, conn, 409, text);
}

/* Whether others wait whose turn it is before this one. */
static bool others_wait(const struct server *server, const struct conn *conn)
{
    const struct queue *queues = server->http.queues;

    if (conn->state == CONN_WAITING)
        return false; /* it is the first of them */
    return queues[QUEUE_WAITING].count ||
           ((conn->flags & FLAG_BUSY) && queues[QUEUE_WAITING_BUSY].count);
}

/* Appends an event, or the end of the topic, and sets *id. If that is not to
 * be, the publisher waits, or the publication has gone on without it or has
 * failed: false. */
static bool append(struct server *server, struct conn *conn,
                   const struct event *event, uint64_t *id)
{
    enum outcome outcome = MUST_WAIT;
    bool stale = event->id && event->id <= server->ring.newest_id;

    if (stale && !has_failed_disk(server))
        outcome = STALE;
    else if (!others_wait(server, conn))
        outcome =
            publish_event(server, conn->exchange->publication.topic, event, id);
    if (outcome == MUST_WAIT) {
        conn_wait(&server->http, conn);
        return false;
    }
    conn_go_on(&server->http, conn);
    if (outcome == STALE)
        skip_event(server, conn);
    else if (outcome != PUBLISHED)
        publication_fail(server, conn, 503,
                         outcome == IDS_USED_UP ? "all ids are used up"
                                                : NOT_KEPT_TEXT);
    return outcome == PUBLISHED;
}

static void step_append(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    uint64_t id;

    if (!append(server, conn, &publication->event, &id))
        return;
    publication->step = is_streamed(publication) ? STEP_TAKE : STEP_FINISH;
    if (publication->event.finishes)
        return;
    publication->count++;
    publication->last = id;
    if (!publication->first)
        publication->first = id;
}

static void step_finish(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct event end = {
        .id = publication->from == FROM_DELETE ? publication->event.id : 0,
        .finishes = true,
    };
    uint64_t id;

    if (!publication->finishes || append(server, conn, &end, &id))
        publication->step = STEP_ANSWER;
}

static void step_answer(struct server *server, struct conn *conn)
{
    const struct publication *publication = &conn->exchange->publication;
    bool empty = publication->count + publication->skipped == 0;

    if (is_input(conn))
        conn_close(&server->http, conn, "end of input");
    else if (publication->from == FROM_PLAIN)
        respond_published(server, conn, publication->last);
    else if (publication->from == FROM_DELETE)
        respond_published(server, conn, publication->topic->newest_id);
    else if (empty && !publication->finishes)
        respond_streamed(server, conn, 400, "the body has no event");
    else
        respond_streamed(server, conn, 201, NULL);
}

static void publication_step(struct server *server, struct conn *conn)
{
    switch (conn->exchange->publication.step) {
    case STEP_TAKE:
        step_take(server, conn);
        break;
    case STEP_APPEND:
        step_append(server, conn);
        break;
    case STEP_FINISH:
        step_finish(server, conn);
        break;
    case STEP_ANSWER:
        step_answer(server, conn);
        break;
    }
}

/* As struct handlers has it. */
static void handle_body(struct server *server, struct conn *conn)
{
    do
        publication_step(server, conn);
    while (conn->state == CONN_BODY &&
           conn->exchange->publication.step != STEP_TAKE);
}

static void handle_silent(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct event_parser *parser = &publication->parser;

    if (is_input(conn)) /* its room is its own, so that it cannot fail */
        return;
    if (parser->complete || parser->length == 0)
        memory_free(&server->http, &publication->content,
                    &publication->content_room);
    parser->room = publication->content_room;
}

/* ----------------------------------------------------- requests to publish
 *
 * Who may publish, and what is asked for in the request's query. publish()
 * begins a publication.
 */

/* Whether the request is from a page of the origin that --cors names. */
static bool is_named_origin(const struct server *server,
                            const struct request *request)
{
    const char *cors = server->options.cors;

    return cors && request->origin.data && slice_equals(request->origin, cors);
}

/* Why no page of another origin may publish: it would be in the name of the
 * person at the browser. NULL if this is none. */
static const char *refused_origin(const struct server *server,
                                  const struct request *request)
{
    if (!request->origin.data || is_named_origin(server, request) ||
        http_origin_is_host(request->origin, request->host))
        return NULL;
    return "publishing from this Origin is not allowed: --cors names the one "
           "that may";
}

/* NULL if the request is from this machine and came here directly. */
static const char *refused_local(const struct server *server,
                                 const struct conn *conn,
                                 const struct request *request)
{
    if (!conn_is_local(conn))
        return "publishing is allowed from this machine only: "
               "--token-file allows others";
    if (request->minor == 0)
        return "publishing takes HTTP/1.1, which shows whether a proxy is "
               "between";
    if (request->forwarded)
        return "publishing through a proxy is not allowed: --token-file "
               "allows it";
    if (request->cross_site && !is_named_origin(server, request))
        return "publishing from a page of another origin is not allowed: "
               "--cors names the one that may";
    if (!http_host_is_local(request->host))
        return "publishing takes a Host that is localhost or an IP address";
    return NULL;
}

static const char *refused_publisher(const struct server *server,
                                     const struct conn *conn,
                                     const struct request *request)
{
    switch ((enum publish)server->options.publish) {
    case PUBLISH_LOCAL:
        return refused_local(server, conn, request);
    case PUBLISH_UNIX:
        return conn->flags & FLAG_UNIX
                   ? NULL
                   : "publishing is allowed through the Unix socket only";
    case PUBLISH_NONE:
        return "publishing is not allowed: --publish none";
    case PUBLISH_TOKEN:
        break;
    }
    return NULL;
}

/* A connection that came too late gets this and ends: the places beyond
 * --max-connections are few. */
static void respond_surplus(struct server *server, struct conn *conn)
{
    respond_text(&server->http, conn,
                 (struct response){ .status = 503, .close = true },
                 "too many connections: --max-connections");
}

/* Whether the request may publish; if not, it has been answered. */
static bool may_publish(struct server *server, struct conn *conn)
{
    const struct request *request = &conn->exchange->request;
    const char *refused = refused_origin(server, request);

    if (!refused && server->options.publish == PUBLISH_TOKEN &&
        !http_token_matches(&server->http, request)) {
        respond_error(&server->http, conn, 401,
                      "publishing takes Authorization: Bearer and the token");
        return false;
    }
    if (!refused)
        refused = refused_publisher(server, conn, request);
    if (refused)
        respond_error(&server->http, conn, 403, refused);
    return !refused;
}

/* What the query says that this publication has no place for; NULL if there
 * is nothing of it. */
static const char *refused_query(const struct server *server,
                                 const struct publication *publication,
                                 struct slice query)
{
    bool is_main = publication->topic == server->main_topic;
    bool keep = server->options.ids == IDS_KEEP;
    bool streamed = publication->from == FROM_EVENTS;
    const struct {
        bool applies;
        const char *name;
        const char *why;
    } refused[] = {
        { is_main, "event",
          "event= is for topics: the main stream has no names" },
        { is_main, "end", "end= is for topics: the main stream has no end" },
        { true, "topic",
          "topic= is for subscribing: publish to /events/TOPIC" },
        { streamed, "event",
          "event= is for a plain body: a streamed event "
          "has its name in it" },
        { keep, "end",
          "end= could give the end no id, which --ids keep "
          "needs: DELETE with ?id= finishes a topic" },
        { !keep, "id", "id= takes a server that keeps ids: --ids keep" },
        { streamed, "id",
          "id= is for a plain body: a streamed event has its "
          "id in it" },
    };
    char value[8];
    struct slice found;

    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
        if (refused[i].applies &&
            http_query(query, refused[i].name, value, sizeof(value), &found) &&
            found.length)
            return refused[i].why;
    return NULL;
}

/* Takes the query's parameters of a plain body or a DELETE. Returns why they
 * are refused, or NULL. */
static const char *take_query(const struct server *server,
                              struct publication *publication,
                              struct slice query)
{
    struct event_parser *parser = &publication->parser;
    struct event *event = &publication->event;
    struct slice id = SLICE(""), end = SLICE("");
    char digits[EVENT_NUMBER_MAX + 1], one[2];

    http_query(query, "event", parser->name, sizeof(parser->name),
               &event->name);
    http_query(query, "id", digits, sizeof(digits), &id);
    http_query(query, "end", one, sizeof(one), &end);
    if (!utf8_valid(event->name))
        return "the event name is not valid UTF-8";
    if (end.length && !slice_is(end, "1"))
        return "end= takes 1: the topic is finished with this";
    publication->finishes = publication->finishes || end.length;
    if (server->options.ids == IDS_KEEP && publication->from != FROM_EVENTS &&
        (!slice_number(id, ID_KEPT_MAX, &event->id) || event->id == 0))
        return "with --ids keep ?id= gives the event's id: " ID_KEPT_RANGE;
    return refused_name(event->name);
}

/* Begins a publication into the topic, which is held for it. */
static void begin_publication(struct server *server, struct conn *conn,
                              struct slice topic)
{
    struct publication *publication = &conn->exchange->publication;
    const struct request *request = &conn->exchange->request;

    *publication = (struct publication){ 0 };
    publication->topic = topic_hold(&server->ring, topic);
    if (request->method == METHOD_DELETE) {
        publication->from = FROM_DELETE;
        publication->finishes = true;
    } else if (http_media_type_is(request->content_type, "text/event-stream")) {
        publication->from = FROM_EVENTS;
    }
}

/* Why a request to publish is refused, with its status; or NULL. */
static const char *refused_publication(const struct server *server,
                                       struct conn *conn, int *status)
{
    const struct request *request = &conn->exchange->request;
    struct publication *publication = &conn->exchange->publication;
    const char *refused = refused_query(server, publication, request->query);

    *status = 400;
    if (!refused)
        refused = take_query(server, publication, request->query);
    if (!refused && !http_has_body(request) &&
        (publication->from == FROM_PLAIN || !publication->finishes))
        refused = "the request has no body";
    if (refused)
        return refused;
    *status = 404;
    if (publication->from == FROM_DELETE && server->options.ids == IDS_OWN &&
        !publication->topic->newest && !publication->topic->subscriber_count)
        refused = "nothing is known of this topic";
    return refused;
}

/* The body may be as long as an event may be, and a line end. */
static void begin_content(struct server *server, struct conn *conn)
{
    const struct request *request = &conn->exchange->request;
    struct publication *publication = &conn->exchange->publication;
    bool streams = publication->from == FROM_EVENTS;

    publication->content_max = (size_t)server->options.max_event;
    if (streams)
        event_parser_init(&publication->parser, NULL, 0);
    else if (publication->from == FROM_PLAIN && request->content_length >= 0)
        publication->content_max = (size_t)request->content_length;
    else
        publication->content_max += 2;
    conn_begin_body(&server->http, conn, streams, publication->content_max);
}

static void publish(struct server *server, struct conn *conn,
                    struct slice topic)
{
    const struct request *request = &conn->exchange->request;
    struct publication *publication = &conn->exchange->publication;
    const char *refused;
    int status;

    if (!may_publish(server, conn))
        return;
    if (server->phase >= PHASE_DRAIN) {
        respond_error(&server->http, conn, 503, DRAINING_TEXT);
        return;
    }
    if (conn->flags & FLAG_SURPLUS) {
        respond_surplus(server, conn);
        return;
    }
    begin_publication(server, conn, topic);
    if (!publication->topic) {
        respond_error(&server->http, conn, 503, "no memory for the topic");
        return;
    }
    refused = refused_publication(server, conn, &status);
    if (refused)
        respond_error(&server->http, conn, status, refused);
    else if (publication->from == FROM_PLAIN && !request->chunked &&
             (uint64_t)request->content_length > server->options.max_event + 2)
        refuse_too_long(server, conn);
    else
        begin_content(server, conn);
}

/* ------------------------------------------------------------------ routes
 *
 * What a request is for. handle_request() is called by http.c; the functions
 * above and below it answer.
 */

/*
 * With --cors none no page of another origin reads here. One whose own name
 * comes to be resolved to this machine would not be of another origin
 * ("DNS rebinding"), so a loopback listener serves no name that is unknown.
 */
static bool is_misdirected(const struct server *server, const struct conn *conn)
{
    const struct options *options = &server->options;
    struct slice host = conn->exchange->request.host;

    if (!options->no_cors || !(conn->flags & FLAG_LOOPBACK) || !host.data ||
        http_host_is_local(host))
        return false;
    for (unsigned i = 0; i < options->host_count; i++)
        if (http_host_is(host, options->hosts[i]))
            return false;
    return true;
}

static void respond_health(struct server *server, struct conn *conn)
{
    enum method method = conn->exchange->request.method;

    if (method != METHOD_GET && method != METHOD_HEAD)
        respond_method(&server->http, conn, "GET, HEAD, OPTIONS");
    else if (server->phase == PHASE_SERVE)
        respond_text(&server->http, conn, (struct response){ .status = 200 },
                     "ok");
    else
        respond_error(&server->http, conn, 503, "draining: about to end");
}

/* `topic` is the one in the path; NULL for the main stream. */
static void route_events(struct server *server, struct conn *conn,
                         const struct slice *topic)
{
    const char *allow =
        topic ? "DELETE, GET, HEAD, OPTIONS, POST" : "GET, HEAD, OPTIONS, POST";

    switch (conn->exchange->request.method) {
    case METHOD_GET:
    case METHOD_HEAD:
        subscribe(server, conn, topic);
        break;
    case METHOD_POST:
        publish(server, conn, topic ? *topic : SLICE(""));
        break;
    case METHOD_OPTIONS:
        respond(&server->http, conn,
                &(struct response){
                    .status = 204,
                    .preflight = !server->options.no_cors,
                    .allow = allow,
                    .cors = stream_cors(server),
                },
                SLICE(""));
        break;
    case METHOD_DELETE:
        if (topic)
            publish(server, conn, *topic);
        else
            respond_method(&server->http, conn, allow);
        break;
    case METHOD_OTHER:
        respond_method(&server->http, conn, allow);
        break;
    }
}

static void route_topic(struct server *server, struct conn *conn,
                        struct slice topic)
{
    const char *refused = topic_name_refused(topic);

    if (refused)
        respond_error(&server->http, conn, 400, refused);
    else
        route_events(server, conn, &topic);
}

/* As struct handlers has it. */
static void handle_request(struct server *server, struct conn *conn)
{
    const struct request *request = &conn->exchange->request;

    if (is_misdirected(server, conn))
        respond_error(&server->http, conn, 421,
                      "this Host is not known here: --host names another");
    else if (slice_is(request->path, "/events"))
        route_events(server, conn, NULL);
    else if (request->path.length > 7 &&
             memcmp(request->path.data, "/events/", 8) == 0)
        route_topic(
            server, conn,
            (struct slice){ request->path.data + 8, request->path.length - 8 });
    else if (slice_is(request->path, "/healthz"))
        respond_health(server, conn);
    else if (conn->flags & FLAG_SURPLUS)
        respond_surplus(server, conn);
    else if (slice_is(request->path, "*"))
        respond_method(&server->http, conn, "DELETE, GET, HEAD, OPTIONS, POST");
    else
        respond_page(&server->http, conn);
}

static void log_input_ended(const struct conn *conn, const char *reason)
{
    const struct publication *publication = &conn->exchange->publication;

    if (conn->exchange->error)
        log_event(LEVEL_ERROR, "input_failed", "error=%s",
                  error_name(conn->exchange->error));
    log_event(LEVEL_INFO, "input_ended",
              "reason=\"%s\" events=%" PRIu64 " skipped=%" PRIu64, reason,
              publication->count, publication->skipped);
}

/* What a request holds can go: the topic and the content of a publish. */
static void handle_answered(struct server *server, struct conn *conn,
                            int status, uint64_t length)
{
    log_access(server, conn, status, length);
    publication_release(server, &conn->exchange->publication);
}

static const char *handle_promises(struct server *server)
{
    sync_history(server);
    return server->sync_failed ? NOT_KEPT_TEXT : NULL;
}

static void handle_closing(struct server *server, struct conn *conn,
                           const char *reason)
{
    if (conn->state == CONN_STREAM) {
        unsubscribe(server, conn, reason);
        return;
    }
    if (is_input(conn))
        log_input_ended(conn, reason);
    if (conn->exchange)
        publication_release(server, &conn->exchange->publication);
}

static void handle_accept_paused(struct server *server, int error)
{
    log_event(LEVEL_WARN, "accept_paused", "reason=%s connections=%u",
              error ? error_name(error) : "max-connections",
              server->http.connections);
}

static const struct handlers handlers = {
    .request = handle_request,
    .body = handle_body,
    .silent = handle_silent,
    .body_failed = publication_fail,
    .answered = handle_answered,
    .keep_promises = handle_promises,
    .writable = ready_push,
    .expired = handle_expired,
    .closing = handle_closing,
    .accept_paused = handle_accept_paused,
};

/* --------------------------------------------------- the service manager */

/* Tells the service manager, sd_notify(3): a datagram. */
static void notify(const char *format, ...)
{
    const char *name = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    size_t length = name ? strlen(name) : 0;
    char text[256];
    va_list arguments;
    int fd;

    if (length < 2 || length >= sizeof(address.sun_path))
        return;
    memcpy(address.sun_path, name, length);
    if (*name == '@') /* an abstract one has a NUL there */
        address.sun_path[0] = '\0';
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 ||
        sendto(
            fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&address,
            (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) < 0)
        log_event(LEVEL_WARN, "not_notified", "socket=\"%s\" error=%s", name,
                  error_name(errno));
    if (fd >= 0)
        close(fd);
}

/* How often the watchdog wants to hear of us: sd_watchdog_enabled(3). */
static void init_watchdog(struct server *server)
{
    const char *pid = getenv("WATCHDOG_PID"), *text = getenv("WATCHDOG_USEC");
    uint64_t microseconds;

    if (!text || (pid && strtol(pid, NULL, 10) != getpid()) ||
        !slice_number(slice_of(text), YEAR_S * 1000000, &microseconds) ||
        microseconds == 0)
        return;
    server->watchdog = microseconds / 2000 ? microseconds / 2000 : 1;
    server->next_watchdog = server->http.now;
}

static void feed_watchdog(struct server *server)
{
    if (server->http.now < server->next_watchdog)
        return;
    server->next_watchdog = server->http.now + server->watchdog;
    notify("WATCHDOG=1\nSTATUS=%u subscribers, newest id %llu\n",
           server->http.in_state[CONN_STREAM],
           (unsigned long long)server->ring.newest_id);
}

/* ---------------------------------------------------------------- phases */

/* A publisher is told; a subscriber is sent what there is and a farewell. */
static void drain_conn(struct server *server, struct conn *conn)
{
    if (conn->state == CONN_STREAM)
        ready_push(server, conn);
    else if (conn->state == CONN_BODY || conn->state == CONN_WAITING)
        publication_fail(server, conn, 503,
                         is_input(conn) ? "draining" : DRAINING_TEXT);
}

static void begin_drain(struct server *server)
{
    uint32_t subscribers = server->http.in_state[CONN_STREAM];

    log_event(LEVEL_INFO, "draining", "subscribers=%u seconds=%" PRIu64,
              subscribers, server->options.drain / 1000);
    notify("STOPPING=1\nSTATUS=draining %u subscribers\n", subscribers);
    server->phase = PHASE_DRAIN;
    server->phase_end = server->http.now + server->options.drain;
    server->next_clock = NEVER;
    http_close_listeners(&server->http);
    for (uint32_t fd = 0; fd < server->http.conn_limit; fd++)
        drain_conn(server, conn_at(&server->http, fd));
}

static void begin_ending(struct server *server)
{
    if (server->phase == PHASE_SERVE && server->options.drain_delay) {
        log_event(LEVEL_INFO, "announcing", "seconds=%llu",
                  (unsigned long long)server->options.drain_delay / 1000);
        server->phase = PHASE_ANNOUNCE;
        server->phase_end = server->http.now + server->options.drain_delay;
    } else if (server->phase == PHASE_SERVE) {
        begin_drain(server);
    } else {
        server->phase = PHASE_STOP;
    }
}

/* Goes on to the next phase when this one is over. */
static void check_phase(struct server *server)
{
    bool over = server->http.now >= server->phase_end;

    if (server->phase == PHASE_ANNOUNCE && over)
        begin_drain(server);
    else if (server->phase == PHASE_DRAIN &&
             (over || (server->http.in_state[CONN_STREAM] == 0 &&
                       http_is_idle(&server->http))))
        server->phase = PHASE_STOP;
}

static void warn_of_mode(const char *path, mode_t mode)
{
    char quoted[512];

    if (!(mode & (S_IROTH | S_IWOTH)))
        return;
    log_quote(quoted, sizeof(quoted), slice_of(path));
    log_event(LEVEL_WARN, "token_file_readable",
              "file=%s mode=%03o reason=\"others may read or write it\"",
              quoted, (unsigned)mode & 0777);
}

static void reload_token(struct server *server)
{
    const char *file = server->options.token_file;
    char path[512], error[ERROR_SIZE];
    mode_t mode;

    if (!file)
        return;
    log_quote(path, sizeof(path), slice_of(file));
    if (http_load_token(&server->http, file, &mode, error) < 0) {
        log_event(LEVEL_ERROR, "token_not_reloaded",
                  "file=%s reason=\"%s\" kept=\"the one before\"", path, error);
        return;
    }
    warn_of_mode(file, mode);
    log_event(LEVEL_INFO, "token_reloaded", "file=%s", path);
}

static void read_signals(struct server *server)
{
    struct signalfd_siginfo info;

    while (read(server->signals, &info, sizeof(info)) ==
           (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGHUP)
            reload_token(server);
        else
            begin_ending(server);
    }
}

/* -------------------------------------------------------------- the loop */

static void update_time(struct server *server)
{
    http_update_time(&server->http);
    server->ring.time = (int64_t)clock_ms(CLOCK_REALTIME);
}

/* How long epoll may wait: until the nearest of what the clock brings. */
static int loop_timeout(const struct server *server)
{
    const uint64_t dues[] = {
        http_next(&server->http),
        server->next_clock,
        server->phase_end,
        server->next_watchdog,
        server->ring.unsynced ? server->next_sync : NEVER,
        logger.suppressed ? logger.reported + LOG_REPORT : NEVER,
        server->ring.pass_first ? 0 : NEVER,
    };
    uint64_t until = NEVER;

    for (size_t i = 0; i < sizeof(dues) / sizeof(dues[0]); i++)
        if (dues[i] < until)
            until = dues[i];
    if (until == NEVER)
        return -1;
    if (until <= server->http.now)
        return 0;
    until -= server->http.now;
    return until < INT_MAX ? (int)until : INT_MAX;
}

/* Those that can publish now have their visit again. False if the first must
 * go on waiting, and so must all behind it. */
static bool retry_queue(struct server *server, enum queue_name name)
{
    uint64_t end = clock_us(CLOCK_MONOTONIC) + TURN_RETRY;
    const struct queue *queue = &server->http.queues[name];

    while (queue->count && clock_us(CLOCK_MONOTONIC) < end) {
        struct conn *conn = conn_at(&server->http, queue->list.first);

        publication_step(server, conn);
        if (conn->state == CONN_WAITING)
            return false;
    }
    return true;
}

static void retry_publishers(struct server *server)
{
    if (retry_queue(server, QUEUE_WAITING))
        retry_queue(server, QUEUE_WAITING_BUSY);
}

static void dispatch(struct server *server, const struct epoll_event *event)
{
    if (event->data.u32 == (uint32_t)server->signals)
        read_signals(server);
    else
        http_event(&server->http, event);
}

/* A turn: what has arrived is worked on and what is published is appended; the
 * answers go; then what is new is delivered. Each part stops when its time or
 * its quantum is used up, and goes on in the next turn. */
static void turn(struct server *server)
{
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(server->http.epoll, events, EVENTS_MAX,
                           loop_timeout(server));

    update_time(server);
    for (int i = 0; i < count; i++)
        dispatch(server, &events[i]);
    log_report(server->http.now);
    http_expire(&server->http);
    publish_clock(server);
    retry_publishers(server);
    http_serve(&server->http);
    sync_when_due(server);
    feed_watchdog(server);
    deliver(server);
    http_end_turn(&server->http);
    check_phase(server);
}

/* --------------------------------------------------------------- options */

enum kind {
    KIND_COUNT,
    KIND_MS,
    KIND_SECONDS, /* kept in ms */
    KIND_SIZE,    /* bytes; takes K, M, G */
    KIND_TEXT,
    KIND_LISTEN,
    KIND_HOST,
    KIND_PORT,
    KIND_NAME, /* one of several, kept as its number */
    KIND_SYNC, /* seconds, none or always; kept in ms */
    KIND_FLAG,
    KIND_HELP,
    KIND_VERSION,
};

struct spec {
    const char *name;
    const char *argument;
    const char *help;
    enum kind kind;
    char letter;  /* its short form, or 0 */
    size_t place; /* in struct options */
    uint64_t minimum, maximum;
    const char *const *names; /* ended by NULL */
};

/* In the order of their enums. */
static const char *const publish_names[] = { "local", "unix", "none", NULL };

static const char *const ids_names[] = { "own", "keep", NULL };

static const char *const stdin_names[] = { "lines", "events", NULL };

#define PLACE(member) offsetof(struct options, member)

static const struct spec specs[] = {
    { "listen", "ADDR:PORT",
      "where to listen: 127.0.0.1:3000, [::1]:0, "
      "unix:PATH[,mode=660]; repeatable",
      KIND_LISTEN, 'l', 0, 0, 0, NULL },
    { "port", "N", "short for --listen 127.0.0.1:N", KIND_PORT, 'p', 0, 0,
      65535, NULL },
    { "root", "DIR", "serve the files of a folder, not the bundled pages",
      KIND_TEXT, 'r', PLACE(root), 0, 0, NULL },
    { "history", "N", "events kept (1000)", KIND_COUNT, 'n', PLACE(history), 1,
      HISTORY_EVENTS_MAX, NULL },
    { "history-bytes", "SIZE", "bytes kept (64M)", KIND_SIZE, 0,
      PLACE(history_bytes), 1, HISTORY_BYTES_MAX, NULL },
    { "history-file", "FILE", "where the history outlives the process",
      KIND_TEXT, 0, PLACE(history_file), 0, 0, NULL },
    { "sync", "WHEN",
      "the file to the disk: none; every so many seconds; "
      "always (1)",
      KIND_SYNC, 0, PLACE(sync), 1, 86400, NULL },
    { "check", "FILE", "say what is in a history file, and end", KIND_TEXT, 0,
      PLACE(check), 0, 0, NULL },
    { "first-id", "N", "id of the first event (the clock in microseconds)",
      KIND_COUNT, 0, PLACE(first_id), 1, ID_MAX, NULL },
    { "interval", "MS", "a clock message every so often; 0: none (1000)",
      KIND_MS, 'i', PLACE(interval), 0, YEAR_S * 1000, NULL },
    { "heartbeat", "SEC", "after so much silence; 0: never (15)", KIND_SECONDS,
      0, PLACE(heartbeat), 0, 86400, NULL },
    { "retry", "MS", "how long a client waits to reconnect (3000)", KIND_MS, 0,
      PLACE(retry), 0, UINT64_C(86400) * 1000, NULL },
    { "cors", "ORIGIN",
      "the one origin whose pages may read and publish "
      "(all may read); none",
      KIND_TEXT, 0, PLACE(cors), 0, 0, NULL },
    { "host", "NAME", "with --cors none: a name of this machine; repeatable",
      KIND_HOST, 0, 0, 0, 0, NULL },
    { "token-file", "FILE",
      "clients that send the token in this file may publish", KIND_TEXT, 't',
      PLACE(token_file), 0, 0, NULL },
    { "publish", "WHO",
      "who may publish without a token: local, unix, none "
      "(local)",
      KIND_NAME, 0, PLACE(publish), 0, 0, publish_names },
    { "max-event", "SIZE", "of an event's data (64K)", KIND_SIZE, 0,
      PLACE(max_event), 1, 16 << 20, NULL },
    { "max-connections", "N", "at most (what the limit on descriptors allows)",
      KIND_COUNT, 'c', PLACE(max_connections), 1, 1 << 28, NULL },
    { "request-memory", "SIZE", "that all requests together may hold (256M)",
      KIND_SIZE, 0, PLACE(request_memory), 1 << 20, UINT64_C(1) << 40, NULL },
    { "head-timeout", "SEC", "for a request head to be complete (10)",
      KIND_SECONDS, 0, PLACE(head_timeout), 1, 86400, NULL },
    { "idle-timeout", "SEC", "between two requests (60)", KIND_SECONDS, 0,
      PLACE(idle_timeout), 1, 86400, NULL },
    { "drain", "SEC", "to send off subscribers at the end (5)", KIND_SECONDS, 0,
      PLACE(drain), 0, 86400, NULL },
    { "drain-spread", "MS", "over which they come back (3000)", KIND_MS, 0,
      PLACE(drain_spread), 0, UINT64_C(86400) * 1000, NULL },
    { "drain-delay", "SEC", "/healthz says 503 so long before (0)",
      KIND_SECONDS, 0, PLACE(drain_delay), 0, 86400, NULL },
    { "stdin", "FORM", "what \"-\" reads: lines, events (lines)", KIND_NAME, 0,
      PLACE(stdin_form), 0, 0, stdin_names },
    { "topic", "NAME", "where \"-\" publishes (the main stream)", KIND_TEXT, 0,
      PLACE(topic), 0, 0, NULL },
    { "end", NULL, "the topic is finished at the end of \"-\"", KIND_FLAG, 0,
      PLACE(end), 0, 0, NULL },
    { "ids", "WHOSE", "own; keep: those that publishers give (own)", KIND_NAME,
      0, PLACE(ids), 0, 0, ids_names },
    { "log-level", "LEVEL", "error, warn, info, debug (info)", KIND_NAME, 0,
      PLACE(log_level), 0, 0, level_names },
    { "access-log", NULL, "log every request", KIND_FLAG, 0, PLACE(access_log),
      0, 0, NULL },
    { "help", NULL, "this text", KIND_HELP, 'h', 0, 0, 0, NULL },
    { "version", NULL, "the version", KIND_VERSION, 'V', 0, 0, 0, NULL },
};

enum {
    SPECS = sizeof(specs) / sizeof(specs[0])
};

static void print_help(void)
{
    printf("usage: ssed [OPTION]... [-]\n"
           "Broadcasts Server-Sent Events. Publish with POST /events/TOPIC, "
           "subscribe with\nGET /events/TOPIC; without a topic it is the main "
           "stream. \"-\" publishes what comes\non standard input.\n\n");
    for (int i = 0; i < SPECS; i++) {
        char name[48];

        snprintf(name, sizeof(name), "--%s %s", specs[i].name,
                 specs[i].argument ? specs[i].argument : "");
        printf("  %c%c %-24s %s\n", specs[i].letter ? '-' : ' ',
               specs[i].letter ? specs[i].letter : ' ', name, specs[i].help);
    }
    printf("\nSIZE takes K, M, G. SIGTERM ends it, SIGHUP reads the token "
           "again.\n");
}

static uint64_t parse_amount(const struct spec *spec, const char *text)
{
    uint64_t number = 0, unit = 1;
    size_t length = strlen(text);
    const char *suffixes = "KMG", *suffix = NULL;

    if (spec->kind == KIND_SIZE && length)
        suffix = strchr(suffixes, text[length - 1]);
    if (suffix) {
        unit = UINT64_C(1) << (10 * (suffix - suffixes + 1));
        length--;
    }
    if (!slice_number((struct slice){ text, length }, spec->maximum / unit,
                      &number) ||
        number * unit < spec->minimum)
        die(EXIT_USAGE, "--%s: '%s' is not %s from %llu to %llu", spec->name,
            text,
            spec->kind == KIND_SIZE ? "a size (a number, K, M or G after it)"
                                    : "a number",
            (unsigned long long)spec->minimum,
            (unsigned long long)spec->maximum);
    return number * unit * (spec->kind == KIND_SECONDS ? 1000 : 1);
}

static uint64_t parse_sync(const struct spec *spec, const char *text)
{
    uint64_t seconds;

    if (strcmp(text, "none") == 0)
        return SYNC_NEVER;
    if (strcmp(text, "always") == 0)
        return SYNC_ALWAYS;
    if (!slice_number(slice_of(text), spec->maximum, &seconds) ||
        seconds < spec->minimum)
        die(EXIT_USAGE,
            "--%s: '%s' is not none, always, or a number of seconds from %llu "
            "to %llu",
            spec->name, text, (unsigned long long)spec->minimum,
            (unsigned long long)spec->maximum);
    return seconds * 1000;
}

/* The index of `text` among the option's names. */
static unsigned parse_name(const struct spec *spec, const char *text)
{
    char all[128] = "";

    for (unsigned i = 0; spec->names[i]; i++) {
        size_t length = strlen(all);

        if (strcmp(spec->names[i], text) == 0)
            return i;
        snprintf(all + length, sizeof(all) - length, "%s%s", i ? ", " : "",
                 spec->names[i]);
    }
    die(EXIT_USAGE, "--%s: '%s' is none of: %s", spec->name, text, all);
}

static void add_listen(struct options *options, const char *address)
{
    if (options->listen_count == LISTENERS_MAX)
        die(EXIT_USAGE, "--listen: at most %d of them", LISTENERS_MAX);
    options->listen[options->listen_count++] = address;
}

/* A Host is compared with it, whatever its port. */
static void add_host(struct options *options, const char *name)
{
    if (!*name || strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-._"
                               "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != strlen(name))
        die(EXIT_USAGE,
            "--host: '%s' is not a name such as ssed.example, "
            "without a port",
            name);
    if (options->host_count == HOSTS_MAX)
        die(EXIT_USAGE, "--host: at most %d of them", HOSTS_MAX);
    options->hosts[options->host_count++] = name;
}

static void take_option(struct options *options, const struct spec *spec,
                        char *value)
{
    char *place = (char *)options + spec->place;

    switch (spec->kind) {
    case KIND_COUNT:
    case KIND_MS:
    case KIND_SECONDS:
    case KIND_SIZE:
        *(uint64_t *)(void *)place = parse_amount(spec, value);
        break;
    case KIND_SYNC:
        *(uint64_t *)(void *)place = parse_sync(spec, value);
        break;
    case KIND_TEXT:
        if (!*value)
            die(EXIT_USAGE, "--%s: '' is no %s", spec->name, spec->argument);
        *(const char **)(void *)place = value;
        break;
    case KIND_PORT:
        parse_amount(spec, value);
        add_listen(options, value);
        break;
    case KIND_LISTEN:
        add_listen(options, value);
        break;
    case KIND_HOST:
        add_host(options, value);
        break;
    case KIND_NAME:
        *(unsigned *)(void *)place = parse_name(spec, value);
        break;
    case KIND_FLAG:
        *(bool *)place = true;
        break;
    case KIND_HELP:
        print_help();
        exit(0);
    case KIND_VERSION:
        printf("ssed %s\n", VERSION);
        exit(0);
    }
}

/* An Origin as a browser sends it, so that it can be compared. The words that
 * are none must not be: a client may send anything. */
static void check_cors(struct options *options)
{
    const char *cors = options->cors ? options->cors : "*";
    struct slice origin = { cors, strlen(cors) };
    size_t scheme = strncmp(cors, "https://", 8) == 0  ? 8
                    : strncmp(cors, "http://", 7) == 0 ? 7
                                                       : 0;

    options->no_cors = slice_is(origin, "none");
    if (options->host_count && !options->no_cors)
        die(EXIT_USAGE, "--host is for --cors none: without it every Host is "
                        "served");
    if (options->no_cors || slice_is(origin, "*")) {
        options->cors = NULL;
        return;
    }
    if (!scheme || origin.length == scheme || origin.length > CORS_MAX ||
        strcspn(cors + scheme, "/ \t\r\n\"") != origin.length - scheme)
        die(EXIT_USAGE,
            "--cors: '%s' is not *, none, or an origin such as "
            "https://example.com",
            cors);
}

/* What "-" needs, and what needs "-". */
static void check_input(struct options *options)
{
    const char *topic = options->topic ? options->topic : "";
    const char *refused = topic_name_refused(slice_of(topic));

    if (!options->reads_input &&
        (options->topic || options->end || options->stdin_form != UNGIVEN))
        die(EXIT_USAGE, "--%s is for what comes on standard input: add \"-\"",
            options->topic ? "topic"
            : options->end ? "end"
                           : "stdin");
    if (options->topic && refused)
        die(EXIT_USAGE, "--topic: '%s': %s", topic, refused);
    if (options->end && !options->topic)
        die(EXIT_USAGE, "--end needs --topic: the main stream has no end");
    if (options->stdin_form == UNGIVEN)
        options->stdin_form = STDIN_LINES;
    if (options->reads_input && fcntl(STDIN_FILENO, F_GETFD) < 0)
        die(EXIT_RUN_TIME, "\"-\" needs standard input, which is closed");
}

/* What has no place where publishers give the ids. */
static void check_ids(struct options *options)
{
    bool keep = options->ids == IDS_KEEP;

    if (keep && options->first_id)
        die(EXIT_USAGE, "--first-id and --ids keep exclude each other: the "
                        "publishers give the ids");
    if (keep && options->interval != UNGIVEN && options->interval)
        die(EXIT_USAGE, "--interval and --ids keep exclude each other: the "
                        "clock has no ids");
    if (keep && options->end)
        die(EXIT_USAGE, "--end and --ids keep exclude each other: the end "
                        "would have no id");
    if (keep && options->reads_input && options->stdin_form == STDIN_LINES)
        die(EXIT_USAGE, "--ids keep needs --stdin events: lines have no ids");
    if (options->interval == UNGIVEN)
        options->interval = keep ? 0 : INTERVAL_DEFAULT;
}

static void check_history_options(struct options *options)
{
    uint64_t frame = options->max_event * FRAME_FACTOR + FRAME_REST;

    if (options->history_bytes < frame)
        die(EXIT_USAGE,
            "--history-bytes: %llu cannot hold one event of --max-event, "
            "which may need %llu",
            (unsigned long long)options->history_bytes,
            (unsigned long long)frame);
    if (!options->history_file && options->sync != UNGIVEN)
        die(EXIT_USAGE, "--sync is for a --history-file, and there is none");
    if (!options->history_file)
        options->sync = SYNC_NEVER;
    else if (options->sync == UNGIVEN)
        options->sync = SYNC_DEFAULT;
}

/* One request at least must be able to come to its end. */
static void check_request_memory(const struct options *options)
{
    uint64_t needed =
        sizeof(struct exchange) + HEAD_MAX + OUT_SIZE + options->max_event + 2;

    if (options->reads_input)
        needed *= 2;
    if (options->request_memory < needed)
        die(EXIT_USAGE,
            "--request-memory: %llu cannot hold one request of --max-event, "
            "which may need %llu",
            (unsigned long long)options->request_memory,
            (unsigned long long)needed);
}

static void check_options(struct options *options)
{
    check_request_memory(options);
    check_cors(options);
    check_input(options);
    check_ids(options);
    if (options->token_file && options->publish != UNGIVEN)
        die(EXIT_USAGE, "--publish and --token-file exclude each other: with "
                        "a token, any client that sends it may publish");
    if (options->token_file)
        options->publish = PUBLISH_TOKEN;
    else if (options->publish == UNGIVEN)
        options->publish = PUBLISH_LOCAL;
    check_history_options(options);
}

static void parse_options(struct options *options, int argc, char **argv)
{
    struct option longs[SPECS + 1] = { 0 };
    char shorts[2 * SPECS + 2] = ":";
    size_t length = 1;
    int code;

    for (int i = 0; i < SPECS; i++) {
        longs[i] = (struct option){ specs[i].name, specs[i].argument != NULL,
                                    NULL, 256 + i };
        if (specs[i].letter)
            shorts[length++] = specs[i].letter;
        if (specs[i].letter && specs[i].argument)
            shorts[length++] = ':';
    }
    while ((code = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
        int i = code - 256;

        for (int k = 0; i < 0 && k < SPECS; k++)
            if (code == specs[k].letter)
                i = k;
        if (i < 0)
            die(EXIT_USAGE, "%s '%s': see ssed --help",
                code == ':' ? "no value after" : "unknown option",
                argv[optind - 1]);
        take_option(options, &specs[i], optarg);
    }
    for (; optind < argc; optind++) {
        if (strcmp(argv[optind], "-") != 0)
            die(EXIT_USAGE, "'%s' is not an option: see ssed --help",
                argv[optind]);
        options->reads_input = true;
    }
    check_options(options);
}

/* --------------------------------------------------------------- the start */

/* Of this boot of the machine; "" if the kernel does not tell. */
static void read_boot_id(char *text, size_t size)
{
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");

    text[0] = '\0';
    if (!file)
        return;
    if (!fgets(text, (int)size, file))
        text[0] = '\0';
    text[strcspn(text, "\n")] = '\0';
    fclose(file);
}

/* The wall clock in microseconds, less one: the first id is then the clock. */
static uint64_t clock_position(void)
{
    struct timespec now;
    uint64_t position;

    clock_gettime(CLOCK_REALTIME, &now);
    position =
        (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000 - 1;
    return position < ID_MAX ? position : ID_MAX;
}

/* The id before that of the first event of a new history. */
static uint64_t first_position(const struct options *options)
{
    if (options->ids == IDS_KEEP)
        return 0;
    return options->first_id ? options->first_id - 1 : clock_position();
}

#define LOST_MEANING "it was truncated while in use, or its disk failed"

/* Written when the history file is lost: made before, for a signal handler
 * can format nothing. A time would need that. */
static struct {
    char text[PIPE_BUF];
    size_t length;
} lost_line;

/* The text is cut where it is too long. */
__attribute__((format(printf, 1, 2))) static void
prepare_lost_line(const char *format, ...)
{
    const int room = (int)sizeof(lost_line.text) - 1;
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(lost_line.text, (size_t)room, format, arguments);
    va_end(arguments);
    lost_line.length = (size_t)(length < room ? length : room - 1);
    lost_line.text[lost_line.length++] = '\n';
}

/* What is in the file can neither be read nor be written any more. A SIGBUS
 * of another cause ends the process as it does without a handler. */
static void on_bus_error(int signal, siginfo_t *info, void *context)
{
    (void)context;
    if (info->si_code > 0 && ring_is_mapped(info->si_addr)) {
        log_write(lost_line.text, lost_line.length);
        _exit(EXIT_RUN_TIME);
    }
    raise(signal);
}

static void watch_history(void)
{
    struct sigaction action = {
        .sa_sigaction = on_bus_error,
        .sa_flags = SA_SIGINFO | (int)SA_RESETHAND,
    };

    sigaction(SIGBUS, &action, NULL);
}

static void open_history(struct server *server, uint64_t newest_id)
{
    const struct options *options = &server->options;
    char error[ERROR_SIZE], boot_id[64];
    struct recovery recovery;
    struct history_wanted wanted = {
        .path = options->history_file,
        .limit = options->history,
        .size = (size_t)options->history_bytes,
        .newest_id = newest_id,
        .clock_id = clock_position(),
        .kept_ids = options->ids == IDS_KEEP,
        .boot_id = boot_id,
        .splice_text = SLICE(CATCH_UP_SPLICE),
    };

    prepare_lost_line("level=error event=history_file_lost file=\"%s\" "
                      "meaning=\"" LOST_MEANING "\"",
                      options->history_file);
    watch_history();
    read_boot_id(boot_id, sizeof(boot_id));
    if (ring_open(&server->ring, &wanted, &recovery, error) < 0)
        die(EXIT_RUN_TIME, "--history-file: %s", error);
    log_event(
        LEVEL_INFO, "history",
        "file=\"%s\" events=%llu first_id=%llu last_id=%llu "
        "dropped=%llu%s%s%s",
        options->history_file, (unsigned long long)recovery.count,
        (unsigned long long)recovery.first_id,
        (unsigned long long)recovery.last_id,
        (unsigned long long)recovery.dropped, recovery.made ? " made=1" : "",
        recovery.resized ? " resized=1" : "",
        recovery.crashed ? " crashed=1 meaning=\"the end was not clean: older "
                           "positions are told of a gap\""
                         : "");
}

static void init_history(struct server *server)
{
    const struct options *options = &server->options;
    uint64_t newest_id = first_position(options);

    if (options->history_file) {
        open_history(server, newest_id);
    } else if (ring_init(&server->ring, options->history,
                         (size_t)options->history_bytes, newest_id,
                         SLICE(CATCH_UP_SPLICE)) < 0) {
        die(EXIT_RUN_TIME,
            "no memory for a history of %llu bytes: "
            "--history-bytes, --history",
            (unsigned long long)options->history_bytes);
    } else {
        server->ring.unbegun = server->ring.kept_ids = options->ids == IDS_KEEP;
    }
    server->main_topic = topic_hold(&server->ring, SLICE(""));
    server->frame_size =
        (uint32_t)(options->max_event * FRAME_FACTOR + FRAME_REST);
    server->frame = malloc(server->frame_size);
    if (!server->frame || !server->main_topic)
        die(EXIT_RUN_TIME, "no memory for an event: --max-event");
}

/* Begins to publish what comes on standard input. */
static void init_input(struct server *server)
{
    const struct options *options = &server->options;
    const char *topic = options->topic ? options->topic : "";
    bool lines = options->stdin_form == STDIN_LINES;
    char error[ERROR_SIZE];
    struct conn *conn = http_read_input(&server->http, error);
    struct publication *publication;

    if (!conn)
        die(EXIT_RUN_TIME, "%s", error);
    publication = &conn->exchange->publication;
    publication->topic = topic_hold(&server->ring, slice_of(topic));
    publication->from = lines ? FROM_LINES : FROM_EVENTS;
    publication->finishes = options->end;
    publication->content_max =
        (size_t)options->max_event + lines; /* a CR at its end */
    if (!publication->topic ||
        !memory_grow(&server->http, &publication->content,
                     &publication->content_room, publication->content_max))
        die(EXIT_RUN_TIME, "no memory for standard input: --max-event");
    event_parser_init(&publication->parser, NULL, 0);
    log_event(LEVEL_INFO, "input", "topic=%s form=%s", *topic ? topic : "-",
              stdin_names[options->stdin_form]);
}

static void init_token(struct server *server)
{
    const char *file = server->options.token_file;
    char error[ERROR_SIZE];
    mode_t mode;

    if (file && http_load_token(&server->http, file, &mode, error) < 0)
        die(EXIT_RUN_TIME, "--token-file: no token in '%s': %s", file, error);
    if (file)
        warn_of_mode(file, mode);
}

static void init_pages(struct server *server)
{
    const char *root = server->options.root;
    char error[ERROR_SIZE];
    struct stat status;
    bool known = stat("/proc/self/exe", &status) == 0;
    int outcome;

    http_bundle_init(known ? status.st_mtime : time(NULL));
    if (!root)
        return;
    outcome = http_serve_root(&server->http, root, error);
    if (outcome < 0)
        die(EXIT_RUN_TIME, "--root: %s", error);
    if (outcome > 0)
        log_event(LEVEL_WARN, "no_index",
                  "reason=\"--root has no index.html that can be read\"");
}

/* The table of connections, what epoll watches, and the times when something
 * is due. */
static void init_events(struct server *server)
{
    struct options *options = &server->options;
    struct http *http = &server->http;
    struct epoll_event event = { .events = EPOLLIN };
    char error[ERROR_SIZE];
    sigset_t set;

    http->handlers = &handlers;
    http->server = server;
    http->max_connections = options->max_connections;
    http->memory_limit = options->request_memory;
    http->head_timeout = options->head_timeout;
    http->idle_timeout = options->idle_timeout;
    if (http_init(http, error) < 0)
        die(EXIT_RUN_TIME, "%s", error);
    sigemptyset(&set);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    server->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    event.data.u32 = (uint32_t)server->signals;
    if (server->signals < 0 ||
        epoll_ctl(http->epoll, EPOLL_CTL_ADD, server->signals, &event) < 0)
        die(EXIT_RUN_TIME, "cannot begin to wait for events: %s",
            strerror(errno));
}

static void init_times(struct server *server)
{
    const struct options *options = &server->options;
    uint64_t now = server->http.now;

    update_time(server);
    logger.refilled = now;
    server->phase_end = NEVER;
    server->next_watchdog = NEVER;
    server->next_clock = options->interval ? now + options->interval : NEVER;
    server->next_sync = options->sync < SYNC_NEVER ? now : NEVER;
}

/* Sockets that the service manager holds, so that connections wait
 * in the kernel while it is replaced: from descriptor 3 on, sd_listen_fds(3).
 */
static void take_listeners(struct server *server)
{
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
    char error[ERROR_SIZE];
    uint64_t number;

    if (!pid || !count || strtol(pid, NULL, 10) != getpid())
        return;
    if (!slice_number(slice_of(count), LISTENERS_MAX, &number))
        die(EXIT_RUN_TIME, "LISTEN_FDS: '%s' is not a number up to %d", count,
            LISTENERS_MAX);
    for (uint64_t i = 0; i < number; i++)
        if (http_take_listener(&server->http, LISTEN_FDS_START + (int)i,
                               error) < 0)
            die(EXIT_RUN_TIME, "LISTEN_FDS: %s", error);
}

static void init_listeners(struct server *server)
{
    struct options *options = &server->options;
    char error[ERROR_SIZE];

    take_listeners(server);
    if (options->listen_count == 0 && server->http.listener_count == 0)
        add_listen(options, "127.0.0.1:3000");
    if (options->listen_count + server->http.listener_count > LISTENERS_MAX)
        die(EXIT_USAGE, "--listen: at most %d listeners", LISTENERS_MAX);
    for (unsigned i = 0; i < options->listen_count; i++) {
        int outcome = http_listen(&server->http, options->listen[i], error);

        if (outcome == 0)
            continue;
        http_close_listeners(&server->http);
        die(outcome == -2 ? EXIT_USAGE : EXIT_RUN_TIME, "--listen: %s", error);
    }
}

/* The most that there can be of each kind, in MiB: the history and its topics;
 * connections, each of which may subscribe to topics of its own; requests. */
static void log_memory(const struct server *server)
{
    enum {
        MIB = 1 << 20,
        /* a name, a place in the tree, room for subscribers, malloc's own */
        TOPIC = sizeof(struct topic) + TOPIC_NAME_MAX + 128,
        CONNECTION = sizeof(struct conn) +
                     READER_TOPICS_MAX * (sizeof(struct place) + TOPIC),
    };
    const struct ring *ring = &server->ring;
    uint64_t connections = (uint64_t)server->http.conn_limit * CONNECTION;
    uint64_t history = ring->size + server->frame_size +
                       (ring->mask + 1) * sizeof(struct frame) +
                       ring->limit * TOPIC;

    log_event(LEVEL_INFO, "memory",
              "meaning=\"MiB at the most\" history=%llu connections=%llu "
              "requests=%llu",
              (unsigned long long)history / MIB + 1,
              (unsigned long long)connections / MIB + 1,
              (unsigned long long)server->options.request_memory / MIB);
}

static void announce(const struct server *server)
{
    static const char *const publishers[] = {
        "local (this machine, not through a proxy)",
        "unix (through the Unix socket)", "none", "token"
    };
    const struct options *options = &server->options;

    log_event(LEVEL_INFO, "start",
              "version=%s max_connections=%llu history=%llu "
              "history_bytes=%llu publish=\"%s\"",
              VERSION, (unsigned long long)server->http.max_connections,
              (unsigned long long)options->history,
              (unsigned long long)options->history_bytes,
              publishers[options->publish]);
    log_memory(server);
    for (unsigned i = 0; i < server->http.listener_count; i++)
        log_event(LEVEL_INFO, "listening", "address=%s",
                  server->http.listeners[i].address);
    log_event(LEVEL_INFO, "ready", "first_id=%llu",
              (unsigned long long)server->ring.newest_id + 1);
    notify("READY=1\nSTATUS=serving on %s\n",
           server->http.listeners[0].address);
    for (unsigned i = 0;
         isatty(STDOUT_FILENO) && i < server->http.listener_count; i++)
        printf("ssed serves %s%s/ and the stream at /events; Ctrl-C ends it\n",
               server->http.listeners[i].unix_path ? "" : "http://",
               server->http.listeners[i].address);
    fflush(stdout);
}

static void format_time(char *text, size_t size, int64_t ms)
{
    time_t seconds = (time_t)(ms / 1000);
    struct tm tm;

    if (!localtime_r(&seconds, &tm) ||
        strftime(text, size, "%Y-%m-%d %H:%M:%S", &tm) == 0)
        snprintf(text, size, "-");
}

static void print_topics(const struct ring *ring)
{
    for (uint64_t i = ring->oldest; i < ring->next; i++) {
        const struct frame *frame = ring_frame(ring, i);
        const struct topic *topic = frame->topic;

        if (!frame->previous)
            printf("topic     %.*s: %llu events, the newest %llu%s\n",
                   topic->name.length ? (int)topic->name.length : 17,
                   topic->name.length ? topic->name.data : "(the main stream)",
                   (unsigned long long)topic->count,
                   (unsigned long long)ring_frame(ring, topic->newest)->id,
                   topic_finished(ring, topic) ? ", finished" : "");
    }
}

/* --check. Returns the exit status. */
static int check_history(const char *path)
{
    struct history_wanted wanted = { .path = path };
    char error[ERROR_SIZE];
    struct recovery recovery;
    struct ring ring;
    uint32_t pid;

    prepare_lost_line("ssed: --check: '%s' is lost: " LOST_MEANING, path);
    watch_history();
    if (ring_inspect(&ring, &wanted, &recovery, &pid, error) < 0)
        die(EXIT_RUN_TIME, "--check: %s", error);
    printf("file      %s\n", path);
    if (pid)
        printf("in use    by process %u: it may change while it is read\n",
               pid);
    printf("room      %llu events, %zu bytes\n", (unsigned long long)ring.limit,
           ring.size);
    printf("events    %llu, %zu bytes\n", (unsigned long long)recovery.count,
           ring.used);
    if (recovery.count) {
        char from[32], to[32];

        format_time(from, sizeof(from), ring_time(&ring, ring.oldest));
        format_time(to, sizeof(to), ring_time(&ring, ring.next - 1));
        printf("ids       %llu to %llu\ntimes     %s to %s\n",
               (unsigned long long)recovery.first_id,
               (unsigned long long)recovery.last_id, from, to);
    }
    printf("dropped   %llu that are not whole\n",
           (unsigned long long)recovery.dropped);
    print_topics(&ring);
    ring_release(&ring);
    return recovery.dropped ? EXIT_RUN_TIME : 0;
}

/* No file or socket may become what the log is written to. */
static void fill_standard_descriptors(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd < 0)
        die(EXIT_RUN_TIME, "cannot open /dev/null: %s", strerror(errno));
    close(fd);
}

int main(int argc, char **argv)
{
    static struct server server = {
        .options = {
            .history = 1000,
            .history_bytes = 64 << 20,
            .interval = UNGIVEN,
            .heartbeat = 15000,
            .retry = 3000,
            .max_event = 64 << 10,
            .request_memory = 256 << 20,
            .head_timeout = 10000,
            .idle_timeout = 60000,
            .drain = 5000,
            .drain_spread = 3000,
            .publish = UNGIVEN,
            .stdin_form = UNGIVEN,
            .sync = UNGIVEN,
            .log_level = LEVEL_INFO,
        },
    };
    uint64_t newest_id;

    parse_options(&server.options, argc, argv);
    fill_standard_descriptors();
    if (server.options.check)
        return check_history(server.options.check);
    logger.level = (enum level)server.options.log_level;
    init_token(&server);
    init_events(&server);
    init_times(&server);
    init_history(&server);
    init_pages(&server);
    init_listeners(&server);
    init_watchdog(&server);
    announce(&server);
    if (server.options.reads_input)
        init_input(&server);
    while (server.phase != PHASE_STOP)
        turn(&server);
    newest_id = server.ring.newest_id;
    if (server.options.history_file)
        end_history(&server);
    http_release(&server.http);
    ring_release(&server.ring);
    free(server.frame);
    log_event(LEVEL_INFO, "stopped", "newest_id=%llu",
              (unsigned long long)newest_id);
    return 0;
}
