/*
 * The history file from outside: what comes back after an end, a kill and a
 * crash of the machine, what is refused, disks that are full or fail; and the
 * crash loop: publishers and subscribers at full speed while the server is
 * killed again and again, CRASH_ROUNDS times (8).
 */
#include "harness.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[] = "/tmp/test_restart.XXXXXX";
static char path[64], flag[64];

static void setup(void)
{
    strcpy(folder, "/tmp/test_restart.XXXXXX");
    cr_assert(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/log", folder);
    snprintf(flag, sizeof(flag), "%s/flag", folder);
}

static void teardown(void)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf %s", folder);
    cr_assert(system(command) == 0);
}

TestSuite(restart, .init = setup, .fini = teardown, .timeout = 600);

static void server_kill(struct server *server)
{
    kill(server->pid, SIGKILL);
    cr_assert(server_wait(server) == -SIGKILL);
    close(server->log);
}

static void touch(const char *name)
{
    close(open(name, O_CREAT | O_WRONLY, 0600));
}

static const char *position(uint64_t id)
{
    static char field[64];

    snprintf(field, sizeof(field), "Last-Event-ID: %llu\r\n",
             (unsigned long long)id);
    return field;
}

static const char *number(uint64_t id)
{
    static char text[4][32];
    static unsigned at;

    snprintf(text[++at % 4], sizeof(text[0]), "%llu", (unsigned long long)id);
    return text[at % 4];
}

/* The first block has no position; the gap, which follows, has. */
static void expect_gap(struct stream *stream, const char *id)
{
    struct block block;

    cr_assert(stream_next(stream, &block) && !*block.id);
    cr_assert(stream_next(stream, &block));
    cr_assert_str_eq(block.event, "ssed.gap");
    cr_assert_str_eq(block.id, id);
}

/* What there is after a kill, and after a good end, is the same. */
Test(restart, ids_and_events_go_on)
{
    static const char topic[] = "/events/chat/1";
    struct server server;
    uint64_t first, second, third;

    server_start(&server, "--history-file", path);
    first = publish_to(&server, topic, "one");
    server_kill(&server);
    server_start(&server, "--history-file", path);
    server_await_log(&server, "event=history");
    second = publish_to(&server, topic, "two\nlines");
    cr_assert(second == first + 1);
    server_stop(&server);
    server_start(&server, "--history-file", path, "--history-bytes", "1M");
    server_await_log(&server, "events=2");
    third = publish_to(&server, topic, "three");
    cr_assert(third == second + 1);
    for (uint64_t from = first - 1; from <= third; from++) {
        struct stream stream;
        struct block block;

        stream_open(&stream, &server, topic, position(from));
        stream_expect_event(&stream, number(from), NULL, NULL);
        if (from < first)
            stream_expect_event(&stream, number(first), NULL, "one");
        if (from < second)
            stream_expect_event(&stream, number(second), NULL, "two\nlines");
        if (from < third)
            stream_expect_event(&stream, number(third), NULL, "three");
        cr_assert(!stream_take(&stream, &block));
        stream_close(&stream);
    }
    server_stop(&server);
}

Test(restart, the_main_stream_catches_up_without_a_gap)
{
    struct server server;
    struct stream stream;
    struct block block;
    uint64_t first;

    server_start(&server, "--history-file", path);
    first = publish(&server, "before");
    publish(&server, "while away");
    server_kill(&server);
    server_start(&server, "--history-file", path);
    publish(&server, "in the next life");
    stream_open(&stream, &server, "/events", position(first));
    stream_expect(&stream, &block, "connected");
    stream_expect(&stream, &block, "catch_up_start");
    stream_expect_message(&stream, "catch_up_message", first + 1, "while away");
    stream_expect_message(&stream, "catch_up_message", first + 2,
                          "in the next life");
    stream_expect(&stream, &block, "catch_up_end");
    stream_close(&stream);
    server_stop(&server);
}

Test(restart, a_finished_topic_stays_finished)
{
    struct server server;
    struct response response;

    server_start(&server, "--history-file", path);
    publish_to(&server, "/events/job?end=1", "done");
    server_kill(&server);
    server_start(&server, "--history-file", path);
    ask(&server, "GET /events/job HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &response);
    cr_assert(response.status == 204);
    server_stop(&server);
}

Test(restart, a_quiet_topic_is_told_of_no_gap)
{
    struct server server;
    struct stream stream;
    uint64_t quiet, newest = 0;

    server_start(&server, "--history-file", path, "--history", "10");
    quiet = publish_to(&server, "/events/quiet", "one");
    for (int i = 0; i < 5; i++)
        newest = publish_to(&server, "/events/busy", "x");
    server_kill(&server);
    server_start(&server, "--history-file", path, "--history", "10");
    stream_open(&stream, &server, "/events/quiet", position(quiet));
    stream_expect_event(&stream, number(quiet), NULL, NULL);
    stream_close(&stream);
    for (int i = 0; i < 30; i++)
        newest = publish_to(&server, "/events/busy", "x");
    server_kill(&server);
    server_start(&server, "--history-file", path, "--history", "10");
    stream_open(&stream, &server, "/events/quiet", position(newest));
    stream_expect_event(&stream, number(newest), NULL, NULL);
    stream_close(&stream);
    stream_open(&stream, &server, "/events/busy", position(quiet));
    expect_gap(&stream, number(newest - 10));
    stream_close(&stream);
    server_stop(&server);
}

Test(restart, after_a_crash_of_the_machine_all_are_told)
{
    struct server server;
    struct stream stream;
    uint64_t last, next;

    server_start(&server, "--history-file", path, "--sync", "none");
    last = publish_to(&server, "/events/job", "one");
    server_stop(&server);
    run_in_another_boot(path, false);
    server_start(&server, "--history-file", path, "--sync", "none");
    server_await_log(&server, "crashed=1");
    next = publish_to(&server, "/events/job", "two");
    cr_assert(next > last + 1);
    stream_open(&stream, &server, "/events/job", position(last));
    expect_gap(&stream, number(next - 1));
    stream_expect_event(&stream, number(next), NULL, "two");
    stream_close(&stream);
    stream_open(&stream, &server, "/events/job", position(last - 1));
    expect_gap(&stream, number(last - 1));
    stream_expect_event(&stream, number(last), NULL, "one");
    stream_expect_event(&stream, number(next), NULL, "two");
    stream_close(&stream);
    stream_open(&stream, &server, "/events/job", position(next));
    stream_expect_event(&stream, number(next), NULL, NULL);
    stream_close(&stream);
    server_stop(&server);
}

Test(restart, after_a_crash_kept_ids_go_on_where_the_feeder_does)
{
    struct server server;
    struct stream stream;
    struct response response;

    server_start(&server, "--history-file", path, "--ids", "keep");
    post(&server, "/events/job?id=5", NULL, "five", &response);
    cr_assert(response.status == 201);
    server_stop(&server);
    run_in_another_boot(path, true);
    server_start(&server, "--history-file", path, "--ids", "keep");
    stream_open(&stream, &server, "/events/job", position(5));
    stream_expect_event(&stream, "5", NULL, NULL);
    post(&server, "/events/job?id=9", NULL, "nine", &response);
    cr_assert(response.status == 201);
    client_await_end(&stream.client);
    stream_close(&stream);
    stream_open(&stream, &server, "/events/job", position(5));
    expect_gap(&stream, "8");
    stream_expect_event(&stream, "9", NULL, "nine");
    stream_close(&stream);
    server_stop(&server);
}

/* ------------------------------------------------------------ refusals */

static void refused(const char *const options[], const char *why)
{
    char out[4096], err[4096];

    cr_assert(run_to_end(options, out, err) == 1, "%s", err);
    cr_assert(strstr(err, why), "no '%s' in: %s", why, err);
    cr_assert(strchr(err, '\n') == err + strlen(err) - 1, "%s", err);
}

Test(restart, refuses_what_is_not_its_own)
{
    const char *options[] = { "--history-file", path, "--port", "0", NULL };
    struct server server;
    char pid[64];

    server_start(&server, "--history-file", path);
    snprintf(pid, sizeof(pid), "its process is %d", server.pid);
    refused(options, pid);
    server_stop(&server);
    refused((const char *[]){ "--history-file", path, "--ids", "keep", "--port",
                              "0", NULL },
            "leave out --ids keep");
    cr_assert(truncate(path, 5000) == 0);
    refused(options, "5000 bytes");
    refused((const char *[]){ "--check", path, NULL }, "5000 bytes");
    cr_assert(truncate(path, 5) == 0);
    refused(options, "no history file");
    options[1] = folder;
    refused(options, "cannot open");
}

Test(restart, check_says_what_is_in_it)
{
    char out[4096], err[4096];
    struct server server;

    server_start(&server, "--history-file", path, "--first-id", "7");
    publish_to(&server, "/events/a", "one");
    publish_to(&server, "/events/b", "two");
    publish_to(&server, "/events/a?end=1", "three");
    server_stop(&server);
    cr_assert(run_to_end((const char *[]){ "--check", path, NULL }, out, err) ==
              0);
    cr_assert(strstr(out, "ids       7 to 10\n"), "%s", out);
    cr_assert(strstr(out, "dropped   0 "), "%s", out);
    cr_assert(strstr(out, "a: 3 events, the newest 10, finished\n"), "%s", out);
    cr_assert(strstr(out, "b: 1 events, the newest 8\n"), "%s", out);
    cr_assert_str_empty(err);
}

Test(restart, a_deleted_file_is_said)
{
    struct server server;

    server_start(&server, "--history-file", path);
    server.errors_expected = true;
    unlink(path);
    publish(&server, "one");
    server_await_log(&server, "event=history_file_deleted");
    publish(&server, "two");
    server_stop(&server);
}

/* A disk of one megabyte, if this may be mounted here. */
static bool mount_small(void)
{
    return mount("none", folder, "tmpfs", 0, "size=1m") == 0;
}

Test(restart, a_full_disk_is_an_error_at_the_start_and_none_later)
{
    static char filler[1 << 20];
    struct server server;
    int fd;

    if (!mount_small())
        cr_skip("no tmpfs may be mounted here");
    refused((const char *[]){ "--history-file", path, "--port", "0", NULL },
            "no room for");
    cr_assert(access(path, F_OK) < 0);
    server_start(&server, "--history-file", path, "--history-bytes", "400K",
                 "--max-event", "1K");
    fd = open(flag, O_CREAT | O_WRONLY, 0600);
    while (write(fd, filler, sizeof(filler)) > 0)
        ;
    cr_assert(errno == ENOSPC);
    for (int i = 0; i < 1200; i++)
        publish(&server, "a text that is long enough to go round");
    server_stop(&server);
    close(fd);
    cr_assert(umount(folder) == 0);
}

/* ---------------------------------------------------------------- syncing */

static void start_with_a_bad_disk(struct server *server, const char *sync)
{
    setenv("SSED_PRELOAD", getenv("FAIL_SYNC"), 1);
    setenv("FAIL_SYNC_WHILE", flag, 1);
    server_start(server, "--history-file", path, "--sync", sync);
    server->errors_expected = true;
}

/* It stays so, though the disk says that it is well again. */
Test(restart, what_cannot_be_synced_is_not_acknowledged)
{
    struct server server;
    struct response response;
    struct client client;

    start_with_a_bad_disk(&server, "always");
    publish(&server, "one");
    touch(flag);
    client_connect(&client, &server);
    client_send(&client, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
                         "POST /events HTTP/1.1\r\nHost: localhost\r\n"
                         "Content-Length: 1\r\n\r\na"
                         "POST /events HTTP/1.1\r\nHost: localhost\r\n"
                         "Content-Length: 1\r\n\r\nb");
    client_response(&client, &response, false);
    cr_assert(response.status == 200);
    client_response(&client, &response, false);
    cr_assert(response.status == 503);
    cr_assert(strstr(response.body, "history file cannot be written"));
    client_await_end(&client);
    client_close(&client);
    unlink(flag);
    post(&server, "/events/job", NULL, "two", &response);
    cr_assert(response.status == 503);
    post(&server, "/events/job", "text/event-stream", "data: x\n\n", &response);
    cr_assert(response.status == 503);
    server_await_log(&server, "event=sync_failed");
    server_stop(&server);
}

Test(restart, a_failed_sync_is_logged)
{
    struct server server;

    start_with_a_bad_disk(&server, "1");
    touch(flag);
    publish(&server, "one");
    server_await_log(&server, "event=sync_failed");
    publish(&server, "two");
    server_stop(&server);
}

/* ------------------------------------------------------------- crash loop */

enum {
    PUBLISHERS = 4, /* the last one streams */
    READERS = 5,    /* the last one reads all topics */
    EVENTS_MAX = 100000,
    PER_ROUND = 400,
};

/* Shared with the processes of a round. */
static struct loop {
    struct publisher {
        uint64_t sent;                     /* events are numbered from 1 on */
        uint64_t acknowledged[EVENTS_MAX]; /* their ids; 0: not */
    } publishers[PUBLISHERS];
    struct reader_state {
        char last[32];
        uint64_t last_id;
        uint64_t number[PUBLISHERS]; /* of the newest event of each */
        uint64_t ids[PUBLISHERS][EVENTS_MAX];
        char wrong[256];
    } readers[READERS];
} * loop;

static int try_connect(const struct server *server)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)server->port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        _exit(0);
    return fd;
}

static void try_send(int fd, const char *bytes, size_t length)
{
    if (send(fd, bytes, length, MSG_NOSIGNAL) != (ssize_t)length)
        _exit(0);
}

/* Publishes one after the other, until the server is gone. */
static _Noreturn void run_publisher(const struct server *server, int k)
{
    struct publisher *publisher = &loop->publishers[k];
    int fd = try_connect(server);

    for (int i = 0; i < PER_ROUND; i++) {
        char request[256], body[64], answer[1024];
        uint64_t n = ++publisher->sent;
        int length = sprintf(body, "%d/%llu", k, (unsigned long long)n);
        const char *id;
        size_t got = 0;

        length = sprintf(request,
                         "POST /events/t%d HTTP/1.1\r\nHost: localhost\r\n"
                         "Content-Length: %d\r\n\r\n%s",
                         k, length, body);
        try_send(fd, request, (size_t)length);
        do {
            ssize_t part = recv(fd, answer + got, sizeof(answer) - 1 - got, 0);

            if (part <= 0)
                _exit(0);
            got += (size_t)part;
            answer[got] = '\0';
        } while (!strstr(answer, "}\n"));
        id = strstr(answer, "{\"id\":\"");
        if (!strstr(answer, " 201 ") || !id)
            _exit(1);
        publisher->acknowledged[n] = strtoull(id + 7, NULL, 10);
    }
    pause();
    _exit(0);
}

static _Noreturn void run_streamer(const struct server *server, int k)
{
    struct publisher *publisher = &loop->publishers[k];
    int fd = try_connect(server), length;
    char bytes[256];

    length = sprintf(bytes,
                     "POST /events/t%d HTTP/1.1\r\nHost: localhost\r\n"
                     "Content-Type: text/event-stream\r\n"
                     "Transfer-Encoding: chunked\r\n\r\n",
                     k);
    try_send(fd, bytes, (size_t)length);
    for (int i = 0; i < PER_ROUND; i++) {
        char event[64];

        length = sprintf(event, "data: %d/%llu\n\n", k,
                         (unsigned long long)++publisher->sent);
        length = sprintf(bytes, "%x\r\n%s\r\n", length, event);
        try_send(fd, bytes, (size_t)length);
    }
    pause();
    _exit(0);
}

/* A block that is whole: what it says is where the reader is. */
static void read_block(struct reader_state *reader, char *block)
{
    char *id = strstr(block, "id: "), *data = strstr(block, "data: ");
    uint64_t n;
    int k;

    if (strstr(block, "event: ssed.gap"))
        snprintf(reader->wrong, sizeof(reader->wrong), "a gap: %.200s", block);
    if (id)
        snprintf(reader->last, sizeof(reader->last), "%.*s",
                 (int)strcspn(id + 4, "\n"), id + 4);
    if (!data)
        return;
    k = data[6] - '0';
    n = strtoull(data + 8, NULL, 10);
    if (k < 0 || k >= PUBLISHERS || n <= reader->number[k] ||
        n > loop->publishers[k].sent ||
        strtoull(reader->last, NULL, 10) <= reader->last_id) {
        snprintf(reader->wrong, sizeof(reader->wrong), "after %llu: %.200s",
                 (unsigned long long)reader->number[k < 0 ? 0 : k % PUBLISHERS],
                 block);
        return;
    }
    reader->last_id = strtoull(reader->last, NULL, 10);
    reader->number[k] = n;
    reader->ids[k][n] = reader->last_id;
}

/* Reads in HTTP/1.0, so without chunks, until the server is gone. */
static _Noreturn void run_reader(const struct server *server, int k)
{
    struct reader_state *reader = &loop->readers[k];
    char request[512], bytes[65536];
    size_t length = 0;
    bool head = true;
    int fd = try_connect(server), size;
    ssize_t n;

    size = k < PUBLISHERS
               ? sprintf(request, "GET /events/t%d HTTP/1.0\r\n", k)
               : sprintf(request, "GET /events?topic=t0&topic=t1&topic=t2&"
                                  "topic=t3 HTTP/1.0\r\n");
    size += sprintf(request + size, "Last-Event-ID: %s\r\n\r\n",
                    *reader->last ? reader->last : "earliest");
    try_send(fd, request, (size_t)size);
    while ((n = recv(fd, bytes + length, sizeof(bytes) - 1 - length, 0)) > 0) {
        char *at = bytes, *end;

        length += (size_t)n;
        bytes[length] = '\0';
        while ((end = strstr(at, head ? "\r\n\r\n" : "\n\n")) != NULL) {
            *end = '\0';
            if (!head)
                read_block(reader, at);
            at = end + (head ? 4 : 2);
            head = false;
        }
        length -= (size_t)(at - bytes);
        memmove(bytes, at, length + 1);
    }
    _exit(0);
}

static _Noreturn void run_nothing(const struct server *server, int k)
{
    (void)server;
    (void)k;
    pause();
    _exit(0);
}

static pid_t in_process(void (*run)(const struct server *, int),
                        const struct server *server, int k)
{
    pid_t pid = fork();

    cr_assert(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run(server, k);
    }
    return pid;
}

/* Everybody has had the newest acknowledged event of each of its topics. */
static bool all_read(void)
{
    for (int k = 0; k < READERS; k++)
        for (int p = 0; p < PUBLISHERS; p++) {
            const struct publisher *publisher = &loop->publishers[p];
            uint64_t n = publisher->sent;

            while (n && !publisher->acknowledged[n])
                n--;
            if ((k == p || k == PUBLISHERS) &&
                __atomic_load_n(&loop->readers[k].number[p], __ATOMIC_SEQ_CST) <
                    n)
                return false;
        }
    return true;
}

static void end_processes(pid_t *pids, int count)
{
    for (int i = 0; i < count; i++) {
        int status;

        if (i < PUBLISHERS)
            kill(pids[i], SIGTERM);
        cr_assert(waitpid(pids[i], &status, 0) == pids[i]);
        cr_assert((WIFEXITED(status) && WEXITSTATUS(status) == 0) ||
                      (WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM),
                  "process %d: %x", i, status);
    }
}

static void milliseconds(unsigned count)
{
    poll(NULL, 0, (int)count);
}

/* One more of each, which is acknowledged: who has it has had all. */
static void publish_last(const struct server *server, int p)
{
    uint64_t n = ++loop->publishers[p].sent;
    char target[32], text[32];

    snprintf(target, sizeof(target), "/events/t%d", p);
    snprintf(text, sizeof(text), "%d/%llu", p, (unsigned long long)n);
    loop->publishers[p].acknowledged[n] = publish_to(server, target, text);
}

static void crash_round(bool last)
{
    struct server server;
    pid_t pids[PUBLISHERS + READERS];
    int count = 0;

    server_start(&server, "--history-file", path, "--history", "131072",
                 "--history-bytes", "64M", "--sync", "none");
    for (int k = 0; k < PUBLISHERS; k++)
        pids[count++] = in_process(last                 ? run_nothing
                                   : k < PUBLISHERS - 1 ? run_publisher
                                                        : run_streamer,
                                   &server, k);
    for (int k = 0; k < READERS; k++)
        pids[count++] = in_process(run_reader, &server, k);
    for (int p = 0; last && p < PUBLISHERS; p++)
        publish_last(&server, p);
    if (!last)
        milliseconds(1 + (unsigned)random() % 40);
    for (int i = 0; last && !all_read(); i++) {
        cr_assert(i < patience() / 10, "not everybody has everything");
        milliseconds(10);
    }
    server_kill(&server);
    end_processes(pids, count);
}

/* Each acknowledged event with its id, each reader each once, with no gap;
 * of the one that streams, a run from each round's first on. */
static void check_books(void)
{
    for (int k = 0; k < READERS; k++) {
        const struct reader_state *reader = &loop->readers[k];

        cr_assert_str_empty(reader->wrong, "reader %d: %s", k, reader->wrong);
        for (int p = 0; p < PUBLISHERS; p++) {
            const struct publisher *publisher = &loop->publishers[p];

            for (uint64_t n = 1; n <= publisher->sent; n++)
                if ((k == p || k == PUBLISHERS) && publisher->acknowledged[n])
                    cr_assert(reader->ids[p][n] == publisher->acknowledged[n],
                              "reader %d, event %d/%llu: %llu, not %llu", k, p,
                              (unsigned long long)n,
                              (unsigned long long)reader->ids[p][n],
                              (unsigned long long)publisher->acknowledged[n]);
        }
    }
    for (int p = 0; p < PUBLISHERS; p++)
        for (uint64_t n = 1; n <= loop->publishers[p].sent; n++)
            cr_assert(loop->readers[p].ids[p][n] ==
                      loop->readers[PUBLISHERS].ids[p][n]);
}

Test(restart, crash_loop)
{
    const char *wanted = getenv("CRASH_ROUNDS");
    int rounds = wanted ? atoi(wanted) : 8;
    uint64_t events = 0;

    loop = mmap(NULL, sizeof(*loop), PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert(loop != MAP_FAILED);
    for (int i = 0; i < rounds; i++)
        crash_round(false);
    crash_round(true);
    check_books();
    for (int p = 0; p < PUBLISHERS; p++)
        events += loop->publishers[p].sent;
    cr_assert(events > (uint64_t)rounds * 20);
    if (wanted)
        printf("%d rounds, %llu events\n", rounds, (unsigned long long)events);
}
