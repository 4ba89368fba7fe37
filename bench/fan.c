/*
 * A load generator: many subscribers, one publisher, and a check that each
 * subscriber gets every event, once and in order.
 *
 * The publisher is open-loop by default: each event bears the time at which
 * it should have been sent, so a server that stalls is not spared (no
 * coordinated omission). With --depth it sends so many requests at a time and
 * waits for their answers; with --publishers each of so many connections has
 * one request under way; with --stream it sends one body as fast as it is
 * taken. Each event also bears its number in its topic: by that it is seen
 * whether one is missing, whatever the server's ids are like. Of several
 * publishers each has numbers of its own (the same modulo their count), since
 * only they have an order.
 *
 * The subscribers live in processes of their own (--processes), which parse
 * the stream whole: head, chunks, lines, fields. They share memory with the
 * publisher.
 *
 * Without options it measures the server on localhost:3000 and prints what a
 * person reads; scripts read --json.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <glob.h>
#include <math.h>
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
    PUBLISHERS_MAX = 1000,
    ANSWER_MAX = 4096, /* to a publish, with --publishers */
    PATIENCE = 10000,  /* ms for what is under way to arrive */
    ROWS_MAX = 8,      /* of the histogram */
};

/* A process that wants a core for more of the time is the limit. */
static const double own_core_max = 0.9;

static struct options {
    const char *target, *ask;
    double port, pid;
    double subscribers, processes, topics;
    double rate, depth, publishers, count, seconds, size;
    double replay;          /* events stored before the subscribers come */
    double mute, reconnect; /* per cent */
    bool stream, idle, json, quiet;
} options = {
    .target = "/events/fan",
    .port = 3000,
    .subscribers = 1000,
    .processes = 1,
    .topics = 1,
    .rate = 20,
    .publishers = 1,
    .count = 1e15,
    .seconds = 5,
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
    uint32_t chunk;    /* bytes of it that are left; or its size so far */
    uint32_t kept;     /* of the line */
    uint64_t *numbers; /* of the newest event of each publisher */
    uint64_t stamp;    /* of the event under way; 0: no data */
    uint64_t coming;   /* its number */
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
    double own_core;    /* the share of the time in which it wanted one */
    uint64_t longest;
    uint64_t ended; /* when the last bytes came, of the monotonic clock */
    uint64_t histogram[BUCKETS];
    uint64_t last_receipt[TIMED_MAX]; /* the latest latency of each event */
};

/* What is going on. */
enum act {
    CONNECTING,
    PUBLISHING,
    WAITING, /* for what is under way */
};

struct shared {
    struct tally tallies[PROCESSES_MAX];
    uint64_t began; /* to publish, or the first to connect to a replay */
    uint64_t published;
    uint64_t newest[PUBLISHERS_MAX]; /* numbers, with --publishers */
    enum act act;
    int ready; /* processes whose subscribers are connected */
    bool over; /* nothing more is published */
};

/* Seconds that a process has run, and that it has waited for a core. */
struct core_time {
    double run, waited;
};

/* What the server has used; NAN where that is not known. */
struct usage {
    double user, total; /* seconds of CPU */
    double resident;    /* bytes */
    double kernel;      /* bytes of slab and socket buffers on this machine */
};

/* The percentiles that are shown. */
static const double parts[] = { 0.5, 0.9, 0.99, 0.999, 1 };

enum {
    PARTS = sizeof(parts) / sizeof(parts[0])
};

struct report {
    struct tally all;
    double publish_seconds;
    double deliver_seconds; /* from the first publish to the last byte */
    double last[PARTS];     /* how late an event's last receipt is, in ns */
    struct usage idle, before, after;
};

static struct shared *shared;

/* Wipes the line of progress, if there can be one. */
static void wipe_progress(void)
{
    if (isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
}

static _Noreturn void fail(const char *what)
{
    int error = errno;

    wipe_progress();
    fprintf(stderr, "fan: %s: %s\n", what, strerror(error));
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

/* In nanoseconds. */
static double percentile(const struct tally *tally, double part)
{
    uint64_t seen = 0;

    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += tally->histogram[i];
        if (seen && (double)seen >= part * (double)tally->events)
            return (double)bucket_value(i);
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
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        char what[64];

        snprintf(what, sizeof(what), "connect to 127.0.0.1:%.0f", options.port);
        fail(what);
    }
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
    uint64_t publishers = (uint64_t)options.publishers;
    uint64_t *number =
        &subscriber->numbers[(subscriber->coming - 1) % publishers];

    if (subscriber->coming <= *number) {
        tally->doubled++;
        return;
    }
    tally->lost += (subscriber->coming - *number - 1) / publishers;
    tally->id_gaps +=
        subscriber->last_id && subscriber->coming_id != subscriber->last_id + 1;
    *number = subscriber->coming;
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
    uint64_t *numbers; /* theirs */
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

/* The number of the newest event of this publisher in the topic. */
static uint64_t newest(uint32_t topic, uint64_t publisher)
{
    uint64_t topics = (uint64_t)options.topics;

    if (options.publishers > 1)
        return shared->newest[publisher];
    return (shared->published + topics - 1 - topic) / topics;
}

/* How many events are missing to those that read. */
static uint64_t missing(const struct crowd *crowd)
{
    uint64_t publishers = (uint64_t)options.publishers, count = 0;

    for (int i = 0; i < crowd->count; i++) {
        const struct subscriber *subscriber = &crowd->subscribers[i];

        for (uint64_t k = 0; k < publishers && !subscriber->mute; k++) {
            uint64_t expected = newest(subscriber->topic, k);
            uint64_t number = subscriber->numbers[k];

            if (number < expected)
                count += (expected - number + publishers - 1) / publishers;
        }
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

/* From nanoseconds, where the ticks of stat are too coarse. */
static struct core_time read_core_time(const char *path)
{
    FILE *file = fopen(path, "re");
    double run = 0, waited = 0;

    if (file && fscanf(file, "%lf %lf", &run, &waited) != 2)
        fail(path);
    if (file) /* else it was a thread that is no more */
        fclose(file);
    return (struct core_time){ run / 1e9, waited / 1e9 };
}

static struct core_time own_core_time(void)
{
    return read_core_time("/proc/self/schedstat");
}

/* What this process has used since then, and in which share of so many
 * seconds it ran or waited to. */
static void tally_own(struct tally *tally, struct core_time before,
                      double seconds)
{
    struct core_time after = own_core_time();

    tally->own_seconds = after.run - before.run;
    if (seconds > 0)
        tally->own_core =
            (tally->own_seconds + after.waited - before.waited) / seconds;
}

static void connect_all(struct crowd *crowd)
{
    uint64_t begin = now_ns();

    for (int i = 0; i < crowd->count; i++) {
        crowd->subscribers[i].mute = i % 100 < (int)options.mute;
        crowd->subscribers[i].topic = (uint32_t)i % (uint32_t)options.topics;
        crowd->subscribers[i].numbers =
            &crowd->numbers[(size_t)i * (size_t)options.publishers];
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
        .numbers = calloc((size_t)count + 1,
                          (size_t)options.publishers * sizeof(uint64_t)),
        .count = count,
        .epoll = epoll_create1(EPOLL_CLOEXEC),
        .host = 1 + (unsigned)process * 8,
    };
    uint64_t begin, deadline = 0;
    struct core_time before;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!crowd.subscribers || !crowd.numbers || crowd.epoll < 0)
        fail("begin");
    connect_all(&crowd);
    begin = now_ns();
    before = own_core_time();
    while (!is_over() || missing(&crowd)) {
        receive_ready(&crowd);
        if (!is_over())
            reconnect_some(&crowd, begin);
        else if (!deadline)
            deadline = now_ns() + (uint64_t)PATIENCE * 1000000;
        if (deadline && now_ns() > deadline)
            break;
    }
    if (begin < shared->began)
        begin = shared->began;
    tally_own(crowd.tally, before,
              ((double)crowd.tally->ended - (double)begin) / 1e9);
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
        if (n == 0)
            errno = ECONNRESET;
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

        sleep_until(when < end ? when : end);
        if (when >= end)
            break;
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

/* A connection that has one request under way. */
struct publisher {
    int fd;
    size_t length;
    char answer[ANSWER_MAX + 1];
};

static void publish_next(struct publisher *publishers, uint32_t which)
{
    static char request[DATA_MAX + 2 * REQUEST_HEAD];
    uint64_t number = shared->newest[which];

    number = number ? number + (uint64_t)options.publishers : which + 1;
    shared->newest[which] = number;
    shared->published++;
    send_all(publishers[which].fd, request,
             put_request(request, number - 1, now_ns()));
}

/* Whether the answer is now whole. */
static bool take_answer(struct publisher *publisher)
{
    size_t room = ANSWER_MAX - publisher->length;
    ssize_t n =
        recv(publisher->fd, publisher->answer + publisher->length, room, 0);

    if (n < 0 && errno == EINTR)
        return false;
    if (n == 0)
        errno = room ? ECONNRESET : EMSGSIZE;
    if (n <= 0)
        fail("the answer to a publish");
    publisher->length += (size_t)n;
    publisher->answer[publisher->length] = '\0';
    if (answer_length(publisher->answer) == 0)
        return false;
    publisher->length = 0;
    return true;
}

static void publish_by_many(uint64_t end)
{
    uint32_t count = (uint32_t)options.publishers, waiting = count;
    struct publisher *publishers = calloc(count, sizeof(*publishers));
    struct epoll_event events[EVENTS_MAX];
    int epoll = epoll_create1(EPOLL_CLOEXEC);

    if (!publishers || epoll < 0)
        fail("begin");
    for (uint32_t i = 0; i < count; i++) {
        struct epoll_event event = { .events = EPOLLIN, .data.u32 = i };

        publishers[i].fd = connect_from(0);
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, publishers[i].fd, &event) < 0)
            fail("epoll_ctl");
    }
    for (uint32_t i = 0; i < count; i++)
        publish_next(publishers, i);
    while (waiting > 0) {
        int ready = epoll_wait(epoll, events, EVENTS_MAX, -1);

        for (int i = 0; i < ready; i++) {
            uint32_t which = events[i].data.u32;

            if (!take_answer(&publishers[which]))
                continue;
            if (goes_on(end))
                publish_next(publishers, which);
            else
                waiting--;
        }
    }
    for (uint32_t i = 0; i < count; i++)
        close(publishers[i].fd);
    close(epoll);
    free(publishers);
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

static void publish(struct report *report)
{
    struct core_time before = own_core_time();
    uint64_t begin = now_ns();
    uint64_t end = begin + (uint64_t)(options.seconds * 1e9);
    int fd = connect_from(0);

    shared->began = begin;
    shared->act = PUBLISHING;
    if (options.ask)
        ask(begin, end);
    else if (options.idle)
        sleep_until(end);
    else if (options.stream)
        publish_stream(fd, end);
    else if (options.depth > 0)
        publish_at_depth(fd, end);
    else if (options.publishers > 1)
        publish_by_many(end);
    else
        publish_at_rate(fd, begin, end);
    close(fd);
    report->publish_seconds = (double)(now_ns() - begin) / 1e9;
    tally_own(&report->all, before, report->publish_seconds);
}

/* ------------------------------------------------------------ the server */

/* The socket that the server listens with, by its inode; 0: it is not seen.
 * Addresses in /proc/net are hexadecimal words in the machine's order. */
static unsigned long find_listener(const char *path, const char *address)
{
    FILE *file = fopen(path, "re");
    char line[512], local[33];
    unsigned port, state;
    unsigned long inode, found = 0;

    while (file && !found && fgets(line, sizeof(line), file))
        if (sscanf(line, " %*d: %32[0-9A-F]:%x %*s %x %*s %*s %*s %*s %*s %lu",
                   local, &port, &state, &inode) == 4 &&
            port == (unsigned)options.port && state == TCP_LISTEN &&
            strcmp(local, address) == 0)
            found = inode;
    if (file)
        fclose(file);
    return found;
}

/* The more an address says, the sooner the kernel chooses its listener. */
static unsigned long find_any_listener(void)
{
    unsigned loopback = htonl(INADDR_LOOPBACK), mapped = htonl(0xffff);
    unsigned long inode;
    char address[33];

    snprintf(address, sizeof(address), "%08X", loopback);
    if ((inode = find_listener("/proc/net/tcp", address)) > 0 ||
        (inode = find_listener("/proc/net/tcp", "00000000")) > 0)
        return inode;
    snprintf(address, sizeof(address), "%016X%08X%08X", 0, mapped, loopback);
    if ((inode = find_listener("/proc/net/tcp6", address)) > 0)
        return inode;
    snprintf(address, sizeof(address), "%032X", 0);
    return find_listener("/proc/net/tcp6", address);
}

/* Which process has the listener open; the youngest, where it was handed on:
 * by systemd, or by a master to its workers. 0: none that may be seen. */
static int find_server(void)
{
    unsigned long inode = find_any_listener();
    char wanted[32], target[32];
    int pid, youngest = 0;
    glob_t found;

    snprintf(wanted, sizeof(wanted), "socket:[%lu]", inode);
    if (!inode || glob("/proc/[0-9]*/fd/*", GLOB_NOSORT, NULL, &found) != 0)
        return 0;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        ssize_t n = readlink(found.gl_pathv[i], target, sizeof(target) - 1);

        target[n > 0 ? n : 0] = '\0';
        if (strcmp(target, wanted) == 0 &&
            sscanf(found.gl_pathv[i], "/proc/%d", &pid) == 1 && pid > youngest)
            youngest = pid;
    }
    globfree(&found);
    return youngest;
}

/* The number behind `name` in the file; the last one, if there are more. */
static double read_number(const char *path, const char *name)
{
    FILE *file = fopen(path, "re");
    char line[512];
    double number = NAN;

    if (!file)
        return number;
    while (fgets(line, sizeof(line), file)) {
        const char *at = strstr(line, name);

        if (at)
            number = strtod(at + strlen(name), NULL);
    }
    fclose(file);
    return number;
}

/* Of all threads. */
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
        sum += read_core_time(found.gl_pathv[i]).run;
    globfree(&found);
    return sum;
}

/* User time in ticks (proc(5)). */
static struct usage usage_now(void)
{
    char path[64], text[1024] = "";
    unsigned long user = 0;
    struct usage usage = { NAN, NAN, NAN, NAN };
    FILE *file;
    const char *end;

    if (options.pid < 1)
        return usage;
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

/* Of all deliveries, in nanoseconds. */
static double latency(const struct tally *tally, double part)
{
    return part < 1 ? percentile(tally, part) : (double)tally->longest;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void find_last_receipts(struct report *report)
{
    static double latest[TIMED_MAX];
    size_t count = 0;

    for (size_t i = 0; i < TIMED_MAX; i++) {
        uint64_t longest = 0;

        for (int k = 0; k < (int)options.processes; k++)
            if (shared->tallies[k].last_receipt[i] > longest)
                longest = shared->tallies[k].last_receipt[i];
        if (longest)
            latest[count++] = (double)longest;
    }
    qsort(latest, count, sizeof(latest[0]), by_value);
    for (size_t i = 0; count > 0 && i < PARTS; i++) {
        size_t at = (size_t)(parts[i] * (double)count);

        report->last[i] = latest[at < count ? at : count - 1];
    }
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
    if (tally->own_core > all->own_core)
        all->own_core = tally->own_core;
    if (tally->connect_seconds > all->connect_seconds)
        all->connect_seconds = tally->connect_seconds;
    if (tally->ended > all->ended)
        all->ended = tally->ended;
    if (tally->longest > all->longest)
        all->longest = tally->longest;
    for (unsigned i = 0; i < BUCKETS; i++)
        all->histogram[i] += tally->histogram[i];
}

static void sum_up(struct report *report)
{
    for (int k = 0; k < (int)options.processes; k++)
        add_tally(&report->all, &shared->tallies[k]);
    report->deliver_seconds =
        ((double)report->all.ended - (double)shared->began) / 1e9;
    if (options.replay == 0 &&
        report->deliver_seconds < report->publish_seconds)
        report->deliver_seconds = report->publish_seconds;
    find_last_receipts(report);
}

/* The books of events. */
static bool is_balanced(const struct tally *all)
{
    return !all->lost && !all->doubled && !all->refused;
}

static double at_least_1(double count)
{
    return count > 1 ? count : 1;
}

static double server_seconds(const struct report *report)
{
    return report->after.total - report->before.total;
}

static double bytes_per_subscriber(const struct report *report)
{
    double bytes = report->before.resident - report->idle.resident;

    return options.ask || options.replay > 0
               ? NAN
               : bytes / at_least_1((double)report->all.connected);
}

/* ------------------------------------------------- report, for a program */

static void json_figure(const char *name, double value)
{
    static bool printed;

    printf("%s\"%s\": ", printed ? ", " : "{", name);
    if (isnan(value))
        printf("null");
    else
        printf("%.3f", value);
    printed = true;
}

static void json_counts(const struct report *report)
{
    const struct tally *all = &report->all;
    double published = (double)shared->published;
    double seconds = report->deliver_seconds;

    json_figure("published", published);
    json_figure("delivered", (double)all->events);
    json_figure("lost", (double)all->lost);
    json_figure("doubled_or_out_of_order", (double)all->doubled);
    json_figure("ids_with_gaps", (double)all->id_gaps);
    json_figure("refused", (double)all->refused);
    json_figure("cut", (double)all->cut);
    json_figure("reconnects", (double)all->reconnects);
    json_figure("connects_per_second",
                (double)all->connected /
                    (all->connect_seconds > 0 ? all->connect_seconds : 1));
    json_figure("published_per_second", published / report->publish_seconds);
    json_figure("delivered_per_second", (double)all->events / seconds);
    json_figure("delivered_megabytes_per_second",
                (double)all->bytes / seconds / 1e6);
}

static void json_latencies(const struct report *report)
{
    const struct tally *all = &report->all;

    json_figure("latency_p50_ms", latency(all, 0.5) / 1e6);
    json_figure("latency_p90_ms", latency(all, 0.9) / 1e6);
    json_figure("latency_p99_ms", latency(all, 0.99) / 1e6);
    json_figure("latency_p99.9_ms", latency(all, 0.999) / 1e6);
    json_figure("latency_max_ms", latency(all, 1) / 1e6);
    json_figure("last_subscriber_p50_ms", report->last[0] / 1e6);
    json_figure("last_subscriber_p99_ms", report->last[2] / 1e6);
    json_figure("last_subscriber_max_ms", report->last[4] / 1e6);
}

static void json_costs(const struct report *report)
{
    const struct tally *all = &report->all;
    const struct usage *before = &report->before, *after = &report->after;
    double delivered = at_least_1((double)all->events);
    double published = at_least_1((double)shared->published);
    double spent = server_seconds(report) * 1e9;

    json_figure("server_ns_per_delivered", spent / delivered);
    json_figure("server_user_ns_per_delivered",
                (after->user - before->user) * 1e9 / delivered);
    json_figure("server_ns_per_published", spent / published);
    json_figure("server_ns_per_byte", spent / at_least_1((double)all->bytes));
    json_figure("server_bytes_per_subscriber", bytes_per_subscriber(report));
    /* a connection to oneself has both its ends on this machine */
    json_figure("kernel_bytes_per_two_ends",
                (before->kernel - report->idle.kernel) /
                    at_least_1((double)all->connected));
    json_figure("own_ns_per_delivered", all->own_seconds * 1e9 / delivered);
    json_figure("own_core", all->own_core);
}

static void print_json(const struct report *report)
{
    json_counts(report);
    json_latencies(report);
    json_costs(report);
    printf("}\n");
}

/* -------------------------------------------------- report, for a person */

struct text {
    char s[48];
};

/* In groups of three digits: 100,000; in three digits, if it is no integer. */
static struct text number(double value)
{
    char digits[32];
    int length = snprintf(digits, sizeof(digits), "%.0f", value), used = 0;
    struct text text = { "" };

    if (value < 999.5) {
        snprintf(text.s, sizeof(text.s), "%.3g", value);
        return text;
    }
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0)
            text.s[used++] = ',';
        text.s[used++] = digits[i];
    }
    return text;
}

/* In the unit, of four, in which it has at most three digits before the
 * point. */
static struct text scaled(double value, const char *const *units)
{
    struct text text = { "-" };
    int unit = 0;

    for (; unit < 3 && value >= 999.5; unit++)
        value /= 1000;
    if (!isnan(value))
        snprintf(text.s, sizeof(text.s), "%.3g %s", value, units[unit]);
    return text;
}

static struct text duration(double ns)
{
    static const char *const units[] = { "ns", "us", "ms", "s" };

    return scaled(ns, units);
}

static struct text volume(double bytes)
{
    static const char *const units[] = { "bytes", "kB", "MB", "GB" };

    return scaled(bytes, units);
}

static void print_server(void)
{
    char path[64], name[32] = "?";
    FILE *file;

    printf("http://127.0.0.1:%.0f%s", options.port,
           options.ask ? options.ask : options.target);
    snprintf(path, sizeof(path), "/proc/%.0f/comm", options.pid);
    if ((file = fopen(path, "re"))) {
        if (fgets(name, sizeof(name), file))
            name[strcspn(name, "\n")] = '\0';
        fclose(file);
        printf(", served by %s (pid %.0f)", name, options.pid);
    }
    printf("\n");
}

static void print_task(void)
{
    if (options.ask) {
        printf("%s requests a second, each on a fresh connection\n",
               number(options.rate).s);
        return;
    }
    printf("%s subscriber%s", number(options.subscribers).s,
           options.subscribers == 1 ? "" : "s");
    if (options.topics > 1)
        printf(" of %s topics", number(options.topics).s);
    if (options.idle)
        printf(", nothing published");
    else if (options.replay > 0)
        printf(" that come to %s events", number(options.replay).s);
    else if (options.stream)
        printf(", one body as fast as it is taken, events");
    else if (options.depth > 0)
        printf(", %s publishes at a time", number(options.depth).s);
    else if (options.publishers > 1)
        printf(", %s publishers, each one publish at a time",
               number(options.publishers).s);
    else
        printf(", %s events a second", number(options.rate).s);
    if (!options.idle)
        printf(" of %s bytes", number(options.size).s);
    printf("\n");
}

static void print_amounts(const struct report *report)
{
    const struct tally *all = &report->all;
    double published = (double)shared->published, events = (double)all->events;
    double seconds = report->deliver_seconds;

    if (options.ask) {
        printf("answered   %s\n", number(events).s);
        return;
    }
    printf("published  %-24s %s a second for %s\n", number(published).s,
           number(published / report->publish_seconds).s,
           duration(report->publish_seconds * 1e9).s);
    printf("delivered  %s of %-*s %s a second, %s a second\n", number(events).s,
           20 - (int)strlen(number(events).s),
           number(events + (double)all->lost).s, number(events / seconds).s,
           volume((double)all->bytes / seconds).s);
}

/* How long after it was due an event has arrived. */
static void print_lateness(const struct report *report)
{
    printf("\n%-18s%11s%11s%11s%11s%11s\n", "latency", "p50", "p90", "p99",
           "p99.9", "max");
    printf("  %-16s", options.ask ? "each answer" : "each delivery");
    for (size_t i = 0; i < PARTS; i++)
        printf("%11s", duration(latency(&report->all, parts[i])).s);
    if (!options.ask) {
        printf("\n  until all have it");
        for (size_t i = 0; i < PARTS; i++)
            printf("%*s", i ? 11 : 10, duration(report->last[i]).s);
    }
    printf("\n\n");
}

/* Ten of them to a power of ten; with a step of 3 they double. */
static double row_limit(int row)
{
    static const double preferred[] = {
        1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.3, 8
    };
    double limit = preferred[row % 10];

    for (; row >= 10; row -= 10)
        limit *= 10;
    return limit;
}

/* The least row of this step that has the value below its limit. */
static int row_of(double ns, int step)
{
    int row = 0;

    while (row_limit(row) <= ns)
        row += step;
    return row;
}

static void print_row(const char *which, double limit, double part,
                      double of_longest)
{
    static const char bar[] = "########################################";

    printf("  %-4s %7s  %-40.*s %6.2f %%\n", which, duration(limit).s,
           (int)(of_longest * 39) + (part > 0), bar, 100 * part);
}

/* From p0.1 to p99.9 in the finest rows that fit; what is below is in the
 * first, what is above in one more. */
static void print_histogram(const struct tally *tally)
{
    double low = percentile(tally, 0.001), high = percentile(tally, 0.999);
    double rows[ROWS_MAX + 1] = { 0 }, longest = 0;
    int first, count, step = 0;

    do {
        step++;
        first = row_of(low, step);
        count = (row_of(high, step) - first) / step + 1;
    } while (count > ROWS_MAX);
    for (unsigned i = 0; i < BUCKETS; i++) {
        int row = (row_of((double)bucket_value(i), step) - first) / step;

        row = row < 0 ? 0 : row > count ? count : row;
        rows[row] += (double)tally->histogram[i] / (double)tally->events;
        longest = rows[row] > longest ? rows[row] : longest;
    }
    for (int i = 0; i < count; i++)
        print_row("to", row_limit(first + i * step), rows[i],
                  rows[i] / longest);
    if (rows[count] > 0)
        print_row("over", row_limit(first + (count - 1) * step), rows[count],
                  rows[count] / longest);
}

static void print_use(const char *who, double seconds,
                      const struct report *report)
{
    printf("%-7s", who);
    if (report->all.events)
        printf(" %s CPU per event,",
               duration(seconds * 1e9 / (double)report->all.events).s);
    printf(" %.1f %% of a core", 100 * seconds / report->deliver_seconds);
}

static void print_uses(const struct report *report)
{
    double each = bytes_per_subscriber(report);

    if (options.pid > 0)
        print_use("server", server_seconds(report), report);
    else
        printf("server  its process cannot be seen by this user from here: "
               "give its --pid");
    if (!isnan(each))
        printf("; grew by %s a subscriber", volume(each).s);
    printf("\n");
    print_use("fan", report->all.own_seconds, report);
    printf("\n");
}

static void print_verdict(const struct report *report)
{
    const struct tally *all = &report->all;
    double lost = (double)all->lost;

    if (all->lost)
        printf("LOST: %s of %s events did not arrive.\n", number(lost).s,
               number(lost + (double)all->events).s);
    if (all->cut)
        printf("CUT: the server ended %s connections.\n",
               number((double)all->cut).s);
    if (all->doubled)
        printf("DOUBLED: %s events came twice, or not in order.\n",
               number((double)all->doubled).s);
    if (all->refused)
        printf("REFUSED: %s subscribers got an answer that is not 200.\n",
               number((double)all->refused).s);
    if (is_balanced(all) && all->events && !options.ask)
        printf("Each subscriber got each event, once and in order.\n");
    if (all->own_core > own_core_max)
        printf("fan was the limit: %.0f %% of the time it ran or waited for a "
               "core (--processes).\n",
               100 * (all->own_core < 1 ? all->own_core : 1));
}

static void print_report(const struct report *report)
{
    print_server();
    print_task();
    if (report->all.events)
        print_amounts(report);
    if (report->all.events && options.replay == 0) {
        print_lateness(report);
        print_histogram(&report->all);
    }
    printf("\n");
    print_uses(report);
    print_verdict(report);
}

/* -------------------------------------------------------------- progress */

/* How much of what is going on is done, from 0 to 1. */
static double progress(double connected, double delivered)
{
    double published = (double)shared->published;
    double elapsed = (double)(now_ns() - shared->began) / 1e9;
    double part;

    if (shared->act == CONNECTING)
        part = connected / at_least_1(options.subscribers);
    else if (shared->act == WAITING)
        part = delivered * options.topics /
               at_least_1(published * options.subscribers);
    else if (elapsed / options.seconds > published / options.count)
        part = elapsed / options.seconds;
    else
        part = published / options.count;
    return part < 1 ? part : 1;
}

static void print_progress(void)
{
    static const char *const acts[] = { "connecting", "publishing", "waiting" };
    static const char bar[] = "####################";
    double connected = 0, delivered = 0, part;

    for (int k = 0; k < (int)options.processes; k++) {
        connected += (double)shared->tallies[k].connected;
        delivered += (double)shared->tallies[k].events;
    }
    part = progress(connected, delivered);
    fprintf(stderr,
            "\r%s [%-20.*s] %s connected, %s published, %s delivered\033[K",
            acts[shared->act], (int)(part * 20), bar, number(connected).s,
            number((double)shared->published).s, number(delivered).s);
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
        sleep_until(now_ns() + 200000000);
        print_progress();
    }
}

static void end_progress(pid_t pid)
{
    if (pid <= 0)
        return;
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    wipe_progress();
}

/* ------------------------------------------------------------------ main */

static const char usage[] =
    "usage: fan [OPTION...]\n"
    "Measures how a server of event streams on 127.0.0.1 delivers. Latency is\n"
    "from when an event was due to when a subscriber has read it. Exits with\n"
    "0 if each subscriber got each event, once and in order, else with 1.\n"
    "  --port N               where it listens (3000)\n"
    "  --pid PID              its process (the one that listens)\n"
    "  --target PATH          of the stream (/events/fan)\n"
    "  --topics N             PATH-0, PATH-1 and so on\n"
    "  --subscribers N        (1000)\n"
    "  --processes N          to hold them (1)\n"
    "  --publish-rate N       events a second (20), or\n"
    "  --depth N              so many requests at a time, or\n"
    "  --publishers N         a request at a time on so many connections, or\n"
    "  --stream               one body, as fast as it is taken, or\n"
    "  --idle                 nothing, or\n"
    "  --ask PATH             no event: a page, each on a fresh connection\n"
    "  --seconds N            for so long (5)\n"
    "  --count N              events at most\n"
    "  --size BYTES           of an event's data (100)\n"
    "  --replay N             publish N events, then let them come\n"
    "  --mute PERCENT         never read\n"
    "  --reconnect PERCENT    come again each second\n"
    "  --json                 print one line of JSON, for a program\n"
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
    { "publishers", &options.publishers, 1, PUBLISHERS_MAX },
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

/* Whether the options do. */
static bool contradict(void)
{
    if (options.publishers > 1 && (options.depth > 0 || options.replay > 0))
        return true;
    return options.topics > 1 && (options.stream || options.publishers > 1);
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
    if (optind < argc || contradict()) {
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
    shared->act = CONNECTING;
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
    publish(report);
    __atomic_store_n(&shared->over, true, __ATOMIC_SEQ_CST);
}

/* What there is has been published when they come. */
static void run_replay(struct report *report, pid_t *children)
{
    options.depth = REPLAY_DEPTH;
    options.count = options.replay;
    publish(report);
    report->before = usage_now();
    shared->began = now_ns();
    __atomic_store_n(&shared->over, true, __ATOMIC_SEQ_CST);
    start_all(children);
}

/* One that has failed has said why. */
static void wait_for(const pid_t *children)
{
    shared->act = WAITING;
    for (int i = 0; i < (int)options.processes; i++) {
        int status = 0;

        waitpid(children[i], &status, 0);
        if (status)
            exit(2);
    }
}

int main(int argc, char **argv)
{
    static struct report report;
    pid_t children[PROCESSES_MAX] = { 0 }, progress;

    parse_options(argc, argv);
    raise_descriptors();
    if (options.pid < 1)
        options.pid = find_server();
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        fail("mmap");
    progress = start_progress();
    report.idle = usage_now();
    if (options.replay > 0)
        run_replay(&report, children);
    else
        run_live(&report, children);
    wait_for(children);
    report.after = usage_now();
    end_progress(progress);
    sum_up(&report);
    if (options.json)
        print_json(&report);
    else
        print_report(&report);
    return !is_balanced(&report.all);
}
