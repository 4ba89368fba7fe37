/*
 * ssed -: what comes on standard input is published, from a pipe, a FIFO and
 * a file, as lines and as an event stream.
 */
#include "harness.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

/* A pipe: its reading end is for the server, the other is returned. */
static int make_pipe(int *input)
{
    int ends[2];

    cr_assert(pipe2(ends, O_CLOEXEC) == 0);
    *input = ends[0];
    return ends[1];
}

static void put(int fd, const char *text)
{
    cr_assert(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
}

static void open_topic(struct stream *stream, const struct server *server,
                       const char *target)
{
    struct block block;

    stream_open(stream, server, target, "");
    cr_assert(stream_next(stream, &block) && block.id[0]);
}

Test(input, makes_each_line_an_event)
{
    struct server server;
    struct stream stream;
    int input, out = make_pipe(&input);

    server_start_input(&server, input, "--first-id", "1", "--topic", "log",
                       "--max-event", "10", "-");
    open_topic(&stream, &server, "/events/log");
    put(out, "one\ntw");
    stream_expect_event(&stream, "1", NULL, "one");
    put(out, "o\r\n\n\r\nth\xFFree\n");
    stream_expect_event(&stream, "2", NULL, "two");
    stream_expect_event(&stream, "3", NULL, "th\xEF\xBF\xBDree");
    put(out, "1234567890\n12345678901\n1234567890\r\nevent: a");
    stream_expect_event(&stream, "4", NULL, "1234567890");
    stream_expect_event(&stream, "5", NULL, "1234567890");
    server_await_log(&server, "event=input_skipped reason=\"more than 10 "
                              "bytes: --max-event\"");
    close(out); /* the last line has no end */
    stream_expect_event(&stream, "6", NULL, "event: a");
    server_await_log(&server, "event=input_ended reason=\"end of input\" "
                              "events=6 skipped=1");
    /* it serves on */
    publish_to(&server, "/events/log", "more");
    stream_expect_event(&stream, "7", NULL, "more");
    stream_close(&stream);
    close(input);
    server_stop(&server);
}

Test(input, goes_to_the_main_stream_by_default)
{
    struct server server;
    struct stream stream;
    struct block block;
    int input, out = make_pipe(&input);

    server_start_input(&server, input, "--first-id", "1", "-");
    stream_open(&stream, &server, "/events", "");
    stream_expect(&stream, &block, "connected");
    put(out, "hello \"you\"\n");
    stream_expect_message(&stream, "message", 1, "hello \"you\"");
    stream_close(&stream);
    close(out);
    close(input);
    server_stop(&server);
}

/* epoll takes no files. */
Test(input, may_be_a_file)
{
    struct server server;
    struct stream stream;
    int input = memfd_create("input", 0);
    char text[32];

    for (int i = 1; i <= 5000; i++) {
        snprintf(text, sizeof(text), "line %d\n", i);
        put(input, text);
    }
    lseek(input, 0, SEEK_SET);
    server_start_input(&server, input, "--first-id", "1", "--topic", "t",
                       "--end", "--history", "10000", "-");
    open_topic(&stream, &server, "/events/t?lastEventId=earliest");
    for (int i = 1; i <= 5000; i++) {
        char id[16];

        snprintf(id, sizeof(id), "%d", i);
        snprintf(text, sizeof(text), "line %d", i);
        stream_expect_event(&stream, id, NULL, text);
    }
    stream_expect_event(
        &stream, "5001", "ssed.end",
        "{\"topic\":\"t\",\"last\":\"5000\",\"complete\":true}");
    stream_expect_end(&stream);
    stream_close(&stream);
    close(input);
    server_stop(&server);
}

Test(input, may_be_a_fifo_or_nothing)
{
    char name[] = "/tmp/ssed-fifo-XXXXXX";
    struct server server;
    struct stream stream;
    int input, out;

    cr_assert(mkdtemp(name));
    cr_assert(unlinkat(AT_FDCWD, name, AT_REMOVEDIR) == 0);
    cr_assert(mkfifo(name, 0600) == 0);
    input = open(name, O_RDWR | O_CLOEXEC);
    out = open(name, O_WRONLY | O_CLOEXEC);
    unlink(name);
    server_start_input(&server, input, "--first-id", "1", "--topic", "t", "-");
    open_topic(&stream, &server, "/events/t");
    put(out, "x\n");
    stream_expect_event(&stream, "1", NULL, "x");
    stream_close(&stream);
    close(out);
    close(input);
    server_stop(&server);
    input = open("/dev/null", O_RDONLY | O_CLOEXEC);
    server_start_input(&server, input, "-");
    server_await_log(&server, "event=input_ended");
    publish(&server, "it serves on");
    close(input);
    server_stop(&server);
}

/* Its writers come and go; the server has it open for both, and stays. */
Test(input, a_fifo_that_is_open_for_both_does_not_end)
{
    char name[] = "/tmp/ssed-fifo-XXXXXX";
    struct server server;
    struct stream stream;
    int input, out;

    cr_assert(mkdtemp(name));
    cr_assert(unlinkat(AT_FDCWD, name, AT_REMOVEDIR) == 0);
    cr_assert(mkfifo(name, 0600) == 0);
    input = open(name, O_RDWR | O_CLOEXEC);
    server_start_input(&server, input, "--first-id", "1", "--topic", "t", "-");
    open_topic(&stream, &server, "/events/t");
    close(input);
    for (int i = 1; i <= 3; i++) {
        char id[16];

        out = open(name, O_WRONLY | O_CLOEXEC);
        put(out, "x\n");
        close(out);
        snprintf(id, sizeof(id), "%d", i);
        stream_expect_event(&stream, id, NULL, "x");
    }
    unlink(name);
    stream_close(&stream);
    server_stop(&server);
}

/* What they have written is published, and then it is the end. */
Test(input, the_writers_of_a_fifo_may_be_gone_at_the_start)
{
    char name[] = "/tmp/ssed-fifo-XXXXXX";
    struct server server;
    struct stream stream;
    int input, out;

    cr_assert(mkdtemp(name));
    cr_assert(unlinkat(AT_FDCWD, name, AT_REMOVEDIR) == 0);
    cr_assert(mkfifo(name, 0600) == 0);
    input = open(name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    out = open(name, O_WRONLY | O_CLOEXEC);
    cr_assert(fcntl(input, F_SETFL, 0) == 0);
    unlink(name);
    put(out, "x\n");
    close(out);
    server_start_input(&server, input, "--first-id", "1", "--topic", "t",
                       "--end", "-");
    close(input);
    stream_open(&stream, &server, "/events/t?lastEventId=earliest", "");
    stream_expect_event(&stream, "0", NULL, NULL);
    stream_expect_event(&stream, "1", NULL, "x");
    stream_expect_event(&stream, "2", "ssed.end",
                        "{\"topic\":\"t\",\"last\":\"1\",\"complete\":true}");
    stream_close(&stream);
    server_stop(&server);
}

/*
 * The test reads it too: it takes the line between epoll's telling and the
 * server's reading. The server goes on, and the description that both have
 * keeps its flags.
 */
static void expect_no_wait(int input, int out)
{
    struct server server;
    struct response response;
    struct stream stream;
    char name[64], reached[80], line[8];
    int64_t deadline = 0;

    snprintf(name, sizeof(name), "/tmp/ssed-test-%d.hold", getpid());
    snprintf(reached, sizeof(reached), "%s.reached", name);
    hold_up("HOLD_WAIT", name);
    server_start_input(&server, input, "--first-id", "1", "--topic", "t", "-");
    server_await_log(&server, "event=input ");
    cr_assert(close(creat(name, 0600)) == 0);
    put(out, "1\n");
    while (access(reached, F_OK) != 0)
        await_tick(&deadline, "the server");
    cr_assert(read(input, line, sizeof(line)) == 2 && line[0] == '1');
    cr_assert(unlink(reached) == 0);
    ask(&server, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", &response);
    cr_assert_str_eq(response.body, "ok\n");
    cr_assert(!(fcntl(input, F_GETFL) & O_NONBLOCK));
    open_topic(&stream, &server, "/events/t");
    put(out, "2\n");
    stream_expect_event(&stream, "1", NULL, "2");
    stream_close(&stream);
    server_stop(&server);
    close(out);
    close(input);
}

Test(input, of_a_pipe_may_be_taken_by_another)
{
    int input, out = make_pipe(&input);

    expect_no_wait(input, out);
}

Test(input, of_a_socket_may_be_taken_by_another)
{
    int ends[2];

    cr_assert(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    expect_no_wait(ends[0], ends[1]);
}

Test(input, of_a_terminal_may_be_taken_by_another)
{
    int out = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct termios settings;
    int input;

    cr_assert(out >= 0 && grantpt(out) == 0 && unlockpt(out) == 0);
    input = open(ptsname(out), O_RDWR | O_NOCTTY | O_CLOEXEC);
    cr_assert(input >= 0 && tcgetattr(input, &settings) == 0);
    settings.c_lflag &= (tcflag_t)~ECHO;
    cr_assert(tcsetattr(input, TCSANOW, &settings) == 0);
    expect_no_wait(input, out);
}

/* A writer that is faster than the delivery is slowed down, and nobody with
 * room in its socket is overrun. Nobody reads meanwhile: all of it fits into
 * the sockets. */
Test(input, waits_for_room_in_the_ring)
{
    enum {
        COUNT = 200,
        READERS = 50
    };
    struct server server;
    struct stream streams[READERS];
    int input, out = make_pipe(&input);
    char id[16], text[32];

    if (getenv("SSED_PRELOAD"))
        cr_skip_test("to the server a socket that takes a part is full");
    server_start_input(&server, input, "--first-id", "1", "--topic", "t",
                       "--history", "8", "-");
    for (int k = 0; k < READERS; k++)
        open_topic(&streams[k], &server, "/events/t");
    for (int i = 1; i <= COUNT; i++)
        dprintf(out, "line %d\n", i);
    close(out);
    server_await_log(&server, "event=input_ended");
    for (int k = 0; k < READERS; k++) {
        for (int i = 1; i <= COUNT; i++) {
            snprintf(id, sizeof(id), "%d", i);
            snprintf(text, sizeof(text), "line %d", i);
            stream_expect_event(&streams[k], id, NULL, text);
        }
        stream_close(&streams[k]);
    }
    close(input);
    server_stop(&server);
}

Test(input, may_be_an_event_stream)
{
    struct server server;
    struct stream stream;
    int input, out = make_pipe(&input);

    server_start_input(&server, input, "--first-id", "1", "--topic", "t",
                       "--stdin", "events", "--max-event", "10", "-");
    open_topic(&stream, &server, "/events/t");
    put(out, "id: 7\nevent: x\ndata: one\n\ndata: t");
    stream_expect_event(&stream, "1", "x", "one");
    put(out, "wo\n\ndata: 12345678901\n\nevent: ssed.x\ndata: no\n\nevent: "
             "a\x01\ndata: no\n\ndata: three\n\ndata: cut");
    stream_expect_event(&stream, "2", NULL, "two");
    stream_expect_event(&stream, "3", NULL, "three");
    close(out);
    server_await_log(&server, "event=input_ended reason=\"end of input\" "
                              "events=3 skipped=3");
    stream_close(&stream);
    close(input);
    server_stop(&server);
}

/* Another ssed is the source: its gaps and ends are passed on. */
Test(input, passes_on_what_another_server_says)
{
    struct server server;
    struct stream stream, other;
    struct block block;
    int input, out = make_pipe(&input);

    server_start_input(&server, input, "--topic", "t", "--stdin", "events",
                       "--ids", "keep", "-");
    open_topic(&stream, &server, "/events/t");
    open_topic(&other, &server, "/events/u");
    put(out,
        "retry: 3000\nid: 9\n\nid: 10\ndata: a\n\nid: 9\ndata: before\n\n");
    stream_expect_event(&stream, "10", NULL, "a");
    put(out, "id: 20\nevent: ssed.gap\ndata: {}\n\n");
    cr_assert(!stream_next(&stream, &block), "it is behind the gap");
    stream_close(&stream);
    stream_open(&stream, &server, "/events/t", "Last-Event-ID: 10\r\n");
    cr_assert(stream_next(&stream, &block) && !block.id[0]);
    stream_expect_event(
        &stream, "20", "ssed.gap",
        "{\"requested\":\"10\",\"oldest\":null,\"topics\":[\"t\"]}");
    put(out, "id: 21\ndata: b\n\nid: 22\nevent: ssed.end\ndata: {}\n\n");
    stream_expect_event(&stream, "21", NULL, "b");
    stream_expect_event(&stream, "22", "ssed.end",
                        "{\"topic\":\"t\",\"last\":\"21\",\"complete\":true}");
    stream_expect_end(&stream);
    stream_close(&stream);
    /* nothing of it is the other topic's */
    put(out, "id: 23\ndata: c\n\n");
    stream_open(&stream, &server, "/events/u", "Last-Event-ID: 10\r\n");
    stream_expect_event(&stream, "10", NULL, NULL);
    stream_close(&stream);
    stream_close(&other);
    close(out);
    server_await_log(&server, "event=input_ended reason=\"end of input\" "
                              "events=3 skipped=1");
    close(input);
    server_stop(&server);
}

/* Without the source's ids everybody so far is behind a gap of it. */
Test(input, a_gap_of_the_source_is_one_here)
{
    struct server server;
    struct stream stream;
    struct block block;
    int input, out = make_pipe(&input);

    server_start_input(&server, input, "--first-id", "1", "--topic", "t",
                       "--stdin", "events", "-");
    open_topic(&stream, &server, "/events/t");
    put(out, "data: a\n\n");
    stream_expect_event(&stream, "1", NULL, "a");
    put(out, "id: 77\nevent: ssed.gap\ndata: {}\n\n");
    cr_assert(!stream_next(&stream, &block));
    stream_close(&stream);
    stream_open(&stream, &server, "/events/t", "Last-Event-ID: 1\r\n");
    cr_assert(stream_next(&stream, &block) && !block.id[0]);
    cr_assert(stream_next(&stream, &block));
    cr_assert_str_eq(block.event, "ssed.gap");
    put(out, "data: b\n\n");
    stream_expect_event(&stream, "3", NULL, "b");
    stream_close(&stream);
    close(out);
    close(input);
    server_stop(&server);
}

/* One feed for many topics: a block says its own, an empty one is the main
 * stream, one that is none is skipped and logged. The end is --topic's. */
Test(input, names_topics_in_its_blocks)
{
    char long_name[300];
    struct server server;
    struct stream t, a, chat, main_stream;
    struct block block;
    int input, out = make_pipe(&input);

    memset(long_name, 'x', sizeof(long_name));
    server_start_input(&server, input, "--first-id", "1", "--topic", "t",
                       "--stdin", "events", "--end", "-");
    close(input);
    stream_open(&t, &server, "/events/t", "");
    stream_open(&a, &server, "/events/a", "");
    stream_open(&chat, &server, "/events/chat/1", "");
    stream_open(&main_stream, &server, "/events", "");
    stream_expect_event(&t, "0", NULL, NULL);
    stream_expect_event(&a, "0", NULL, NULL);
    stream_expect_event(&chat, "0", NULL, NULL);
    stream_expect(&main_stream, &block, "connected");
    put(out, "data: 1\n\n"
             "topic: a\ndata: 2\n\n"
             "data: 3\ntopic: b\ntopic:chat/1\nevent: e\n\n"
             "topic\ndata: 4\n\n"
             "topic: /bad\ndata: no\n\n");
    dprintf(out, "topic: %.300s\ndata: no\n\n", long_name);
    stream_expect_event(&t, "1", NULL, "1");
    stream_expect_event(&a, "2", NULL, "2");
    stream_expect_event(&chat, "3", "e", "3");
    stream_expect_message(&main_stream, "message", 4, "4");
    put(out, "topic: a\nevent: ssed.end\ndata: {}\n\n"
             "topic: chat/1\nevent: ssed.gap\ndata: {}\n\n"
             "data: 6\n\n");
    stream_expect_event(&a, "5", "ssed.end",
                        "{\"topic\":\"a\",\"last\":\"2\",\"complete\":true}");
    stream_expect_end(&a);
    client_await_end(&chat.client); /* its subscribers are to be told */
    server_await_log(&server, "input_skipped");
    server_await_log(&server, "neither begins nor ends");
    server_await_log(&server, "a topic has 1 to 255 bytes");
    close(out);
    stream_expect_event(&t, "7", NULL, "6");
    stream_expect_event(&t, "8", "ssed.end",
                        "{\"topic\":\"t\",\"last\":\"7\",\"complete\":true}");
    stream_expect_end(&t);
    stream_close(&t);
    stream_close(&a);
    stream_close(&chat);
    stream_close(&main_stream);
    server_stop(&server);
}

Test(input, ends_with_the_server)
{
    struct server server;
    int input, out = make_pipe(&input);

    server_start_input(&server, input, "--topic", "t", "-");
    put(out, "x\n");
    server_await_log(&server, "event=input ");
    server_stop(&server);
    close(out);
    close(input);
}

Test(input, has_options_that_are_checked)
{
    static const struct {
        const char *const options[8];
        const char *says;
    } cases[] = {
        { { "--topic", "a" }, "--topic is for" },
        { { "--end" }, "--end is for" },
        { { "--stdin", "lines" }, "--stdin is for" },
        { { "-", "--stdin", "x" }, "lines, events" },
        { { "-", "--topic", "a b" }, "--topic: 'a b'" },
        { { "-", "--topic", "" }, "--topic: ''" },
        { { "-", "--end" }, "--end needs --topic" },
        { { "-", "--topic", "a", "--end", "--ids", "keep", "--stdin",
            "events" },
          "--end and --ids keep" },
        { { "-", "--ids", "keep" }, "--stdin events" },
        { { "--ids", "kept" }, "own, keep" },
        { { "--ids", "keep", "--first-id", "7" }, "--first-id" },
        { { "--ids", "keep", "--interval", "5" }, "--interval" },
        { { "x" }, "'x' is not an option" },
    };
    char out[4096], err[4096];

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        cr_assert(run_to_end(cases[i].options, out, err) == 2, "%zu", i);
        cr_assert(strstr(err, cases[i].says), "%zu: %s", i, err);
        cr_assert(strchr(err, '\n') == err + strlen(err) - 1);
    }
}
