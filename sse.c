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
 * A turn of the loop: read all that is readable and append what is published
 * (the answers wait), send the answers, then deliver a slice.
 */
#include "sse.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
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
    TOKEN_MAX = 512,
    CORS_MAX = 256,
    REQUESTED_MAX = 256, /* of an unusable id, what is shown in a gap */
    OUT_SIZE = 8192,     /* answers of a turn's pipelined requests */
    OUT_ROOM = RESPONSE_HEAD_MAX + 512, /* what one answer may need */
    OWN_MAX = RESPONSE_HEAD_MAX + 6 * REQUESTED_MAX + 1024,
    IOV_ROOM = 256,      /* iovecs to a writev: bounds the time to fill it */
    SEND_BUDGET = 65536, /* bytes to a subscriber before others have theirs */
    SLICE_SENDS = 64,    /* sends between two looks at epoll */
    SLICE_BYTES = 1 << 20,
    EVENTS_MAX = 256,     /* of one epoll_wait */
    ACCEPTS_MAX = 32,     /* of one listener in one turn */
    ACCEPT_PAUSE = 100,   /* ms without accept when descriptors ran out */
    SPARE_EXCHANGES = 64, /* kept for the next requests */
    /* descriptors beside the subscribers': those who come too many and still
     * get their answer; and files, listeners, the log */
    SURPLUS = 64,
    RESERVE = SURPLUS + 64,
    CONNECTIONS_DEFAULT = 1000000,
    BODY_RATE = 1024,     /* bytes a second that a plain body must keep up */
    LINGER = 2000,        /* ms for a peer to read the last answer */
    SENDBUF = 128 * 1024, /* kernel memory that a stalled reader can hold */
    NOTSENT = 64 * 1024,
    USER_TIMEOUT = 120 * 1000, /* ms until an unreachable peer is given up */
    TICK_SHIFT = 7,            /* a tick of the timer wheel is 128 ms */
    WHEEL_SLOTS = 512,
    LOG_BURST = 200,        /* lines that the outside can cause at once */
    LOG_REPORT = 1000,      /* ms between two lines about lines left out */
    LOG_RATE = 100,         /* and in a second */
    RETRY_LATER_MIN = 2000, /* ms, when there is no room for a subscriber */
    RETRY_LATER_MAX = 10000,
};

#define NONE UINT32_MAX /* no descriptor */

/* Makes a catch_up_message of a stored message, put in after "type":". */
#define CATCH_UP_SPLICE "catch_up_message\",\"originalType\":\""

/* The longest that one byte becomes in a frame ("data: " before each line),
 * and the rest of the longest frame. */
enum {
    FRAME_FACTOR = 7,
    FRAME_REST = 1024
};

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

struct options {
    const char *listen[LISTENERS_MAX];
    unsigned listen_count;
    const char *root;
    const char *cors;
    const char *token_file;
    uint64_t history;
    uint64_t history_bytes;
    uint64_t first_id; /* 0: the clock */
    uint64_t interval; /* ms, as all of them but where said */
    uint64_t heartbeat;
    uint64_t retry;
    uint64_t max_event;
    uint64_t max_connections; /* 0: what the limit on descriptors allows */
    uint64_t drain;
    uint64_t drain_spread;
    uint64_t drain_delay;
    uint64_t head_timeout;
    uint64_t idle_timeout;
    enum publish publish;
    bool publish_given;
    bool access_log;
    enum level log_level;
};

/* Everything about a connection that is not needed while it subscribes or
 * idles; from a pool. */
struct exchange {
    struct request request;
    struct body body;
    char *content; /* a published body, owned; NULL if there is none */
    size_t content_length;
    size_t content_room;
    struct file file; /* being sent; fd is owned, -1 if none */
    uint64_t file_at; /* the next byte of it */
    uint64_t file_left;
    size_t in_start; /* in[in_start, in_end) has not been parsed */
    size_t in_end;
    size_t out_start; /* out[out_start, out_end) has not been sent */
    size_t out_end;
    bool close; /* when the answer is sent */
    struct exchange *next_spare;
    char in[HEAD_MAX];
    char out[OUT_SIZE];
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
    CONN_WAITING,  /* has it, and waits for room in the ring */
    CONN_RESPOND,  /* sending a file, or answers to a full socket */
    CONN_STREAM,   /* subscribes */
    CONN_LINGER,   /* has sent the last answer; reads until the peer ends */
    CONN_CLOSED,   /* until the end of the batch */
    CONN_STATES,
};

/* A connection is in at most one queue. */
enum queue_name {
    QUEUE_NONE,
    QUEUE_ANSWERS, /* has answers to send at the end of the turn */
    QUEUE_WAITING, /* CONN_WAITING */
    QUEUE_READY,   /* subscribers with more to get and room in the socket */
    QUEUE_CLOSED,  /* CONN_CLOSED */
    QUEUES,
};

enum {
    FLAG_UNIX = 1,
    FLAG_ENDING = 2
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
    union {
        struct exchange *exchange; /* owned; NULL while idle */
        struct {                   /* CONN_STREAM */
            struct topic *topic;
            struct own *own; /* owned; goes before all else; or NULL */
            struct cursor cursor;
            uint64_t replay_end; /* newest frame of the replay, 0: over */
            uint64_t bytes;
            uint32_t replay_count;
            uint32_t place; /* in topic->subscribers */
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
    const char *unix_path; /* to be unlinked, or NULL */
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
    enum phase phase;
    uint64_t phase_end; /* when the phase ends by itself; ms */
    struct ring ring;
    struct topic main_topic;
    struct topic *pass_first, *pass_last; /* topics with new frames */
    uint32_t frame_size;
    char *frame; /* owned: where a frame is made, frame_size bytes */

    int epoll;
    int signals;
    int root; /* --root's folder, -1: bundled pages */
    struct listener listeners[LISTENERS_MAX];
    unsigned listener_count;
    bool accepting;
    uint64_t accept_again; /* ms, when !accepting */

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

static const char *const level_names[] = { "error", "warn", "info", "debug" };

static uint64_t clock_ms(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
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

static struct exchange *exchange_take(struct server *server)
{
    struct exchange *exchange = server->spare;

    if (exchange) {
        server->spare = exchange->next_spare;
        server->spare_count--;
    } else {
        exchange = malloc(sizeof(*exchange));
        if (!exchange)
            return NULL;
    }
    memset(exchange, 0, offsetof(struct exchange, in));
    exchange->file.fd = -1;
    return exchange;
}

static void exchange_drop_content(struct exchange *exchange)
{
    free(exchange->content);
    exchange->content = NULL;
    if (exchange->file.fd >= 0)
        close(exchange->file.fd);
    exchange->file.fd = -1;
    exchange->file_left = 0;
}

static void conn_release_exchange(struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;

    conn->exchange = NULL;
    if (!exchange)
        return;
    exchange_drop_content(exchange);
    if (server->spare_count >= SPARE_EXCHANGES) {
        free(exchange);
        return;
    }
    exchange->next_spare = server->spare;
    server->spare = exchange;
    server->spare_count++;
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

/* Waits for the next request of a connection, whose last has been answered
 * and of which nothing more has arrived. */
static void conn_idle(struct server *server, struct conn *conn)
{
    conn_release_exchange(server, conn);
    conn_set_interest(server, conn, INPUT);
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

/* Begins a connection on a descriptor that was just accepted. */
static struct conn *conn_open(struct server *server, int fd,
                              const struct sockaddr_storage *peer)
{
    struct epoll_event event = { .events = INPUT, .data.u32 = (uint32_t)fd };
    struct conn *conn;

    if (epoll_ctl(server->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
        int error = errno;

        close(fd);
        errno = error;
        return NULL;
    }
    assert((uint32_t)fd < server->conn_limit); /* it is RLIMIT_NOFILE */
    conn = conn_at(server, (uint32_t)fd);
    *conn = (struct conn){ .interest = INPUT };
    set_peer(conn, peer);
    conn_set_state(server, conn, CONN_REQUEST);
    server->connections++;
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

static void conn_read(struct server *server, struct conn *conn);

/* A client sends its request at once, so it is looked for at once: that
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
            accept_failed(server, strerrorname_np(errno));
            return;
        }
        conn_read(server, conn);
    }
}

/* -------------------------------------------------- texts of the stream */

/* Text being put together, in a buffer known to be large enough. */
struct text {
    char *bytes;
    size_t room;
    size_t length;
};

__attribute__((format(printf, 2, 3))) static void
text_put(struct text *text, const char *format, ...)
{
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(text->bytes + text->length, text->room - text->length,
                       format, arguments);
    va_end(arguments);
    assert(length >= 0 && (size_t)length < text->room - text->length);
    text->length += (size_t)length;
}

static void text_put_bytes(struct text *text, const char *bytes, size_t length)
{
    assert(length < text->room - text->length);
    memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
}

/* The sequence at the start of `value` as JSON spells it (RFC 8259, section
 * 7): at most six bytes for one. What is no UTF-8 becomes U+FFFD. */
static void text_put_escaped(struct text *text, struct slice value)
{
    static const char letters[] = "btn\0fr"; /* for the bytes 8 to 13 */
    unsigned char c = (unsigned char)*value.data;

    if (c >= 0x80)
        text_put(text, "\\ufffd");
    else if (c == '"' || c == '\\')
        text_put(text, "\\%c", c);
    else if (c >= 8 && c <= 13 && letters[c - 8])
        text_put(text, "\\%c", letters[c - 8]);
    else
        text_put(text, "\\u%04x", c);
}

/* How many bytes a JSON string takes as they are, up to the first that must
 * be escaped. */
static size_t json_plain(struct slice value)
{
    size_t at = 0;

    while (at < value.length) {
        unsigned char c = (unsigned char)value.data[at];
        size_t length = 1;

        if (c < ' ' || c == '"' || c == '\\')
            break;
        if (c >= 0x80)
            length = utf8_sequence(
                (struct slice){ value.data + at, value.length - at });
        if (length == 0)
            break;
        at += length;
    }
    return at;
}

static void text_put_json(struct text *text, struct slice value)
{
    while (value.length) {
        size_t plain = json_plain(value);

        text_put_bytes(text, value.data, plain);
        value.data += plain;
        value.length -= plain;
        if (value.length == 0)
            break;
        text_put_escaped(text, value);
        value.data++;
        value.length--;
    }
}

/* A block of the event stream begins, in the form that a subscriber gets.
 * Returns what text_end_block() needs. */
static size_t text_begin_block(struct text *text, unsigned form)
{
    if (form & FORM_CHUNKED)
        text_put(text, "%08x\r\n", 0);
    return text->length;
}

static void text_end_block(struct text *text, unsigned form, size_t begin)
{
    char size[9];

    text_put(text, "\n");
    if (!(form & FORM_CHUNKED))
        return;
    snprintf(size, sizeof(size), "%08x", (unsigned)(text->length - begin));
    memcpy(text->bytes + begin - FRAME_HEAD, size, 8);
    text_put(text, "\r\n");
}

static struct slice text_slice(const struct text *text)
{
    return (struct slice){ text->bytes, text->length };
}

/* ----------------------------------------------------------- delivery */

static void pass_queue(struct server *server, struct topic *topic)
{
    topic->in_pass = true;
    topic->next_in_pass = NULL;
    if (server->pass_last)
        server->pass_last->next_in_pass = topic;
    else
        server->pass_first = topic;
    server->pass_last = topic;
}

/* All subscribers of the topic are to be visited, from the last one on. */
static void pass_begin(struct server *server, struct topic *topic)
{
    topic->unvisited = topic->subscriber_count;
    topic->pass_end = topic->newest;
    if (!topic->in_pass)
        pass_queue(server, topic);
}

static bool topic_join(struct topic *topic, struct conn *conn, uint32_t fd)
{
    if (topic->subscriber_count == topic->subscriber_room) {
        uint32_t room = topic->subscriber_room ? topic->subscriber_room * 2 : 4;
        uint32_t *subscribers =
            realloc(topic->subscribers, room * sizeof(*subscribers));

        if (!subscribers)
            return false;
        topic->subscribers = subscribers;
        topic->subscriber_room = room;
    }
    conn->place = topic->subscriber_count;
    topic->subscribers[topic->subscriber_count++] = fd;
    return true;
}

/* The last one takes the place that becomes free. As a pass goes from the
 * end to the start, nobody who is to be visited is missed by that. */
static void topic_leave(struct server *server, struct topic *topic,
                        const struct conn *conn)
{
    uint32_t moved = topic->subscribers[--topic->subscriber_count];

    topic->subscribers[conn->place] = moved;
    conn_at(server, moved)->place = conn->place;
    if (topic->unvisited > topic->subscriber_count)
        topic->unvisited = topic->subscriber_count;
}

static void stream_leave(struct server *server, struct conn *conn,
                         const char *reason)
{
    char peer[PEER_SIZE];

    topic_leave(server, conn->topic, conn);
    free(conn->own);
    conn->own = NULL;
    log_client(server, LEVEL_INFO, "unsubscribed",
               "peer=%s reason=%s events=%u bytes=%llu seconds=%u",
               format_peer(peer, conn), reason, conn->cursor.events,
               (unsigned long long)conn->bytes,
               (uint32_t)(server->now / 1000) - conn->since);
}

/* Has the subscriber offered again as soon as the others had their turn. */
static void ready_push(struct server *server, struct conn *conn)
{
    uint64_t needs = conn->cursor.last + 1;

    if (conn->queue == QUEUE_READY)
        return;
    queue_push(server, QUEUE_READY, conn);
    if (!server->ready_from || needs < server->ready_from)
        server->ready_from = needs;
    if (!server->ready_from_next || needs < server->ready_from_next)
        server->ready_from_next = needs;
}

static void put_catch_up_end(struct text *text, const struct conn *conn)
{
    size_t begin = text_begin_block(text, conn->form);

    text_put(text,
             "data: {\"type\":\"catch_up_end\","
             "\"message\":\"消息同步完成\",\"syncCount\":%u}\n",
             conn->replay_count);
    text_end_block(text, conn->form, begin);
}

static uint64_t random_below(uint64_t limit)
{
    uint64_t number;

    if (getrandom(&number, sizeof(number), GRND_NONBLOCK) !=
        (ssize_t)sizeof(number))
        number = (uint64_t)random();
    return limit ? number % limit : 0;
}

/* The end of a stream: when to come back, and the last chunk. */
static void put_farewell(struct text *text, unsigned form, uint64_t retry)
{
    size_t begin = text_begin_block(text, form);

    text_put(text, "retry: %llu\n", (unsigned long long)retry);
    text_end_block(text, form, begin);
    if (form & FORM_CHUNKED)
        text_put(text, "0\r\n\r\n");
}

/* What comes next in a stream whose bytes so far have all been sent. */
static struct slice stream_next_own(struct server *server, struct conn *conn,
                                    struct text *text)
{
    text->length = 0;
    if (conn->replay_end && conn->cursor.last >= conn->replay_end) {
        put_catch_up_end(text, conn);
        conn->replay_end = 0;
    } else if (server->phase == PHASE_DRAIN && !(conn->flags & FLAG_ENDING) &&
               !topic_after(&server->ring, conn->topic, conn->cursor.last)) {
        put_farewell(text, conn->form,
                     1000 + random_below(server->options.drain_spread + 1));
        conn->flags |= FLAG_ENDING;
    }
    return text_slice(text);
}

/* Keeps what the socket did not take of the bytes that are this one's own:
 * the rest of conn->own, or others. */
static bool stream_keep(struct conn *conn, struct slice rest)
{
    struct own *own = conn->own;

    if (own && rest.length &&
        rest.data + rest.length == own->bytes + own->length) {
        own->sent = own->length - (uint32_t)rest.length;
        return true;
    }
    free(own);
    conn->own = NULL;
    if (rest.length == 0)
        return true;
    own = malloc(sizeof(*own) + rest.length);
    if (!own)
        return false;
    *own = (struct own){ .length = (uint32_t)rest.length };
    memcpy(own->bytes, rest.data, rest.length);
    conn->own = own;
    return true;
}

/* Gathers a stream's next bytes; returns how many iovecs, and their bytes. */
static int stream_gather(const struct server *server, const struct conn *conn,
                         struct slice own, struct iovec *iov, size_t *bytes)
{
    uint64_t until = conn->replay_end ? conn->replay_end : UINT64_MAX;
    unsigned form = conn->form | (conn->replay_end ? FORM_SPLICED : 0);
    int count = 0;

    if (own.length)
        iov[count++] =
            (struct iovec){ (void *)(uintptr_t)own.data, own.length };
    if (!(conn->flags & FLAG_ENDING))
        count += ring_gather(&server->ring, conn->topic, &conn->cursor, until,
                             form, iov + count, IOV_ROOM - count, SEND_BUDGET);
    *bytes = 0;
    for (int i = 0; i < count; i++)
        *bytes += iov[i].iov_len;
    return count;
}

static void stream_advance(struct server *server, struct conn *conn,
                           struct slice *own, size_t sent)
{
    size_t first = sent < own->length ? sent : own->length;
    uint64_t until = conn->replay_end ? conn->replay_end : UINT64_MAX;
    unsigned form = conn->form | (conn->replay_end ? FORM_SPLICED : 0);

    own->data += first;
    own->length -= first;
    ring_advance(&server->ring, conn->topic, &conn->cursor, until, form,
                 sent - first);
    conn->bytes += sent;
    conn->active = (uint32_t)server->now;
    server->slice_sends++;
    server->slice_bytes += sent;
}

enum io {
    IO_DONE,
    IO_FULL,
    IO_BUDGET,
    IO_ERROR,
    IO_OVERRUN
};

/* Sends from the cursor to the end, `own` first; *own is then what is left
 * of it. Says why it stopped. */
static enum io stream_write(struct server *server, struct conn *conn,
                            struct slice *own, struct text *text)
{
    struct iovec iov[IOV_ROOM];
    size_t total = 0, bytes;

    for (;;) {
        ssize_t sent;
        int count;

        if (topic_overrun(conn->topic, &conn->cursor))
            return IO_OVERRUN;
        if (own->length == 0)
            *own = stream_next_own(server, conn, text);
        count = stream_gather(server, conn, *own, iov, &bytes);
        if (count == 0)
            return IO_DONE;
        if (total >= SEND_BUDGET)
            return IO_BUDGET;
        sent = writev((int)conn_fd(server, conn), iov, count);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return errno == EAGAIN ? IO_FULL : IO_ERROR;
        stream_advance(server, conn, own, (size_t)sent);
        total += (size_t)sent;
        if ((size_t)sent < bytes)
            return IO_FULL;
    }
}

/*
 * Sends a subscriber what there is for him: `own`, which is his alone and
 * empty for most, then the frames from his cursor on. What does not fit goes
 * when his socket has room again.
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
        conn_close(server, conn, strerrorname_np(errno));
    } else if (!stream_keep(conn, own)) {
        conn_close(server, conn, strerrorname_np(ENOMEM));
    } else if (outcome == IO_DONE && (conn->flags & FLAG_ENDING)) {
        conn_close(server, conn, "drained");
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

/* In a pass: who has a full socket waits for room in it, or is overrun. */
static void pass_visit(struct server *server, struct conn *conn)
{
    if (!(conn->interest & EPOLLOUT) ||
        topic_overrun(conn->topic, &conn->cursor))
        stream_send(server, conn, SLICE(""));
}

/* A pass is over: another, if frames have come meanwhile. */
static void pass_end(struct server *server, struct topic *topic)
{
    uint64_t after = topic_after(&server->ring, topic, topic->pass_end);

    topic->undelivered = after;
    if (after)
        pass_begin(server, topic);
}

/*
 * Visits the subscribers of the topics with new frames until the slice is
 * used up; a topic that is not done goes to the end of the queue. While a
 * pass is under way, frames pile up, and each subscriber gets all of them at
 * once when his turn comes.
 */
static void deliver_topics(struct server *server)
{
    while (server->pass_first && !slice_used_up(server)) {
        struct topic *topic = server->pass_first;

        while (topic->unvisited && !slice_used_up(server))
            pass_visit(server,
                       conn_at(server, topic->subscribers[--topic->unvisited]));
        server->pass_first = topic->next_in_pass;
        if (!server->pass_first)
            server->pass_last = NULL;
        topic->in_pass = false;
        if (topic->unvisited)
            pass_queue(server, topic);
        else
            pass_end(server, topic);
    }
}

/* Offers more to those who had room for more, each once in a round. */
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

/* Whether a frame of `length` bytes would evict one that a subscriber with
 * room in his socket has not been offered yet: then it is ssed that is
 * behind, and publishers wait. A full socket holds nobody up. */
static bool would_overrun(const struct server *server, size_t length)
{
    const struct ring *ring = &server->ring;
    uint64_t oldest = ring_oldest_after(ring, length);

    if (server->ready_from && oldest > server->ready_from)
        return true;
    for (uint64_t ordinal = ring->oldest; ordinal < oldest; ordinal++) {
        uint64_t undelivered = ring_frame(ring, ordinal)->topic->undelivered;

        if (undelivered && ordinal >= undelivered)
            return true;
    }
    return false;
}

enum outcome {
    PUBLISHED,
    MUST_WAIT,
    IDS_USED_UP
};

static enum outcome publish_frame(struct server *server, struct topic *topic,
                                  uint64_t id, struct slice frame,
                                  size_t splice)
{
    uint64_t ordinal;

    if (would_overrun(server, frame.length))
        return MUST_WAIT;
    ordinal = ring_append(&server->ring, topic, id, frame, (uint32_t)splice);
    if (!topic->undelivered && topic->subscriber_count) {
        topic->undelivered = ordinal;
        pass_begin(server, topic);
    }
    return PUBLISHED;
}

/* Publishes a message into the main stream; *id is then its id. */
static enum outcome publish_message(struct server *server, struct slice message,
                                    uint64_t *id)
{
    struct text text = { server->frame, server->frame_size, 0 };
    char timestamp[TIMESTAMP_SIZE];
    size_t begin = text_begin_block(&text, FORM_CHUNKED), splice;

    if (server->ring.newest_id >= ID_MAX)
        return IDS_USED_UP;
    *id = server->ring.newest_id + 1;
    format_timestamp(timestamp, clock_ms(CLOCK_REALTIME));
    text_put(&text, "id: %llu\ndata: {\"type\":\"", (unsigned long long)*id);
    splice = text.length;
    text_put(&text, "message\",\"id\":%llu,\"message\":\"",
             (unsigned long long)*id);
    text_put_json(&text, message);
    text_put(&text, "\",\"timestamp\":\"%s\"}\n", timestamp);
    text_end_block(&text, FORM_CHUNKED, begin);
    return publish_frame(server, &server->main_topic, *id, text_slice(&text),
                         splice);
}

/* The clock of the main stream. A message that would overrun somebody is
 * left for the next turn; what was missed is not made up for. */
static void publish_clock(struct server *server)
{
    char message[64] = "当前时间: ";
    size_t length = strlen(message);
    time_t seconds = time(NULL);
    struct tm tm;
    uint64_t id;

    if (!server->options.interval || server->now < server->next_clock ||
        server->phase >= PHASE_DRAIN)
        return;
    localtime_r(&seconds, &tm);
    length += strftime(message + length, sizeof(message) - length,
                       "%Y-%m-%d %H:%M:%S", &tm);
    if (publish_message(server, (struct slice){ message, length }, &id) ==
        MUST_WAIT)
        return;
    server->next_clock += server->options.interval;
    if (server->next_clock <= server->now)
        server->next_clock = server->now + server->options.interval;
}

/* ------------------------------------------------------------- answers */

static void log_access(const struct server *server, const struct conn *conn,
                       int status, uint64_t length)
{
    static const char *const methods[] = { "-",    "DELETE",  "GET",
                                           "HEAD", "OPTIONS", "POST" };
    const struct request *request = &conn->exchange->request;
    char peer[PEER_SIZE], path[512];

    if (!server->options.access_log)
        return;
    log_client(server, LEVEL_INFO, "request",
               "peer=%s method=%s path=%s status=%d bytes=%llu",
               format_peer(peer, conn), methods[request->method],
               log_quote(path, sizeof(path), request->path), status,
               (unsigned long long)length);
}

/*
 * Puts an answer after those that wait to be sent, and makes the exchange
 * ready for the next request. response->length is that of the content; what
 * of the content is not in `content` is sent by the caller.
 */
static void respond(struct server *server, struct conn *conn,
                    struct response *response, struct slice content)
{
    struct exchange *exchange = conn->exchange;
    char *out = exchange->out + exchange->out_end;
    size_t room = OUT_SIZE - exchange->out_end, length;

    /* a body that nobody will read cannot be told from the next request */
    response->close = response->close || exchange->request.close ||
                      exchange->body.state != BODY_DONE;
    response->date = server->date;
    length = http_head(out, room, response);
    assert(length && room - length >= content.length);
    if (exchange->request.method != METHOD_HEAD) {
        memcpy(out + length, content.data, content.length);
        length += content.length;
    }
    exchange->out_end += length;
    exchange->close = response->close;
    log_access(server, conn, response->status, response->length);
    free(exchange->content);
    exchange->content = NULL;
    exchange->request = (struct request){ 0 };
    conn_set_state(server, conn, CONN_REQUEST);
    timer_start(server, conn, server->options.head_timeout);
    if (conn->queue != QUEUE_ANSWERS) {
        queue_remove(server, conn);
        queue_push(server, QUEUE_ANSWERS, conn);
    }
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
    if (exchange->file_left == 0)
        exchange_drop_content(exchange);
    else
        conn_set_state(server, conn, CONN_RESPOND);
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
    return server->options.cors ? server->options.cors : "*";
}

/* Where a stream begins. */
struct start {
    uint64_t last;          /* the cursor's */
    uint64_t position;      /* the id that stands for it */
    uint64_t replay;        /* how many frames are replayed */
    bool gap;               /* something that was asked for may be gone */
    struct slice requested; /* the id that was given; empty if none was */
    char buffer[REQUESTED_MAX];
};

/* The first id that is given and not empty: the header's, which a browser
 * sends when it reconnects, is newer than the query's. */
static void find_requested(const struct request *request, struct start *start)
{
    struct slice query = request->query;

    start->requested = request->last_event_id;
    if (start->requested.length == 0)
        http_query(query, "lastEventId", start->buffer, REQUESTED_MAX,
                   &start->requested);
    if (start->requested.length == 0)
        http_query(query, "last_event_id", start->buffer, REQUESTED_MAX,
                   &start->requested);
}

/* What comes after the id that was asked for, or all that is held and a
 * gap, if the history cannot go on from there. */
static void find_requested_start(const struct ring *ring,
                                 const struct topic *topic, struct start *start)
{
    uint64_t id;

    start->gap = !slice_number(start->requested, ring->newest_id, &id) ||
                 id < topic->mark;
    if (start->gap)
        return;
    start->last = topic_seek(ring, topic, id);
    start->position = id;
}

/* False if `last=` is not a number. */
static bool find_start(const struct server *server, const struct topic *topic,
                       const struct request *request, struct start *start)
{
    const struct ring *ring = &server->ring;
    char digits[24];
    struct slice last = SLICE("");
    uint64_t count, after;

    find_requested(request, start);
    http_query(request->query, "last", digits, sizeof(digits), &last);
    if (last.length && !slice_number(last, ID_MAX, &count))
        return false;
    start->last = topic_start(topic);
    if (start->requested.length == 0)
        start->last =
            last.length ? topic_back(ring, topic, count) : topic_end(topic);
    after = topic_after(ring, topic, start->last);
    start->position = after ? ring_frame(ring, after)->id - 1 : ring->newest_id;
    if (start->requested.length && !slice_is(start->requested, "earliest"))
        find_requested_start(ring, topic, start);
    start->replay = topic_count_after(ring, topic, start->last);
    return true;
}

static void put_connected(struct text *text, const struct server *server,
                          unsigned form, const struct start *start)
{
    char timestamp[TIMESTAMP_SIZE];
    size_t begin = text_begin_block(text, form);

    format_timestamp(timestamp, clock_ms(CLOCK_REALTIME));
    text_put(text, "retry: %llu\n", (unsigned long long)server->options.retry);
    if (!start->gap)
        text_put(text, "id: %llu\n", (unsigned long long)start->position);
    text_put(text,
             "data: {\"type\":\"connected\",\"message\":\"连接建立成功\","
             "\"timestamp\":\"%s\"}\n",
             timestamp);
    text_end_block(text, form, begin);
}

static void put_gap(struct text *text, const struct server *server,
                    unsigned form, const struct topic *topic,
                    const struct start *start)
{
    size_t begin = text_begin_block(text, form);
    struct slice requested = start->requested;

    if (requested.length > REQUESTED_MAX)
        requested.length = REQUESTED_MAX;
    text_put(text,
             "id: %llu\ndata: {\"type\":\"gap\",\"message\":"
             "\"部分历史消息已无法补发\",\"requested\":\"",
             (unsigned long long)start->position);
    text_put_json(text, requested);
    if (topic->oldest)
        text_put(
            text, "\",\"oldest\":\"%llu\"}\n",
            (unsigned long long)ring_frame(&server->ring, topic->oldest)->id);
    else
        text_put(text, "\",\"oldest\":null}\n");
    text_end_block(text, form, begin);
}

static void put_catch_up_start(struct text *text, unsigned form, uint64_t count)
{
    size_t begin = text_begin_block(text, form);

    text_put(text,
             "data: {\"type\":\"catch_up_start\",\"message\":\"开始同步 "
             "%llu 条错过的消息\",\"count\":%llu}\n",
             (unsigned long long)count, (unsigned long long)count);
    text_end_block(text, form, begin);
}

/* The connection becomes a subscriber's. */
static bool stream_begin(struct server *server, struct conn *conn,
                         struct topic *topic, unsigned form,
                         const struct start *start)
{
    if (!topic_join(topic, conn, conn_fd(server, conn)))
        return false;
    queue_remove(server, conn);
    conn_release_exchange(server, conn);
    conn_set_state(server, conn, CONN_STREAM);
    conn->form = (uint8_t)form;
    conn->topic = topic;
    conn->own = NULL;
    conn->cursor = (struct cursor){ .last = start->last };
    conn->replay_end = start->replay ? topic->newest : 0;
    conn->replay_count = (uint32_t)start->replay;
    conn->bytes = 0;
    conn->since = (uint32_t)(server->now / 1000);
    conn->active = (uint32_t)server->now;
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

    put_farewell(&text, response.chunked ? FORM_CHUNKED : FORM_PLAIN,
                 RETRY_LATER_MIN +
                     random_below(RETRY_LATER_MAX - RETRY_LATER_MIN + 1));
    response.close = true;
    respond(server, conn, &response, text_slice(&text));
}

static void log_subscribed(const struct server *server, const struct conn *conn,
                           const struct start *start)
{
    char peer[PEER_SIZE], requested[REQUESTED_MAX];

    log_client(server, LEVEL_INFO, "subscribed",
               "peer=%s last_event_id=%s replay=%llu gap=%s",
               format_peer(peer, conn),
               log_quote(requested, sizeof(requested), start->requested),
               (unsigned long long)start->replay, start->gap ? "yes" : "no");
}

/* All that goes before the first frame. */
static void put_stream_begin(struct text *text, const struct server *server,
                             const struct conn *conn, const struct topic *topic,
                             const struct start *start)
{
    const struct exchange *exchange = conn->exchange;
    struct response response = stream_response(server, conn);
    unsigned form = response.chunked ? FORM_CHUNKED : FORM_PLAIN;

    /* answers to earlier requests that have not been sent go before it */
    text_put_bytes(text, exchange->out + exchange->out_start,
                   exchange->out_end - exchange->out_start);
    text->length += http_head(text->bytes + text->length,
                              text->room - text->length, &response);
    put_connected(text, server, form, start);
    if (start->gap)
        put_gap(text, server, form, topic, start);
    if (start->replay)
        put_catch_up_start(text, form, start->replay);
}

static void subscribe(struct server *server, struct conn *conn)
{
    struct request *request = &conn->exchange->request;
    unsigned form = request->minor > 0 ? FORM_CHUNKED : FORM_PLAIN;
    struct topic *topic = &server->main_topic;
    char bytes[OUT_SIZE + OWN_MAX];
    struct text text = { bytes, sizeof(bytes), 0 };
    struct response head = stream_response(server, conn);
    struct start start = { 0 };

    if (!find_start(server, topic, request, &start)) {
        respond_error(server, conn, 400, "last= is not a number of events");
    } else if (request->method == METHOD_HEAD) {
        respond(server, conn, &head, SLICE(""));
    } else if (server->connections > server->options.max_connections) {
        respond_later(server, conn);
    } else {
        put_stream_begin(&text, server, conn, topic, &start);
        log_access(server, conn, 200, 0);
        log_subscribed(server, conn, &start);
        if (stream_begin(server, conn, topic, form, &start))
            stream_send(server, conn, text_slice(&text));
        else
            respond_later(server, conn);
    }
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

/* Why no page of another origin may publish: it would be in the name of the
 * person at the browser. NULL if this is none. */
static const char *refused_origin(const struct server *server,
                                  const struct request *request)
{
    const char *cors = server->options.cors;

    if (!request->origin.data ||
        (cors && slice_equals(request->origin, cors)) ||
        http_origin_is_host(request->origin, request->host))
        return NULL;
    return "publishing from this Origin is not allowed: --cors names the one "
           "that may";
}

/* NULL if the request is from this machine and came here directly. */
static const char *refused_local(const struct conn *conn,
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
    if (!http_host_is_local(request->host))
        return "publishing takes a Host that is localhost or an IP address";
    return NULL;
}

static const char *refused_publisher(const struct server *server,
                                     const struct conn *conn,
                                     const struct request *request)
{
    switch (server->options.publish) {
    case PUBLISH_LOCAL:
        return refused_local(conn, request);
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

/* What the main stream has no place for. NULL if there is none of it. */
static const char *refused_query(struct slice query)
{
    static const struct {
        const char *name;
        const char *why;
    } refused[] = {
        { "event", "event= is for topics: the main stream has no names" },
        { "end", "end= is for topics: the main stream has no end" },
        { "id", "id= takes a server that keeps ids from outside" },
        { "topic", "topic= is for subscribing" },
    };
    char value[8];
    struct slice found;

    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
        if (http_query(query, refused[i].name, value, sizeof(value), &found))
            return refused[i].why;
    return NULL;
}

static void respond_too_large(struct server *server, struct conn *conn)
{
    char text[96];

    snprintf(text, sizeof(text), "the event has more than %llu bytes",
             (unsigned long long)server->options.max_event);
    respond_error(server, conn, 413, text);
}

/* The answer to a publish that is in the history. */
static void respond_published(struct server *server, struct conn *conn,
                              const struct topic *topic, uint64_t id)
{
    char json[80];
    int length =
        snprintf(json, sizeof(json), "{\"id\":\"%llu\",\"subscribers\":%u}\n",
                 (unsigned long long)id, topic->subscriber_count);

    respond(server, conn,
            &(struct response){
                .status = 201,
                .type = "application/json",
                .length = (uint64_t)length,
                .cors = server->options.cors,
            },
            (struct slice){ json, (size_t)length });
}

static void respond_draining(struct server *server, struct conn *conn)
{
    respond_error(server, conn, 503, "draining: about to end");
}

/* Waits until the subscribers have been offered what its event would evict.
 * Nothing is read from it meanwhile: TCP slows the publisher down. */
static void conn_wait(struct server *server, struct conn *conn)
{
    if (conn->state == CONN_WAITING)
        return;
    conn_set_state(server, conn, CONN_WAITING);
    conn_set_interest(server, conn, 0);
    timer_stop(server, conn);
    queue_remove(server, conn);
    queue_push(server, QUEUE_WAITING, conn);
}

static bool utf8_valid(struct slice text)
{
    while (text.length) {
        size_t length = utf8_sequence(text);

        if (length == 0)
            return false;
        text.data += length;
        text.length -= length;
    }
    return true;
}

/* What a plain body holds as data: one line end at its end is no part. */
static struct slice content_data(const struct exchange *exchange)
{
    struct slice data = { exchange->content, exchange->content_length };

    if (data.length && data.data[data.length - 1] == '\n')
        data.length--;
    if (data.length && data.data[data.length - 1] == '\r')
        data.length--;
    return data;
}

static void publish_data(struct server *server, struct conn *conn,
                         struct slice data)
{
    bool others_wait =
        conn->state != CONN_WAITING && server->queues[QUEUE_WAITING].count;
    enum outcome outcome = MUST_WAIT;
    uint64_t id = 0;

    if (!others_wait)
        outcome = publish_message(server, data, &id);
    if (outcome == MUST_WAIT)
        conn_wait(server, conn);
    else if (outcome == PUBLISHED)
        respond_published(server, conn, &server->main_topic, id);
    else
        respond_error(server, conn, 503, "all ids are used up");
}

/* The body is complete. */
static void publish_content(struct server *server, struct conn *conn)
{
    const struct exchange *exchange = conn->exchange;
    struct slice data = content_data(exchange);

    if (exchange->content_length == 0)
        respond_error(server, conn, 400, "the request has no body");
    else if (data.length > server->options.max_event)
        respond_too_large(server, conn);
    else if (!utf8_valid(data))
        respond_error(server, conn, 400, "the body is not valid UTF-8");
    else if (server->phase >= PHASE_DRAIN)
        respond_draining(server, conn);
    else
        publish_data(server, conn, data);
}

static bool content_append(struct server *server, struct exchange *exchange,
                           struct slice piece)
{
    /* a line end at the end, of two bytes at most, is not counted */
    size_t limit = (size_t)server->options.max_event + 2;
    size_t needed = exchange->content_length + piece.length;

    if (needed > limit)
        return false;
    memcpy(exchange->content + exchange->content_length, piece.data,
           piece.length);
    exchange->content_length = needed;
    return true;
}

/* Takes in what has arrived of a body. */
static void read_body(struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;

    while (conn->state == CONN_BODY) {
        struct slice piece;
        struct slice data = { exchange->in + exchange->in_start,
                              exchange->in_end - exchange->in_start };
        ssize_t taken = http_body_read(&exchange->body, data, &piece);

        if (taken < 0) {
            respond_error(server, conn, 400, "a chunk is malformed");
            return;
        }
        exchange->in_start += (size_t)taken;
        if (!content_append(server, exchange, piece))
            respond_too_large(server, conn);
        else if (exchange->body.state == BODY_DONE)
            publish_content(server, conn);
        else if (taken == 0)
            return;
    }
}

/* Asks for the body of a client that waits to be asked. */
static void respond_continue(struct server *server, struct conn *conn)
{
    static const char line[] = "HTTP/1.1 100 Continue\r\n\r\n";
    struct exchange *exchange = conn->exchange;

    memcpy(exchange->out + exchange->out_end, line, sizeof(line) - 1);
    exchange->out_end += sizeof(line) - 1;
    if (conn->queue != QUEUE_ANSWERS)
        queue_push(server, QUEUE_ANSWERS, conn);
}

static void begin_body(struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    size_t room = (size_t)server->options.max_event + 2;

    if (exchange->request.content_length >= 0)
        room = (size_t)exchange->request.content_length;
    exchange->content_length = 0;
    exchange->content = malloc(room + 1);
    if (!exchange->content) {
        respond_error(server, conn, 503, "no memory for the body");
        return;
    }
    conn_set_state(server, conn, CONN_BODY);
    timer_start(server, conn,
                server->options.head_timeout + room * 1000 / BODY_RATE);
    if (exchange->request.expect_continue &&
        exchange->in_start == exchange->in_end)
        respond_continue(server, conn);
    read_body(server, conn);
}

static void publish(struct server *server, struct conn *conn)
{
    const struct request *request = &conn->exchange->request;
    const char *refused = refused_query(request->query);

    if (!may_publish(server, conn))
        return;
    if (server->phase >= PHASE_DRAIN)
        respond_draining(server, conn);
    else if (server->connections > server->options.max_connections)
        respond_error(server, conn, 503, "too many connections");
    else if (refused)
        respond_error(server, conn, 400, refused);
    else if (http_media_type_is(request->content_type, "text/event-stream"))
        respond_error(server, conn, 415, "the body must be the message");
    else if (!http_has_body(request))
        respond_error(server, conn, 400, "the request has no body");
    else if (!request->chunked &&
             (uint64_t)request->content_length > server->options.max_event + 2)
        respond_too_large(server, conn);
    else
        begin_body(server, conn);
}

/* ------------------------------------------------------ the connection */

static void route_events(struct server *server, struct conn *conn)
{
    static const char allow[] = "GET, HEAD, OPTIONS, POST";

    switch (conn->exchange->request.method) {
    case METHOD_GET:
    case METHOD_HEAD:
        subscribe(server, conn);
        break;
    case METHOD_POST:
        publish(server, conn);
        break;
    case METHOD_OPTIONS:
        respond(server, conn,
                &(struct response){
                    .status = 204,
                    .no_length = true,
                    .preflight = true,
                    .allow = allow,
                    .cors = stream_cors(server),
                },
                SLICE(""));
        break;
    case METHOD_DELETE:
    case METHOD_OTHER:
        respond_method(server, conn, allow);
        break;
    }
}

static void route(struct server *server, struct conn *conn)
{
    const struct request *request = &conn->exchange->request;

    if (slice_is(request->path, "/events"))
        route_events(server, conn);
    else if (slice_is(request->path, "/healthz"))
        respond_health(server, conn);
    else if (server->connections > server->options.max_connections)
        respond_error(server, conn, 503, "too many connections");
    else if (slice_is(request->path, "*"))
        respond_method(server, conn, "DELETE, GET, HEAD, OPTIONS, POST");
    else
        respond_page(server, conn);
}

/* Moves what has not been parsed to the front, to make room behind it. */
static void compact_input(struct exchange *exchange)
{
    if (exchange->in_start == 0)
        return;
    exchange->in_end -= exchange->in_start;
    memmove(exchange->in, exchange->in + exchange->in_start, exchange->in_end);
    exchange->in_start = 0;
}

static void read_request(struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    ssize_t taken =
        http_parse(exchange->in + exchange->in_start,
                   exchange->in_end - exchange->in_start, &exchange->request);

    exchange->body.state = BODY_DONE;
    if (taken < 0) {
        exchange->request.close = true;
        respond_error(server, conn, (int)-taken, exchange->request.error);
    } else if (taken > 0) {
        exchange->in_start += (size_t)taken;
        http_body_init(&exchange->body, &exchange->request);
        route(server, conn);
    }
}

/* Takes in all requests that have arrived whole, as long as there is room
 * for their answers. */
static void read_requests(struct server *server, struct conn *conn)
{
    size_t before = SIZE_MAX;

    if (conn->state == CONN_BODY)
        read_body(server, conn);
    while (conn->state == CONN_REQUEST && conn->exchange &&
           !conn->exchange->close && before != conn->exchange->in_start &&
           OUT_SIZE - conn->exchange->out_end >= OUT_ROOM) {
        before = conn->exchange->in_start;
        read_request(server, conn);
    }
    if (conn->state == CONN_REQUEST || conn->state == CONN_BODY)
        compact_input(conn->exchange);
}

static void conn_read(struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    bool first = !exchange;
    ssize_t n;

    if (first) {
        exchange = conn->exchange = exchange_take(server);
        if (!exchange) {
            conn_close(server, conn, "no memory");
            return;
        }
        timer_start(server, conn, server->options.head_timeout);
    }
    n = read((int)conn_fd(server, conn), exchange->in + exchange->in_end,
             sizeof(exchange->in) - exchange->in_end);
    if (n > 0) {
        exchange->in_end += (size_t)n;
        read_requests(server, conn);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        conn_close(server, conn, "closed");
    } else if (first) {
        conn_release_exchange(server, conn);
    }
}

/* Sends a piece of what waits to be sent; as send(2). */
static ssize_t send_piece(int fd, struct exchange *exchange)
{
    int more = exchange->file_left ? MSG_MORE : 0;
    size_t length = exchange->out_end - exchange->out_start;
    off_t at = (off_t)exchange->file_at;

    if (length)
        return send(fd, exchange->out + exchange->out_start, length,
                    MSG_NOSIGNAL | more);
    length = exchange->file_left < SEND_BUDGET ? (size_t)exchange->file_left
                                               : SEND_BUDGET;
    if (exchange->file.data)
        return send(fd, exchange->file.data + at, length, MSG_NOSIGNAL);
    return sendfile(fd, exchange->file.fd, &at, length);
}

static void sent_piece(struct exchange *exchange, size_t sent)
{
    if (exchange->out_end > exchange->out_start) {
        exchange->out_start += sent;
        if (exchange->out_start == exchange->out_end)
            exchange->out_start = exchange->out_end = 0;
        return;
    }
    exchange->file_at += sent;
    exchange->file_left -= sent;
}

/* All answers have been sent. */
static void answers_sent(struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;

    exchange_drop_content(exchange);
    conn_set_interest(server, conn, INPUT);
    if (exchange->close) {
        conn_linger(server, conn);
        return;
    }
    if (conn->state == CONN_RESPOND)
        conn_set_state(server, conn, CONN_REQUEST);
    if (exchange->in_start == exchange->in_end)
        conn_idle(server, conn);
    else
        read_requests(server, conn);
}

/* Sends until all is sent, the socket is full, or it is others' turn. */
static enum io write_answers(const struct server *server, struct conn *conn)
{
    struct exchange *exchange = conn->exchange;
    size_t total = 0;

    while (exchange->out_end > exchange->out_start || exchange->file_left) {
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

/* Sends the answers that wait, and goes on with the requests after them. */
static void send_answers(struct server *server, struct conn *conn)
{
    enum io outcome = write_answers(server, conn);
    bool body = conn->state == CONN_BODY;

    if (outcome == IO_ERROR) {
        conn_cut(server, conn, "cannot send");
    } else if (outcome == IO_DONE && !body) {
        answers_sent(server, conn);
    } else if (body) {
        conn_set_interest(server, conn,
                          INPUT | (outcome == IO_DONE ? 0 : EPOLLOUT));
    } else {
        conn_set_state(server, conn, CONN_RESPOND);
        conn_set_interest(server, conn, EPOLLOUT);
        timer_start(server, conn, server->options.idle_timeout);
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
    else if ((events & EPOLLOUT) && conn->queue != QUEUE_READY)
        stream_send(server, conn, SLICE(""));
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
        if (events & EPOLLOUT)
            send_answers(server, conn);
        else
            conn_read(server, conn);
        break;
    case CONN_WAITING: /* interest in nothing: an error, or both sides ended */
        conn_close(server, conn, "closed");
        break;
    case CONN_RESPOND:
        send_answers(server, conn);
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
    size_t begin = text_begin_block(&text, conn->form);

    format_timestamp(timestamp, clock_ms(CLOCK_REALTIME));
    text_put(&text,
             "id: %llu\ndata: {\"type\":\"heartbeat\",\"timestamp\":\"%s\"}\n",
             (unsigned long long)server->ring.newest_id, timestamp);
    text_end_block(&text, conn->form, begin);
    stream_send(server, conn, text_slice(&text));
}

/* Whether he has been sent everything, so that a heartbeat may bear the
 * newest id. */
static bool stream_caught_up(const struct server *server,
                             const struct conn *conn)
{
    return !conn->own && !conn->replay_end &&
           !topic_after(&server->ring, conn->topic, conn->cursor.last);
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
        respond_error(server, conn, 408, "the body did not get on");
    else if (exchange && exchange->in_end > 0)
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
    case CONN_WAITING:
    case CONN_CLOSED:
    case CONN_STATES:
        assert(false); /* has no timer */
    }
}

/* The connections of a slot, of which some may have a later turn. */
static void expire_slot(struct server *server, uint32_t slot, uint32_t tick)
{
    uint32_t fd = server->wheel[slot];

    while (fd != NONE) {
        struct conn *conn = conn_at(server, fd);

        fd = conn->timer_next;
        if ((int32_t)(conn->deadline - tick) > 0)
            continue;
        timer_stop(server, conn);
        conn_expired(server, conn);
    }
}

static void expire_timers(struct server *server)
{
    uint64_t tick = server->now >> TICK_SHIFT;

    if (tick - server->wheel_tick > WHEEL_SLOTS)
        server->wheel_tick = tick - WHEEL_SLOTS;
    while (server->wheel_tick < tick) {
        server->wheel_tick++;
        expire_slot(server, (uint32_t)(server->wheel_tick % WHEEL_SLOTS),
                    (uint32_t)server->wheel_tick);
    }
}

/* ---------------------------------------------------------------- phases */

static void close_listeners(struct server *server)
{
    for (unsigned i = 0; i < server->listener_count; i++) {
        const struct listener *listener = &server->listeners[i];

        close(listener->fd);
        conn_set_state(server, conn_at(server, (uint32_t)listener->fd),
                       CONN_FREE);
        if (listener->unix_path)
            unlink(listener->unix_path);
    }
    server->listener_count = 0;
}

static void begin_drain(struct server *server)
{
    log_event(LEVEL_INFO, "draining", "subscribers=%u seconds=%llu",
              server->in_state[CONN_STREAM],
              (unsigned long long)server->options.drain / 1000);
    server->phase = PHASE_DRAIN;
    server->phase_end = server->now + server->options.drain;
    close_listeners(server);
    while (server->queues[QUEUE_WAITING].count)
        respond_draining(server,
                         conn_at(server, server->queues[QUEUE_WAITING].first));
    pass_begin(server, &server->main_topic);
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
                server->queues[QUEUE_ANSWERS].count ==
            0)
        server->phase = PHASE_STOP;
}

static bool read_token(const char *path, char token[TOKEN_MAX], size_t *length)
{
    FILE *file = fopen(path, "re");
    bool read;

    if (!file)
        return false;
    errno = EINVAL;
    read = fgets(token, TOKEN_MAX, file) != NULL;
    fclose(file);
    if (!read)
        return false;
    *length = strcspn(token, "\r\n");
    errno = EINVAL;
    return *length > 0 && *length < TOKEN_MAX - 1 && !strchr(token, ' ');
}

static void reload_token(struct server *server)
{
    char token[TOKEN_MAX], path[512];
    size_t length;
    const char *file = server->options.token_file;
    bool read = file && read_token(file, token, &length);

    if (!file)
        return;
    log_quote(path, sizeof(path), (struct slice){ file, strlen(file) });
    if (!read) {
        log_event(LEVEL_ERROR, "token_not_reloaded",
                  "file=%s error=%s kept=\"the one before\"", path,
                  strerrorname_np(errno));
        return;
    }
    memcpy(server->token, token, length);
    server->token_length = length;
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
    if (wall == server->wall)
        return;
    server->wall = wall;
    http_date(server->date, wall);
}

static bool work_is_left(const struct server *server)
{
    return server->pass_first || server->queues[QUEUE_READY].count ||
           server->queues[QUEUE_ANSWERS].count ||
           server->queues[QUEUE_WAITING].count;
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
    if (logger.suppressed && logger.reported + LOG_REPORT < until)
        until = logger.reported + LOG_REPORT;
    if (until == UINT64_MAX)
        return -1;
    if (until <= server->now)
        return 0;
    return until - server->now > INT_MAX ? INT_MAX : (int)(until - server->now);
}

/* Everything that the turn's publishes lead to. */
static void deliver(struct server *server)
{
    server->slice_sends = 0;
    server->slice_bytes = 0;
    deliver_ready(server);
    deliver_topics(server);
}

static void retry_publishers(struct server *server)
{
    while (server->queues[QUEUE_WAITING].count) {
        struct conn *conn =
            conn_at(server, server->queues[QUEUE_WAITING].first);

        publish_content(server, conn);
        if (conn->state == CONN_WAITING)
            return;
    }
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
    while (server->queues[QUEUE_ANSWERS].count)
        send_answers(server, queue_pop(server, QUEUE_ANSWERS));
    deliver(server);
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
    KIND_PORT,
    KIND_PUBLISH,
    KIND_LEVEL,
    KIND_ACCESS_LOG,
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
};

#define PLACE(member) offsetof(struct options, member)
#define YEAR_S (UINT64_C(366) * 86400)

static const struct spec specs[] = {
    { "listen", "ADDR:PORT",
      "where to listen: 127.0.0.1:3000, [::1]:0, "
      "unix:PATH; repeatable",
      KIND_LISTEN, 'l', 0, 0, 0 },
    { "port", "N", "short for --listen 127.0.0.1:N", KIND_PORT, 'p', 0, 0,
      65535 },
    { "root", "DIR", "serve the files of a folder, not the bundled pages",
      KIND_TEXT, 'r', PLACE(root), 0, 0 },
    { "history", "N", "events kept (1000)", KIND_COUNT, 'n', PLACE(history), 1,
      1 << 28 },
    { "history-bytes", "SIZE", "bytes kept (64M)", KIND_SIZE, 0,
      PLACE(history_bytes), 1, UINT64_C(1) << 40 },
    { "first-id", "N", "id of the first event (the clock in microseconds)",
      KIND_COUNT, 0, PLACE(first_id), 1, ID_MAX },
    { "interval", "MS", "a clock message every so often; 0: none (1000)",
      KIND_MS, 'i', PLACE(interval), 0, YEAR_S * 1000 },
    { "heartbeat", "SEC", "after so much silence; 0: never (15)", KIND_SECONDS,
      0, PLACE(heartbeat), 0, 86400 },
    { "retry", "MS", "how long a client waits to reconnect (3000)", KIND_MS, 0,
      PLACE(retry), 0, UINT64_C(86400) * 1000 },
    { "cors", "ORIGIN",
      "the one origin whose pages may read and publish "
      "(all may read)",
      KIND_TEXT, 0, PLACE(cors), 0, 0 },
    { "token-file", "FILE", "who sends the token in this file may publish",
      KIND_TEXT, 't', PLACE(token_file), 0, 0 },
    { "publish", "WHO",
      "who may publish without a token: local, unix, none "
      "(local)",
      KIND_PUBLISH, 0, 0, 0, 0 },
    { "max-event", "SIZE", "of an event's data (64K)", KIND_SIZE, 0,
      PLACE(max_event), 1, 16 << 20 },
    { "max-connections", "N", "at most (what the limit on descriptors allows)",
      KIND_COUNT, 'c', PLACE(max_connections), 1, 1 << 28 },
    { "head-timeout", "SEC", "for a request head to be complete (10)",
      KIND_SECONDS, 0, PLACE(head_timeout), 1, 86400 },
    { "idle-timeout", "SEC", "between two requests (60)", KIND_SECONDS, 0,
      PLACE(idle_timeout), 1, 86400 },
    { "drain", "SEC", "to send off subscribers at the end (5)", KIND_SECONDS, 0,
      PLACE(drain), 0, 86400 },
    { "drain-spread", "MS", "over which they come back (3000)", KIND_MS, 0,
      PLACE(drain_spread), 0, UINT64_C(86400) * 1000 },
    { "drain-delay", "SEC", "/healthz says 503 so long before (0)",
      KIND_SECONDS, 0, PLACE(drain_delay), 0, 86400 },
    { "log-level", "LEVEL", "error, warn, info, debug (info)", KIND_LEVEL, 0, 0,
      0, 0 },
    { "access-log", NULL, "log every request", KIND_ACCESS_LOG, 0, 0, 0, 0 },
    { "help", NULL, "this text", KIND_HELP, 'h', 0, 0, 0 },
    { "version", NULL, "the version", KIND_VERSION, 'V', 0, 0, 0 },
};

enum {
    SPECS = sizeof(specs) / sizeof(specs[0])
};

static void print_help(void)
{
    printf("usage: ssed [OPTION]...\n"
           "Broadcasts Server-Sent Events. Publish with POST /events, "
           "subscribe with GET /events.\n\n");
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

/* The index of `text` among the names, which end in NULL. */
static int parse_name(const struct spec *spec, const char *text,
                      const char *const names[])
{
    for (int i = 0; names[i]; i++)
        if (strcmp(names[i], text) == 0)
            return i;
    die(EXIT_USAGE, "--%s: '%s' is none of: %s", spec->name, text,
        strchr(spec->argument, 'L') ? "error, warn, info, debug"
                                    : "local, unix, none");
}

static void add_listen(struct options *options, const char *address)
{
    if (options->listen_count == LISTENERS_MAX)
        die(EXIT_USAGE, "--listen: at most %d of them", LISTENERS_MAX);
    options->listen[options->listen_count++] = address;
}

static void take_option(struct options *options, const struct spec *spec,
                        char *value)
{
    static const char *const publishers[] = { "local", "unix", "none", NULL };
    static const char *const levels[] = { "error", "warn", "info", "debug",
                                          NULL };
    char *place = (char *)options + spec->place;

    switch (spec->kind) {
    case KIND_COUNT:
    case KIND_MS:
    case KIND_SECONDS:
    case KIND_SIZE:
        *(uint64_t *)(void *)place = parse_amount(spec, value);
        break;
    case KIND_TEXT:
        *(const char **)(void *)place = value;
        break;
    case KIND_PORT:
        parse_amount(spec, value);
        add_listen(options, value);
        break;
    case KIND_LISTEN:
        add_listen(options, value);
        break;
    case KIND_PUBLISH:
        options->publish = (enum publish)parse_name(spec, value, publishers);
        options->publish_given = true;
        break;
    case KIND_LEVEL:
        options->log_level = (enum level)parse_name(spec, value, levels);
        break;
    case KIND_ACCESS_LOG:
        options->access_log = true;
        break;
    case KIND_HELP:
        print_help();
        exit(0);
    case KIND_VERSION:
        printf("ssed %s\n", VERSION);
        exit(0);
    }
}

/* An Origin as a browser sends it, so that it can be compared. */
static void check_cors(const char *cors)
{
    struct slice origin = { cors, strlen(cors) };
    size_t scheme = strncmp(cors, "https://", 8) == 0  ? 8
                    : strncmp(cors, "http://", 7) == 0 ? 7
                                                       : 0;

    if (slice_is(origin, "*"))
        return;
    if (!scheme || origin.length == scheme || origin.length > CORS_MAX ||
        strcspn(cors + scheme, "/ \t\r\n\"") != origin.length - scheme)
        die(EXIT_USAGE,
            "--cors: '%s' is not an origin such as https://example.com", cors);
}

static void check_options(struct options *options)
{
    uint64_t frame = options->max_event * FRAME_FACTOR + FRAME_REST;

    if (options->listen_count == 0)
        add_listen(options, "127.0.0.1:3000");
    if (options->cors)
        check_cors(options->cors);
    if (options->token_file && options->publish_given)
        die(EXIT_USAGE, "--publish and --token-file exclude each other: with "
                        "a token, whoever sends it may publish");
    if (options->token_file)
        options->publish = PUBLISH_TOKEN;
    if (options->history_bytes < frame)
        die(EXIT_USAGE,
            "--history-bytes: %llu cannot hold one event of --max-event, "
            "which may need %llu",
            (unsigned long long)options->history_bytes,
            (unsigned long long)frame);
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
    if (optind < argc)
        die(EXIT_USAGE, "'%s' is not an option: see ssed --help", argv[optind]);
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

static void init_history(struct server *server)
{
    const struct options *options = &server->options;
    uint64_t first = options->first_id;
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (!first)
        first = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
    if (ring_init(&server->ring, options->history,
                  (size_t)options->history_bytes, first - 1,
                  SLICE(CATCH_UP_SPLICE)) < 0)
        die(EXIT_RUN_TIME,
            "no memory for a history of %llu bytes: "
            "--history-bytes, --history",
            (unsigned long long)options->history_bytes);
    topic_init(&server->main_topic, &server->ring);
    server->frame_size =
        (uint32_t)(options->max_event * FRAME_FACTOR + FRAME_REST);
    server->frame = malloc(server->frame_size);
    if (!server->frame)
        die(EXIT_RUN_TIME, "no memory for an event: --max-event");
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

/* A socket file that a server left behind is removed; one on which somebody
 * listens is not. */
static void remove_stale_socket(const struct sockaddr_un *address)
{
    struct stat status;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (stat(address->sun_path, &status) == 0 && S_ISSOCK(status.st_mode) &&
        connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 &&
        errno == ECONNREFUSED)
        unlink(address->sun_path);
    close(fd);
}

static void listen_on(struct server *server, const char *name,
                      const struct sockaddr *address, socklen_t length)
{
    struct epoll_event event = { .events = EPOLLIN };
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
    event.data.u32 = (uint32_t)fd;
    if (bind(fd, address, length) < 0 || listen(fd, SOMAXCONN) < 0 ||
        epoll_ctl(server->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        die(EXIT_RUN_TIME, "--listen: cannot listen on '%s': %s%s", name,
            strerror(errno),
            errno == EADDRINUSE ? "; choose another with --port or --listen"
                                : "");
    conn_at(server, (uint32_t)fd)->interest = EPOLLIN;
    conn_set_state(server, conn_at(server, (uint32_t)fd), CONN_LISTENER);
    server->listeners[server->listener_count++] = (struct listener){ .fd = fd };
}

static void listen_unix(struct server *server, const char *name)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    const char *path = name + strlen("unix:");
    struct listener *listener = &server->listeners[server->listener_count];

    if (!*path || strlen(path) >= sizeof(address.sun_path))
        die(EXIT_USAGE, "--listen: '%s' needs a path of 1 to %zu bytes", name,
            sizeof(address.sun_path) - 1);
    memcpy(address.sun_path, path, strlen(path));
    remove_stale_socket(&address);
    listen_on(server, name, (struct sockaddr *)&address, sizeof(address));
    listener->unix_path = path;
    snprintf(listener->address, sizeof(listener->address), "%s", name);
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
    return slice_number((struct slice){ *port, strlen(*port) }, 65535, &number);
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

static void init_listeners(struct server *server)
{
    const struct options *options = &server->options;

    for (unsigned i = 0; i < options->listen_count; i++) {
        if (strncmp(options->listen[i], "unix:", 5) == 0)
            listen_unix(server, options->listen[i]);
        else
            listen_tcp(server, options->listen[i]);
    }
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
    for (unsigned i = 0; i < server->listener_count; i++)
        log_event(LEVEL_INFO, "listening", "address=%s",
                  server->listeners[i].address);
    log_event(LEVEL_INFO, "ready", "first_id=%llu",
              (unsigned long long)server->ring.newest_id + 1);
    for (unsigned i = 0; isatty(STDOUT_FILENO) && i < server->listener_count;
         i++)
        printf("ssed serves %s%s/ and the stream at /events; Ctrl-C ends it\n",
               server->listeners[i].unix_path ? "" : "http://",
               server->listeners[i].address);
    fflush(stdout);
}

static void release(struct server *server)
{
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
        free(exchange);
    }
    free(server->main_topic.subscribers);
    free(server->frame);
    free(server->conns);
    ring_release(&server->ring);
}

int main(int argc, char **argv)
{
    static struct server server = {
        .options = {
            .history = 1000,
            .history_bytes = 64 << 20,
            .interval = 1000,
            .heartbeat = 15000,
            .retry = 3000,
            .max_event = 64 << 10,
            .head_timeout = 10000,
            .idle_timeout = 60000,
            .drain = 5000,
            .drain_spread = 3000,
            .log_level = LEVEL_INFO,
        },
    };
    const char *token_file;
    uint64_t newest_id;

    parse_options(&server.options, argc, argv);
    logger.level = server.options.log_level;
    token_file = server.options.token_file;
    if (token_file &&
        !read_token(token_file, server.token, &server.token_length))
        die(EXIT_RUN_TIME, "--token-file: no token in '%s': %s", token_file,
            strerror(errno));
    init_connections(&server);
    init_history(&server);
    init_pages(&server);
    init_events(&server);
    init_listeners(&server);
    announce(&server);
    while (server.phase != PHASE_STOP)
        turn(&server);
    newest_id = server.ring.newest_id;
    release(&server);
    log_event(LEVEL_INFO, "stopped", "newest_id=%llu",
              (unsigned long long)newest_id);
    return 0;
}
