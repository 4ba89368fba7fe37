/*
 * sse.c: what the server does. It owns struct server: the options, the phase
 * (serving, draining), the times when something is due, and the loop. Events
 * and their history are ring.c's, connections and HTTP are http.c's; this file
 * brings the two together.
 *
 * Invariants:
 *
 * - There is one thread and one loop. run_turn() is one turn of it: take what
 *   has arrived, append what is published, send the answers, deliver. Each of
 *   these stops when its time or its quantum is used up and goes on in the next
 *   turn, so no client can keep the others waiting.
 * - Only append_event() appends to the ring: for publish_event(), or with
 *   --redis for handle_entry(), which has read the event from the log. It
 *   refuses (MUST_WAIT) rather than evict a frame that a subscriber with room
 *   in its socket has not been offered yet.
 * - Only stream_send() sends to a subscriber, whatever the reason: a new event,
 *   a replay, room in a full socket, a heartbeat, the farewell.
 * - http.c calls up only through the table `handlers`. A call that answers,
 *   sends or closes may end the connection: it is CONN_CLOSED until the end of
 *   the turn, and its publication or subscriber is gone.
 *
 * The sections follow the path of what they do, from the request on. A
 * subscription: handle_request() in "routes"; subscribe(), subscribe_to(),
 * stream_begin() in "subscribing"; stream_send() and deliver() in "delivery". A
 * publish: handle_request(); publish(), begin_publication() in "requests to
 * publish"; handle_body(), publication_step() in "steps"; take_content(),
 * parse_piece() in "content"; publish_event() in "publishing"; deliver().
 * With --redis the event goes to the log first, and comes back in "the shared
 * log". Answers are in "publications", the end of either in "other handlers".
 * Within a section what is called stands above its caller; what is called in a
 * section further down is declared before.
 *
 * Order: types; log; counting; routes; rights; subscribing; publications;
 * requests to publish; steps; content; publishing; delivery; the history file;
 * the shared log; figures; figures as text; lag; the status stream; the admin
 * listener; other handlers; the service manager; phases and signals; the loop;
 * options; --print; their checks; least privilege; the start; --check; --sign;
 * main.
 */
#include "sse.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <inttypes.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION "unknown"
#endif
#ifndef DATE /* of what it was built from, for the manual */
#define DATE "1970-01-01"
#endif

/* Sizes that a build for tests may set otherwise, with -D. */
#ifndef QUANTUM_SENDS
#define QUANTUM_SENDS 64 /* sends of a quantum of delivery */
#endif
#ifndef QUANTUM_BYTES
#define QUANTUM_BYTES (2 << 20)
#endif
#ifndef EVENTS_MAX
#define EVENTS_MAX 256 /* of one epoll_wait */
#endif
#ifndef CONTENT_FIRST
#define CONTENT_FIRST 1024 /* first allocation for content, bytes */
#endif

enum {
    EXIT_RUN_TIME = 1,
    EXIT_USAGE = 2,
    HOSTS_MAX = 16,
    PUBLICS_MAX = 64,
    LISTEN_FDS_START = 3, /* sd_listen_fds(3) */
    CORS_MAX = 256,
    TIMESTAMP_SIZE = 25,
    REQUESTED_MAX = 256, /* bytes of an unusable id that a gap shows */
    OWN_MAX = RESPONSE_HEAD_MAX + 6 * REQUESTED_MAX +
              READER_TOPICS_MAX * (TOPIC_NAME_MAX + 3) + 1024,
    PIECE_COST = 32,         /* bytes that gathering one iovec counts as */
    TURN_RETRY = 250,        /* us of a turn for publishers that waited */
    INTERVAL_DEFAULT = 1000, /* ms */
    SYNC_DEFAULT = 1000,     /* ms */
    FAILURES_DEFAULT = 100,  /* a minute */
    LOG_BURST = 200,         /* lines that clients can cause at once */
    LOG_RATE = 100,          /* and then in a second */
    LOG_REPORT = 1000,       /* ms between two lines about lines left out */
    NOTICE_PAUSE = 10000,    /* ms between two lines of a notice */
    LOG_PATIENCE = 5000,     /* ms for a subscriber to wait for the log */
    SCAN_STEPS = 1024,       /* of a slice: connections, and their places */
    EXPIRY_LOOK = 60000,     /* ms until the clock is looked at again */
    EXPIRY_PATIENCE = 5000,  /* ms for a stream to end when it has expired */
    RETRY_LATER = 2000,      /* ms at least, if a subscriber has no room */
    RETRY_SPREAD = 8000,
    STATUS_STREAMS_MAX = 16,
    STATUS_PERIOD = 1000,    /* ms from one event to the next */
    STATUS_PATIENCE = 10000, /* ms for a stream to take some of one */
    RANKS = 10,
};

/* The greatest id that a publisher may give. An id near ID_MAX would leave no
 * ids for later events, and so end publishing for good. */
#define ID_KEPT_MAX (ID_MAX + 1 - (UINT64_C(1) << 32))
#define ID_KEPT_RANGE                                                      \
    "a number from 1 to 9007194959773696, which leaves room for those to " \
    "come"

#define BLANKS " \t\r\n"
#define YEAR_S (UINT64_C(366) * 86400)
#define LIFETIME_MAX (100 * YEAR_S) /* s, of a token */
#define UNGIVEN UINT32_MAX          /* an option that was not given */
#define SYNC_ALWAYS UINT64_C(0)
#define SYNC_NEVER (UINT64_MAX - 1)

/* The ring's splice text: put in after "type":", it makes a catch_up_message
 * of a stored message. */
#define CATCH_UP_SPLICE "catch_up_message\",\"originalType\":\""
#define LAST_CHUNK "0\r\n\r\n"
#define NOT_ON_DISK_TEXT "the history file cannot be written: see the log"
#define NO_MEMORY_TEXT "no memory for requests now: --request-memory"
#define NO_TOPIC_TEXT "too many topics without an event: --max-topics"
#define DRAINING_TEXT "draining: about to end"
#define LOG_AWAY_TEXT "the log cannot be reached now: see /healthz"

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
    PUBLISH_TOKEN,
    PUBLISH_SIGNED, /* a token that covers the topic: --secret-file */
};

enum sandbox {
    SANDBOX_ON,
    SANDBOX_LOG,
    SANDBOX_OFF
};

/* Times are in ms. What only http.c needs is parsed into struct http. */
struct options {
    const char *listen[LISTENERS_MAX], *hosts[HOSTS_MAX];
    const char *publics[PUBLICS_MAX]; /* patterns of what all may read */
    unsigned listen_count, host_count, public_count;
    const char *root, *token_file, *secret_file, *history_file;
    const char *sign;   /* what a token is to allow, instead of serving */
    const char *topic;  /* of standard input; "": the main stream */
    const char *user;   /* to become when the listeners are there; or NULL */
    const char *check;  /* a history file to look at, instead of serving */
    const char *cors;   /* whose pages may read: "*", an origin; NULL: none */
    const char *origin; /* the origin in `cors`, whose pages may publish too */
    uint64_t history, history_bytes, max_event, max_topics;
    uint64_t first_id; /* 0: the clock */
    uint64_t interval, heartbeat, retry, pace;
    uint64_t drain, drain_spread, drain_delay;
    uint64_t sync;         /* or SYNC_ALWAYS, SYNC_NEVER, UNGIVEN */
    uint64_t publish;      /* enum publish or UNGIVEN */
    uint64_t log_level;    /* enum level */
    uint64_t sandbox;      /* enum sandbox */
    uint64_t stdin_events; /* --stdin events: not lines; or UNGIVEN */
    uint64_t kept_ids;     /* --ids keep: publishers give the ids of events */
    bool end;              /* finish the topic at the end of standard input */
    bool access_log, reads_input; /* "-": publish standard input */
};

enum phase {
    PHASE_SERVE,
    PHASE_ANNOUNCE, /* about to drain: only /healthz tells */
    PHASE_DRAIN,    /* listeners closed; subscribers are sent off */
    PHASE_STOP,
};

/* What clients can cause without end, and is told once in a while. */
struct notice {
    uint64_t count; /* how often, since it was told */
    uint64_t again; /* ms: not before */
};

/* Values by size. counts[i] are those of at most the figure's bounds[i] that
 * are not in a count before; the last one is all others. */
enum {
    BOUNDS_MAX = 16
};
struct histogram {
    uint64_t counts[BOUNDS_MAX + 1], sum;
};

/* Why a subscriber was told of a gap. */
enum gap {
    GAP_EVICTED, /* what comes after its id may be gone */
    GAP_AHEAD,   /* its id is greater than the newest: of another history */
    GAP_INVALID, /* it is no id */
    GAPS,
};

/* How publishes are answered; other statuses are counted as the last one. */
/* clang-format off */
#define STATUSES(STATUS)                                          \
    STATUS(201) STATUS(200) STATUS(400) STATUS(401) STATUS(403)   \
    STATUS(404) STATUS(408) STATUS(409) STATUS(413) STATUS(417)   \
    STATUS(429) STATUS(500) STATUS(503)
/* clang-format on */
#define STATUS_NUMBER(status) status,
static const int statuses[] = { STATUSES(STATUS_NUMBER) 0 };

/* Why a subscription ended, as the log says it; others are the last one. */
static const char *const end_names[] = { "closed",  "overrun", "finished",
                                         "drained", "expired", "gap",
                                         "stopped", "error",   NULL };

/* What has been counted since the start: see "figures". */
struct figures {
    uint64_t events_sent, bytes_sent; /* to subscribers */
    uint64_t events, bytes;           /* published: of frames */
    uint64_t subscriptions, replays, events_replayed;
    uint64_t gaps[GAPS];
    uint64_t ends[COUNT(end_names) - 1];
    uint64_t publishes[COUNT(statuses)];
    uint64_t input_skipped;
    uint64_t flights_refused, flights_unknown, entries_skipped;
    struct histogram turns, syncs; /* us */
};

/* How far subscribers are behind: found by looking at all of them, a slice in a
 * turn. */
enum {
    BEHIND_MAX = 6
};
struct lag {
    uint64_t events, ms; /* the greatest */
    /* how many are further behind than each of the bounds */
    uint64_t behind_events[BEHIND_MAX], behind_ms[BEHIND_MAX];
};
struct scan {
    bool running;
    uint32_t at;          /* the descriptor to look at next */
    uint64_t rounds;      /* that are over */
    struct lag now, last; /* of this round, and of the one before */
};

/* A topic among the first of a ranking. */
struct rank {
    uint64_t lag; /* events that the slowest of its subscribers is behind */
    uint32_t subscribers;
    uint8_t length;
    char name[TOPIC_NAME_MAX];
};

struct ranking {
    bool by_lag; /* else by subscribers */
    unsigned count;
    struct rank ranks[RANKS]; /* the first one is first */
};

/* The streams of /status, and what is found for their next event. */
struct status {
    uint32_t streams[STATUS_STREAMS_MAX]; /* descriptors */
    unsigned count;
    uint64_t next; /* ms; NEVER if there is no stream */
    bool wanted;   /* an event is due when the scan has ended */
    struct ranking most_subscribers, most_lag;
};

struct server {
    struct http http;
    struct ring ring;
    struct options options;
    struct topic *main_topic; /* held */
    char *frame;              /* owned: where a frame is made */
    uint32_t frame_size;      /* bytes of it */
    int signals;              /* signalfd(2) */
    enum phase phase;
    uint64_t phase_end;     /* ms, when the phase ends by itself; or NEVER */
    uint64_t next_clock;    /* ms; or NEVER */
    uint64_t next_sync;     /* ms, if something is to be synced; or NEVER */
    uint64_t watchdog;      /* ms between two messages to the watchdog */
    uint64_t next_watchdog; /* ms; or NEVER */
    bool sync_failed;       /* what is on disk can no longer be relied on */
    bool file_deleted;      /* it has been logged */
    bool on_terminal;       /* standard output is one */
    /* the oldest frame that a subscriber in QUEUE_READY may need, and the
     * same for those queued since this round of the queue began; 0: none */
    uint64_t ready_from, ready_from_next;
    uint32_t ready_round; /* how many of the round are left */
    /* with --redis */
    bool loaded;        /* the log has been read to its end once */
    bool is_log_ready;  /* as was logged last */
    bool mends;         /* an end of finish_broken() is on its way to the log */
    uint32_t log_wakes; /* how many of QUEUE_LOG are to be tried again */
    char log_reason[256];            /* why it is away, as was logged last */
    char away_since[TIMESTAMP_SIZE]; /* UTC */
    unsigned quantum_sends;
    size_t quantum_bytes;
    struct notice address_full, topics_full;
    struct figures figures;
    struct scan scan;
    struct status status;
    uint64_t started; /* ms since 1970 */
    int statm;        /* /proc/self/statm, with --admin */
};

#define PLACE(member) offsetof(struct server, member)

/* ----------------------------------------------------------------- log
 *
 * Lines of key=value on standard error. log_event() writes one. What clients
 * cause is limited to LOG_RATE lines a second, so that they cannot fill a disk:
 * may_log() is asked first. log_report() says how many lines were
 * left out. No byte from a client ends a line or a value: log_quote().
 */

static struct {
    enum level level;
    double tokens;       /* lines that clients may cause now */
    uint64_t refilled;   /* ms */
    uint64_t suppressed; /* lines left out since the last report */
    uint64_t left_out;   /* and before */
    uint64_t reported;   /* ms */
} logger = { .level = LEVEL_INFO, .tokens = LOG_BURST };
static const char *const level_names[] = { "error", "warn", "info", "debug",
                                           NULL };

/* A time in ms as UTC, into the buffer, which is returned. */
static const char *format_time(char text[TIMESTAMP_SIZE], uint64_t ms)
{
    time_t seconds = (time_t)(ms / 1000);
    struct tm tm;
    size_t length;

    gmtime_r(&seconds, &tm);
    length = strftime(text, TIMESTAMP_SIZE, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(text + length, TIMESTAMP_SIZE - length, ".%03uZ",
             (unsigned)(ms % 1000));
    return text;
}

static const char *format_now(char text[TIMESTAMP_SIZE])
{
    return format_time(text, clock_ms(CLOCK_REALTIME));
}

/* As strerrorname_np(3), which musl does not have. */
#define NAMED(error) [error] = #error
static const char *error_name(int error)
{
    static const char *const names[] = {
        NAMED(EACCES),      NAMED(EAGAIN),       NAMED(ECONNREFUSED),
        NAMED(ECONNRESET),  NAMED(EHOSTUNREACH), NAMED(EIO),
        NAMED(EINVAL),      NAMED(EISDIR),       NAMED(EMFILE),
        NAMED(ENETUNREACH), NAMED(ENFILE),       NAMED(ENOBUFS),
        NAMED(ENOENT),      NAMED(ENOMEM),       NAMED(ENOSPC),
        NAMED(ENOSYS),      NAMED(EOPNOTSUPP),   NAMED(EPERM),
        NAMED(EPIPE),       NAMED(ETIMEDOUT),
    };
    size_t i = (size_t)error;

    return i < COUNT(names) && names[i] ? names[i] : "other";
}

/*
 * A line must not block the loop: if the reader of stderr is stuck, the line is
 * dropped. POLLOUT on a pipe promises room for PIPE_BUF bytes (pipe(7)), and no
 * line is longer. Called by a signal handler too.
 */
static bool log_write(const char *line, size_t length)
{
    struct pollfd stderr_room = { .fd = STDERR_FILENO, .events = POLLOUT };

    if (poll(&stderr_room, 1, 0) != 1 || !(stderr_room.revents & POLLOUT))
        return false;
    return write(STDERR_FILENO, line, length) == (ssize_t)length;
}

__attribute__((format(printf, 3, 4))) static void
log_event(enum level level, const char *event, const char *format, ...)
{
    char line[PIPE_BUF], timestamp[TIMESTAMP_SIZE];
    size_t room = sizeof(line) - 1, length;
    va_list arguments;

    if (level > logger.level)
        return;
    length = (size_t)snprintf(line, room, "time=%s level=%s event=%s ",
                              format_now(timestamp), level_names[level], event);
    va_start(arguments, format);
    length +=
        (size_t)vsnprintf(line + length, room - length, format, arguments);
    va_end(arguments);
    if (length > room - 1)
        length = room - 1;
    while (line[length - 1] == ' ')
        length--;
    line[length++] = '\n';
    if (!log_write(line, length))
        logger.suppressed++;
}

/* Whether a client may cause a line now, which is then counted. */
static bool may_log(const struct server *server, enum level level)
{
    uint64_t now = server->http.now;

    if (level > logger.level)
        return false;
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

/* Counts what has happened; returns how often it has, since it was told last,
 * if it is to be told now, else 0. */
static uint64_t take_notice(const struct server *server, struct notice *notice)
{
    uint64_t count = ++notice->count;

    if (server->http.now < notice->again)
        return 0;
    notice->count = 0;
    notice->again = server->http.now + NOTICE_PAUSE;
    return count;
}

static void log_report(uint64_t now)
{
    uint64_t suppressed = logger.suppressed;

    if (!suppressed || now < logger.reported + LOG_REPORT)
        return;
    logger.suppressed = 0;
    logger.left_out += suppressed;
    logger.reported = now;
    log_event(LEVEL_WARN, "log_suppressed", "lines=%" PRIu64, suppressed);
}

/* A value for a log line: unchanged if it is plain, else in quotes with C's
 * escapes, and cut to fit `size`. */
static const char *log_quote(char *buffer, size_t size, struct slice value)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyz0123456789-._:/@"
                                "ABCDEFGHIJKLMNOPQRSTUVWXYZ+%~,*?&";
    size_t out = 0, in = 0;

    while (in < value.length && value.data[in] && strchr(plain, value.data[in]))
        in++;
    if (in == value.length && in > 0 && in < size) {
        snprintf(buffer, size, "%.*s", (int)in, value.data);
        return buffer;
    }
    buffer[out++] = '"';
    for (in = 0; in < value.length && out + 6 < size; in++) {
        unsigned char c = (unsigned char)value.data[in];

        if (c < ' ' || c >= 0x7F) {
            out += (size_t)snprintf(buffer + out, size - out, "\\x%02x", c);
            continue;
        }
        if (c == '"' || c == '\\')
            buffer[out++] = '\\';
        buffer[out++] = (char)c;
    }
    buffer[out++] = '"';
    buffer[out] = '\0';
    return buffer;
}

static void log_access(const struct server *server, const struct conn *conn,
                       int status, uint64_t length)
{
    static const char *const methods[] = {
        [METHOD_OTHER] = "-",         [METHOD_DELETE] = "DELETE",
        [METHOD_GET] = "GET",         [METHOD_HEAD] = "HEAD",
        [METHOD_OPTIONS] = "OPTIONS", [METHOD_POST] = "POST",
    };
    const struct request *request = &conn->exchange->request;
    const struct topic *topic = conn->exchange->publication.topic;
    char peer[PEER_SIZE], path[512];

    if (!server->options.access_log || !may_log(server, LEVEL_INFO))
        return;
    /* a body overwrites the request's slices: of a publish, only the topic is
     * safe here */
    if (topic)
        snprintf(path, sizeof(path), "/events%s%.*s",
                 topic->name.length ? "/" : "", (int)topic->name.length,
                 topic->name.data);
    else
        log_quote(path, sizeof(path), request->path);
    log_event(LEVEL_INFO, "request",
              "peer=%s method=%s path=%s status=%d bytes=%" PRIu64,
              conn_peer(peer, conn), methods[request->method], path, status,
              length);
}

/* For the start alone: once the server runs, it logs and goes on. */
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

/* ---------------------------------------------------------------- counting
 *
 * How what is counted is put into classes; what it is for says "figures".
 */

static const uint64_t turn_bounds[] = { 100,    250,     500,   1000,  2500,
                                        5000,   10000,   25000, 50000, 100000,
                                        250000, 1000000, 0 };
static const uint64_t sync_bounds[] = { 100,     500,     1000,   5000,
                                        10000,   50000,   100000, 500000,
                                        1000000, 5000000, 0 };
static const uint64_t event_bounds[] = { 1, 10, 100, 1000, 10000, 0 };
static const uint64_t time_bounds[] = { 100, 1000, 5000, 15000, 60000, 0 };
_Static_assert(COUNT(turn_bounds) <= BOUNDS_MAX + 1 &&
                   COUNT(sync_bounds) <= BOUNDS_MAX + 1 &&
                   COUNT(event_bounds) <= BEHIND_MAX + 1 &&
                   COUNT(time_bounds) <= BEHIND_MAX + 1,
               "there is room for them");

static void histogram_add(struct histogram *histogram, const uint64_t *bounds,
                          uint64_t value)
{
    unsigned i = 0;

    while (bounds[i] && value > bounds[i])
        i++;
    histogram->counts[i]++;
    histogram->sum += value;
}

/* ------------------------------------------------------------------ routes
 *
 * handle_request(), which http.c calls when a head has been parsed, decides by
 * path and method what a request is for. From here on the sections follow the
 * path of a request, so these four are called above their sections.
 */

static void subscribe(struct server *server, struct conn *conn,
                      struct slice topic);
static void publish(struct server *server, struct conn *conn,
                    struct slice topic);

/* What has become of an event. */
enum outcome {
    PUBLISHED,
    MUST_WAIT, /* it would evict what has not been offered to all */
    STALE,     /* the id is not greater than the newest */
    IDS_USED_UP,
    NOT_ON_DISK, /* --sync always, and the disk has failed */
    ON_ITS_WAY,  /* to the log: handle_flight_ended() */
    LOG_AWAY,
};

static enum outcome publish_event(struct server *server, struct topic *topic,
                                  const struct event *event,
                                  struct publication *publication);
static void stream_send(struct server *server, struct conn *conn,
                        struct slice own);
static void route_admin(struct server *server, struct conn *conn);

/*
 * With --cors none no page of another origin reads here, and never by the
 * listener of --admin. A page whose own name is made to resolve to this machine
 * ("DNS rebinding") would count as of this origin, so a loopback listener
 * serves no Host that it does not know.
 */
static bool is_misdirected(const struct server *server, const struct conn *conn)
{
    struct slice host = conn->exchange->request.host;

    if ((server->options.cors && !(conn->flags & FLAG_ADMIN)) ||
        !(conn->flags & FLAG_LOOPBACK) || !host.data ||
        http_host_is_local(host))
        return false;
    for (unsigned i = 0; i < server->options.host_count; i++)
        if (http_host_is(host, server->options.hosts[i]))
            return false;
    return true;
}

/* Whether the history is that of several nodes: --redis. */
static bool is_shared(const struct server *server)
{
    return server->http.redis.address;
}

static bool is_log_away(const struct server *server)
{
    return is_shared(server) && server->http.redis.state != REDIS_READY;
}

/* Once a node has been ready it stays in the balancer while the log is away:
 * else all nodes went out at once, and every stream with them. */
static void respond_health(struct server *server, struct conn *conn)
{
    enum method method = conn->exchange->request.method;
    const char *reason = server->http.redis.reason;
    char text[400] = "ok";

    if (is_log_away(server) && server->loaded)
        snprintf(text, sizeof(text), "ok, log away since %s: %s",
                 server->away_since, reason);
    else if (is_shared(server) && !server->loaded)
        snprintf(text, sizeof(text), "the log has not been read yet%s%s",
                 *reason ? ": " : "", reason);
    if (method != METHOD_GET && method != METHOD_HEAD)
        respond_method(&server->http, conn, "GET, HEAD, OPTIONS");
    else if (server->phase != PHASE_SERVE)
        respond_error(&server->http, conn, 503, DRAINING_TEXT);
    else if (is_shared(server) && !server->loaded)
        respond_error(&server->http, conn, 503, text);
    else
        respond_text(&server->http, conn, (struct response){ .status = 200 },
                     text);
}

/* The answer to a surplus connection: RFC 6585, section 4, if the client itself
 * is why. */
static void respond_surplus(struct server *server, struct conn *conn)
{
    if (conn->flags & FLAG_CROWDED)
        respond_error(&server->http, conn, 429,
                      "too many connections from this address: "
                      "--max-per-address");
    else
        respond_error(&server->http, conn, 503,
                      "too many connections: --max-connections");
}

/* `topic` is the one in the path; empty for the main stream. */
static void route_events(struct server *server, struct conn *conn,
                         struct slice topic)
{
    enum method method = conn->exchange->request.method;
    const char *allow = topic.length ? "DELETE, GET, HEAD, OPTIONS, POST"
                                     : "GET, HEAD, OPTIONS, POST";
    struct response preflight = { .status = 204,
                                  .preflight = server->options.cors,
                                  .allow = allow,
                                  .cors = server->options.cors };

    if (method == METHOD_GET || method == METHOD_HEAD)
        subscribe(server, conn, topic);
    else if (method == METHOD_POST || (method == METHOD_DELETE && topic.length))
        publish(server, conn, topic);
    else if (method == METHOD_OPTIONS)
        respond(&server->http, conn, &preflight, SLICE(""));
    else
        respond_method(&server->http, conn, allow);
}

static void handle_request(struct server *server, struct conn *conn)
{
    struct slice path = conn->exchange->request.path;
    bool has_topic = path.length >= 8 && memcmp(path.data, "/events/", 8) == 0;
    struct slice topic = has_topic ? slice_from(path, 8) : SLICE("");
    const char *refused = has_topic ? topic_name_refused(topic) : NULL;

    /* there are few places for such connections, whatever they ask */
    if (conn->flags & FLAG_SURPLUS)
        conn->exchange->request.close = true;
    if (is_misdirected(server, conn))
        respond_error(
            &server->http, conn, 421,
            conn->flags & FLAG_ADMIN
                ? "this Host is not known here: --admin takes "
                  "localhost or an IP address"
                : "this Host is not known here: --host names another");
    else if (conn->flags & FLAG_ADMIN)
        route_admin(server, conn);
    else if (refused)
        respond_error(&server->http, conn, 400, refused);
    else if (has_topic || slice_is(path, "/events"))
        route_events(server, conn, topic);
    else if (slice_is(path, "/healthz"))
        respond_health(server, conn);
    else if (conn->flags & FLAG_SURPLUS)
        respond_surplus(server, conn);
    else if (slice_is(path, "*"))
        respond_method(&server->http, conn, "DELETE, GET, HEAD, OPTIONS, POST");
    else
        respond_page(&server->http, conn);
}

/* ------------------------------------------------------------------ rights
 *
 * With --secret-file, who reads or publishes bears a signed token whose
 * patterns cover the topics; but what --public names may be read by all. The
 * token itself is not kept: of a stream that needed one, conn->expires is.
 *
 * The right ends when the token is no longer accepted, which it is through the
 * second exp + TOKEN_LEEWAY. The wall clock says when that is; a timer only
 * says when to look at it, at least every EXPIRY_LOOK, for the clock may be
 * set.
 *
 * Callers: subscribe(), publish(); handle_expired() and stream_begin().
 */

static bool is_public(const struct server *server, struct slice topic)
{
    for (unsigned i = 0; i < server->options.public_count; i++) {
        const char *pattern = server->options.publics[i];

        if (patterns_cover((struct slice){ pattern, strlen(pattern) + 1 },
                           topic))
            return true;
    }
    return false;
}

/* Whether a request may do without a token. */
static bool needs_no_token(const struct server *server,
                           const struct slice *topics, unsigned count,
                           bool writes)
{
    if (!server->options.secret_file)
        return true;
    for (unsigned i = 0; i < count; i++)
        if (writes || !is_public(server, topics[i]))
            return false;
    return true;
}

/* Looks at a request's token. Returns why the request is refused, with the
 * status in *response, or NULL. */
static const char *token_refused(struct server *server, const struct conn *conn,
                                 struct rights *rights,
                                 struct response *response)
{
    struct http *http = &server->http;
    char buffer[SIGNED_TOKEN_MAX + 1];
    const char *refused;
    struct slice token;

    response->status = 401;
    if (!http_find_token(&conn->exchange->request, buffer, &token))
        return "this takes a token: Authorization: Bearer, the cookie "
               "ssed_token, or token= in the query";
    response->retry_after = http_failure_wait(http, conn);
    if (response->retry_after) {
        http->limits_hit[LIMIT_FAILURES]++;
        response->status = 429;
        return "too many wrong tokens from this address: --max-failures";
    }
    refused = http_verify_token(http, token, (uint64_t)server->ring.time / 1000,
                                rights);
    if (refused)
        http_count_failure(http, conn);
    return refused;
}

/* Whether a request may read topics, or write them. If not, it is answered, so
 * that a page of an allowed origin can tell why. */
static bool has_rights(struct server *server, struct conn *conn,
                       const struct slice *topics, unsigned count, bool writes)
{
    const struct options *options = &server->options;
    struct response response = { .cors =
                                     writes ? options->origin : options->cors };
    const char *refused;
    struct rights rights;

    conn->expires = 0;
    if (needs_no_token(server, topics, count, writes))
        return true;
    refused = token_refused(server, conn, &rights, &response);
    for (unsigned i = 0; i < count && !refused; i++) {
        if (patterns_cover(writes ? rights.write : rights.read, topics[i]) ||
            (!writes && is_public(server, topics[i])))
            continue;
        response.status = 403;
        refused = writes ? "the token does not allow this topic to be written: "
                           "its write has no pattern that covers it"
                         : "the token does not allow this topic to be read: "
                           "its read has no pattern that covers it";
    }
    if (refused)
        respond_text(&server->http, conn, response, refused);
    else
        conn->expires =
            rights.expires < UINT32_MAX ? (uint32_t)rights.expires : UINT32_MAX;
    return !refused;
}

/* How many ms the right to read goes on; NEVER if it does not end. */
static uint64_t right_left(const struct server *server, const struct conn *conn)
{
    uint64_t end = ((uint64_t)conn->expires + TOKEN_LEEWAY + 1) * 1000;
    uint64_t now = (uint64_t)server->ring.time;

    if (!conn->expires)
        return NEVER;
    return end > now ? end - now : 0;
}

/* Has a stream's timer expire when the heartbeat is due, or when the right to
 * read has ended, or may have. */
static void start_stream_timer(struct server *server, struct conn *conn)
{
    uint64_t period = server->options.heartbeat;
    uint32_t silence = (uint32_t)server->http.now - conn->subscriber.active;
    uint64_t delay = !period            ? NEVER
                     : silence < period ? period - silence
                                        : period;
    uint64_t left = right_left(server, conn);

    if (left != NEVER && left > EXPIRY_LOOK)
        left = EXPIRY_LOOK;
    if (left < delay)
        delay = left;
    if (delay != NEVER)
        timer_start(&server->http, conn, delay);
}

/* --------------------------------------------------------- subscribing
 *
 * A GET of /events becomes a stream. subscribe() takes the topics from the
 * request and holds them; subscribe_to() finds where the stream begins, and
 * either answers or makes the connection a subscriber. Until stream_begin()
 * has succeeded the request can still be answered otherwise; the subscriber
 * then keeps the topics that the reader held.
 *
 * A subscriber has a place in each of its topics and a count of the bytes sent
 * of the frame after them; no copy of a frame is kept for it. With --ids keep
 * it can be ahead: it comes from another server with an id that this one has
 * not reached yet, and passes over events up to that id.
 *
 * EventSource reconnects after the end of a 200, but at any other status it
 * gives up for good (WHATWG HTML, section 9.2.3). So what is temporary, no
 * memory or no room, is answered with an empty stream and a retry time, and a
 * finished topic with 204.
 */

static struct place *subscriber_places(struct subscriber *subscriber)
{
    return subscriber->topic_count == 1 ? &subscriber->place
                                        : subscriber->places;
}

/* The main stream is never read together with topics. */
static bool reads_main(const struct server *server, const struct reader *reader)
{
    return reader->places[0].topic == server->main_topic;
}

/* Spreads reconnects, so that clients do not all come back at once. */
static uint64_t random_up_to(uint64_t limit)
{
    uint64_t value;

    if (getrandom(&value, sizeof(value), GRND_NONBLOCK) < (int)sizeof(value))
        value = (uint64_t)random();
    return value % (limit + 1);
}

/* The first id that is given and not empty. The header comes first: a browser
 * sends it when it reconnects, and it is newer than the URL. */
static struct slice find_requested(const struct request *request,
                                   char buffer[REQUESTED_MAX])
{
    static const char *const names[] = { "lastEventId", "last_event_id" };
    struct slice requested = request->last_event_id;

    for (int i = 0; i < 2 && requested.length == 0; i++)
        http_query(request->query, names[i], buffer, REQUESTED_MAX, &requested);
    return requested;
}

/* How many of the newest events are asked for. False if that is no number. */
static bool find_count(const struct request *request, uint64_t *count)
{
    char digits[24];
    struct slice last = SLICE("");

    *count = 0;
    http_query(request->query, "last", digits, sizeof(digits), &last);
    return last.length == 0 || slice_number(last, ID_MAX, count);
}

/* A member of a JSON object, after others. */
static void put_id(struct text *json, const char *name, uint64_t id)
{
    if (id)
        text_put(json, ",\"%s\":\"%" PRIu64 "\"", name, id);
    else
        text_put(json, ",\"%s\":null", name);
}

/* The block that tells of a gap. "oldest" is the oldest event after everything
 * that may be lost; events before it are sent as well, since after a crash the
 * hole is behind them. */
static void put_gap(struct text *text, const struct server *server,
                    const struct reader *reader, const struct start *start)
{
    bool is_main = reads_main(server, reader);
    struct block block = { .id = &start->position,
                           .event = is_main ? SLICE("") : SLICE("ssed.gap") };
    size_t begin = text_begin_block(text, reader->form, &block);
    struct slice requested = start->requested;
    const char *separator = "";

    if (requested.length > REQUESTED_MAX)
        requested.length = REQUESTED_MAX;
    text_put(text, is_main ? "data: {\"type\":\"gap\",\"message\":"
                             "\"部分历史消息已无法补发\",\"requested\":\""
                           : "data: {\"requested\":\"");
    text_put_json(text, requested);
    text_put(text, "\"");
    put_id(text, "oldest", start_oldest(&server->ring, reader, start));
    text_put(text, is_main ? "" : ",\"topics\":[");
    for (unsigned i = 0; i < reader->count && !is_main; i++) {
        struct slice name = reader->places[i].topic->name;

        if (!start_lost(start, reader->places[i].topic))
            continue;
        text_put(text, "%s\"%.*s\"", separator, (int)name.length, name.data);
        separator = ",";
    }
    text_put(text, is_main ? "}\n" : "]}\n");
    text_end_block(text, reader->form, begin);
}

/* What goes before the first frame. The first block of a stream of topics has
 * no data: an EventSource takes its id and dispatches nothing. At a gap it has
 * no id, so that a client that is cut off before the gap block asks again. */
static void put_first_blocks(struct text *text, const struct server *server,
                             const struct reader *reader,
                             const struct start *start)
{
    bool is_main = reads_main(server, reader);
    char timestamp[TIMESTAMP_SIZE];
    struct block block = { .retry = &server->options.retry,
                           .id = start->gap ? NULL : &start->position };

    text_put_block(text, reader->form, &block,
                   is_main ? "{\"type\":\"connected\",\"message\":"
                             "\"连接建立成功\",\"timestamp\":\"%s\"}"
                           : NULL,
                   format_now(timestamp));
    if (start->gap)
        put_gap(text, server, reader, start);
    if (is_main && start->replay)
        text_put_block(text, reader->form, &(struct block){ 0 },
                       "{\"type\":\"catch_up_start\",\"message\":\"开始同步 "
                       "%" PRIu64 " 条错过的消息\",\"count\":%" PRIu64 "}",
                       start->replay, start->replay);
}

static void log_subscribed(const struct server *server, const struct conn *conn,
                           const struct reader *reader,
                           const struct start *start)
{
    char peer[PEER_SIZE], requested[REQUESTED_MAX], topic[TOPIC_NAME_MAX + 1];
    struct slice name = reader->places[0].topic->name;

    if (!may_log(server, LEVEL_INFO))
        return;
    log_event(LEVEL_INFO, "subscribed",
              "peer=%s topic=%s topics=%u last_event_id=%s replay=%" PRIu64
              " gap=%s",
              conn_peer(peer, conn),
              name.length ? log_quote(topic, sizeof(topic), name) : "-",
              reader->count,
              log_quote(requested, sizeof(requested), start->requested),
              start->replay, start->gap ? "yes" : "no");
}

static void count_subscription(struct server *server, const struct start *start)
{
    struct figures *counted = &server->figures;
    uint64_t id;

    counted->subscriptions++;
    counted->replays += start->replay > 0;
    counted->events_replayed += start->replay;
    if (start->gap)
        counted->gaps[start->known ? GAP_EVICTED
                      : slice_number(start->requested, UINT64_MAX, &id)
                          ? GAP_AHEAD
                          : GAP_INVALID]++;
}

/* Makes the connection a subscriber, which takes over the reader's places and
 * its hold on the topics. False without memory: nothing has changed then. */
static bool stream_begin(struct server *server, struct conn *conn,
                         const struct reader *reader, const struct start *start)
{
    struct subscriber *subscriber = &conn->subscriber;
    struct http *http = &server->http;
    struct place *places = NULL;

    for (unsigned i = 0; i < reader->count; i++)
        if (!topic_reserve(reader->places[i].topic))
            return false;
    if (reader->count > 1) {
        places = malloc(reader->count * sizeof(*places));
        if (!places)
            return false;
        memcpy(places, reader->places, reader->count * sizeof(*places));
    }
    log_access(server, conn, 200, 0);
    log_subscribed(server, conn, reader, start);
    count_subscription(server, start);
    conn_begin_stream(http, conn, CONN_STREAM);
    *subscriber = (struct subscriber){ .form = (uint8_t)reader->form,
                                       .topic_count = (uint8_t)reader->count,
                                       .since = (uint32_t)(http->now / 1000),
                                       .active = (uint32_t)http->now,
                                       .replay_count = (uint32_t)start->replay,
                                       .is_ahead = start->ahead };
    if (places)
        subscriber->places = places;
    else
        subscriber->place = reader->places[0];
    for (unsigned i = 0; i < reader->count; i++)
        topic_join(&server->ring, &subscriber_places(subscriber)[i],
                   conn_fd(http, conn));
    if (start->ahead)
        subscriber->ahead = start->position;
    else if (start->replay && reads_main(server, reader))
        subscriber->replay_end = server->main_topic->newest;
    start_stream_timer(server, conn);
    return true;
}

static struct response stream_response(const struct server *server,
                                       const struct conn *conn)
{
    return (struct response){ .status = 200,
                              .stream = true,
                              .chunked = conn->exchange->request.minor > 0,
                              .cors = server->options.cors };
}

/* There is no room now: an empty stream that says when to come back. */
static void refuse_subscriber(struct server *server, struct conn *conn)
{
    struct response response = stream_response(server, conn);
    uint64_t retry = RETRY_LATER + random_up_to(RETRY_SPREAD);
    char bytes[256];
    struct text text = { bytes, sizeof(bytes), 0 };

    text_put_block(&text, response.chunked ? FORM_CHUNKED : FORM_PLAIN,
                   &(struct block){ .retry = &retry }, NULL);
    if (response.chunked)
        text_put(&text, LAST_CHUNK);
    response.close = true;
    respond(&server->http, conn, &response, text_slice(&text));
}

/*
 * An id that is newer than the newest may come from a node that has read more
 * of the log. The request then waits until this node has read as far, or has
 * asked and knows that the log does not go that far.
 */
static bool waits_for_log(struct server *server, struct conn *conn,
                          const struct start *start)
{
    const struct redis *redis = &server->http.redis;
    struct exchange *exchange = conn->exchange;
    uint64_t asks = exchange->asks, id;

    exchange->asks = 0;
    if (!is_shared(server) || !start->unusable ||
        !slice_number(start->requested, ID_MAX, &id) ||
        (asks && redis->rounds >= asks))
        return false;
    exchange->asks = asks ? asks : redis_round(redis);
    conn_park(&server->http, conn, asks ? 0 : LOG_PATIENCE);
    return true;
}

/* A handler: it has waited for too long. */
static void handle_waited(struct server *server, struct conn *conn)
{
    refuse_subscriber(server, conn);
}

/* Answers a request to subscribe. True if the connection is now a subscriber
 * and has the reader's hold on the topics. */
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
    head.position = &start.position;
    if (waits_for_log(server, conn, &start))
        return false;
    if (!start.ahead && reader_finished(&server->ring, reader)) {
        head.status = 204;
        head.stream = false;
        head.no_cache = true;
    }
    if (head.status == 204 || request->method == METHOD_HEAD) {
        respond(&server->http, conn, &head, SLICE(""));
        return false;
    }
    if (!(conn->flags & FLAG_SURPLUS)) {
        text.length =
            stream_head(&server->http, conn, &head, bytes, sizeof(bytes));
        if (!text.length)
            return false; /* a promise is broken, and has been answered */
        put_first_blocks(&text, server, reader, &start);
        if (stream_begin(server, conn, reader, &start)) {
            stream_send(server, conn, text_slice(&text));
            return true;
        }
    }
    refuse_subscriber(server, conn);
    return false;
}

static void log_topics_full(struct server *server)
{
    uint64_t refused = take_notice(server, &server->topics_full);

    server->http.limits_hit[LIMIT_TOPICS]++;
    if (refused)
        log_event(LEVEL_WARN, "topics_full",
                  "without_event=%" PRIu64 " refused=%" PRIu64,
                  server->ring.empty, refused);
}

/* Adds a topic that the reader then holds. False if there is no room for it. */
static bool add_topic(struct server *server, struct reader *reader,
                      struct slice name)
{
    struct topic *topic = topic_hold_to_read(&server->ring, name);

    if (!topic && errno == EAGAIN)
        log_topics_full(server);
    if (!topic)
        return false;
    reader->places[reader->count++] = (struct place){ .topic = topic };
    return true;
}

/* The names of the topics that a request is to read, each once. */
struct topic_names {
    unsigned count;
    struct slice names[READER_TOPICS_MAX];
    char bytes[READER_TOPICS_MAX][TOPIC_NAME_MAX + 1];
};

static bool has_name(const struct topic_names *found, struct slice name)
{
    for (unsigned i = 0; i < found->count; i++)
        if (found->names[i].length == name.length &&
            memcmp(found->names[i].data, name.data, name.length) == 0)
            return true;
    return false;
}

/* `topic` is the one in the path. If the path has none, the query may name
 * several; if that has none either, it is the main stream, whose name is empty
 * as well. Returns why they are refused, or NULL. */
static const char *find_topics(struct slice query, struct slice topic,
                               struct topic_names *found)
{
    char name[TOPIC_NAME_MAX + 1];
    struct slice named;

    found->count = 0;
    while (topic.length == 0 &&
           http_query_next(&query, "topic", name, sizeof(name), &named)) {
        unsigned i = found->count;
        const char *refused = topic_name_refused(named);

        if (refused)
            return refused;
        if (has_name(found, named))
            continue;
        if (i == READER_TOPICS_MAX)
            return "one connection takes at most 16 topics";
        memcpy(found->bytes[i], named.data, named.length);
        found->names[i] = (struct slice){ found->bytes[i], named.length };
        found->count++;
    }
    if (found->count == 0)
        found->names[found->count++] = topic;
    return NULL;
}

/* A topic is made only for a request that may read it. */
static void subscribe(struct server *server, struct conn *conn,
                      struct slice topic)
{
    const struct request *request = &conn->exchange->request;
    struct topic_names topics;
    struct place places[READER_TOPICS_MAX];
    struct reader reader = { .places = places, .until = UINT64_MAX };
    bool has_room = true, subscribed = false;
    const char *refused = find_topics(request->query, topic, &topics);
    uint64_t count;

    if (is_shared(server) && !server->loaded) {
        refuse_subscriber(server, conn);
        return;
    }
    if (!refused && !find_count(request, &count))
        refused = "last= is not a number of events";
    if (refused) {
        respond_error(&server->http, conn, 400, refused);
        return;
    }
    if (!has_rights(server, conn, topics.names, topics.count, false))
        return;
    reader.form = request->minor > 0 ? FORM_CHUNKED : FORM_PLAIN;
    for (unsigned i = 0; i < topics.count && has_room; i++)
        has_room = add_topic(server, &reader, topics.names[i]);
    if (!has_room)
        refuse_subscriber(server, conn);
    else
        subscribed = subscribe_to(server, conn, &reader, count);
    for (unsigned i = 0; !subscribed && i < reader.count; i++)
        topic_drop(&server->ring, places[i].topic);
}

/* ------------------------------------------------------------ publications
 *
 * A publication is what one publisher publishes: a request, or standard input.
 * It goes in steps. STEP_TAKE takes in content until an event is complete,
 * STEP_APPEND appends the event, and so on until the content ends; STEP_FINISH
 * then finishes the topic, if that is asked for, and STEP_ANSWER answers. A
 * step that must wait changes nothing and is taken again later.
 */

static bool is_input(const struct conn *conn)
{
    return conn->flags & FLAG_INPUT;
}

/* Has what follows on standard input published to that topic. Returns why that
 * cannot be, or NULL. */
static const char *change_topic(struct server *server,
                                struct publication *publication,
                                struct slice name)
{
    const char *refused = name.length ? topic_name_refused(name) : NULL;
    struct topic *topic;

    if (refused)
        return refused;
    topic = topic_hold(&server->ring, name);
    if (!topic)
        return "no memory for the topic";
    topic_drop(&server->ring, publication->topic);
    publication->topic = topic;
    return NULL;
}

/* An end of the topic finds what is streamed into it in topic->publications. */
static void join_topic(struct publication *publication)
{
    struct publication **link = &publication->topic->publications;

    publication->link = link;
    publication->next = *link;
    if (publication->next)
        publication->next->link = &publication->next;
    *link = publication;
}

static void leave_topic(struct publication *publication)
{
    if (!publication->link)
        return;
    *publication->link = publication->next;
    if (publication->next)
        publication->next->link = publication->link;
    publication->link = NULL;
}

/* The promise of an end, if there is one, is over. */
static void settle_promise(struct server *server,
                           struct publication *publication, bool broken)
{
    if (publication->promises)
        topic_settle(&server->ring, publication->topic, broken);
    publication->promises = false;
}

/* Whether the content may have many events: a stale one is then skipped. */
static bool is_streamed(const struct publication *publication)
{
    return publication->from == FROM_EVENTS || publication->from == FROM_LINES;
}

/* What is in the history now; and in `error`, if it is not NULL, why no more
 * is; `unknown` if one event more may be. */
static void respond_published(struct server *server, struct conn *conn,
                              int status, const char *error, bool unknown)
{
    const struct publication *publication = &conn->exchange->publication;
    char bytes[800];
    struct text json = { bytes, sizeof(bytes), 0 };
    struct response response = { .status = status,
                                 .type = "application/json",
                                 .cors = server->options.origin };

    if (is_streamed(publication)) {
        text_put(&json, "{\"count\":%" PRIu64 ",\"skipped\":%" PRIu64,
                 publication->count, publication->skipped);
        put_id(&json, "first", publication->first);
        put_id(&json, "last", publication->last);
        if (error)
            text_put(&json, ",\"error\":\"%s\"", error);
        text_put(&json, unknown ? ",\"outcome\":\"unknown\"}\n" : "}\n");
    } else if (unknown) {
        text_put(&json, "{\"error\":\"%s\",\"outcome\":\"unknown\"}\n", error);
    } else {
        text_put(&json, "{\"id\":\"%" PRIu64 "\",\"subscribers\":%u}\n",
                 publication->last, publication->topic->subscriber_count);
    }
    response.length = json.length;
    if (server->options.sync == SYNC_ALWAYS && status < 300)
        respond_promise(&server->http, conn, &response, text_slice(&json));
    else
        respond(&server->http, conn, &response, text_slice(&json));
}

/* Ends a publication before its body ends: the rest is not read. A handler
 * too: the body cannot be read to its end. A promise of an end is broken only
 * if that is the publisher's own fault. */
static void publication_fail(struct server *server, struct conn *conn,
                             int status, const char *why)
{
    if (status >= 500 || status == 409)
        settle_promise(server, &conn->exchange->publication, false);
    if (is_input(conn))
        conn_close(&server->http, conn, why);
    else if (conn->exchange->publication.from == FROM_EVENTS)
        respond_published(server, conn, status, why, false);
    else
        respond_error(&server->http, conn, status, why);
}

/* Refuses an event. That ends a publication, but standard input goes on with
 * the next event: it gets no answer that could tell how far it came. */
static void refuse_event(struct server *server, struct conn *conn, int status,
                         const char *why)
{
    if (!is_input(conn)) {
        publication_fail(server, conn, status, why);
        return;
    }
    conn->exchange->publication.skipped++;
    server->figures.input_skipped++;
    if (may_log(server, LEVEL_WARN))
        log_event(LEVEL_WARN, "input_skipped", "reason=\"%s\"", why);
}

static void refuse_too_long(struct server *server, struct conn *conn)
{
    char why[64];

    server->http.limits_hit[LIMIT_EVENT]++;
    snprintf(why, sizeof(why),
             is_input(conn) ? "more than %" PRIu64 " bytes: --max-event"
                            : "the event has more than %" PRIu64 " bytes",
             server->options.max_event);
    refuse_event(server, conn, 413, why);
}

/* ----------------------------------------------------- requests to publish
 *
 * publish() decides whether the client may publish, begin_publication() what
 * the request's query asks for. The functions named ..._refused() return why
 * something is refused, or NULL.
 *
 * By default only this machine publishes. A browser on this machine runs pages
 * of strangers, so a request with the Origin of another site is refused as well
 * (CSRF); so are a Host that a DNS server can have made up ("DNS rebinding"),
 * and what a proxy has forwarded from somewhere else. The Origin is looked at
 * in every case: a browser adds a cookie with a token to what any page sends.
 */

static const char *publisher_refused(const struct server *server,
                                     const struct conn *conn, int *status)
{
    const struct request *request = &conn->exchange->request;
    const char *origin = server->options.origin;
    bool is_named = origin && slice_equals(request->origin, origin);

    *status = 403;
    if (request->origin.data && !is_named &&
        !http_origin_is_host(request->origin, request->host))
        return "publishing from this Origin is not allowed: --cors names the "
               "one that may";
    if (request->cross_site && !is_named)
        return "publishing from a page of another origin is not allowed: "
               "--cors names the one that may";
    switch ((enum publish)server->options.publish) {
    case PUBLISH_TOKEN:
        *status = 401;
        return http_token_matches(&server->http, request)
                   ? NULL
                   : "publishing takes Authorization: Bearer and the token";
    case PUBLISH_UNIX:
        return conn->flags & FLAG_UNIX
                   ? NULL
                   : "publishing is allowed through the Unix socket only";
    case PUBLISH_NONE:
        return "publishing is not allowed: --publish none";
    case PUBLISH_SIGNED: /* has_rights() */
        return NULL;
    case PUBLISH_LOCAL:
        break;
    }
    if (!conn_is_local(conn))
        return "publishing is allowed from this machine only: --token-file "
               "allows others";
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

/* Why no event may have this name, or NULL. */
static const char *name_refused(struct slice name)
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

static const char *query_refused(const struct server *server,
                                 const struct publication *publication,
                                 struct slice query)
{
    bool is_main = publication->topic == server->main_topic;
    bool keep = server->options.kept_ids;
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
          "event= is for a plain body: a streamed event has its name in it" },
        { keep, "end",
          "end= could give the end no id, which --ids keep "
          "needs: DELETE with ?id= finishes a topic" },
        { !keep, "id", "id= takes a server that keeps ids: --ids keep" },
        { streamed, "id",
          "id= is for a plain body: a streamed event has its id in it" },
    };
    char value[8];
    struct slice found;

    for (size_t i = 0; i < COUNT(refused); i++)
        if (refused[i].applies &&
            http_query(query, refused[i].name, value, sizeof(value), &found) &&
            found.length)
            return refused[i].why;
    return NULL;
}

/* Takes the query's parameters. Returns why they are refused, or NULL. */
static const char *take_query(const struct server *server,
                              struct publication *publication,
                              struct slice query)
{
    struct event_parser *parser = &publication->parser;
    struct event *event = &publication->event;
    struct slice id = SLICE(""), end = SLICE("");
    char digits[EVENT_NUMBER_MAX + 1], one[2];
    const char *refused = query_refused(server, publication, query);

    if (refused)
        return refused;
    http_query(query, "event", parser->name, sizeof(parser->name),
               &event->name);
    http_query(query, "id", digits, sizeof(digits), &id);
    http_query(query, "end", one, sizeof(one), &end);
    if (!utf8_valid(event->name))
        return "the event name is not valid UTF-8";
    if (end.length && !slice_is(end, "1"))
        return "end= takes 1: the topic is finished with this";
    publication->finishes = publication->finishes || end.length;
    if (server->options.kept_ids && publication->from != FROM_EVENTS &&
        (!slice_number(id, ID_KEPT_MAX, &event->id) || event->id == 0))
        return "with --ids keep ?id= gives the event's id: " ID_KEPT_RANGE;
    return name_refused(event->name);
}

/* Takes the query, and the promise of an end that a stream may give. Returns
 * why the publication is refused, or NULL; *status is 400 before. */
static const char *publication_refused(struct server *server,
                                       struct publication *publication,
                                       const struct request *request,
                                       int *status)
{
    struct topic *topic = publication->topic;
    const char *refused = take_query(server, publication, request->query);

    if (refused)
        return refused;
    if (!http_has_body(request) &&
        (publication->from == FROM_PLAIN || !publication->finishes))
        return "the request has no body";
    if (publication->from == FROM_DELETE && !server->options.kept_ids &&
        !topic->newest && !topic->subscriber_count && !topic->publications) {
        *status = 404;
        return "nothing is known of this topic";
    }
    if (publication->from != FROM_EVENTS || !publication->finishes)
        return NULL;
    publication->promises = topic_promise(&server->ring, topic);
    if (publication->promises)
        return NULL;
    *status = 503;
    return "too many publishers with end=1: the history file remembers no more";
}

/* Begins a publication, which holds its topic; or answers why not. A plain body
 * may be as long as an event may be, and a line end. */
static void begin_publication(struct server *server, struct conn *conn,
                              struct slice topic)
{
    struct publication *publication = &conn->exchange->publication;
    const struct request *request = &conn->exchange->request;
    uint64_t max_event = server->options.max_event;
    bool deletes = request->method == METHOD_DELETE;
    bool streams = !deletes && http_media_type_is(request->content_type,
                                                  "text/event-stream");
    bool plain = !deletes && !streams;
    const char *refused;
    int status = 400;

    *publication = (struct publication){
        .topic = topic_hold_to_publish(&server->ring, topic),
        .from = deletes   ? FROM_DELETE
                : streams ? FROM_EVENTS
                          : FROM_PLAIN,
        .finishes = deletes,
        .fd = conn_fd(&server->http, conn),
        .content_max = (size_t)(streams ? max_event : max_event + 2),
    };
    if (!publication->topic) {
        server->http.limits_hit[LIMIT_TOPICS] += errno == EAGAIN;
        respond_error(&server->http, conn, 503,
                      errno == EAGAIN ? NO_TOPIC_TEXT
                                      : "no memory for the topic");
        return;
    }
    refused = publication_refused(server, publication, request, &status);
    if (streams)
        event_parser_init(&publication->parser, NULL, 0);
    else if (plain && request->content_length >= 0)
        publication->content_max = (size_t)request->content_length;
    if (refused)
        respond_error(&server->http, conn, status, refused);
    else if (plain && request->content_length > (int64_t)max_event + 2)
        refuse_too_long(server, conn);
    else
        conn_begin_body(&server->http, conn, streams, publication->content_max);
    if (!refused && streams)
        join_topic(publication);
}

static void publish(struct server *server, struct conn *conn,
                    struct slice topic)
{
    int status;
    const char *refused = publisher_refused(server, conn, &status);

    if (refused)
        respond_error(&server->http, conn, status, refused);
    else if (!has_rights(server, conn, &topic, 1, true))
        return;
    else if (server->phase >= PHASE_DRAIN)
        respond_error(&server->http, conn, 503, DRAINING_TEXT);
    else if (conn->flags & FLAG_SURPLUS)
        respond_surplus(server, conn);
    else
        begin_publication(server, conn, topic);
}

/* ------------------------------------------------------------------- steps
 *
 * publication_step() is the state machine of a publication. handle_body() runs
 * it for http.c as content arrives, at most one event for each call, and
 * retry_publishers() runs it when a publisher has waited. A publication that
 * fails is answered at once, and its connection is in CONN_BODY no longer. How
 * content is taken in is the next section.
 */

static void parse_piece(struct server *server, struct conn *conn);
static void take_content(struct server *server, struct conn *conn);
static void finish_content(struct server *server, struct conn *conn);

/* A topic has been finished: whatever else is streamed into it is stopped. */
static void stop_publications(struct server *server, const struct topic *topic)
{
    while (topic->publications) {
        topic->publications->stopped = true;
        publication_fail(server,
                         conn_at(&server->http, topic->publications->fd), 409,
                         "the topic has been finished");
    }
}

/* Finishes the topics whose publishers have broken the promise of an end. False
 * if one of them must wait. */
static bool finish_broken(struct server *server)
{
    struct event end = { .finishes = true, .incomplete = true };
    struct topic *topic;

    while ((topic = server->ring.queue_first[TOPICS_BROKEN])) {
        if (topic->broken) {
            enum outcome outcome =
                server->mends ? MUST_WAIT
                              : publish_event(server, topic, &end, NULL);

            server->mends = server->mends || outcome == ON_ITS_WAY;
            if (outcome != PUBLISHED)
                return outcome == IDS_USED_UP || outcome == NOT_ON_DISK;
            stop_publications(server, topic);
        }
        topic_mended(&server->ring);
    }
    return true;
}

/* What a publisher's event waits for, if it cannot be appended at once. */
static void wait_for_outcome(struct server *server, struct conn *conn,
                             const struct event *event, enum outcome outcome)
{
    struct publication *publication = &conn->exchange->publication;

    /* in the log its end would stop it as well */
    if (outcome == ON_ITS_WAY && event->finishes)
        leave_topic(publication);
    conn_wait(&server->http, conn,
              outcome == MUST_WAIT  ? QUEUE_WAITING
              : outcome == LOG_AWAY ? QUEUE_LOG
                                    : QUEUE_NONE);
}

static void append_failed(struct server *server, struct conn *conn,
                          enum outcome outcome)
{
    struct publication *publication = &conn->exchange->publication;
    char why[96];

    if (outcome != STALE) {
        publication_fail(server, conn, 503,
                         outcome == NOT_ON_DISK   ? NOT_ON_DISK_TEXT
                         : outcome == IDS_USED_UP ? "all ids are used up"
                                                  : LOG_AWAY_TEXT);
        return;
    }
    publication->skipped++;
    publication->step = STEP_TAKE;
    snprintf(why, sizeof(why),
             "the newest id is %" PRIu64 ": ids only increase",
             server->ring.newest_id);
    if (!is_streamed(publication))
        respond_error(&server->http, conn, 409, why);
}

/*
 * Appends an event, or the end of the topic, and sets *id. False if it has not
 * been: the publisher waits, the publication has failed, or the event is
 * skipped. An id that is not greater than the newest has been here before: a
 * source may begin again from an earlier place. Standard input waits where
 * others are refused.
 */
static bool append_or_wait(struct server *server, struct conn *conn,
                           const struct event *event, uint64_t *id)
{
    struct publication *publication = &conn->exchange->publication;
    const struct queue *queues = server->http.queues;
    bool stale = event->id && event->id <= server->ring.newest_id;
    bool others_wait =
        (server->ring.queue_first[TOPICS_BROKEN] && !is_shared(server)) ||
        queues[QUEUE_WAITING].count ||
        ((conn->flags & FLAG_BUSY) && queues[QUEUE_WAITING_BUSY].count);
    enum outcome outcome = MUST_WAIT;

    /* one in CONN_WAITING is tried when it is the first; a stale event takes
     * no room, and so no turn */
    if (publication->logged)
        outcome = PUBLISHED;
    else if (is_log_away(server))
        outcome = LOG_AWAY;
    else if (stale || conn->state == CONN_WAITING || !others_wait)
        outcome = publish_event(server, publication->topic, event, publication);
    if (outcome == MUST_WAIT || outcome == ON_ITS_WAY ||
        (outcome == LOG_AWAY && is_input(conn))) {
        wait_for_outcome(server, conn, event, outcome);
        return false;
    }
    /* a topic that was finished already has the id of that end */
    *id = publication->logged ? publication->logged
          : event->finishes   ? publication->topic->newest_id
                              : server->ring.newest_id;
    publication->logged = 0;
    conn_go_on(&server->http, conn);
    if (outcome != PUBLISHED) {
        append_failed(server, conn, outcome);
        return false;
    }
    if (event->finishes) {
        leave_topic(publication);
        settle_promise(server, publication, false);
        if (!is_shared(server)) /* there the end does it, when it is read */
            stop_publications(server, publication->topic);
    }
    return true;
}

static void publication_step(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct slice *piece = &conn->exchange->piece;
    bool is_empty = publication->count + publication->skipped == 0;
    bool deletes = publication->from == FROM_DELETE;
    struct event end = { .id = deletes ? publication->event.id : 0,
                         .finishes = true };
    uint64_t id = 0;

    switch (publication->step) {
    case STEP_TAKE: /* an empty piece is the end of the content */
        if (piece->length && publication->from == FROM_EVENTS)
            parse_piece(server, conn);
        else if (piece->length && publication->from != FROM_DELETE)
            take_content(server, conn);
        else if (piece->length)
            piece->length = 0;
        else if (publication->from == FROM_PLAIN ||
                 publication->content_length || publication->skips)
            finish_content(server, conn);
        else
            publication->step = STEP_FINISH;
        break;
    case STEP_APPEND:
        if (!append_or_wait(server, conn, &publication->event, &id))
            break;
        publication->step = is_streamed(publication) ? STEP_TAKE : STEP_FINISH;
        if (publication->event.finishes)
            break;
        if (publication->count++ == 0)
            publication->first = id;
        publication->last = id;
        break;
    case STEP_FINISH:
        if (is_input(conn)) /* which holds it: this cannot fail */
            change_topic(server, publication, slice_of(server->options.topic));
        if (publication->finishes && !append_or_wait(server, conn, &end, &id))
            break;
        publication->step = STEP_ANSWER;
        if (deletes)
            publication->last = id;
        break;
    case STEP_ANSWER:
        if (is_input(conn))
            conn_close(&server->http, conn, "end of input");
        else if (is_empty && !publication->finishes)
            respond_published(server, conn, 400, "the body has no event",
                              false);
        else
            respond_published(server, conn, deletes ? 200 : 201, NULL, false);
        break;
    }
}

/* A handler: content has arrived, or ended. */
static void handle_body(struct server *server, struct conn *conn)
{
    do
        publication_step(server, conn);
    while (conn->state == CONN_BODY &&
           conn->exchange->publication.step != STEP_TAKE);
}

/* A handler: a publisher that is silent between two events keeps no memory.
 * Standard input keeps its room, so that it cannot fail later. */
static void handle_silent(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct event_parser *parser = &publication->parser;

    if (is_input(conn))
        return;
    if (parser->complete || parser->length == 0)
        memory_free(&server->http, &publication->content,
                    &publication->content_room);
    parser->room = publication->content_room;
}

/* ----------------------------------------------------------------- content
 *
 * STEP_TAKE takes in exchange->piece: up to the end of an event, which is then
 * in publication->event, and the step is STEP_APPEND. A plain body or a line is
 * collected in publication->content. An event stream is parsed as it arrives,
 * with publication->content as the parser's room for data. Room is counted in
 * --request-memory.
 */

/* Makes room for content, twice what there was unless that is too much. False
 * without memory: the publisher has been answered. */
static bool make_room(struct server *server, struct conn *conn, size_t wanted)
{
    struct publication *publication = &conn->exchange->publication;
    size_t old = publication->content_room;
    size_t room = old ? old * 2 : CONTENT_FIRST;

    if (wanted <= old)
        return true;
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

/* A plain body or a line is complete; the last line may lack its end. One line
 * end at the end of a body is no part of the data, nor is the CR that a line
 * ends in; an empty line is no event. The data stays where it is until the next
 * content comes. */
static void finish_content(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct slice data = { publication->content, publication->content_length };
    bool is_line = publication->from == FROM_LINES;
    bool is_empty = data.length == 0, too_long = publication->skips;

    if (data.length && data.data[data.length - 1] == '\n')
        data.length--;
    if (data.length && data.data[data.length - 1] == '\r')
        data.length--;
    publication->event.data = data;
    if (is_line) {
        publication->skips = false;
        publication->content_length = 0;
    }
    if (is_empty && !is_line)
        respond_error(&server->http, conn, 400, "the request has no body");
    else if (too_long || data.length > server->options.max_event)
        refuse_too_long(server, conn);
    else if (!is_line && !utf8_valid(data))
        respond_error(&server->http, conn, 400, "the body is not valid UTF-8");
    else if (!is_line || data.length)
        publication->step = STEP_APPEND;
}

/* Takes in what has arrived. A line that is too long is skipped to its end. */
static void take_content(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct slice *piece = &conn->exchange->piece;
    bool is_line = publication->from == FROM_LINES;
    const char *lf = is_line ? memchr(piece->data, '\n', piece->length) : NULL;
    size_t length = lf ? (size_t)(lf - piece->data) : piece->length;

    if (length > publication->content_max - publication->content_length)
        publication->skips = true;
    if (publication->skips && !is_line) {
        refuse_too_long(server, conn);
        return;
    }
    if (!publication->skips) {
        if (!make_room(server, conn, publication->content_length + length))
            return;
        memcpy(publication->content + publication->content_length, piece->data,
               length);
        publication->content_length += length;
    }
    *piece = slice_from(*piece, length + (lf != NULL));
    if (lf)
        finish_content(server, conn);
}

/* The id of the event that the parser has. False if it has none that counts. */
static bool take_parsed_id(const struct event_parser *parser, uint64_t *id)
{
    struct slice text = { parser->id, parser->id_length };

    return parser->has_id && slice_number(text, ID_KEPT_MAX, id) && *id > 0;
}

static void begin_kept_ids(struct server *server, uint64_t id);

/*
 * The source, another ssed, tells of a gap: something before its position is
 * lost. Readers with an older position are told too; connected ones are cut, so
 * that they reconnect. Without the source's ids no reader's position can be
 * compared with the gap, so all are told. Returns why it is refused, or NULL.
 */
static const char *take_gap(struct server *server,
                            struct publication *publication)
{
    struct topic *topic = publication->topic;
    uint64_t position = server->ring.newest_id + 1;

    if (server->options.kept_ids &&
        !take_parsed_id(&publication->parser, &position))
        return "a gap without the id of its position: " ID_KEPT_RANGE;
    if (server->ring.unbegun)
        begin_kept_ids(server, position + 1);
    topic_raise_mark(&server->ring, topic, position);
    for (uint32_t i = topic->subscriber_count; i-- > 0;)
        conn_cut(&server->http, conn_at(&server->http, topic->subscribers[i]),
                 "gap");
    return NULL;
}

/* Takes the event that the parser has. Standard input may be another ssed's
 * stream, whose own events tell of a gap and of the end of the topic. Returns
 * why the event is refused, or NULL. */
static const char *take_parsed(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    const struct event_parser *parser = &publication->parser;
    struct event *event = &publication->event;
    static const char incomplete[] = "\"complete\":false";
    const char *refused = NULL;
    bool is_main;

    *event = (struct event){ .name = { parser->name, parser->name_length },
                             .retry = { parser->retry, parser->retry_length },
                             .data = { parser->data, parser->length } };
    if (is_input(conn))
        refused = change_topic(
            server, publication,
            parser->has_topic
                ? (struct slice){ parser->topic, parser->topic_length }
                : slice_of(server->options.topic));
    if (refused)
        return refused;
    is_main = publication->topic == server->main_topic;
    if (is_input(conn) && slice_is(event->name, "ssed.gap"))
        return take_gap(server, publication);
    if (server->options.kept_ids && !take_parsed_id(parser, &event->id))
        return "with --ids keep each event has its id: " ID_KEPT_RANGE;
    event->finishes =
        is_input(conn) && !is_main && slice_is(event->name, "ssed.end");
    event->incomplete =
        event->finishes && memmem(event->data.data, event->data.length,
                                  incomplete, sizeof(incomplete) - 1);
    if (!is_main && !event->finishes)
        refused = name_refused(event->name);
    if (!refused)
        publication->step = STEP_APPEND;
    return refused;
}

/* Takes in what has arrived of an event stream, up to the end of an event. The
 * room made is for all that this can add to the data. */
static void parse_piece(struct server *server, struct conn *conn)
{
    struct publication *publication = &conn->exchange->publication;
    struct event_parser *parser = &publication->parser;
    struct slice *piece = &conn->exchange->piece;
    size_t wanted = piece->length + 1 + (parser->complete ? 0 : parser->length);
    const char *refused = NULL;

    if (wanted > publication->content_max)
        wanted = publication->content_max;
    if (!make_room(server, conn, wanted))
        return;
    parser->data = publication->content;
    parser->room = publication->content_room;
    *piece = slice_from(*piece, event_parser_read(parser, *piece));
    if (parser->too_long && (parser->complete || !is_input(conn)))
        refuse_too_long(server, conn);
    else if (parser->complete)
        refused = take_parsed(server, conn);
    if (refused)
        refuse_event(server, conn, 400, refused);
}

/* ------------------------------------------------------------- publishing
 *
 * An event becomes a frame, in server->frame, and is appended to the ring.
 * publish_event() is called by publications and by the clock. MUST_WAIT means
 * that the frame would evict one that a subscriber has not been offered yet.
 * The publisher tries again in later turns: it is held up by ssed's own
 * delivery, never by a slow subscriber, which is overrun instead.
 */

/*
 * Ids from outside begin with the first event, and after a crash of the machine
 * they go on with the next: anything before it may be missing here. A
 * subscriber with an older position is cut; when it reconnects, it is told of
 * the gap.
 */
static void begin_kept_ids(struct server *server, uint64_t id)
{
    uint64_t newest = server->ring.newest_id;

    if (id <= newest)
        return;
    ring_begin_after(&server->ring, id - 1);
    for (uint32_t fd = 0; fd < server->http.conn_limit; fd++) {
        struct conn *conn = conn_at(&server->http, fd);
        bool is_ahead = conn->state == CONN_STREAM && conn->subscriber.is_ahead;

        /* one that came without an id before the first event ever has missed
         * nothing */
        if (conn->state == CONN_STREAM && (is_ahead || newest) &&
            (is_ahead ? conn->subscriber.ahead : newest) < id - 1)
            conn_cut(&server->http, conn, "gap");
    }
}

/* A message of the main stream. Returns where the splice text goes. */
static size_t put_message(struct text *text, uint64_t id,
                          const struct event *event)
{
    char timestamp[TIMESTAMP_SIZE];
    size_t begin, splice;

    begin = text_begin_block(text, FORM_CHUNKED, &(struct block){ .id = &id });
    text_put(text, "data: {\"type\":\"");
    splice = text->length;
    text_put(text, "message\",\"id\":%" PRIu64 ",\"message\":\"", id);
    text_put_json(text, event->data);
    text_put(text, "\",\"timestamp\":\"%s\"}\n",
             event->time ? format_time(timestamp, (uint64_t)event->time)
                         : format_now(timestamp));
    text_end_block(text, FORM_CHUNKED, begin);
    return splice;
}

static void put_topic_end(struct text *text, uint64_t id,
                          const struct topic *topic, bool complete)
{
    struct block block = { .id = &id, .event = SLICE("ssed.end") };
    size_t begin = text_begin_block(text, FORM_CHUNKED, &block);

    text_put(text, "data: {\"topic\":\"%.*s\"", (int)topic->name.length,
             topic->name.data);
    put_id(text, "last", topic->newest_id);
    text_put(text, ",\"complete\":%s}\n", complete ? "true" : "false");
    text_end_block(text, FORM_CHUNKED, begin);
}

/* Appends an event to its topic's history here. */
static enum outcome append_event(struct server *server, struct topic *topic,
                                 const struct event *event)
{
    struct ring *ring = &server->ring;
    struct text frame = { server->frame, server->frame_size, 0 };
    uint64_t id = event->id ? event->id : ring->newest_id + 1;
    size_t splice = 0;

    if (id > ID_MAX)
        return IDS_USED_UP;
    if (server->sync_failed && server->options.sync == SYNC_ALWAYS)
        return NOT_ON_DISK;
    if (id <= ring->newest_id)
        return STALE;
    if (event->finishes)
        put_topic_end(&frame, id, topic, !event->incomplete);
    else if (topic == server->main_topic)
        splice = put_message(&frame, id, event);
    else
        text_put_event(&frame, id, event);
    if (ring_would_overrun(ring, frame.length, server->ready_from))
        return MUST_WAIT;
    if (ring->unbegun)
        begin_kept_ids(server, id);
    ring_append(ring, topic, id, text_slice(&frame), (uint32_t)splice,
                event->finishes);
    server->figures.events++;
    server->figures.bytes += frame.length - FRAME_HEAD - FRAME_TAIL;
    return PUBLISHED;
}

/* Has an event appended to the log that several nodes share. It comes to the
 * history when it is read from there: handle_entry(). */
static enum outcome share_event(struct server *server,
                                const struct topic *topic,
                                const struct event *event,
                                struct publication *publication)
{
    struct slice pairs[10] = { SLICE("t"), topic->name };
    unsigned count = 2;
    uint64_t flight;

    if (is_log_away(server))
        return LOG_AWAY;
    if (event->finishes) {
        pairs[count++] = SLICE("k");
        pairs[count++] = event->incomplete ? SLICE("abort") : SLICE("end");
    } else {
        pairs[count++] = SLICE("d");
        pairs[count++] = event->data;
    }
    if (topic != server->main_topic && event->name.length) {
        pairs[count++] = SLICE("e");
        pairs[count++] = event->name;
    }
    if (topic != server->main_topic && event->retry.length) {
        pairs[count++] = SLICE("r");
        pairs[count++] = event->retry;
    }
    flight = redis_append(&server->http, pairs, count,
                          publication ? publication->fd : NONE,
                          publication || !event->finishes ? NULL : server);
    if (!flight)
        return MUST_WAIT;
    if (publication)
        publication->flight = flight;
    return ON_ITS_WAY;
}

/*
 * Publishes an event, or finishes the topic. A topic that is finished already
 * stays as it is, unless the end has an id from outside, which says that
 * another server has this end too. `publication` is NULL for the server's own.
 */
static enum outcome publish_event(struct server *server, struct topic *topic,
                                  const struct event *event,
                                  struct publication *publication)
{
    if (event->finishes && !event->id && topic_finished(&server->ring, topic))
        return PUBLISHED;
    if (is_shared(server))
        return share_event(server, topic, event, publication);
    return append_event(server, topic, event);
}

/* The clock of the main stream. A message that must wait is made anew in the
 * next turn; one that is missed is not made up for. */
static void publish_clock(struct server *server)
{
    char message[64];
    time_t seconds = time(NULL);
    struct event event = { 0 };
    struct tm tm;

    if (server->http.now < server->next_clock)
        return;
    localtime_r(&seconds, &tm);
    event.data.data = message;
    event.data.length =
        strftime(message, sizeof(message), "当前时间: %Y-%m-%d %H:%M:%S", &tm);
    if (publish_event(server, server->main_topic, &event, NULL) == MUST_WAIT)
        return;
    server->next_clock += server->options.interval;
    if (server->next_clock <= server->http.now)
        server->next_clock = server->http.now + server->options.interval;
}

/* ------------------------------------------------------------- delivery
 *
 * Sends to subscribers what there is for them, from their places to the end.
 * stream_send() is the one way to a subscriber. It sends until all is sent, the
 * socket is full, or the subscriber has had SEND_BUDGET bytes; then it waits
 * for EPOLLOUT, or in QUEUE_READY for the others to have their turn.
 *
 * What only this subscriber gets goes out at once (first blocks, a heartbeat)
 * or after all frames (the end of a catch-up, the farewell). What a full socket
 * does not take of it waits in subscriber->own, ahead of the frames to come. On
 * the main stream a replay is the same sending with a limit (replay_end) and
 * with spliced frames.
 *
 * A turn delivers in two quanta: one for the passes over topics with new frames
 * (pass_next()), one for QUEUE_READY. So new events go out however much is
 * replayed. A quantum is bounded in sends, each of which is a system call, and
 * in bytes. Gathering small frames takes time as well: each iovec counts as
 * PIECE_COST bytes. With quanta much below 2 MB, the turns between them slowed
 * replays by some per cent.
 *
 * This is the hot path: stream_send() and what it calls run once for every
 * subscriber and event. bench/scale measures it.
 */

struct own {
    uint32_t sent, length;
    char bytes[];
};

static bool is_replaying(const struct subscriber *subscriber)
{
    return !subscriber->is_ahead && subscriber->replay_end;
}

static struct reader subscriber_reader(struct subscriber *subscriber)
{
    bool replays = is_replaying(subscriber);

    return (struct reader){
        .places = subscriber_places(subscriber),
        .count = subscriber->topic_count,
        .form = subscriber->form | (replays ? FORM_SPLICED : 0U),
        .until = replays ? subscriber->replay_end : UINT64_MAX
    };
}

/* Has `rest`, which may be the end of subscriber->own, wait for room in the
 * socket. False without memory. */
static bool set_own(struct server *server, struct subscriber *subscriber,
                    struct slice rest)
{
    struct own *own = subscriber->own;
    size_t room = own ? sizeof(*own) + own->length : 0;
    char *memory = (char *)own;

    if (own && rest.length &&
        rest.data + rest.length == own->bytes + own->length) {
        own->sent = own->length - (uint32_t)rest.length;
        return true;
    }
    memory_free(&server->http, &memory, &room);
    subscriber->own = NULL;
    if (rest.length == 0)
        return true;
    if (!memory_grow(&server->http, &memory, &room, sizeof(*own) + rest.length))
        return false;
    subscriber->own = own = (struct own *)(void *)memory;
    *own = (struct own){ .length = (uint32_t)rest.length };
    memcpy(own->bytes, rest.data, rest.length);
    return true;
}

/* The id at which a subscriber stands that has been sent everything. */
static uint64_t position_of(const struct server *server,
                            const struct subscriber *subscriber)
{
    if (subscriber->is_ahead && subscriber->ahead > server->ring.newest_id)
        return subscriber->ahead;
    return server->ring.newest_id;
}

/* Has more sent to the subscriber after the others have had their turn. */
static void ready_push(struct server *server, struct conn *conn)
{
    struct reader reader = subscriber_reader(&conn->subscriber);
    uint64_t needed = reader_next(&server->ring, &reader);

    if (conn->queue == QUEUE_READY)
        return;
    queue_push(&server->http, QUEUE_READY, conn);
    if (needed && (!server->ready_from || needed < server->ready_from))
        server->ready_from = needed;
    if (needed &&
        (!server->ready_from_next || needed < server->ready_from_next))
        server->ready_from_next = needed;
}

/* Says when to come back: spread, so that not all do it at once; and from which
 * position, unless that is NULL. */
static void send_off(const struct server *server,
                     const struct subscriber *subscriber,
                     const uint64_t *position, struct text *text)
{
    uint64_t retry = 1000 + random_up_to(server->options.drain_spread);
    struct block block = { .retry = &retry, .id = position };

    text_put_block(text, subscriber->form, &block, NULL);
}

static void end_stream(struct subscriber *subscriber, struct text *text)
{
    if (subscriber->form & FORM_CHUNKED)
        text_put(text, LAST_CHUNK);
    subscriber->end = STREAM_ENDS;
}

/* The last block of a stream whose token has expired, at the place it has come
 * to: what is newer is for a fresh token. */
static void put_expired(const struct server *server, const struct conn *conn,
                        const struct reader *reader, struct text *text)
{
    bool is_main = reads_main(server, reader);
    uint64_t next = reader_next(&server->ring, reader);
    uint64_t position = next ? ring_frame(&server->ring, next)->id - 1
                             : position_of(server, &conn->subscriber);
    struct block block = { .id = &position,
                           .event =
                               is_main ? SLICE("") : SLICE("ssed.expired") };

    text_put_block(text, conn->subscriber.form, &block, "{%s\"exp\":%u}",
                   is_main ? "\"type\":\"expired\"," : "", conn->expires);
}

/*
 * The subscriber's own bytes that come after all frames so far: the end of a
 * replay, or of the stream. Usually there are none. A subscriber that is ahead
 * does not end with its topics: it has passed their end elsewhere, and they may
 * have gone on there.
 */
static struct slice next_own(struct server *server, struct conn *conn,
                             const struct reader *reader, struct text *text)
{
    struct subscriber *subscriber = &conn->subscriber;
    bool drains = server->phase == PHASE_DRAIN;

    text->length = 0;
    if (subscriber->end == STREAM_EXPIRES) {
        put_expired(server, conn, reader, text);
        end_stream(subscriber, text);
    } else if (is_replaying(subscriber)) {
        if (subscriber->place.last < subscriber->replay_end)
            return text_slice(text);
        text_put_block(text, subscriber->form, &(struct block){ 0 },
                       "{\"type\":\"catch_up_end\","
                       "\"message\":\"消息同步完成\",\"syncCount\":%u}",
                       subscriber->replay_count);
        subscriber->replay_end = 0;
    } else if ((drains || (!subscriber->is_ahead && reader_ended(reader))) &&
               subscriber->end == STREAM_GOES_ON &&
               !reader_next(&server->ring, reader)) {
        uint64_t position = position_of(server, subscriber);

        if (drains)
            send_off(server, subscriber, &position, text);
        end_stream(subscriber, text);
    }
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
    if (subscriber->end != STREAM_ENDS)
        count += ring_gather(&server->ring, reader, subscriber->progress.sent,
                             iov + count, IOV_ROOM - count, SEND_BUDGET);
    *bytes = 0;
    for (int i = 0; i < count; i++)
        *bytes += iov[i].iov_len;
    return count;
}

static void stream_advance(struct server *server, struct subscriber *subscriber,
                           const struct reader *reader, struct slice *own,
                           size_t sent, int pieces)
{
    size_t first = sent < own->length ? sent : own->length;
    uint32_t events = subscriber->progress.events;

    *own = slice_from(*own, first);
    ring_advance(&server->ring, reader, &subscriber->progress, sent - first);
    server->figures.events_sent += subscriber->progress.events - events;
    server->figures.bytes_sent += sent;
    subscriber->bytes += sent;
    subscriber->active = (uint32_t)server->http.now;
    server->quantum_sends++;
    server->quantum_bytes += sent + (size_t)pieces * PIECE_COST;
}

/*
 * Sends `own`, then the frames from the places to the end; *own is then what is
 * left of it. Says why it stopped. A send that takes less than it was given
 * shows that the socket is full; one that takes all, when there was room for
 * more iovecs, shows that nothing is left. So neither needs another call.
 */
static enum io stream_write(struct server *server, struct conn *conn,
                            struct slice *own, struct text *text)
{
    struct subscriber *subscriber = &conn->subscriber;
    struct iovec iov[IOV_ROOM];
    size_t total = 0, bytes;
    struct reader reader = subscriber_reader(subscriber);
    uint64_t newest_id = server->ring.newest_id;
    bool all = false; /* all frames that there are have been sent */

    if (subscriber->is_ahead) {
        reader_skip(&server->ring, &reader, subscriber->ahead);
        if (newest_id && newest_id >= subscriber->ahead) {
            subscriber->is_ahead = false;
            subscriber->replay_end = 0;
        }
    }
    if (subscriber->end == STREAM_LEAVES && !subscriber->progress.sent &&
        own->length == 0) {
        send_off(server, subscriber, NULL, text);
        end_stream(subscriber, text);
        *own = text_slice(text);
    } else if (reader_overrun(&reader) || subscriber->end == STREAM_LEAVES) {
        return IO_OVERRUN;
    }
    if (subscriber->end == STREAM_EXPIRES) /* a frame that has begun is sent */
        reader.until =
            subscriber->progress.sent ? reader_next(&server->ring, &reader) : 0;
    for (;;) {
        ssize_t sent;
        int count;

        if (all) {
            *own = next_own(server, conn, &reader, text);
            if (own->length == 0)
                return IO_DONE;
            reader = subscriber_reader(subscriber); /* a replay has ended */
        }
        count = stream_gather(server, subscriber, &reader, *own, iov, &bytes);
        all = count == 0;
        if (all)
            continue;
        if (total >= SEND_BUDGET)
            return IO_BUDGET;
        sent = stream_send_iovecs(&server->http, conn, iov, count, bytes);
        if (sent < 0)
            return errno == EAGAIN ? IO_FULL : IO_ERROR;
        stream_advance(server, subscriber, &reader, own, (size_t)sent, count);
        total += (size_t)sent;
        if ((size_t)sent < bytes)
            return IO_FULL;
        all = bytes < SEND_BUDGET && count < IOV_ROOM;
    }
}

/* Sends `own`, which goes to this subscriber alone and is mostly empty, then
 * the frames from its places on. */
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
    } else if ((subscriber->own || own.length) &&
               !set_own(server, subscriber, own)) {
        conn_close(http, conn, error_name(ENOMEM));
    } else if (outcome == IO_DONE && subscriber->end == STREAM_ENDS) {
        struct reader reader = subscriber_reader(subscriber);

        conn_close(http, conn,
                   server->phase == PHASE_DRAIN    ? "drained"
                   : right_left(server, conn) == 0 ? "expired"
                   : reader_ended(&reader)         ? "finished"
                                                   : "gap");
    } else {
        conn_await_room(http, conn, outcome == IO_FULL);
        if (outcome == IO_BUDGET)
            ready_push(server, conn);
    }
}

static bool quantum_is_over(const struct server *server)
{
    return server->quantum_sends >= QUANTUM_SENDS ||
           server->quantum_bytes >= QUANTUM_BYTES;
}

/*
 * While a pass is under way, frames pile up, and each subscriber gets all of
 * them at once when its turn comes. One with a full socket is left to EPOLLOUT,
 * unless it is overrun: waiting would not help it.
 *
 * Each subscriber in QUEUE_READY then comes once in a round. ready_from holds
 * up publishers, so it must rise when those frames have been sent: at the end
 * of a round it becomes what was needed by those queued during the round.
 */
static void deliver(struct server *server)
{
    const struct queue *ready = &server->http.queues[QUEUE_READY];
    uint32_t fd;

    pass_wake(&server->ring);
    server->quantum_bytes = server->quantum_sends = 0;
    while (!quantum_is_over(server) &&
           (fd = pass_next(&server->ring)) != NONE) {
        struct conn *conn = conn_at(&server->http, fd);
        struct reader reader = subscriber_reader(&conn->subscriber);

        if (!conn_awaits_room(conn) || reader_overrun(&reader))
            stream_send(server, conn, SLICE(""));
    }
    server->http.used_up[BUDGET_EVENTS] += quantum_is_over(server);
    pass_yield(&server->ring);
    server->quantum_bytes = server->quantum_sends = 0;
    while (ready->count && !quantum_is_over(server)) {
        if (server->ready_round == 0) {
            server->ready_round = ready->count;
            server->ready_from = server->ready_from_next;
            server->ready_from_next = 0;
        }
        server->ready_round--;
        stream_send(server, queue_pop(&server->http, QUEUE_READY), SLICE(""));
    }
    server->http.used_up[BUDGET_CATCH_UP] += ready->count > 0;
    if (ready->count == 0) {
        server->ready_round = 0;
        server->ready_from = server->ready_from_next = 0;
    }
}

/* The right to read has ended. A subscriber that is in the middle of a frame
 * gets the rest of it, if it takes that in time. */
static void expire_stream(struct server *server, struct conn *conn)
{
    if (conn->subscriber.end != STREAM_GOES_ON) {
        conn_cut(&server->http, conn, "expired");
        return;
    }
    conn->subscriber.end = STREAM_EXPIRES;
    timer_start(&server->http, conn, EXPIRY_PATIENCE);
    if (!conn_awaits_room(conn))
        stream_send(server, conn, SLICE(""));
}

/* A handler: a stream's timer has expired. A subscriber that has been sent
 * everything gets the newest id, so that it comes back with that. */
static void handle_expired(struct server *server, struct conn *conn)
{
    struct subscriber *subscriber = &conn->subscriber;
    struct reader reader = subscriber_reader(subscriber);
    uint64_t period = server->options.heartbeat;
    uint64_t position = position_of(server, subscriber);
    uint32_t silence = (uint32_t)server->http.now - subscriber->active;
    char bytes[256], timestamp[TIMESTAMP_SIZE];
    struct text text = { bytes, sizeof(bytes), 0 };

    if (right_left(server, conn) == 0) {
        expire_stream(server, conn);
        return;
    }
    start_stream_timer(server, conn);
    if (!period || silence < period || subscriber->own ||
        is_replaying(subscriber) || conn_awaits_room(conn))
        return;
    if (reader_next(&server->ring, &reader)) { /* it waits for --pace */
        stream_send(server, conn, SLICE(""));
        return;
    }
    text_put_block(&text, subscriber->form, &(struct block){ .id = &position },
                   reads_main(server, &reader)
                       ? "{\"type\":\"heartbeat\",\"timestamp\":\"%s\"}"
                       : NULL,
                   format_now(timestamp));
    stream_send(server, conn, text_slice(&text));
}

/* ------------------------------------------------------- the history file
 *
 * When what has been appended is brought to the disk: with --sync SECONDS by
 * the clock, with --sync always before the answers of the turn are sent
 * (handle_promises()), and at the end.
 */

/* A failure is never forgotten: the kernel may have dropped the pages that it
 * could not write, and the next msync(2) would then succeed without them. */
static void sync_history(struct server *server)
{
    uint64_t began;
    int outcome;

    if (!server->ring.unsynced)
        return;
    began = clock_us(CLOCK_MONOTONIC);
    outcome = ring_sync(&server->ring);
    histogram_add(&server->figures.syncs, sync_bounds,
                  clock_us(CLOCK_MONOTONIC) - began);
    if (outcome == 0)
        return;
    log_event(LEVEL_ERROR, "sync_failed", "file=\"%s\" error=%s",
              server->options.history_file, error_name(errno));
    server->sync_failed = true;
}

static void look_for_file(struct server *server)
{
    if (server->file_deleted || !ring_deleted(&server->ring))
        return;
    server->file_deleted = true;
    log_event(LEVEL_ERROR, "history_file_deleted",
              "file=\"%s\" meaning=\"the next start begins a new one\"",
              server->options.history_file);
}

/* With --sync always this is for events that no answer promises, such as the
 * clock's. After a failure it tries once a second, not in every turn. */
static void sync_when_due(struct server *server)
{
    uint64_t pause = server->options.sync;

    if (!server->ring.unsynced || server->http.now < server->next_sync)
        return;
    if (server->sync_failed && pause < SYNC_DEFAULT)
        pause = SYNC_DEFAULT;
    server->next_sync = server->http.now + pause;
    look_for_file(server);
    sync_history(server);
}

static void end_history(struct server *server)
{
    look_for_file(server);
    if (server->sync_failed || ring_end(&server->ring) < 0)
        log_event(
            LEVEL_ERROR, "sync_failed",
            "file=\"%s\" meaning=\"if the machine goes down now, the next "
            "start tells of a gap\"",
            server->options.history_file);
}

/* ---------------------------------------------------------- the shared log
 *
 * With --redis the history is that of a log which several nodes share. Its
 * entries are appended here as they are read, in the log's order and with its
 * ids. A publisher is answered when its event has come back. http.c reads and
 * writes the log; these are its handlers.
 *
 * What is no event is passed over. A "begin" says that the log may have lost
 * its end: every older position is told of a gap, and then gets what is held.
 * Where the log itself shows that something is missing here, what was held is
 * forgotten as well, since other nodes may not have it.
 */

/* Everything up to the id may have been lost. Subscribers are sent off to come
 * back and be told. */
static void begin_again(struct server *server, uint64_t id, const char *why)
{
    struct ring *ring = &server->ring;

    if (server->loaded)
        log_event(LEVEL_WARN, "log_gap", "id=%" PRIu64 " reason=\"%s\"", id,
                  why);
    ring_begin_after(ring, id > ring->newest_id ? id : ring->newest_id);
    for (uint32_t fd = 0; fd < server->http.conn_limit; fd++) {
        struct conn *conn = conn_at(&server->http, fd);

        if (conn->state != CONN_STREAM || conn->subscriber.end == STREAM_ENDS)
            continue;
        conn->subscriber.end = STREAM_LEAVES;
        ready_push(server, conn);
    }
}

/* What is held may not be in the log any more. */
static void handle_log_gap(struct server *server, uint64_t id)
{
    ring_forget(&server->ring);
    server->ready_from = server->ready_from_next = 0;
    begin_again(server, id, "events before it are missing");
}

/* Takes an event from an entry. Returns why it is none, or NULL. */
static const char *read_entry(const struct server *server,
                              const struct log_entry *entry,
                              struct event *event)
{
    const struct slice *values = entry->fields;
    struct slice kind = values[ENTRY_KIND], topic = values[ENTRY_TOPIC];
    bool ends = slice_is(kind, "end") || slice_is(kind, "abort");
    const char *refused = topic.length ? topic_name_refused(topic) : NULL;
    uint64_t number;

    *event = (struct event){ .id = entry->id,
                             .data = values[ENTRY_DATA],
                             .finishes = ends,
                             .incomplete = slice_is(kind, "abort") };
    if (!topic.data)
        return "it has no field t, its topic";
    if (refused)
        return refused;
    if (kind.data && !ends)
        return "its field k is not end, abort or begin";
    if (ends && topic.length == 0)
        return "the main stream has no end";
    if (!ends && !values[ENTRY_DATA].data)
        return "it has no field d, its data";
    if (values[ENTRY_DATA].length > server->options.max_event)
        return "its data is longer than --max-event";
    if (slice_number(values[ENTRY_TIME], INT64_MAX / 1000, &number))
        event->time = (int64_t)number;
    if (ends || topic.length == 0)
        return NULL;
    event->name = values[ENTRY_EVENT];
    event->retry = values[ENTRY_RETRY];
    if (event->retry.data &&
        (event->retry.length > EVENT_NUMBER_MAX ||
         strspn(event->retry.data, "0123456789") < event->retry.length))
        return "its field r, the retry, is no number";
    return name_refused(event->name);
}

/* Returns why the event is passed over, or NULL; *waits if there is no room. */
static const char *take_event(struct server *server, struct slice name,
                              const struct event *event, bool *waits)
{
    struct topic *topic = topic_hold(&server->ring, name);
    const char *refused = NULL;

    *waits = !topic;
    if (!topic)
        return NULL;
    if (event->finishes && topic_finished(&server->ring, topic))
        refused = "the topic is finished already";
    else
        *waits = append_event(server, topic, event) == MUST_WAIT;
    if (event->finishes && !refused && !*waits)
        stop_publications(server, topic);
    topic_drop(&server->ring, topic);
    return refused;
}

static bool handle_entry(struct server *server, const struct log_entry *entry)
{
    bool is_ours = entry->ms == 0 && entry->id > 0 && entry->id <= ID_MAX;
    bool begins = is_ours && slice_is(entry->fields[ENTRY_KIND], "begin");
    struct event event;
    const char *refused = begins    ? NULL
                          : is_ours ? read_entry(server, entry, &event)
                                    : "its id is not 0-N";
    bool waits = false;

    if (begins)
        begin_again(server, entry->id, "the log has begun anew");
    else if (!refused)
        refused =
            take_event(server, entry->fields[ENTRY_TOPIC], &event, &waits);
    if (waits)
        return false;
    server->figures.entries_skipped += refused != NULL;
    if (refused && may_log(server, LEVEL_WARN))
        log_event(LEVEL_WARN, "log_skipped",
                  "id=%" PRIu64 "-%" PRIu64 " reason=\"%s\"", entry->ms,
                  entry->id, refused);
    if (is_ours)
        ring_pass(&server->ring, entry->id);
    return true;
}

static void announce_ready(const struct server *server);

static void log_away(const char *reason)
{
    char quoted[2 * sizeof(((struct redis *)0)->reason)];

    log_event(LEVEL_WARN, "log", "state=away reason=%s",
              log_quote(quoted, sizeof(quoted), slice_of(reason)));
}

/* Logged once for each change, and for each new reason. */
static void handle_log_changed(struct server *server)
{
    const struct redis *redis = &server->http.redis;
    bool ready = redis->state == REDIS_READY;

    if (ready == server->is_log_ready &&
        (ready || strcmp(redis->reason, server->log_reason) == 0))
        return;
    if (ready)
        log_event(LEVEL_INFO, "log", "state=ready newest_id=%" PRIu64,
                  server->ring.newest_id);
    else
        log_away(redis->reason);
    if (server->is_log_ready)
        format_now(server->away_since);
    server->is_log_ready = ready;
    strcpy(server->log_reason, ready ? "" : redis->reason);
    if (ready && !server->loaded) {
        server->loaded = true;
        announce_ready(server);
    }
}

/* Those in QUEUE_LOG are tried again, each once. */
static void handle_log_round(struct server *server)
{
    server->log_wakes = server->http.queues[QUEUE_LOG].count;
}

static void wake_for_log(struct server *server)
{
    uint64_t end = clock_us(CLOCK_MONOTONIC) + TURN_RETRY;
    const struct queue *queue = &server->http.queues[QUEUE_LOG];

    if (server->log_wakes > queue->count) /* some have left */
        server->log_wakes = queue->count;
    while (server->log_wakes && queue->count &&
           clock_us(CLOCK_MONOTONIC) < end) {
        struct conn *conn = conn_at(&server->http, queue->list.first);

        server->log_wakes--;
        if (conn->exchange->publication.topic) {
            queue_remove(&server->http, conn);
            publication_step(server, conn);
        } else {
            conn_resume(&server->http, conn);
        }
    }
}

/* A publisher that was stopped had sent an event that may have opened the topic
 * again: it is finished once more. */
static void finish_again(struct server *server, struct topic *topic)
{
    if (topic_promise(&server->ring, topic))
        topic_settle(&server->ring, topic, true);
    topic_drop(&server->ring, topic);
}

/* Standard input is asked by nobody whether it succeeded: its event is appended
 * again, even if it may then be there twice. */
static void input_again(struct server *server, struct conn *conn,
                        const char *why)
{
    log_event(LEVEL_WARN, "input_repeated", "reason=\"%s\"", why);
    conn_wait(&server->http, conn, QUEUE_LOG);
}

static void handle_flight_ended(struct server *server, uint32_t fd,
                                void *context, enum flight_end end, uint64_t id,
                                const char *why)
{
    struct conn *conn = conn_at(&server->http, fd == NONE ? 0 : fd);
    struct publication *publication;

    if (fd == NONE) {
        server->mends = server->mends && context != server;
        if (context && context != server)
            finish_again(server, context);
        return;
    }
    server->figures.flights_refused += end == FLIGHT_REFUSED;
    server->figures.flights_unknown += end == FLIGHT_UNKNOWN;
    if (end == FLIGHT_REFUSED && may_log(server, LEVEL_WARN))
        log_event(LEVEL_WARN, "log_refused", "reason=\"%s\"", why);
    publication = &conn->exchange->publication;
    publication->flight = 0;
    if (end == FLIGHT_LOGGED) {
        publication->logged = id;
        publication_step(server, conn);
        if (server->phase >= PHASE_DRAIN && conn->state == CONN_BODY &&
            is_streamed(publication) && publication->step == STEP_TAKE)
            publication_fail(server, conn, 503, DRAINING_TEXT);
    } else if (end == FLIGHT_AGAIN) {
        conn_wait(&server->http, conn, QUEUE_WAITING);
    } else if (is_input(conn)) {
        input_again(server, conn, why);
    } else if (end == FLIGHT_REFUSED) {
        publication_fail(server, conn, 503, why);
    } else {
        settle_promise(server, publication, false);
        respond_published(server, conn, 503, why, true);
    }
}

/* ---------------------------------------------------------------- figures
 *
 * What those who watch the server are told: `figures` has a row for each. What
 * happens is counted where it happens, in plain counters. What is so at the
 * moment is read when it is asked for.
 */

#define UNKNOWN UINT64_MAX

static uint32_t subscriber_count(const struct server *server)
{
    return server->http.in_state[CONN_STREAM];
}

static uint64_t read_one(const struct server *server, unsigned i)
{
    (void)server;
    (void)i;
    return 1;
}

static uint64_t read_phase(const struct server *server, unsigned i)
{
    (void)i;
    return server->phase;
}

static uint64_t read_subscribers(const struct server *server, unsigned i)
{
    (void)i;
    return subscriber_count(server);
}

static uint64_t read_connections(const struct server *server, unsigned i)
{
    const struct http *http = &server->http;
    const uint64_t values[] = { http->connections, http->admin_connections };

    return values[i];
}

static uint64_t read_files(const struct server *server, unsigned i)
{
    (void)i;
    return server->http.files;
}

static uint64_t read_descriptors(const struct server *server, unsigned i)
{
    (void)i;
    return server->http.conn_limit;
}

/* Those between CONN_REDIS and CONN_CLOSED. */
static const char *const state_names[] = { "request", "body",   "waiting",
                                           "respond", "stream", "status",
                                           "linger",  NULL };

static uint64_t read_states(const struct server *server, unsigned i)
{
    return server->http.in_state[CONN_REQUEST + i];
}

/* The main stream is no topic. */
static uint64_t read_topics(const struct server *server, unsigned i)
{
    (void)i;
    return server->ring.topic_count - 1;
}

static uint64_t read_held_events(const struct server *server, unsigned i)
{
    (void)i;
    return server->ring.next - server->ring.oldest;
}

static uint64_t read_held_bytes(const struct server *server, unsigned i)
{
    (void)i;
    return server->ring.used;
}

static uint64_t read_age(const struct server *server, unsigned i)
{
    const struct ring *ring = &server->ring;

    (void)i;
    return ring->oldest < ring->next ? ring_age(ring, ring->oldest) : UNKNOWN;
}

static uint64_t read_log_up(const struct server *server, unsigned i)
{
    (void)i;
    return server->http.redis.state == REDIS_READY;
}

static uint64_t read_flights(const struct server *server, unsigned i)
{
    (void)i;
    return server->http.redis.flight_next - server->http.redis.flight_first;
}

static uint64_t read_left_out(const struct server *server, unsigned i)
{
    (void)server;
    (void)i;
    return logger.left_out + logger.suppressed;
}

/* The second number of proc_pid_statm(5), in pages. */
static uint64_t read_resident(const struct server *server, unsigned i)
{
    char text[128], *rest;
    ssize_t length = pread(server->statm, text, sizeof(text) - 1, 0);
    uint64_t pages;

    (void)i;
    if (length <= 0)
        return UNKNOWN;
    text[length] = '\0';
    strtoull(text, &rest, 10);
    pages = strtoull(rest, NULL, 10);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static const char *const version_names[] = { VERSION, NULL };
static const char *const connection_names[] = { "public", "admin", NULL };
static const char *const gap_names[] = { "evicted", "ahead", "invalid", NULL };
#define STATUS_NAME(status) #status,
static const char *const status_names[] = { STATUSES(STATUS_NAME) "other",
                                            NULL };
static const char *const budget_names[] = {
    "timers",     "requests", "requests_busy", "answers", "answers_busy",
    "publishers", "events",   "catch_up",      NULL
};
static const char *const limit_names[] = {
    "max_connections", "max_per_address", "admin_connections",
    "accept",          "request_memory",  "max_failures",
    "max_topics",      "max_event",       NULL
};
_Static_assert(COUNT(state_names) == CONN_CLOSED - CONN_REQUEST + 1,
               "a name for each");
_Static_assert(COUNT(gap_names) == GAPS + 1, "a name for each");
_Static_assert(COUNT(budget_names) == BUDGETS + 1, "a name for each");
_Static_assert(COUNT(limit_names) == LIMITS + 1, "a name for each");

/* A value of one figure, read from where it is: of a label's values, the one
 * with that index. */
typedef uint64_t read_figure(const struct server *server, unsigned i);

enum figure_type {
    COUNTER,
    GAUGE,
    HISTOGRAM,
};
static const char *const type_names[] = { "counter", "gauge", "histogram" };

struct figure {
    const char *name;
    const char *help;
    size_t place;      /* in struct server: of a uint64_t, or of one for each
                          value of the label; or of a struct histogram */
    read_figure *read; /* or this tells the value */
    const char *label; /* or NULL */
    const char *const *values; /* of the label; NULL ends them */
    const uint64_t *bounds;    /* or they are these; 0 ends them */
    uint64_t unit;             /* so many are a second */
    enum figure_type type;
    unsigned needs; /* it is told only with this */
};

enum {
    NEEDS_LOG = 1, /* --redis */
    NEEDS_FILE,    /* --history-file */
    MS = 1000,     /* in a second */
    US = 1000000,
};

static const struct figure figures[] = {
    { "build_info", "The version; always 1.", .type = GAUGE, .read = read_one,
      .label = "version", .values = version_names },
    { "start_time_seconds", "When the process began, since 1970.",
      .type = GAUGE, .place = PLACE(started), .unit = MS },
    { "phase", "0 serves, 1 is about to drain, 2 drains.", .type = GAUGE,
      .read = read_phase },
    /* connections */
    { "subscribers", "Open event streams.", .type = GAUGE,
      .read = read_subscribers },
    { "connections", "Open connections, by listener.", .type = GAUGE,
      .read = read_connections, .label = "listener",
      .values = connection_names },
    { "connections_limit", "As many as there may be: --max-connections.",
      .type = GAUGE, .place = PLACE(http.max_connections) },
    { "files", "Files of --root that are being sent.", .type = GAUGE,
      .read = read_files },
    { "descriptors_limit", "Descriptors for connections, files and all else.",
      .type = GAUGE, .read = read_descriptors },
    { "connections_by_state", "Open connections, by what they do.",
      .type = GAUGE, .read = read_states, .label = "state",
      .values = state_names },
    { "subscriptions_total", "Event streams that have begun.", .type = COUNTER,
      .place = PLACE(figures.subscriptions) },
    { "unsubscribed_total", "Event streams that have ended, by reason.",
      .type = COUNTER, .place = PLACE(figures.ends), .label = "reason",
      .values = end_names },
    /* events */
    { "events_published_total", "Events put into the history.", .type = COUNTER,
      .place = PLACE(figures.events) },
    { "published_bytes_total", "Their bytes, as they are sent.",
      .type = COUNTER, .place = PLACE(figures.bytes) },
    { "events_sent_total", "Events sent, to each subscriber.", .type = COUNTER,
      .place = PLACE(figures.events_sent) },
    { "sent_bytes_total", "Bytes sent to subscribers.", .type = COUNTER,
      .place = PLACE(figures.bytes_sent) },
    { "publishes_total", "Requests to publish or to finish a topic, by status.",
      .type = COUNTER, .place = PLACE(figures.publishes), .label = "status",
      .values = status_names },
    { "input_skipped_total", "Events on standard input that were refused.",
      .type = COUNTER, .place = PLACE(figures.input_skipped) },
    { "replays_total", "Subscriptions that began with older events.",
      .type = COUNTER, .place = PLACE(figures.replays) },
    { "events_replayed_total", "Those events.", .type = COUNTER,
      .place = PLACE(figures.events_replayed) },
    { "gaps_total", "Subscribers that were told of a gap, by cause.",
      .type = COUNTER, .place = PLACE(figures.gaps), .label = "cause",
      .values = gap_names },
    /* lag */
    { "lag_events_max", "Events not sent to the subscriber furthest behind.",
      .type = GAUGE, .place = PLACE(scan.last.events) },
    { "lag_seconds_max", "Age of the oldest event not sent to some subscriber.",
      .type = GAUGE, .place = PLACE(scan.last.ms), .unit = MS },
    { "subscribers_behind_events",
      "Subscribers that are more than so many events behind.", .type = GAUGE,
      .place = PLACE(scan.last.behind_events), .label = "over",
      .bounds = event_bounds },
    { "subscribers_behind_seconds",
      "Subscribers whose next event is older than so many seconds.",
      .type = GAUGE, .place = PLACE(scan.last.behind_ms), .label = "over",
      .bounds = time_bounds, .unit = MS },
    /* the history */
    { "topics", "Topics that are known.", .type = GAUGE, .read = read_topics },
    { "topics_without_event", "Topics of which no event is held.",
      .type = GAUGE, .place = PLACE(ring.empty) },
    { "topics_without_event_limit", "Of those: --max-topics.", .type = GAUGE,
      .place = PLACE(ring.max_topics) },
    { "history_events", "Events held.", .type = GAUGE,
      .read = read_held_events },
    { "history_events_limit", "Events held at most: --history.", .type = GAUGE,
      .place = PLACE(ring.limit) },
    { "history_bytes", "Bytes held.", .type = GAUGE, .read = read_held_bytes },
    { "history_bytes_limit", "Bytes held at most: --history-bytes.",
      .type = GAUGE, .place = PLACE(options.history_bytes) },
    { "history_age_seconds", "Age of the oldest event that is held.",
      .type = GAUGE, .read = read_age, .unit = MS },
    { "newest_id", "Id of the newest event.", .type = GAUGE,
      .place = PLACE(ring.newest_id) },
    { "sync_seconds", "Time to bring the history to the disk.",
      .type = HISTOGRAM, .place = PLACE(figures.syncs), .bounds = sync_bounds,
      .unit = US, .needs = NEEDS_FILE },
    /* the loop */
    { "turn_seconds", "Time of a turn, without its wait.", .type = HISTOGRAM,
      .place = PLACE(figures.turns), .bounds = turn_bounds, .unit = US },
    { "used_up_total",
      "Turns in which something was left, by what had no more time.",
      .type = COUNTER, .place = PLACE(http.used_up), .label = "budget",
      .values = budget_names },
    /* limits */
    { "limits_hit_total", "How often a limit was met.", .type = COUNTER,
      .place = PLACE(http.limits_hit), .label = "limit",
      .values = limit_names },
    { "request_memory_bytes", "Memory that requests hold.", .type = GAUGE,
      .place = PLACE(http.request_memory) },
    { "request_memory_limit_bytes", "At most: --request-memory.", .type = GAUGE,
      .place = PLACE(http.memory_limit) },
    { "resident_memory_bytes", "Memory of the process.", .type = GAUGE,
      .read = read_resident },
    { "log_lines_left_out_total",
      "Lines that the log has not, since they were too many.", .type = COUNTER,
      .read = read_left_out },
    /* several nodes */
    { "log_up", "Whether the log in Redis can be used.", .type = GAUGE,
      .read = read_log_up, .needs = NEEDS_LOG },
    { "log_flights", "Events on their way to the log.", .type = GAUGE,
      .read = read_flights, .needs = NEEDS_LOG },
    { "log_refused_total", "Events that Redis has refused.", .type = COUNTER,
      .place = PLACE(figures.flights_refused), .needs = NEEDS_LOG },
    { "log_unknown_total", "Events that may be in the log or not.",
      .type = COUNTER, .place = PLACE(figures.flights_unknown),
      .needs = NEEDS_LOG },
    { "log_skipped_total", "Entries of the log that are no events.",
      .type = COUNTER, .place = PLACE(figures.entries_skipped),
      .needs = NEEDS_LOG },
};

enum {
    LINE_MAX_BYTES = 512,    /* of what one line of a figure may be */
    FIGURES_MAX = 32 * 1024, /* of all of them, as JSON */
    STATUS_SIZE = FIGURES_MAX + 2 * RANKS * (TOPIC_NAME_MAX + 64) + 256,
};

/* ------------------------------------------------------- figures as text
 *
 * A figure has samples: its one value, or one for each value of its label, or
 * what a histogram is made of. They are numbered from 0 on, and each has a name
 * and a value, whatever form it is written in.
 *
 * Callers: the admin listener, for put_next_line(); put_status(), for
 * put_figures().
 */

static unsigned count_bounds(const uint64_t *bounds)
{
    unsigned count = 0;

    while (bounds[count])
        count++;
    return count;
}

static unsigned count_samples(const struct figure *figure)
{
    unsigned count = 0;

    if (figure->bounds)
        return count_bounds(figure->bounds) +
               (figure->type == HISTOGRAM ? 3 : 0);
    while (figure->values && figure->values[count])
        count++;
    return figure->values ? count : 1;
}

static bool is_told(const struct server *server, const struct figure *figure)
{
    return (figure->needs != NEEDS_LOG || is_shared(server)) &&
           (figure->needs != NEEDS_FILE || server->options.history_file);
}

/* Of a histogram: the values up to each bound, up to any, their sum, and how
 * many there are. */
static uint64_t histogram_sample(const struct histogram *histogram,
                                 unsigned bounds, unsigned i)
{
    uint64_t count = 0;

    if (i == bounds + 1)
        return histogram->sum;
    for (unsigned j = 0; j <= i && j <= bounds; j++)
        count += histogram->counts[j];
    return count;
}

static uint64_t sample_value(const struct server *server,
                             const struct figure *figure, unsigned i)
{
    const void *place = (const char *)server + figure->place;

    if (figure->read)
        return figure->read(server, i);
    if (figure->type == HISTOGRAM)
        return histogram_sample(place, count_bounds(figure->bounds), i);
    return ((const uint64_t *)place)[i];
}

/* Writes the name of a sample, with its label: NAME{LABEL="VALUE"}. */
static void name_sample(const struct figure *figure, unsigned i,
                        char name[LINE_MAX_BYTES])
{
    static const char *const rests[] = { "_bucket{le=\"+Inf\"}", "_sum",
                                         "_count" };
    unsigned bounds = figure->bounds ? count_bounds(figure->bounds) : 0;
    bool is_bucket = figure->type == HISTOGRAM;

    assert(!is_bucket || i < bounds + COUNT(rests));
    if (is_bucket && i >= bounds)
        snprintf(name, LINE_MAX_BYTES, "ssed_%s%s", figure->name,
                 rests[i - bounds]);
    else if (figure->bounds)
        snprintf(name, LINE_MAX_BYTES, "ssed_%s%s{%s=\"%g\"}", figure->name,
                 is_bucket ? "_bucket" : "", is_bucket ? "le" : figure->label,
                 (double)figure->bounds[i] /
                     (double)(figure->unit ? figure->unit : 1));
    else if (figure->label)
        snprintf(name, LINE_MAX_BYTES, "ssed_%s{%s=\"%s\"}", figure->name,
                 figure->label, figure->values[i]);
    else
        snprintf(name, LINE_MAX_BYTES, "ssed_%s", figure->name);
}

/* Counts are whole; of times, the parts of a second are told. */
static void put_value(struct text *text, const struct figure *figure,
                      unsigned i, uint64_t value)
{
    unsigned bounds = figure->bounds ? count_bounds(figure->bounds) : 0;
    bool is_time = figure->type == HISTOGRAM ? i == bounds + 1
                                             : figure->unit && !figure->bounds;

    if (is_time)
        text_put(text, "%" PRIu64 ".%0*u", value / figure->unit,
                 figure->unit == US ? 6 : 3, (unsigned)(value % figure->unit));
    else
        text_put(text, "%" PRIu64, value);
}

/* Adds a sample, unless its value is not known: as a line of /metrics, or as a
 * member of a JSON object with a comma behind it. */
static void put_sample(const struct server *server, const struct figure *figure,
                       unsigned i, bool as_json, struct text *text)
{
    uint64_t value = sample_value(server, figure, i);
    char name[LINE_MAX_BYTES];

    if (value == UNKNOWN)
        return;
    name_sample(figure, i, name);
    if (as_json) {
        text_put(text, "\"");
        text_put_json(text, slice_of(name));
        text_put(text, "\":");
    } else {
        text_put(text, "%s ", name);
    }
    put_value(text, figure, i, value);
    text_put(text, as_json ? "," : "\n");
}

/* Adds what comes next of the figures as they stand in /metrics: the format is
 * Prometheus's, "Exposition formats", "Text-based format", version 0.0.4. False
 * if that was all. */
static bool put_next_line(const struct server *server, struct listing *listing,
                          struct text *text)
{
    const struct figure *figure = &figures[listing->row];

    if (listing->row == COUNT(figures))
        return false;
    if (!is_told(server, figure) || listing->line > count_samples(figure)) {
        listing->row++;
        listing->line = 0;
        return true;
    }
    if (listing->line == 0)
        text_put(text, "# HELP ssed_%s %s\n# TYPE ssed_%s %s\n", figure->name,
                 figure->help, figure->name, type_names[figure->type]);
    else
        put_sample(server, figure, listing->line - 1, false, text);
    listing->line++;
    return true;
}

/* Adds all figures, at most FIGURES_MAX bytes: the members of a JSON object,
 * named as in /metrics. */
static void put_figures(const struct server *server, struct text *text)
{
    for (const struct figure *figure = figures;
         figure < figures + COUNT(figures); figure++)
        for (unsigned i = 0;
             is_told(server, figure) && i < count_samples(figure); i++)
            put_sample(server, figure, i, true, text);
    text->length--; /* the last comma */
}

/* -------------------------------------------------------------------- lag
 *
 * How far subscribers are behind. Only that takes a look at each of them: a
 * round goes through the table of connections in slices, and is made only if
 * somebody asks.
 *
 * Callers: handle_content() begins a round and waits for its end,
 * begin_status() begins one; run_turn().
 */

static void rank_topic(struct server *server, const struct topic *topic,
                       uint64_t lag);
static void ranks_done(struct server *server);

/* Looks at one subscriber: how many events it has not been sent, and how old
 * the oldest of them is. One that is ahead is behind nothing here. */
static unsigned scan_subscriber(struct server *server,
                                struct subscriber *subscriber)
{
    const struct ring *ring = &server->ring;
    struct reader reader = subscriber_reader(subscriber);
    struct lag *lag = &server->scan.now;
    uint64_t events = 0, ms = 0, next;

    if (subscriber->is_ahead || reader_overrun(&reader))
        return reader.count;
    for (unsigned i = 0; i < reader.count; i++) {
        const struct place *place = &reader.places[i];
        uint64_t behind = topic_count_after(ring, place->topic, place->last);

        rank_topic(server, place->topic, behind);
        events += behind;
    }
    next = events ? reader_next(ring, &reader) : 0;
    if (next)
        ms = ring_age(ring, next);
    if (events > lag->events)
        lag->events = events;
    if (ms > lag->ms)
        lag->ms = ms;
    for (unsigned i = 0; event_bounds[i]; i++)
        lag->behind_events[i] += events > event_bounds[i];
    for (unsigned i = 0; time_bounds[i]; i++)
        lag->behind_ms[i] += ms > time_bounds[i];
    return reader.count;
}

/* Begins a round, if none is under way. */
static void scan_begin(struct server *server)
{
    struct scan *scan = &server->scan;

    if (scan->running)
        return;
    scan->running = true;
    scan->at = 0;
    scan->now = (struct lag){ 0 };
}

static void scan_end(struct server *server)
{
    struct scan *scan = &server->scan;

    scan->running = false;
    scan->last = scan->now;
    scan->rounds++;
    ranks_done(server);
}

/* A slice of the round, if one is under way. */
static void scan_slice(struct server *server)
{
    struct scan *scan = &server->scan;
    unsigned steps = 0;

    if (!scan->running)
        return;
    for (; steps < SCAN_STEPS && scan->at < server->http.conn_end; scan->at++) {
        struct conn *conn = conn_at(&server->http, scan->at);

        steps++;
        if (conn->state == CONN_STREAM)
            steps += scan_subscriber(server, &conn->subscriber);
    }
    if (scan->at >= server->http.conn_end)
        scan_end(server);
}

/* ------------------------------------------------------- the status stream
 *
 * GET /status of the admin listener: an event a second with all figures and
 * with the topics that are first in something, which status.html shows. Such a
 * stream reads no topic: it is no subscriber, and holds up no publisher. One
 * text is made for all of them. What a full socket does not take of it waits in
 * subscriber->own, and events are left out until that has been sent; a stream
 * that takes nothing for STATUS_PATIENCE is cut, for there are few.
 *
 * When an event is due, begin_status() has all subscribers scanned. The scan
 * tells rank_topic() of each place, and ranks_done() when it has ended: then
 * the event is sent. So the ranks are as new as the figures, and no turn looks
 * at more subscribers than a slice of the scan has.
 *
 * Callers: route_admin(); the round in "lag"; run_turn(); handle_writable(),
 * handle_closing().
 */

static uint64_t rank_key(const struct ranking *ranking, unsigned at)
{
    return ranking->by_lag ? ranking->ranks[at].lag
                           : ranking->ranks[at].subscribers;
}

static bool rank_is(const struct rank *rank, struct slice name)
{
    return rank->length == name.length &&
           memcmp(rank->name, name.data, name.length) == 0;
}

/* Finds a topic, or makes a place for it at the end; RANKS if the last one is
 * before it. */
static unsigned find_rank(struct ranking *ranking, const struct topic *topic,
                          uint64_t key)
{
    struct slice name = topic->name;
    unsigned at = 0;

    if (key == 0 ||
        (ranking->count == RANKS && key < rank_key(ranking, RANKS - 1)))
        return RANKS;
    while (at < ranking->count && !rank_is(&ranking->ranks[at], name))
        at++;
    if (at < ranking->count)
        return at;
    if (at == RANKS && key == rank_key(ranking, --at))
        return RANKS;
    ranking->count = at + 1;
    ranking->ranks[at] = (struct rank){ .length = (uint8_t)name.length };
    memcpy(ranking->ranks[at].name, name.data, name.length);
    return at;
}

static void put_rank(struct ranking *ranking, const struct topic *topic,
                     uint64_t lag)
{
    struct rank *ranks = ranking->ranks;
    unsigned at = find_rank(ranking, topic,
                            ranking->by_lag ? lag : topic->subscriber_count);

    if (at == RANKS)
        return;
    if (lag > ranks[at].lag)
        ranks[at].lag = lag;
    ranks[at].subscribers = topic->subscriber_count;
    for (; at && rank_key(ranking, at) > rank_key(ranking, at - 1); at--) {
        struct rank lower = ranks[at - 1];

        ranks[at - 1] = ranks[at];
        ranks[at] = lower;
    }
}

/* The scan has come to a subscriber's place in a topic, which is so many events
 * behind. */
static void rank_topic(struct server *server, const struct topic *topic,
                       uint64_t lag)
{
    put_rank(&server->status.most_subscribers, topic, lag);
    put_rank(&server->status.most_lag, topic, lag);
}

/* The bytes of a topic's name need no escape in JSON. */
static void put_ranking(struct text *text, const char *name,
                        const struct ranking *ranking)
{
    text_put(text, ",\"%s\":[", name);
    for (unsigned i = 0; i < ranking->count; i++) {
        const struct rank *rank = &ranking->ranks[i];

        text_put(text,
                 "%s{\"topic\":\"%.*s\",\"subscribers\":%u,\"lag\":%" PRIu64
                 "}",
                 i ? "," : "", (int)rank->length, rank->name, rank->subscribers,
                 rank->lag);
    }
    text_put(text, "]");
}

static void put_status(const struct server *server, struct text *text)
{
    size_t begin = text_begin_block(text, FORM_CHUNKED, &(struct block){ 0 });

    text_put(text, "data: {\"time\":%" PRId64 ",\"figures\":{",
             server->ring.time);
    put_figures(server, text);
    text_put(text, "}");
    put_ranking(text, "most_subscribers", &server->status.most_subscribers);
    put_ranking(text, "most_lag", &server->status.most_lag);
    text_put(text, "}\n");
    text_end_block(text, FORM_CHUNKED, begin);
}

/* Sends what waits for the stream, or if nothing does, `bytes`. */
static void send_status(struct server *server, struct conn *conn,
                        struct slice bytes)
{
    struct subscriber *subscriber = &conn->subscriber;
    struct own *own = subscriber->own;
    struct iovec iov;
    ssize_t sent;

    if (own)
        bytes =
            (struct slice){ own->bytes + own->sent, own->length - own->sent };
    iov = (struct iovec){ (void *)(uintptr_t)bytes.data, bytes.length };
    sent = stream_send_iovecs(&server->http, conn, &iov, 1, bytes.length);
    if (sent < 0 && errno != EAGAIN) {
        conn_close(&server->http, conn, error_name(errno));
        return;
    }
    if (sent > 0)
        subscriber->active = (uint32_t)server->http.now;
    bytes = slice_from(bytes, sent > 0 ? (size_t)sent : 0);
    if (set_own(server, subscriber, bytes))
        conn_await_room(&server->http, conn, bytes.length > 0);
    else
        conn_close(&server->http, conn, error_name(ENOMEM));
}

/* The scan has ended: the event that it was begun for is sent. */
static void ranks_done(struct server *server)
{
    static char memory[STATUS_SIZE];
    struct status *status = &server->status;
    struct text text = { memory, sizeof(memory), 0 };

    if (status->wanted)
        put_status(server, &text);
    for (unsigned i = status->count; i-- > 0 && status->wanted;) {
        struct conn *conn = conn_at(&server->http, status->streams[i]);
        const struct subscriber *subscriber = &conn->subscriber;
        uint32_t silence = (uint32_t)server->http.now - subscriber->active;
        struct slice bytes = text_slice(&text);

        if (subscriber->form == FORM_PLAIN)
            bytes = (struct slice){ bytes.data + FRAME_HEAD,
                                    bytes.length - FRAME_HEAD - FRAME_TAIL };
        if (!subscriber->own)
            send_status(server, conn, bytes);
        else if (silence > STATUS_PATIENCE)
            conn_cut(&server->http, conn, "stalled");
    }
    status->wanted = false;
    status->most_subscribers.count = status->most_lag.count = 0;
}

static void begin_status(struct server *server)
{
    struct status *status = &server->status;
    uint64_t now = server->http.now;

    if (now < status->next)
        return;
    status->next += STATUS_PERIOD;
    if (status->next <= now)
        status->next = now + STATUS_PERIOD;
    status->wanted = true;
    scan_begin(server);
}

static void route_status(struct server *server, struct conn *conn)
{
    const struct request *request = &conn->exchange->request;
    struct status *status = &server->status;
    struct response head = { .status = 200,
                             .stream = true,
                             .chunked = request->minor > 0 };
    char bytes[OUT_SIZE + RESPONSE_HEAD_MAX];
    size_t length;

    if (request->method != METHOD_GET && request->method != METHOD_HEAD) {
        respond_method(&server->http, conn, "GET, HEAD, OPTIONS");
    } else if (status->count == STATUS_STREAMS_MAX) {
        respond_error(&server->http, conn, 503,
                      "16 streams of /status are open, which is all there are");
    } else if (request->method == METHOD_HEAD) {
        respond(&server->http, conn, &head, SLICE(""));
    } else {
        length = stream_head(&server->http, conn, &head, bytes, sizeof(bytes));
        log_access(server, conn, 200, 0);
        conn_begin_stream(&server->http, conn, CONN_STATUS);
        conn->subscriber.form = head.chunked ? FORM_CHUNKED : FORM_PLAIN;
        if (status->count == 0)
            status->next = server->http.now;
        status->streams[status->count++] = conn_fd(&server->http, conn);
        send_status(server, conn, (struct slice){ bytes, length });
    }
}

static void leave_status(struct server *server, struct conn *conn)
{
    struct status *status = &server->status;
    unsigned at = 0;

    while (status->streams[at] != conn_fd(&server->http, conn))
        at++;
    status->streams[at] = status->streams[--status->count];
    if (status->count == 0)
        status->next = NEVER;
    set_own(server, &conn->subscriber, SLICE(""));
}

/* ------------------------------------------------------ the admin listener
 *
 * --admin: figures and topics, for those who watch the server, by a listener of
 * its own, which serves nothing else. It goes on accepting during a drain, so
 * that /healthz can say so. Who can connect may read: no token is needed.
 *
 * A page of topics, or of figures, is made while it is sent, in pieces, so that
 * neither its memory nor its time depends on how long it is. Between two pieces
 * topics come and go. A page goes on behind the name that it listed last, so it
 * has each topic that lasts, and none twice.
 *
 * Callers: handle_request(); http.c, for handle_content().
 */

enum {
    TOPICS_LISTED = 100, /* in a page, if limit= does not say */
    TOPICS_LISTED_MAX = 1000,
};

static void put_topic(struct text *text, const struct server *server,
                      const struct topic *topic)
{
    const struct ring *ring = &server->ring;

    text_put(text, "{\"name\":\"%.*s\",\"subscribers\":%u,\"held\":%" PRIu64,
             (int)topic->name.length, topic->name.data, topic->subscriber_count,
             topic_count_after(ring, topic, topic_start(topic)));
    put_id(text, "newest", topic->newest_id);
    text_put(text, ",\"finished\":%s}",
             topic_finished(ring, topic) ? "true" : "false");
}

/* The next topic to be listed, or NULL. The main stream, whose name is empty,
 * is none. */
static const struct topic *next_listed(const struct server *server,
                                       const struct listing *listing)
{
    struct slice prefix = { listing->prefix, listing->prefix_length };
    struct slice after = { listing->after, listing->after_length };
    bool begins = after.length == 0;
    const struct topic *topic = topic_next(
        &server->ring, begins ? prefix : after, begins && prefix.length);

    if (!topic || topic->name.length < prefix.length ||
        memcmp(topic->name.data, prefix.data, prefix.length) != 0)
        return NULL;
    return topic;
}

static bool put_next_topic(const struct server *server, struct listing *listing,
                           struct text *text)
{
    const struct topic *topic = next_listed(server, listing);
    bool ends = !topic || listing->left == 0;

    if (listing->line == 0)
        text_put(text, "{\"topics\":[");
    if (ends && topic)
        text_put(text, "],\"next\":\"%.*s\"}\n", (int)listing->after_length,
                 listing->after);
    else if (ends)
        text_put(text, "],\"next\":null}\n");
    if (ends)
        return false;
    if (listing->line > 0)
        text_put(text, ",");
    put_topic(text, server, topic);
    listing->line++;
    listing->left--;
    listing->after_length = topic->name.length;
    memcpy(listing->after, topic->name.data, topic->name.length);
    return true;
}

/* A handler: a piece of the answer. The figures wait for a look at all
 * subscribers that is not older than the request. */
static bool handle_content(struct server *server, struct conn *conn,
                           struct text *text)
{
    struct listing *listing = &conn->exchange->listing;
    bool more = true;

    if (listing->what == LISTS_FIGURES && server->scan.rounds < listing->scan) {
        scan_begin(server);
        scan_slice(server);
        if (server->scan.rounds < listing->scan)
            return true;
    }
    while (more && text->room - text->length >= LINE_MAX_BYTES)
        more = listing->what == LISTS_FIGURES
                   ? put_next_line(server, listing, text)
                   : put_next_topic(server, listing, text);
    return more;
}

static void respond_figures(struct server *server, struct conn *conn)
{
    /* one that is under way may have passed subscribers before the request */
    uint64_t rounds = server->scan.rounds + server->scan.running;
    struct response response = {
        .status = 200,
        .type = "text/plain; version=0.0.4; charset=utf-8",
        .no_cache = true,
    };

    conn->exchange->listing =
        (struct listing){ .what = LISTS_FIGURES, .scan = rounds + 1 };
    respond_made(&server->http, conn, &response);
}

/* A parameter of /topics that is a name, or begins one. */
static void take_name(struct slice query, const char *name,
                      char bytes[TOPIC_NAME_MAX], size_t *length)
{
    char value[TOPIC_NAME_MAX + 1];
    struct slice found = SLICE("");

    http_query(query, name, value, sizeof(value), &found);
    *length = found.length < TOPIC_NAME_MAX ? found.length : TOPIC_NAME_MAX;
    memcpy(bytes, found.data, *length);
}

static void respond_topics(struct server *server, struct conn *conn)
{
    struct slice query = conn->exchange->request.query;
    struct listing *listing = &conn->exchange->listing;
    struct response response = { .status = 200,
                                 .type = "application/json",
                                 .no_cache = true };
    struct slice limit = SLICE("");
    char digits[8];

    *listing = (struct listing){ .what = LISTS_TOPICS, .left = TOPICS_LISTED };
    http_query(query, "limit", digits, sizeof(digits), &limit);
    if (limit.length &&
        (!slice_number(limit, TOPICS_LISTED_MAX, &listing->left) ||
         listing->left == 0)) {
        respond_error(&server->http, conn, 400,
                      "limit= is a number from 1 to 1000");
        return;
    }
    take_name(query, "prefix", listing->prefix, &listing->prefix_length);
    take_name(query, "after", listing->after, &listing->after_length);
    respond_made(&server->http, conn, &response);
}

static void route_admin(struct server *server, struct conn *conn)
{
    const struct request *request = &conn->exchange->request;
    bool reads =
        request->method == METHOD_GET || request->method == METHOD_HEAD;
    bool is_figures = slice_is(request->path, "/metrics");

    if (slice_is(request->path, "/healthz"))
        respond_health(server, conn);
    else if (slice_is(request->path, "/status"))
        route_status(server, conn);
    else if (!is_figures && !slice_is(request->path, "/topics"))
        respond_page(&server->http, conn);
    else if (!reads)
        respond_method(&server->http, conn, "GET, HEAD, OPTIONS");
    else if (is_figures)
        respond_figures(server, conn);
    else
        respond_topics(server, conn);
}

/* ---------------------------------------------------------- other handlers
 *
 * What http.c calls beside the handlers in the sections above, and `handlers`,
 * the table of them all.
 */

static void publication_release(struct server *server,
                                struct publication *publication)
{
    memory_free(&server->http, &publication->content,
                &publication->content_room);
    if (publication->flight)
        redis_abandon(&server->http, publication->flight,
                      publication->stopped
                          ? topic_hold(&server->ring, publication->topic->name)
                          : NULL);
    publication->flight = 0;
    leave_topic(publication);
    settle_promise(server, publication, true);
    if (publication->topic)
        topic_drop(&server->ring, publication->topic);
    publication->topic = NULL;
}

/* Counts the answer to a publish. Of its path, which a body overwrites, only
 * the topic is left then. */
static void count_answer(struct server *server, const struct conn *conn,
                         int status)
{
    const struct exchange *exchange = conn->exchange;
    enum method method = exchange->request.method;
    struct slice path = exchange->request.path;
    size_t i = 0;

    if ((method != METHOD_POST && method != METHOD_DELETE) ||
        (!exchange->publication.topic &&
         (path.length < 7 || memcmp(path.data, "/events", 7) != 0)))
        return;
    while (statuses[i] && statuses[i] != status)
        i++;
    server->figures.publishes[i]++;
}

static void handle_answered(struct server *server, struct conn *conn,
                            int status, uint64_t length)
{
    log_access(server, conn, status, length);
    count_answer(server, conn, status);
    publication_release(server, &conn->exchange->publication);
    conn->exchange->asks = 0;
}

/* Answers that say of events that they are on disk are about to be sent. One
 * sync serves all of a turn. */
static const char *handle_promises(struct server *server)
{
    sync_history(server);
    return server->sync_failed ? NOT_ON_DISK_TEXT : NULL;
}

/* The end of a subscriber: drops everything that it holds. The last one in a
 * topic takes over its index there, see topic_leave(). */
static void unsubscribe(struct server *server, struct conn *conn,
                        const char *reason)
{
    struct subscriber *subscriber = &conn->subscriber;
    struct place *places = subscriber_places(subscriber);
    size_t end = 0; /* the last one if it is none of them */
    char peer[PEER_SIZE];

    for (unsigned i = 0; i < subscriber->topic_count; i++) {
        struct topic *topic = places[i].topic;
        struct conn *moved = conn_at(&server->http, topic_leave(&places[i]));
        struct place *place = subscriber_places(&moved->subscriber);

        while (place->topic != topic)
            place++;
        place->index = places[i].index;
        topic_drop(&server->ring, topic);
    }
    set_own(server, subscriber, SLICE(""));
    if (subscriber->topic_count > 1)
        free(subscriber->places);
    while (end_names[end + 1] && strcmp(end_names[end], reason) != 0)
        end++;
    server->figures.ends[end]++;
    if (!may_log(server, LEVEL_INFO))
        return;
    log_event(LEVEL_INFO, "unsubscribed",
              "peer=%s reason=%s events=%u bytes=%" PRIu64 " seconds=%u",
              conn_peer(peer, conn), reason, subscriber->progress.events,
              subscriber->bytes,
              (uint32_t)(server->http.now / 1000) - subscriber->since);
}

static void handle_closing(struct server *server, struct conn *conn,
                           const char *reason)
{
    if (conn->state == CONN_STREAM) {
        unsubscribe(server, conn, reason);
        return;
    }
    if (conn->state == CONN_STATUS) {
        leave_status(server, conn);
        return;
    }
    if (!conn->exchange)
        return;
    if (is_input(conn) && conn->exchange->error)
        log_event(LEVEL_ERROR, "input_failed", "error=%s",
                  error_name(conn->exchange->error));
    if (is_input(conn))
        log_event(LEVEL_INFO, "input_ended",
                  "reason=\"%s\" events=%" PRIu64 " skipped=%" PRIu64, reason,
                  conn->exchange->publication.count,
                  conn->exchange->publication.skipped);
    publication_release(server, &conn->exchange->publication);
}

static void handle_accept_paused(struct server *server, int error)
{
    log_event(LEVEL_WARN, "accept_paused", "reason=%s connections=%u",
              error ? error_name(error) : "max-connections",
              server->http.connections);
}

static void handle_crowded(struct server *server, const struct conn *conn)
{
    uint64_t refused = take_notice(server, &server->address_full);
    char peer[PEER_SIZE];

    if (!refused)
        return;
    log_event(LEVEL_WARN, "address_full", "peer=%s refused=%" PRIu64,
              conn_peer(peer, conn), refused);
}

static void handle_writable(struct server *server, struct conn *conn)
{
    if (conn->state == CONN_STATUS)
        send_status(server, conn, SLICE(""));
    else
        ready_push(server, conn);
}

static const struct handlers handlers = {
    .request = handle_request,
    .body = handle_body,
    .silent = handle_silent,
    .body_failed = publication_fail,
    .answered = handle_answered,
    .content = handle_content,
    .keep_promises = handle_promises,
    .writable = handle_writable,
    .expired = handle_expired,
    .closing = handle_closing,
    .waited = handle_waited,
    .log_changed = handle_log_changed,
    .entry = handle_entry,
    .log_gap = handle_log_gap,
    .log_round = handle_log_round,
    .flight_ended = handle_flight_ended,
    .accept_paused = handle_accept_paused,
    .crowded = handle_crowded,
};

/* --------------------------------------------------- the service manager
 *
 * What sd_notify(3) and sd_watchdog_enabled(3) of libsystemd do, without it: a
 * datagram to the socket in the environment. A message that cannot be sent is
 * logged and given up.
 */

/* The socket to it, connected; -1: there is none. */
static int manager = -1;

/* Connects while that is still allowed: see "least privilege". */
static void init_manager(void)
{
    const char *name = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    size_t length = name ? strlen(name) : 0;
    size_t size = offsetof(struct sockaddr_un, sun_path) + length;

    if (length < 2 || length >= sizeof(address.sun_path))
        return;
    memcpy(address.sun_path, name, length);
    if (*name == '@') /* an abstract address begins with a NUL */
        address.sun_path[0] = '\0';
    manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (manager >= 0 &&
        connect(manager, (struct sockaddr *)&address, (socklen_t)size) == 0)
        return;
    log_event(LEVEL_WARN, "not_notified", "socket=\"%s\" error=%s", name,
              error_name(errno));
    if (manager >= 0)
        close(manager);
    manager = -1;
}

__attribute__((format(printf, 1, 2))) static void notify(const char *format,
                                                         ...)
{
    char text[256];
    va_list arguments;

    if (manager < 0)
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (send(manager, text, strlen(text), MSG_NOSIGNAL) < 0)
        log_event(LEVEL_WARN, "not_notified", "socket=\"%s\" error=%s",
                  getenv("NOTIFY_SOCKET"), error_name(errno));
}

/* Half of the watchdog's interval: what sd_watchdog_enabled(3) advises. */
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
    notify("WATCHDOG=1\nSTATUS=%u subscribers, newest id %" PRIu64 "\n",
           server->http.in_state[CONN_STREAM], server->ring.newest_id);
}

/* ----------------------------------------------------- phases and signals
 *
 * SIGTERM and SIGINT end the server in phases: with --drain-delay /healthz says
 * so for a while, for load balancers; then the listeners are closed, publishers
 * are refused, and subscribers are sent what there is and a farewell; the
 * process ends when all are gone or --drain is over. A second signal ends it at
 * once. SIGHUP reads the token or the secret again. Signals come through
 * signalfd(2), in the loop.
 */

static void begin_drain(struct server *server)
{
    uint32_t subscribers = server->http.in_state[CONN_STREAM];

    log_event(LEVEL_INFO, "draining", "subscribers=%u seconds=%" PRIu64,
              subscribers, server->options.drain / 1000);
    notify("STOPPING=1\nSTATUS=draining %u subscribers\n", subscribers);
    server->phase = PHASE_DRAIN;
    server->phase_end = server->http.now + server->options.drain;
    server->next_clock = NEVER;
    http_close_listeners(&server->http, FLAG_ADMIN);
    for (uint32_t fd = 0; fd < server->http.conn_limit; fd++) {
        struct conn *conn = conn_at(&server->http, fd);

        if (conn->state == CONN_STREAM)
            ready_push(server, conn);
        else if (conn->state == CONN_WAITING &&
                 !conn->exchange->publication.topic)
            handle_waited(server, conn);
        else if ((conn->state == CONN_BODY || conn->state == CONN_WAITING) &&
                 !conn->exchange->publication.flight)
            publication_fail(server, conn, 503,
                             is_input(conn) ? "draining" : DRAINING_TEXT);
    }
}

static void check_phase(struct server *server)
{
    const struct http *http = &server->http;

    if (server->phase == PHASE_ANNOUNCE && http->now >= server->phase_end)
        begin_drain(server);
    if (server->phase == PHASE_DRAIN &&
        (http->now >= server->phase_end ||
         (http->in_state[CONN_STREAM] == 0 && http_is_idle(http))))
        server->phase = PHASE_STOP;
}

/* At the start, and again at SIGHUP: if that fails, the token or the secret
 * before stays. */
static void load_credentials(struct server *server, bool again)
{
    bool is_token = server->options.token_file;
    const char *file =
        is_token ? server->options.token_file : server->options.secret_file;
    const char *what = is_token ? "token" : "secret";
    char path[512], error[ERROR_SIZE], event[32];
    mode_t mode;
    int outcome;

    if (!file)
        return;
    log_quote(path, sizeof(path), slice_of(file));
    outcome = is_token ? http_load_token(&server->http, file, &mode, error)
                       : http_load_secret(&server->http, file, &mode, error);
    if (outcome < 0) {
        if (!again)
            die(EXIT_RUN_TIME, "--%s-file: no %s in '%s': %s%s", what, what,
                file, error,
                strcmp(error, strerror(EACCES)) == 0
                    ? " (it is opened without root's rights: --user)"
                    : "");
        snprintf(event, sizeof(event), "%s_not_reloaded", what);
        log_event(LEVEL_ERROR, event,
                  "file=%s reason=\"%s\" kept=\"the one before\"", path, error);
        return;
    }
    snprintf(event, sizeof(event), "%s_file_readable", what);
    if (mode & (S_IROTH | S_IWOTH))
        log_event(LEVEL_WARN, event,
                  "file=%s mode=%03o reason=\"others may read or write it\"",
                  path, (unsigned)mode & 0777);
    snprintf(event, sizeof(event), "%s_reloaded", what);
    if (again)
        log_event(LEVEL_INFO, event, "file=%s", path);
}

static void read_signals(struct server *server)
{
    uint64_t delay = server->options.drain_delay;
    struct signalfd_siginfo info;

    while (read(server->signals, &info, sizeof(info)) > 0) {
        if (info.ssi_signo == SIGHUP) {
            load_credentials(server, true);
        } else if (server->phase != PHASE_SERVE) {
            server->phase = PHASE_STOP;
        } else if (!delay) {
            begin_drain(server);
        } else {
            log_event(LEVEL_INFO, "announcing", "seconds=%" PRIu64,
                      delay / 1000);
            server->phase = PHASE_ANNOUNCE;
            server->phase_end = server->http.now + delay;
        }
    }
}

/* -------------------------------------------------------------- the loop
 *
 * run_turn() is one turn. The order matters: what arrived is appended before
 * anything is delivered, so that a subscriber gets all of a turn's events in
 * one send; and answers go before delivery, so that a publisher does not wait
 * for a broadcast. http_event() only queues; http_serve() then works on what is
 * queued for a bounded time.
 */

static void update_time(struct server *server)
{
    http_update_time(&server->http);
    server->ring.now = server->http.now;
    server->ring.time = (int64_t)clock_ms(CLOCK_REALTIME);
}

/* How long epoll may wait: until the next thing that is due. */
static int loop_timeout(const struct server *server)
{
    const uint64_t dues[] = { http_next(&server->http),
                              server->next_clock,
                              server->phase_end,
                              server->next_watchdog,
                              server->ring.unsynced ? server->next_sync : NEVER,
                              logger.suppressed ? logger.reported + LOG_REPORT
                                                : NEVER,
                              server->log_wakes ? 0 : NEVER,
                              server->status.next,
                              server->scan.running ? 0 : NEVER,
                              ring_due(&server->ring) };
    uint64_t until = NEVER;

    for (size_t i = 0; i < COUNT(dues); i++)
        if (dues[i] < until)
            until = dues[i];
    if (until == NEVER)
        return -1;
    until = until > server->http.now ? until - server->http.now : 0;
    return until < INT_MAX ? (int)until : INT_MAX;
}

/* Publishers that waited take their step again. False if the first must go on
 * waiting, and so must all behind it: they keep their order. */
static bool retry_publishers(struct server *server, enum queue_name name)
{
    uint64_t end = clock_us(CLOCK_MONOTONIC) + TURN_RETRY;
    const struct queue *queue = &server->http.queues[name];

    while (queue->count && clock_us(CLOCK_MONOTONIC) < end) {
        struct conn *conn = conn_at(&server->http, queue->list.first);

        publication_step(server, conn);
        if (conn->queue == (uint8_t)name)
            return false;
    }
    server->http.used_up[BUDGET_PUBLISHERS] += queue->count > 0;
    return true;
}

static void run_turn(struct server *server)
{
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(server->http.epoll, events, EVENTS_MAX,
                           loop_timeout(server));

    update_time(server);
    for (int i = 0; i < count; i++)
        if (events[i].data.u32 == (uint32_t)server->signals)
            read_signals(server);
        else
            http_event(&server->http, &events[i]);
    log_report(server->http.now);
    http_expire(&server->http);
    publish_clock(server);
    wake_for_log(server);
    if ((finish_broken(server) || is_shared(server)) &&
        retry_publishers(server, QUEUE_WAITING))
        retry_publishers(server, QUEUE_WAITING_BUSY);
    http_serve(&server->http);
    finish_broken(server);
    sync_when_due(server);
    feed_watchdog(server);
    deliver(server);
    begin_status(server);
    scan_slice(server);
    http_end_turn(&server->http);
    check_phase(server);
    histogram_add(&server->figures.turns, turn_bounds,
                  clock_us(CLOCK_MONOTONIC) - server->http.turn);
}

/* --------------------------------------------------------------- options
 *
 * `specs` has a row for each option: --help prints it, and take_option() parses
 * by it straight into struct server.
 */

enum kind {
    KIND_NUMBER,
    KIND_SECONDS, /* stored in ms */
    KIND_SIZE,    /* bytes; takes K, M, G */
    KIND_TEXT,
    KIND_LISTEN, /* with a maximum: a port alone */
    KIND_HOST,
    KIND_PUBLIC,
    KIND_NAME, /* one of `names`, stored as its index */
    KIND_SYNC, /* seconds, none or always; stored in ms */
    KIND_FLAG,
    KIND_PRINT, /* one of `names`, of `printers` */
    KIND_HELP,
    KIND_VERSION,
};

struct spec {
    const char *name, *argument;
    enum kind kind;
    char letter;  /* its short form, or 0 */
    size_t place; /* in struct server: of a uint64_t; of a bool for KIND_FLAG, a
                     const char * for KIND_TEXT */
    uint64_t minimum, maximum, initial;
    const char *const *names; /* in the order of their enum; NULL ends them */
    const char *help;
};

static const char *const publish_names[] = { "local", "unix", "none", NULL };
static const char *const sandbox_names[] = { "on", "log", "off", NULL };
static const char *const ids_names[] = { "own", "keep", NULL };
static const char *const stdin_names[] = { "lines", "events", NULL };
static const char *const print_names[] = { "redis-script", "man", "completion",
                                           "units", NULL };
#define OPTION(member) PLACE(options.member)

static const struct spec specs[] = {
    { "listen", "ADDR:PORT", KIND_LISTEN, 'l',
      .help = "where to listen: 127.0.0.1:3000, [::1]:0, "
              "unix:PATH[,mode=660]; repeatable" },
    { "port", "N", KIND_LISTEN, 'p', .maximum = 65535,
      .help = "short for --listen 127.0.0.1:N" },
    { "admin", "ADDR:PORT", KIND_TEXT, 0, PLACE(http.admin),
      .help = "where figures are served, a page of them, and nothing else; "
              "or unix:PATH" },
    { "reuse-port", NULL, KIND_FLAG, 0, PLACE(http.reuse_port),
      .help = "several ssed may listen on one port: the kernel spreads" },
    { "root", "DIR", KIND_TEXT, 'r', OPTION(root),
      .help = "serve the files of a folder, not the bundled pages" },
    { "history", "N", KIND_NUMBER, 'n', OPTION(history), 1, HISTORY_EVENTS_MAX,
      100000, .help = "events kept (100000)" },
    { "history-bytes", "SIZE", KIND_SIZE, 0, OPTION(history_bytes), 1,
      HISTORY_BYTES_MAX, 64 << 20, .help = "bytes kept (64M)" },
    { "history-file", "FILE", KIND_TEXT, 0, OPTION(history_file),
      .help = "where the history outlives the process" },
    { "sync", "WHEN", KIND_SYNC, 0, OPTION(sync), 1, 86400, UNGIVEN,
      .help = "the file to the disk: none; every so many seconds; always (1)" },
    { "check", "FILE", KIND_TEXT, 0, OPTION(check),
      .help = "say what is in a history file, and end" },
    { "first-id", "N", KIND_NUMBER, 0, OPTION(first_id), 1, ID_MAX,
      .help = "id of the first event (the clock in microseconds)" },
    { "interval", "MS", KIND_NUMBER, 'i', OPTION(interval), 0, YEAR_S * 1000,
      UNGIVEN, .help = "a clock message every so often; 0: none (1000)" },
    { "heartbeat", "SEC", KIND_SECONDS, 0, OPTION(heartbeat), 0, 86400, 15000,
      .help = "after so much silence; 0: never (15)" },
    { "pace", "MS", KIND_NUMBER, 0, OPTION(pace), 0, 60000,
      .help = "a topic's events go out so far apart, together (0)" },
    { "retry", "MS", KIND_NUMBER, 0, OPTION(retry), 0, UINT64_C(86400) * 1000,
      3000, .help = "how long a client waits to reconnect (3000)" },
    { "cors", "ORIGIN", KIND_TEXT, 0, OPTION(cors),
      .help = "the one origin whose pages may read and publish "
              "(all may read); none" },
    { "host", "NAME", KIND_HOST, 0,
      .help = "with --cors none: a name of this machine; repeatable" },
    { "token-file", "FILE", KIND_TEXT, 't', OPTION(token_file),
      .help = "clients that send the token in this file may publish" },
    { "secret-file", "FILE", KIND_TEXT, 0, OPTION(secret_file),
      .help = "tokens signed with it say who may read and publish what" },
    { "public", "PATTERN", KIND_PUBLIC, 0,
      .help = "all may read it: TOPIC, PREFIX/*, *, '' (the main stream); "
              "repeatable" },
    { "max-failures", "N", KIND_NUMBER, 0, PLACE(http.max_failures), 1, 1 << 20,
      UNGIVEN, .help = "wrong signed tokens a minute from an address (100)" },
    { "sign", "CLAIMS", KIND_TEXT, 0, OPTION(sign),
      .help = "print a token: 'read=chat/42 write=jobs/* exp=1h'" },
    { "publish", "WHO", KIND_NAME, 0, OPTION(publish), .names = publish_names,
      .initial = UNGIVEN,
      .help = "without a token: local, unix; or none: nobody at all (local)" },
    { "max-event", "SIZE", KIND_SIZE, 0, OPTION(max_event), 1, 16 << 20,
      64 << 10, .help = "of an event's data (64K)" },
    { "max-connections", "N", KIND_NUMBER, 'c', PLACE(http.max_connections), 1,
      1 << 28, .help = "at most (what the limit on descriptors allows)" },
    { "max-per-address", "N", KIND_NUMBER, 0, PLACE(http.max_per_address), 0,
      1 << 28,
      .help = "connections of an IPv4 address or an IPv6 /64; 0: any (0)" },
    { "max-topics", "N", KIND_NUMBER, 0, OPTION(max_topics), 1, TOPICS_MAX,
      1000000, .help = "topics without an event, at most (1000000)" },
    { "request-memory", "SIZE", KIND_SIZE, 0, PLACE(http.memory_limit), 1 << 20,
      UINT64_C(1) << 40, 256 << 20,
      .help = "that all requests together may hold (256M)" },
    { "head-timeout", "SEC", KIND_SECONDS, 0, PLACE(http.head_timeout), 1,
      86400, 10000, .help = "for a request head to be complete (10)" },
    { "idle-timeout", "SEC", KIND_SECONDS, 0, PLACE(http.idle_timeout), 1,
      86400, 60000, .help = "between two requests (60)" },
    { "drain", "SEC", KIND_SECONDS, 0, OPTION(drain), 0, 86400, 5000,
      .help = "to send off subscribers at the end (5)" },
    { "drain-spread", "MS", KIND_NUMBER, 0, OPTION(drain_spread), 0,
      UINT64_C(86400) * 1000, 3000,
      .help = "over which they come back (3000)" },
    { "drain-delay", "SEC", KIND_SECONDS, 0, OPTION(drain_delay), 0, 86400,
      .help = "/healthz says 503 so long before (0)" },
    { "stdin", "FORM", KIND_NAME, 0, OPTION(stdin_events), .names = stdin_names,
      .initial = UNGIVEN, .help = "what \"-\" reads: lines, events (lines)" },
    { "topic", "NAME", KIND_TEXT, 0, OPTION(topic),
      .help = "where \"-\" publishes (the main stream)" },
    { "end", NULL, KIND_FLAG, 0, OPTION(end),
      .help = "the topic is finished at the end of \"-\"" },
    { "ids", "WHOSE", KIND_NAME, 0, OPTION(kept_ids), .names = ids_names,
      .help = "own; keep: those that publishers give (own)" },
    { "redis", "ADDR:PORT", KIND_TEXT, 0, PLACE(http.redis.address),
      .help = "several nodes share a log in Redis; or unix:PATH" },
    { "redis-key", "KEY", KIND_TEXT, 0, PLACE(http.redis.key),
      .help = "of the log, a stream (ssed)" },
    { "redis-auth-file", "FILE", KIND_TEXT, 0, PLACE(http.redis.auth_file),
      .help = "has PASSWORD, or USER PASSWORD" },
    { "redis-length", "N", KIND_NUMBER, 0, PLACE(http.redis.length), 1,
      HISTORY_EVENTS_MAX, UNGIVEN,
      .help = "events kept in the log, about (--history)" },
    { "user", "NAME", KIND_TEXT, 0, OPTION(user),
      .help = "root becomes this user, once the listeners are there" },
    { "sandbox", "MODE", KIND_NAME, 0, OPTION(sandbox), .names = sandbox_names,
      .help = "on; log: only says what on refuses; off: for debuggers (on)" },
    { "log-level", "LEVEL", KIND_NAME, 0, OPTION(log_level),
      .names = level_names, .initial = LEVEL_INFO,
      .help = "error, warn, info, debug (info)" },
    { "access-log", NULL, KIND_FLAG, 0, OPTION(access_log),
      .help = "log every request" },
    { "print", "WHAT", KIND_PRINT, 0, .names = print_names,
      .help = "redis-script, what appends to the log; man; completion, "
              "bash's; units, systemd's" },
    { "help", NULL, KIND_HELP, 'h', .help = "a list of the options" },
    { "version", NULL, KIND_VERSION, 'V', .help = "the version" },
};

#define SPECS ((int)COUNT(specs))

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
           "or the secret again.\n");
}

static uint64_t parse_amount(const struct spec *spec, const char *text)
{
    uint64_t number = 0, unit = 1;
    size_t length = strlen(text);
    const char *suffixes = "KMG", *suffix = NULL;
    enum kind kind = spec->kind;

    if (kind == KIND_SYNC && strcmp(text, "none") == 0)
        return SYNC_NEVER;
    if (kind == KIND_SYNC && strcmp(text, "always") == 0)
        return SYNC_ALWAYS;
    if (kind == KIND_SIZE && length)
        suffix = strchr(suffixes, text[length - 1]);
    if (suffix) {
        unit = UINT64_C(1) << (10 * (suffix - suffixes + 1));
        length--;
    }
    if (!slice_number((struct slice){ text, length }, spec->maximum / unit,
                      &number) ||
        number * unit < spec->minimum)
        die(EXIT_USAGE, "--%s: '%s' is not %s from %" PRIu64 " to %" PRIu64,
            spec->name, text,
            kind == KIND_SIZE   ? "a size (a number, K, M or G after it)"
            : kind == KIND_SYNC ? "none, always, or a number of seconds"
                                : "a number",
            spec->minimum, spec->maximum);
    return number * unit *
           (kind == KIND_SECONDS || kind == KIND_SYNC ? 1000 : 1);
}

static uint64_t parse_name(const struct spec *spec, const char *text)
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

/* A name without a port: http_host_is() compares without one. */
static void add_host(struct options *options, const char *name)
{
    if (!*name || strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-._"
                               "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != strlen(name))
        die(EXIT_USAGE,
            "--host: '%s' is not a name such as ssed.example, without a port",
            name);
    if (options->host_count == HOSTS_MAX)
        die(EXIT_USAGE, "--host: at most %d of them", HOSTS_MAX);
    options->hosts[options->host_count++] = name;
}

/* Why this is no pattern of topics, NULL if it is one. */
static const char *pattern_refused(struct slice pattern)
{
    size_t length = pattern.length;

    if (length == 0 || slice_is(pattern, "*"))
        return NULL;
    if (length > 2 && memcmp(pattern.data + length - 2, "/*", 2) == 0)
        pattern.length -= 2;
    return topic_name_refused(pattern);
}

static void add_public(struct options *options, const char *pattern)
{
    const char *refused = pattern_refused(slice_of(pattern));

    if (refused)
        die(EXIT_USAGE,
            "--public: '%s' is not TOPIC, PREFIX/*, * or '' (the main stream): "
            "%s",
            pattern, refused);
    if (options->public_count == PUBLICS_MAX)
        die(EXIT_USAGE, "--public: at most %d of them", PUBLICS_MAX);
    options->publics[options->public_count++] = pattern;
}

static void print_text(uint64_t which);

static void take_option(struct server *server, const struct spec *spec,
                        char *value)
{
    void *place = (char *)server + spec->place;

    switch (spec->kind) {
    case KIND_NUMBER:
    case KIND_SECONDS:
    case KIND_SIZE:
    case KIND_SYNC:
    case KIND_NAME:
        *(uint64_t *)place =
            spec->names ? parse_name(spec, value) : parse_amount(spec, value);
        break;
    case KIND_TEXT:
        if (!*value)
            die(EXIT_USAGE, "--%s: '' is no %s", spec->name, spec->argument);
        *(const char **)place = value;
        break;
    case KIND_LISTEN:
        if (spec->maximum)
            parse_amount(spec, value);
        add_listen(&server->options, value);
        break;
    case KIND_HOST:
        add_host(&server->options, value);
        break;
    case KIND_PUBLIC:
        add_public(&server->options, value);
        break;
    case KIND_FLAG:
        *(bool *)place = true;
        break;
    case KIND_PRINT:
        print_text(parse_name(spec, value));
        exit(0);
    case KIND_HELP:
        print_help();
        exit(0);
    case KIND_VERSION:
        printf("ssed %s\n", VERSION);
        exit(0);
    }
}

static void parse_options(struct server *server, int argc, char **argv)
{
    struct option longs[SPECS + 1] = { 0 };
    char shorts[2 * SPECS + 2] = ":";
    size_t length = 1;
    int code;

    for (int i = 0; i < SPECS; i++) {
        char letter = specs[i].letter;

        if (specs[i].initial)
            *(uint64_t *)(void *)((char *)server + specs[i].place) =
                specs[i].initial;
        longs[i] = (struct option){ specs[i].name, specs[i].argument != NULL,
                                    NULL, letter ? letter : 256 + i };
        if (letter)
            shorts[length++] = letter;
        if (letter && specs[i].argument)
            shorts[length++] = ':';
    }
    while ((code = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
        int i = 0;

        while (i < SPECS && longs[i].val != code)
            i++;
        if (i == SPECS)
            die(EXIT_USAGE, "%s '%s': see ssed --help",
                code == ':' ? "no value after" : "unknown option",
                argv[optind - 1]);
        take_option(server, &specs[i], optarg);
    }
    for (; optind < argc; optind++) {
        if (strcmp(argv[optind], "-") != 0)
            die(EXIT_USAGE, "'%s' is not an option: see ssed --help",
                argv[optind]);
        server->options.reads_input = true;
    }
}

/* ----------------------------------------------------------------- --print
 *
 * What belongs to the program and is installed beside it: the manual and the
 * completion, which name the options by `specs`, and the units.
 *
 * Callers: take_option(), which then ends the process.
 */

static void print_redis_script(void)
{
    fputs(redis_script, stdout);
}

/* Text as groff_char(7) has it spelled. */
static void put_roff(const char *text)
{
    for (; *text; text++) {
        if (*text == '\\')
            fputs("\\e", stdout);
        else if (*text == '\'')
            fputs("\\(aq", stdout);
        else if (*text == '-')
            fputs("\\-", stdout);
        else if (*text == '~')
            fputs("\\(ti", stdout);
        else
            putchar(*text);
    }
}

/* man(7) */
static const char man_head[] =
    ".SH NAME\n"
    "ssed \\- broadcast Server\\-Sent Events\n"
    ".SH SYNOPSIS\n"
    ".B ssed\n"
    ".RI [ OPTION ]...\\&\n"
    ".RB [ \\- ]\n"
    ".SH DESCRIPTION\n"
    ".B ssed\n"
    "pushes events to very many subscribers, browsers among them, and lets\n"
    "none of them miss one unknowingly: a client that was away reconnects "
    "with\n"
    "the id of the last event it saw and is caught up first.\n"
    "What can no longer be sent, it is told of.\n"
    ".PP\n"
    "An event is published with\n"
    ".BI \"POST /events/\" TOPIC\n"
    "and read with\n"
    ".BI \"GET /events/\" TOPIC\\fR,\n"
    "an event stream without end; without a topic it is the main stream.\n"
    ".BI \"DELETE /events/\" TOPIC\n"
    "ends a topic.\n"
    "Unless an option says otherwise it listens on 127.0.0.1:3000, all may\n"
    "read, and this machine alone may publish.\n"
    "The pages at http://127.0.0.1:3000/ show what it does.\n"
    "The log goes to standard error.\n"
    ".SH OPTIONS\n"
    "In parentheses is what holds without the option.\n"
    ".I SIZE\n"
    "takes K, M or G after the number.\n"
    ".TP\n"
    ".B \\-\n"
    "Publish what comes on standard input, each line as an event.\n";

static const char man_tail[] =
    ".SH SIGNALS\n"
    ".TP\n"
    ".BR SIGTERM \", \" SIGINT\n"
    "Send off the subscribers and end; a second one ends it at once.\n"
    ".TP\n"
    ".B SIGHUP\n"
    "Read the token file or the secret file again.\n"
    ".SH EXIT STATUS\n"
    ".TP\n"
    ".B 0\n"
    "It was ended by a signal.\n"
    ".TP\n"
    ".B 1\n"
    "It could not start, its history file was cut short, or\n"
    ".B \\-\\-check\n"
    "found events that are not whole.\n"
    ".TP\n"
    ".B 2\n"
    "An option is wrong; what would be right is on standard error.\n"
    ".SH ENVIRONMENT\n"
    ".TP\n"
    ".BR LISTEN_FDS \", \" LISTEN_PID\n"
    "Sockets to listen on, see\n"
    ".BR sd_listen_fds (3).\n"
    "They take the place of 127.0.0.1:3000.\n"
    ".TP\n"
    ".BR NOTIFY_SOCKET \", \" WATCHDOG_USEC\n"
    "Whom to tell that it is ready and lives, see\n"
    ".BR sd_notify (3).\n"
    ".SH FILES\n"
    ".TP\n"
    ".I /etc/default/ssed\n"
    "SSED_OPTIONS=\\(dqOPTION...\\(dq, for the service.\n"
    ".TP\n"
    ".I /var/lib/ssed/history\n"
    "The history file of the service.\n"
    ".SH EXAMPLES\n"
    "Serve, publish and read, each at a terminal of its own:\n"
    ".PP\n"
    ".EX\n"
    "ssed \\-\\-history\\-file history\n"
    "curl \\-d hello http://localhost:3000/events/chat/42\n"
    "curl \\-N 'http://localhost:3000/events/chat/42?lastEventId=earliest'\n"
    ".EE\n"
    ".PP\n"
    "Publish a log, line by line:\n"
    ".PP\n"
    ".EX\n"
    "tail \\-F /var/log/dpkg.log |\n"
    "  ssed \\- \\-\\-topic log \\-\\-port 3001 \\-\\-cors none\n"
    ".EE\n"
    ".SH SEE ALSO\n"
    ".BR curl (1),\n"
    ".BR systemd.socket (5),\n"
    ".BR landlock (7),\n"
    ".BR seccomp (2)\n"
    ".PP\n"
    ".UR https://html.spec.whatwg.org/multipage/server\\-sent\\-events.html\n"
    "Server\\-Sent Events\n"
    ".UE\n";

static void print_man(void)
{
    printf(".\\\" made by ssed --print man\n.TH SSED 1 " DATE " \"ssed ");
    put_roff(VERSION);
    printf("\"\n%s", man_head);
    for (int i = 0; i < SPECS; i++) {
        const struct spec *spec = &specs[i];

        printf(".TP\n");
        if (spec->letter)
            printf("\\fB\\-%c\\fR, ", spec->letter);
        printf("\\fB\\-\\-");
        put_roff(spec->name);
        printf("\\fR");
        if (spec->argument) {
            printf(" \\fI");
            put_roff(spec->argument);
            printf("\\fR");
        }
        printf("\n\\&"); /* a dot does not become a request */
        put_roff(spec->help);
        printf("\n");
    }
    fputs(man_tail, stdout);
}

/* What compgen, of bash, is to be given for the value of an option. */
static void print_values(const struct spec *spec)
{
    if (spec->names) {
        printf("set -- -W '");
        for (int i = 0; spec->names[i]; i++)
            printf("%s%s", i ? " " : "", spec->names[i]);
        printf("' ;;\n");
    } else {
        printf("%s ;;\n", strcmp(spec->argument, "FILE") == 0  ? "set -- -f"
                          : strcmp(spec->argument, "DIR") == 0 ? "set -- -d"
                          : spec->kind == KIND_SYNC ? "set -- -W 'none always'"
                                                    : "return");
    }
}

/* "--publish=local" is three words to bash. */
static void print_completion(void)
{
    printf("# bash completion, made by ssed --print completion\n"
           "_ssed()\n"
           "{\n"
           "    local word=${COMP_WORDS[COMP_CWORD]}\n"
           "    local before=${COMP_WORDS[COMP_CWORD - 1]}\n"
           "\n"
           "    [[ $before != = ]] || before=${COMP_WORDS[COMP_CWORD - 2]}\n"
           "    [[ $word != = ]] || word=\n"
           "    COMPREPLY=()\n"
           "    case $before in\n");
    for (int i = 0; i < SPECS; i++) {
        if (!specs[i].argument)
            continue;
        if (specs[i].letter)
            printf("    -%c | --%s) ", specs[i].letter, specs[i].name);
        else
            printf("    --%s) ", specs[i].name);
        print_values(&specs[i]);
    }
    printf("    *) set -- -W '-");
    for (int i = 0; i < SPECS; i++)
        printf(" --%s", specs[i].name);
    printf("' ;;\n"
           "    esac\n"
           "    [[ $1 == -W ]] || compopt -o filenames\n"
           "    mapfile -t COMPREPLY < <(compgen \"$@\" -- \"$word\")\n"
           "}\n"
           "complete -F _ssed ssed\n");
}

/* Each unit begins with its name. `make install` puts the folder of the program
 * in place of /usr/local/bin. */
static const char service_units[] =
    "# ssed.socket\n"
    "[Unit]\n"
    "Description=ssed, event streams\n"
    "Documentation=man:ssed(1)\n"
    "\n"
    "[Socket]\n"
    "ListenStream=127.0.0.1:3000\n"
    "Backlog=4096\n"
    "NoDelay=true\n"
    "\n"
    "[Install]\n"
    "WantedBy=sockets.target\n"
    "\n"
    "# ssed.service\n"
    "[Unit]\n"
    "Description=ssed, event streams\n"
    "Documentation=man:ssed(1)\n"
    "Requires=ssed.socket\n"
    "After=network.target\n"
    "\n"
    "[Service]\n"
    "Type=notify\n"
    "Environment=SSED_OPTIONS=\n"
    "EnvironmentFile=-/etc/default/ssed\n"
    "ExecStart=/usr/local/bin/ssed --history-file /var/lib/ssed/history "
    "$SSED_OPTIONS\n"
    "ExecReload=/bin/sh -c 'kill -HUP $MAINPID'\n"
    "Restart=always\n"
    "WatchdogSec=10\n"
    "TimeoutStopSec=15\n"
    "LimitNOFILE=1048576\n"
    "DynamicUser=true\n"
    "StateDirectory=ssed\n"
    "NoNewPrivileges=true\n"
    "ProtectSystem=strict\n"
    "ProtectHome=true\n"
    "PrivateTmp=true\n"
    "PrivateDevices=true\n"
    "ProtectKernelTunables=true\n"
    "ProtectKernelModules=true\n"
    "ProtectControlGroups=true\n"
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX\n"
    "RestrictNamespaces=true\n"
    "LockPersonality=true\n"
    "MemoryDenyWriteExecute=true\n"
    "SystemCallFilter=@system-service landlock_create_ruleset "
    "landlock_add_rule landlock_restrict_self\n"
    "CapabilityBoundingSet=\n"
    "\n"
    "[Install]\n"
    "WantedBy=multi-user.target\n";

static void print_units(void)
{
    fputs(service_units, stdout);
}

static void print_text(uint64_t which)
{
    /* in the order of `print_names` */
    static void (*const printers[])(void) = { print_redis_script, print_man,
                                              print_completion, print_units };

    assert(which < COUNT(printers));
    printers[which]();
    if (fflush(stdout) != 0)
        die(EXIT_RUN_TIME, "--print: %s", strerror(errno));
}

/* ------------------------------------------------------- checks of options
 *
 * check_options() looks at options that need or exclude each other, and sets
 * the defaults that depend on others. A wrong option ends the process with a
 * line that says what would be right.
 */

/* An origin is compared as a browser sends it. "*" must not become
 * options->origin: a client may send `Origin: *`. */
static void check_cors(struct options *options)
{
    const char *cors = options->cors;
    size_t length = strlen(cors);
    bool is_https = strncmp(cors, "https://", 8) == 0;
    size_t scheme = is_https ? 8 : 7;

    if (strcmp(cors, "none") == 0)
        options->cors = NULL;
    if (options->cors && options->host_count)
        die(EXIT_USAGE, "--host is for --cors none: without it every Host is "
                        "served");
    if (!options->cors || strcmp(cors, "*") == 0)
        return;
    if ((!is_https && strncmp(cors, "http://", 7) != 0) || length == scheme ||
        length > CORS_MAX ||
        strcspn(cors + scheme, "/ \t\r\n\"") != length - scheme)
        die(EXIT_USAGE,
            "--cors: '%s' is not *, none, or an origin such as "
            "https://example.com",
            cors);
    options->origin = cors;
}

static void check_input(struct options *options)
{
    const char *topic = options->topic;
    const char *refused = topic_name_refused(slice_of(topic));

    if (!options->reads_input &&
        (*topic || options->end || options->stdin_events != UNGIVEN))
        die(EXIT_USAGE, "--%s is for what comes on standard input: add \"-\"",
            *topic         ? "topic"
            : options->end ? "end"
                           : "stdin");
    if (*topic && refused)
        die(EXIT_USAGE, "--topic: '%s': %s", topic, refused);
    if (options->end && !*topic)
        die(EXIT_USAGE, "--end needs --topic: the main stream has no end");
    if (options->stdin_events == UNGIVEN)
        options->stdin_events = false;
    if (options->reads_input && fcntl(STDIN_FILENO, F_GETFD) < 0)
        die(EXIT_RUN_TIME, "\"-\" needs standard input, which is closed");
}

static void check_ids(struct options *options)
{
    bool keep = options->kept_ids;

    if (keep && options->first_id)
        die(EXIT_USAGE, "--first-id and --ids keep exclude each other: the "
                        "publishers give the ids");
    if (keep && options->interval != UNGIVEN && options->interval)
        die(EXIT_USAGE, "--interval and --ids keep exclude each other: the "
                        "clock has no ids");
    if (keep && options->end)
        die(EXIT_USAGE, "--end and --ids keep exclude each other: the end "
                        "would have no id");
    if (keep && options->reads_input && !options->stdin_events)
        die(EXIT_USAGE, "--ids keep needs --stdin events: lines have no ids");
}

/* The log gives the ids and keeps the history; its clock would be that of every
 * node. */
static void check_redis(struct server *server)
{
    struct redis *redis = &server->http.redis;
    struct options *options = &server->options;

    if (redis->address &&
        (options->history_file || options->kept_ids || options->first_id))
        die(EXIT_USAGE,
            "--redis and --%s exclude each other: the log keeps "
            "the history and gives the ids",
            options->history_file ? "history-file"
            : options->kept_ids   ? "ids keep"
                                  : "first-id");
    if (!redis->address &&
        (redis->key || redis->auth_file || redis->length != UNGIVEN))
        die(EXIT_USAGE, "--redis-%s is for --redis, which is not given",
            redis->key         ? "key"
            : redis->auth_file ? "auth-file"
                               : "length");
    if (!redis->key)
        redis->key = "ssed";
    if (strlen(redis->key) > REDIS_KEY_MAX)
        die(EXIT_USAGE, "--redis-key: more than %d bytes", REDIS_KEY_MAX);
    if (redis->length == UNGIVEN)
        redis->length = options->history;
    redis->max_event = options->max_event;
    if (options->interval == UNGIVEN)
        options->interval =
            options->kept_ids || redis->address ? 0 : INTERVAL_DEFAULT;
}

/* Sets who may publish: with a secret --publish says nothing but none. */
static void check_credentials(struct server *server)
{
    struct options *options = &server->options;
    uint64_t *failures = &server->http.max_failures;

    if (options->token_file && options->secret_file)
        die(EXIT_USAGE, "--token-file and --secret-file exclude each other: "
                        "tokens that are signed say who may publish");
    if (options->token_file && options->publish != UNGIVEN)
        die(EXIT_USAGE, "--publish and --token-file exclude each other: with "
                        "a token, any client that sends it may publish");
    if (!options->secret_file &&
        (options->public_count || options->sign || *failures != UNGIVEN))
        die(EXIT_USAGE, "--%s is for --secret-file, which is not given",
            options->public_count ? "public"
            : options->sign       ? "sign"
                                  : "max-failures");
    if (*failures == UNGIVEN)
        *failures = FAILURES_DEFAULT;
    if (options->token_file)
        options->publish = PUBLISH_TOKEN;
    else if (options->secret_file && options->publish != PUBLISH_NONE)
        options->publish = PUBLISH_SIGNED;
    else if (options->publish == UNGIVEN)
        options->publish = PUBLISH_LOCAL;
}

/* The two memories must have room for one largest event: for its frame, and for
 * its request beside standard input, which keeps its own. */
static void check_options(struct server *server)
{
    struct options *options = &server->options;
    uint64_t frame = options->max_event * FRAME_FACTOR + FRAME_REST;
    uint64_t request = sizeof(struct exchange) + memory_cost(HEAD_MAX) +
                       memory_cost(OUT_SIZE) +
                       memory_cost((size_t)options->max_event + 2);

    if (options->reads_input)
        request *= 2;
    if (server->http.memory_limit < request)
        die(EXIT_USAGE,
            "--request-memory: %" PRIu64 " cannot hold one request of "
            "--max-event, which may need %" PRIu64,
            server->http.memory_limit, request);
    check_cors(options);
    check_input(options);
    check_ids(options);
    check_redis(server);
    check_credentials(server);
    if (options->history_bytes < frame)
        die(EXIT_USAGE,
            "--history-bytes: %" PRIu64 " cannot hold one event of "
            "--max-event, which may need %" PRIu64,
            options->history_bytes, frame);
    if (!options->history_file && options->sync != UNGIVEN)
        die(EXIT_USAGE, "--sync is for a --history-file, and there is none");
    if (!options->history_file)
        options->sync = SYNC_NEVER;
    else if (options->sync == UNGIVEN)
        options->sync = SYNC_DEFAULT;
}

/* -------------------------------------------------------- least privilege
 *
 * What ssed does not need it gives up, by the kernel's own means, so that a
 * defect that lets somebody run code in it opens little else.
 * drop_privileges() comes when the listeners are there: the user, capabilities,
 * and whatever a program that is executed could gain. enter_sandbox() is the
 * last thing before the loop: files and connections (Landlock), system calls
 * (seccomp). What the kernel does not have is logged and done without.
 *
 * The kernel's headers are not everywhere, and often older than the kernel, so
 * its structures and numbers are spelled here.
 *
 * Invariants: what --sandbox refuses, nothing in the loop needs; what is opened
 * late is named in `read_late` or in add_rules(). The calls that every turn
 * makes are decided by their number alone, but sendto(2) with --redis: the
 * kernel then knows the answer without running the filter.
 *
 * Callers: main(); the filter's test.
 */

/* struct sock_filter of <linux/filter.h>. */
struct filter_code {
    uint16_t code;
    uint8_t if_true, if_false; /* so many to skip */
    uint32_t value;
};

enum {
    FILTER_MAX = 512, /* codes */
    CHECKS_MAX = 3,

    /* <linux/bpf_common.h> */
    CODE_LOAD = 0x20,   /* a word at this place of struct seccomp_data */
    CODE_AND = 0x54,    /* with a constant */
    CODE_EQUALS = 0x15, /* jumps by what was loaded */
    CODE_REACHES = 0x35,
    CODE_RETURN = 0x06,

    /* struct seccomp_data of <linux/seccomp.h> */
    CALL_NUMBER = 0,
    CALL_ARCH = 4,
    CALL_ARGUMENTS = 16,

    X32_BIT = 0x40000000,
};

/* What the filter returns, <linux/seccomp.h>. */
#define VERDICT_KILL 0x80000000U
#define VERDICT_ERROR 0x00050000U /* with errno */
#define VERDICT_LOG 0x7FFC0000U
#define VERDICT_ALLOW 0x7FFF0000U

/* <linux/audit.h>; 0: no filter is known for this processor. */
#if defined(__x86_64__) && defined(__LP64__)
#define FILTER_ARCH 0xC000003EU
#elif defined(__aarch64__) && defined(__LP64__) && !defined(__AARCH64EB__)
#define FILTER_ARCH 0xC00000B7U
#else
#define FILTER_ARCH 0U
#endif

/* What a call is needed for; without it the call is refused as well. */
enum {
    FOR_ALL = 0,
    FOR_ROOT = 1,    /* files of --root */
    FOR_FILES = 2,   /* files that are read again */
    FOR_UNIX = 4,    /* Unix sockets, which are removed at the end */
    FOR_LOG = 8,     /* connections to Redis */
    FOR_INPUT = 16,  /* standard input */
    FOR_ADMIN = 32,  /* the memory of the process */
    FOR_NO_LOG = 64, /* it may be called more freely without those */
};

struct filter_wanted {
    unsigned needs;  /* a bit for each FOR_... */
    uint32_t pid;    /* the only process that may be signalled */
    uint32_t family; /* of sockets to Redis */
    bool only_logs;  /* refuses nothing */
};

struct call {
    uint32_t number;
    unsigned needed_for;
};

#define CALL(name)          \
    {                       \
        SYS_##name, FOR_ALL \
    }
#define CALL_FOR(name, needs) \
    {                         \
        SYS_##name, needs     \
    }

/* Allowed whatever the arguments are; the most frequent first. Some are there
 * for a libc or a kernel that goes another way than usual. */
static const struct call allowed_calls[] = {
    CALL_FOR(sendto, FOR_NO_LOG),
    CALL(writev),
#ifdef SYS_epoll_wait
    CALL(epoll_wait),
#endif
    CALL(epoll_pwait),
    CALL(read),
    CALL(accept4),
    CALL(epoll_ctl),
    CALL(close),
    CALL_FOR(sendfile, FOR_ROOT),
    CALL_FOR(openat2, FOR_ROOT),
    CALL(fstat), /* files; and whether the history file is still there */
#ifdef SYS_newfstatat
    CALL(newfstatat),
#endif
#ifdef SYS_stat
    CALL_FOR(stat, FOR_FILES),
    CALL_FOR(lstat, FOR_UNIX),
#endif
    CALL_FOR(recvfrom, FOR_LOG | FOR_INPUT),
    CALL_FOR(connect, FOR_LOG),
    CALL(write), /* the log */
#ifdef SYS_poll
    CALL(poll),
#endif
    CALL(ppoll),
    CALL(restart_syscall), /* a poll(2) that a stop of the process cut short */
    CALL(clock_gettime),   /* where the vDSO cannot tell the time */
#ifdef SYS_time
    CALL(time), /* likewise */
#endif
    CALL_FOR(pread64, FOR_ADMIN), /* /proc/self/statm */
    CALL(getrandom),
    CALL(brk), /* malloc(3), also the next ones */
    CALL(munmap),
    CALL(mremap),
    CALL(madvise),
    CALL(msync),
#ifdef SYS_unlink
    CALL_FOR(unlink, FOR_UNIX),
#endif
    CALL_FOR(unlinkat, FOR_UNIX),
    CALL(rt_sigreturn),   /* on_bus_error(), raise(3), abort(3) */
    CALL(rt_sigprocmask), /* likewise */
    CALL(getpid),         /* likewise */
    CALL(gettid),         /* likewise */
    CALL(exit_group),
};

/* They run other code, look into another process, change the kernel or what the
 * process is: nothing makes them by mistake. */
static const struct call killing_calls[] = {
    CALL(execve),
    CALL(execveat),
    CALL(clone),
    CALL(clone3),
#ifdef SYS_fork
    CALL(fork),
    CALL(vfork),
#endif
    CALL(ptrace),
    CALL(process_vm_readv),
    CALL(process_vm_writev),
    CALL(process_madvise),
    CALL(kcmp),
    CALL(pidfd_getfd),
    CALL(init_module),
    CALL(finit_module),
    CALL(delete_module),
    CALL(kexec_load),
    CALL(kexec_file_load),
    CALL(reboot),
    CALL(bpf),
    CALL(perf_event_open),
    CALL(userfaultfd),
    CALL(io_uring_setup),
    CALL(io_uring_enter),
    CALL(io_uring_register),
    CALL(add_key),
    CALL(request_key),
    CALL(keyctl),
    CALL(mount),
    CALL(umount2),
    CALL(move_mount),
    CALL(open_tree),
    CALL(fsopen),
    CALL(fsconfig),
    CALL(fsmount),
    CALL(fspick),
    CALL(mount_setattr),
    CALL(pivot_root),
    CALL(chroot),
    CALL(swapon),
    CALL(swapoff),
    CALL(unshare),
    CALL(setns),
    CALL(personality),
    CALL(setuid),
    CALL(setgid),
    CALL(setreuid),
    CALL(setregid),
    CALL(setresuid),
    CALL(setresgid),
    CALL(setfsuid),
    CALL(setfsgid),
    CALL(setgroups),
    CALL(capset),
    CALL(name_to_handle_at),
    CALL(open_by_handle_at),
    CALL(sethostname),
    CALL(setdomainname),
    CALL(settimeofday),
    CALL(clock_settime),
    CALL(clock_adjtime),
    CALL(adjtimex),
#ifdef SYS_iopl
    CALL(iopl),
    CALL(ioperm),
    CALL(modify_ldt),
#endif
};

/* A call is allowed with arguments that pass the checks of one of its rows,
 * which lie together. Of an int and of flags the kernel looks at the low word
 * alone. */
struct checked_call {
    struct call call;
    struct check {
        unsigned word; /* of the arguments: two each, the low one first */
        uint32_t mask, value; /* mask 0: no check */
    } checks[CHECKS_MAX];
};

/* Of an argument, as a word; of a word. */
#define LOW(argument) (2U * (argument))
#define HIGH(argument) (2U * (argument) + 1)
#define IS(word, value)         \
    {                           \
        word, UINT32_MAX, value \
    }
#define WITHOUT(word, bits) \
    {                       \
        word, bits, 0       \
    }

/* The filter while it is made. */
struct filter {
    struct filter_code *codes;
    size_t length;
    const struct filter_wanted *wanted;
};

static void put_code(struct filter *filter, uint16_t code, uint32_t value,
                     size_t if_true, size_t if_false)
{
    assert(filter->length < FILTER_MAX && if_true < 256 && if_false < 256);
    filter->codes[filter->length++] =
        (struct filter_code){ code, (uint8_t)if_true, (uint8_t)if_false,
                              value };
}

static void put_refusal(struct filter *filter, uint32_t verdict)
{
    put_code(filter, CODE_RETURN,
             filter->wanted->only_logs ? VERDICT_LOG : verdict, 0, 0);
}

static bool is_needed(const struct filter *filter, const struct call *call)
{
    return call->needed_for == FOR_ALL ||
           (call->needed_for & filter->wanted->needs);
}

/* What was loaded last is the number, and stays it. */
static void put_calls(struct filter *filter, const struct call *calls,
                      size_t count, uint32_t verdict)
{
    for (size_t i = 0; i < count; i++) {
        if (!is_needed(filter, &calls[i]))
            continue;
        put_code(filter, CODE_EQUALS, calls[i].number, 0, 1);
        if (verdict == VERDICT_ALLOW)
            put_code(filter, CODE_RETURN, verdict, 0, 0);
        else
            put_refusal(filter, verdict);
    }
}

/* A row: allows the call, or goes on behind it. */
static void put_checks(struct filter *filter, const struct check *checks)
{
    size_t count = 0;

    while (count < CHECKS_MAX && checks[count].mask)
        count++;
    for (size_t i = 0; i < count; i++) {
        put_code(filter, CODE_LOAD, CALL_ARGUMENTS + 4 * checks[i].word, 0, 0);
        put_code(filter, CODE_AND, checks[i].mask, 0, 0);
        put_code(filter, CODE_EQUALS, checks[i].value, 0,
                 3 * (count - 1 - i) + 1);
    }
    put_code(filter, CODE_RETURN, VERDICT_ALLOW, 0, 0);
}

/* All rows of a number are behind the one jump that passes them over. */
static void put_checked_calls(struct filter *filter,
                              const struct checked_call *rows, size_t count)
{
    for (size_t i = 0; i < count;) {
        uint32_t number = rows[i].call.number;
        size_t jump = filter->length, skipped;

        put_code(filter, CODE_EQUALS, number, 0, 0);
        for (; i < count && rows[i].call.number == number; i++)
            if (is_needed(filter, &rows[i].call))
                put_checks(filter, rows[i].checks);
        if (filter->length == jump + 1) { /* no row is needed */
            filter->length = jump;
            continue;
        }
        put_refusal(filter, VERDICT_ERROR | EPERM);
        skipped = filter->length - jump - 1;
        assert(skipped < 256);
        filter->codes[jump].if_false = (uint8_t)skipped;
    }
}

static void put_argument_rules(struct filter *filter)
{
    const struct filter_wanted *wanted = filter->wanted;
    const uint32_t writes = O_WRONLY | O_RDWR | O_CREAT | O_TRUNC;
    const uint32_t stream = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
    const struct checked_call rows[] = {
        /* an address connects as well (MSG_FASTOPEN), and Landlock is not
         * asked; without connections of its own ssed has no TCP socket for
         * that */
        { CALL_FOR(sendto, FOR_LOG), { IS(LOW(4), 0), IS(HIGH(4), 0) } },
        /* not the others, which make a socket that can connect of a listener */
        { CALL(shutdown), { IS(LOW(1), SHUT_WR) } },
        { CALL(setsockopt), { IS(LOW(1), SOL_SOCKET), IS(LOW(2), SO_LINGER) } },
        { CALL_FOR(setsockopt, FOR_LOG),
          { IS(LOW(1), IPPROTO_TCP), IS(LOW(2), TCP_NODELAY) } },
#ifdef SYS_mmap
        { CALL(mmap), { WITHOUT(LOW(2), PROT_EXEC) } },
#endif
        { CALL(mprotect),
          { WITHOUT(LOW(2), PROT_EXEC) } }, /* musl's malloc(3) */
#ifdef SYS_open
        { CALL_FOR(open, FOR_FILES), { WITHOUT(LOW(1), writes) } },
#endif
        { CALL_FOR(openat, FOR_FILES), { WITHOUT(LOW(2), writes) } },
        { CALL_FOR(fcntl, FOR_FILES), { IS(LOW(1), F_SETFD) } }, /* musl's */
        /* no other protocol: Landlock knows of TCP alone */
        { CALL_FOR(socket, FOR_LOG),
          { IS(LOW(0), wanted->family), IS(LOW(1), stream), IS(LOW(2), 0) } },
        { CALL(tgkill), { IS(LOW(0), wanted->pid) } }, /* raise(3), abort(3) */
        { CALL(tkill), { IS(LOW(0), wanted->pid) } },  /* musl's */
    };

    put_checked_calls(filter, rows, COUNT(rows));
}

/*
 * Makes the filter, and returns how many codes it has; there is room for
 * FILTER_MAX. A call in no table gets ENOSYS, as if the kernel were older than
 * it, so that a libc does without.
 */
static size_t make_filter(struct filter_code *codes,
                          const struct filter_wanted *wanted)
{
    struct filter filter = { codes, 0, wanted };

    put_code(&filter, CODE_LOAD, CALL_ARCH, 0, 0);
    put_code(&filter, CODE_EQUALS, FILTER_ARCH, 1, 0);
    put_refusal(&filter, VERDICT_KILL);
    put_code(&filter, CODE_LOAD, CALL_NUMBER, 0, 0);
#ifdef __x86_64__
    put_code(&filter, CODE_REACHES, X32_BIT, 0, 1);
    put_refusal(&filter, VERDICT_KILL);
#endif
    put_argument_rules(&filter);
    put_calls(&filter, allowed_calls, COUNT(allowed_calls), VERDICT_ALLOW);
    put_calls(&filter, killing_calls, COUNT(killing_calls), VERDICT_KILL);
    put_refusal(&filter, VERDICT_ERROR | ENOSYS);
    return filter.length;
}

/* Options that name a file which is read again. */
static const size_t read_late[] = { OPTION(token_file), OPTION(secret_file),
                                    PLACE(http.redis.auth_file) };

static const char *file_read_late(const struct server *server, size_t i)
{
    return *(const char *const *)(const void *)((const char *)server +
                                                read_late[i]);
}

static unsigned find_needs(const struct server *server)
{
    const struct options *options = &server->options;
    unsigned needs = is_shared(server) ? FOR_LOG : FOR_NO_LOG;

    if (options->root)
        needs |= FOR_ROOT;
    if (options->reads_input)
        needs |= FOR_INPUT;
    if (server->http.admin)
        needs |= FOR_ADMIN;
    for (size_t i = 0; i < COUNT(read_late); i++)
        if (file_read_late(server, i))
            needs |= FOR_FILES;
    for (unsigned i = 0; i < server->http.listener_count; i++)
        if (server->http.listeners[i].unix_path)
            needs |= FOR_UNIX;
    return needs;
}

/* False with errno if the kernel has no such filters. */
static bool enter_seccomp(const struct server *server)
{
    struct filter_code codes[FILTER_MAX];
    struct filter_wanted wanted = {
        .needs = find_needs(server),
        .pid = (uint32_t)getpid(),
        .family = server->http.redis.peer_address.ss_family,
        .only_logs = server->options.sandbox == SANDBOX_LOG,
    };
    struct {
        unsigned short length;
        struct filter_code *codes;
    } program = { (unsigned short)make_filter(codes, &wanted), codes };

    errno = ENOSYS;
    return FILTER_ARCH && prctl(PR_SET_SECCOMP, 2UL, &program) == 0;
}

/* <linux/landlock.h>; the calls have one number on all processors. */
enum {
    LANDLOCK_CREATE = 444,
    LANDLOCK_ADD = 445,
    LANDLOCK_RESTRICT = 446,
    LANDLOCK_VERSION = 1, /* a flag: only says the version */
    RULE_PATH = 1,
    RULE_PORT = 2,

    READ_FILE = 1 << 2,
    READ_FOLDER = 1 << 3,
    REMOVE_FILE = 1 << 5,
    BIND_PORT = 1 << 0,
    CONNECT_PORT = 1 << 1,
    SCOPE_SOCKETS = 1 << 0, /* abstract ones */
    SCOPE_SIGNALS = 1 << 1,
};

struct path_rule {
    uint64_t allowed;
    int32_t folder;
} __attribute__((packed));

struct port_rule {
    uint64_t allowed, port;
};

static void add_rule(int ruleset, int type, const void *rule, const char *what)
{
    if (syscall(LANDLOCK_ADD, ruleset, type, rule, 0) < 0)
        die(EXIT_RUN_TIME, "--sandbox: cannot allow '%s': %s", what,
            strerror(errno));
}

/* Allows it on files of the folder that has this file. One that is not there
 * yet, which --redis-auth-file waits for, cannot be allowed. */
static void allow_beside(int ruleset, const char *file, uint64_t allowed)
{
    const char *slash = strrchr(file, '/');
    struct path_rule rule = { .allowed = allowed };
    char folder[PATH_MAX + 1];

    snprintf(folder, sizeof(folder), "%.*s.",
             slash ? (int)(slash - file + 1) : 0, file);
    rule.folder = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (rule.folder < 0)
        return;
    add_rule(ruleset, RULE_PATH, &rule, folder);
    close(rule.folder);
}

/* What is needed later: files of --root, files that are read again and may be
 * symbolic links, the removal of Unix sockets, Redis's port. */
static void add_rules(int ruleset, const struct server *server, bool has_ports)
{
    const struct http *http = &server->http;
    const struct path_rule root = { READ_FILE | READ_FOLDER, http->root };
    const struct sockaddr_in *peer = (const void *)&http->redis.peer_address;
    /* the port of an IPv6 address lies at the same place */
    const struct port_rule port = { CONNECT_PORT, ntohs(peer->sin_port) };
    char real[PATH_MAX];

    if (server->options.root)
        add_rule(ruleset, RULE_PATH, &root, server->options.root);
    for (size_t i = 0; i < COUNT(read_late); i++) {
        const char *file = file_read_late(server, i);

        if (file)
            allow_beside(ruleset, file, READ_FILE);
        if (file && realpath(file, real))
            allow_beside(ruleset, real, READ_FILE);
    }
    for (unsigned i = 0; i < http->listener_count; i++)
        if (http->listeners[i].unix_path)
            allow_beside(ruleset, http->listeners[i].unix_path, REMOVE_FILE);
    if (is_shared(server) && has_ports && peer->sin_family != AF_UNIX)
        add_rule(ruleset, RULE_PORT, &port, http->redis.address);
}

/* Returns the version of Landlock, or 0 with errno if the kernel has none. What
 * a version does not know must not be asked of it. */
static int enter_landlock(const struct server *server)
{
    int version = (int)syscall(LANDLOCK_CREATE, NULL, 0, LANDLOCK_VERSION);
    int ruleset;
    unsigned kinds = version >= 5   ? 16
                     : version >= 3 ? 15
                     : version == 2 ? 14
                                    : 13; /* of access to files */
    const struct {
        uint64_t files, ports, scopes;
    } handled = { (UINT64_C(1) << kinds) - 1, BIND_PORT | CONNECT_PORT,
                  SCOPE_SOCKETS | SCOPE_SIGNALS };
    size_t size = version >= 6 ? 24 : version >= 4 ? 16 : 8;

    if (version < 1)
        return 0;
    ruleset = (int)syscall(LANDLOCK_CREATE, &handled, size, 0);
    if (ruleset < 0)
        return 0;
    add_rules(ruleset, server, version >= 4);
    if (syscall(LANDLOCK_RESTRICT, ruleset, 0) < 0)
        version = 0;
    close(ruleset);
    return version;
}

static void log_lack(const char *what)
{
    log_event(LEVEL_WARN, "sandbox_incomplete", "missing=%s error=%s", what,
              error_name(errno));
}

/* The end of the start. With `log` nothing is refused. */
static void enter_sandbox(const struct server *server)
{
    uint64_t mode = server->options.sandbox;
    uid_t user = geteuid(); /* which cannot be asked later */
    bool filtered = false;
    int version = 0;

    if (mode == SANDBOX_ON && prctl(PR_SET_DUMPABLE, 0UL) < 0)
        log_lack("dumpable");
    if (mode == SANDBOX_ON && !(version = enter_landlock(server)))
        log_lack("landlock");
    if (mode != SANDBOX_OFF && !(filtered = enter_seccomp(server)))
        log_lack("seccomp");
    log_event(LEVEL_INFO, "sandbox", "mode=%s user=%u landlock=%d seccomp=%s",
              sandbox_names[mode], user, version, filtered ? "yes" : "no");
}

/* Root becomes the user of --user, for good. */
static void become_user(struct server *server)
{
    const char *name = server->options.user;
    const struct passwd *user;
    char error[ERROR_SIZE];

    if (geteuid() != 0)
        die(EXIT_RUN_TIME,
            "--user: only root can become '%s': start it as root, or as that "
            "user without --user",
            name);
    user = getpwnam(name);
    if (!user)
        die(EXIT_RUN_TIME, "--user: there is no user '%s'", name);
    if (user->pw_uid == 0)
        die(EXIT_USAGE, "--user: '%s' is root: name a user that is not", name);
    if (http_give_sockets(&server->http, user->pw_uid, user->pw_gid, error) < 0)
        die(EXIT_RUN_TIME, "--user: %s", error);
    if (initgroups(name, user->pw_gid) < 0 ||
        setresgid(user->pw_gid, user->pw_gid, user->pw_gid) < 0 ||
        setresuid(user->pw_uid, user->pw_uid, user->pw_uid) < 0)
        die(EXIT_RUN_TIME, "--user: cannot become '%s': %s", name,
            strerror(errno));
}

/* Capabilities: the bounding set first, since that takes one of them; without
 * it, what cannot be dropped from it cannot be gained either. capset(2) lowers
 * the ambient set as well. */
static void drop_privileges(struct server *server)
{
    struct {
        uint32_t version; /* _LINUX_CAPABILITY_VERSION_3 */
        int pid;
    } header = { 0x20080522, 0 };
    const uint32_t none[6] = { 0 };

    for (unsigned long i = 0; prctl(PR_CAPBSET_READ, i) >= 0; i++)
        prctl(PR_CAPBSET_DROP, i);
    if (server->options.user)
        become_user(server);
    if (syscall(SYS_capset, &header, none) < 0)
        log_lack("capabilities");
    if (server->options.user && setuid(0) == 0)
        die(EXIT_RUN_TIME, "--user: '%s' could become root again",
            server->options.user);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1UL, 0UL, 0UL, 0UL) < 0)
        log_lack("no_new_privs");
}

/* --------------------------------------------------------------- the start
 *
 * What main() calls before the loop, in its order; what fails ends the process.
 * Listeners come first, since they may take a privilege that is given up then:
 * whatever is opened after them is opened with the rights that are left, so
 * what works at the start works at SIGHUP. Who connects meanwhile waits in the
 * kernel. Standard input comes last, when all that its events need is there.
 */

/* What epoll watches but listeners, and the times when something is due. */
static void init_loop(struct server *server)
{
    const struct options *options = &server->options;
    struct http *http = &server->http;
    struct epoll_event event = { .events = EPOLLIN };
    char error[ERROR_SIZE];
    sigset_t set;

    http->handlers = &handlers;
    http->server = server;
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
    server->on_terminal = isatty(STDOUT_FILENO);
    tzset(); /* the file of the time zone is not read later */
    update_time(server);
    server->started = (uint64_t)server->ring.time;
    logger.refilled = http->now;
    server->phase_end = server->next_watchdog = server->status.next = NEVER;
    server->status.most_lag.by_lag = true;
    server->next_clock =
        options->interval ? http->now + options->interval : NEVER;
    server->next_sync = options->sync < SYNC_NEVER ? http->now : NEVER;
}

/* The id before that of the first event, if the clock gives the first id. */
static uint64_t clock_position(void)
{
    uint64_t position = clock_us(CLOCK_REALTIME) - 1;

    return position < ID_MAX ? position : ID_MAX;
}

#define LOST_MEANING "it was truncated while in use, or its disk failed"

/* Written if the history file is lost, by a signal handler. It is made before,
 * without a time, since a handler cannot format (signal-safety(7)). */
static char lost_line[PIPE_BUF];

/* The pages of the file can neither be read nor written any more, and the ring
 * lies in them. After a SIGBUS of another cause the process ends as usual. */
static void on_bus_error(int signal, siginfo_t *info, void *context)
{
    (void)context;
    if (info->si_code > 0 && ring_is_mapped(info->si_addr)) {
        log_write(lost_line, strlen(lost_line));
        _exit(EXIT_RUN_TIME);
    }
    raise(signal);
}

/* Has the text, cut to what log_write() takes, written if the file is lost. */
__attribute__((format(printf, 1, 2))) static void
watch_history(const char *format, ...)
{
    struct sigaction action = { .sa_sigaction = on_bus_error,
                                .sa_flags = SA_SIGINFO | (int)SA_RESETHAND };
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(lost_line, sizeof(lost_line) - 1, format, arguments);
    va_end(arguments);
    memcpy(lost_line + strlen(lost_line), "\n", 2);
    sigaction(SIGBUS, &action, NULL);
}

static void open_history(struct server *server, uint64_t newest_id)
{
    const struct options *options = &server->options;
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    char error[ERROR_SIZE], boot_id[64] = "";
    struct recovery recovery;
    struct history_wanted wanted = { .path = options->history_file,
                                     .limit = options->history,
                                     .size = (size_t)options->history_bytes,
                                     .newest_id = newest_id,
                                     .clock_id = clock_position(),
                                     .kept_ids = options->kept_ids,
                                     .boot_id = boot_id,
                                     .splice_text = SLICE(CATCH_UP_SPLICE) };

    watch_history("level=error event=history_file_lost file=\"%s\" "
                  "meaning=\"" LOST_MEANING "\"",
                  options->history_file);
    if (file && !fgets(boot_id, sizeof(boot_id), file))
        boot_id[0] = '\0';
    if (file)
        fclose(file);
    boot_id[strcspn(boot_id, "\n")] = '\0';
    if (ring_open(&server->ring, &wanted, &recovery, error) < 0)
        die(EXIT_RUN_TIME, "--history-file: %s", error);
    log_event(
        LEVEL_INFO, "history",
        "file=\"%s\" events=%" PRIu64 " first_id=%" PRIu64 " last_id=%" PRIu64
        " dropped=%" PRIu64 "%s%s%s",
        options->history_file, recovery.count, recovery.first_id,
        recovery.last_id, recovery.dropped, recovery.made ? " made=1" : "",
        recovery.resized ? " resized=1" : "",
        recovery.crashed ? " crashed=1 meaning=\"the end was not clean: older "
                           "positions are told of a gap\""
                         : "");
}

static void init_history(struct server *server)
{
    const struct options *options = &server->options;
    bool keep = options->kept_ids;
    uint64_t newest_id = keep || is_shared(server) ? 0
                         : options->first_id       ? options->first_id - 1
                                                   : clock_position();

    if (options->history_file) {
        open_history(server, newest_id);
    } else if (ring_init(&server->ring, options->history,
                         (size_t)options->history_bytes, newest_id,
                         SLICE(CATCH_UP_SPLICE)) < 0) {
        die(EXIT_RUN_TIME,
            "no memory for a history of %" PRIu64 " bytes: "
            "--history-bytes, --history",
            options->history_bytes);
    } else {
        server->ring.unbegun = server->ring.kept_ids = keep;
    }
    server->ring.pace = options->pace;
    server->ring.max_topics = options->max_topics;
    server->main_topic = topic_hold(&server->ring, SLICE(""));
    server->frame_size =
        (uint32_t)(options->max_event * FRAME_FACTOR + FRAME_REST);
    server->frame = malloc(server->frame_size);
    if (!server->frame || !server->main_topic)
        die(EXIT_RUN_TIME, "no memory for an event: --max-event");
}

/* The bundled pages are as old as the program. */
static void init_pages(struct server *server)
{
    const char *root = server->options.root;
    char error[ERROR_SIZE];
    struct stat status;
    bool known = stat("/proc/self/exe", &status) == 0;
    int outcome;

    http_bundle_init(known ? status.st_mtime : time(NULL));
    outcome = root ? http_serve_root(&server->http, root, error) : 0;
    if (outcome < 0)
        die(EXIT_RUN_TIME, "--root: %s", error);
    if (outcome > 0)
        log_event(LEVEL_WARN, "no_index",
                  "reason=\"--root has no index.html that can be read\"");
}

/* A start that fails leaves no Unix socket behind. After one that did not there
 * is no listener any more when the process ends. */
static struct http *started;

static void close_listeners(void)
{
    http_close_listeners(started, 0);
}

/* With --sandbox on no file of /proc can be opened later. */
static void init_admin(struct server *server)
{
    const char *name = server->http.admin;
    char error[ERROR_SIZE];
    int outcome;

    server->statm = -1;
    if (!name)
        return;
    server->statm = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    outcome = http_listen(&server->http, name, FLAG_ADMIN, error);
    if (outcome != 0)
        die(outcome == -2 ? EXIT_USAGE : EXIT_RUN_TIME, "--admin: %s", error);
}

/* The service manager may hand over sockets that it holds, so that connections
 * wait in the kernel while the server is replaced: from descriptor 3 on,
 * sd_listen_fds(3). */
static void init_listeners(struct server *server)
{
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
    struct options *options = &server->options;
    uint64_t inherited = 0;
    char error[ERROR_SIZE];

    started = &server->http;
    atexit(close_listeners);
    if (pid && count && strtol(pid, NULL, 10) == getpid() &&
        !slice_number(slice_of(count), LISTENERS_MAX, &inherited))
        die(EXIT_RUN_TIME, "LISTEN_FDS: '%s' is not a number up to %d", count,
            LISTENERS_MAX);
    for (int i = 0; i < (int)inherited; i++)
        if (http_take_listener(&server->http, LISTEN_FDS_START + i, error) < 0)
            die(EXIT_RUN_TIME, "LISTEN_FDS: %s", error);
    if (options->listen_count == 0 && inherited == 0)
        add_listen(options, "127.0.0.1:3000");
    if (options->listen_count + inherited > LISTENERS_MAX)
        die(EXIT_USAGE, "--listen: at most %d listeners", LISTENERS_MAX);
    for (unsigned i = 0; i < options->listen_count; i++) {
        int outcome = http_listen(&server->http, options->listen[i], 0, error);

        if (outcome != 0)
            die(outcome == -2 ? EXIT_USAGE : EXIT_RUN_TIME, "--listen: %s",
                error);
    }
    init_admin(server);
}

static void init_log(struct server *server)
{
    char error[ERROR_SIZE];
    int outcome;

    if (!is_shared(server))
        return;
    outcome = redis_init(&server->http, error);
    if (outcome != 0)
        die(outcome == -2 ? EXIT_USAGE : EXIT_RUN_TIME, "--redis: %s", error);
}

/* Whether a listener is that of --admin. */
static bool is_admin(const struct http *http, unsigned i)
{
    return conn_at(http, (uint32_t)http->listeners[i].fd)->flags & FLAG_ADMIN;
}

/* Says that the server is ready: to its log, the service manager, and people at
 * a terminal. */
static void announce_ready(const struct server *server)
{
    const struct http *http = &server->http;

    log_event(LEVEL_INFO, "ready", "first_id=%" PRIu64,
              server->ring.newest_id + 1);
    notify("READY=1\nSTATUS=serving on %s\n", http->listeners[0].address);
    if (!server->on_terminal || server->phase >= PHASE_DRAIN)
        return;
    for (unsigned i = 0; i < http->listener_count; i++) {
        const char *address = http->listeners[i].address;
        char line[256];

        /* not printf(3): stdio makes calls that the sandbox refuses */
        snprintf(line, sizeof(line),
                 is_admin(http, i) ? "ssed tells its figures at %s%s/\n"
                                   : "ssed serves %s%s/ and the stream at "
                                     "/events; Ctrl-C ends it\n",
                 strncmp(address, "unix:", 5) ? "http://" : "", address);
        if (write(STDOUT_FILENO, line, strlen(line)) < 0)
            return; /* the terminal is gone */
    }
}

/*
 * How much memory the process can have at the most, without the program itself.
 * malloc(3) takes more than it is asked for, by up to a quarter: musl's sizes
 * are that far apart.
 *
 *   history      the ring and its index; where a frame is made; with --redis an
 *                entry that is read, and what is to be sent
 *   topics       as many as there can be
 *   connections  the table, with the counts by network; of each its places, its
 *                entries in the arrays of topics, and the small end of its own
 *   requests     --request-memory, the exchanges that are kept or are of
 *                --admin, and a buffer that is moved. Twice that, since what
 *                has been small pieces cannot become pages: see "memory of
 *                requests"
 *   rest         what has one size always: static memory, libc's own
 */
static void log_memory(const struct server *server)
{
    enum {
        MIB = 1 << 20,
        SMALL = 64, /* what malloc(3) takes beside for places and for its own */
        MEMBER = 32, /* of topic->subscribers: see topic_leave() */
        SUBSCRIBER =
            READER_TOPICS_MAX * (sizeof(struct place) + MEMBER) * 5 / 4 + SMALL,
        REST = 3,
    };
    const struct options *options = &server->options;
    const struct http *http = &server->http;
    const struct ring *ring = &server->ring;
    uint64_t log =
        is_shared(server) ? options->max_event * 2 + 2 * (uint64_t)MIB : 0;
    uint64_t history =
        (ring_history_size(ring) + server->frame_size + log) / MIB + 1;
    uint64_t topics = ring_topics_size(ring) / MIB + 1;
    uint64_t connections =
        (http_table_size(http) + (uint64_t)http->conn_limit * SUBSCRIBER) /
            MIB +
        1;
    uint64_t requests =
        (http->memory_limit + http_spare_size() + options->max_event) / 4 * 9 /
            MIB +
        1;

    log_event(LEVEL_INFO, "memory",
              "meaning=\"MiB at the most\" sum=%" PRIu64 " history=%" PRIu64
              " topics=%" PRIu64 " connections=%" PRIu64 " requests=%" PRIu64
              " rest=%d",
              history + topics + connections + requests + REST, history, topics,
              connections, requests, REST);
}

/* Says what the server is. */
static void announce(const struct server *server)
{
    static const char *const publishers[] = {
        "local (this machine, not through a proxy)",
        "unix (through the Unix socket)", "none", "token", "signed tokens"
    };
    const struct options *options = &server->options;
    const struct http *http = &server->http;

    log_event(LEVEL_INFO, "start",
              "version=%s max_connections=%" PRIu64 " history=%" PRIu64
              " history_bytes=%" PRIu64 " publish=\"%s\"",
              VERSION, http->max_connections, options->history,
              options->history_bytes, publishers[options->publish]);
    log_memory(server);
    for (unsigned i = 0; i < http->listener_count; i++)
        log_event(LEVEL_INFO, is_admin(http, i) ? "admin" : "listening",
                  "address=%s", http->listeners[i].address);
}

/* Standard input is published as the body of a request that never ends. Its
 * room is taken now, so that it cannot fail later. */
static void init_input(struct server *server)
{
    const struct options *options = &server->options;
    static char input_topic[TOPIC_NAME_MAX + 1];
    const char *topic = options->topic;
    bool lines = !options->stdin_events;
    char error[ERROR_SIZE];
    struct conn *conn = http_read_input(&server->http, error);
    struct publication *publication;

    if (!conn)
        die(EXIT_RUN_TIME, "%s", error);
    publication = &conn->exchange->publication;
    publication->topic = topic_hold(&server->ring, slice_of(topic));
    publication->fd = conn_fd(&server->http, conn);
    publication->from = lines ? FROM_LINES : FROM_EVENTS;
    publication->finishes = options->end;
    publication->content_max = (size_t)options->max_event + lines; /* a CR */
    if (!publication->topic ||
        !topic_hold(&server->ring, slice_of(topic)) || /* for good */
        !memory_grow(&server->http, &publication->content,
                     &publication->content_room, publication->content_max))
        die(EXIT_RUN_TIME, "no memory for standard input: --max-event");
    event_parser_init(&publication->parser, NULL, 0);
    publication->parser.topic = input_topic;
    log_event(LEVEL_INFO, "input", "topic=%s form=%s", *topic ? topic : "-",
              stdin_names[options->stdin_events]);
}

/* ----------------------------------------------------------------- --check
 *
 * Prints what is in a history file, which a server may be writing meanwhile.
 */

static void print_local_time(int64_t ms, const char *end)
{
    time_t seconds = (time_t)(ms / 1000);
    char text[32];
    struct tm tm;

    if (!localtime_r(&seconds, &tm) ||
        strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &tm) == 0)
        strcpy(text, "-");
    printf("%s%s", text, end);
}

/* Returns the exit status. */
static int check_history(const char *path)
{
    struct history_wanted wanted = { .path = path };
    char error[ERROR_SIZE];
    struct recovery recovery;
    struct ring ring;
    uint32_t pid;

    watch_history("ssed: --check: '%s' is lost: " LOST_MEANING, path);
    if (ring_inspect(&ring, &wanted, &recovery, &pid, error) < 0)
        die(EXIT_RUN_TIME, "--check: %s", error);
    printf("file      %s\n", path);
    if (pid)
        printf("in use    by process %u: it may change while it is read\n",
               pid);
    printf("room      %" PRIu64 " events, %zu bytes\n", ring.limit, ring.size);
    printf("events    %" PRIu64 ", %zu bytes\n", recovery.count, ring.used);
    if (recovery.count) {
        printf("ids       %" PRIu64 " to %" PRIu64 "\ntimes     ",
               recovery.first_id, recovery.last_id);
        print_local_time(ring_time(&ring, ring.oldest), " to ");
        print_local_time(ring_time(&ring, ring.next - 1), "\n");
    }
    printf("dropped   %" PRIu64 " that are not whole\n", recovery.dropped);
    for (uint64_t i = ring.oldest; i < ring.next; i++) {
        const struct topic *topic = ring_frame(&ring, i)->topic;
        bool is_main = topic->name.length == 0;

        if (ring_frame(&ring, i)->previous)
            continue; /* not the oldest of its topic */
        printf("topic     %.*s: %" PRIu64 " events, the newest %" PRIu64 "%s\n",
               is_main ? 17 : (int)topic->name.length,
               is_main ? "(the main stream)" : topic->name.data, topic->count,
               ring_frame(&ring, topic->newest)->id,
               topic_finished(&ring, topic) ? ", finished" : "");
    }
    ring_release(&ring);
    return recovery.dropped ? EXIT_RUN_TIME : 0;
}

/* ------------------------------------------------------------------ --sign
 *
 * Prints a token that allows what the option says: claims with blanks between
 * them. What is wrong with one ends the process with a line that names it.
 */

/* The claims of a token, in JSON, and what has been said of them. */
struct wanted_claims {
    struct text read, write; /* the members of the arrays */
    uint64_t expires;        /* s from now on; 0: not given */
};

static void want_pattern(struct text *patterns, struct slice claim,
                         struct slice pattern)
{
    const char *refused = pattern_refused(pattern);

    if (refused)
        die(EXIT_USAGE,
            "--sign: '%.*s' names no TOPIC, PREFIX/*, * or nothing (the main "
            "stream): %s",
            (int)claim.length, claim.data, refused);
    if (patterns->length + pattern.length + 4 > patterns->room)
        die(EXIT_USAGE, "--sign: the token would be longer than %d bytes",
            SIGNED_TOKEN_MAX);
    text_put(patterns, "%s\"%.*s\"", patterns->length ? "," : "",
             (int)pattern.length, pattern.data);
}

static uint64_t parse_lifetime(struct slice claim, struct slice text)
{
    static const char units[] = "smhd";
    static const uint64_t seconds[] = { 1, 60, 3600, 86400 };
    const char *unit =
        text.length ? memchr(units, text.data[text.length - 1], 4) : NULL;
    uint64_t number;

    if (!unit)
        die(EXIT_USAGE,
            "--sign: '%.*s' has no unit: s, m, h or d, such as exp=1h",
            (int)claim.length, claim.data);
    text.length--;
    if (!slice_number(text, LIFETIME_MAX / seconds[unit - units], &number) ||
        number == 0)
        die(EXIT_USAGE, "--sign: '%.*s' is not a time from 1s to %" PRIu64 "d",
            (int)claim.length, claim.data, LIFETIME_MAX / 86400);
    return number * seconds[unit - units];
}

static void want_claim(struct wanted_claims *claims, struct slice claim)
{
    const char *equals = memchr(claim.data, '=', claim.length);
    size_t length = equals ? (size_t)(equals - claim.data) : 0;
    struct slice name = { claim.data, length };
    struct slice value = slice_from(claim, equals ? length + 1 : 0);

    if (slice_is(name, "read"))
        want_pattern(&claims->read, claim, value);
    else if (slice_is(name, "write"))
        want_pattern(&claims->write, claim, value);
    else if (!slice_is(name, "exp"))
        die(EXIT_USAGE,
            "--sign: '%.*s' is not read=PATTERN, write=PATTERN or exp=TIME",
            (int)claim.length, claim.data);
    else if (claims->expires)
        die(EXIT_USAGE, "--sign: exp= is given twice");
    else
        claims->expires = parse_lifetime(claim, value);
}

/* Returns the exit status. */
static int sign_token(const struct server *server)
{
    char read[SIGNED_TOKEN_MAX], write[SIGNED_TOKEN_MAX];
    char bytes[2 * SIGNED_TOKEN_MAX + 128], token[SIGNED_TOKEN_MAX + 1];
    struct wanted_claims claims = { .read = { read, sizeof(read), 0 },
                                    .write = { write, sizeof(write), 0 } };
    struct text json = { bytes, sizeof(bytes), 0 };
    const char *rest = server->options.sign;
    size_t length;

    while (*(rest += strspn(rest, BLANKS))) {
        length = strcspn(rest, BLANKS);
        want_claim(&claims, (struct slice){ rest, length });
        rest += length;
    }
    if (!claims.expires)
        die(EXIT_USAGE, "--sign: exp= is missing: when the token expires, such "
                        "as exp=1h");
    if (!claims.read.length && !claims.write.length)
        die(EXIT_USAGE, "--sign: read= and write= are missing: the token would "
                        "allow nothing");
    text_put(&json, "{\"exp\":%" PRIu64 ",\"read\":[%.*s],\"write\":[%.*s]}",
             (uint64_t)time(NULL) + claims.expires, (int)claims.read.length,
             read, (int)claims.write.length, write);
    length = http_sign(&server->http, text_slice(&json), token, sizeof(token));
    if (!length)
        die(EXIT_USAGE, "--sign: the token would be longer than %d bytes",
            SIGNED_TOKEN_MAX);
    printf("%.*s\n", (int)length, token);
    return 0;
}

/* -------------------------------------------------------------------- main */

/* Opens descriptors 0 to 2 where they are closed, so that no file or socket
 * becomes what the log is written to. */
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
    static struct server server = { .options = { .cors = "*", .topic = "" } };
    uint64_t newest_id;

    parse_options(&server, argc, argv);
    check_options(&server);
    fill_standard_descriptors();
    if (server.options.check)
        return check_history(server.options.check);
    logger.level = (enum level)server.options.log_level;
    if (server.options.sign) {
        load_credentials(&server, false);
        return sign_token(&server);
    }
    init_loop(&server);
    init_listeners(&server);
    init_manager();
    drop_privileges(&server);
    load_credentials(&server, false);
    init_history(&server);
    init_pages(&server);
    init_watchdog(&server);
    init_log(&server);
    announce(&server);
    if (server.options.reads_input)
        init_input(&server);
    enter_sandbox(&server);
    if (!is_shared(&server))
        announce_ready(&server);
    while (server.phase != PHASE_STOP)
        run_turn(&server);
    newest_id = server.ring.newest_id;
    if (server.options.history_file)
        end_history(&server);
    http_release(&server.http);
    ring_release(&server.ring);
    free(server.frame);
    log_event(LEVEL_INFO, "stopped", "newest_id=%" PRIu64, newest_id);
    return 0;
}
