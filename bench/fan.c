/*
 * A load generator: many subscribers, one publisher, and a check that each
 * subscriber gets every event, once and in order.
 *
 * The publisher is open-loop by default: each event bears the time at which
 * it should have been sent, so a server that stalls is not spared (no
 * coordinated omission). With --depth it sends so many requests at a time and
 * waits for their answers; with --stream it sends one body as fast as it is
 * taken. Each event also bears its number in its topic: by that it is seen
 * whether one is missing, whatever the server's ids are like.
 *
 * The subscribers live in processes of their own (--processes), which parse
 * the stream whole: head, chunks, lines, fields. They share memory with the
 * publisher.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <glob.h>
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
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    PROCESSES_MAX = 64,
    /* subscribers from one loopback address: connect(2) takes ports of one
     * parity first, and searches long when these 14,000 are used up */
    PER_ADDRESS = 10000,
    EVENTS_MAX = 512, /* of one epoll_wait */
    READ_MAX = 262144,
    LINE_KEPT = 160, /* of a line: what matters is at its start */
    ID_KEPT = 32,
    EXACT = 32, /* buckets to a power of two: within 3 % */
    BUCKETS = 64 * EXACT,
    TIMED_MAX = 1 << 16, /* events whose last receipt is timed */
    STAMP = 16,          /* digits of a time in an event's data */
    NUMBER = 8,          /* and of its number */
    DATA_MIN = STAMP + NUMBER + 2,
    DATA_MAX = 1 << 20,
    REQUEST_HEAD = 512,
    CHUNK = 32768, /* of a streamed body */
    SETTLE = 300,  /* ms after the last has connected */
    REPLAY_DEPTH = 20,
    PATIENCE = 10000, /* ms for what is under way to arrive */
};

static struct options {
    const char *target, *ask;
    double port, pid;
    double subscribers, processes, topics;
    double rate, depth, count, seconds, size;
    double replay;          /* events stored before the subscribers come */
    double mute, reconnect; /* per cent */
    bool stream, idle, json, quiet;
} options = {
    .target = "/events/fan",
    .subscribers = 1000,
    .processes = 1,
    .topics = 1,
    .rate = 10,
    .count = 1e15,
    .seconds = 10,
    .size = 100,
};

/* Where a subscriber is in the bytes of its answer. */
enum place {
    IN_HEAD,
    IN_SIZE,
    IN_CHUNK,
    IN_CHUNK_END,
    IN_CONTENT, /* without chunks, until the connection ends */
};

struct subscriber {
    int fd;
    uint8_t place;
    bool mute;
    bool chunked;
    uint32_t topic;
    uint32_t chunk;  /* bytes of it that are left; or its size so far */
    uint32_t kept;   /* of the line */
    uint64_t number; /* of the newest event */
    uint64_t stamp;  /* of the event under way; 0: no data */
    uint64_t coming; /* its number */
    uint64_t coming_id;
    uint64_t last_id;
    char id[ID_KEPT];   /* of the block under way */
    char last[ID_KEPT]; /* of the newest that was whole: where it stands */
    char line[LINE_KEPT];
};

/* What a process of subscribers has counted; in shared memory. */
struct tally {
    uint64_t connected, events, bytes, reconnects;
    uint64_t lost, doubled, cut, refused;
    uint64_t id_gaps; /* ids that are not one above the one before */
    double connect_seconds;
    double own_seconds; /* of CPU */
    uint64_t longest;
    uint64_t ended; /* when the last bytes came, of the monotonic clock */
    uint64_t histogram[BUCKETS];
    uint64_t last_receipt[TIMED_MAX]; /* the latest latency of each event */
};

struct shared {
    struct tally tallies[PROCESSES_MAX];
    uint64_t published;
    const char *act; /* what is going on: for the line of progress */
    int ready;       /* processes whose subscribers are connected */
    bool over;       /* nothing more is published */
};

/* What a process has used. */
struct usage {
    double user, total; /* seconds of CPU */
    double resident;    /* bytes */
    double kernel;      /* bytes of slab and socket buffers on this machine */
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

static void sleep_until(uint64_t when)
{
    struct timespec at = { (time_t)(when / 1000000000),
                           (long)(when % 1000000000) };

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
        ;
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

/* In milliseconds. */
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

static void tally_latency(struct tally *tally, uint64_t latency)
{
    tally->events++;
    tally->histogram[bucket_of(latency)]++;
    if (latency > tally->longest)
        tally->longest = latency;
}

/* ----------------------------------------------------------- connections */

/* From 127.0.0.1 and `host` addresses further. */
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

/* A request line and Host. */
static size_t put_request_line(char *request, const char *method,
                               uint64_t topic)
{
    char suffix[32] = "";

    if (options.topics > 1)
        snprintf(suffix, sizeof(suffix), "-%llu", (unsigned long long)topic);
    return (size_t)snprintf(request, REQUEST_HEAD,
                            "%s %.256s%s HTTP/1.1\r\nHost: localhost\r\n",
                            method, options.target, suffix);
}

/* ----------------------------------------------------------- subscribers */

/* The value of eight digits, all at once: sums of neighbours, three times. */
static uint64_t eight_digits(const char *text)
{
    uint64_t value;

    memcpy(&value, text, 8);
    value = (value & UINT64_C(0x0f0f0f0f0f0f0f0f)) * 2561 >> 8;
    value = (value & UINT64_C(0x00ff00ff00ff00ff)) * 6553601 >> 16;
    return (value & UINT64_C(0x0000ffff0000ffff)) * UINT64_C(42949672960001) >>
           32;
}

/* The same of hexadecimal digits. */
static uint32_t eight_hex_digits(const char *text)
{
    uint64_t value;

    memcpy(&value, text, 8);
    value = (value & UINT64_C(0x0f0f0f0f0f0f0f0f)) +
            9 * (value >> 6 & UINT64_C(0x0101010101010101));
    value = (value << 4 | value >> 8) & UINT64_C(0x00ff00ff00ff00ff);
    value = (value << 8 | value >> 16) & UINT64_C(0x0000ffff0000ffff);
    return (uint32_t)(value << 16 | value >> 32);
}

static uint64_t digits(const char *text)
{
    uint64_t number = 0;

    for (; *text >= '0' && *text <= '9'; text++)
        number = number * 10 + (uint64_t)(*text - '0');
    return number;
}

static void take_event(struct subscriber *subscriber, struct tally *tally,
                       uint64_t now)
{
    uint64_t latency = now - subscriber->stamp;
    uint64_t topics = (uint64_t)options.topics;
    uint64_t index = (subscriber->coming - 1) * topics + subscriber->topic;

    if (subscriber->coming <= subscriber->number) {
        tally->doubled++;
        return;
    }
    tally->lost += subscriber->coming - subscriber->number - 1;
    tally->id_gaps +=
        subscriber->last_id && subscriber->coming_id != subscriber->last_id + 1;
    subscriber->number = subscriber->coming;
    subscriber->last_id = subscriber->coming_id;
    tally_latency(tally, latency);
    if (index < TIMED_MAX && latency > tally->last_receipt[index])
        tally->last_receipt[index] = latency;
}

/* "@", the time, "#", the number: in JSON or alone. */
static void take_data(struct subscriber *subscriber, const char *value,
                      size_t length)
{
    const char *stamp = memchr(value, '@', length);

    if (!stamp || value + length - stamp < DATA_MIN)
        return;
    subscriber->stamp =
        eight_digits(stamp + 1) * 100000000 + eight_digits(stamp + 9);
    subscriber->coming = eight_digits(stamp + STAMP + 2);
}

static void take_id(struct subscriber *subscriber, const char *value,
                    size_t length)
{
    length = length < ID_KEPT ? length : ID_KEPT - 1;
    subscriber->id[length] = '\0';
    if (length == 16) {
        memcpy(subscriber->id, value, 16);
        subscriber->coming_id =
            eight_digits(value) * 100000000 + eight_digits(value + 8);
    } else {
        memcpy(subscriber->id, value, length);
        subscriber->coming_id = digits(subscriber->id);
    }
}

/* The length of "NAME:" and a blank at the start of the line, 0 if it has
 * another name. */
static size_t field(const char *name, size_t name_length, const char *line,
                    size_t length)
{
    if (length < name_length || memcmp(line, name, name_length) != 0)
        return 0;
    return name_length + (length > name_length && line[name_length] == ' ');
}

static void take_line(struct subscriber *subscriber, struct tally *tally,
                      const char *line, size_t length, uint64_t now)
{
    size_t name;

    if (length == 0) {
        if (subscriber->stamp)
            take_event(subscriber, tally, now);
        subscriber->stamp = 0;
        memcpy(subscriber->last, subscriber->id, ID_KEPT);
    } else if ((name = field("data:", 5, line, length)) > 0) {
        take_data(subscriber, line + name, length - name);
    } else if ((name = field("id:", 3, line, length)) > 0) {
        take_id(subscriber, line + name, length - name);
    }
}

static void take_head_line(struct subscriber *subscriber, struct tally *tally,
                           const char *line, size_t length)
{
    static const char chunked[] = "Transfer-Encoding: chunked";

    if (length == 0)
        subscriber->place = subscriber->chunked ? IN_SIZE : IN_CONTENT;
    else if (length >= 12 && memcmp(line, "HTTP/1.", 7) == 0)
        tally->refused += memcmp(line + 9, "200", 3) != 0;
    else if (length == sizeof(chunked) - 1 &&
             strncasecmp(line, chunked, length) == 0)
        subscriber->chunked = true;
}

/* Takes bytes to the end of a line, or all: its start is then kept. */
static size_t take_some(struct subscriber *subscriber, struct tally *tally,
                        const char *bytes, size_t length, uint64_t now)
{
    const char *end = *bytes == '\n' ? bytes : memchr(bytes, '\n', length);
    const char *line = bytes;
    size_t taken = end ? (size_t)(end - bytes) : length, whole = taken;

    if (!end || subscriber->kept) {
        size_t room = LINE_KEPT - subscriber->kept;
        size_t kept = taken < room ? taken : room;

        memcpy(subscriber->line + subscriber->kept, bytes, kept);
        subscriber->kept += (uint32_t)kept;
        line = subscriber->line;
        whole = subscriber->kept;
    }
    if (!end)
        return taken;
    subscriber->kept = 0;
    if (whole && line[whole - 1] == '\r')
        whole--;
    if (subscriber->place == IN_HEAD)
        take_head_line(subscriber, tally, line, whole);
    else
        take_line(subscriber, tally, line, whole, now);
    return taken + 1;
}

static uint32_t hex_digit(char c)
{
    return (uint32_t)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
}

/* Takes bytes around a chunk; returns how many. A line end that is whole is
 * taken at once, and so is a size of eight digits, which is ssed's. */
static size_t take_framing(struct subscriber *subscriber, const char *bytes,
                           size_t length)
{
    if (subscriber->place == IN_CHUNK_END) {
        bool whole = length > 1 && bytes[1] == '\n';

        if (whole || *bytes == '\n')
            subscriber->place = IN_SIZE;
        return whole ? 2 : 1;
    }
    if (subscriber->chunk == 0 && length >= 10 && bytes[8] == '\r' &&
        bytes[9] == '\n') {
        subscriber->chunk = eight_hex_digits(bytes);
        subscriber->place = IN_CHUNK;
        return 10;
    }
    if (*bytes == '\n')
        subscriber->place = IN_CHUNK;
    else if (*bytes != '\r')
        subscriber->chunk = subscriber->chunk * 16 + hex_digit(*bytes);
    return 1;
}

static void take_bytes(struct subscriber *subscriber, struct tally *tally,
                       const char *bytes, size_t length)
{
    uint64_t now = now_ns();

    tally->ended = now;
    while (length > 0) {
        size_t taken;

        if (subscriber->place == IN_CHUNK) {
            taken = length < subscriber->chunk ? length : subscriber->chunk;
            taken = take_some(subscriber, tally, bytes, taken, now);
            subscriber->chunk -= (uint32_t)taken;
            if (subscriber->chunk == 0)
                subscriber->place = IN_CHUNK_END;
        } else if (subscriber->place == IN_SIZE ||
                   subscriber->place == IN_CHUNK_END) {
            taken = take_framing(subscriber, bytes, length);
        } else {
            taken = take_some(subscriber, tally, bytes, length, now);
        }
        bytes += taken;
        length -= taken;
    }
}

/* A process of subscribers. */
struct crowd {
    struct tally *tally;
    struct subscriber *subscribers;
    int count;
    int epoll;
    unsigned host;
    uint64_t came_again;
};

static void subscribe(struct crowd *crowd, int index)
{
    struct subscriber *subscriber = &crowd->subscribers[index];
    struct epoll_event event = { .events = EPOLLIN,
                                 .data.u32 = (uint32_t)index };
    char request[2 * REQUEST_HEAD];
    size_t length = put_request_line(request, "GET", subscriber->topic);
    const char *last = options.replay > 0 ? "earliest" : "";

    if (*subscriber->last)
        last = subscriber->last;
    length += (size_t)snprintf(request + length, REQUEST_HEAD,
                               "Accept: text/event-stream\r\n%s%s%s\r\n",
                               *last ? "Last-Event-ID: " : "", last,
                               *last ? "\r\n" : "");
    subscriber->fd =
        connect_from(crowd->host + (unsigned)(index / PER_ADDRESS));
    subscriber->place = IN_HEAD;
    subscriber->chunked = false;
    subscriber->chunk = subscriber->kept = 0;
    subscriber->stamp = 0;
    send_all(subscriber->fd, request, length);
    if (subscriber->mute)
        return;
    if (fcntl(subscriber->fd, F_SETFL, O_NONBLOCK) < 0 ||
        epoll_ctl(crowd->epoll, EPOLL_CTL_ADD, subscriber->fd, &event) < 0)
        fail("epoll_ctl");
}

/* A subscriber that has been cut off stays away: what it misses is lost. */
static void receive(struct crowd *crowd, struct subscriber *subscriber)
{
    char bytes[READ_MAX];
    ssize_t n = recv(subscriber->fd, bytes, sizeof(bytes), 0);

    if (n > 0) {
        crowd->tally->bytes += (uint64_t)n;
        take_bytes(subscriber, crowd->tally, bytes, (size_t)n);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        crowd->tally->cut++;
        close(subscriber->fd);
        subscriber->fd = -1;
    }
}

/* How many events are missing to those that read. */
static uint64_t missing(const struct crowd *crowd)
{
    uint64_t topics = (uint64_t)options.topics, count = 0;

    for (int i = 0; i < crowd->count; i++) {
        const struct subscriber *subscriber = &crowd->subscribers[i];
        uint64_t expected =
            (shared->published + topics - 1 - subscriber->topic) / topics;

        if (!subscriber->mute && subscriber->number < expected)
            count += expected - subscriber->number;
    }
    return count;
}

static void receive_ready(struct crowd *crowd)
{
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(crowd->epoll, events, EVENTS_MAX, 10);

    for (int i = 0; i < count; i++)
        receive(crowd, &crowd->subscribers[events[i].data.u32]);
}

/* So many of them come again, one after the other, over a second. */
static void reconnect_some(struct crowd *crowd, uint64_t begin)
{
    double due = (double)(now_ns() - begin) / 1e9 * crowd->count *
                 options.reconnect / 100;

    for (; crowd->came_again < (uint64_t)due; crowd->came_again++) {
        int index = (int)(crowd->came_again % (uint64_t)crowd->count);
        struct subscriber *subscriber = &crowd->subscribers[index];

        if (subscriber->mute || subscriber->fd < 0 || !*subscriber->last)
            continue;
        close(subscriber->fd);
        subscribe(crowd, index);
        crowd->tally->reconnects++;
    }
}

static double own_seconds(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void connect_all(struct crowd *crowd)
{
    uint64_t begin = now_ns();

    for (int i = 0; i < crowd->count; i++) {
        crowd->subscribers[i].mute = i % 100 < (int)options.mute;
        crowd->subscribers[i].topic = (uint32_t)i % (uint32_t)options.topics;
        subscribe(crowd, i);
        crowd->tally->connected++;
    }
    crowd->tally->connect_seconds = (double)(now_ns() - begin) / 1e9;
    __atomic_add_fetch(&shared->ready, 1, __ATOMIC_SEQ_CST);
}

static bool is_over(void)
{
    return __atomic_load_n(&shared->over, __ATOMIC_SEQ_CST);
}

/* From the first connection to the last event. */
static _Noreturn void run_crowd(int process, int count)
{
    struct crowd crowd = {
        .tally = &shared->tallies[process],
        .subscribers = calloc((size_t)count + 1, sizeof(struct subscriber)),
        .count = count,
        .epoll = epoll_create1(EPOLL_CLOEXEC),
        .host = 1 + (unsigned)process * 8,
    };
    uint64_t begin, deadline = 0;
    double spent;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!crowd.subscribers || crowd.epoll < 0)
        fail("begin");
    connect_all(&crowd);
    begin = now_ns();
    spent = own_seconds();
    while (!is_over() || missing(&crowd)) {
        receive_ready(&crowd);
        if (!is_over())
            reconnect_some(&crowd, begin);
        else if (!deadline)
            deadline = now_ns() + (uint64_t)PATIENCE * 1000000;
        if (deadline && now_ns() > deadline)
            break;
    }
    crowd.tally->own_seconds = own_seconds() - spent;
    crowd.tally->lost += missing(&crowd);
    _exit(0);
}

static pid_t start_crowd(int process)
{
    int processes = (int)options.processes;
    int count = (int)options.subscribers / processes +
                (process < (int)options.subscribers % processes);
    pid_t pid = fork();

    if (pid < 0)
        fail("fork");
    if (pid == 0)
        run_crowd(process, count);
    return pid;
}

/* ------------------------------------------------------------- publisher */

/* The data of event `index`: its time, its number in its topic, and
 * something to fill it. */
static void put_data(char *data, uint64_t index, uint64_t stamp)
{
    unsigned long long number = index / (uint64_t)options.topics + 1;
    size_t size = (size_t)options.size;
    char start[DATA_MIN + 16];

    snprintf(start, sizeof(start), "@%0*llu#%0*llu", STAMP,
             (unsigned long long)stamp, NUMBER, number);
    memset(data, 'x', size);
    memcpy(data, start, DATA_MIN);
}

static size_t put_request(char *request, uint64_t index, uint64_t stamp)
{
    size_t length =
        put_request_line(request, "POST", index % (uint64_t)options.topics);

    length += (size_t)sprintf(request + length, "Content-Length: %d\r\n\r\n",
                              (int)options.size);
    put_data(request + length, index, stamp);
    return length + (size_t)options.size;
}

/* The length of the answer at the start of the bytes; 0 if it is not whole.
 * One that is no success ends it all. */
static size_t answer_length(const char *bytes)
{
    const char *end = strstr(bytes, "\r\n\r\n");
    const char *field = strcasestr(bytes, "\r\nContent-Length: ");
    size_t length;

    if (!end)
        return 0;
    length = (size_t)(end + 4 - bytes);
    if (field && field < end)
        length += strtoul(field + 18, NULL, 10);
    if (strlen(bytes) < length)
        return 0;
    if (strncmp(bytes + 9, "20", 2) == 0)
        return length;
    fprintf(stderr, "fan: the answer was:\n%.*s\n", (int)length, bytes);
    exit(2);
}

/* Reads answers until there have been `count`. */
static void take_answers(int fd, unsigned count)
{
    static char bytes[READ_MAX + 1];
    static size_t length;
    size_t used = 0, answer;

    while (count > 0) {
        ssize_t n;

        while (count > 0 && (answer = answer_length(bytes + used)) > 0) {
            used += answer;
            count--;
        }
        length -= used;
        memmove(bytes, bytes + used, length + 1);
        used = 0;
        if (count == 0)
            return;
        n = recv(fd, bytes + length, READ_MAX - length, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            fail("the answer to a publish");
        length += (size_t)n;
        bytes[length] = '\0';
    }
}

static bool goes_on(uint64_t end)
{
    return now_ns() < end && (double)shared->published < options.count;
}

static void publish_at_rate(int fd, uint64_t begin, uint64_t end)
{
    static char request[DATA_MAX + 2 * REQUEST_HEAD];
    unsigned unanswered = 0;

    while (goes_on(end)) {
        uint64_t index = shared->published;
        uint64_t when = begin + (uint64_t)((double)index * 1e9 / options.rate);
        struct pollfd answers = { .fd = fd, .events = POLLIN };

        if (when >= end)
            break;
        sleep_until(when);
        send_all(fd, request, put_request(request, index, when));
        shared->published++;
        unanswered++;
        while (unanswered && poll(&answers, 1, 0) == 1) {
            take_answers(fd, 1);
            unanswered--;
        }
    }
    take_answers(fd, unanswered);
}

static void publish_at_depth(int fd, uint64_t end)
{
    unsigned depth = (unsigned)options.depth;
    char *requests =
        malloc(depth * ((size_t)options.size + (size_t)(2 * REQUEST_HEAD)));

    if (!requests)
        fail("malloc");
    while (goes_on(end)) {
        size_t length = 0;

        for (unsigned i = 0; i < depth; i++)
            length +=
                put_request(requests + length, shared->published + i, now_ns());
        send_all(fd, requests, length);
        shared->published += depth;
        take_answers(fd, depth);
    }
    free(requests);
}

static void publish_stream(int fd, uint64_t end)
{
    static char bytes[2 * DATA_MAX + CHUNK];
    size_t event = (size_t)options.size + 8;
    size_t length = put_request_line(bytes, "POST", 0);

    length +=
        (size_t)sprintf(bytes + length, "Content-Type: text/event-stream\r\n"
                                        "Transfer-Encoding: chunked\r\n\r\n");
    send_all(fd, bytes, length);
    while (goes_on(end)) {
        size_t count = 1 + CHUNK / event;

        length = (size_t)sprintf(bytes, "%zx\r\n", count * event);
        for (size_t i = 0; i < count; i++, length += event) {
            memcpy(bytes + length, "data: ", 6);
            put_data(bytes + length + 6, shared->published + i, now_ns());
            memcpy(bytes + length + event - 2, "\n\n", 2);
        }
        memcpy(bytes + length, "\r\n", 2);
        send_all(fd, bytes, length + 2);
        shared->published += count;
    }
    send_all(fd, "0\r\n\r\n", 5);
    take_answers(fd, 1);
}

/* Instead of publishing: asks for a page, each time on a fresh connection. */
static void ask(uint64_t begin, uint64_t end)
{
    char request[2 * REQUEST_HEAD], answer[READ_MAX + 1];
    struct tally *tally = &shared->tallies[0];
    size_t request_length = (size_t)snprintf(
        request, sizeof(request),
        "GET %.256s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        options.ask);

    for (uint64_t i = 0; goes_on(end); i++) {
        uint64_t when = begin + (uint64_t)((double)i * 1e9 / options.rate);
        size_t length = 0;
        ssize_t n;
        int fd;

        sleep_until(when);
        fd = connect_from(0);
        send_all(fd, request, request_length);
        do {
            n = recv(fd, answer + length, READ_MAX - length, 0);
            if (n <= 0)
                fail("the answer");
            length += (size_t)n;
            answer[length] = '\0';
        } while (!answer_length(answer));
        tally->ended = now_ns();
        tally_latency(tally, tally->ended - when);
        close(fd);
    }
}

/* Returns the seconds that it took. */
static double publish(void)
{
    uint64_t begin = now_ns();
    uint64_t end = begin + (uint64_t)(options.seconds * 1e9);
    int fd = connect_from(0);

    shared->act = "publishing";
    if (options.ask)
        ask(begin, end);
    else if (options.idle)
        sleep_until(end);
    else if (options.stream)
        publish_stream(fd, end);
    else if (options.depth > 0)
        publish_at_depth(fd, end);
    else
        publish_at_rate(fd, begin, end);
    close(fd);
    return (double)(now_ns() - begin) / 1e9;
}

/* ------------------------------------------------------------ the server */

/* The number behind `name` in the file; the last one, if there are more. */
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

/* Of all threads; in nanoseconds, where the ticks of stat are too coarse. */
static double run_seconds(void)
{
    char pattern[64];
    double sum = 0;
    glob_t found;

    snprintf(pattern, sizeof(pattern), "/proc/%d/task/*/schedstat",
             (int)options.pid);
    if (glob(pattern, 0, NULL, &found) != 0)
        fail(pattern);
    for (size_t i = 0; i < found.gl_pathc; i++)
        sum += read_number(found.gl_pathv[i], "");
    globfree(&found);
    return sum / 1e9;
}

/* User time in ticks (proc(5)). */
static struct usage usage_now(void)
{
    char path[64], text[1024] = "";
    unsigned long user = 0;
    struct usage usage = { 0 };
    FILE *file;
    const char *end;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)options.pid);
    file = fopen(path, "re");
    if (!file || !fgets(text, sizeof(text), file))
        fail(path);
    fclose(file);
    end = strrchr(text, ')');
    if (!end || sscanf(end + 2,
                       "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u "
                       "%lu",
                       &user) != 1)
        fail(path);
    usage.user = (double)user / (double)sysconf(_SC_CLK_TCK);
    usage.total = run_seconds();
    /* exact, where VmRSS lags behind by some pages of each kind */
    snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", (int)options.pid);
    usage.resident = read_number(path, "Rss:") * 1024;
    usage.kernel = read_number("/proc/net/sockstat", " mem ") *
                       (double)sysconf(_SC_PAGESIZE) +
                   read_number("/proc/meminfo", "Slab:") * 1024;
    return usage;
}

/* ---------------------------------------------------------------- report */

struct report {
    struct tally all;
    uint64_t began; /* of the monotonic clock */
    double publish_seconds;
    struct usage idle, before, after;
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Of each event, the latest receipt; and of these p50, p99 and the greatest,
 * in milliseconds. */
static void find_last_receipts(double last[3])
{
    static double latest[TIMED_MAX];
    size_t count = 0;

    for (size_t i = 0; i < TIMED_MAX; i++) {
        uint64_t longest = 0;

        for (int k = 0; k < (int)options.processes; k++)
            if (shared->tallies[k].last_receipt[i] > longest)
                longest = shared->tallies[k].last_receipt[i];
        if (longest)
            latest[count++] = (double)longest / 1e6;
    }
    if (count == 0)
        return;
    qsort(latest, count, sizeof(latest[0]), by_value);
    last[0] = latest[count / 2];
    last[1] = latest[count * 99 / 100];
    last[2] = latest[count - 1];
}

static void add_tally(struct tally *all, const struct tally *tally)
{
    all->connected += tally->connected;
    all->events += tally->events;
    all->bytes += tally->bytes;
    all->reconnects += tally->reconnects;
    all->lost += tally->lost;
    all->doubled += tally->doubled;
    all->cut += tally->cut;
    all->refused += tally->refused;
    all->id_gaps += tally->id_gaps;
    all->own_seconds += tally->own_seconds;
    if (tally->connect_seconds > all->connect_seconds)
        all->connect_seconds = tally->connect_seconds;
    if (tally->ended > all->ended)
        all->ended = tally->ended;
    if (tally->longest > all->longest)
        all->longest = tally->longest;
    for (unsigned i = 0; i < BUCKETS; i++)
        all->histogram[i] += tally->histogram[i];
}

static double at_least_1(double number)
{
    return number > 1 ? number : 1;
}

static void print_figure(const char *name, double value)
{
    static bool printed;

    if (options.json)
        printf("%s\"%s\": %.3f", printed ? ", " : "{", name, value);
    else
        printf("%-32s %14.3f\n", name, value);
    printed = true;
}

static void print_counts(const struct report *report)
{
    const struct tally *all = &report->all;
    double published = (double)shared->published;
    double seconds = (double)(all->ended - report->began) / 1e9;

    print_figure("published", published);
    print_figure("delivered", (double)all->events);
    print_figure("lost", (double)all->lost);
    print_figure("doubled_or_out_of_order", (double)all->doubled);
    print_figure("ids_with_gaps", (double)all->id_gaps);
    print_figure("refused", (double)all->refused);
    print_figure("cut", (double)all->cut);
    print_figure("reconnects", (double)all->reconnects);
    print_figure("connects_per_second",
                 (double)all->connected /
                     (all->connect_seconds > 0 ? all->connect_seconds : 1));
    print_figure(
        "published_per_second",
        report->publish_seconds > 0 ? published / report->publish_seconds : 0);
    print_figure("delivered_per_second", (double)all->events / seconds);
    print_figure("delivered_megabytes_per_second",
                 (double)all->bytes / seconds / 1e6);
}

static void print_latencies(const struct report *report)
{
    const struct tally *all = &report->all;
    double last[3] = { 0 };

    find_last_receipts(last);
    print_figure("latency_p50_ms", percentile(all->histogram, 0.5));
    print_figure("latency_p90_ms", percentile(all->histogram, 0.9));
    print_figure("latency_p99_ms", percentile(all->histogram, 0.99));
    print_figure("latency_p99.9_ms", percentile(all->histogram, 0.999));
    print_figure("latency_max_ms", (double)all->longest / 1e6);
    print_figure("last_subscriber_p50_ms", last[0]);
    print_figure("last_subscriber_p99_ms", last[1]);
    print_figure("last_subscriber_max_ms", last[2]);
}

static void print_costs(const struct report *report)
{
    const struct tally *all = &report->all;
    const struct usage *before = &report->before, *after = &report->after;
    double delivered = at_least_1((double)all->events);
    double connected = at_least_1((double)all->connected);
    double published = at_least_1((double)shared->published);
    double spent = (after->total - before->total) * 1e9;

    print_figure("server_ns_per_delivered", spent / delivered);
    print_figure("server_user_ns_per_delivered",
                 (after->user - before->user) * 1e9 / delivered);
    print_figure("server_ns_per_published", spent / published);
    print_figure("server_ns_per_byte", spent / at_least_1((double)all->bytes));
    print_figure("server_bytes_per_subscriber",
                 (before->resident - report->idle.resident) / connected);
    /* a connection to oneself has both its ends on this machine */
    print_figure("kernel_bytes_per_two_ends",
                 (before->kernel - report->idle.kernel) / connected);
    print_figure("own_ns_per_delivered", all->own_seconds * 1e9 / delivered);
}

static void print_report(struct report *report)
{
    for (int k = 0; k < (int)options.processes; k++)
        add_tally(&report->all, &shared->tallies[k]);
    print_counts(report);
    print_latencies(report);
    print_costs(report);
    if (options.json)
        printf("}\n");
}

/* -------------------------------------------------------------- progress */

static void print_progress(void)
{
    uint64_t connected = 0, delivered = 0, lost = 0;

    for (int k = 0; k < (int)options.processes; k++) {
        connected += shared->tallies[k].connected;
        delivered += shared->tallies[k].events;
        lost += shared->tallies[k].lost;
    }
    fprintf(stderr,
            "\r%s: %llu connected, %llu published, %llu delivered, %llu "
            "lost ",
            shared->act, (unsigned long long)connected,
            (unsigned long long)shared->published,
            (unsigned long long)delivered, (unsigned long long)lost);
}

/* A process that shows how it gets on; 0 if nobody is looking. */
static pid_t start_progress(void)
{
    pid_t pid;

    if (options.quiet || !isatty(STDERR_FILENO))
        return 0;
    pid = fork();
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        sleep_until(now_ns() + 500000000);
        print_progress();
    }
}

static void end_progress(pid_t pid)
{
    if (pid <= 0)
        return;
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    print_progress();
    fputc('\n', stderr);
}

/* ------------------------------------------------------------------ main */

static const char usage[] =
    "usage: fan --port N --pid PID [OPTION...]\n"
    "  --port N, --pid PID    the server on 127.0.0.1\n"
    "  --target PATH          of the stream (/events/fan)\n"
    "  --topics N             PATH-0, PATH-1 and so on\n"
    "  --subscribers N        (1000)\n"
    "  --processes N          to hold them (1)\n"
    "  --publish-rate N       events a second (10), or\n"
    "  --depth N              so many requests at a time, or\n"
    "  --stream               one body, as fast as it is taken, or\n"
    "  --idle                 nothing, or\n"
    "  --ask PATH             no event: a page, each on a fresh connection\n"
    "  --seconds N            for so long (10)\n"
    "  --count N              events at most\n"
    "  --size BYTES           of an event's data (100)\n"
    "  --replay N             publish N events, then let them come\n"
    "  --mute PERCENT         never read\n"
    "  --reconnect PERCENT    come again each second\n"
    "  --json                 print one line of JSON\n"
    "  --quiet                show no progress\n"
    "  --help                 this text\n";

/* An option that takes a number, with its range. */
struct number {
    const char *name;
    double *value;
    double minimum, maximum;
};

static const struct number numbers[] = {
    { "port", &options.port, 1, 65535 },
    { "pid", &options.pid, 1, 1e9 },
    { "subscribers", &options.subscribers, 0, 1e8 },
    { "processes", &options.processes, 1, PROCESSES_MAX },
    { "topics", &options.topics, 1, 1e8 },
    { "publish-rate", &options.rate, 1e-3, 1e9 },
    { "depth", &options.depth, 1, 1000 },
    { "count", &options.count, 1, 1e15 },
    { "seconds", &options.seconds, 1e-3, 1e6 },
    { "size", &options.size, DATA_MIN, DATA_MAX },
    { "replay", &options.replay, 1, 1e9 },
    { "mute", &options.mute, 0, 100 },
    { "reconnect", &options.reconnect, 0, 1000 },
};

enum {
    NUMBERS = sizeof(numbers) / sizeof(numbers[0])
};

static void take_number(const struct number *number, const char *text)
{
    char *end;
    double value = strtod(text, &end);

    if (*end || end == text || value < number->minimum ||
        value > number->maximum) {
        fprintf(stderr, "fan: --%s: '%s' is not a number from %g to %g\n",
                number->name, text, number->minimum, number->maximum);
        exit(2);
    }
    *number->value = value;
}

static void parse_options(int argc, char **argv)
{
    enum {
        OTHERS = 7
    };
    struct option names[OTHERS + NUMBERS + 1] = {
        { "target", 1, NULL, 't' }, { "ask", 1, NULL, 'a' },
        { "stream", 0, NULL, 's' }, { "idle", 0, NULL, 'i' },
        { "json", 0, NULL, 'j' },   { "quiet", 0, NULL, 'q' },
        { "help", 0, NULL, 'h' },
    };
    int code, index = 0;

    for (size_t i = 0; i < NUMBERS; i++)
        names[OTHERS + i] = (struct option){ numbers[i].name, 1, NULL, 'n' };
    while ((code = getopt_long(argc, argv, "", names, &index)) != -1) {
        if (code == 'n')
            take_number(&numbers[index - OTHERS], optarg);
        else if (code == 't')
            options.target = optarg;
        else if (code == 'a')
            options.ask = optarg;
        else if (code == 'h')
            exit(fputs(usage, stdout) < 0);
        else if (code == '?')
            exit(2);
        options.stream = options.stream || code == 's';
        options.idle = options.idle || code == 'i';
        options.json = options.json || code == 'j';
        options.quiet = options.quiet || code == 'q';
    }
    if (options.port < 1 || options.pid < 1 || optind < argc ||
        (options.stream && options.topics > 1)) {
        fputs(usage, stderr);
        exit(2);
    }
    if (options.ask)
        options.subscribers = 0;
}

static void raise_descriptors(void)
{
    double needed = options.subscribers / options.processes + 16;
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (needed > (double)limit.rlim_cur) {
        fprintf(stderr,
                "fan: a process here may have %llu descriptors: --processes "
                "has to be at least %.0f\n",
                (unsigned long long)limit.rlim_cur,
                1 + options.subscribers / (double)(limit.rlim_cur - 16));
        exit(2);
    }
}

static void start_all(pid_t *children)
{
    shared->act = "connecting";
    for (int i = 0; i < (int)options.processes; i++)
        children[i] = start_crowd(i);
    while (__atomic_load_n(&shared->ready, __ATOMIC_SEQ_CST) <
           (int)options.processes) {
        int status = 0;

        if (waitpid(-1, &status, WNOHANG) > 0 && status)
            exit(2); /* it has said why */
        sleep_until(now_ns() + 5000000);
    }
}

/* Publishes to those that are connected. */
static void run_live(struct report *report, pid_t *children)
{
    start_all(children);
    sleep_until(now_ns() + SETTLE * UINT64_C(1000000));
    report->before = usage_now();
    report->began = now_ns();
    report->publish_seconds = publish();
    __atomic_store_n(&shared->over, true, __ATOMIC_SEQ_CST);
}

/* What there is has been published when they come. */
static void run_replay(struct report *report, pid_t *children)
{
    options.depth = REPLAY_DEPTH;
    options.count = options.replay;
    report->publish_seconds = publish();
    report->before = usage_now();
    report->began = now_ns();
    __atomic_store_n(&shared->over, true, __ATOMIC_SEQ_CST);
    start_all(children);
}

int main(int argc, char **argv)
{
    static struct report report;
    pid_t children[PROCESSES_MAX] = { 0 }, progress;

    parse_options(argc, argv);
    raise_descriptors();
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        fail("mmap");
    shared->act = "beginning";
    progress = start_progress();
    report.idle = usage_now();
    if (options.replay > 0)
        run_replay(&report, children);
    else
        run_live(&report, children);
    shared->act = "waiting for the last";
    for (int i = 0; i < (int)options.processes; i++)
        waitpid(children[i], NULL, 0);
    report.after = usage_now();
    end_progress(progress);
    print_report(&report);
    return report.all.lost || report.all.doubled || report.all.refused;
}
