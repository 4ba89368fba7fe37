/*
 * ssed's own share of a broadcast, without the kernel's: the server's real
 * delivery code, with the calls at its bottom replaced (linker, --wrap) by
 * ones that take everything, take a part, or refuse. A million simulated
 * subscribers on one topic, and on a hundred thousand.
 *
 * usage: scale [--subscribers 1000000] [--topics 1] [--events 20]
 *              [--size 100] [--json]
 *
 * Prints the time per delivered event (the median of the events), the longest
 * time between two looks at epoll, and the memory of a subscriber.
 */
#define main ssed_main
int ssed_main(int argc, char **argv);
/* NOLINTBEGIN(bugprone-suspicious-include): the server without its main, and
 * http.c for a table of connections without descriptors */
#include "../http.c"
#include "../sse.c"
/* NOLINTEND(bugprone-suspicious-include) */
#undef main

/* What the replaced send does. */
static enum {
    TAKE_ALL,
    TAKE_PART, /* of every tenth, and the rest when it is asked for */
    REFUSE     /* every tenth */
} manner;
static uint64_t sends, bytes_taken;

/* NOLINTBEGIN(bugprone-reserved-identifier): these are the linker's names */
ssize_t __wrap_writev(int fd, const struct iovec *iov, int count);
ssize_t __wrap_send(int fd, const void *bytes, size_t length, int flags);
int __wrap_epoll_ctl(int epoll, int operation, int fd,
                     struct epoll_event *event);
/* NOLINTEND(bugprone-reserved-identifier) */

static ssize_t take(int fd, size_t length)
{
    sends++;
    if (manner == REFUSE && fd % 10 == 0) {
        errno = EAGAIN;
        return -1;
    }
    if (manner == TAKE_PART && fd % 10 == 0 && length > 1)
        length /= 2;
    bytes_taken += length;
    return (ssize_t)length;
}

ssize_t __wrap_writev(int fd, const struct iovec *iov, int count)
{
    size_t length = 0;

    for (int i = 0; i < count; i++)
        length += iov[i].iov_len;
    return take(fd, length);
}

ssize_t __wrap_send(int fd, const void *bytes, size_t length, int flags)
{
    (void)bytes;
    (void)flags;
    return take(fd, length);
}

int __wrap_epoll_ctl(int epoll, int operation, int fd,
                     struct epoll_event *event)
{
    (void)epoll;
    (void)operation;
    (void)fd;
    (void)event;
    return 0;
}

static uint64_t now_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static struct {
    uint64_t subscribers, topics, events, size;
    bool json;
} wanted = { 1000000, 1, 20, 100, false };

static struct server server;
static struct topic **topics;

static double resident(void)
{
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");

    if (!file || fscanf(file, "%*u %lu", &pages) != 1)
        die(1, "cannot read /proc/self/statm");
    fclose(file);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

/* As main() and its parts do, but for what is not there: sockets. */
static void begin(void)
{
    server.options = (struct options){
        .history = 1000,
        .history_bytes = 64 << 20,
        .first_id = 1,
        .max_event = 64 << 10,
        .log_level = LEVEL_ERROR,
        .sync = SYNC_NEVER,
    };
    logger.level = LEVEL_ERROR;
    server.http.memory_limit = 256 << 20;
    server.http.handlers = &handlers;
    server.http.server = &server;
    server.http.conn_limit = (uint32_t)wanted.subscribers + RESERVE;
    server.http.conns = calloc(server.http.conn_limit, sizeof(struct conn));
    topics = calloc(wanted.topics, sizeof(struct topic *));
    if (!server.http.conns || !topics)
        die(1, "no memory for so many");
    begin_table(&server.http);
    init_history(&server);
    update_time(&server);
}

static void make_topics(void)
{
    for (uint64_t i = 0; i < wanted.topics; i++) {
        char name[32];
        int length =
            snprintf(name, sizeof(name), "scale/%llu", (unsigned long long)i);

        topics[i] =
            topic_hold(&server.ring, (struct slice){ name, (size_t)length });
        if (!topics[i])
            die(1, "no memory for so many topics");
    }
}

static void add_subscriber(uint32_t fd)
{
    struct conn *conn = conn_at(&server.http, fd);
    struct topic *topic = topics[fd % wanted.topics];
    struct subscriber *subscriber = &conn->subscriber;

    *conn =
        (struct conn){ .state = CONN_STREAM, .interest = EPOLLIN | EPOLLRDHUP };
    subscriber->form = FORM_CHUNKED;
    subscriber->topic_count = 1;
    subscriber->place =
        (struct place){ .topic = topic, .last = topic_end(topic) };
    topic->references++;
    if (!topic_reserve(topic))
        die(1, "no memory for a subscriber");
    topic_join(&server.ring, &subscriber->place, fd);
}

/* One event to each topic. */
static void publish_to_all(const struct event *event)
{
    for (uint64_t i = 0; i < wanted.topics; i++) {
        if (publish_event(&server, topics[i], event, NULL) == PUBLISHED)
            continue;
        deliver(&server); /* the ring is full of what is under way */
        i--;
    }
}

static bool is_delivered(void)
{
    return !server.ring.queue_first[TOPICS_IN_PASS] &&
           !server.http.queues[QUEUE_READY].count;
}

/* Publishes and delivers to the end; returns the nanoseconds per delivery. */
static double broadcast(const struct event *event)
{
    uint64_t begin_ns = now_ns(CLOCK_MONOTONIC);

    publish_to_all(event);
    while (!is_delivered())
        deliver(&server);
    return (double)(now_ns(CLOCK_MONOTONIC) - begin_ns) /
           (double)wanted.subscribers;
}

/* The same; returns the longest time between two looks at epoll, without
 * that in which the machine did something else. */
static uint64_t longest_slice(const struct event *event)
{
    uint64_t longest = 0;

    publish_to_all(event);
    while (!is_delivered()) {
        uint64_t before = now_ns(CLOCK_THREAD_CPUTIME_ID), took;

        deliver(&server);
        took = now_ns(CLOCK_THREAD_CPUTIME_ID) - before;
        if (took > longest)
            longest = took;
    }
    return longest;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* The median of the events' times per delivery, in nanoseconds; and the
 * longest slice of one more. */
static double measure(uint64_t *slice)
{
    char *data = malloc(wanted.size);
    double *times = calloc(wanted.events, sizeof(*times)), median;
    struct event event = { .data = { data, wanted.size } };

    if (!data || !times)
        die(1, "no memory");
    memset(data, 'x', wanted.size);
    for (uint64_t i = 0; i < wanted.events; i++)
        times[i] = broadcast(&event);
    qsort(times, wanted.events, sizeof(*times), by_value);
    median = times[wanted.events / 2];
    *slice = longest_slice(&event);
    free(data);
    free(times);
    return median;
}

static void parse(int argc, char **argv)
{
    static const struct option names[] = {
        { "subscribers", 1, NULL, 's' }, { "topics", 1, NULL, 't' },
        { "events", 1, NULL, 'e' },      { "size", 1, NULL, 'z' },
        { "json", 0, NULL, 'j' },        { NULL, 0, NULL, 0 },
    };
    int code;

    while ((code = getopt_long(argc, argv, "", names, NULL)) != -1) {
        uint64_t number = optarg ? strtoull(optarg, NULL, 10) : 1;

        if (code == '?' || number == 0)
            die(2, "usage: scale [--subscribers N] [--topics N] [--events N] "
                   "[--size BYTES] [--json]");
        *(code == 's'   ? &wanted.subscribers
          : code == 't' ? &wanted.topics
          : code == 'e' ? &wanted.events
          : code == 'z' ? &wanted.size
                        : &(uint64_t){ 0 }) = number;
        wanted.json = wanted.json || code == 'j';
    }
}

int main(int argc, char **argv)
{
    static const char *const manners[] = { "all", "part", "refuse" };
    double before, memory;

    parse(argc, argv);
    begin();
    make_topics();
    before = resident();
    for (uint32_t fd = 0; fd < wanted.subscribers; fd++)
        add_subscriber(fd);
    memory = (resident() - before) / (double)wanted.subscribers;
    for (int i = 0; i < 3; i++) {
        uint64_t slice;
        double time;

        manner = TAKE_ALL + (unsigned)i;
        sends = bytes_taken = 0;
        time = measure(&slice);
        printf(wanted.json
                   ? "{\"taken\": \"%s\", \"ns_per_delivered\": %.1f, "
                     "\"longest_slice_us\": %.1f, \"bytes_per_subscriber\": "
                     "%.1f, \"sends\": %llu}\n"
                   : "taken %-7s %8.1f ns per delivered event, longest slice "
                     "%8.1f us, %6.1f bytes per subscriber, %llu sends\n",
               manners[i], time, (double)slice / 1e3, memory,
               (unsigned long long)sends);
    }
    return 0;
}
