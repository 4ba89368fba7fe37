/*
 * Unit tests of sse.c from inside: the texts of its streams, where a stream
 * begins, and how values stand in the log.
 */
#define main ssed_main

int ssed_main(int argc, char **argv);

/* NOLINTNEXTLINE(bugprone-suspicious-include): the server without its main */
#include "../sse.c"
#undef main

#include <criterion/criterion.h>

/* A server that has a history, and neither connections nor a loop. */
static void begin(struct server *server)
{
    *server = (struct server){
        .options = { .history = 100,
                     .history_bytes = 1 << 20,
                     .first_id = 1,
                     .max_event = 64 << 10,
                     .sync = SYNC_NEVER },
    };
    logger.level = LEVEL_ERROR;
    init_history(server);
}

static void finish(struct server *server)
{
    free(server->frame);
    ring_release(&server->ring);
}

/* ------------------------------------------------------ texts of streams */

/* A message takes the splice text after its `"type":"`, and is JSON whatever
 * the bytes are. */
Test(texts, a_message_is_json)
{
    static const char message[] = "\"message\":\"a\\\"\\\\\\n\\u0001\\ufffdz\"";
    char bytes[512];
    struct text text = { bytes, sizeof(bytes), 0 };
    struct event event = { .data = slice_of("a\"\\\n\x01\xFFz") };
    size_t splice = put_message(&text, 5, &event);

    cr_assert(memcmp(text.bytes + splice - 8, "\"type\":\"", 8) == 0);
    cr_assert(memmem(text.bytes, text.length, message, strlen(message)));
}

/* ------------------------------------------------ where a stream begins */

struct start_row {
    const char *header, *query;
    uint64_t last; /* the place: what is behind the reader */
    uint64_t position;
    uint64_t replay;
    bool gap;
};

/* Ids 1 to 150 of one topic, of which 51 to 150 are held. */
Test(start, is_where_the_request_says)
{
    static const struct start_row rows[] = {
        { "", "", 150, 150, 0, false },
        { "150", "", 150, 150, 0, false },
        { "149", "", 149, 149, 1, false },
        { "50", "", 50, 50, 100, false },
        { "49", "", 50, 50, 100, true },
        { "0", "", 50, 50, 100, true },
        { "151", "", 50, 50, 100, true },
        { "x", "", 50, 50, 100, true },
        { "007", "", 50, 50, 100, true },
        { "earliest", "", 50, 50, 100, false },
        { "", "lastEventId=149", 149, 149, 1, false },
        { "", "last_event_id=149", 149, 149, 1, false },
        { "148", "lastEventId=149", 148, 148, 2, false },
        { "", "last=3", 147, 147, 3, false },
        { "", "last=0", 150, 150, 0, false },
        { "", "last=9999", 50, 50, 100, false },
        { "149", "last=3", 149, 149, 1, false },
    };
    struct server server;
    struct topic *topic;

    begin(&server);
    topic = topic_hold(&server.ring, SLICE("t"));
    for (uint64_t i = 1; i <= 150; i++) {
        struct event event = { .data = SLICE("x") };

        cr_assert(publish_event(&server, topic, &event, NULL) == PUBLISHED);
        cr_assert(server.ring.newest_id == i);
    }
    for (size_t i = 0; i < COUNT(rows); i++) {
        struct place place = { .topic = topic };
        struct reader reader = { .places = &place, .count = 1 };
        struct request request = { .last_event_id = slice_of(rows[i].header),
                                   .query = slice_of(rows[i].query) };
        char buffer[REQUESTED_MAX];
        struct start start;
        uint64_t count;

        cr_assert(find_count(&request, &count));
        reader_start(&server.ring, &reader, find_requested(&request, buffer),
                     count, &start);
        cr_assert(place.last == rows[i].last, "row %zu", i);
        cr_assert(start.position == rows[i].position, "row %zu", i);
        cr_assert(start.replay == rows[i].replay, "row %zu", i);
        cr_assert(start.gap == rows[i].gap, "row %zu", i);
    }
    finish(&server);
}

/* ------------------------------------------------------------------ ends */

/* An end that would evict what a subscriber waits for is made later; one that
 * has been made otherwise is not made twice, also if the topic goes on. */
Test(ends, of_broken_promises_wait_for_room)
{
    struct event event = { .data = SLICE("x") };
    struct event end = { .finishes = true };
    struct server server;
    struct topic *topic;

    begin(&server);
    server.ring.limit = 2;
    topic = topic_hold(&server.ring, SLICE("t"));
    for (int i = 0; i < 2; i++)
        publish_event(&server, topic, &event, NULL);
    server.ready_from = server.ring.oldest;
    cr_assert(topic_promise(&server.ring, topic));
    topic_settle(&server.ring, topic, true);
    cr_assert(!finish_broken(&server) && !topic_finished(&server.ring, topic));
    server.ready_from = 0;
    cr_assert(finish_broken(&server) && topic_finished(&server.ring, topic));
    cr_assert(server.ring.newest_id == 3);
    cr_assert(topic_promise(&server.ring, topic));
    topic_settle(&server.ring, topic, true);
    publish_event(&server, topic, &event, NULL);
    publish_event(&server, topic, &end, NULL);
    publish_event(&server, topic, &event, NULL);
    cr_assert(finish_broken(&server) && !topic_finished(&server.ring, topic));
    cr_assert(topic->references == 1);
    finish(&server);
}

/* ------------------------------------------------ rights, and their end */

/* A stream of a topic, without a socket, whose token has this exp. */
static struct conn *begin_stream_of(struct server *server, uint32_t expires)
{
    char error[ERROR_SIZE];
    struct conn *conn;

    begin(server);
    server->http.max_connections = 1;
    cr_assert(http_init(&server->http, error) == 0, "%s", error);
    conn = conn_at(&server->http, 5);
    conn->state = CONN_STREAM;
    conn->expires = expires;
    conn->subscriber = (struct subscriber){
        .topic_count = 1,
        .place.topic = topic_hold(&server->ring, SLICE("a")),
        .active = (uint32_t)server->http.now,
    };
    return conn;
}

static void finish_stream(struct server *server)
{
    free(server->http.conns);
    close(server->http.epoll);
    finish(server);
}

/* The clock says how long the right goes on, whenever it was set. */
Test(rights, end_by_the_clock)
{
    struct server server;
    const struct conn *conn = begin_stream_of(&server, 1000);

    server.ring.time = 1000000;
    cr_assert(right_left(&server, conn) == UINT64_C(1000) * (TOKEN_LEEWAY + 1));
    server.ring.time += 7000;
    cr_assert(right_left(&server, conn) == UINT64_C(1000) * (TOKEN_LEEWAY - 6));
    server.ring.time = 0;
    cr_assert(right_left(&server, conn) > 1000000);
    server.ring.time = INT64_C(1000) * (1000 + TOKEN_LEEWAY) + 999;
    cr_assert(right_left(&server, conn) == 1);
    server.ring.time++;
    cr_assert(right_left(&server, conn) == 0);
    server.ring.time = INT64_MAX;
    cr_assert(right_left(&server, conn) == 0);
    conn_at(&server.http, 5)->expires = 0;
    cr_assert(right_left(&server, conn) == NEVER);
    conn_at(&server.http, 5)->expires = UINT32_MAX;
    server.ring.time = 0;
    cr_assert(right_left(&server, conn) > UINT32_MAX);
    finish_stream(&server);
}

/* The timer goes off for what comes first; and now and then where the end is
 * far away, for the clock may be set. */
Test(rights, have_the_one_timer_look_at_the_clock)
{
    static const struct {
        uint64_t heartbeat, left, silence; /* ms; `left` 0: it never expires */
        uint64_t delay;                    /* 0: there is no timer */
    } rows[] = {
        { 15000, 0, 0, 15000 },
        { 15000, 0, 5000, 10000 },
        { 15000, 0, 15000, 15000 },
        { 0, 0, 0, 0 },
        { 15000, 3000, 0, 3000 },
        { 15000, 13000, 5000, 10000 },
        { 0, 3000, 0, 3000 },
        { 0, 90000, 0, EXPIRY_LOOK },
        { 86400000, 90000, 0, EXPIRY_LOOK },
        { 0, UINT64_C(3000000000000), 0, EXPIRY_LOOK },
    };
    struct server server;
    struct conn *conn = begin_stream_of(&server, 4000000000);
    uint64_t end = (UINT64_C(4000000000) + TOKEN_LEEWAY + 1) * 1000;

    for (size_t i = 0; i < COUNT(rows); i++) {
        uint64_t least = server.http.now + rows[i].delay;
        uint64_t tick;

        conn->expires = rows[i].left ? 4000000000 : 0;
        conn->deadline = 0;
        conn->subscriber.active = (uint32_t)(server.http.now - rows[i].silence);
        server.ring.time = (int64_t)(end - rows[i].left);
        server.options.heartbeat = rows[i].heartbeat;
        start_stream_timer(&server, conn);
        tick = (uint64_t)conn->deadline << 7;
        cr_assert(rows[i].delay ? tick >= least && tick <= least + 256 : !tick,
                  "%zu: %llu ms", i,
                  (unsigned long long)(tick - server.http.now));
        for (int j = 0; j < WHEEL_SLOTS; j++)
            server.http.wheel[j] = (struct list){ NONE, NONE };
    }
    finish_stream(&server);
}

/* One that has not been told of its expiry yet must not be told a position
 * behind a hole: it comes back from where it was. */
Test(rights, a_stream_that_expires_at_a_gap_is_told_no_position)
{
    struct server server;
    struct conn *conn = begin_stream_of(&server, 1000);

    conn->subscriber.end = STREAM_EXPIRES;
    begin_again(&server, 100, "");
    cr_assert(conn->subscriber.end == STREAM_LEAVES);
    conn->subscriber.end = STREAM_ENDS;
    begin_again(&server, 200, "");
    cr_assert(conn->subscriber.end == STREAM_ENDS);
    finish_stream(&server);
}

/* ------------------------------------------------------------- figures */

/* What /metrics has, from a server without connections. */
static void put_metrics(const struct server *server, struct text *text)
{
    struct listing listing = { .what = LISTS_FIGURES };
    size_t before = text->length;

    while (put_next_line(server, &listing, text)) {
        cr_assert(text->length - before < LINE_MAX_BYTES);
        before = text->length;
    }
}

/* Prometheus's data model and its practices for names. */
Test(figures, have_names_as_they_should)
{
    for (size_t i = 0; i < COUNT(figures); i++) {
        const struct figure *figure = &figures[i];
        size_t length = strlen(figure->name), help = strlen(figure->help);
        bool is_total =
            length > 6 && strcmp(figure->name + length - 6, "_total") == 0;

        cr_assert(strspn(figure->name, "abcdefghijklmnopqrstuvwxyz_") == length,
                  "%s", figure->name);
        cr_assert(is_total == (figure->type == COUNTER), "%s", figure->name);
        cr_assert(help && figure->help[help - 1] == '.' &&
                      !strpbrk(figure->help, "\\\n"),
                  "%s", figure->name);
        cr_assert(!figure->unit || strstr(figure->name, "seconds"), "%s",
                  figure->name);
        cr_assert(figure->type != HISTOGRAM || (figure->bounds && figure->unit),
                  "%s", figure->name);
        cr_assert(!figure->read != !figure->place, "%s", figure->name);
        for (size_t j = 0; j < i; j++)
            cr_assert(strcmp(figures[j].name, figure->name) != 0);
    }
}

/* Each line of text is a comment or a sample; each sample comes after the type
 * of its own figure, and no sample comes twice. */
Test(figures, are_written_in_the_text_format)
{
    static char bytes[FIGURES_MAX];
    struct text text = { bytes, sizeof(bytes), 0 };
    struct server server;
    char name[128], type[32], copy[256];
    unsigned samples = 0;

    begin(&server);
    server.options.history_file = "file";
    server.http.redis.address = "there";
    memset(&server.figures, 0x7F, sizeof(server.figures));
    memset(server.http.limits_hit, 0x7F, sizeof(server.http.limits_hit));
    memset(server.http.used_up, 0x7F, sizeof(server.http.used_up));
    put_metrics(&server, &text);
    for (char *line = bytes, *end; line < bytes + text.length; line = end + 1) {
        end = strchr(line, '\n');
        cr_assert(end);
        *end = '\0';
        if (strncmp(line, "# HELP ", 7) == 0)
            continue;
        if (sscanf(line, "# TYPE %127s %31s", name, type) == 2)
            continue;
        samples++;
        cr_assert(strncmp(line, name, strlen(name)) == 0, "%s: %s", name, line);
        cr_assert(strspn(strrchr(line, ' ') + 1, "0123456789.") ==
                      strlen(strrchr(line, ' ') + 1),
                  "%s", line);
        snprintf(copy, sizeof(copy), "\n%.*s ",
                 (int)(strrchr(line, ' ') - line), line);
        cr_assert(!strstr(end + 1, copy), "%s", line);
    }
    cr_assert(samples > 100);
    server.http.redis.address = NULL;
    finish(&server);
}

Test(figures, of_a_histogram_count_up_to_each_bound)
{
    static const uint64_t bounds[] = { 10, 20, 40, 0 };
    struct histogram histogram = { 0 };

    for (uint64_t value = 1; value <= 50; value++)
        histogram_add(&histogram, bounds, value);
    cr_assert(histogram_sample(&histogram, 3, 0) == 10);
    cr_assert(histogram_sample(&histogram, 3, 1) == 20);
    cr_assert(histogram_sample(&histogram, 3, 2) == 40);
    cr_assert(histogram_sample(&histogram, 3, 3) == 50, "any");
    cr_assert(histogram_sample(&histogram, 3, 4) == 50 * 51 / 2, "the sum");
    cr_assert(histogram_sample(&histogram, 3, 5) == 50, "the count");
}

/* README.md has a row for each, and no other. */
Test(figures, are_those_of_the_readme)
{
    FILE *file = fopen("README.md", "re");
    char line[4096], name[128];
    bool found[COUNT(figures)] = { 0 };

    cr_assert(file, "the tests run in the folder of README.md");
    while (fgets(line, sizeof(line), file)) {
        size_t i = 0;

        if (sscanf(line, "| `ssed_%127[a-z_]", name) != 1)
            continue;
        while (i < COUNT(figures) && strcmp(figures[i].name, name) != 0)
            i++;
        cr_assert(i < COUNT(figures), "ssed_%s is no figure", name);
        cr_assert(!found[i], "ssed_%s twice", name);
        cr_assert(strstr(line, type_names[figures[i].type]), "%s", line);
        cr_assert(!figures[i].label || strstr(line, figures[i].label), "%s",
                  line);
        for (unsigned k = 0; figures[i].values && figures[i].values[k] &&
                             figures[i].values != version_names &&
                             figures[i].values != status_names;
             k++)
            cr_assert(strstr(line, figures[i].values[k]), "%s: no %s", name,
                      figures[i].values[k]);
        found[i] = true;
    }
    fclose(file);
    for (size_t i = 0; i < COUNT(figures); i++)
        cr_assert(found[i], "ssed_%s is not there", figures[i].name);
}

static void scan_all(struct server *server)
{
    scan_begin(server);
    while (server->scan.running)
        scan_slice(server);
}

/* Of three events the stream has one; the oldest of the others is 5 s old. */
Test(figures, of_lag_are_found_in_slices)
{
    struct server server;
    struct event event = { .data = SLICE("x") };
    struct place *place;
    struct conn *conn;

    begin_stream_of(&server, 0);
    server.http.conn_end = 5000;
    server.http.conns = realloc(server.http.conns, 5000 * sizeof(*conn));
    cr_assert(server.http.conns);
    conn = conn_at(&server.http, 5);
    memset(conn + 1, 0, (5000 - 6) * sizeof(*conn));
    place = &conn->subscriber.place;
    for (int i = 0; i < 3; i++) {
        publish_event(&server, place->topic, &event, NULL);
        server.ring.now += 3200; /* of ticks of 64 ms */
    }
    place->last = 1;
    scan_begin(&server);
    scan_slice(&server);
    cr_assert(server.scan.running && server.scan.at <= SCAN_STEPS);
    scan_all(&server);
    cr_assert(server.scan.rounds == 1 && !server.scan.running);
    cr_assert(server.scan.last.events == 2 && server.scan.last.ms == 6400);
    cr_assert(server.scan.last.behind_events[0] == 1);
    cr_assert(server.scan.last.behind_events[1] == 0);
    cr_assert(server.scan.last.behind_ms[2] == 1, "5 s");
    cr_assert(server.scan.last.behind_ms[3] == 0, "15 s");
    place->last = 3;
    scan_all(&server);
    cr_assert(server.scan.last.events == 0 && server.scan.last.ms == 0);
    cr_assert(server.scan.last.behind_events[0] == 0);
    finish_stream(&server);
}

/* -------------------------------------------------- options and the log */

Test(log, no_byte_ends_a_value)
{
    static const struct {
        const char *value, *quoted;
    } rows[] = {
        { "chat/42", "chat/42" },
        { "", "\"\"" },
        { "a b", "\"a b\"" },
        { "a\"b\\", "\"a\\\"b\\\\\"" },
        { "a\nb\x1B[1m", "\"a\\x0ab\\x1b[1m\"" },
        { "\xC3\xA4", "\"\\xc3\\xa4\"" },
    };
    char buffer[64];

    for (size_t i = 0; i < COUNT(rows); i++)
        cr_assert_str_eq(
            log_quote(buffer, sizeof(buffer), slice_of(rows[i].value)),
            rows[i].quoted);
    for (size_t size = 8; size < sizeof(buffer); size++) {
        log_quote(buffer, size, slice_of("\x01\x02\x03\x04\x05\x06\x07\x08"));
        cr_assert(strlen(buffer) < size && buffer[0] == '"');
    }
}

/* ----------------------------------------------------------------- ranks */

enum {
    RANKED = 40
};

/* What the scan finds of a topic. */
static struct ranked {
    struct topic topic;
    char name[16];
    uint64_t lag; /* of the subscriber that is behind most */
} ranked[RANKED];

static uint64_t ranked_key(const struct ranked *one, bool by_lag)
{
    return by_lag ? one->lag : one->topic.subscriber_count;
}

/* Whether a ranking has the topics with the greatest keys, each once, the
 * greatest first. Which of those with equal keys come last is open. */
static void expect_ranking(const struct ranking *ranking)
{
    bool by_lag = ranking->by_lag, has[RANKED] = { false };
    uint64_t least = UINT64_MAX;
    unsigned counted = 0;

    for (unsigned i = 0; i < ranking->count; i++) {
        unsigned at = 0;

        while (!rank_is(&ranking->ranks[i], ranked[at].topic.name))
            at++;
        cr_assert(!has[at]);
        has[at] = true;
        cr_assert(rank_key(ranking, i) == ranked_key(&ranked[at], by_lag));
        cr_assert(ranking->ranks[i].lag == ranked[at].lag);
        cr_assert(rank_key(ranking, i) <= least);
        least = rank_key(ranking, i);
    }
    for (unsigned at = 0; at < RANKED; at++) {
        uint64_t key = ranked_key(&ranked[at], by_lag);

        counted += key > 0;
        cr_assert(has[at] || key == 0 || (counted && key <= least));
    }
    cr_assert(ranking->count == (counted < RANKS ? counted : RANKS));
}

Test(ranks, are_those_of_a_sort)
{
    srandom(7);
    for (int round = 0; round < 2000; round++) {
        struct ranking subscribers = { 0 }, lag = { .by_lag = true };
        unsigned left[RANKED], topics = (unsigned)random() % (RANKED + 1);
        unsigned all = 0;

        memset(ranked, 0, sizeof(ranked));
        for (unsigned i = 0; i < RANKED; i++) {
            int length = snprintf(ranked[i].name, sizeof(ranked[i].name),
                                  "%.*s%u", (int)i % 4, "xyz", i);

            ranked[i].topic.name =
                (struct slice){ ranked[i].name, (size_t)length };
            left[i] = i < topics ? 1 + (unsigned)random() % 12 : 0;
            ranked[i].topic.subscriber_count = left[i];
            all += left[i];
        }
        while (all > 0) { /* the subscribers in any order */
            unsigned i = (unsigned)random() % RANKED;
            uint64_t behind = (uint64_t)random() % 15;

            if (left[i] == 0)
                continue;
            left[i]--;
            all--;
            if (behind > ranked[i].lag)
                ranked[i].lag = behind;
            put_rank(&subscribers, &ranked[i].topic, behind);
            put_rank(&lag, &ranked[i].topic, behind);
        }
        expect_ranking(&subscribers);
        expect_ranking(&lag);
    }
}
