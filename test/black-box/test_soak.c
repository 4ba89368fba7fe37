/*
 * A soak: publishers of every kind on many topics, and subscribers that come,
 * go and resume at random, for SOAK_SECONDS (10). At the end the books must
 * balance: the history has just the acknowledged events, each with the id
 * that was acknowledged, and each subscriber has got just those of its topics
 * after its first position, each once, in order.
 */
#include "harness.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    PUBLISHERS = 50,
    TOPICS = 200,
    SUBSCRIBERS = 500,
    TOPICS_EACH = 4, /* of a subscriber, at most */
    BATCH = 25,      /* publishers at work at the same time */
    PIPELINED = 3,   /* requests at once, at most */
    TICK = 5,        /* ms between two rounds, at least */
    AWAY = 300,      /* ms without a connection, at most */
    EVENTS_MAX = 1000000,
    PERCENT = 100,
};

#define SEED 20261123

/* A published event: which one it is follows from its data, "P.S": the
 * publisher, and how many it had published before. */
struct event {
    uint64_t id;   /* acknowledged; 0: not alone, but with the whole body */
    uint64_t seen; /* in the history at the end */
    int topic;
};

struct publisher {
    struct client client;
    struct event *events; /* owned */
    size_t sent;
    size_t acknowledged;
    int streams_to;    /* the topic of the body under way, -1: none */
    size_t body_begin; /* the first event of it */
    int chunks;        /* still to come */
    unsigned pending;  /* answers */
    char held[64];     /* the rest of an event that has been begun */
};

struct subscriber {
    struct stream stream;
    int64_t back_at; /* when not */
    int64_t asleep;  /* does not read before that */
    int topics[TOPICS_EACH];
    int topic_count;
    bool connected;
    uint64_t first, last; /* positions: where it began, where it is */
    uint64_t *ids;        /* owned: what it has got */
    size_t count, room;
};

/* Every event of the history, by id, as replayed at the end. */
struct entry {
    uint64_t id;
    int topic;
};

static struct publisher publishers[PUBLISHERS];
static struct subscriber subscribers[SUBSCRIBERS];
static struct entry entries[EVENTS_MAX];
static size_t entry_count;
static uint64_t resumed, replaced;

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int below(int limit)
{
    return (int)(random() % limit);
}

/* ------------------------------------------------------------ publishers */

static const char *topic_name(int topic)
{
    static char names[4][32];
    static unsigned which;
    char *name = names[which++ % 4];

    snprintf(name, sizeof(names[0]), "soak/%d/t", topic);
    return name;
}

/* The data of the next event, which is entered into the books. */
static int next_event(int number, int topic, char data[32])
{
    struct publisher *publisher = &publishers[number];

    cr_assert(publisher->sent < EVENTS_MAX / PUBLISHERS);
    publisher->events[publisher->sent] = (struct event){ .topic = topic };
    return snprintf(data, 32, "%d.%zu", number, publisher->sent++);
}

static void send_plain(int number)
{
    struct publisher *publisher = &publishers[number];

    publisher->pending = 1 + (unsigned)below(PIPELINED);
    for (unsigned i = 0; i < publisher->pending; i++) {
        int topic = below(TOPICS);
        char data[32], request[256];
        int length = next_event(number, topic, data);

        snprintf(request, sizeof(request),
                 "POST /events/%s HTTP/1.1\r\nHost: localhost\r\n"
                 "Content-Length: %d\r\n\r\n%s",
                 topic_name(topic), length, data);
        client_send(&publisher->client, request);
    }
}

static void begin_stream(int number)
{
    struct publisher *publisher = &publishers[number];
    char request[256];

    publisher->streams_to = below(TOPICS);
    publisher->body_begin = publisher->sent;
    publisher->chunks = 1 + below(20);
    publisher->held[0] = '\0';
    snprintf(request, sizeof(request),
             "POST /events/%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
             "text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
             topic_name(publisher->streams_to));
    client_send(&publisher->client, request);
}

/* A chunk: the rest of the event before, some whole ones, and a part. */
static void send_chunk(int number)
{
    struct publisher *publisher = &publishers[number];
    char text[512], chunk[600], data[32];
    int length = snprintf(text, sizeof(text), "%s", publisher->held), cut;

    for (int events = below(4); events >= 0; events--) {
        next_event(number, publisher->streams_to, data);
        length += snprintf(text + length, sizeof(text) - (size_t)length,
                           "event: soak\r\ndata: %s\r\n\r\n", data);
    }
    cut = publisher->chunks > 1 ? below(10) : 0;
    snprintf(publisher->held, sizeof(publisher->held), "%s",
             text + length - cut);
    text[length - cut] = '\0';
    snprintf(chunk, sizeof(chunk), "%x\r\n%s\r\n", (unsigned)(length - cut),
             text);
    client_send(&publisher->client, chunk);
    if (--publisher->chunks > 0)
        return;
    client_send(&publisher->client, "0\r\n\r\n");
    publisher->pending = 1;
}

static void publish_some(int number)
{
    if (publishers[number].streams_to >= 0)
        send_chunk(number);
    else if (below(8) == 0)
        begin_stream(number);
    else
        send_plain(number);
}

static void take_plain_answer(struct publisher *publisher,
                              const struct response *response)
{
    char id[32];

    cr_assert(json_string(response->body, "id", id, sizeof(id)));
    publisher->events[publisher->acknowledged++].id = strtoull(id, NULL, 10);
}

static void take_stream_answer(struct publisher *publisher,
                               const struct response *response)
{
    uint64_t count;
    char id[32];

    cr_assert(json_number(response->body, "count", &count));
    cr_assert(count == publisher->sent - publisher->body_begin, "%s",
              response->body);
    cr_assert(json_string(response->body, "first", id, sizeof(id)));
    publisher->events[publisher->body_begin].id = strtoull(id, NULL, 10);
    cr_assert(json_string(response->body, "last", id, sizeof(id)));
    publisher->events[publisher->sent - 1].id = strtoull(id, NULL, 10);
    publisher->acknowledged = publisher->sent;
    publisher->streams_to = -1;
}

static void take_answers(struct publisher *publisher)
{
    static struct response response;

    while (publisher->pending > 0) {
        client_response(&publisher->client, &response, false);
        cr_assert(response.status == 201, "%d %s", response.status,
                  response.body);
        if (publisher->streams_to >= 0)
            take_stream_answer(publisher, &response);
        else
            take_plain_answer(publisher, &response);
        publisher->pending--;
    }
}

/* Some publishers send, and then all that is answered is read. */
static void publish_round(void)
{
    int first = below(PUBLISHERS);

    for (int i = 0; i < BATCH; i++)
        publish_some((first + i) % PUBLISHERS);
    for (int i = 0; i < BATCH; i++)
        take_answers(&publishers[(first + i) % PUBLISHERS]);
}

/* ----------------------------------------------------------- subscribers */

static bool reads_topic(const struct subscriber *subscriber, int topic)
{
    for (int i = 0; i < subscriber->topic_count; i++)
        if (subscriber->topics[i] == topic)
            return true;
    return false;
}

static void subscriber_open(struct subscriber *subscriber,
                            const struct server *server)
{
    char target[512], field[64] = "";
    int length = snprintf(target, sizeof(target), "/events?");

    for (int i = 0; i < subscriber->topic_count; i++)
        length += snprintf(target + length, sizeof(target) - (size_t)length,
                           "topic=%s&", topic_name(subscriber->topics[i]));
    if (subscriber->topic_count == 1)
        snprintf(target, sizeof(target), "/events/%s",
                 topic_name(subscriber->topics[0]));
    if (subscriber->first)
        snprintf(field, sizeof(field), "Last-Event-ID: %llu\r\n",
                 (unsigned long long)subscriber->last);
    stream_open(&subscriber->stream, server, target, field);
    subscriber->connected = true;
    subscriber->asleep = 0;
}

/* A new one, who begins with what comes from now on. */
static void subscriber_begin(struct subscriber *subscriber,
                             const struct server *server)
{
    *subscriber = (struct subscriber){ 0 };
    subscriber->topic_count = 1 + below(TOPICS_EACH);
    for (int i = 0; i < subscriber->topic_count; i++)
        subscriber->topics[i] = below(TOPICS);
    subscriber_open(subscriber, server);
}

static void subscriber_drop(struct subscriber *subscriber)
{
    stream_close(&subscriber->stream);
    subscriber->connected = false;
}

static void take_block(struct subscriber *subscriber, const struct block *block)
{
    uint64_t id = strtoull(block->id, NULL, 10);

    cr_assert(id, "a block without an id: '%s' %s", block->event, block->data);
    cr_assert(strcmp(block->event, "ssed.gap") != 0, "%s", block->data);
    if (!subscriber->first)
        subscriber->first = id;
    cr_assert(id >= subscriber->last);
    subscriber->last = id;
    if (block->lines == 0)
        return;
    if (subscriber->count == subscriber->room) {
        subscriber->room = subscriber->room ? 2 * subscriber->room : 64;
        subscriber->ids =
            realloc(subscriber->ids, subscriber->room * sizeof(uint64_t));
        cr_assert(subscriber->ids);
    }
    subscriber->ids[subscriber->count++] = id;
}

static void subscriber_read(struct subscriber *subscriber)
{
    static struct block block;

    cr_assert(client_receive(&subscriber->stream.client, 0));
    cr_assert(!subscriber->stream.client.ended, "a subscriber was cut");
    while (stream_take(&subscriber->stream, &block))
        take_block(subscriber, &block);
}

/* Reads whatever has arrived for those who are awake; waits `timeout` ms for
 * something. */
static void read_all(int timeout)
{
    static struct pollfd fds[SUBSCRIBERS];
    int64_t now = now_ms();

    for (int i = 0; i < SUBSCRIBERS; i++) {
        bool reads = subscribers[i].connected && subscribers[i].asleep <= now;

        fds[i] = (struct pollfd){ reads ? subscribers[i].stream.client.fd : -1,
                                  POLLIN, 0 };
    }
    if (poll(fds, SUBSCRIBERS, timeout) <= 0)
        return;
    for (int i = 0; i < SUBSCRIBERS; i++)
        if (fds[i].revents)
            subscriber_read(&subscribers[i]);
}

/* What a subscriber has got agrees with the history between its positions. */
static void check_subscriber(const struct subscriber *subscriber)
{
    size_t next = 0;

    if (!subscriber->first)
        return;
    for (size_t i = 0; i < entry_count; i++) {
        const struct entry *entry = &entries[i];

        if (entry->id <= subscriber->first || entry->id > subscriber->last ||
            !reads_topic(subscriber, entry->topic))
            continue;
        cr_assert(
            next < subscriber->count && subscriber->ids[next] == entry->id,
            "seed %d: at %llu, had %llu", SEED, (unsigned long long)entry->id,
            next < subscriber->count ? (unsigned long long)subscriber->ids[next]
                                     : 0);
        next++;
    }
    cr_assert(next == subscriber->count, "seed %d: %zu too many", SEED,
              subscriber->count - next);
}

/* Those that left for good, until the history is known. */
static struct subscriber *left;
static size_t left_count;

static void keep_books_of(const struct subscriber *subscriber)
{
    left = realloc(left, (left_count + 1) * sizeof(*left));
    cr_assert(left);
    left[left_count++] = *subscriber;
}

/* Somebody loses the connection, comes back, sleeps, or leaves for good. */
static void disturb(const struct server *server)
{
    struct subscriber *subscriber = &subscribers[below(SUBSCRIBERS)];
    int what = below(PERCENT);

    if (!subscriber->connected)
        return;
    if (what < 60) {
        subscriber_drop(subscriber);
        subscriber->back_at = now_ms() + below(AWAY);
        if (!subscriber->first) /* had no position yet: begins anew */
            subscriber->last = 0;
    } else if (what < 85) {
        subscriber->asleep = now_ms() + below(AWAY);
    } else {
        subscriber_drop(subscriber);
        keep_books_of(subscriber);
        subscriber_begin(subscriber, server);
        replaced++;
    }
}

static void bring_back(const struct server *server, bool all)
{
    int64_t now = now_ms();

    for (int i = 0; i < SUBSCRIBERS; i++) {
        struct subscriber *subscriber = &subscribers[i];

        if (subscriber->connected || (subscriber->back_at > now && !all))
            continue;
        subscriber_open(subscriber, server);
        resumed++;
    }
}

/* -------------------------------------------------------------- the books */

static void enter(uint64_t id, int topic)
{
    cr_assert(entry_count < EVENTS_MAX);
    entries[entry_count++] = (struct entry){ id, topic };
}

/* Finds who published it; it is in the history for the first time. */
static void check_event(const struct block *block, uint64_t id, int topic)
{
    int number;
    size_t sequence;
    struct event *event;

    cr_assert(sscanf(block->data, "%d.%zu", &number, &sequence) == 2);
    cr_assert(number >= 0 && number < PUBLISHERS);
    cr_assert(sequence < publishers[number].acknowledged, "nobody published %s",
              block->data);
    event = &publishers[number].events[sequence];
    cr_assert(event->topic == topic && event->seen == 0, "%s", block->data);
    cr_assert(event->id == 0 || event->id == id, "%s has id %s, not %llu",
              block->data, block->id, (unsigned long long)event->id);
    event->seen = id;
}

static int by_id(const void *a, const void *b)
{
    uint64_t x = ((const struct entry *)a)->id;
    uint64_t y = ((const struct entry *)b)->id;

    return (x > y) - (x < y);
}

/* The history as it is replayed, each topic to its end, which is marked by an
 * event that is published then. */
static void read_history(const struct server *server)
{
    static struct block block;

    for (int topic = 0; topic < TOPICS; topic++) {
        struct stream stream;
        char target[128];

        snprintf(target, sizeof(target), "/events/%s", topic_name(topic));
        publish_to(server, target, "mark");
        snprintf(target, sizeof(target), "/events/%s?lastEventId=earliest",
                 topic_name(topic));
        stream_open(&stream, server, target, "");
        cr_assert(stream_next(&stream, &block));
        do {
            uint64_t id;

            cr_assert(stream_next(&stream, &block));
            id = strtoull(block.id, NULL, 10);
            enter(id, topic);
            if (strcmp(block.data, "mark") != 0)
                check_event(&block, id, topic);
        } while (strcmp(block.data, "mark") != 0);
        stream_close(&stream);
    }
    qsort(entries, entry_count, sizeof(entries[0]), by_id);
    for (size_t i = 1; i < entry_count; i++)
        cr_assert(entries[i].id > entries[i - 1].id);
}

static void check_publishers(void)
{
    size_t total = 0;

    for (int i = 0; i < PUBLISHERS; i++) {
        uint64_t before = 0;

        total += publishers[i].acknowledged;
        cr_assert(publishers[i].acknowledged == publishers[i].sent);
        for (size_t k = 0; k < publishers[i].acknowledged; k++) {
            cr_assert(publishers[i].events[k].seen > before,
                      "seed %d: %d.%zu is lost or out of order", SEED, i, k);
            before = publishers[i].events[k].seen;
        }
    }
    cr_assert(total + TOPICS == entry_count);
}

/* The newest event of a subscriber's topics. */
static uint64_t newest_for(const struct subscriber *subscriber)
{
    size_t i = entry_count;

    while (i > 0 && !reads_topic(subscriber, entries[i - 1].topic))
        i--;
    return i > 0 ? entries[i - 1].id : 0;
}

static void drain_subscribers(const struct server *server)
{
    int64_t deadline = now_ms() + patience();

    bring_back(server, true);
    for (int i = 0; i < SUBSCRIBERS; i++) {
        struct subscriber *subscriber = &subscribers[i];
        uint64_t newest = newest_for(subscriber);

        subscriber->asleep = 0;
        while (!subscriber->first || subscriber->last < newest) {
            read_all(10);
            cr_assert(now_ms() < deadline, "seed %d: somebody waits for %llu",
                      SEED, (unsigned long long)newest);
        }
    }
}

/* ---------------------------------------------------------------- the soak */

static void begin_soak(const struct server *server)
{
    srandom(SEED);
    for (int i = 0; i < PUBLISHERS; i++) {
        client_connect(&publishers[i].client, server);
        publishers[i].streams_to = -1;
        publishers[i].events =
            calloc(EVENTS_MAX / PUBLISHERS, sizeof(struct event));
        cr_assert(publishers[i].events);
    }
    for (int i = 0; i < SUBSCRIBERS; i++)
        subscriber_begin(&subscribers[i], server);
}

static void end_bodies(void)
{
    for (int i = 0; i < PUBLISHERS; i++) {
        while (publishers[i].streams_to >= 0) {
            publishers[i].chunks = 1;
            send_chunk(i);
            take_answers(&publishers[i]);
        }
    }
}

static void release_all(void)
{
    for (int i = 0; i < PUBLISHERS; i++) {
        client_close(&publishers[i].client);
        free(publishers[i].events);
    }
    for (int i = 0; i < SUBSCRIBERS; i++) {
        stream_close(&subscribers[i].stream);
        free(subscribers[i].ids);
    }
    for (size_t i = 0; i < left_count; i++)
        free(left[i].ids);
    free(left);
}

Test(soak, the_books_balance)
{
    const char *seconds = getenv("SOAK_SECONDS");
    int64_t end = now_ms() + INT64_C(1000) * (seconds ? atoi(seconds) : 10),
            next = 0;
    struct server server;

    server_start(&server, "--history", "1100000", "--history-bytes", "256M",
                 "--heartbeat", "1", "--max-connections", "2000");
    begin_soak(&server);
    while (now_ms() < end) {
        read_all(1);
        if (now_ms() < next)
            continue;
        next = now_ms() + TICK;
        publish_round();
        bring_back(&server, false);
        for (int i = 0; i < 3; i++)
            disturb(&server);
    }
    end_bodies();
    read_history(&server);
    drain_subscribers(&server);
    check_publishers();
    for (int i = 0; i < SUBSCRIBERS; i++)
        check_subscriber(&subscribers[i]);
    for (size_t i = 0; i < left_count; i++)
        check_subscriber(&left[i]);
    if (seconds)
        fprintf(stderr,
                "%zu events, %llu times resumed, %llu subscribers replaced\n",
                entry_count, (unsigned long long)resumed,
                (unsigned long long)replaced);
    cr_assert(entry_count > 0 && resumed > 0 && replaced > 0);
    release_all();
    server_stop(&server);
}
