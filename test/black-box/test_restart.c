/*
 * The history file from outside: what comes back after an end, a kill and a
 * crash of the machine, what is refused, disks that are full or fail; and the
 * crash loop: publishers and subscribers at full speed while the server is
 * killed again and again, CRASH_ROUNDS times (50).
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
#include <sys/un.h>
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

/* The first block has no position; the gap, which follows, has. From the id
 * `oldest` on nothing is missing; NULL: nothing is held behind the gap. */
static void expect_gap(struct stream *stream, const char *id,
                       const char *oldest)
{
    struct block block;
    char value[32];
    bool any;

    cr_assert(stream_next(stream, &block) && !*block.id);
    cr_assert(stream_next(stream, &block));
    cr_assert_str_eq(block.event, "ssed.gap");
    cr_assert_str_eq(block.id, id);
    any = json_string(block.data, "oldest", value, sizeof(value));
    cr_assert(any == (oldest != NULL), "%s", block.data);
    cr_assert(!any || strcmp(value, oldest) == 0, "%s", block.data);
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
    char oldest[32];

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
    snprintf(oldest, sizeof(oldest), "%llu", (unsigned long long)newest - 9);
    expect_gap(&stream, number(newest - 10), oldest);
    stream_close(&stream);
    server_stop(&server);
}

Test(restart, after_a_crash_of_the_machine_all_are_told)
{
    struct server server;
    struct stream stream;
    uint64_t last, next;
    char oldest[32];

    server_start(&server, "--history-file", path, "--sync", "none",
                 "--first-id", "1");
    last = publish_to(&server, "/events/job", "one");
    server_stop(&server);
    run_in_another_boot(path, false);
    server_start(&server, "--history-file", path, "--sync", "none");
    server_await_log(&server, "crashed=1");
    next = publish_to(&server, "/events/job", "two");
    cr_assert(next > 1000000000000000, "not the clock");
    stream_open(&stream, &server, "/events/job", position(last));
    snprintf(oldest, sizeof(oldest), "%llu", (unsigned long long)next);
    expect_gap(&stream, number(next - 1), oldest);
    stream_expect_event(&stream, number(next), NULL, "two");
    stream_close(&stream);
    stream_open(&stream, &server, "/events/job", position(last - 1));
    expect_gap(&stream, number(last - 1), oldest);
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
    expect_gap(&stream, "8", "9");
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

#define LOST_MEANING "it was truncated while in use, or its disk failed"

/* The last line of its log says so; a line is whole. */
static void expect_lost(const char *log)
{
    char line[256];

    snprintf(line, sizeof(line),
             "level=error event=history_file_lost file=\"%s\" "
             "meaning=\"" LOST_MEANING "\"\n",
             path);
    cr_assert(strlen(log) >= strlen(line));
    cr_assert_str_eq(log + strlen(log) - strlen(line), line);
    cr_assert(!strstr(log, "Sanitizer"), "%s", log);
}

/* Nothing that would be acknowledged would be kept. */
Test(restart, a_file_truncated_while_in_use_ends_it)
{
    const char *options[] = { "--history-file", path, "--port", "0", NULL };
    static const off_t sizes[] = { 0, 4096 };

    for (int i = 0; i < 2; i++) {
        struct server server;
        struct client client;
        struct stat status;
        char *log;

        server_start(&server, "--history-file", path);
        publish(&server, "one");
        cr_assert(truncate(path, sizes[i]) == 0);
        client_connect(&client, &server);
        client_send(&client, "POST /events HTTP/1.1\r\nHost: localhost\r\n"
                             "Content-Length: 1\r\n\r\na");
        cr_assert(server_wait(&server) == 1);
        log = server_log(&server);
        expect_lost(log);
        free(log);
        client_close(&client);
        close(server.log);
        refused(options, sizes[i] ? "4096 bytes" : "no history file");
        cr_assert(stat(path, &status) == 0 && status.st_size == sizes[i]);
        unlink(path);
    }
}

/* A file of its own that is cut once it is mapped. */
static void prepare_to_cut(void)
{
    const char *library = getenv("CUT_FILE");
    struct server server;

    if (!library) {
        cr_assert_fail("CUT_FILE: make test sets it");
        return;
    }
    server_start(&server, "--history-file", path);
    publish(&server, "one");
    server_stop(&server);
    setenv("SSED_PRELOAD", library, 1);
    setenv("CUT_WHEN_MAPPED", path, 1);
}

Test(restart, a_file_truncated_at_the_start_ends_it)
{
    char out[4096], err[4096];

    prepare_to_cut();
    cr_assert(run_to_end((const char *[]){ "--history-file", path, "--port",
                                           "0", NULL },
                         out, err) == 1,
              "%s", err);
    expect_lost(err);
}

Test(restart, a_file_truncated_while_it_is_looked_at_is_said)
{
    char out[4096], err[4096], expected[256];

    prepare_to_cut();
    cr_assert(run_to_end((const char *[]){ "--check", path, NULL }, out, err) ==
                  1,
              "%s", err);
    snprintf(expected, sizeof(expected),
             "ssed: --check: '%s' is lost: " LOST_MEANING "\n", path);
    cr_assert_str_eq(err, expected);
}

Test(restart, a_bus_error_of_another_cause_ends_it_as_ever)
{
    struct server server;
    char *log;

    server_start(&server, "--history-file", path);
    kill(server.pid, SIGBUS);
    cr_assert(server_wait(&server) == -SIGBUS);
    log = server_log(&server);
    cr_assert(!strstr(log, "history_file_lost"), "%s", log);
    free(log);
    close(server.log);
}

Test(restart, refuses_what_others_can_write)
{
    const char *options[] = { "--history-file", path, "--port", "0", NULL };
    char out[4096], err[4096], link_path[80];
    struct server server;

    server_start(&server, "--history-file", path);
    server_stop(&server);
    cr_assert(chmod(path, 0660) == 0);
    refused(options, "chmod 600 it");
    cr_assert(run_to_end((const char *[]){ "--check", path, NULL }, out, err) ==
              0);
    cr_assert(chmod(path, 0600) == 0);
    snprintf(link_path, sizeof(link_path), "%s/link", folder);
    cr_assert(symlink(path, link_path) == 0);
    options[1] = link_path;
    server_start(&server, "--history-file", link_path);
    options[1] = path;
    refused(options, "another ssed has");
    server_stop(&server);
    unlink(path);
    options[1] = link_path;
    refused(options, "a symbolic link to a file that does not exist");
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
    server_start(&server, "--history-file", path, "--history", "1000",
                 "--history-bytes", "100K", "--max-event", "1K");
    fd = open(flag, O_CREAT | O_WRONLY, 0600);
    while (write(fd, filler, sizeof(filler)) > 0)
        ;
    cr_assert(errno == ENOSPC);
    for (int i = 0; i < 1200; i++)
        publish(&server, "a text that is long enough to go round");
    server_stop(&server);
    close(fd);
    cr_assert(mount("none", folder, NULL, MS_REMOUNT | MS_RDONLY, NULL) == 0);
    refused((const char *[]){ "--history-file", path, "--port", "0", NULL },
            "Read-only file system");
    cr_assert(umount(folder) == 0);
}

/* ---------------------------------------------------------------- syncing */

static void start_with_a_bad_disk(struct server *server, const char *sync)
{
    stand_in("FAIL_SYNC", "FAIL_SYNC_WHILE", flag);
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

/* A stream that follows on the same connection does not carry it off. */
Test(restart, what_cannot_be_synced_is_not_acknowledged_before_a_stream)
{
    struct server server;
    struct response response;
    struct client client;

    start_with_a_bad_disk(&server, "always");
    touch(flag);
    client_connect(&client, &server);
    client_send(&client, "POST /events HTTP/1.1\r\nHost: localhost\r\n"
                         "Content-Length: 1\r\n\r\na"
                         "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client_response(&client, &response, false);
    cr_assert(response.status == 503);
    client_await_end(&client);
    client_close(&client);
    unlink(flag);
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
    EVENTS_MAX = 1000000,
    PER_ROUND = 400,
};

/* Shared with the processes of a round. */
static struct loop {
    bool handed_over; /* the socket stays: they come again, never refused */
    bool enough;      /* no more is to be published */
    bool over;        /* and everybody has had it */
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

static void milliseconds(unsigned count)
{
    poll(NULL, 0, (int)count);
}

/* The log must not be written over a file that got its descriptor. */
Test(restart, a_closed_stderr_spoils_nothing)
{
    char out[4096], err[4096], socket_path[128];
    const char *ssed = getenv("SSED");
    const char *sandbox = getenv("SSED_OPTIONS") ? "off" : "on";
    int status;
    pid_t pid;

    snprintf(socket_path, sizeof(socket_path), "unix:%s/socket", folder);
    pid = fork();
    if (pid == 0) {
        close(STDERR_FILENO);
        execl(ssed ? ssed : "./ssed", "ssed", "--history-file", path,
              "--listen", socket_path, "--sandbox", sandbox, NULL);
        _exit(127);
    }
    for (int i = 0; access(socket_path + 5, F_OK) < 0; i++) {
        cr_assert(i < patience() / 10, "it does not listen");
        milliseconds(10);
    }
    kill(pid, SIGTERM);
    cr_assert(waitpid(pid, &status, 0) == pid && status == 0);
    cr_assert(run_to_end((const char *[]){ "--check", path, NULL }, out, err) ==
                  0,
              "%s", err);
}

/* Connected; or the process ends. */
static int try_connect(const struct server *server)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)server->port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        _exit(loop->handed_over);
    return fd;
}

static bool try_send(int fd, const char *bytes, size_t length)
{
    return send(fd, bytes, length, MSG_NOSIGNAL) == (ssize_t)length;
}

/* Receives up to the end of an answer's JSON; false if there comes none. */
static bool try_answer(int fd, char *answer, size_t size)
{
    size_t length = 0;

    do {
        ssize_t n = recv(fd, answer + length, size - 1 - length, 0);

        if (n <= 0)
            return false;
        length += (size_t)n;
        answer[length] = '\0';
    } while (!strstr(answer, "}\n") && !strstr(answer, " 503 "));
    return true;
}

/* The number of the next event; who has had enough of them waits. */
static uint64_t next_number(struct publisher *publisher)
{
    while (publisher->sent >= EVENTS_MAX - PER_ROUND) {
        if (loop->enough)
            _exit(0);
        milliseconds(10);
    }
    return ++publisher->sent;
}

/* Publishes one event; false when the server is gone or about to go. */
static bool publish_one(int fd, int k)
{
    struct publisher *publisher = &loop->publishers[k];
    uint64_t n = next_number(publisher);
    char request[256], body[64], answer[1024];
    int length = sprintf(body, "%d/%llu", k, (unsigned long long)n);
    const char *id;

    length = sprintf(request,
                     "POST /events/t%d HTTP/1.1\r\nHost: localhost\r\n"
                     "Content-Length: %d\r\n\r\n%s",
                     k, length, body);
    if (!try_send(fd, request, (size_t)length) ||
        !try_answer(fd, answer, sizeof(answer)))
        return false;
    id = strstr(answer, "{\"id\":\"");
    if (strstr(answer, " 201 ") && id)
        publisher->acknowledged[n] = strtoull(id + 7, NULL, 10);
    else if (!strstr(answer, " 503 "))
        _exit(1);
    return publisher->acknowledged[n] != 0;
}

static bool publish_some(int fd, int k)
{
    for (int i = 0; i < PER_ROUND; i++)
        if (!publish_one(fd, k))
            return false;
    return true;
}

static bool stream_some(int fd, int k)
{
    struct publisher *publisher = &loop->publishers[k];
    char bytes[1024];
    int length = sprintf(bytes,
                         "POST /events/t%d HTTP/1.1\r\nHost: localhost\r\n"
                         "Content-Type: text/event-stream\r\n"
                         "Transfer-Encoding: chunked\r\n\r\n",
                         k);

    if (!try_send(fd, bytes, (size_t)length))
        return false;
    for (int i = 0; i < PER_ROUND; i++) {
        char event[64];

        length = sprintf(event, "data: %d/%llu\n\n", k,
                         (unsigned long long)next_number(publisher));
        length = sprintf(bytes, "%x\r\n%s\r\n", length, event);
        if (!try_send(fd, bytes, (size_t)length))
            return false;
    }
    return try_send(fd, "0\r\n\r\n", 5) && try_answer(fd, bytes, sizeof(bytes));
}

/* Publishes until the server is gone, or until it is over. */
static _Noreturn void run_publisher(const struct server *server, int k)
{
    do {
        int fd = try_connect(server);
        bool all =
            k < PUBLISHERS - 1 ? publish_some(fd, k) : stream_some(fd, k);

        if (all && !loop->handed_over)
            pause();
        close(fd);
        milliseconds(10); /* the history is to hold what a reader is behind */
    } while (loop->handed_over && !loop->enough);
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
static void read_stream(int fd, struct reader_state *reader)
{
    char bytes[65536];
    size_t length = 0;
    bool head = true;
    ssize_t n;

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
}

static _Noreturn void run_reader(const struct server *server, int k)
{
    struct reader_state *reader = &loop->readers[k];

    do {
        char request[512];
        int fd = try_connect(server), size;

        size = k < PUBLISHERS
                   ? sprintf(request, "GET /events/t%d HTTP/1.0\r\n", k)
                   : sprintf(request, "GET /events?topic=t0&topic=t1&topic=t2&"
                                      "topic=t3 HTTP/1.0\r\n");
        size += sprintf(request + size, "Last-Event-ID: %s\r\n\r\n",
                        *reader->last ? reader->last : "earliest");
        if (try_send(fd, request, (size_t)size))
            read_stream(fd, reader);
        close(fd);
    } while (loop->handed_over && !loop->over);
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

/* Each must have found nothing wrong, or been ended. */
static void end_processes(const pid_t *pids, int count)
{
    for (int i = 0; i < count; i++) {
        int status;

        cr_assert(waitpid(pids[i], &status, 0) == pids[i]);
        cr_assert((WIFEXITED(status) && WEXITSTATUS(status) == 0) ||
                      (WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM),
                  "process %d: %x", i, status);
    }
}

static void end_publishers(const pid_t *pids)
{
    for (int i = 0; i < PUBLISHERS; i++)
        kill(pids[i], SIGTERM);
    end_processes(pids, PUBLISHERS);
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

static void await_all_read(const struct server *server)
{
    for (int p = 0; p < PUBLISHERS; p++)
        publish_last(server, p);
    for (int i = 0; !all_read(); i++) {
        cr_assert(i < patience() / 10, "not everybody has everything");
        milliseconds(10);
    }
}

#define LOOP_OPTIONS                                                 \
    "--history-file", path, "--history", "131072", "--sync", "none", \
        "--drain-spread", "0"

static void start_readers(const struct server *server, pid_t *pids)
{
    for (int k = 0; k < READERS; k++)
        pids[k] = in_process(run_reader, server, k);
}

static void start_publishers(const struct server *server, pid_t *pids)
{
    for (int k = 0; k < PUBLISHERS; k++)
        pids[k] = in_process(run_publisher, server, k);
}

static void crash_round(void)
{
    struct server server;
    pid_t readers[READERS], publishers[PUBLISHERS];

    server_start(&server, LOOP_OPTIONS);
    start_publishers(&server, publishers);
    start_readers(&server, readers);
    milliseconds(1 + (unsigned)random() % 40);
    server_kill(&server);
    end_publishers(publishers);
    end_processes(readers, READERS);
}

static void begin_loop(void)
{
    loop = mmap(NULL, sizeof(*loop), PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    cr_assert(loop != MAP_FAILED);
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

static uint64_t events_sent(void)
{
    uint64_t events = 0;

    for (int p = 0; p < PUBLISHERS; p++)
        events += loop->publishers[p].sent;
    return events;
}

Test(restart, crash_loop)
{
    const char *wanted = getenv("CRASH_ROUNDS");
    int rounds = wanted ? atoi(wanted) : 50;
    struct server server;
    pid_t readers[READERS];

    begin_loop();
    for (int i = 0; i < rounds; i++)
        crash_round();
    server_start(&server, LOOP_OPTIONS);
    start_readers(&server, readers);
    await_all_read(&server);
    server_stop(&server);
    end_processes(readers, READERS);
    check_books();
    cr_assert(events_sent() > (uint64_t)rounds * 20);
    if (wanted)
        printf("%d rounds, %llu events\n", rounds,
               (unsigned long long)events_sent());
}

/* --------------------------------------------------------------- hand-over */

static int listen_here(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET,
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    cr_assert(bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    cr_assert(listen(fd, SOMAXCONN) == 0);
    return fd;
}

/* The server is replaced again and again: nobody is refused, nothing that was
 * acknowledged is lost, no reader is told of a gap. */
Test(restart, hand_over)
{
    static const char *const options[] = { LOOP_OPTIONS, NULL };
    pid_t readers[READERS], publishers[PUBLISHERS];
    int listener = listen_here();
    struct server server;

    begin_loop();
    loop->handed_over = true;
    server_start_handed(&server, listener, options);
    start_publishers(&server, publishers);
    start_readers(&server, readers);
    for (int i = 0; i < 20; i++) {
        milliseconds(10 + (unsigned)random() % 20);
        server_stop(&server);
        server_start_handed(&server, listener, options);
    }
    loop->enough = true; /* each ends with the answer that it waits for */
    end_processes(publishers, PUBLISHERS);
    await_all_read(&server);
    loop->over = true;
    server_stop(&server);
    end_processes(readers, READERS);
    check_books();
    cr_assert(events_sent() > 1000);
}

Test(restart, what_is_handed_over_has_to_listen)
{
    char out[4096], err[4096];

    setenv("LISTEN_FDS", "1", 1);
    cr_assert(run_to_end_handed((const char *[]){ "--port", "0", NULL },
                                open("/dev/null", O_RDONLY), out, err) == 1);
    cr_assert(strstr(err, "LISTEN_FDS: descriptor 3 is not a listening"), "%s",
              err);
    setenv("LISTEN_FDS", "x", 1);
    cr_assert(run_to_end_handed((const char *[]){ "--port", "0", NULL },
                                open("/dev/null", O_RDONLY), out, err) == 1);
    cr_assert(strstr(err, "LISTEN_FDS: 'x' is not a number"), "%s", err);
}

/* Receives a datagram of the supervisor's socket; it must have the text. */
static void expect_notice(int fd, const char *text)
{
    struct pollfd notice = { .fd = fd, .events = POLLIN };
    char bytes[512] = "";

    cr_assert(poll(&notice, 1, patience()) == 1, "no notice: %s", text);
    cr_assert(recv(fd, bytes, sizeof(bytes) - 1, 0) > 0);
    cr_assert(strstr(bytes, text), "no '%s' in: %s", text, bytes);
}

Test(restart, tells_its_supervisor)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct server server;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s/notify", folder);
    cr_assert(bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
    setenv("NOTIFY_SOCKET", address.sun_path, 1);
    setenv("WATCHDOG_USEC", "200000", 1);
    server_start(&server, NULL);
    expect_notice(fd, "READY=1\nSTATUS=serving on 127.0.0.1:");
    expect_notice(fd, "WATCHDOG=1\nSTATUS=0 subscribers");
    expect_notice(fd, "WATCHDOG=1\n");
    setenv("WATCHDOG_USEC", "200000000", 1);
    server_stop(&server);
    for (int i = 0; i < 100; i++) {
        char bytes[512] = "";

        cr_assert(recv(fd, bytes, sizeof(bytes) - 1, MSG_DONTWAIT) > 0);
        if (strstr(bytes, "STOPPING=1\n"))
            return;
    }
    cr_assert_fail("no word of its end");
}
