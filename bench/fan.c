/*
 * A load generator: many subscribers, one publisher, and a check that each
 * subscriber gets every event, once and in order.
 *
 * The publisher is open-loop by default: each event bears the time at which
 * it should have been sent, so a server that stalls is not spared (no
 * coordinated omission). With --depth it sends so many requests at a time and
 * waits for their answers; with --stream it sends one body as fast as it is
 * taken.
 *
 * The subscribers live in processes of their own (--processes), which parse
 * the stream whole: chunks, lines, fields. They share a page of counters with
 * the publisher.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    PROCESSES_MAX = 16,
    PER_ADDRESS = 20000, /* subscribers from one loopback address */
    EVENTS_MAX = 512,    /* of one epoll_wait */
    READ_MAX = 65536,
    LINE_KEPT = 256, /* of a line: what matters is at its start */
    EXACT = 32,      /* buckets to a power of two: within 3 % */
    BUCKETS = 64 * EXACT,
    TIMED_MAX = 1 << 16, /* events whose last receipt is timed */
    STAMP = 20,          /* digits of a time in an event's data */
    CHUNK = 32768,       /* of a streamed body */
    SETTLE = 500,        /* ms after the last has connected */
    REPLAY_DEPTH = 20,
    PATIENCE = 10000, /* ms for what is under way to arrive */
};

struct options {
    const char *target;
    bool json;
    int port, pid;
    int subscribers, processes;
    double rate;
    int depth;
    double count; /* events at most, with depth or stream */
    bool stream;
    double replay; /* events stored before the subscribers come */
    double raw;    /* bytes that each is sent: not an event stream */
    int size;
    double seconds;
    int mute;      /* per cent who never read */
    int reconnect; /* per cent who come again, each once a second */
    bool quiet;
};

/* Where a subscriber is in its stream. */
enum place {
    IN_HEAD,
    IN_SIZE,
    IN_DATA,
    IN_END,
};

struct subscriber {
    int fd;
    enum place place;
    bool mute;
    uint8_t matched;   /* of the head's end */
    uint32_t chunk;    /* bytes of it that are left; or its size so far */
    uint32_t kept;     /* of the line */
    uint64_t first;    /* position it began with; 0: none yet */
    uint64_t last;     /* newest id */
    uint64_t block_id; /* of the block under way */
    uint64_t stamp;    /* of the block under way; 0: no data */
    uint64_t received;
    char line[LINE_KEPT];
};

/* What a process of subscribers has counted; in shared memory. */
struct tally {
    uint64_t events, bytes, reconnects;
    uint64_t lost, doubled, cut;
    uint64_t connected;
    double connect_seconds;
    double overhead; /* seconds of CPU that it used itself */
    uint64_t longest;
    uint64_t ended; /* when the last event came, of the monotonic clock */
    uint64_t histogram[BUCKETS];
    uint64_t last_receipt[TIMED_MAX]; /* the latest latency of each event */
};

struct shared {
    struct tally tallies[PROCESSES_MAX];
    uint64_t first_id; /* of what is published; 0: not known yet */
    uint64_t expected; /* the newest acknowledged id, at the end */
    int ready;         /* processes whose subscribers are connected */
    int done;          /* processes that have ended */
    bool over;         /* what is expected is known */
};

struct usage {
    double user, system, total; /* seconds */
    double resident;            /* bytes */
    double kernel;              /* bytes of TCP memory, of all sockets here */
};

struct published {
    uint64_t count, first, last;
    uint64_t began; /* of the monotonic clock */
    double seconds;
};

static struct options options = {
    .target = "/events/fan",
    .subscribers = 1000,
    .processes = 1,
    .rate = 10,
    .size = 100,
    .seconds = 10,
    .count = 1e18,
};
static struct shared *shared;

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "fan: %s: %s\n", what, strerror(errno));
    exit(2);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* ------------------------------------------------------------- histogram */

/* Log-linear: EXACT buckets to each power of two. */
static unsigned bucket_of(uint64_t value)
{
    unsigned power;

    if (value < EXACT)
        return (unsigned)value;
    power = 63 - (unsigned)__builtin_clzll(value);
    return (power - 4) * EXACT + (unsigned)(value >> (power - 5)) - EXACT;
}

/* The least value that is in the bucket. */
static uint64_t bucket_value(unsigned bucket)
{
    unsigned power = bucket / EXACT;

    if (power == 0)
        return bucket;
    return (uint64_t)(EXACT + bucket % EXACT) << (power - 1);
}

static double percentile(const uint64_t *histogram, double part)
{
    uint64_t total = 0, seen = 0;

    for (unsigned i = 0; i < BUCKETS; i++)
        total += histogram[i];
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (total && (double)seen >= part * (double)total)
            return (double)bucket_value(i) / 1e6;
    }
    return 0;
}

/* ----------------------------------------------------------- connections */

static int connect_from(unsigned host)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK + host),
    };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

    if (fd < 0)
        fail("socket");
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        fail("bind");
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((uint16_t)options.port);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        fail("connect");
    return fd;
}

static void send_all(int fd, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            fail("send");
        bytes += n;
        length -= (size_t)n;
    }
}

/* ----------------------------------------------------------- subscribers */

/* The number at the start of a text that ends in something else. */
static uint64_t digits(const char *text, const char *end)
{
    uint64_t number = 0;

    for (; text < end && *text >= '0' && *text <= '9'; text++)
        number = number * 10 + (uint64_t)(*text - '0');
    return number;
}

static void take_event(struct subscriber *subscriber, struct tally *tally,
                       uint64_t now)
{
    uint64_t latency = now - subscriber->stamp;
    uint64_t index = subscriber->block_id - shared->first_id;

    if (subscriber->block_id <= subscriber->last)
        tally->doubled++;
    else if (subscriber->last && subscriber->block_id != subscriber->last + 1)
        tally->lost += subscriber->block_id - subscriber->last - 1;
    subscriber->received++;
    tally->events++;
    tally->histogram[bucket_of(latency)]++;
    if (latency > tally->longest)
        tally->longest = latency;
    if (index < TIMED_MAX && shared->first_id &&
        latency > tally->last_receipt[index])
        tally->last_receipt[index] = latency;
}

static void end_block(struct subscriber *subscriber, struct tally *tally,
                      uint64_t now)
{
    if (subscriber->stamp)
        take_event(subscriber, tally, now);
    if (subscriber->block_id && !subscriber->first)
        subscriber->first = subscriber->block_id;
    if (subscriber->block_id > subscriber->last)
        subscriber->last = subscriber->block_id;
    subscriber->block_id = 0;
    subscriber->stamp = 0;
}

static void take_line(struct subscriber *subscriber, struct tally *tally,
                      const char *line, size_t length, uint64_t now)
{
    const char *end = line + length;

    if (length == 0) {
        end_block(subscriber, tally, now);
    } else if (length > 4 && memcmp(line, "id: ", 4) == 0) {
        subscriber->block_id = digits(line + 4, end);
    } else if (length > 6 && memcmp(line, "data: ", 6) == 0) {
        const char *stamp = memchr(line, '@', length); /* in JSON or alone */

        if (stamp)
            subscriber->stamp = digits(stamp + 1, end);
    }
}

/* Content: cut into lines. One that is not complete is kept, its start. */
static void take_content(struct subscriber *subscriber, struct tally *tally,
                         const char *bytes, size_t length, uint64_t now)
{
    while (length > 0) {
        const char *end = memchr(bytes, '\n', length);
        size_t line = end ? (size_t)(end - bytes) : length;
        size_t room = LINE_KEPT - subscriber->kept;
        size_t kept = line < room ? line : room;

        if (end && subscriber->kept == 0) {
            take_line(subscriber, tally, bytes, line, now);
        } else {
            memcpy(subscriber->line + subscriber->kept, bytes, kept);
            subscriber->kept += (uint32_t)kept;
        }
        if (end && subscriber->kept) {
            take_line(subscriber, tally, subscriber->line, subscriber->kept,
                      now);
            subscriber->kept = 0;
        }
        bytes += line + (end != NULL);
        length -= line + (end != NULL);
    }
}

static uint32_t hex_digit(char c)
{
    return (uint32_t)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
}

/* Takes bytes of the framing, one at a time. */
static void take_framing(struct subscriber *subscriber, char byte)
{
    static const char end[] = "\r\n\r\n";

    switch (subscriber->place) {
    case IN_HEAD:
        if (byte == end[subscriber->matched])
            subscriber->matched++;
        else
            subscriber->matched = byte == '\r';
        if (subscriber->matched == 4)
            subscriber->place = IN_SIZE;
        break;
    case IN_SIZE:
        if (byte == '\n')
            subscriber->place = IN_DATA;
        else if (byte != '\r')
            subscriber->chunk = subscriber->chunk * 16 + hex_digit(byte);
        break;
    case IN_END:
        if (byte == '\n')
            subscriber->place = IN_SIZE;
        break;
    case IN_DATA:
        break;
    }
}

/* The same for a whole size, or a whole end, which is the rule; returns how
 * many bytes that took, 0 if it is not whole. */
static size_t take_whole_framing(struct subscriber *subscriber,
                                 const char *bytes, size_t length)
{
    uint32_t size = 0;

    if (subscriber->place == IN_END && length >= 2 && bytes[1] == '\n') {
        subscriber->place = IN_SIZE;
        return 2;
    }
    if (subscriber->place != IN_SIZE || subscriber->chunk || length < 10 ||
        bytes[9] != '\n')
        return 0;
    for (int i = 0; i < 8; i++)
        size = size * 16 + hex_digit(bytes[i]);
    subscriber->chunk = size;
    subscriber->place = IN_DATA;
    return 10;
}

static void take_bytes(struct subscriber *subscriber, struct tally *tally,
                       const char *bytes, size_t length)
{
    uint64_t now = now_ns();

    tally->ended = now;
    while (length > 0) {
        size_t taken = take_whole_framing(subscriber, bytes, length);

        if (taken == 0 && subscriber->place == IN_DATA) {
            taken = length < subscriber->chunk ? length : subscriber->chunk;
            take_content(subscriber, tally, bytes, taken, now);
            subscriber->chunk -= (uint32_t)taken;
            if (subscriber->chunk == 0)
                subscriber->place = IN_END;
        } else if (taken == 0) {
            take_framing(subscriber, *bytes);
            taken = 1;
        }
        bytes += taken;
        length -= taken;
    }
}

static void subscribe(struct subscriber *subscriber, int epoll, unsigned host,
                      uint32_t index)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = index };
    char request[512], field[64] = "";

    if (options.replay > 0)
        snprintf(field, sizeof(field), "Last-Event-ID: earliest\r\n");
    if (subscriber->last)
        snprintf(field, sizeof(field), "Last-Event-ID: %llu\r\n",
                 (unsigned long long)subscriber->last);
    snprintf(request, sizeof(request),
             "GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n", options.target,
             field);
    subscriber->fd = connect_from(host);
    subscriber->place = IN_HEAD;
    subscriber->matched = 0;
    subscriber->chunk = subscriber->kept = 0;
    subscriber->stamp = subscriber->block_id = 0;
    send_all(subscriber->fd, request, strlen(request));
    fcntl(subscriber->fd, F_SETFL, O_NONBLOCK);
    if (!subscriber->mute &&
        epoll_ctl(epoll, EPOLL_CTL_ADD, subscriber->fd, &event) < 0)
        fail("epoll_ctl");
}

static void receive(struct subscriber *subscriber, struct tally *tally)
{
    char bytes[READ_MAX];
    ssize_t n = recv(subscriber->fd, bytes, sizeof(bytes), 0);

    if (n > 0) {
        tally->bytes += (uint64_t)n;
        if (options.raw > 0)
            tally->ended = now_ns();
        else
            take_bytes(subscriber, tally, bytes, (size_t)n);
    } else if (n == 0 || errno != EAGAIN) {
        tally->cut++;
        close(subscriber->fd);
        subscriber->mute = true;
    }
}

/* Whether everybody who reads has had what is expected. */
static bool all_have(const struct subscriber *subscribers, int count,
                     const struct tally *tally)
{
    if (options.raw > 0)
        return (double)tally->bytes >= options.raw * count;
    for (int i = 0; i < count; i++)
        if (!subscribers[i].mute && subscribers[i].last < shared->expected)
            return false;
    return true;
}

static bool is_over(void)
{
    return __atomic_load_n(&shared->over, __ATOMIC_SEQ_CST);
}

static void receive_ready(struct subscriber *subscribers, int epoll,
                          struct tally *tally)
{
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(epoll, events, EVENTS_MAX, 10);

    for (int i = 0; i < count; i++)
        receive(&subscribers[events[i].data.u32], tally);
}

/* So many of them come again, one after the other, over a second. */
static void reconnect_some(struct subscriber *subscribers, int count, int epoll,
                           unsigned host, struct tally *tally, uint64_t begin)
{
    static uint64_t done;
    uint64_t due = (now_ns() - begin) / 1000000 * (uint64_t)count *
                   (uint64_t)options.reconnect / 100 / 1000;

    for (; done < due; done++) {
        struct subscriber *subscriber = &subscribers[done % (uint64_t)count];

        if (subscriber->mute)
            continue;
        close(subscriber->fd);
        subscribe(subscriber, epoll, host, (uint32_t)(done % (uint64_t)count));
        tally->reconnects++;
    }
}

static double own_seconds(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* A process of subscribers, from the first connection to the last event. */
static _Noreturn void run_subscribers(int number, int count)
{
    struct tally *tally = &shared->tallies[number];
    struct subscriber *subscribers =
        calloc((size_t)count, sizeof(*subscribers));
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    uint64_t begin = now_ns(), deadline = 0;
    unsigned host = 1 + (unsigned)number * 8;
    double spent;

    if (!subscribers || epoll < 0)
        fail("begin");
    for (int i = 0; i < count; i++) {
        subscribers[i].mute = i % 100 < options.mute;
        subscribe(&subscribers[i], epoll, host + (unsigned)(i / PER_ADDRESS),
                  (uint32_t)i);
    }
    tally->connected = (uint64_t)count;
    tally->connect_seconds = (double)(now_ns() - begin) / 1e9;
    __atomic_add_fetch(&shared->ready, 1, __ATOMIC_SEQ_CST);
    begin = now_ns();
    spent = own_seconds();
    while (!is_over() || !all_have(subscribers, count, tally)) {
        receive_ready(subscribers, epoll, tally);
        if (!is_over())
            reconnect_some(subscribers, count, epoll, host, tally, begin);
        else if (!deadline)
            deadline = now_ns() + (uint64_t)PATIENCE * 1000000;
        if (deadline && now_ns() > deadline)
            break;
    }
    tally->overhead = own_seconds() - spent;
    for (int i = 0; i < count; i++)
        if (!subscribers[i].mute && subscribers[i].last < shared->expected)
            tally->lost += shared->expected - subscribers[i].last;
    _exit(0);
}

static pid_t start_subscribers(int number, int count)
{
    pid_t pid = fork();

    if (pid < 0)
        fail("fork");
    if (pid == 0)
        run_subscribers(number, count);
    return pid;
}

/* ------------------------------------------------------------- publisher */

/* The data of an event: its time, and something to fill it. */
static void put_data(char *data, uint64_t stamp)
{
    int length = snprintf(data, (size_t)options.size + 1, "@%0*llu", STAMP,
                          (unsigned long long)stamp);

    memset(data + length, 'x', (size_t)(options.size - length));
    data[options.size] = '\0';
}

/* Reads answers until there have been `count`, and takes their ids. */
static void take_answers(int fd, unsigned count, struct published *published)
{
    static char bytes[READ_MAX];
    static size_t length;

    while (count > 0) {
        const char *end = memmem(bytes, length, "\"}\n", 3), *id;
        const char *tail = end ? end : memmem(bytes, length, "}\n", 2);
        ssize_t n;

        if (tail) {
            size_t used = (size_t)(strchr(tail, '\n') + 1 - bytes);

            if (strncmp(bytes, "HTTP/1.1 201 ", 13) != 0) {
                bytes[length] = '\0';
                fprintf(stderr, "fan: publishing was answered with:\n%s",
                        bytes);
                exit(2);
            }
            id = memmem(bytes, used, "\"id\":\"", 6);
            if (id)
                published->last = strtoull(id + 6, NULL, 10);
            if (published->count++ == 0)
                shared->first_id = published->first = published->last;
            length -= used;
            memmove(bytes, bytes + used, length);
            bytes[length] = '\0';
            count--;
            continue;
        }
        n = recv(fd, bytes + length, sizeof(bytes) - 1 - length, 0);
        if (n <= 0)
            fail("publish");
        length += (size_t)n;
        bytes[length] = '\0';
    }
}

static size_t put_request(char *request, uint64_t stamp)
{
    size_t head = (size_t)sprintf(request,
                                  "POST %s HTTP/1.1\r\nHost: localhost\r\n"
                                  "Content-Length: %d\r\n\r\n",
                                  options.target, options.size);

    put_data(request + head, stamp);
    return head + (size_t)options.size;
}

static void sleep_until(uint64_t when)
{
    struct timespec at = { (time_t)(when / 1000000000),
                           (long)(when % 1000000000) };

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
        ;
}

static void publish_at_rate(int fd, struct published *published)
{
    uint64_t begin = now_ns(),
             total = (uint64_t)(options.rate * options.seconds);
    char *request = malloc((size_t)options.size + 256);
    unsigned unanswered = 0;

    if (!request)
        fail("malloc");
    for (uint64_t i = 0; i < total; i++) {
        uint64_t when = begin + (uint64_t)((double)i * 1e9 / options.rate);
        struct pollfd answers = { .fd = fd, .events = POLLIN };

        sleep_until(when);
        send_all(fd, request, put_request(request, when));
        unanswered++;
        while (unanswered && poll(&answers, 1, 0) == 1) {
            take_answers(fd, 1, published);
            unanswered--;
        }
    }
    take_answers(fd, unanswered, published);
    free(request);
}

static void publish_at_depth(int fd, struct published *published)
{
    uint64_t end = now_ns() + (uint64_t)(options.seconds * 1e9);
    char *requests =
        malloc((size_t)options.depth * ((size_t)options.size + 256));

    if (!requests)
        fail("malloc");
    while (now_ns() < end && (double)published->count < options.count) {
        size_t length = 0;

        for (int i = 0; i < options.depth; i++)
            length += put_request(requests + length, now_ns());
        send_all(fd, requests, length);
        take_answers(fd, (unsigned)options.depth, published);
    }
    free(requests);
}

static uint64_t number_after(const char *text, const char *name)
{
    const char *at = strstr(text, name);

    return at ? strtoull(at + strlen(name), NULL, 10) : 0;
}

static void publish_stream(int fd, struct published *published)
{
    static char chunk[CHUNK + 256], answer[4096];
    uint64_t end = now_ns() + (uint64_t)(options.seconds * 1e9);
    size_t event = (size_t)options.size + 8, length = 0;
    uint64_t sent = 0;
    char head[256];
    int size = snprintf(head, sizeof(head),
                        "POST %s HTTP/1.1\r\nHost: localhost\r\n"
                        "Content-Type: text/event-stream\r\n"
                        "Transfer-Encoding: chunked\r\n\r\n",
                        options.target);

    send_all(fd, head, (size_t)size);
    while (now_ns() < end && (double)sent < options.count) {
        for (length = 0; length + event <= CHUNK; length += event, sent++) {
            memcpy(chunk + length, "data: ", 6);
            put_data(chunk + length + 6, now_ns());
            memcpy(chunk + length + event - 2, "\n\n", 2);
        }
        size = snprintf(head, sizeof(head), "%zx\r\n", length);
        send_all(fd, head, (size_t)size);
        memcpy(chunk + length, "\r\n", 2);
        send_all(fd, chunk, length + 2);
    }
    send_all(fd, "0\r\n\r\n", 5);
    for (length = 0; !strstr(answer, "}\n");) {
        ssize_t n = recv(fd, answer + length, sizeof(answer) - 1 - length, 0);

        if (n <= 0)
            fail("publish");
        length += (size_t)n;
    }
    published->count = number_after(answer, "\"count\":");
    published->first = number_after(answer, "\"first\":\"");
    published->last = number_after(answer, "\"last\":\"");
}

static struct published publish(void)
{
    struct published published = { .began = now_ns() };
    int fd = connect_from(0);

    if (options.stream)
        publish_stream(fd, &published);
    else if (options.depth)
        publish_at_depth(fd, &published);
    else
        publish_at_rate(fd, &published);
    published.seconds = (double)(now_ns() - published.began) / 1e9;
    close(fd);
    return published;
}

/* --------------------------------------------------------------- the server */

static double read_number(const char *path, const char *name)
{
    FILE *file = fopen(path, "re");
    char line[512];
    double number = 0;

    if (!file)
        return 0;
    while (fgets(line, sizeof(line), file)) {
        const char *at = strstr(line, name);

        if (at)
            number = strtod(at + strlen(name), NULL);
    }
    fclose(file);
    return number;
}

/* What the server has used so far: user and system time in ticks (proc(5)),
 * both together in nanoseconds (schedstat). */
static struct usage usage_now(void)
{
    char path[64], text[1024] = "";
    double tick = (double)sysconf(_SC_CLK_TCK);
    unsigned long user = 0, system = 0;
    struct usage usage = { 0 };
    FILE *file;
    const char *end;

    snprintf(path, sizeof(path), "/proc/%d/stat", options.pid);
    file = fopen(path, "re");
    if (!file || !fgets(text, sizeof(text), file))
        fail(path);
    fclose(file);
    end = strrchr(text, ')');
    if (!end ||
        sscanf(end + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu",
               &user, &system) != 2)
        fail(path);
    usage.user = (double)user / tick;
    usage.system = (double)system / tick;
    snprintf(path, sizeof(path), "/proc/%d/schedstat", options.pid);
    usage.total = read_number(path, "") / 1e9;
    snprintf(path, sizeof(path), "/proc/%d/status", options.pid);
    usage.resident = read_number(path, "VmRSS:") * 1024;
    usage.kernel = read_number("/proc/net/sockstat", " mem ") *
                   (double)sysconf(_SC_PAGESIZE);
    return usage;
}

/* ----------------------------------------------------------------- report */

struct report {
    struct tally all;
    struct published published;
    struct usage idle, before, after;
    double latency[5]; /* ms: p50, p90, p99, p99.9, max */
    double last[3];    /* ms to the last subscriber: p50, p99, max */
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Of each event, the latest receipt; and of these the percentiles. */
static void find_last_receipts(struct report *report)
{
    static double latest[TIMED_MAX];
    size_t count = 0;

    for (size_t i = 0; i < TIMED_MAX; i++) {
        uint64_t longest = 0;

        for (int k = 0; k < options.processes; k++)
            if (shared->tallies[k].last_receipt[i] > longest)
                longest = shared->tallies[k].last_receipt[i];
        if (longest)
            latest[count++] = (double)longest / 1e6;
    }
    if (count == 0)
        return;
    qsort(latest, count, sizeof(latest[0]), by_value);
    report->last[0] = latest[count / 2];
    report->last[1] = latest[count * 99 / 100];
    report->last[2] = latest[count - 1];
}

static void add_tallies(struct report *report)
{
    static const double parts[] = { 0.5, 0.9, 0.99, 0.999 };
    struct tally *all = &report->all;

    for (int k = 0; k < options.processes; k++) {
        const struct tally *tally = &shared->tallies[k];

        all->events += tally->events;
        all->bytes += tally->bytes;
        all->lost += tally->lost;
        all->doubled += tally->doubled;
        all->cut += tally->cut;
        all->reconnects += tally->reconnects;
        all->connected += tally->connected;
        all->overhead += tally->overhead;
        if (tally->connect_seconds > all->connect_seconds)
            all->connect_seconds = tally->connect_seconds;
        if (tally->ended > all->ended)
            all->ended = tally->ended;
        if (tally->longest > all->longest)
            all->longest = tally->longest;
        for (unsigned i = 0; i < BUCKETS; i++)
            all->histogram[i] += tally->histogram[i];
    }
    for (int i = 0; i < 4; i++)
        report->latency[i] = percentile(all->histogram, parts[i]);
    report->latency[4] = (double)all->longest / 1e6;
}

/* The figures, each with its name; a line each or one JSON object. */
static void print_report(const struct report *report)
{
    const struct tally *all = &report->all;
    double delivered = (double)(all->events ? all->events : 1);
    double connected = (double)(all->connected ? all->connected : 1);
    double seconds = (double)(all->ended - report->published.began) / 1e9;
    const struct {
        const char *name;
        double value;
    } rows[] = {
        { "published", (double)report->published.count },
        { "delivered", (double)all->events },
        { "lost", (double)all->lost },
        { "doubled_or_out_of_order", (double)all->doubled },
        { "cut", (double)all->cut },
        { "reconnects", (double)all->reconnects },
        { "seconds_to_publish", report->published.seconds },
        { "seconds_to_the_last_receipt", seconds },
        { "published_per_second",
          report->published.seconds > 0
              ? (double)report->published.count / report->published.seconds
              : 0 },
        { "delivered_per_second", delivered / seconds },
        { "delivered_megabytes_per_second",
          (double)all->bytes / seconds / 1e6 },
        { "connects_per_second",
          connected / (all->connect_seconds > 0 ? all->connect_seconds : 1) },
        { "latency_p50_ms", report->latency[0] },
        { "latency_p90_ms", report->latency[1] },
        { "latency_p99_ms", report->latency[2] },
        { "latency_p99.9_ms", report->latency[3] },
        { "latency_max_ms", report->latency[4] },
        { "last_subscriber_p50_ms", report->last[0] },
        { "last_subscriber_p99_ms", report->last[1] },
        { "last_subscriber_max_ms", report->last[2] },
        { "server_ns_per_delivered",
          (report->after.total - report->before.total) * 1e9 / delivered },
        { "server_user_ns_per_delivered",
          (report->after.user - report->before.user) * 1e9 / delivered },
        { "server_ns_per_byte", (report->after.total - report->before.total) *
                                    1e9 /
                                    (double)(all->bytes ? all->bytes : 1) },
        { "server_bytes_per_subscriber",
          (report->before.resident - report->idle.resident) / connected },
        { "kernel_bytes_per_subscriber",
          (report->before.kernel - report->idle.kernel) / connected },
        { "own_ns_per_delivered", all->overhead * 1e9 / delivered },
    };
    size_t count = sizeof(rows) / sizeof(rows[0]);

    for (size_t i = 0; i < count; i++) {
        if (options.json)
            printf("%s\"%s\": %.3f", i ? ", " : "{", rows[i].name,
                   rows[i].value);
        else
            printf("%-32s %14.3f\n", rows[i].name, rows[i].value);
    }
    if (options.json)
        printf("}\n");
}

/* -------------------------------------------------------------------- main */

static void wait_ms(unsigned milliseconds)
{
    usleep(milliseconds * 1000);
}

static void show_progress(const char *what)
{
    if (!options.quiet && isatty(STDERR_FILENO))
        fprintf(stderr, "\r%-60s", what);
}

static void take_number(const char *name, const char *text, double minimum,
                        double *value)
{
    char *end;

    *value = strtod(text, &end);
    if (*end || end == text || *value < minimum) {
        fprintf(stderr, "fan: --%s: '%s' is not a number from %g on\n", name,
                text, minimum);
        exit(2);
    }
}

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        { "port", 1, NULL, 'p' },      { "pid", 1, NULL, 'i' },
        { "target", 1, NULL, 't' },    { "subscribers", 1, NULL, 'n' },
        { "processes", 1, NULL, 'P' }, { "publish-rate", 1, NULL, 'r' },
        { "depth", 1, NULL, 'd' },     { "count", 1, NULL, 'c' },
        { "replay", 1, NULL, 'y' },    { "raw", 1, NULL, 'w' },
        { "stream", 0, NULL, 'S' },    { "size", 1, NULL, 's' },
        { "seconds", 1, NULL, 'T' },   { "mute", 1, NULL, 'm' },
        { "reconnect", 1, NULL, 'R' }, { "json", 0, NULL, 'j' },
        { "quiet", 0, NULL, 'q' },     { NULL, 0, NULL, 0 },
    };
    int code, index = 0;

    while ((code = getopt_long(argc, argv, "", names, &index)) != -1) {
        const char *name = names[index].name;
        double value = 0;

        if (code == '?')
            exit(2);
        if (optarg && code != 't')
            take_number(name, optarg,
                        code == 's'           ? STAMP + 1
                        : strchr("mRd", code) ? 0
                                              : 1e-9,
                        &value);
        switch (code) {
        case 'p':
            options.port = (int)value;
            break;
        case 'i':
            options.pid = (int)value;
            break;
        case 't':
            options.target = optarg;
            break;
        case 'n':
            options.subscribers = (int)value;
            break;
        case 'P':
            options.processes = (int)value;
            break;
        case 'r':
            options.rate = value;
            break;
        case 'd':
            options.depth = (int)value;
            break;
        case 'y':
            options.replay = value;
            break;
        case 'w':
            options.raw = value;
            break;
        case 'c':
            options.count = value;
            break;
        case 'S':
            options.stream = true;
            break;
        case 's':
            options.size = (int)value;
            break;
        case 'T':
            options.seconds = value;
            break;
        case 'm':
            options.mute = (int)value;
            break;
        case 'R':
            options.reconnect = (int)value;
            break;
        case 'j':
            options.json = true;
            break;
        default:
            options.quiet = true;
            break;
        }
    }
    if (options.port <= 0 || options.pid <= 0 || options.processes < 1 ||
        options.processes > PROCESSES_MAX) {
        fprintf(
            stderr,
            "usage: fan --port P --pid PID [--target /events/fan] "
            "[--subscribers 1000] [--processes 1]\n"
            "  [--publish-rate 10 | --depth D | --stream] [--count N] [--size "
            "100] [--seconds 10]\n"
            "  [--replay N | --raw BYTES] [--mute PERCENT] [--reconnect "
            "PERCENT] [--json] "
            "[--quiet]\n");
        exit(2);
    }
}

static void raise_descriptors(void)
{
    rlim_t needed =
        (rlim_t)options.subscribers / (rlim_t)options.processes + 16;
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (needed > limit.rlim_cur) {
        fprintf(stderr,
                "fan: a process here may have %llu descriptors: use "
                "--processes\n",
                (unsigned long long)limit.rlim_cur);
        exit(2);
    }
}

static void start_all(pid_t *children)
{
    show_progress("connecting");
    for (int i = 0; i < options.processes; i++)
        children[i] =
            start_subscribers(i, options.subscribers / options.processes);
    while (__atomic_load_n(&shared->ready, __ATOMIC_SEQ_CST) <
           options.processes)
        wait_ms(10);
}

/* Publishes to those who are connected. */
static void run_live(struct report *report, pid_t *children)
{
    start_all(children);
    wait_ms(SETTLE);
    show_progress("publishing");
    report->before = usage_now();
    report->published = publish();
    shared->expected = report->published.last;
    __atomic_store_n(&shared->over, true, __ATOMIC_SEQ_CST);
}

/* What there is, if anything, has been published when they come. */
static void run_arrivals(struct report *report, pid_t *children)
{
    if (options.replay > 0) {
        options.depth = REPLAY_DEPTH;
        options.count = options.replay;
        report->published = publish();
        shared->expected = report->published.last;
    }
    report->published.began = now_ns();
    report->before = usage_now();
    __atomic_store_n(&shared->over, true, __ATOMIC_SEQ_CST);
    start_all(children);
}

int main(int argc, char **argv)
{
    static struct report report;
    pid_t children[PROCESSES_MAX] = { 0 };

    parse_options(argc, argv);
    raise_descriptors();
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        fail("mmap");
    report.idle = usage_now();
    if (options.replay > 0 || options.raw > 0)
        run_arrivals(&report, children);
    else
        run_live(&report, children);
    show_progress("waiting for the last");
    for (int i = 0; i < options.processes; i++)
        waitpid(children[i], NULL, 0);
    report.after = usage_now();
    show_progress("");
    add_tallies(&report);
    find_last_receipts(&report);
    print_report(&report);
    return report.all.lost || report.all.doubled;
}
