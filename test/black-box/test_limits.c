/*
 * What is bounded, from outside: connections of one address, topics without an
 * event, and memory: that of a server that is attacked in every way at once
 * stays below what it has promised at its start.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define HOST "Host: localhost\r\n"

/* How often the log has the text. */
static unsigned count_in_log(const struct server *server, const char *text)
{
    char *log = server_log(server);
    unsigned count = 0;

    for (const char *at = log; (at = strstr(at, text)); at += strlen(text))
        count++;
    free(log);
    return count;
}

/* Connects from an address of this machine, with a small buffer for what is not
 * read. */
static void connect_from(struct client *client, const struct server *server,
                         uint32_t address)
{
    struct sockaddr_in from = { .sin_family = AF_INET,
                                .sin_addr.s_addr = htonl(address) };
    struct sockaddr_in to = { .sin_family = AF_INET,
                              .sin_port = htons((uint16_t)server->port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    *client = (struct client){ .fd = fd, .bytes = calloc(1, 1) };
    cr_assert(fd >= 0 && client->bytes);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &(int){ 4096 }, sizeof(int));
    /* connect(2) chooses the port: there are more of them to one server */
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){ 1 },
               sizeof(int));
    cr_assert(bind(fd, (struct sockaddr *)&from, sizeof(from)) == 0);
    cr_assert(connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0, "%s",
              strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int));
}

/* A subscriber for whom there is no room is told to come back. */
static void expect_no_room(const struct server *server, const char *target)
{
    static struct block block;
    struct stream stream;
    long retry;

    stream_open(&stream, server, target, "");
    cr_assert(stream_next(&stream, &block));
    retry = atol(block.retry);
    cr_assert(retry >= 2000 && retry <= 10000, "%s: retry '%s'", target,
              block.retry);
    cr_assert_str_empty(block.id);
    stream_expect_end(&stream);
    client_await_end(&stream.client);
    stream_close(&stream);
}

/* ------------------------------------------------ connections of an address */

static void expect_refused(const struct server *server, const char *request,
                           int status, const char *text)
{
    struct response response;
    struct client client;

    client_connect(&client, server);
    client_send(&client, request);
    client_response(&client, &response, strncmp(request, "HEAD", 4) == 0);
    cr_assert(response.status == status, "%s: %d", request, response.status);
    cr_assert(!text || strstr(response.body, text), "%s", response.body);
    cr_assert(status != 429 || response_field(&response, "Retry-After"));
    client_await_end(&client);
    client_close(&client);
}

Test(limits, connections_of_an_address_have_their_answers)
{
    enum {
        ROOM = 3
    };
    static struct block block;
    struct stream streams[ROOM], other;
    struct server server;

    server_start(&server, "--max-per-address", "3");
    for (int i = 0; i < ROOM; i++) {
        stream_open(&streams[i], &server, "/events/t", "");
        cr_assert(stream_next(&streams[i], &block));
    }
    expect_no_room(&server, "/events/t");
    expect_no_room(&server, "/events");
    expect_refused(&server, "GET / HTTP/1.1\r\n" HOST "\r\n", 429,
                   "--max-per-address");
    expect_refused(&server,
                   "POST /events/t HTTP/1.1\r\n" HOST
                   "Content-Length: 1\r\n\r\nx",
                   429, "--max-per-address");
    /* what is answered ends the connection too */
    expect_refused(&server, "GET /healthz HTTP/1.1\r\n" HOST "\r\n", 200, "ok");
    expect_refused(&server, "HEAD /events/t HTTP/1.1\r\n" HOST "\r\n", 200,
                   NULL);
    expect_refused(&server, "OPTIONS /events/t HTTP/1.1\r\n" HOST "\r\n", 204,
                   NULL);
    connect_from(&other.client, &server, INADDR_LOOPBACK + 1);
    client_send(&other.client, "GET /events/t HTTP/1.1\r\n" HOST "\r\n");
    stream_begin(&other);
    cr_assert(stream_next(&other, &block) && block.id[0], "another address");
    stream_close(&streams[0]);
    server_await_log(&server, "event=unsubscribed");
    stream_open(&streams[0], &server, "/events/t", "");
    cr_assert(stream_next(&streams[0], &block) && block.id[0]);
    cr_assert(count_in_log(&server, "event=address_full") == 1);
    cr_assert(count_in_log(&server, "event=address_full peer=127.0.0.1:") == 1);
    for (int i = 0; i < ROOM; i++)
        stream_close(&streams[i]);
    stream_close(&other);
    server_stop(&server);
}

/* Those that say nothing hold few places, and the rest none. */
Test(limits, a_flood_from_an_address_is_reset_at_once)
{
    enum {
        ROOM = 5,
        SURPLUS = 8,
        FLOOD = 300
    };
    struct client clients[ROOM + SURPLUS], more, other;
    struct response response;
    struct server server;

    server_start(&server, "--max-per-address", "5", "--head-timeout", "60");
    for (int i = 0; i < ROOM + SURPLUS; i++)
        client_connect(&clients[i], &server);
    for (int i = 0; i < FLOOD; i++) {
        client_connect(&more, &server);
        client_await_end(&more);
        cr_assert(more.reset && more.length == 0);
        client_close(&more);
    }
    connect_from(&other, &server, INADDR_LOOPBACK + 1);
    client_send(&other, "GET / HTTP/1.1\r\n" HOST "\r\n");
    client_response(&other, &response, false);
    cr_assert(response.status == 200, "others are served");
    cr_assert(count_in_log(&server, "event=address_full") == 1);
    client_send(&clients[ROOM], "GET / HTTP/1.1\r\n" HOST "\r\n");
    client_response(&clients[ROOM], &response, false);
    cr_assert(response.status == 429);
    client_send(&clients[0], "GET / HTTP/1.1\r\n" HOST "\r\n");
    client_response(&clients[0], &response, false);
    cr_assert(response.status == 200, "it came in time");
    for (int i = 0; i < ROOM + SURPLUS; i++)
        client_close(&clients[i]);
    client_close(&other);
    server_stop(&server);
}

Test(limits, a_unix_socket_has_no_address)
{
    struct client clients[4];
    struct response response;
    struct server server;
    char path[64], option[80];

    snprintf(path, sizeof(path), "/tmp/ssed-limits-%d", getpid());
    snprintf(option, sizeof(option), "unix:%s", path);
    server_start(&server, "--max-per-address", "1", "--listen", option);
    for (int i = 0; i < 4; i++) {
        client_connect_unix(&clients[i], path);
        client_send(&clients[i], "GET / HTTP/1.1\r\n" HOST "\r\n");
        client_response(&clients[i], &response, false);
        cr_assert(response.status == 200);
    }
    for (int i = 0; i < 4; i++)
        client_close(&clients[i]);
    server_stop(&server);
}

/* --------------------------------------------------------------- topics */

Test(limits, topics_without_an_event_have_their_answers)
{
    static struct block block;
    struct stream a, b, c, main;
    struct response response;
    struct server server;

    server_start(&server, "--max-topics", "2");
    publish_to(&server, "/events/old", "1");
    for (int i = 0; i < 20; i++) { /* they leave nothing */
        char request[128];

        snprintf(request, sizeof(request),
                 "HEAD /events/head/%d HTTP/1.1\r\n" HOST "\r\n", i);
        ask(&server, request, &response);
        cr_assert(response.status == 200 &&
                  response_field(&response, "Last-Event-ID"));
    }
    stream_open(&a, &server, "/events/a", "");
    cr_assert(stream_next(&a, &block) && block.id[0]);
    expect_no_room(&server, "/events?topic=b&topic=c");
    stream_open(&b, &server, "/events?topic=b&topic=a", "");
    cr_assert(stream_next(&b, &block) && block.id[0]);
    expect_no_room(&server, "/events/c");
    expect_no_room(&server, "/events?topic=a&topic=c");
    cr_assert(count_in_log(&server, "event=topics_full without_event=2") == 1);
    cr_assert(count_in_log(&server, "event=topics_full") == 1);
    stream_open(&c, &server, "/events?topic=a&topic=old", "");
    cr_assert(stream_next(&c, &block) && block.id[0], "both are there");
    stream_close(&c);
    stream_open(&main, &server, "/events", "");
    stream_expect(&main, &block, "connected");
    publish_to(&server, "/events/c", "2");
    stream_open(&c, &server, "/events/c?last=1", "");
    cr_assert(stream_next(&c, &block) && stream_next(&c, &block));
    cr_assert_str_eq(block.data, "2");
    stream_close(&b);
    for (int64_t deadline = 0; count_in_log(&server, "event=unsubscribed") < 2;)
        await_tick(&deadline, "b and the first c to leave");
    stream_open(&b, &server, "/events/d", "");
    cr_assert(stream_next(&b, &block) && block.id[0], "b is gone");
    stream_close(&a);
    stream_close(&b);
    stream_close(&c);
    stream_close(&main);
    server_stop(&server);
}

/* Subscribers stay with topics whose events are evicted, so that there are more
 * of these than may be made; publishers have their topics still. */
Test(limits, publishers_are_not_kept_out_by_subscribers)
{
    enum {
        TOPICS = 40
    };
    static struct block block;
    struct stream streams[TOPICS];
    struct server server;
    char target[64];
    int refused = 0;

    server_start(&server, "--max-topics", "4", "--history", "8");
    for (int i = 0; i < TOPICS; i++) {
        snprintf(target, sizeof(target), "/events/t/%d", i);
        publish_to(&server, target, "x");
        stream_open(&streams[i], &server, target, "");
        cr_assert(stream_next(&streams[i], &block));
        refused += block.id[0] == '\0';
    }
    cr_assert(refused > 0 && refused < TOPICS, "%d", refused);
    for (int i = TOPICS; i < 2 * TOPICS; i++) {
        snprintf(target, sizeof(target), "/events/t/%d", i);
        publish_to(&server, target, "x");
    }
    for (int i = 0; i < TOPICS; i++)
        stream_close(&streams[i]);
    server_stop(&server);
}

/* Publishers that publish nothing are bounded as well. */
Test(limits, publishers_with_topics_without_an_event_are_refused)
{
    enum {
        TOPICS = 1 + 1 + 1024 /* --max-topics, --history, TOPICS_SPARE */
    };
    static struct client clients[TOPICS];
    struct response response;
    struct server server;
    struct rlimit limit;
    char target[64];

    cr_assert(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = limit.rlim_max;
    cr_assert(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_max < TOPICS + 200)
        cr_skip_test("ulimit -Hn is too low");
    server_start(&server, "--max-topics", "1", "--history", "1");
    for (int i = 0; i < TOPICS; i++) {
        snprintf(target, sizeof(target), "/events/t/%d", i);
        body_begin(&clients[i], &server, target);
    }
    for (int64_t deadline = 0;; await_tick(&deadline, "them to begin")) {
        post(&server, "/events/new", NULL, "x", &response);
        if (response.status == 503)
            break;
        cr_assert(response.status == 201);
    }
    cr_assert(strstr(response.body, "--max-topics"), "%s", response.body);
    cr_assert(response_field(&response, "Retry-After"));
    publish_to(&server, "/events/t/0", "x");
    publish(&server, "x");
    for (int i = 0; i < TOPICS; i++)
        client_close(&clients[i]);
    for (int64_t deadline = 0;; await_tick(&deadline, "them to end")) {
        post(&server, "/events/new", NULL, "x", &response);
        if (response.status == 201)
            break;
    }
    server_stop(&server);
}

/* --------------------------------------------------------------- memory */

enum {
    MAX_TOPICS = 2000,
    EACH = 16, /* topics of a subscriber */
    FILLED = MAX_TOPICS / EACH,
    STALLED = 40,
    TRICKLING = 100,
    CLIENTS = FILLED + 2 * STALLED + 2 * TRICKLING,
    ROUNDS = 3,
    MIB = 1024, /* KiB */
    /* what an attack takes for certain: --history-bytes, and nearly all of
     * --request-memory */
    TAKEN = 7 * MIB,
};

/* Of a process, in KiB. */
struct memory {
    long peak, resident, files;
};

static long read_status(const char *status, const char *name)
{
    const char *at = strstr(status, name);

    cr_assert(at, "no %s", name);
    return at ? atol(at + strlen(name)) : 0;
}

static struct memory memory_of(const struct server *server)
{
    char path[64], status[8192] = "";
    FILE *file;

    snprintf(path, sizeof(path), "/proc/%d/status", server->pid);
    file = fopen(path, "re");
    cr_assert(file && fread(status, 1, sizeof(status) - 1, file) > 0);
    fclose(file);
    return (struct memory){ read_status(status, "VmHWM:"),
                            read_status(status, "VmRSS:"),
                            read_status(status, "RssFile:") };
}

/* What it has taken at the most since `start`, without the pages of the program
 * and its libraries, which are read in as they are needed. */
static long taken_since(const struct server *server, const struct memory *start)
{
    struct memory now = memory_of(server);

    return now.peak - start->resident - (now.files - start->files);
}

/* A new name, as long as a topic's may be. */
static const char *new_name(void)
{
    static unsigned count;
    static char name[256];

    snprintf(name, sizeof(name), "%0255u", ++count);
    return name;
}

/* What they hold is held until the round is over. */
struct attack {
    struct server server;
    struct client clients[CLIENTS];
    unsigned count;
};

static struct client *attacker(struct attack *attack)
{
    struct client *client = &attack->clients[attack->count++];

    cr_assert(attack->count <= CLIENTS);
    connect_from(client, &attack->server, INADDR_LOOPBACK);
    return client;
}

/* Subscribes to new topics; whether there is room for them. */
static bool subscribe_to_new(struct client *client, const char *method,
                             unsigned count)
{
    char request[8192];
    int length = snprintf(request, sizeof(request), "%s /events?", method);
    bool accepted;

    for (unsigned i = 0; i < count; i++)
        length += snprintf(request + length, sizeof(request) - (size_t)length,
                           "topic=%s&", new_name());
    snprintf(request + length, sizeof(request) - (size_t)length,
             " HTTP/1.1\r\n" HOST "\r\n");
    client_send(client, request);
    while (!strstr(client->bytes, "\r\n\r\n"))
        client_await(client, client->length + 1);
    accepted = strstr(client->bytes, "Last-Event-ID: ");
    client_use(client, client->length);
    return accepted;
}

/* Comes and goes: with names of its own, with others in one topic. */
static void churn(struct attack *attack)
{
    enum {
        TIMES = 200,
        CROWD = 100
    };
    struct client crowd[CROWD], client;
    char request[512];

    for (int i = 0; i < TIMES; i++) {
        client_connect(&client, &attack->server);
        subscribe_to_new(&client, i % 2 ? "GET" : "HEAD",
                         1 + (unsigned)i % EACH);
        client_close(&client);
    }
    for (int round = 0; round < 3; round++) {
        snprintf(request, sizeof(request),
                 "GET /events/%s HTTP/1.1\r\n" HOST "\r\n", new_name());
        for (int i = 0; i < CROWD; i++) {
            client_connect(&crowd[i], &attack->server);
            client_send(&crowd[i], request);
            client_await(&crowd[i], 1);
        }
        for (int i = 0; i < CROWD; i++)
            client_close(&crowd[i]);
    }
}

/* Takes all topics that subscribers may have; those of the round before may be
 * there for a moment. */
static void fill(struct attack *attack)
{
    struct client more;

    for (int i = 0; i < FILLED; i++) {
        struct client *client = attacker(attack);

        for (int64_t deadline = 0; !subscribe_to_new(client, "GET", EACH);) {
            client_close(client);
            await_tick(&deadline, "room for a topic");
            connect_from(client, &attack->server, INADDR_LOOPBACK);
        }
    }
    client_connect(&more, &attack->server);
    cr_assert(!subscribe_to_new(&more, "GET", 1), "none is left");
    client_close(&more);
}

/* Each event is a new topic's, and they are more than the history holds. */
static void publish_to_new(struct attack *attack)
{
    enum {
        PUBLISHED = 700,
        SIZE = 8000
    };
    static char body[SIZE + 1];
    char target[300];

    memset(body, 'x', SIZE);
    for (int i = 0; i < PUBLISHED; i++) {
        snprintf(target, sizeof(target), "/events/%s", new_name());
        publish_to(&attack->server, target, body);
    }
}

/* Subscribers that read nothing, behind answers that fill their sockets: files,
 * or as many short ones as leave a little room for some of them. */
static void stall(struct attack *attack)
{
    for (int i = 0; i < STALLED; i++) {
        struct client *client = attacker(attack);

        for (int k = 0; k < 6; k++)
            client_send(client, "GET /chat.js HTTP/1.1\r\n" HOST "\r\n");
        client = attacker(attack);
        for (int k = 0; k < 160 + i * 4; k++)
            client_send(client, "OPTIONS /events HTTP/1.1\r\n" HOST "\r\n");
        client_send(client, "GET /events HTTP/1.1\r\n" HOST "\r\n");
    }
}

/* Bodies that stop before they are whole: as much as there is memory for. */
static void trickle(struct attack *attack)
{
    enum {
        SIZE = 16000
    };
    static char body[SIZE];

    memset(body, 'x', SIZE);
    for (int i = 0; i < TRICKLING; i++) {
        struct client *client = attacker(attack);

        client_send(client, "POST /events/t HTTP/1.1\r\n" HOST
                            "Content-Length: 16001\r\n\r\n");
        client_send_bytes(client, body, SIZE);
        client = attacker(attack);
        client_send(client, "POST /events/t HTTP/1.1\r\n" HOST
                            "Content-Type: " EVENTS "\r\n"
                            "Transfer-Encoding: chunked\r\n\r\n"
                            "fffffff\r\ndata: ");
        client_send_bytes(client, body, SIZE);
    }
}

static void attack_round(struct attack *attack)
{
    attack->count = 0;
    churn(attack);
    publish_to_new(attack);
    fill(attack);
    stall(attack);
    publish_to_new(attack);
    trickle(attack);
}

static void attack_end(struct attack *attack)
{
    struct response response;
    struct client client;

    while (attack->count)
        client_close(&attack->clients[--attack->count]);
    client_connect(&client, &attack->server);
    client_send(&client, "GET /healthz HTTP/1.1\r\n" HOST "\r\n");
    cr_assert(client_receive(&client, patience() / 4), "it answers at once");
    client_response(&client, &response, false);
    cr_assert(response.status == 200);
    client_close(&client);
}

/* In KiB. */
static long promised_sum(const struct server *server)
{
    char *log = server_log(server);
    const char *at = strstr(log, " sum=");
    long sum = at ? atol(at + 5) * MIB : 0;

    cr_assert(sum > 0, "%s", log);
    free(log);
    return sum;
}

/*
 * More is attempted than there may be of anything, and nothing of it stays: the
 * next round finds room for just as many topics, and takes no more memory, but
 * for what gaps cost. The promise is no more than some times of what is taken,
 * or it would say nothing.
 */
Test(limits, memory_stays_below_what_was_promised)
{
    static struct attack attack;
    struct server *server = &attack.server;
    struct memory start;
    long sum, peaks[ROUNDS];

#ifdef __SANITIZE_ADDRESS__
    cr_skip_test("the memory of a build with ASan is another");
#endif
    if (getenv("SSED_UNDER") || getenv("SSED_PRELOAD"))
        cr_skip_test("what the server runs under has memory of its own");
    server_start(server, "--max-connections", "500", "--max-per-address", "500",
                 "--history", "500", "--history-bytes", "2M", "--max-event",
                 "16K", "--request-memory", "6M", "--max-topics", "2000",
                 "--head-timeout", "60");
    start = memory_of(server);
    sum = promised_sum(server);
    cr_assert(sum <= 4 * TAKEN, "%ld KiB are promised", sum);
    for (int round = 0; round < ROUNDS; round++) {
        attack_round(&attack);
        for (int64_t deadline = 0; taken_since(server, &start) < TAKEN;)
            await_tick(&deadline, "the memory to be taken");
        attack_end(&attack);
        peaks[round] = taken_since(server, &start);
        cr_assert(peaks[round] <= sum, "%ld KiB, but promised %ld",
                  peaks[round], sum);
    }
    cr_assert(peaks[ROUNDS - 1] <= peaks[0] * 3 / 2, "%ld KiB, then %ld",
              peaks[0], peaks[ROUNDS - 1]);
    server_stop(server);
}
