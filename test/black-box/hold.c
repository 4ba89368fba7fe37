/*
 * Holds many subscribers on a server, publishes at a fixed rate, and checks
 * that every one of them gets every id, each once and in order. Meanwhile it
 * asks for /healthz on fresh connections and measures how long that takes,
 * and what the server spends.
 *
 * usage: hold --port P --pid PID [--subscribers N] [--publish-rate R]
 *             [--seconds S]
 * Exit status 1 if anything was lost, doubled or out of order.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    PER_ADDRESS = 5000, /* subscribers from one loopback address */
    PROBES_A_SECOND = 50,
    PROBES_MAX = 100000,
    EVENTS_MAX = 512,
    LINE_MAX_KEPT = 32,
};

/* A subscriber: the line that is being received, as far as it matters, and
 * the newest id. */
struct subscriber {
    int fd;
    unsigned kept;
    char line[LINE_MAX_KEPT];
    uint64_t first; /* the id of the first block: its position */
    uint64_t last;
    uint64_t events;
    uint64_t wrong;
};

struct usage {
    double user, system; /* seconds */
    double resident;     /* bytes */
};

static struct {
    int port, pid;
    int subscribers, rate, seconds;
} options = { .subscribers = 10000, .rate = 5, .seconds = 20 };

static double probes[PROBES_MAX];
static int probe_count;

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "hold: %s: %s\n", what, strerror(errno));
    exit(2);
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static struct usage usage_of(int pid)
{
    char path[64], text[1024] = "";
    unsigned long user = 0, system = 0;
    long pages = 0;
    double tick = (double)sysconf(_SC_CLK_TCK);
    FILE *file;
    const char *end;

    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    file = fopen(path, "re");
    if (!file || !fgets(text, sizeof(text), file))
        fail(path);
    fclose(file);
    end = strrchr(text, ')'); /* proc(5): the name may hold anything */
    if (!end || sscanf(end + 2,
                       "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu "
                       "%*d %*d %*d %*d %*d %*d %*u %*u %ld",
                       &user, &system, &pages) != 3)
        fail(path);
    return (struct usage){ (double)user / tick, (double)system / tick,
                           (double)pages * (double)sysconf(_SC_PAGESIZE) };
}

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
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        fail("bind");
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((uint16_t)options.port);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        fail("connect");
    return fd;
}

static void send_text(int fd, const char *text)
{
    if (send(fd, text, strlen(text), MSG_NOSIGNAL) != (ssize_t)strlen(text))
        fail("send");
}

static void watch(int epoll, int fd, uint32_t index)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = index };

    fcntl(fd, F_SETFL, O_NONBLOCK);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll_ctl");
}

static void subscribe_all(struct subscriber *subscribers, int epoll)
{
    for (int i = 0; i < options.subscribers; i++) {
        subscribers[i].fd = connect_from((unsigned)(i / PER_ADDRESS));
        send_text(subscribers[i].fd,
                  "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
        watch(epoll, subscribers[i].fd, (uint32_t)i);
    }
}

/* A line is complete. Each block has its id first or second. */
static void take_line(struct subscriber *subscriber)
{
    uint64_t id;

    subscriber->line[subscriber->kept] = '\0';
    if (strncmp(subscriber->line, "id: ", 4) != 0)
        return;
    id = strtoull(subscriber->line + 4, NULL, 10);
    if (subscriber->first == 0) {
        subscriber->first = id;
    } else if (id != subscriber->last) { /* a heartbeat has the newest again */
        subscriber->wrong += id != subscriber->last + 1;
        subscriber->events++;
    }
    subscriber->last = id;
}

static void take_bytes(struct subscriber *subscriber, const char *bytes,
                       size_t length)
{
    while (length) {
        const char *end = memchr(bytes, '\n', length);
        size_t line = end ? (size_t)(end - bytes) : length;
        size_t room = LINE_MAX_KEPT - 1 - subscriber->kept;
        size_t kept = line < room ? line : room;

        memcpy(subscriber->line + subscriber->kept, bytes, kept);
        subscriber->kept += (unsigned)kept;
        if (end) {
            take_line(subscriber);
            subscriber->kept = 0;
        }
        bytes += line + (end != NULL);
        length -= line + (end != NULL);
    }
}

static void receive(struct subscriber *subscriber)
{
    char bytes[16384];
    ssize_t n = recv(subscriber->fd, bytes, sizeof(bytes), 0);

    if (n > 0) {
        take_bytes(subscriber, bytes, (size_t)n);
    } else if (n == 0 || errno != EAGAIN) {
        subscriber->wrong++; /* it must not end */
        close(subscriber->fd);
    }
}

/* Reads whatever has arrived, for `seconds`. */
static void run(struct subscriber *subscribers, int epoll, double seconds)
{
    struct epoll_event events[EVENTS_MAX];
    double end = now() + seconds;

    do {
        int timeout = (int)((end - now()) * 1000);
        int count =
            epoll_wait(epoll, events, EVENTS_MAX, timeout < 0 ? 0 : timeout);

        for (int i = 0; i < count; i++)
            receive(&subscribers[events[i].data.u32]);
    } while (now() < end);
}

/* A process of its own asks, so that the parsing here does not count; it
 * writes each time it took, in seconds. */
static void probe(int out)
{
    double end = now() + options.seconds;

    /* what is measured is the server, not how long this process has to wait
     * for a core that the subscribers' side keeps busy */
    setpriority(PRIO_PROCESS, 0, -20);
    while (now() < end) {
        double begin = now(), took;
        char bytes[512];
        int fd = connect_from(0);

        send_text(fd, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
        if (recv(fd, bytes, sizeof(bytes), 0) <= 0)
            fail("/healthz");
        took = now() - begin;
        close(fd);
        if (write(out, &took, sizeof(took)) != (ssize_t)sizeof(took))
            fail("write");
        usleep(1000000 / PROBES_A_SECOND);
    }
    _exit(0);
}

static int start_probe(void)
{
    int ends[2];
    pid_t pid;

    if (pipe2(ends, O_CLOEXEC) < 0 || (pid = fork()) < 0)
        fail("fork");
    if (pid == 0)
        probe(ends[1]);
    close(ends[1]);
    return ends[0];
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void report_probes(int in)
{
    while (probe_count < PROBES_MAX &&
           read(in, &probes[probe_count], sizeof(double)) ==
               (ssize_t)sizeof(double))
        probe_count++;
    if (probe_count == 0)
        return;
    qsort(probes, (size_t)probe_count, sizeof(double), by_value);
    printf("healthz     %d asked: p50 %.2f ms, p99 %.2f ms, max %.2f ms\n",
           probe_count, probes[probe_count / 2] * 1e3,
           probes[probe_count * 99 / 100] * 1e3, probes[probe_count - 1] * 1e3);
}

static uint64_t publish_all(struct subscriber *subscribers, int epoll)
{
    int fd = connect_from(0);
    uint64_t count = (uint64_t)options.rate * (uint64_t)options.seconds;
    char answer[4096];
    double begin = now();

    for (uint64_t i = 1; i <= count; i++) {
        send_text(fd, "POST /events HTTP/1.1\r\nHost: localhost\r\n"
                      "Content-Length: 5\r\n\r\nevent");
        run(subscribers, epoll, begin + (double)i / options.rate - now());
        if (recv(fd, answer, sizeof(answer), 0) < 13 ||
            strncmp(answer, "HTTP/1.1 201 ", 13) != 0)
            fail("publish");
    }
    run(subscribers, epoll, 1);
    close(fd);
    return count;
}

/* How many subscribers have not had just the `count` events. */
static int check_all(const struct subscriber *subscribers, uint64_t count)
{
    int bad = 0;

    for (int i = 0; i < options.subscribers; i++)
        bad += subscribers[i].wrong || subscribers[i].events != count ||
               subscribers[i].last - subscribers[i].first != count;
    return bad;
}

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        { "port", 1, NULL, 'p' },        { "pid", 1, NULL, 'i' },
        { "subscribers", 1, NULL, 'n' }, { "publish-rate", 1, NULL, 'r' },
        { "seconds", 1, NULL, 's' },     { NULL, 0, NULL, 0 },
    };
    int code;

    while ((code = getopt_long(argc, argv, "", names, NULL)) != -1) {
        int *place = code == 'p'   ? &options.port
                     : code == 'i' ? &options.pid
                     : code == 'n' ? &options.subscribers
                     : code == 'r' ? &options.rate
                     : code == 's' ? &options.seconds
                                   : NULL;

        if (!place)
            exit(2);
        *place = (int)strtol(optarg, NULL, 10);
    }
    if (options.port <= 0 || options.pid <= 0 || options.subscribers <= 0 ||
        options.rate <= 0 || options.seconds <= 0) {
        fprintf(stderr, "hold: --port and --pid are needed\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct rlimit limit;
    struct subscriber *subscribers;
    struct usage before, idle, after;
    double begin, delivered;
    uint64_t count;
    int epoll = epoll_create1(EPOLL_CLOEXEC), in, bad;

    parse_options(argc, argv);
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    subscribers = calloc((size_t)options.subscribers, sizeof(*subscribers));
    if (!subscribers)
        fail("calloc");
    before = usage_of(options.pid);
    begin = now();
    subscribe_all(subscribers, epoll);
    printf("connected   %d in %.2f s\n", options.subscribers, now() - begin);
    run(subscribers, epoll, 1);
    idle = usage_of(options.pid);
    in = start_probe();
    count = publish_all(subscribers, epoll);
    after = usage_of(options.pid);
    report_probes(in);
    bad = check_all(subscribers, count);
    delivered = (double)count * options.subscribers;
    printf("events      %llu to each, %d subscribers without just these\n",
           (unsigned long long)count, bad);
    printf("server CPU  %.0f ns user, %.0f ns system per delivered event\n",
           (after.user - idle.user) * 1e9 / delivered,
           (after.system - idle.system) * 1e9 / delivered);
    printf("memory      %.0f bytes per subscriber\n",
           (idle.resident - before.resident) / options.subscribers);
    free(subscribers);
    return bad != 0;
}
