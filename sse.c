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

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "unknown"
#endif

enum {
    LISTENERS_MAX = 16,
    HOSTS_MAX = 16,
    LISTEN_FDS_START = 3,
    TOKEN_MAX = 512,
    CORS_MAX = 256,
    REQUESTED_MAX = 256, /* of an unusable id, what is shown in a gap */
    IN_FIRST = 2048,     /* bytes of a request that are read at first */
    OUT_SIZE = 8192,     /* answers of a turn's pipelined requests */
    OUT_ROOM = RESPONSE_HEAD_MAX + 512, /* what one answer may need */
    CONTENT_FIRST = 1024,               /* bytes of an event under way */
    OWN_MAX = RESPONSE_HEAD_MAX + 6 * REQUESTED_MAX +
              READER_TOPICS_MAX * (TOPIC_NAME_MAX + 3) + 1024,
    IOV_ROOM = 1024,     /* iovecs to a writev: bounds the time to fill it */
    PIECE_SMALL = 512,   /* bytes: copying it costs less than an iovec does */
    PIECE_COST = 32,     /* bytes that gathering one counts as in a slice */
    SEND_BUDGET = 65536, /* bytes to a subscriber before others have theirs */
    SLICE_SENDS = 64,    /* sends between two looks at epoll */
    SLICE_BYTES = 2 << 20,
    TURN_WORK = 1000,     /* us of a turn for a queue of connections */
    TURN_BUSY = 250,      /* and for one of those that are busy */
    VISIT = 100,          /* us for one of them before others have theirs */
    STEP_EVENTS = 16,     /* events or so between two looks at the clock */
    EVENTS_MAX = 256,     /* of one epoll_wait */
    ACCEPTS_MAX = 32,     /* of one listener in one turn */
    ACCEPT_PAUSE = 100,   /* ms without accept when descriptors ran out */
    SPARE_EXCHANGES = 64, /* kept for the next requests */
    /* descriptors beside the subscribers': surplus clients, which still
     * get their answer; and files, listeners, the log */
    SURPLUS = 64,
    RESERVE = SURPLUS + 64,
    CONNECTIONS_DEFAULT = 1000000,
    BODY_RATE = 1024,     /* bytes a second that a plain body must keep up */
    LINGER = 2000,        /* ms for a peer to read the last answer */
    SENDBUF = 128 * 1024, /* kernel memory that a stalled reader can hold */
    NOTSENT = 64 * 1024,
    USER_TIMEOUT = 120 * 1000, /* ms until an unreachable peer is given up */
    UNIX_MODE_DEFAULT = 0600,  /* of a Unix socket */
    LOCK_PATIENCE = 5000,      /* ms for others to make theirs beside it */
    INTERVAL_DEFAULT = 1000,   /* ms */
    SYNC_DEFAULT = 1000,       /* ms */
    TICK_SHIFT = 7,            /* a tick of the timer wheel is 128 ms */
    WHEEL_SLOTS = 512,
    LOG_BURST = 200,        /* lines that the outside can cause at once */
    LOG_REPORT = 1000,      /* ms between two lines about lines left out */
    LOG_RATE = 100,         /* and in a second */
    RETRY_LATER_MIN = 2000, /* ms, when there is no room for a subscriber */
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

/* What a connection that reads is asked of epoll. */
#define INPUT ((uint32_t)(EPOLLIN | EPOLLRDHUP))

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
    bool end;   /* the topic is finished at the end of standard input */
    bool input; /* standard input is published */
};

/* What somebody publishes: a request, or standard input. */
struct publication {
    struct topic *topic; /* held; NULL: nothing is being published */
    enum {
        FROM_PLAIN,  /* the content is the data of one event */
        FROM_EVENTS, /* it is an event stream */
        FROM_LINES,  /* each line is an event */
        FROM_DELETE, /* it is of no account */
    } from;
    enum {
        DUE_NOTHING,
        DUE_EVENT, /* `event` is to be appended */
        DUE_END,   /* the topic is to be finished */
    } due;
    bool end;   /* the topic is to be finished at last */
    bool ended; /* it has been */
    bool skips; /* a line that is too long, until it ends */
    uint64_t count, skipped, first, last;
    struct event event;
    struct slice piece; /* content that has arrived and was not looked at */
    char *content;      /* owned: what belongs to the event under way */
    size_t content_length;
    size_t content_room;        /* bytes there are */
    size_t content_max;         /* bytes there may be */
    struct event_parser parser; /* name and id too, if there is no stream */
};

/* Bytes [start, end) of `room`, which grows as they arrive. */
struct buffer {
    char *bytes; /* owned */
    size_t room;
    size_t start;
    size_t end;
};

/* Everything about a connection that is not needed while it subscribes or
 * idles; from a pool. What its buffers take is counted in
 * server.request_memory. */
struct exchange {
    struct buffer in;  /* has not been parsed */
    struct buffer out; /* has not been sent; OUT_ROOM is left for an answer */
    struct exchange *next_spare;
    /* from here on all is zero for a new one */
    struct request request;
    struct body body;
    struct publication publication;
    struct file file; /* being sent; fd is owned, -1 if none */
    uint64_t file_at; /* the next byte of it */
    uint64_t file_left;
    bool left;  /* not all of `in` has been looked at, or an event is due */
    bool close; /* when the answer is sent */
    /* --sync always: out[promise, end) says of events that they are kept,
     * and they are not on the disk yet */
    bool promises;
    size_t promise;
};

/* What one subscriber alone gets and the socket did not take at once. */
struct own {
    uint32_t sent;
    uint32_t length;
    char bytes[];
};

enum conn_state {
    CONN_FREE,     /* no connection has this number */
    CONN_LISTENER, /* a listening socket */
    CONN_REQUEST,  /* reading a request head, or idle between two */
    CONN_BODY,     /* reading a body to publish */
    CONN_INPUT,    /* standard input */
    CONN_WAITING,  /* publishes, and waits for room in the ring */
    CONN_RESPOND,  /* sending a file, or answers to a full socket */
    CONN_STREAM,   /* subscribes */
    CONN_LINGER,   /* has sent the last answer; reads until the peer ends */
    CONN_CLOSED,   /* until the end of the batch */
    CONN_STATES,
};

/*
 * A connection is in at most one queue. For work, answers and waiting there
 * are two each: connections that send more than a visit can take, and streams
 * that are published, have the second, so that one that asks now and then, and
 * waits for the answer, is never behind them.
 */
enum queue_name {
    QUEUE_NONE,
    QUEUE_WORK, /* something has arrived, and is to be looked at */
    QUEUE_WORK_BUSY,
    QUEUE_ANSWERS, /* has answers to send */
    QUEUE_ANSWERS_BUSY,
    QUEUE_WAITING, /* CONN_WAITING */
    QUEUE_WAITING_BUSY,
    QUEUE_READY,   /* subscribers with more to get and room in the socket */
    QUEUE_STARVED, /* waits for --request-memory */
    QUEUE_CLOSED,  /* CONN_CLOSED */
    QUEUES,
};

enum {
    FLAG_UNIX = 1,
    FLAG_ENDING = 2,  /* the last bytes of the stream are under way */
    FLAG_AHEAD = 4,   /* came with an id newer than the newest */
    FLAG_SURPLUS = 8, /* came when --max-connections were there */
    FLAG_BUSY = 16,   /* what it sent last took more than a visit; or it is
                       * new, and not known to be different */
    /* a listener on a loopback address, and what came by it */
    FLAG_LOOPBACK = 32,
};

struct conn {
    uint8_t state; /* enum conn_state; conn_set_state() alone sets it */
    uint8_t flags;
    uint8_t queue;     /* enum queue_name */
    uint8_t form;      /* enum form, of a subscriber's stream */
    uint32_t interest; /* what epoll has been asked for */
    uint32_t queue_previous, queue_next;
    uint32_t timer_previous, timer_next;
    uint32_t deadline; /* tick of the timer wheel */
    uint32_t active;   /* when a stream's bytes last went: ms, low 32 bits */
    struct in6_addr address;
    uint16_t port;
    uint8_t topics; /* of a subscriber */
    union {
        struct exchange *exchange; /* owned; NULL while idle */
        struct {                   /* CONN_STREAM */
            union {
                struct place place;   /* of one topic */
                struct place *places; /* owned; of several */
            };
            struct own *own; /* owned; goes before all else; or NULL */
            struct cursor cursor;
            union {
                uint64_t replay_end; /* newest frame of the replay, 0: over */
                uint64_t ahead;      /* FLAG_AHEAD: the id */
            };
            uint64_t bytes;
            uint32_t replay_count;
            uint32_t since; /* second of arrival, monotonic */
        };
    };
};

_Static_assert(sizeof(struct conn) <= 120, "an idle subscriber's memory");

struct queue {
    uint32_t first, last;
    uint32_t count;
};

struct listener {
    int fd;
    const char *unix_path; /* to be unlinked, part of `address`; or NULL */
    dev_t device;          /* what was made there */
    ino_t inode;
    char address[128];
};

enum phase {
    PHASE_SERVE,
    PHASE_ANNOUNCE, /* about to drain: only /healthz tells */
    PHASE_DRAIN,    /* listeners closed; subscribers are sent off */
    PHASE_STOP,
};

struct server {
    struct options options;
    uint32_t frame_size;
    enum phase phase;
    uint64_t phase_end; /* when the phase ends by itself; ms */
    struct ring ring;
    struct topic *main_topic; /* held */
    char *frame;       /* owned: where a frame is made, frame_size bytes */
    uint64_t watchdog; /* ms between two signs of life; 0: none is wanted */
    uint64_t next_watchdog;
    uint64_t next_sync; /* ms */
    bool sync_failed;   /* what is on the disk can no longer be relied on */
    bool file_deleted;  /* it has been said */

    int epoll;
    int signals;
    int root; /* --root's folder, -1: bundled pages */
    unsigned listener_count;
    struct listener listeners[LISTENERS_MAX];
    bool accepting;
    bool input_is_file; /* epoll cannot watch it: it is always ready */
    bool input_is_socket;
    int input_fd;          /* what is read: standard input, or the same pipe
                            * by a description of our own */
    uint64_t accept_again; /* ms, when !accepting */
    struct conn *input;    /* standard input, NULL: it is not published */

    struct conn *conns; /* owned, conn_limit of them */
    uint32_t conn_limit;
    uint32_t connections;
    uint32_t in_state[CONN_STATES];
    struct queue queues[QUEUES];
    /* the oldest frame that somebody in QUEUE_READY may need, and the same
     * for those queued since this round of the queue began; 0: none */
    uint64_t ready_from, ready_from_next;
    uint32_t ready_round; /* how many of the round are left */
    uint32_t wheel[WHEEL_SLOTS];
    uint64_t wheel_tick; /* the last one that was looked at */
    struct exchange *spare;
    unsigned spare_count;
    uint64_t request_memory; /* bytes that requests hold now */
    uint64_t visit_end;      /* us, monotonic */
    unsigned steps;          /* until the next look at the clock */

    uint64_t now; /* ms, monotonic; of this turn */
    time_t wall;  /* what `date` says */
    char date[HTTP_DATE_SIZE];
    uint64_t next_clock; /* ms */
    unsigned slice_sends;
    size_t slice_bytes;
    char token[TOKEN_MAX];
    size_t token_length;
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

static uint64_t clock_us(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static uint64_t clock_ms(clockid_t clock)
{
    return clock_us(clock) / 1000;
}

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

    if (level > logger.level || !log_allowed(server->now))
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

enum {
    PEER_SIZE = INET6_ADDRSTRLEN + 9
};

static const char *format_peer(char *buffer, const struct conn *conn)
{
    char host[INET6_ADDRSTRLEN];

    if (conn->flags & FLAG_UNIX)
        return "unix";
    if (IN6_IS_ADDR_V4MAPPED(&conn->address)) {
        inet_ntop(AF_INET, &conn->address.s6_addr[12], host, sizeof(host));
        snprintf(buffer, PEER_SIZE, "%s:%u", host, conn->port);
    } else {
        inet_ntop(AF_INET6, &conn->address, host, sizeof(host));
        snprintf(buffer, PEER_SIZE, "[%s]:%u", host, conn->port);
    }
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

/* -------------------------------------------------- queues and timers */

static struct conn *conn_at(struct server *server, uint32_t fd)
{
    return &server->conns[fd];
}

static uint32_t conn_fd(const struct server *server, const struct conn *conn)
{
    return (uint32_t)(conn - server->conns);
}

static void queue_push(struct server *server, enum queue_name name,
                       struct conn *conn)
{
    struct queue *queue = &server->queues[name];
    uint32_t fd = conn_fd(server, conn);

    assert(conn->queue == QUEUE_NONE);
    conn->queue = (uint8_t)name;
    conn->queue_previous = queue->last;
    conn->queue_next = NONE;
    if (queue->last == NONE)
        queue->first = fd;
    else
        conn_at(server, queue->last)->queue_next = fd;
    queue->last = fd;
    queue->count++;
}

static void queue_remove(struct server *server, struct conn *conn)
{
    struct queue *queue = &server->queues[conn->queue];

    if (conn->queue == QUEUE_NONE)
        return;
    if (conn->queue_previous == NONE)
        queue->first = conn->queue_next;
    else
        conn_at(server, conn->queue_previous)->queue_next = conn->queue_next;
    if (conn->queue_next == NONE)
        queue->last = conn->queue_previous;
    else
        conn_at(server, conn->queue_next)->queue_previous =
            conn->queue_previous;
    queue->count--;
    conn->queue = QUEUE_NONE;
}

static struct conn *queue_pop(struct server *server, enum queue_name name)
{
    struct conn *conn = conn_at(server, server->queues[name].first);

    queue_remove(server, conn);
    return conn;
}

static void timer_link(struct server *server, struct conn *conn)
{
    uint32_t *slot = &server->wheel[conn->deadline % WHEEL_SLOTS];

    conn->timer_previous = NONE;
    conn->timer_next = *slot;
    if (*slot != NONE)
        conn_at(server, *slot)->timer_previous = conn_fd(server, conn);
    *slot = conn_fd(server, conn);
}

static void timer_stop(struct server *server, struct conn *conn)
{
    if (conn->deadline == 0)
        return;
    if (conn->timer_previous == NONE)
        server->wheel[conn->deadline % WHEEL_SLOTS] = conn->timer_next;
    else
        conn_at(server, conn->timer_previous)->timer_next = conn->timer_next;
    if (conn->timer_next != NONE)
        conn_at(server, conn->timer_next)->timer_previous =
            conn->timer_previous;
    conn->deadline = 0;
}

/* Calls conn_expired() in `delay` ms, a tick later at the most. */
static void timer_start(struct server *server, struct conn *conn,
                        uint64_t delay)
{
    timer_stop(server, conn);
    conn->deadline = (uint32_t)((server->now + delay) >> TICK_SHIFT) + 1;
    timer_link(server, conn);
}

/* When the next connection's timer may be due, in ms. */
static uint64_t wheel_next(const struct server *server)
{
    for (uint64_t tick = server->wheel_tick + 1;
         tick <= server->wheel_tick + WHEEL_SLOTS; tick++)
        if (server->wheel[tick % WHEEL_SLOTS] != NONE)
            return tick << TICK_SHIFT;
    return UINT64_MAX;
}

/* --------------------------------------------------------- connections */

static void conn_set_state(struct server *server, struct conn *conn,
                           enum conn_state state)
{
    server->in_state[conn->state]--;
    server->in_state[state]++;
    conn->state = (uint8_t)state;
}

static void conn_set_interest(struct server *server, struct conn *conn,
                              uint32_t interest)
{
    struct epoll_event event = {
        .events = interest,
        .data.u32 = conn_fd(server, conn),
    };

    if (conn->interest == interest)
        return;
    conn->interest = interest;
    /* it cannot fail: the descriptor was added, and no memory is needed */
    epoll_ctl(server->epoll, EPOLL_CTL_MOD, (int)event.data.u32, &event);
}

/* Counts memory as the requests'. False if --request-memory does not allow
 * it. */
static bool memory_take(struct server *server, size_t bytes)
{
    uint64_t maximum = server->options.request_memory;

    if (bytes > maximum || server->request_memory > maximum - bytes)
        return false;
    server->request_memory += bytes;
    return true;
}

static void memory_return(struct server *server, size_t bytes)
{
    server->request_memory -= bytes;
}

/* Reallocates bytes of a request from `room` to `wanted` bytes. False if that
 * is not to be had: nothing has changed. */
static bool grow(struct server *server, char **bytes, size_t *room,
                 size_t wanted)
{
    char *moved;

    if (wanted <= *room)
        return true;
    if (!memory_take(server, wanted - *room))
        return false;
    moved = realloc(*bytes, wanted);
    if (!moved) {
        memory_return(server, wanted - *room);
        return false;
    }
    *bytes = moved;
    *room = wanted;
    return true;
}

static void let_go(struct server *server, char **bytes, size_t *room)
{
    free(*bytes);
    memory_return(server, *room);
    *bytes = NULL;
    *room = 0;
}

static size_t buffer_length(const struct buffer *buffer)
{
    return buffer->end - buffer->start;
}

static void exchange_free(struct exchange *exchange)
{
    free(exchange->in.bytes);
    free(exchange->out.bytes);
    free(exchange);
}

/* What an exchange has allocated, but for content. */
static size_t exchange_size(const struct exchange *exchange)
{
    return sizeof(*exchange) + exchange->in.room + exchange->out.room;
}

static struct exchange *exchange_make(void)
{
    struct exchange *exchange = calloc(1, sizeof(*exchange));

    if (!exchange)
        return NULL;
    exchange->in.bytes = malloc(IN_FIRST);
    exchange->out.bytes = malloc(OUT_ROOM);
    if (!exchange->in.bytes || !exchange->out.bytes) {
        exchange_free(exchange);
        return NULL;
    }
    exchange->in.room = IN_FIRST;
    exchange->out.room = OUT_ROOM;
    return exchange;
}

/* NULL if there is no memory for it: errno is EAGAIN if --request-memory is
 * used up, else ENOMEM. */
static struct exchange *exchange_take(struct server *server)
{
    struct exchange *exchange = server->spare;

    if (exchange) {
        server->spare = exchange->next_spare;
        server->spare_count--;
    } else {
        exchange = exchange_make();
    }
    errno = exchange ? EAGAIN : ENOMEM;
    if (exchange && !memory_take(server, exchange_size(exchange))) {
        exchange_free(exchange);
        return NULL;
    }
    if (!exchange)
        return NULL;
    exchange->in.start = exchange->in.end = 0;
    exchange->out.start = exchange->out.end = 0;
    memset(&exchange->request, 0,
           sizeof(*exchange) - offsetof(struct exchange, request));
    exchange->file.fd = -1;
    return exchange;
}

/* Nothing is published any more by this one. */
static void publication_end(struct server *server, struct exchange *exchange)
{
    struct publication *publication = &exchange->publication;

    let_go(server, &publication->content, &publication->content_room);
    if (publication->topic)
        topic_drop(&server->ring, publication->topic);
    publication->topic = NULL;
}

static void exchange_drop_file(struct exchange *exchange)
{
    if (exchange->file.fd >= 0)
        close(exchange->file.fd);
    exchange->file.fd = -1;
    exchange->file_left = 0;
}

static void exchange_release(struct server *server, struct exchange *exchange)
{
    publication_end(server, exchange);
    exchange_drop_file(exchange);
    memory_return(server, exchange_size(exchange));
    if (server->spare_count >= SPARE_EXCHANGES) {
        exchange_free(exchange);
        return;
    }
    exchange->next_spare = server->spare;
    server->spare = exchange;
    server->spare_count++;
}

static void conn_release_exchange(struct server *server, struct conn *conn)
{
    if (conn->exchange)
        exchange_release(server, conn->exchange);
    conn->exchange = NULL;
}

static void stream_leave(struct server *server, struct conn *conn,
                         const char *reason);

/* The only end of a connection. `reason` is for the log. */
static void conn_close(struct server *server, struct conn *conn,
                       const char *reason)
{
    if (conn->state == CONN_CLOSED)
        return;
    if (conn->state == CONN_STREAM)
        stream_leave(server, conn, reason);
    else
        conn_release_exchange(server, conn);
    timer_stop(server, conn);
    queue_remove(server, conn);
    conn_set_state(server, conn, CONN_CLOSED);
    queue_push(server, QUEUE_CLOSED, conn);
}

/* Closes with a reset, so that the kernel lets go of what was not sent. */
static void conn_cut(struct server *server, struct conn *conn,
                     const char *reason)
{
    struct linger none = { .l_onoff = 1, .l_linger = 0 };

    setsockopt((int)conn_fd(server, conn), SOL_SOCKET, SO_LINGER, &none,
               sizeof(none));
    conn_close(server, conn, reason);
}

static void reap(struct server *server)
{
    while (server->queues[QUEUE_CLOSED].count) {
        struct conn *conn = queue_pop(server, QUEUE_CLOSED);

        conn_set_state(server, conn, CONN_FREE);
        server->connections--;
        close((int)conn_fd(server, conn));
    }
}

/* After the last answer: closing at once, with bytes of the peer unread,
 * would reset the connection and could take the answer with it. */
static void conn_linger(struct server *server, struct conn *conn)
{
    conn_release_exchange(server, conn);
    shutdown((int)conn_fd(server, conn), SHUT_WR);
    conn_set_state(server, conn, CONN_LINGER);
    conn_set_interest(server, conn, INPUT);
    timer_start(server, conn, LINGER);
}

/* Reads and throws away. False if the peer has ended. */
static bool conn_discard(struct server *server, struct conn *conn)
{
    char bytes[16384];
    ssize_t n = read((int)conn_fd(server, conn), bytes, sizeof(bytes));

    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static void conn_wait_for_input(struct server *server, struct conn *conn)
{
    conn_release_exchange(server, conn);
    conn_set_interest(server, conn, INPUT);
}

/* Waits for the next request of a connection, whose last has been answered
 * and of which nothing more has arrived. */
static void conn_idle(struct server *server, struct conn *conn)
{
    conn_wait_for_input(server, conn);
    timer_start(server, conn, server->options.idle_timeout);
}

static bool peer_is_loopback(const struct conn *conn)
{
    const uint8_t *bytes = conn->address.s6_addr;

    return IN6_IS_ADDR_LOOPBACK(&conn->address) ||
           (IN6_IS_ADDR_V4MAPPED(&conn->address) && bytes[12] == 127);
}

static void set_peer(struct conn *conn, const struct sockaddr_storage *peer)
{
    const struct sockaddr_in *v4 = (const void *)peer;
    const struct sockaddr_in6 *v6 = (const void *)peer;

    if (peer->ss_family == AF_INET6) {
        conn->address = v6->sin6_addr;
        conn->port = ntohs(v6->sin6_port);
    } else if (peer->ss_family == AF_INET) {
        conn->address.s6_addr[10] = conn->address.s6_addr[11] = 0xFF;
        memcpy(&conn->address.s6_addr[12], &v4->sin_addr, 4);
        conn->port = ntohs(v4->sin_port);
    } else {
        conn->flags |= FLAG_UNIX;
    }
}

static void accept_pause(struct server *server, bool pause)
{
    server->accepting = !pause;
    server->accept_again = server->now + ACCEPT_PAUSE;
    for (unsigned i = 0; i < server->listener_count; i++)
        conn_set_interest(server,
                          conn_at(server, (uint32_t)server->listeners[i].fd),
                          pause ? 0 : EPOLLIN);
}

/* Begins a connection on a descriptor that was just accepted. There is no
 * place for one beyond the limit on descriptors as it was at the start:
 * somebody has raised it since. */
static struct conn *conn_open(struct server *server, int fd,
                              const struct sockaddr_storage *peer)
{
    struct epoll_event event = { .events = INPUT, .data.u32 = (uint32_t)fd };
    bool fits = (uint32_t)fd < server->conn_limit;
    struct conn *conn;

    if (!fits || epoll_ctl(server->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
        int error = fits ? errno : EMFILE;

        close(fd);
        errno = error;
        return NULL;
    }
    conn = conn_at(server, (uint32_t)fd);
    *conn = (struct conn){ .flags = FLAG_BUSY, .interest = INPUT };
    set_peer(conn, peer);
    conn_set_state(server, conn, CONN_REQUEST);
    if (server->connections++ >= server->options.max_connections)
        conn->flags |= FLAG_SURPLUS;
    timer_start(server, conn, server->options.head_timeout);
    return conn;
}

static bool is_full(const struct server *server)
{
    return server->connections >= server->options.max_connections + SURPLUS;
}

/* Stops accepting for a while: new connections wait in the kernel. */
static void accept_failed(struct server *server, const char *reason)
{
    if (server->now >= server->accept_again + 1000)
        log_event(LEVEL_WARN, "accept_paused", "reason=%s connections=%u",
                  reason, server->connections);
    accept_pause(server, true);
}

static void conn_set_busy(struct conn *conn, bool busy)
{
    if (busy)
        conn->flags |= FLAG_BUSY;
    else
        conn->flags &= (uint8_t)~FLAG_BUSY;
}

/* Has a connection looked at when others have had their visit. */
static void work_push(struct server *server, struct conn *conn)
{
    queue_remove(server, conn);
    queue_push(server, conn->flags & FLAG_BUSY ? QUEUE_WORK_BUSY : QUEUE_WORK,
               conn);
}

/* A client sends its request at once, so it is looked for in this turn: that
 * saves it a slice of the delivery that is under way. */
static void accept_all(struct server *server, int listener)
{
    for (int i = 0; i < ACCEPTS_MAX; i++) {
        struct sockaddr_storage peer = { 0 };
        struct conn *conn;
        socklen_t length = sizeof(peer);
        int fd;

        if (is_full(server)) {
            accept_failed(server, "max-connections");
            return;
        }
        fd = accept4(listener, (struct sockaddr *)&peer, &length,
                     SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && errno == EAGAIN)
            return;
        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
            continue;
        conn = fd < 0 ? NULL : conn_open(server, fd, &peer);
        if (!conn) {
            accept_failed(server, error_name(errno));
            return;
        }
        conn->flags |= conn_at(server, (uint32_t)listener)->flags;
        work_push(server, conn);
    }
}

/* ----------------------------------------------------------- delivery */

/* A subscriber's places: one for each topic. */
static struct place *conn_places(struct conn *conn)
{
    return conn->topics == 1 ? &conn->place : conn->places;
}

/* Whether it reads the main stream: alone then. */
static bool conn_is_main(const struct server *server, struct conn *conn)
{
    return conn_places(conn)->topic == server->main_topic;
}

/* What a subscriber reads. */
static struct reader conn_reader(struct conn *conn)
{
    bool replays = conn->replay_end && !(conn->flags & FLAG_AHEAD);

    return (struct reader){
        .places = conn_places(conn),
        .count = conn->topics,
        .form = conn->form | (replays ? FORM_SPLICED : 0U),
        .until = replays ? conn->replay_end : UINT64_MAX,
    };
}

static uint64_t conn_next(const struct server *server, struct conn *conn)
{
    struct reader reader = conn_reader(conn);

    return reader_next(&server->ring, &reader);
}

static bool conn_overrun(struct conn *conn)
{
    struct reader reader = conn_reader(conn);

    return reader_overrun(&reader);
}

static void own_free(struct server *server, struct conn *conn)
{
    if (conn->own)
        memory_return(server, sizeof(*conn->own) + conn->own->length);
    free(conn->own);
    conn->own = NULL;
}

/* Leaves a topic. The subscriber that takes the index there is told. */
static void leave(struct server *server, const struct place *left)
{
    struct topic *topic = left->topic;
    struct place *place = conn_places(conn_at(server, topic_leave(left)));

    while (place->topic != topic)
        place++;
    place->index = left->index;
    topic_drop(&server->ring, topic);
}

static void stream_leave(struct server *server, struct conn *conn,
                         const char *reason)
{
    char peer[PEER_SIZE];
    struct place *places = conn_places(conn);

    for (unsigned i = 0; i < conn->topics; i++)
        leave(server, &places[i]);
    own_free(server, conn);
    if (conn->topics > 1)
        free(places);
    log_client(server, LEVEL_INFO, "unsubscribed",
               "peer=%s reason=%s events=%u bytes=%llu seconds=%u",
               format_peer(peer, conn), reason, conn->cursor.events,
               (unsigned long long)conn->bytes,
               (uint32_t)(server->now / 1000) - conn->since);
}

/* Has the subscriber offered again as soon as the others had their turn. */
static void ready_push(struct server *server, struct conn *conn)
{
    uint64_t needs = conn_next(server, conn);

    if (conn->queue == QUEUE_READY)
        return;
    queue_push(server, QUEUE_READY, conn);
    if (needs && (!server->ready_from || needs < server->ready_from))
        server->ready_from = needs;
    if (needs && (!server->ready_from_next || needs < server->ready_from_next))
        server->ready_from_next = needs;
}

static void put_catch_up_end(struct text *text, const struct conn *conn)
{
    text_put_block(text, conn->form, &(struct block){ 0 },
                   "{\"type\":\"catch_up_end\","
                   "\"message\":\"消息同步完成\",\"syncCount\":%u}",
                   conn->replay_count);
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

/* Where a subscriber stands that has been sent everything. */
static uint64_t position_of(const struct server *server,
                            const struct conn *conn)
{
    uint64_t newest = server->ring.newest_id;
    bool ahead = (conn->flags & FLAG_AHEAD) && conn->ahead > newest;

    return ahead ? conn->ahead : newest;
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

/* What comes next in a stream whose bytes so far have all been sent. */
static struct slice stream_next_own(struct server *server, struct conn *conn,
                                    struct text *text)
{
    bool drains = server->phase == PHASE_DRAIN;
    struct reader reader = conn_reader(conn);

    text->length = 0;
    if (conn->replay_end && !(conn->flags & FLAG_AHEAD)) {
        if (conn->place.last >= conn->replay_end) {
            put_catch_up_end(text, conn);
            conn->replay_end = 0;
        }
    } else if ((drains || reader_ended(&reader)) &&
               !(conn->flags & FLAG_ENDING) &&
               !reader_next(&server->ring, &reader)) {
        uint64_t position = position_of(server, conn);

        if (drains)
            put_farewell(text, conn->form, &position,
                         1000 + random_below(server->options.drain_spread + 1));
        else
            put_last_chunk(text, conn->form);
        conn->flags |= FLAG_ENDING;
    }
    return text_slice(text);
}

/* Keeps what the socket did not take of the bytes that are this one's own:
 * the rest of conn->own, or others. */
static bool stream_keep(struct server *server, struct conn *conn,
                        struct slice rest)
{
    struct own *own = conn->own;

    if (!own && rest.length == 0)
        return true; /* the rule */
    if (own && rest.length &&
        rest.data + rest.length == own->bytes + own->length) {
        own->sent = own->length - (uint32_t)rest.length;
        return true;
    }
    own_free(server, conn);
    if (rest.length == 0)
        return true;
    if (!memory_take(server, sizeof(*own) + rest.length))
        return false;
    own = malloc(sizeof(*own) + rest.length);
    if (!own) {
        memory_return(server, sizeof(*own) + rest.length);
        return false;
    }
    *own = (struct own){ .length = (uint32_t)rest.length };
    memcpy(own->bytes, rest.data, rest.length);
    conn->own = own;
    return true;
}

/* Gathers a stream's next bytes; returns how many iovecs, and their bytes. */
static int stream_gather(const struct server *server, const struct conn *conn,
                         const struct reader *reader, struct slice own,
                         struct iovec *iov, size_t *bytes)
{
    int count = 0;

    if (own.length)
        iov[count++] =
            (struct iovec){ (void *)(uintptr_t)own.data, own.length };
    if (!(conn->flags & FLAG_ENDING))
        count += ring_gather(&server->ring, reader, conn->cursor.sent,
                             iov + count, IOV_ROOM - count, SEND_BUDGET);
    *bytes = 0;
    for (int i = 0; i < count; i++)
        *bytes += iov[i].iov_len;
    return count;
}

static void stream_advance(struct server *server, struct conn *conn,
                           const struct reader *reader, struct slice *own,
                           size_t sent, size_t pieces)
{
    size_t first = sent < own->length ? sent : own->length;

    *own = slice_from(*own, first);
    ring_advance(&server->ring, reader, &conn->cursor, sent - first);
    conn->bytes += sent;
    conn->active = (uint32_t)server->now;
    server->slice_sends++;
    server->slice_bytes += sent + pieces * PIECE_COST;
}

enum io {
    IO_DONE,
    IO_FULL,
    IO_BUDGET,
    IO_ERROR,
    IO_OVERRUN
};

/* As writev(2). One piece, which is the rule, costs the kernel less by
 * send(2); many small ones, as spliced frames are, when they are joined. */
static ssize_t send_iovecs(int fd, const struct iovec *iov, int count,
                           size_t bytes)
{
    static char joined[IOV_ROOM * PIECE_SMALL];
    char *end = joined;

    if (count == 1)
        return send(fd, iov->iov_base, iov->iov_len, MSG_NOSIGNAL);
    if (bytes >= (size_t)count * PIECE_SMALL)
        return writev(fd, iov, count);
    for (int i = 0; i < count; i++) {
        memcpy(end, iov[i].iov_base, iov[i].iov_len);
        end += iov[i].iov_len;
    }
    return send(fd, joined, bytes, MSG_NOSIGNAL);
}

/* Passes over what a subscriber that was ahead has had elsewhere. */
static void stream_skip(struct server *server, struct conn *conn)
{
    struct reader reader = conn_reader(conn);

    reader_skip(&server->ring, &reader, conn->ahead);
    if (server->ring.newest_id < conn->ahead || !server->ring.newest_id)
        return;
    conn->flags &= (uint8_t)~FLAG_AHEAD;
    conn->replay_end = 0;
}

/* Sends from the cursor to the end, `own` first; *own is then what is left
 * of it. Says why it stopped. */
static enum io stream_write(struct server *server, struct conn *conn,
                            struct slice *own, struct text *text)
{
    struct iovec iov[IOV_ROOM];
    size_t total = 0, bytes = SEND_BUDGET;
    int count = 0;

    if (conn->flags & FLAG_AHEAD)
        stream_skip(server, conn);
    if (conn_overrun(conn))
        return IO_OVERRUN;
    for (;;) {
        struct reader reader;
        ssize_t sent;

        if (own->length == 0)
            *own = stream_next_own(server, conn, text);
        if (own->length == 0 && bytes < SEND_BUDGET && count < IOV_ROOM)
            return IO_DONE; /* there was room for more than there is */
        reader = conn_reader(conn);
        count = stream_gather(server, conn, &reader, *own, iov, &bytes);
        if (count == 0)
            return IO_DONE;
        if (total >= SEND_BUDGET)
            return IO_BUDGET;
        sent = send_iovecs((int)conn_fd(server, conn), iov, count, bytes);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return errno == EAGAIN ? IO_FULL : IO_ERROR;
        stream_advance(server, conn, &reader, own, (size_t)sent, (size_t)count);
        total += (size_t)sent;
        if ((size_t)sent < bytes)
            return IO_FULL;
    }
}

/*
 * Sends a subscriber what there is for it: `own`, which goes to it alone and
 * is empty for most, then the frames from its cursor on. What does not fit
 * goes when its socket has room again.
 */
static void stream_send(struct server *server, struct conn *conn,
                        struct slice own)
{
    char bytes[512];
    struct text text = { bytes, sizeof(bytes), 0 };
    enum io outcome;

    assert(!conn->own || own.length == 0);
    if (conn->own)
        own = (struct slice){ conn->own->bytes + conn->own->sent,
                              conn->own->length - conn->own->sent };
    outcome = stream_write(server, conn, &own, &text);
    if (outcome == IO_OVERRUN) {
        conn_cut(server, conn, "overrun");
    } else if (outcome == IO_ERROR) {
        conn_close(server, conn, error_name(errno));
    } else if (!stream_keep(server, conn, own)) {
        conn_close(server, conn, error_name(ENOMEM));
    } else if (outcome == IO_DONE && (conn->flags & FLAG_ENDING)) {
        conn_close(server, conn,
                   server->phase == PHASE_DRAIN ? "drained" : "finished");
    } else {
        conn_set_interest(server, conn,
                          INPUT | (outcome == IO_FULL ? EPOLLOUT : 0));
        if (outcome == IO_BUDGET)
            ready_push(server, conn);
    }
}

static bool slice_used_up(const struct server *server)
{
    return server->slice_sends >= SLICE_SENDS ||
           server->slice_bytes >= SLICE_BYTES;
}

/* In a pass: one with a full socket waits for room in it, or is overrun. */
static void pass_visit(struct server *server, struct conn *conn)
{
    if (!(conn->interest & EPOLLOUT) || conn_overrun(conn))
        stream_send(server, conn, SLICE(""));
}

/*
 * Visits the subscribers of the topics with new frames until the quantum is
 * used up. While a pass is under way, frames pile up, and each subscriber gets
 * all of them at once when its turn comes.
 */
static void deliver_topics(struct server *server)
{
    uint32_t fd;

    while (!slice_used_up(server) && (fd = pass_next(&server->ring)) != NONE)
        pass_visit(server, conn_at(server, fd));
    pass_yield(&server->ring);
}

/* Offers more to those that had room for more, each once in a round. */
static void deliver_ready(struct server *server)
{
    while (server->queues[QUEUE_READY].count && !slice_used_up(server)) {
        if (server->ready_round == 0) {
            server->ready_round = server->queues[QUEUE_READY].count;
            server->ready_from = server->ready_from_next;
            server->ready_from_next = 0;
        }
        server->ready_round--;
        stream_send(server, queue_pop(server, QUEUE_READY), SLICE(""));
    }
    if (server->queues[QUEUE_READY].count == 0) {
        server->ready_round = 0;
        server->ready_from = 0;
        server->ready_from_next = 0;
    }
}

/* --------------------------------------------------------- publishing */

enum outcome {
    PUBLISHED,
    MUST_WAIT,
    IDS_USED_UP,
    NOT_KEPT /* --sync always, and the disk has failed */
};

static void conn_cut_at(struct server *server, uint32_t fd, const char *reason)
{
    conn_cut(server, conn_at(server, fd), reason);
}

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
    for (uint32_t fd = 0; fd < server->conn_limit; fd++) {
        const struct conn *conn = conn_at(server, fd);
        bool ahead = conn->flags & FLAG_AHEAD;

        if (conn->state == CONN_STREAM && (ahead || newest) &&
            (ahead ? conn->ahead : newest) < id - 1)
            conn_cut_at(server, fd, "gap");
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
    if (has_failed_disk(server))
        return NOT_KEPT;
    if (ring_would_overrun(&server->ring, frame->length, server->ready_from))
        return MUST_WAIT;
    if (server->ring.unbegun)
        begin_kept_history(server, id);
    ring_append(&server->ring, topic, id, text_slice(frame), (uint32_t)splice,
                end);
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

/* Appends an event to its topic's history; *id is then its id. */
static enum outcome publish_event(struct server *server, struct topic *topic,
                                  const struct event *event, uint64_t *id)
{
    struct text text = { server->frame, server->frame_size, 0 };
    size_t splice = 0;

    *id = event->id ? event->id : server->ring.newest_id + 1;
    if (*id > ID_MAX)
        return IDS_USED_UP;
    if (topic == server->main_topic)
        splice = put_message(&text, *id, event->data);
    else
        text_put_event(&text, *id, event);
    return publish_frame(server, topic, *id, &text, splice, false);
}

/* Finishes a topic; *id is then that of its end. With kept ids another server
 * of the group has the end, so it is stored whatever is known of the topic. */
static enum outcome publish_end(struct server *server, struct topic *topic,
                                uint64_t given, uint64_t *id)
{
    struct text text = { server->frame, server->frame_size, 0 };
    uint64_t last = topic_newest_id(&server->ring, topic);
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

    if (!server->options.interval || server->now < server->next_clock ||
        server->phase >= PHASE_DRAIN)
        return;
    localtime_r(&seconds, &tm);
    length += strftime(message + length, sizeof(message) - length,
                       "%Y-%m-%d %H:%M:%S", &tm);
    event.data = (struct slice){ message, length };
    if (publish_event(server, server->main_topic, &event, &id) == MUST_WAIT)
        return;
    server->next_clock += server->options.interval;
    if (server->next_clock <= server->now)
        server->next_clock = server->now + server->options.interval;
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

    if (!server->ring.unsynced || server->now < server->next_sync)
        return;
    server->next_sync =
        server->now + (pause ? SYNC_DEFAULT : server->options.sync);
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

/* ------------------------------------------------------------- answers */

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
               "peer=%s method=%s path=%s status=%d bytes=%llu",
               format_peer(peer, conn), methods[request->method], path, status,
               (unsigned long long)length);
}

/* Has a connection's answers sent; from whatever queue. Files take longer than
 * all else, and go after it. */
static void answers_push(struct server *server, struct conn *conn)
{
    bool last = (conn->flags & FLAG_BUSY) || conn->exchange->file_left;

    queue_remove(server, conn);
    queue_push(server, last ? QUEUE_ANSWERS_BUSY : QUEUE_ANSWERS, conn);
}

/*
 * Puts an answer after those that wait to be sent, and makes the exchange
 * ready for the next request. response->length is that of the content; what
 * of the content is not in `content` is sent by the caller.
 */
static void respond(struct server *server, struct conn *conn,
                    struct response *response, struct slice content)
{
    static const struct response too_long = { .status = 500, .close = true };
    struct exchange *exchange = conn->exchange;
    char *out = exchange->out.bytes + exchange->out.end;
    size_t room = exchange->out.room - exchange->out.end, length;

    /* a body that nobody will read cannot be told from the next request */
    response->close = response->close || exchange->request.close ||
                      exchange->body.state != BODY_DONE;
    response->date = server->date;
    length = http_head(out, room, response);
    if (!length || room - length < content.length) {
        *response = too_long;
        response->date = server->date;
        content.length = 0;
        length = http_head(out, room, response);
    }
    if (exchange->request.method != METHOD_HEAD) {
        memcpy(out + length, content.data, content.length);
        length += content.length;
    }
    exchange->out.end += length;
    exchange->close = response->close;
    log_access(server, conn, response->status, response->length);
    publication_end(server, exchange);
    exchange->request = (struct request){ 0 };
    conn_set_state(server, conn, CONN_REQUEST);
    timer_start(server, conn, server->options.head_timeout);
    answers_push(server, conn);
}

/* An answer with a line of text. */
static void respond_text(struct server *server, struct conn *conn,
                         struct response response, const char *text)
{
    char line[256];
    int length = snprintf(line, sizeof(line), "%s\n", text);

    response.type = "text/plain; charset=utf-8";
    response.length = (uint64_t)length;
    if (response.status == 503 && !response.retry_after)
        response.retry_after = 2;
    respond(server, conn, &response, (struct slice){ line, (size_t)length });
}

static void respond_error(struct server *server, struct conn *conn, int status,
                          const char *text)
{
    respond_text(server, conn, (struct response){ .status = status }, text);
}

/* A connection that came too late gets this and ends: the places beyond
 * --max-connections are few. */
static void respond_surplus(struct server *server, struct conn *conn)
{
    respond_text(server, conn,
                 (struct response){ .status = 503, .close = true },
                 "too many connections: --max-connections");
}

static void respond_method(struct server *server, struct conn *conn,
                           const char *allow)
{
    char text[128];

    if (conn->exchange->request.method == METHOD_OPTIONS) {
        respond(server, conn,
                &(struct response){
                    .status = 204, .no_length = true, .allow = allow },
                SLICE(""));
        return;
    }
    snprintf(text, sizeof(text), "this resource takes %s", allow);
    respond_text(server, conn,
                 (struct response){ .status = 405, .allow = allow }, text);
}

static void respond_health(struct server *server, struct conn *conn)
{
    enum method method = conn->exchange->request.method;

    if (method != METHOD_GET && method != METHOD_HEAD)
        respond_method(server, conn, "GET, HEAD, OPTIONS");
    else if (server->phase == PHASE_SERVE)
        respond_text(server, conn, (struct response){ .status = 200 }, "ok");
    else
        respond_error(server, conn, 503, "draining: about to end");
}

static void respond_file(struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    struct response response = { 0 };
    bool head = exchange->request.method == METHOD_HEAD;
    uint64_t first, length;

    http_file_response(&exchange->file, &exchange->request, &response, &first);
    length = response.length;
    respond(server, conn, &response, SLICE(""));
    exchange->file_at = first;
    exchange->file_left =
        head || response.status == 304 || response.status == 416 ? 0 : length;
    if (exchange->file_left == 0) {
        exchange_drop_file(exchange);
        return;
    }
    conn_set_state(server, conn, CONN_RESPOND);
    answers_push(server, conn);
}

static void respond_page(struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    enum method method = exchange->request.method;
    struct slice path = exchange->request.path;
    int status;

    if (method != METHOD_GET && method != METHOD_HEAD) {
        respond_method(server, conn, "GET, HEAD, OPTIONS");
        return;
    }
    status = -http_file_open(&exchange->file, server->root, path);
    if (status == 0)
        respond_file(server, conn);
    else if (status == 301)
        respond_text(server, conn,
                     (struct response){ .status = 301, .location = path },
                     "this is a folder: its path ends in a slash");
    else if (status == 404)
        respond_error(server, conn, 404, "there is no such page");
    else
        respond_error(server, conn, status, "no descriptor is free for it");
}

/* --------------------------------------------------------- subscribing */

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
    struct place *places = NULL;

    if (!stream_reserve(reader, &places))
        return false;
    queue_remove(server, conn);
    exchange_release(server, conn->exchange);
    conn_set_state(server, conn, CONN_STREAM);
    conn->topics = (uint8_t)reader->count;
    conn->form = (uint8_t)reader->form;
    if (places)
        conn->places = places;
    else
        conn->place = reader->places[0];
    conn->own = NULL;
    conn->cursor = (struct cursor){ 0 };
    conn->replay_end = 0;
    conn->replay_count = (uint32_t)start->replay;
    conn->bytes = 0;
    conn->since = (uint32_t)(server->now / 1000);
    conn->active = (uint32_t)server->now;
    for (unsigned i = 0; i < reader->count; i++)
        topic_join(&server->ring, &conn_places(conn)[i], conn_fd(server, conn));
    if (start->ahead) {
        conn->flags |= FLAG_AHEAD;
        conn->ahead = start->position;
    } else if (start->replay && conn_is_main(server, conn)) {
        conn->replay_end = server->main_topic->newest;
    }
    timer_stop(server, conn);
    if (server->options.heartbeat)
        timer_start(server, conn, server->options.heartbeat);
    return true;
}

static struct response stream_response(const struct server *server,
                                       const struct conn *conn)
{
    return (struct response){
        .status = 200,
        .stream = true,
        .chunked = conn->exchange->request.minor > 0,
        .date = server->date,
        .cors = stream_cors(server),
    };
}

/* No error status: at any but 200 an EventSource gives up for good. */
static void respond_later(struct server *server, struct conn *conn)
{
    struct response response = stream_response(server, conn);
    char bytes[256];
    struct text text = { bytes, sizeof(bytes), 0 };

    put_farewell(&text, response.chunked ? FORM_CHUNKED : FORM_PLAIN, NULL,
                 RETRY_LATER_MIN +
                     random_below(RETRY_LATER_MAX - RETRY_LATER_MIN + 1));
    response.close = true;
    respond(server, conn, &response, text_slice(&text));
}

static void log_subscribed(const struct server *server, const struct conn *conn,
                           const struct reader *reader,
                           const struct start *start)
{
    char peer[PEER_SIZE], requested[REQUESTED_MAX], topic[TOPIC_NAME_MAX + 1];
    bool is_main = reader->places[0].topic == server->main_topic;

    log_client(server, LEVEL_INFO, "subscribed",
               "peer=%s topic=%s topics=%u last_event_id=%s replay=%llu gap=%s",
               format_peer(peer, conn),
               is_main ? "-"
                       : log_quote(topic, sizeof(topic),
                                   reader->places[0].topic->name),
               reader->count,
               log_quote(requested, sizeof(requested), start->requested),
               (unsigned long long)start->replay, start->gap ? "yes" : "no");
}

/* All that goes before the first frame. */
static void put_stream_begin(struct text *text, const struct server *server,
                             const struct conn *conn,
                             const struct reader *reader,
                             const struct start *start)
{
    const struct exchange *exchange = conn->exchange;
    struct response response = stream_response(server, conn);
    unsigned form = reader->form;
    bool is_main = reader->places[0].topic == server->main_topic;

    /* answers to earlier requests that have not been sent go before it */
    text_put_bytes(text, exchange->out.bytes + exchange->out.start,
                   buffer_length(&exchange->out));
    text->length += http_head(text->bytes + text->length,
                              text->room - text->length, &response);
    if (!is_main) {
        put_position(text, server, form, start);
        if (start->gap)
            put_topics_gap(text, server, form, reader, start);
        return;
    }
    put_connected(text, server, form, start);
    if (start->gap)
        put_gap(text, server, form, reader, start);
    if (start->replay)
        put_catch_up_start(text, form, start->replay);
}

/* What the answers promise has to be on the disk before they go: the first of
 * them syncs for all of a turn. If it fails, they are taken back, and the
 * connection ends: false. */
static bool keep_promises(struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;

    if (!exchange->promises)
        return true;
    exchange->promises = false;
    sync_history(server);
    if (!server->sync_failed)
        return true;
    exchange->out.end = exchange->promise;
    exchange_drop_file(exchange);
    respond_text(server, conn,
                 (struct response){ .status = 503, .close = true },
                 NOT_KEPT_TEXT);
    return false;
}

/* Answers a request to subscribe. True if the connection is now a
 * subscriber's and has the hold on the topics. */
static bool subscribe_to(struct server *server, struct conn *conn,
                         const struct reader *reader)
{
    const struct request *request = &conn->exchange->request;
    char bytes[OUT_SIZE + OWN_MAX];
    struct text text = { bytes, sizeof(bytes), 0 };
    struct response head = stream_response(server, conn);
    char requested[REQUESTED_MAX];
    struct start start;
    uint64_t count;

    if (!find_count(request, &count)) {
        respond_error(server, conn, 400, "last= is not a number of events");
        return false;
    }
    reader_start(&server->ring, reader, find_requested(request, requested),
                 count, &start);
    if (reader_finished(&server->ring, reader)) {
        respond(server, conn,
                &(struct response){ .status = 204,
                                    .no_length = true,
                                    .no_cache = true,
                                    .cors = stream_cors(server) },
                SLICE(""));
    } else if (request->method == METHOD_HEAD) {
        respond(server, conn, &head, SLICE(""));
    } else if (conn->flags & FLAG_SURPLUS) {
        respond_later(server, conn);
    } else if (keep_promises(server, conn)) {
        put_stream_begin(&text, server, conn, reader, &start);
        log_access(server, conn, 200, 0);
        log_subscribed(server, conn, reader, &start);
        if (stream_begin(server, conn, reader, &start)) {
            stream_send(server, conn, text_slice(&text));
            return true;
        }
        respond_later(server, conn);
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

    if (path_topic)
        no_memory = !reader_add(server, &reader, *path_topic);
    else
        refused = reader_add_query(server, &reader, request->query, &no_memory);
    if (!refused && !no_memory && reader.count == 0)
        no_memory = !reader_add(server, &reader, SLICE(""));
    if (refused)
        respond_error(server, conn, 400, refused);
    else if (no_memory)
        respond_later(server, conn);
    else
        subscribed = subscribe_to(server, conn, &reader);
    for (unsigned i = 0; !subscribed && i < reader.count; i++)
        topic_drop(&server->ring, places[i].topic);
}

/* ------------------------------------------------ requests to publish */

static bool token_matches(const struct server *server, struct slice given)
{
    size_t difference = given.length ^ server->token_length;

    /* as long for every token of that length, right or wrong */
    for (size_t i = 0; i < given.length; i++)
        difference |= (unsigned char)given.data[i] ^
                      (unsigned char)server->token[i % server->token_length];
    return difference == 0;
}

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
    if (!(conn->flags & FLAG_UNIX) && !peer_is_loopback(conn))
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

/* Whether the request may publish; if not, it has been answered. */
static bool may_publish(struct server *server, struct conn *conn)
{
    const struct request *request = &conn->exchange->request;
    const char *refused = refused_origin(server, request);

    if (!refused && server->options.publish == PUBLISH_TOKEN &&
        !token_matches(server, http_bearer(request->authorization))) {
        respond_text(server, conn,
                     (struct response){ .status = 401, .authenticate = true },
                     "publishing takes Authorization: Bearer and the token");
        return false;
    }
    if (!refused)
        refused = refused_publisher(server, conn, request);
    if (refused)
        respond_error(server, conn, 403, refused);
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
    publication->end = publication->end || end.length;
    if (server->options.ids == IDS_KEEP && publication->from != FROM_EVENTS &&
        (!slice_number(id, ID_KEPT_MAX, &event->id) || event->id == 0))
        return "with --ids keep ?id= gives the event's id: " ID_KEPT_RANGE;
    return refused_name(event->name);
}

static void respond_publisher(struct server *server, struct conn *conn,
                              int status, const char *text);

static void respond_too_large(struct server *server, struct conn *conn)
{
    char text[96];

    snprintf(text, sizeof(text), "the event has more than %llu bytes",
             (unsigned long long)server->options.max_event);
    respond_publisher(server, conn, 413, text);
}

/* An answer in JSON to a publisher. */
static void respond_json(struct server *server, struct conn *conn, int status,
                         const struct text *json)
{
    struct exchange *exchange = conn->exchange;

    if (server->options.sync == SYNC_ALWAYS && status < 300 &&
        !exchange->promises) {
        exchange->promises = true;
        exchange->promise = exchange->out.end;
    }
    respond(server, conn,
            &(struct response){
                .status = status,
                .type = "application/json",
                .length = json->length,
                .retry_after = status == 503 ? 2 : 0,
                .cors = server->options.cors,
            },
            text_slice(json));
}

/* The answer to a publish that is in the history. */
static void respond_published(struct server *server, struct conn *conn,
                              uint64_t id)
{
    const struct publication *publication = &conn->exchange->publication;
    char bytes[80];
    struct text json = { bytes, sizeof(bytes), 0 };

    text_put(&json, "{\"id\":\"%llu\",\"subscribers\":%u}\n",
             (unsigned long long)id, publication->topic->subscriber_count);
    respond_json(server, conn, publication->from == FROM_DELETE ? 200 : 201,
                 &json);
}

static void put_id(struct text *json, const char *name, uint64_t id)
{
    if (id)
        text_put(json, ",\"%s\":\"%llu\"", name, (unsigned long long)id);
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

    text_put(&json, "{\"count\":%llu,\"skipped\":%llu",
             (unsigned long long)publication->count,
             (unsigned long long)publication->skipped);
    put_id(&json, "first", publication->first);
    put_id(&json, "last", publication->last);
    if (error)
        text_put(&json, ",\"error\":\"%s\"", error);
    text_put(&json, "}\n");
    respond_json(server, conn, status, &json);
}

/* Why a publication ends before its body does. */
static void respond_publisher(struct server *server, struct conn *conn,
                              int status, const char *text)
{
    if (conn->exchange->publication.from == FROM_EVENTS)
        respond_streamed(server, conn, status, text);
    else
        respond_error(server, conn, status, text);
}

static void respond_no_memory(struct server *server, struct conn *conn)
{
    conn->exchange->request.close = true;
    respond_publisher(server, conn, 503,
                      "no memory for requests now: --request-memory");
}

static void respond_draining(struct server *server, struct conn *conn)
{
    respond_publisher(server, conn, 503, "draining: about to end");
}

static bool is_input(const struct server *server, const struct conn *conn)
{
    return conn == server->input;
}

/* Has epoll watch a publisher or not. Of standard input it would go on to
 * tell the end, which is nothing to act on while it waits. */
static void conn_watch(struct server *server, struct conn *conn, bool watch)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = STDIN_FILENO };

    if (!is_input(server, conn)) {
        conn_set_interest(server, conn, watch ? INPUT : 0);
        return;
    }
    if (server->input_is_file || watch == (conn->interest != 0))
        return;
    conn->interest = watch ? EPOLLIN : 0;
    epoll_ctl(server->epoll, watch ? EPOLL_CTL_ADD : EPOLL_CTL_DEL,
              STDIN_FILENO, &event);
}

/* Standard input is published no more; the server goes on. */
static void input_end(struct server *server, const char *reason)
{
    struct conn *conn = server->input;
    const struct publication *publication = &conn->exchange->publication;

    log_event(LEVEL_INFO, "input_ended",
              "reason=\"%s\" events=%llu skipped=%llu", reason,
              (unsigned long long)publication->count,
              (unsigned long long)publication->skipped);
    conn_watch(server, conn, false);
    queue_remove(server, conn);
    conn_release_exchange(server, conn);
    conn_set_state(server, conn, CONN_FREE);
    if (server->input_fd != STDIN_FILENO)
        close(server->input_fd);
    server->input = NULL;
}

/* Waits until the subscribers have been offered what its event would evict.
 * Nothing is read from it meanwhile: TCP slows the publisher down. */
static void conn_wait(struct server *server, struct conn *conn)
{
    if (conn->state == CONN_WAITING)
        return;
    conn_set_state(server, conn, CONN_WAITING);
    conn_watch(server, conn, false);
    timer_stop(server, conn);
    queue_remove(server, conn);
    queue_push(server,
               conn->flags & FLAG_BUSY ? QUEUE_WAITING_BUSY : QUEUE_WAITING,
               conn);
}

/* It has room now: reads on. */
static void conn_unwait(struct server *server, struct conn *conn)
{
    if (conn->state != CONN_WAITING)
        return;
    conn_watch(server, conn, true);
    conn_set_state(server, conn,
                   is_input(server, conn) ? CONN_INPUT : CONN_BODY);
    conn->exchange->left = true;
    work_push(server, conn);
}

static bool is_kept_before(const struct server *server, uint64_t id)
{
    return id && id <= server->ring.newest_id;
}

/* An event or an end whose id is not greater than the newest was there
 * before: a feeder may start again from an earlier place. */
static void skip_due(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    char text[96];

    publication->due = DUE_NOTHING;
    publication->skipped++;
    if (publication->from != FROM_PLAIN && publication->from != FROM_DELETE)
        return;
    snprintf(text, sizeof(text), "the newest id is %llu: ids only increase",
             (unsigned long long)server->ring.newest_id);
    respond_error(server, conn, 409, text);
}

static enum outcome append_due(struct server *server,
                               struct publication *publication, uint64_t *id)
{
    if (publication->due == DUE_EVENT)
        return publish_event(server, publication->topic, &publication->event,
                             id);
    return publish_end(server, publication->topic, publication->event.id, id);
}

/* What was due is in the history. */
static void due_done(struct publication *publication, uint64_t id)
{
    if (publication->due == DUE_EVENT) {
        publication->count++;
        publication->last = id;
        if (!publication->first)
            publication->first = id;
    } else {
        publication->ended = true;
    }
    publication->due = DUE_NOTHING;
}

static const char *outcome_text(enum outcome outcome)
{
    return outcome == IDS_USED_UP ? "all ids are used up" : NOT_KEPT_TEXT;
}

/* Whether others wait whose turn it is before this one. */
static bool others_wait(const struct server *server, const struct conn *conn)
{
    if (conn->state == CONN_WAITING)
        return false; /* it is the first of them */
    return server->queues[QUEUE_WAITING].count ||
           ((conn->flags & FLAG_BUSY) &&
            server->queues[QUEUE_WAITING_BUSY].count);
}

/* Appends what is due; or waits, or gives up. */
static void publish_due(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    enum outcome outcome = MUST_WAIT;
    uint64_t id = 0;

    if (!has_failed_disk(server) &&
        is_kept_before(server, publication->event.id)) {
        conn_unwait(server, conn);
        skip_due(server, conn);
        return;
    }
    if (!others_wait(server, conn))
        outcome = append_due(server, publication, &id);
    if (outcome == MUST_WAIT) {
        conn_wait(server, conn);
        return;
    }
    conn_unwait(server, conn);
    if (outcome == PUBLISHED)
        due_done(publication, id);
    else if (is_input(server, conn))
        input_end(server, outcome_text(outcome));
    else
        respond_publisher(server, conn, 503, outcome_text(outcome));
}

/* Takes the id of the event that the parser has. False if it is none. */
static bool take_parsed_id(const struct event_parser *parser, uint64_t *id)
{
    struct slice text = { parser->id, parser->id_length };

    return parser->has_id && slice_number(text, ID_KEPT_MAX, id) && *id > 0;
}

/* The event that the parser has becomes due. Returns why it is refused, or
 * NULL. */
static const char *take_parsed(const struct server *server,
                               struct publication *publication)
{
    const struct event_parser *parser = &publication->parser;
    struct event *event = &publication->event;
    bool is_main = publication->topic == server->main_topic;
    const char *refused = NULL;

    *event = (struct event){
        .name = { parser->name, parser->name_length },
        .retry = { parser->retry, parser->retry_length },
        .data = { parser->data, parser->length },
    };
    if (server->options.ids == IDS_KEEP && !take_parsed_id(parser, &event->id))
        return "with --ids keep each event has its id: " ID_KEPT_RANGE;
    if (!is_main)
        refused = refused_name(event->name);
    if (!refused)
        publication->due = DUE_EVENT;
    return refused;
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

/* A plain body is complete. */
static void take_content(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;

    publication->event.data = content_data(publication);
    if (publication->content_length == 0)
        respond_error(server, conn, 400, "the request has no body");
    else if (publication->event.data.length > server->options.max_event)
        respond_too_large(server, conn);
    else if (!utf8_valid(publication->event.data))
        respond_error(server, conn, 400, "the body is not valid UTF-8");
    else
        publication->due = DUE_EVENT;
}

/* The body is complete, and nothing is due. */
static void body_ends(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    bool streamed = publication->from == FROM_EVENTS;
    bool empty = publication->count + publication->skipped == 0;

    if (publication->from == FROM_PLAIN && empty)
        take_content(server, conn);
    else if (publication->end && !publication->ended)
        publication->due = DUE_END;
    else if (streamed && empty && !publication->end)
        respond_streamed(server, conn, 400, "the body has no event");
    else if (streamed)
        respond_streamed(server, conn, 201, NULL);
    else if (publication->from == FROM_PLAIN)
        respond_published(server, conn, publication->last);
    else
        respond_published(server, conn,
                          topic_newest_id(&server->ring, publication->topic));
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
    if (grow(server, &publication->content, &publication->content_room, room))
        return true;
    respond_no_memory(server, conn);
    return false;
}

static void append_content(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct slice piece = publication->piece;

    if (piece.length > publication->content_max - publication->content_length) {
        respond_too_large(server, conn);
        return;
    }
    if (!make_room(server, conn, publication->content_length + piece.length))
        return;
    memcpy(publication->content + publication->content_length, piece.data,
           piece.length);
    publication->content_length += piece.length;
    publication->piece.length = 0;
}

/* Makes room for all that a piece can add to the data of an event. */
static bool make_parser_room(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct event_parser *parser = &publication->parser;
    size_t wanted = publication->piece.length + 1;

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

static void parse_piece(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct event_parser *parser = &publication->parser;
    const char *refused = NULL;

    if (!make_parser_room(server, conn))
        return;
    publication->piece = slice_from(
        publication->piece, event_parser_read(parser, publication->piece));
    if (parser->too_long)
        respond_too_large(server, conn);
    else if (parser->complete)
        refused = take_parsed(server, publication);
    if (refused)
        respond_publisher(server, conn, 400, refused);
}

/* Looks at content that has arrived. */
static void take_piece(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;

    if (publication->from == FROM_EVENTS)
        parse_piece(server, conn);
    else if (publication->from == FROM_PLAIN)
        append_content(server, conn);
    else
        publication->piece.length = 0;
}

/* Finds the next piece of the body in what has arrived. False if that is
 * used up. */
static bool next_piece(struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    struct slice data = { exchange->in.bytes + exchange->in.start,
                          buffer_length(&exchange->in) };
    ssize_t taken =
        http_body_read(&exchange->body, data, &exchange->publication.piece);

    if (taken < 0)
        respond_publisher(server, conn, 400, "a chunk is malformed");
    else
        exchange->in.start += (size_t)taken;
    return taken != 0 || exchange->body.state == BODY_DONE;
}

/* Takes in a part of what has arrived of a body, as far as it can be
 * published. False if all that has arrived is used up. */
static bool body_step(struct server *server, struct conn *conn)
{
    const struct exchange *exchange = conn->exchange;
    const struct publication *publication = &exchange->publication;

    if (publication->due != DUE_NOTHING)
        publish_due(server, conn);
    else if (publication->piece.length)
        take_piece(server, conn);
    else if (exchange->body.state == BODY_DONE)
        body_ends(server, conn);
    else
        return next_piece(server, conn);
    return true;
}

/* Asks for the body of a client that waits to be asked. */
static void respond_continue(struct server *server, struct conn *conn)
{
    static const char line[] = "HTTP/1.1 100 Continue\r\n\r\n";
    struct buffer *out = &conn->exchange->out;

    memcpy(out->bytes + out->end, line, sizeof(line) - 1);
    out->end += sizeof(line) - 1;
    answers_push(server, conn);
}

/* Reads the body. A stream may be silent for as long as it likes; all else
 * has to get on. */
static void begin_body(struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    struct publication *publication = &exchange->publication;
    size_t room = (size_t)server->options.max_event + 2;

    if (publication->from == FROM_PLAIN &&
        exchange->request.content_length >= 0)
        room = (size_t)exchange->request.content_length;
    publication->content_max = room;
    conn_set_state(server, conn, CONN_BODY);
    if (publication->from == FROM_EVENTS) {
        publication->content_max = (size_t)server->options.max_event;
        event_parser_init(&publication->parser, NULL, 0);
        conn_set_busy(conn, true);
        timer_stop(server, conn);
    } else {
        timer_start(server, conn,
                    server->options.head_timeout + room * 1000 / BODY_RATE);
    }
    if (exchange->request.expect_continue && buffer_length(&exchange->in) == 0)
        respond_continue(server, conn);
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
        publication->end = true;
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
        (publication->from == FROM_PLAIN || !publication->end))
        refused = "the request has no body";
    if (refused)
        return refused;
    *status = 404;
    if (publication->from == FROM_DELETE && server->options.ids == IDS_OWN &&
        !publication->topic->newest && !publication->topic->subscriber_count)
        refused = "nothing is known of this topic";
    return refused;
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
        respond_error(server, conn, 503, "draining: about to end");
        return;
    }
    if (conn->flags & FLAG_SURPLUS) {
        respond_surplus(server, conn);
        return;
    }
    begin_publication(server, conn, topic);
    if (!publication->topic) {
        respond_error(server, conn, 503, "no memory for the topic");
        return;
    }
    refused = refused_publication(server, conn, &status);
    if (refused)
        respond_error(server, conn, status, refused);
    else if (publication->from == FROM_PLAIN && !request->chunked &&
             (uint64_t)request->content_length > server->options.max_event + 2)
        respond_too_large(server, conn);
    else
        begin_body(server, conn);
}

/* ------------------------------------------------------ standard input */

static void skip_input(struct server *server, const char *why)
{
    server->input->exchange->publication.skipped++;
    log_client(server, LEVEL_WARN, "input_skipped", "reason=\"%s\"", why);
}

static void skip_too_long(struct server *server)
{
    char why[64];

    snprintf(why, sizeof(why), "more than %llu bytes: --max-event",
             (unsigned long long)server->options.max_event);
    skip_input(server, why);
}

/* A line is complete: its bytes stay where they are until the next begins. */
static void input_line_ends(struct server *server,
                            struct publication *publication)
{
    struct slice line = { publication->content, publication->content_length };

    if (line.length && line.data[line.length - 1] == '\r')
        line.length--;
    if (line.length > server->options.max_event)
        publication->skips = true;
    publication->content_length = 0;
    publication->event = (struct event){ .data = line };
    if (publication->skips)
        skip_too_long(server);
    else if (line.length)
        publication->due = DUE_EVENT;
    publication->skips = false;
}

/* Takes what has arrived, up to the end of the line. */
static void input_take_line(struct server *server)
{
    struct exchange *exchange = server->input->exchange;
    struct publication *publication = &exchange->publication;
    const char *from = exchange->in.bytes + exchange->in.start;
    size_t length = buffer_length(&exchange->in);
    const char *lf = memchr(from, '\n', length);

    if (lf)
        length = (size_t)(lf - from);
    if (length > publication->content_room - publication->content_length)
        publication->skips = true;
    else
        memcpy(publication->content + publication->content_length, from,
               length);
    if (!publication->skips)
        publication->content_length += length;
    exchange->in.start += length + (lf != NULL);
    if (lf)
        input_line_ends(server, publication);
}

/*
 * Another ssed, which is the source, tells that something was lost before its
 * position: readers that are behind it are told too, connected ones by
 * coming again. Without ids of the source, that is everybody so far.
 */
static void input_gap(struct server *server)
{
    struct publication *publication = &server->input->exchange->publication;
    struct topic *topic = publication->topic;
    uint64_t position = server->ring.newest_id + 1;

    if (server->options.ids == IDS_KEEP &&
        !take_parsed_id(&publication->parser, &position)) {
        skip_input(server,
                   "a gap without the id of its position: " ID_KEPT_RANGE);
        return;
    }
    if (server->ring.unbegun)
        begin_kept_history(server, position + 1);
    topic_raise_mark(&server->ring, topic, position);
    for (uint32_t i = topic->subscriber_count; i-- > 0;)
        conn_cut(server, conn_at(server, topic->subscribers[i]), "gap");
}

/* Takes what has arrived, up to the end of an event. */
static void input_take_event(struct server *server)
{
    struct exchange *exchange = server->input->exchange;
    struct publication *publication = &exchange->publication;
    struct event_parser *parser = &publication->parser;
    struct slice data = { exchange->in.bytes + exchange->in.start,
                          buffer_length(&exchange->in) };
    struct slice name;
    const char *refused = NULL;

    exchange->in.start += event_parser_read(parser, data);
    if (!parser->complete)
        return;
    name = (struct slice){ parser->name, parser->name_length };
    if (parser->too_long) {
        skip_too_long(server);
    } else if (slice_is(name, "ssed.gap")) {
        input_gap(server);
    } else if (slice_is(name, "ssed.end") &&
               publication->topic != server->main_topic) {
        parser->name_length = 0;
        refused = take_parsed(server, publication);
        publication->due = refused ? DUE_NOTHING : DUE_END;
    } else {
        refused = take_parsed(server, publication);
    }
    if (refused)
        skip_input(server, refused);
}

/* All that has arrived has been taken, and nothing more will come. */
static void input_finish(struct server *server)
{
    struct publication *publication = &server->input->exchange->publication;

    if (publication->content_length || publication->skips)
        input_line_ends(server, publication); /* the last has no line end */
    else if (publication->end && !publication->ended)
        publication->due = DUE_END;
    else
        input_end(server, "end of input");
}

/* Takes in a part of what has arrived on standard input, as far as it can be
 * published. False if that is used up. */
static bool input_step(struct server *server)
{
    const struct exchange *exchange = server->input->exchange;
    const struct publication *publication = &exchange->publication;

    if (publication->due != DUE_NOTHING)
        publish_due(server, server->input);
    else if (buffer_length(&exchange->in) > 0)
        publication->from == FROM_LINES ? input_take_line(server)
                                        : input_take_event(server);
    else if (exchange->body.state == BODY_DONE)
        input_finish(server);
    else
        return false;
    return true;
}

/* As read(2), but it never waits: another process that reads the same may
 * have taken what epoll has told of. */
static ssize_t input_receive(const struct server *server, char *bytes,
                             size_t size)
{
    struct pollfd data = { .fd = STDIN_FILENO, .events = POLLIN };

    if (server->input_is_socket)
        return recv(STDIN_FILENO, bytes, size, MSG_DONTWAIT);
    /* where it could not be opened anew, the next best */
    if (server->input_fd == STDIN_FILENO && !server->input_is_file &&
        poll(&data, 1, 0) == 0) {
        errno = EAGAIN;
        return -1;
    }
    return read(server->input_fd, bytes, size);
}

/* Reads from standard input. False if nothing has come. */
static bool input_fill(struct server *server)
{
    struct exchange *exchange = server->input->exchange;
    struct buffer *in = &exchange->in;
    ssize_t n = input_receive(server, in->bytes, in->room);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (n < 0)
        log_event(LEVEL_ERROR, "input_failed", "error=%s", error_name(errno));
    if (n <= 0)
        exchange->body.state = BODY_DONE;
    in->start = 0;
    in->end = n > 0 ? (size_t)n : 0;
    return true;
}

/* ------------------------------------------------------ the connection */

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
        respond(server, conn,
                &(struct response){
                    .status = 204,
                    .no_length = true,
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
            respond_method(server, conn, allow);
        break;
    case METHOD_OTHER:
        respond_method(server, conn, allow);
        break;
    }
}

static void route_topic(struct server *server, struct conn *conn,
                        struct slice topic)
{
    const char *refused = topic_name_refused(topic);

    if (refused)
        respond_error(server, conn, 400, refused);
    else
        route_events(server, conn, &topic);
}

static void route(struct server *server, struct conn *conn)
{
    const struct request *request = &conn->exchange->request;

    if (slice_is(request->path, "/events"))
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
        respond_method(server, conn, "DELETE, GET, HEAD, OPTIONS, POST");
    else
        respond_page(server, conn);
}

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

/* Moves what has not been parsed to the front, to make room behind it. */
static void compact(struct buffer *buffer)
{
    if (buffer->start == 0)
        return;
    buffer->end -= buffer->start;
    memmove(buffer->bytes, buffer->bytes + buffer->start, buffer->end);
    buffer->start = 0;
}

/* Whether there is room for one more answer. There is if none waits. */
static bool has_answer_room(struct server *server, struct exchange *exchange)
{
    struct buffer *out = &exchange->out;
    size_t wanted = out->room * 2 < OUT_SIZE ? out->room * 2 : OUT_SIZE;

    return out->room - out->end >= OUT_ROOM ||
           (grow(server, &out->bytes, &out->room, wanted) &&
            out->room - out->end >= OUT_ROOM);
}

/* Takes in a request that has arrived whole, if there is room for its answer.
 * False if there is none. */
static bool request_step(struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    struct buffer *in = &exchange->in;
    ssize_t taken;

    if (exchange->close || !has_answer_room(server, exchange))
        return false;
    taken = http_parse(in->bytes + in->start, buffer_length(in),
                       &exchange->request);
    exchange->body.state = BODY_DONE;
    if (taken < 0) {
        exchange->request.close = true;
        respond_error(server, conn, (int)-taken, exchange->request.error);
    } else if (taken > 0) {
        in->start += (size_t)taken;
        http_body_init(&exchange->body, &exchange->request);
        if (is_misdirected(server, conn))
            respond_error(server, conn, 421,
                          "this Host is not known here: --host names another");
        else
            route(server, conn);
        server->steps += STEP_EVENTS;
    }
    return taken != 0;
}

/* Takes in a part of what has arrived. False if there is nothing more to take
 * in, now or ever. */
static bool conn_step(struct server *server, struct conn *conn)
{
    switch ((enum conn_state)conn->state) {
    case CONN_REQUEST:
        return request_step(server, conn);
    case CONN_BODY:
        return body_step(server, conn);
    case CONN_INPUT:
        return input_step(server);
    default:
        return false;
    }
}

/* Begins an exchange on a connection that has had none. */
static bool conn_begin_exchange(struct server *server, struct conn *conn)
{
    timer_start(server, conn, server->options.head_timeout);
    conn->exchange = exchange_take(server);
    if (conn->exchange)
        return true;
    if (errno == EAGAIN) {
        queue_push(server, QUEUE_STARVED, conn);
        conn_set_interest(server, conn, 0);
    } else {
        conn_close(server, conn, "no memory");
    }
    return false;
}

/* Whether a connection publishes a stream, the end of which nobody awaits. */
static bool is_streaming(const struct conn *conn)
{
    return conn->state == CONN_BODY &&
           conn->exchange->publication.from == FROM_EVENTS;
}

/* Reads what there is room for: more of it next time if that was filled, and
 * the connection is busy then. False if nothing has come, or the connection has
 * ended. */
static bool conn_fill(struct server *server, struct conn *conn)
{
    bool first = !conn->exchange;
    struct buffer *in;
    ssize_t n;

    if (first && !conn_begin_exchange(server, conn))
        return false;
    in = &conn->exchange->in;
    compact(in);
    if (in->end == in->room) {
        respond_no_memory(server, conn);
        return false;
    }
    n = read((int)conn_fd(server, conn), in->bytes + in->end,
             in->room - in->end);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        conn_close(server, conn, "closed");
    else if (n < 0 && first)
        conn_wait_for_input(server, conn);
    if (n <= 0)
        return false;
    in->end += (size_t)n;
    conn_set_busy(conn, in->end == in->room || is_streaming(conn));
    if (in->end == in->room && in->room < HEAD_MAX)
        grow(server, &in->bytes, &in->room, in->room * 2);
    return true;
}

/* Whether others are to have their turn. The clock is looked at now and then:
 * after each request, and after some events of a stream. */
static bool visit_is_over(struct server *server)
{
    if (++server->steps < STEP_EVENTS)
        return false;
    server->steps = 0;
    return clock_us(CLOCK_MONOTONIC) >= server->visit_end;
}

/* A body of which all that came has been published keeps no memory while it
 * is silent. */
static void shrink(struct server *server, struct exchange *exchange)
{
    struct publication *publication = &exchange->publication;
    struct event_parser *parser = &publication->parser;
    struct buffer *in = &exchange->in;
    char *smaller;

    if (publication->from != FROM_EVENTS || buffer_length(in) > 0)
        return;
    if (parser->complete || parser->length == 0)
        let_go(server, &publication->content, &publication->content_room);
    parser->room = publication->content_room;
    if (in->room == IN_FIRST || !(smaller = realloc(in->bytes, IN_FIRST)))
        return;
    memory_return(server, in->room - IN_FIRST);
    in->bytes = smaller;
    in->room = IN_FIRST;
}

/* After a visit: what has been answered is sent; what has not been looked at
 * is, once others have had theirs. A busy body is read until nothing has
 * come. */
static void conn_settle(struct server *server, struct conn *conn, bool came)
{
    struct exchange *exchange = conn->exchange;
    bool body = conn->state == CONN_BODY;

    if (buffer_length(&exchange->out) > 0)
        answers_push(server, conn);
    else if (exchange->left || (body && came && (conn->flags & FLAG_BUSY)))
        work_push(server, conn);
    else if (body)
        shrink(server, exchange);
    if (conn->queue == QUEUE_NONE && !is_input(server, conn))
        conn_set_interest(server, conn, INPUT);
}

/* Whether a connection takes in requests or what is published. */
static bool takes_in(const struct conn *conn)
{
    return conn->state == CONN_REQUEST || conn->state == CONN_BODY ||
           conn->state == CONN_INPUT;
}

/* Reads what comes next. False if nothing has come, or it has ended. */
static bool visit_fill(struct server *server, struct conn *conn)
{
    if (is_input(server, conn))
        return input_fill(server);
    return conn_fill(server, conn);
}

/* Whether there is nothing left to be looked at. */
static bool is_used_up(const struct conn *conn)
{
    return conn->state == CONN_REQUEST && conn->exchange &&
           buffer_length(&conn->exchange->in) == 0;
}

/*
 * Looks at what a connection has sent, until that is used up, has to wait, or
 * VISIT is over. The connection is busy when that is not enough or when it
 * fills the buffer, and no longer so when a read brings less.
 */
static void conn_visit(struct server *server, struct conn *conn)
{
    bool fills = !conn->exchange || !conn->exchange->left;
    bool came = !fills || visit_fill(server, conn);
    bool left = came;

    server->visit_end = clock_us(CLOCK_MONOTONIC) + VISIT;
    while (left && !visit_is_over(server))
        left = conn_step(server, conn);
    if (!takes_in(conn) || !conn->exchange)
        return;
    conn->exchange->left = left && !is_used_up(conn);
    if (conn->exchange->left)
        conn_set_busy(conn, true);
    conn_settle(server, conn, came);
}

/* Sends a piece of what waits to be sent; as send(2). */
static ssize_t send_piece(int fd, struct exchange *exchange)
{
    int more = exchange->file_left ? MSG_MORE : 0;
    size_t length = buffer_length(&exchange->out);
    off_t at = (off_t)exchange->file_at;

    if (length)
        return send(fd, exchange->out.bytes + exchange->out.start, length,
                    MSG_NOSIGNAL | more);
    length = exchange->file_left < SEND_BUDGET ? (size_t)exchange->file_left
                                               : SEND_BUDGET;
    if (exchange->file.data)
        return send(fd, exchange->file.data + at, length, MSG_NOSIGNAL);
    return sendfile(fd, exchange->file.fd, &at, length);
}

static void sent_piece(struct exchange *exchange, size_t sent)
{
    struct buffer *out = &exchange->out;

    if (buffer_length(out) > 0) {
        out->start += sent;
        if (out->start == out->end)
            out->start = out->end = 0;
        return;
    }
    exchange->file_at += sent;
    exchange->file_left -= sent;
}

/* All answers have been sent. */
static void answers_sent(struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;

    exchange_drop_file(exchange);
    conn_set_interest(server, conn, INPUT);
    if (exchange->close) {
        conn_linger(server, conn);
        return;
    }
    if (conn->state == CONN_RESPOND)
        conn_set_state(server, conn, CONN_REQUEST);
    exchange->left = buffer_length(&exchange->in) > 0;
    if (!exchange->left) {
        conn_idle(server, conn);
        return;
    }
    conn_set_busy(conn, true);
    work_push(server, conn);
}

/* Sends until all is sent, the socket is full, or it is others' turn. */
static enum io write_answers(const struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    size_t total = 0;

    while (buffer_length(&exchange->out) > 0 || exchange->file_left) {
        ssize_t sent;

        if (total >= SEND_BUDGET)
            return IO_BUDGET;
        sent = send_piece((int)conn_fd(server, conn), exchange);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            return IO_FULL;
        if (sent <= 0) /* 0: the file has become shorter */
            return IO_ERROR;
        sent_piece(exchange, (size_t)sent);
        total += (size_t)sent;
    }
    return IO_DONE;
}

/* The answers to a body that is still coming have been sent, or not all of
 * them. */
static void body_answered(struct server *server, struct conn *conn,
                          enum io outcome)
{
    conn_set_interest(server, conn,
                      INPUT | (outcome == IO_FULL ? EPOLLOUT : 0));
    if (outcome == IO_BUDGET)
        answers_push(server, conn);
    else if (conn->exchange->left)
        work_push(server, conn);
}

/* Sends the answers that wait. The requests after them are looked at when
 * others have had their visit. */
static void send_answers(struct server *server, struct conn *conn)
{
    enum io outcome;

    keep_promises(server, conn);
    queue_remove(server, conn); /* where keep_promises() has put it */
    outcome = write_answers(server, conn);
    if (outcome == IO_ERROR) {
        conn_cut(server, conn, "cannot send");
    } else if (conn->state == CONN_BODY) {
        body_answered(server, conn, outcome);
    } else if (outcome == IO_DONE) {
        answers_sent(server, conn);
    } else {
        conn_set_state(server, conn, CONN_RESPOND);
        conn_set_interest(server, conn, outcome == IO_FULL ? EPOLLOUT : 0);
        timer_start(server, conn, server->options.idle_timeout);
        if (outcome == IO_BUDGET)
            answers_push(server, conn);
    }
}

/* What epoll says of a subscriber: its FIN ends the stream at once, what it
 * sends is thrown away. */
static void stream_event(struct server *server, struct conn *conn,
                         uint32_t events)
{
    if ((events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP)) ||
        ((events & EPOLLIN) && !conn_discard(server, conn)))
        conn_close(server, conn, "closed");
    else if (events & EPOLLOUT)
        ready_push(server, conn);
}

/* What epoll says of a connection that is asked something. One that is in a
 * queue has its turn anyway: epoll need not say so again. One that waits for
 * memory is told of here only when it is at an end. */
static void request_event(struct server *server, struct conn *conn,
                          uint32_t events)
{
    if (conn->queue == QUEUE_STARVED)
        conn_close(server, conn, "closed");
    else if (conn->queue == QUEUE_NONE && (events & EPOLLOUT))
        answers_push(server, conn);
    else if (conn->queue == QUEUE_NONE)
        work_push(server, conn);
    else if (!is_input(server, conn))
        conn_set_interest(server, conn, 0);
}

static void conn_event(struct server *server, struct conn *conn,
                       uint32_t events)
{
    switch ((enum conn_state)conn->state) {
    case CONN_LISTENER:
        accept_all(server, (int)conn_fd(server, conn));
        break;
    case CONN_REQUEST:
    case CONN_BODY:
    case CONN_INPUT:
        request_event(server, conn, events);
        break;
    case CONN_WAITING: /* interest in nothing: an error, or both sides ended */
        conn_close(server, conn, "closed");
        break;
    case CONN_RESPOND:
        if (conn->queue == QUEUE_NONE)
            answers_push(server, conn);
        break;
    case CONN_STREAM:
        stream_event(server, conn, events);
        break;
    case CONN_LINGER:
        if (!conn_discard(server, conn))
            conn_close(server, conn, "closed");
        break;
    case CONN_FREE:
    case CONN_CLOSED:
    case CONN_STATES:
        break;
    }
}

/* --------------------------------------------------------------- timers */

static void send_heartbeat(struct server *server, struct conn *conn)
{
    char bytes[256], timestamp[TIMESTAMP_SIZE];
    struct text text = { bytes, sizeof(bytes), 0 };
    uint64_t position = position_of(server, conn);
    struct block block = { .id = &position };

    format_timestamp(timestamp, clock_ms(CLOCK_REALTIME));
    if (conn_is_main(server, conn))
        text_put_block(&text, conn->form, &block,
                       "{\"type\":\"heartbeat\",\"timestamp\":\"%s\"}",
                       timestamp);
    else
        text_put_block(&text, conn->form, &block, NULL);
    stream_send(server, conn, text_slice(&text));
}

/* Whether it has been sent everything, so that a heartbeat may bear the
 * newest id. */
static bool stream_caught_up(const struct server *server, struct conn *conn)
{
    bool replays = conn->replay_end && !(conn->flags & FLAG_AHEAD);

    return !conn->own && !replays && !conn_next(server, conn);
}

static void stream_expired(struct server *server, struct conn *conn)
{
    uint64_t period = server->options.heartbeat;
    uint32_t silence = (uint32_t)server->now - conn->active;

    timer_start(server, conn, silence < period ? period - silence : period);
    if (silence >= period && stream_caught_up(server, conn))
        send_heartbeat(server, conn);
}

static void request_expired(struct server *server, struct conn *conn)
{
    const struct exchange *exchange = conn->exchange;

    if (conn->state == CONN_BODY)
        respond_publisher(server, conn, 408, "the body did not get on");
    else if (exchange && exchange->in.end > 0)
        respond_text(server, conn,
                     (struct response){ .status = 408, .close = true },
                     "the request's head did not arrive in time");
    else
        conn_close(server, conn, "idle");
}

static void conn_expired(struct server *server, struct conn *conn)
{
    switch ((enum conn_state)conn->state) {
    case CONN_REQUEST:
    case CONN_BODY:
        request_expired(server, conn);
        break;
    case CONN_RESPOND:
        conn_cut(server, conn, "cannot send");
        break;
    case CONN_STREAM:
        stream_expired(server, conn);
        break;
    case CONN_LINGER:
        conn_close(server, conn, "closed");
        break;
    case CONN_FREE:
    case CONN_LISTENER:
    case CONN_INPUT:
    case CONN_WAITING:
    case CONN_CLOSED:
    case CONN_STATES:
        assert(false); /* has no timer */
    }
}

/* The connections of a slot, of which some may have a later turn. False if
 * the time is used up before the slot is. */
static bool expire_slot(struct server *server, uint64_t tick, uint64_t end)
{
    uint32_t fd = server->wheel[tick % WHEEL_SLOTS];

    while (fd != NONE) {
        struct conn *conn = conn_at(server, fd);

        fd = conn->timer_next;
        if ((int32_t)(conn->deadline - (uint32_t)tick) > 0)
            continue;
        timer_stop(server, conn);
        conn_expired(server, conn);
        if (clock_us(CLOCK_MONOTONIC) >= end)
            return false;
    }
    return true;
}

static void expire_timers(struct server *server)
{
    uint64_t tick = server->now >> TICK_SHIFT;
    uint64_t end = clock_us(CLOCK_MONOTONIC) + TURN_WORK;

    if (tick - server->wheel_tick > WHEEL_SLOTS)
        server->wheel_tick = tick - WHEEL_SLOTS;
    while (server->wheel_tick < tick &&
           expire_slot(server, server->wheel_tick + 1, end))
        server->wheel_tick++;
}

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
    server->next_watchdog = server->now;
}

static void feed_watchdog(struct server *server)
{
    if (!server->watchdog || server->now < server->next_watchdog)
        return;
    server->next_watchdog = server->now + server->watchdog;
    notify("WATCHDOG=1\nSTATUS=%u subscribers, newest id %llu\n",
           server->in_state[CONN_STREAM],
           (unsigned long long)server->ring.newest_id);
}

/* ---------------------------------------------------------------- phases */

/*
 * By now the path may be another server's, which has taken it over. The
 * listener is still open: as long as it is, a server that starts finds it in
 * use, and its inode's number goes to no other file.
 */
static void unlink_own_socket(const struct listener *listener)
{
    struct stat status;

    if (listener->unix_path && lstat(listener->unix_path, &status) == 0 &&
        status.st_dev == listener->device && status.st_ino == listener->inode)
        unlink(listener->unix_path);
}

static void close_listeners(struct server *server)
{
    for (unsigned i = 0; i < server->listener_count; i++) {
        const struct listener *listener = &server->listeners[i];

        unlink_own_socket(listener);
        close(listener->fd);
        conn_set_state(server, conn_at(server, (uint32_t)listener->fd),
                       CONN_FREE);
    }
    server->listener_count = 0;
}

/* A publisher is told; a subscriber is sent what there is and a farewell. */
static void drain_conn(struct server *server, struct conn *conn)
{
    switch ((enum conn_state)conn->state) {
    case CONN_BODY:
        respond_draining(server, conn);
        break;
    case CONN_INPUT:
        input_end(server, "draining");
        break;
    case CONN_WAITING:
        if (is_input(server, conn))
            input_end(server, "draining");
        else
            respond_draining(server, conn);
        break;
    case CONN_STREAM:
        ready_push(server, conn);
        break;
    case CONN_FREE:
    case CONN_LISTENER:
    case CONN_REQUEST:
    case CONN_RESPOND:
    case CONN_LINGER:
    case CONN_CLOSED:
    case CONN_STATES:
        break;
    }
}

static void begin_drain(struct server *server)
{
    log_event(LEVEL_INFO, "draining", "subscribers=%u seconds=%llu",
              server->in_state[CONN_STREAM],
              (unsigned long long)server->options.drain / 1000);
    notify("STOPPING=1\nSTATUS=draining %u subscribers\n",
           server->in_state[CONN_STREAM]);
    server->phase = PHASE_DRAIN;
    server->phase_end = server->now + server->options.drain;
    close_listeners(server);
    for (uint32_t fd = 0; fd < server->conn_limit; fd++)
        drain_conn(server, conn_at(server, fd));
}

static void begin_end(struct server *server)
{
    if (server->phase == PHASE_SERVE && server->options.drain_delay) {
        log_event(LEVEL_INFO, "announcing", "seconds=%llu",
                  (unsigned long long)server->options.drain_delay / 1000);
        server->phase = PHASE_ANNOUNCE;
        server->phase_end = server->now + server->options.drain_delay;
    } else if (server->phase == PHASE_SERVE) {
        begin_drain(server);
    } else {
        server->phase = PHASE_STOP;
    }
}

/* Goes on to the next phase when this one is over. */
static void check_phase(struct server *server)
{
    if (server->phase == PHASE_ANNOUNCE && server->now >= server->phase_end)
        begin_drain(server);
    if (server->phase != PHASE_DRAIN)
        return;
    if (server->now >= server->phase_end ||
        server->in_state[CONN_STREAM] + server->in_state[CONN_RESPOND] +
                server->in_state[CONN_LINGER] +
                server->queues[QUEUE_WORK].count +
                server->queues[QUEUE_ANSWERS].count +
                server->queues[QUEUE_ANSWERS_BUSY].count ==
            0)
        server->phase = PHASE_STOP;
}

/* Whether a file has stayed as it was, and the same. */
static bool is_unchanged(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino &&
           a->st_size == b->st_size && a->st_mtim.tv_sec == b->st_mtim.tv_sec &&
           a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
           a->st_ctim.tv_sec == b->st_ctim.tv_sec &&
           a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

/* Reads a file that nobody writes or replaces meanwhile: half of a token is
 * one too. NULL, or why not. */
static const char *read_unchanged(const char *path, int fd, char *bytes,
                                  size_t size, size_t *length,
                                  struct stat *status)
{
    struct stat after, at_path;
    ssize_t n = 0;

    if (fstat(fd, status) < 0)
        return strerror(errno);
    if (!S_ISREG(status->st_mode))
        return "it is not a regular file";
    *length = 0;
    while (*length < size &&
           (n = read(fd, bytes + *length, size - *length)) > 0)
        *length += (size_t)n;
    if (n < 0 || fstat(fd, &after) < 0 || stat(path, &at_path) < 0)
        return strerror(errno);
    if (!is_unchanged(status, &after) || !is_unchanged(status, &at_path))
        return "it changed while it was read";
    return NULL;
}

/* Takes the line end off. NULL, or why this is no token. */
static const char *refused_token(const char *bytes, size_t *length)
{
    _Static_assert(TOKEN_MAX == 512, "the text below says so");
    if (*length && bytes[*length - 1] == '\n')
        --*length;
    if (*length && bytes[*length - 1] == '\r')
        --*length;
    if (*length == 0)
        return "it is empty";
    for (size_t i = 0; i < *length; i++) {
        if (bytes[i] == '\n' || bytes[i] == '\r')
            return "it has more than one line";
        if ((unsigned char)bytes[i] <= ' ' || bytes[i] == 0x7F)
            return "it has a blank or a control character";
    }
    return *length > TOKEN_MAX ? "it has more than 512 bytes" : NULL;
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

/* Takes the token from its file; NULL, or why not: the one before stays. */
static const char *take_token(struct server *server)
{
    const char *path = server->options.token_file, *refused;
    char bytes[TOKEN_MAX + 3]; /* a line end, a byte too many */
    size_t length = 0;
    struct stat status;
    /* O_NONBLOCK: opening a FIFO must not wait for its other end */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    if (fd < 0)
        return strerror(errno);
    refused = read_unchanged(path, fd, bytes, sizeof(bytes), &length, &status);
    close(fd);
    if (!refused)
        refused = refused_token(bytes, &length);
    if (refused)
        return refused;
    memcpy(server->token, bytes, length);
    server->token_length = length;
    warn_of_mode(path, status.st_mode);
    return NULL;
}

static void reload_token(struct server *server)
{
    const char *file = server->options.token_file, *refused;
    char path[512];

    if (!file)
        return;
    log_quote(path, sizeof(path), slice_of(file));
    refused = take_token(server);
    if (refused)
        log_event(LEVEL_ERROR, "token_not_reloaded",
                  "file=%s reason=\"%s\" kept=\"the one before\"", path,
                  refused);
    else
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
            begin_end(server);
    }
}

/* -------------------------------------------------------------- the loop */

static void update_time(struct server *server)
{
    time_t wall = time(NULL);

    server->now = clock_ms(CLOCK_MONOTONIC);
    server->ring.time = (int64_t)clock_ms(CLOCK_REALTIME);
    if (wall == server->wall)
        return;
    server->wall = wall;
    http_date(server->date, wall);
}

/* Whether there is standard input to be read that epoll does not tell of. */
static bool input_is_ready(const struct server *server)
{
    return server->input && server->input_is_file &&
           server->input->state == CONN_INPUT;
}

static bool work_is_left(const struct server *server)
{
    uint32_t count = 0;

    for (int i = QUEUE_WORK; i <= QUEUE_READY; i++)
        count += server->queues[i].count;
    return count || server->ring.pass_first || input_is_ready(server);
}

/* How long epoll may wait: until the nearest of what the clock brings. */
static int loop_timeout(const struct server *server)
{
    uint64_t until = wheel_next(server);

    if (work_is_left(server))
        return 0;
    if (server->options.interval && server->phase < PHASE_DRAIN &&
        server->next_clock < until)
        until = server->next_clock;
    if (server->phase != PHASE_SERVE && server->phase_end < until)
        until = server->phase_end;
    if (!server->accepting && server->accept_again < until)
        until = server->accept_again;
    if (server->watchdog && server->next_watchdog < until)
        until = server->next_watchdog;
    if (server->options.sync < SYNC_NEVER && server->ring.unsynced &&
        server->next_sync < until)
        until = server->next_sync;
    if (logger.suppressed && logger.reported + LOG_REPORT < until)
        until = logger.reported + LOG_REPORT;
    if (until == UINT64_MAX)
        return -1;
    if (until <= server->now)
        return 0;
    return until - server->now > INT_MAX ? INT_MAX : (int)(until - server->now);
}

static void begin_slice(struct server *server)
{
    server->slice_sends = 0;
    server->slice_bytes = 0;
}

/* Everything that the turn's publishes lead to. Live delivery and replays
 * have a slice each, so that however much is replayed, what is new goes out. */
static void deliver(struct server *server)
{
    begin_slice(server);
    deliver_topics(server);
    begin_slice(server);
    deliver_ready(server);
}

/* Those that can publish now have their visit again. False if the first must
 * go on waiting, and so must all behind it. */
static bool retry_queue(struct server *server, enum queue_name name)
{
    uint64_t end = clock_us(CLOCK_MONOTONIC) + TURN_BUSY;
    const struct queue *queue = &server->queues[name];

    while (queue->count && clock_us(CLOCK_MONOTONIC) < end) {
        struct conn *conn = conn_at(server, queue->first);

        publish_due(server, conn);
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

/* As many of those that wait for memory as there is some for: at the end of a
 * turn, for any part of it may have returned some. */
static void feed_starved(struct server *server)
{
    uint64_t left = server->options.request_memory - server->request_memory;
    uint64_t each = sizeof(struct exchange) + IN_FIRST + OUT_ROOM;

    for (; server->queues[QUEUE_STARVED].count && left >= each; left -= each) {
        struct conn *conn = queue_pop(server, QUEUE_STARVED);

        conn_set_interest(server, conn, INPUT);
        work_push(server, conn);
    }
}

/* Serves the connections of a queue for a part of the turn. */
static void serve(struct server *server, enum queue_name queue, unsigned time,
                  void (*act)(struct server *server, struct conn *conn))
{
    uint64_t end = clock_us(CLOCK_MONOTONIC) + time;

    while (server->queues[queue].count && clock_us(CLOCK_MONOTONIC) < end)
        act(server, queue_pop(server, queue));
}

static void dispatch(struct server *server, const struct epoll_event *event)
{
    if (event->data.u32 == (uint32_t)server->signals)
        read_signals(server);
    else
        conn_event(server, conn_at(server, event->data.u32), event->events);
}

static void turn(struct server *server)
{
    struct epoll_event events[EVENTS_MAX];
    int count =
        epoll_wait(server->epoll, events, EVENTS_MAX, loop_timeout(server));

    update_time(server);
    for (int i = 0; i < count; i++)
        dispatch(server, &events[i]);
    log_report(server->now);
    expire_timers(server);
    publish_clock(server);
    retry_publishers(server);
    if (input_is_ready(server))
        request_event(server, server->input, EPOLLIN);
    serve(server, QUEUE_WORK, TURN_WORK, conn_visit);
    serve(server, QUEUE_WORK_BUSY, TURN_BUSY, conn_visit);
    serve(server, QUEUE_ANSWERS, TURN_WORK, send_answers);
    serve(server, QUEUE_ANSWERS_BUSY, TURN_BUSY, send_answers);
    if (server->options.sync < SYNC_NEVER)
        sync_when_due(server);
    feed_watchdog(server);
    deliver(server);
    feed_starved(server);
    reap(server);
    if (!server->accepting && server->now >= server->accept_again)
        accept_pause(server, is_full(server));
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

    if (!options->input &&
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
    if (options->input && fcntl(STDIN_FILENO, F_GETFD) < 0)
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
    if (keep && options->input && options->stdin_form == STDIN_LINES)
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

    if (options->input)
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
        options->input = true;
    }
    check_options(options);
}

/* --------------------------------------------------------------- the start */

/* Has the limit on descriptors raised as far as it goes; returns how many
 * connections that allows. */
static uint64_t raise_descriptors(uint64_t wanted)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        die(EXIT_RUN_TIME, "cannot read the limit on descriptors: %s",
            strerror(errno));
    if (limit.rlim_max > wanted + RESERVE)
        limit.rlim_cur = wanted + RESERVE; /* no more than are used */
    else
        limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        die(EXIT_RUN_TIME, "cannot raise the limit on descriptors: %s",
            strerror(errno));
    return limit.rlim_cur > RESERVE ? limit.rlim_cur - RESERVE : 0;
}

static void init_connections(struct server *server)
{
    struct options *options = &server->options;
    uint64_t wanted = options->max_connections ? options->max_connections
                                               : CONNECTIONS_DEFAULT;
    uint64_t allowed = raise_descriptors(wanted);

    if (allowed == 0 || (options->max_connections && allowed < wanted))
        die(EXIT_RUN_TIME,
            "--max-connections: the limit on descriptors allows %llu; raise "
            "it with ulimit -Hn %llu",
            (unsigned long long)allowed, (unsigned long long)wanted + RESERVE);
    options->max_connections = allowed < wanted ? allowed : wanted;
    server->conn_limit = (uint32_t)(options->max_connections + RESERVE);
    server->in_state[CONN_FREE] = server->conn_limit;
    server->conns = calloc(server->conn_limit, sizeof(struct conn));
    if (!server->conns)
        die(EXIT_RUN_TIME, "no memory for %u connections: --max-connections",
            server->conn_limit);
}

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
    char error[HISTORY_ERROR_SIZE], boot_id[64];
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

/*
 * O_NONBLOCK belongs to the open file description, which standard input may
 * share with other processes; so it is set on one of our own. A file is not
 * opened anew: where others stand in it is where it goes on.
 *
 * A pipe's descriptor stays: it is watched, and keeps its part in the pipe's
 * end, which comes when nobody has it open for writing. Of a device another
 * description may be another stream, so the new one takes the place.
 */
static void open_input(struct server *server)
{
    struct stat status;
    int fd;

    server->input_fd = STDIN_FILENO;
    if (fstat(STDIN_FILENO, &status) < 0)
        return;
    server->input_is_socket = S_ISSOCK(status.st_mode);
    if (!S_ISFIFO(status.st_mode) && !S_ISCHR(status.st_mode))
        return;
    fd = open("/proc/self/fd/0", O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (S_ISFIFO(status.st_mode)) {
        server->input_fd = fd;
        return;
    }
    dup2(fd, STDIN_FILENO);
    close(fd);
}

/* epoll takes pipes, terminals and sockets. What it refuses with EPERM, files
 * above all, can always be read. */
static void watch_input(struct server *server)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = STDIN_FILENO };

    server->input->interest = EPOLLIN;
    if (epoll_ctl(server->epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event) == 0)
        return;
    if (errno != EPERM)
        die(EXIT_RUN_TIME, "cannot wait for standard input: %s",
            strerror(errno));
    server->input_is_file = true;
}

/* Begins to publish what comes on standard input. */
static void init_input(struct server *server)
{
    const struct options *options = &server->options;
    const char *topic = options->topic ? options->topic : "";
    struct conn *conn = conn_at(server, STDIN_FILENO);
    struct exchange *exchange = exchange_take(server);
    struct publication *publication;
    size_t room = (size_t)options->max_event + 1; /* a CR at its end */

    if (!exchange ||
        !grow(server, &exchange->in.bytes, &exchange->in.room, HEAD_MAX))
        die(EXIT_RUN_TIME, "no memory for standard input");
    publication = &exchange->publication;
    publication->topic = topic_hold(&server->ring, slice_of(topic));
    if (!publication->topic ||
        !grow(server, &publication->content, &publication->content_room, room))
        die(EXIT_RUN_TIME, "no memory for standard input: --max-event");
    publication->from =
        options->stdin_form == STDIN_LINES ? FROM_LINES : FROM_EVENTS;
    publication->end = options->end;
    event_parser_init(&publication->parser, publication->content,
                      (size_t)options->max_event);
    exchange->body.state = BODY_DATA;
    *conn = (struct conn){ .exchange = exchange };
    conn_set_state(server, conn, CONN_INPUT);
    server->input = conn;
    open_input(server);
    watch_input(server);
    log_event(LEVEL_INFO, "input", "topic=%s form=%s", *topic ? topic : "-",
              stdin_names[options->stdin_form]);
}

static void init_root(struct server *server, const char *root)
{
    struct file file;
    int status;

    server->root = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (server->root < 0)
        die(EXIT_RUN_TIME, "--root: cannot open the folder '%s': %s", root,
            strerror(errno));
    status = http_file_open(&file, server->root, SLICE("/"));
    if (status == -501)
        die(EXIT_RUN_TIME, "--root: needs openat2(2), which this kernel does "
                           "not have: Linux 5.6 or later");
    if (status == 0)
        close(file.fd);
    else
        log_event(LEVEL_WARN, "no_index",
                  "reason=\"--root has no index.html that can be read\"");
}

static void init_pages(struct server *server)
{
    struct stat status;
    bool known = stat("/proc/self/exe", &status) == 0;

    http_bundle_init(known ? status.st_mtime : time(NULL));
    server->root = -1;
    if (server->options.root)
        init_root(server, server->options.root);
}

static void init_events(struct server *server)
{
    struct epoll_event event = { .events = EPOLLIN };
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    server->epoll = epoll_create1(EPOLL_CLOEXEC);
    server->signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    event.data.u32 = (uint32_t)server->signals;
    if (server->epoll < 0 || server->signals < 0 ||
        epoll_ctl(server->epoll, EPOLL_CTL_ADD, server->signals, &event) < 0)
        die(EXIT_RUN_TIME, "cannot begin to wait for events: %s",
            strerror(errno));
    for (int i = 0; i < QUEUES; i++)
        server->queues[i] = (struct queue){ NONE, NONE, 0 };
    for (int i = 0; i < WHEEL_SLOTS; i++)
        server->wheel[i] = NONE;
    update_time(server);
    server->wheel_tick = server->now >> TICK_SHIFT;
    server->next_clock = server->now + server->options.interval;
    server->accepting = true;
    logger.refilled = server->now;
}

/* Accepted sockets inherit these from their listener, so that no call is
 * needed for each. A failure only costs performance. */
static void tune_listener(int fd)
{
    static const struct {
        int level, name, value;
    } settings[] = {
        { IPPROTO_TCP, TCP_NODELAY, 1 },
        { IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT },
        { IPPROTO_TCP, TCP_USER_TIMEOUT, USER_TIMEOUT },
        { SOL_SOCKET, SO_KEEPALIVE, 1 },
        { IPPROTO_TCP, TCP_KEEPIDLE, 60 },
        { IPPROTO_TCP, TCP_KEEPINTVL, 20 },
        { IPPROTO_TCP, TCP_KEEPCNT, 3 },
        { SOL_SOCKET, SO_SNDBUF, SENDBUF },
    };

    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
        setsockopt(fd, settings[i].level, settings[i].name, &settings[i].value,
                   sizeof(settings[i].value));
}

/*
 * Servers that start at once must not remove each other's sockets: one at a
 * time looks, removes what is stale, and listens. Returns what is to be
 * closed then; -1 where the folder cannot be locked, which is no reason not
 * to serve.
 */
static int lock_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    int length = slash ? (int)(slash - path) : 0;
    uint64_t deadline = clock_ms(CLOCK_MONOTONIC) + LOCK_PATIENCE;
    char folder[sizeof(((struct sockaddr_un *)0)->sun_path)];
    int fd;

    snprintf(folder, sizeof(folder), "%.*s", length ? length : 1,
             slash ? path : ".");
    fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    while (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            close(fd);
            return -1;
        }
        if (clock_ms(CLOCK_MONOTONIC) >= deadline)
            die(EXIT_RUN_TIME,
                "--listen: cannot listen on 'unix:%s': another process has "
                "kept its folder locked for %d s, see flock(2)",
                path, LOCK_PATIENCE / 1000);
        poll(NULL, 0, 10);
    }
    return fd;
}

/* A socket file that a server left behind is removed; one on which another
 * listens is not, be its queue full or not. */
static void remove_stale_socket(const struct sockaddr_un *address)
{
    struct stat status;
    int fd;

    if (lstat(address->sun_path, &status) < 0 || !S_ISSOCK(status.st_mode))
        return;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 &&
        errno == ECONNREFUSED)
        unlink(address->sun_path);
    close(fd);
}

/* Whether a listener is bound to an address that only this machine has. */
static bool is_loopback(int fd)
{
    struct sockaddr_storage address = { 0 };
    socklen_t length = sizeof(address);
    struct conn bound = { 0 };

    if (getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        return false;
    set_peer(&bound, &address);
    return !(bound.flags & FLAG_UNIX) && peer_is_loopback(&bound);
}

static void add_listener(struct server *server, int fd)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = (uint32_t)fd };

    if (epoll_ctl(server->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        die(EXIT_RUN_TIME, "cannot wait for connections: %s", strerror(errno));
    conn_at(server, (uint32_t)fd)->interest = EPOLLIN;
    conn_at(server, (uint32_t)fd)->flags = is_loopback(fd) ? FLAG_LOOPBACK : 0;
    conn_set_state(server, conn_at(server, (uint32_t)fd), CONN_LISTENER);
    server->listeners[server->listener_count++] = (struct listener){ .fd = fd };
}

static void listen_on(struct server *server, const char *name,
                      const struct sockaddr *address, socklen_t length)
{
    int one = 1;
    int fd = socket(address->sa_family,
                    SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        die(EXIT_RUN_TIME, "--listen: cannot make a socket for '%s': %s", name,
            strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (address->sa_family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
    if (address->sa_family != AF_UNIX)
        tune_listener(fd);
    if (bind(fd, address, length) < 0 || listen(fd, SOMAXCONN) < 0)
        die(EXIT_RUN_TIME, "--listen: cannot listen on '%s': %s%s", name,
            strerror(errno),
            errno == EADDRINUSE ? "; choose another with --port or --listen"
                                : "");
    add_listener(server, fd);
}

/* Cuts "unix:PATH,mode=MODE" or "unix:PATH": returns the mode, and the length
 * of the path. */
static mode_t split_unix(const char *name, size_t *length)
{
    const char *path = name + strlen("unix:");
    const char *comma = strrchr(path, ',');
    const char *digits = comma ? comma + strlen(",mode=") : NULL;
    size_t count;

    *length = strlen(path);
    if (!comma || strncmp(comma, ",mode=", strlen(",mode=")) != 0)
        return UNIX_MODE_DEFAULT;
    *length = (size_t)(comma - path);
    count = strlen(digits);
    if (strspn(digits, "01234567") != count ||
        !(count == 3 || (count == 4 && *digits == '0')))
        die(EXIT_USAGE,
            "--listen: '%s': the mode is not 3 or 4 octal digits up to 0777, "
            "such as mode=660",
            name);
    return (mode_t)strtoul(digits, NULL, 8);
}

static void listen_unix(struct server *server, const char *name)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct listener *listener = &server->listeners[server->listener_count];
    struct stat status;
    size_t length;
    mode_t mode = split_unix(name, &length), before;
    int folder;

    if (length == 0 || length >= sizeof(address.sun_path))
        die(EXIT_USAGE, "--listen: '%s' needs a path of 1 to %zu bytes", name,
            sizeof(address.sun_path) - 1);
    memcpy(address.sun_path, name + strlen("unix:"), length);
    folder = lock_folder(address.sun_path);
    remove_stale_socket(&address);
    before = umask(0777 & ~mode);
    listen_on(server, name, (struct sockaddr *)&address, sizeof(address));
    umask(before);
    if (lstat(address.sun_path, &status) == 0) {
        listener->device = status.st_dev;
        listener->inode = status.st_ino;
    }
    if (folder >= 0)
        close(folder);
    snprintf(listener->address, sizeof(listener->address), "unix:%s",
             address.sun_path);
    listener->unix_path = listener->address + strlen("unix:");
}

/* What the socket is bound to: with port 0 the kernel chose one. */
static void name_listener(struct listener *listener)
{
    struct sockaddr_storage address = { 0 };
    socklen_t length = sizeof(address);
    char host[64] = "", port[8] = "";
    bool v6;

    if (getsockname(listener->fd, (struct sockaddr *)&address, &length) < 0 ||
        getnameinfo((struct sockaddr *)&address, length, host, sizeof(host),
                    port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        die(EXIT_RUN_TIME, "--listen: cannot tell the address: %s",
            strerror(errno));
    v6 = address.ss_family == AF_INET6;
    snprintf(listener->address, sizeof(listener->address), "%s%s%s:%s",
             v6 ? "[" : "", host, v6 ? "]" : "", port);
}

/* Cuts "ADDR:PORT", "[V6]:PORT" or "PORT" in two; false if it is none. */
static bool split_address(const char *name, char host[64], const char **port)
{
    const char *colon = strrchr(name, ':');
    struct slice address = { name, colon ? (size_t)(colon - name) : 0 };
    uint64_t number;

    *port = colon ? colon + 1 : name;
    if (address.length > 2 && name[0] == '[' && name[address.length - 1] == ']')
        address = (struct slice){ name + 1, address.length - 2 };
    else if (colon && memchr(name, ':', address.length))
        return false; /* IPv6 without brackets */
    if (!colon || slice_is(address, "localhost"))
        address = SLICE("127.0.0.1");
    if (address.length == 0 || address.length >= 64)
        return false;
    memcpy(host, address.data, address.length);
    host[address.length] = '\0';
    return slice_number(slice_of(*port), 65535, &number);
}

static void listen_tcp(struct server *server, const char *name)
{
    struct addrinfo hints = { .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
                              .ai_socktype = SOCK_STREAM };
    struct addrinfo *found;
    const char *port;
    char host[64];

    if (!split_address(name, host, &port) ||
        getaddrinfo(host, port, &hints, &found) != 0)
        die(EXIT_USAGE,
            "--listen: '%s' is not ADDR:PORT such as 127.0.0.1:3000 or "
            "[::1]:3000, nor unix:PATH",
            name);
    listen_on(server, name, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    name_listener(&server->listeners[server->listener_count - 1]);
}

/* Whether a descriptor is a socket that listens for streams. */
static bool is_listening(int fd, int *family)
{
    int listens = 0, type = 0;
    socklen_t length = sizeof(int);

    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0 &&
           getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 &&
           getsockopt(fd, SOL_SOCKET, SO_DOMAIN, family, &length) == 0 &&
           listens && type == SOCK_STREAM &&
           (*family == AF_INET || *family == AF_INET6 || *family == AF_UNIX);
}

/* The name of a Unix socket that was handed over. */
static void name_unix_listener(struct listener *listener)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    socklen_t length = sizeof(address);

    if (getsockname(listener->fd, (struct sockaddr *)&address, &length) < 0)
        address.sun_path[0] = '\0';
    snprintf(listener->address, sizeof(listener->address), "unix:%.*s",
             (int)strnlen(address.sun_path, sizeof(address.sun_path)),
             address.sun_path);
}

static void take_listener(struct server *server, int fd)
{
    struct listener *listener = &server->listeners[server->listener_count];
    int family = AF_UNSPEC, flags = fcntl(fd, F_GETFL);

    if (!is_listening(fd, &family))
        die(EXIT_RUN_TIME,
            "LISTEN_FDS: descriptor %d is not a listening stream socket", fd);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        die(EXIT_RUN_TIME, "LISTEN_FDS: descriptor %d: %s", fd,
            strerror(errno));
    if (family != AF_UNIX)
        tune_listener(fd);
    add_listener(server, fd);
    if (family == AF_UNIX)
        name_unix_listener(listener);
    else
        name_listener(listener);
}

/* Sockets that the service manager holds, so that connections wait
 * in the kernel while it is replaced: from descriptor 3 on, sd_listen_fds(3).
 */
static void take_listeners(struct server *server)
{
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
    uint64_t number;

    if (!pid || !count || strtol(pid, NULL, 10) != getpid())
        return;
    if (!slice_number(slice_of(count), LISTENERS_MAX, &number))
        die(EXIT_RUN_TIME, "LISTEN_FDS: '%s' is not a number up to %d", count,
            LISTENERS_MAX);
    for (uint64_t i = 0; i < number; i++)
        take_listener(server, LISTEN_FDS_START + (int)i);
}

static void init_listeners(struct server *server)
{
    struct options *options = &server->options;

    take_listeners(server);
    if (options->listen_count == 0 && server->listener_count == 0)
        add_listen(options, "127.0.0.1:3000");
    if (options->listen_count + server->listener_count > LISTENERS_MAX)
        die(EXIT_USAGE, "--listen: at most %d listeners", LISTENERS_MAX);
    for (unsigned i = 0; i < options->listen_count; i++) {
        if (strncmp(options->listen[i], "unix:", 5) == 0)
            listen_unix(server, options->listen[i]);
        else
            listen_tcp(server, options->listen[i]);
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
    uint64_t connections = (uint64_t)server->conn_limit * CONNECTION;
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
              VERSION, (unsigned long long)options->max_connections,
              (unsigned long long)options->history,
              (unsigned long long)options->history_bytes,
              publishers[options->publish]);
    log_memory(server);
    for (unsigned i = 0; i < server->listener_count; i++)
        log_event(LEVEL_INFO, "listening", "address=%s",
                  server->listeners[i].address);
    log_event(LEVEL_INFO, "ready", "first_id=%llu",
              (unsigned long long)server->ring.newest_id + 1);
    notify("READY=1\nSTATUS=serving on %s\n", server->listeners[0].address);
    for (unsigned i = 0; isatty(STDOUT_FILENO) && i < server->listener_count;
         i++)
        printf("ssed serves %s%s/ and the stream at /events; Ctrl-C ends it\n",
               server->listeners[i].unix_path ? "" : "http://",
               server->listeners[i].address);
    fflush(stdout);
}

static void release(struct server *server)
{
    if (server->input)
        input_end(server, "stopped");
    for (uint32_t fd = 0; fd < server->conn_limit; fd++) {
        enum conn_state state = conn_at(server, fd)->state;

        if (state != CONN_FREE && state != CONN_LISTENER)
            conn_close(server, conn_at(server, fd), "stopped");
    }
    reap(server);
    close_listeners(server);
    while (server->spare) {
        struct exchange *exchange = server->spare;

        server->spare = exchange->next_spare;
        exchange_free(exchange);
    }
    free(server->frame);
    free(server->conns);
    ring_release(&server->ring);
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
    char error[HISTORY_ERROR_SIZE];
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
    const char *refused;
    uint64_t newest_id;

    parse_options(&server.options, argc, argv);
    fill_standard_descriptors();
    if (server.options.check)
        return check_history(server.options.check);
    logger.level = (enum level)server.options.log_level;
    refused = server.options.token_file ? take_token(&server) : NULL;
    if (refused)
        die(EXIT_RUN_TIME, "--token-file: no token in '%s': %s",
            server.options.token_file, refused);
    init_connections(&server);
    init_history(&server);
    init_pages(&server);
    init_events(&server);
    init_listeners(&server);
    init_watchdog(&server);
    announce(&server);
    if (server.options.input)
        init_input(&server);
    while (server.phase != PHASE_STOP)
        turn(&server);
    newest_id = server.ring.newest_id;
    if (server.options.history_file)
        end_history(&server);
    release(&server);
    log_event(LEVEL_INFO, "stopped", "newest_id=%llu",
              (unsigned long long)newest_id);
    return 0;
}
