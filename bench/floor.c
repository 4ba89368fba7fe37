/*
 * The floor: the least program that does the kernel's part of a broadcast.
 * It accepts, answers each GET with one fixed head, and sends what is POSTed
 * to each client that has sent a GET, one send for each subscriber and event.
 * It parses nothing, remembers nothing, and gives up on a client that does not
 * take a send whole: what ssed costs beyond it is ssed's own.
 *
 * usage: floor [--port N] [--batch | --bytes]
 *   --batch  all that is published in one turn goes in one send
 *   --bytes  what is published is kept, and sent to each that comes, in sends
 *            of 64 KiB: the cost of moving bytes alone
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    EVENTS_MAX = 256,
    FDS_MAX = 65536,
    READ_MAX = 65536,
    SEND_MAX = 65536,
    FRAME_REST = 64,
    KEPT_MAX = 64 << 20,
};

static const char stream_head[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    "Transfer-Encoding: chunked\r\n\r\n"
    "00000013\r\nretry: 3000\nid: 0\n\n\r\n";

static int listener, epoll, port;
static bool batch, bytes_alone;
static int subscribers[FDS_MAX];
static size_t sent[FDS_MAX]; /* of what is kept */
static size_t subscriber_count;
static uint64_t newest_id, not_taken;

/* The frames published in this turn, and where each ends. */
static char frames[4 * READ_MAX];
static size_t ends[READ_MAX];
static size_t frame_count;

static char kept[KEPT_MAX];
static size_t kept_length;

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void watch(int fd, uint32_t events, int operation)
{
    struct epoll_event event = { .events = events, .data.fd = fd };

    if (epoll_ctl(epoll, operation, fd, &event) < 0)
        fail("epoll_ctl");
}

static void begin(void)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
        .sin_port = htons((uint16_t)port),
    };
    socklen_t length = sizeof(address);
    struct rlimit limit;
    int one = 1;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max < FDS_MAX ? limit.rlim_max : FDS_MAX;
    setrlimit(RLIMIT_NOFILE, &limit);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    epoll = epoll_create1(0);
    if (listener < 0 || epoll < 0 ||
        bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(listener, SOMAXCONN) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        fail("listen");
    watch(listener, EPOLLIN, EPOLL_CTL_ADD);
    fprintf(stderr, "event=listening address=127.0.0.1:%d\nevent=ready\n",
            ntohs(address.sin_port));
}

static void accept_all(void)
{
    int fd;

    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= FDS_MAX)
            fail("too many descriptors");
        watch(fd, EPOLLIN, EPOLL_CTL_ADD);
    }
}

/* A request's data, as one frame behind the others of this turn. */
static void add_frame(const char *data, size_t length)
{
    size_t at = frame_count ? ends[frame_count - 1] : 0;
    char body[FRAME_REST];
    int head = snprintf(body, sizeof(body),
                        "id: %llu\ndata: ", (unsigned long long)++newest_id);

    if (at + length + FRAME_REST > sizeof(frames))
        fail("a turn with too much");
    at += (size_t)sprintf(frames + at, "%08zx\r\n%s", (size_t)head + length + 2,
                          body);
    memcpy(frames + at, data, length);
    memcpy(frames + at + length, "\n\n\r\n", 4);
    ends[frame_count++] = at + length + 4;
}

/* Takes the POSTs that have come; their heads are all alike. */
static void take_posts(int fd, const char *bytes, size_t length)
{
    static char answers[READ_MAX];
    size_t answered = 0;

    while (length > 0) {
        const char *end = memmem(bytes, length, "\r\n\r\n", 4);
        const char *field = memmem(bytes, length, "Content-Length: ", 16);
        size_t head, content;

        if (!end || !field)
            fail("a request in pieces");
        head = (size_t)(end + 4 - bytes);
        content = strtoul(field + 16, NULL, 10);
        if (head + content > length)
            fail("a request in pieces");
        add_frame(bytes + head, content);
        answered += (size_t)snprintf(
            answers + answered, sizeof(answers) - answered,
            "HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n"
            "{\"id\":\"%016llu\"}\n",
            26, (unsigned long long)newest_id);
        bytes += head + content;
        length -= head + content;
    }
    if (send(fd, answers, answered, MSG_NOSIGNAL) != (ssize_t)answered)
        fail("send an answer");
}

static void send_kept(int fd)
{
    size_t left = kept_length - sent[fd];
    ssize_t n = send(fd, kept + sent[fd], left < SEND_MAX ? left : SEND_MAX,
                     MSG_NOSIGNAL);

    if (n > 0)
        sent[fd] += (size_t)n;
    if (sent[fd] == kept_length)
        watch(fd, EPOLLIN, EPOLL_CTL_MOD);
}

static void read_from(int fd)
{
    static char bytes[READ_MAX];
    ssize_t n = read(fd, bytes, sizeof(bytes));

    if (n <= 0) {
        for (size_t i = 0; i < subscriber_count; i++)
            if (subscribers[i] == fd)
                subscribers[i--] = subscribers[--subscriber_count];
        close(fd);
    } else if (bytes[0] == 'P') {
        take_posts(fd, bytes, (size_t)n);
    } else {
        send(fd, stream_head, sizeof(stream_head) - 1, MSG_NOSIGNAL);
        sent[fd] = 0;
        if (bytes_alone)
            watch(fd, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
        subscribers[subscriber_count++] = fd;
    }
}

static void send_to_all(const char *bytes, size_t length)
{
    for (size_t i = 0; i < subscriber_count; i++)
        if (send(subscribers[i], bytes, length, MSG_NOSIGNAL) !=
            (ssize_t)length)
            not_taken++;
}

static void keep(const char *bytes, size_t length)
{
    if (kept_length + length > KEPT_MAX)
        fail("too much to be kept");
    memcpy(kept + kept_length, bytes, length);
    kept_length += length;
}

/* What has been published in this turn. */
static void broadcast(void)
{
    size_t at = 0;

    if (bytes_alone && frame_count) {
        keep(frames, ends[frame_count - 1]);
        frame_count = 0;
    }
    if (batch && frame_count)
        send_to_all(frames, ends[frame_count - 1]);
    for (size_t i = 0; !batch && i < frame_count; i++) {
        send_to_all(frames + at, ends[i] - at);
        at = ends[i];
    }
    frame_count = 0;
}

static void turn(void)
{
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(epoll, events, EVENTS_MAX, -1);

    for (int i = 0; i < count; i++) {
        int fd = events[i].data.fd;

        if (fd == listener)
            accept_all();
        else if (events[i].events == EPOLLOUT)
            send_kept(fd);
        else
            read_from(fd);
    }
    broadcast();
    if (not_taken) {
        fprintf(stderr, "floor: %llu sends were not taken whole\n",
                (unsigned long long)not_taken);
        not_taken = 0;
    }
}

int main(int argc, char **argv)
{
    static const struct option names[] = {
        { "port", 1, NULL, 'p' },
        { "batch", 0, NULL, 'b' },
        { "bytes", 0, NULL, 'y' },
        { NULL, 0, NULL, 0 },
    };
    int code;

    while ((code = getopt_long(argc, argv, "", names, NULL)) != -1) {
        if (code == 'p')
            port = (int)strtol(optarg, NULL, 10);
        else if (code == 'b')
            batch = true;
        else if (code == 'y')
            bytes_alone = true;
        else
            return 2;
    }
    begin();
    for (;;)
        turn();
}
