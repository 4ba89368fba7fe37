/*
 * Unit tests of http.c from inside, with handlers of their own: its queues and
 * timers, the memory of requests, and addresses.
 */
/* NOLINTNEXTLINE(bugprone-suspicious-include): what is static is tested too */
#include "../http.c"

#include <criterion/criterion.h>

static void ignore_closing(struct server *server, struct conn *conn,
                           const char *reason)
{
    (void)server;
    (void)conn;
    (void)reason;
}

static const struct handlers handlers = { .closing = ignore_closing };

/* Connections without sockets. */
static void begin(struct http *http, uint32_t connections)
{
    *http = (struct http){
        .handlers = &handlers,
        .memory_limit = 1 << 20,
        .conn_limit = connections,
        .conns = calloc(connections + 1, sizeof(struct conn)),
    };
    cr_assert(http->conns);
    begin_table(http);
    http->now = http->wheel_tick = 0;
    http->epoll = -1;
}

/* None of its connections has anything of its own any more. */
static void finish(struct http *http)
{
    while (http->spare) {
        struct exchange *exchange = http->spare;

        http->spare = exchange->next_spare;
        exchange_free(exchange);
    }
    free(http->conns);
}

/* ----------------------------------------------------- queues and timers */

Test(queues, are_lists_from_which_any_can_leave)
{
    enum {
        MANY = 20
    };
    struct http http;
    uint32_t expected[MANY], count = 0;

    srandom(1);
    begin(&http, MANY);
    for (int round = 0; round < 2000; round++) {
        uint32_t fd = (uint32_t)random() % MANY, at = 0;
        struct conn *conn = conn_at(&http, fd);

        while (at < count && expected[at] != fd)
            at++;
        queue_remove(&http, conn);
        if (at < count) {
            count--;
            memmove(expected + at, expected + at + 1,
                    (count - at) * sizeof(*expected));
        } else {
            queue_push(&http, QUEUE_READY, conn);
            expected[count++] = fd;
        }
        cr_assert(http.queues[QUEUE_READY].count == count);
        if (random() % 8 || count == 0)
            continue;
        cr_assert(queue_pop(&http, QUEUE_READY) == conn_at(&http, expected[0]));
        memmove(expected, expected + 1, --count * sizeof(*expected));
    }
    finish(&http);
}

/* Whatever has something to be read or to be answered keeps a drain from its
 * end: also one that has just been accepted, which is taken for busy. */
Test(queues, are_not_idle_while_an_answer_is_to_come)
{
    struct http http;

    begin(&http, 1);
    for (enum queue_name name = QUEUE_WORK; name < QUEUES; name++) {
        queue_push(&http, name, conn_at(&http, 0));
        cr_assert(http_is_idle(&http) == (name > QUEUE_ANSWERS_BUSY));
        queue_remove(&http, conn_at(&http, 0));
        cr_assert(http_is_idle(&http));
    }
    finish(&http);
}

/* Each expires once, when it is due or a tick later, however far away that is
 * and however often it is put off. One that lingers is closed by it. */
Test(timers, expire_when_they_are_due)
{
    enum {
        MANY = 300,
        FAR = 200000 /* ms: more than the wheel has slots for */
    };
    struct http http;
    uint64_t due[MANY];

    srandom(2);
    begin(&http, MANY);
    for (uint32_t fd = 0; fd < MANY; fd++) {
        conn_set_state(&http, conn_at(&http, fd), CONN_REQUEST);
        conn_set_state(&http, conn_at(&http, fd), CONN_LINGER);
        due[fd] = (uint64_t)random() % FAR;
        timer_start(&http, conn_at(&http, fd), due[fd]);
    }
    for (; http.now < FAR + 1000; http.now += (uint64_t)random() % 500) {
        uint32_t fd = (uint32_t)random() % MANY;
        struct conn *conn = conn_at(&http, fd);

        do
            http_expire(&http);
        while (http.wheel_tick < http.now >> TICK_SHIFT);
        for (uint32_t i = 0; i < MANY; i++)
            cr_assert((conn_at(&http, i)->state == CONN_CLOSED) ==
                          (due[i] >> TICK_SHIFT < http.now >> TICK_SHIFT),
                      "due at %llu, now %llu", (unsigned long long)due[i],
                      (unsigned long long)http.now);
        if (conn->state == CONN_LINGER && random() % 2) {
            due[fd] = http.now + (uint64_t)random() % FAR;
            timer_start(&http, conn, due[fd] - http.now);
        }
        cr_assert(wheel_next(&http) > http.now || wheel_next(&http) == NEVER);
    }
    finish(&http);
}

/* ------------------------------------------------- the memory of requests */

Test(memory, is_bounded_and_comes_back)
{
    enum {
        MANY = 1000
    };
    struct http http;
    struct exchange *taken[MANY];
    size_t count = 0;
    char *bytes = NULL;
    size_t room = 0;

    begin(&http, 1);
    while (count < MANY && (taken[count] = exchange_take(&http, false)))
        count++;
    cr_assert(count > 100 && count < MANY && errno == EAGAIN);
    cr_assert(http.request_memory <= http.memory_limit);
    cr_assert(!memory_grow(&http, &bytes, &room, 100 << 10) && !bytes && !room);
    while (count)
        exchange_release(&http, taken[--count]);
    cr_assert(http.request_memory == 0);
    cr_assert(http.spare_count == SPARE_EXCHANGES);
    cr_assert(memory_grow(&http, &bytes, &room, 1000) && room == 1000);
    cr_assert(memory_grow(&http, &bytes, &room, 10) && room == 1000);
    cr_assert(http.request_memory == 1000);
    memory_free(&http, &bytes, &room);
    cr_assert(http.request_memory == 0);
    finish(&http);
}

/* From the memory of malloc(3) to pages of its own and on: the bytes stay, and
 * what is counted is what is taken. */
Test(memory, grows_into_pages_with_its_bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t sizes[] = { 1,        100,       page - 1,
                       page,     page + 1,  3 * page - 1,
                       3 * page, 50 * page, 50 * page + 7 };
    struct http http;
    char *bytes = NULL;
    size_t room = 0;

    begin(&http, 1);
    http.memory_limit = 64 * page;
    for (size_t i = 0; i < COUNT(sizes); i++) {
        size_t before = room, cost = memory_cost(sizes[i]);

        cr_assert(memory_grow(&http, &bytes, &room, sizes[i]));
        cr_assert(room == sizes[i] && http.request_memory == cost);
        cr_assert(cost >= room && cost < room + page);
        cr_assert(room >= page || cost == room);
        for (size_t k = 0; k < before; k++)
            cr_assert(bytes[k] == (char)(k * 7));
        for (size_t k = before; k < room; k++)
            bytes[k] = (char)(k * 7);
    }
    cr_assert(!memory_grow(&http, &bytes, &room, 65 * page));
    cr_assert(room == 50 * page + 7 &&
              bytes[room - 1] == (char)((room - 1) * 7));
    memory_free(&http, &bytes, &room);
    cr_assert(http.request_memory == 0 && !bytes && !room);
    finish(&http);
}

/* --------------------------------------------- connections by network */

/* Addresses that differ in few bits, as those of one provider do. */
static struct in6_addr nth_address(uint32_t n)
{
    struct in6_addr address = IN6ADDR_ANY_INIT;

    memset(&address.s6_addr[10], 0xFF, 2);
    memcpy(&address.s6_addr[12], &n, sizeof(n));
    return address;
}

/* At random, up to as many as the table is made for, and back to none: the
 * counts are those of a naive table. */
Test(networks, are_counted_exactly)
{
    enum {
        CONNECTIONS = 100,
        NAMES = 150,
        ROUNDS = 200000,
    };
    struct networks *networks = networks_make(CONNECTIONS);
    uint32_t counts[NAMES] = { 0 }, total = 0;

    cr_assert(networks && networks->mask + 1 == 256);
    srandom(5);
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t which = (uint32_t)random() % NAMES;
        struct in6_addr address = nth_address(which);
        bool fills = round / 2000 % 2 == 0;

        cr_assert(network_find(networks, &address)->count == counts[which]);
        if (total < CONNECTIONS && (fills || random() % 8 == 0)) {
            network_add(networks, &address);
            counts[which]++;
            total++;
        } else if (counts[which]) {
            network_remove(networks, &address);
            counts[which]--;
            total--;
        }
        cr_assert(network_find(networks, &address)->count == counts[which]);
    }
    for (uint32_t i = 0; i < NAMES; i++)
        for (; counts[i]; counts[i]--) {
            struct in6_addr address = nth_address(i);

            network_remove(networks, &address);
        }
    for (uint32_t at = 0; at <= networks->mask; at++)
        cr_assert(networks->entries[at].count == 0);
    free(networks);
}

/* All have one home, the last entry of the table, so that they go on at its
 * begin: each is found whatever goes before it, also with no entry free but one
 * more than there are connections. */
Test(networks, are_found_where_all_collide)
{
    enum {
        CONNECTIONS = 8,
    };
    struct networks *networks = networks_make(CONNECTIONS);

    cr_assert(networks);
    for (uint32_t first = 0; first < CONNECTIONS; first++) {
        for (size_t i = 0; i < sizeof(struct in6_addr); i++)
            for (int k = 0; k < 256; k++)
                networks->random[i][k] = i ? 0 : networks->mask;
        for (uint32_t i = 0; i < CONNECTIONS; i++) {
            struct in6_addr address = nth_address(i);

            network_add(networks, &address);
        }
        for (uint32_t i = 0; i < CONNECTIONS; i++) {
            struct in6_addr address =
                nth_address((first + i * 3) % CONNECTIONS);

            network_remove(networks, &address);
            cr_assert(network_find(networks, &address)->count == 0);
            for (uint32_t k = i + 1; k < CONNECTIONS; k++) {
                address = nth_address((first + k * 3) % CONNECTIONS);
                cr_assert(network_find(networks, &address)->count == 1);
            }
        }
    }
    free(networks);
}

/* Entries whose homes lie close together, on both sides of the table's end: one
 * moves up only as far as its home. */
Test(networks, move_up_to_their_homes)
{
    enum {
        CONNECTIONS = 16,
    };
    struct networks *networks = networks_make(CONNECTIONS);
    bool there[CONNECTIONS] = { 0 };

    cr_assert(networks);
    memset(networks->random, 0, sizeof(networks->random));
    for (uint32_t k = 0; k < CONNECTIONS; k++) /* two have each home */
        networks->random[12][k] = networks->mask - 3 + k / 2;
    srandom(6);
    for (int round = 0; round < 100000; round++) {
        uint32_t which = (uint32_t)random() % CONNECTIONS;
        struct in6_addr address = nth_address(which);

        (there[which] ? network_remove : network_add)(networks, &address);
        there[which] = !there[which];
        for (uint32_t i = 0; i < CONNECTIONS; i++) {
            address = nth_address(i);
            cr_assert(network_find(networks, &address)->count == there[i]);
        }
    }
    free(networks);
}

Test(networks, hash_by_random_tables)
{
    enum {
        CONNECTIONS = 1 << 16,
    };
    struct networks *a = networks_make(CONNECTIONS);
    struct networks *b = networks_make(CONNECTIONS);
    struct in6_addr address = nth_address(1);
    uint32_t same = 0;

    cr_assert(a && b);
    for (uint32_t i = 0; i < 1000; i++) {
        address = nth_address(i);
        same += network_home(a, &address) == network_home(b, &address);
    }
    cr_assert(same < 10, "%u", same);
    free(a);
    free(b);
}

/* -------------------------------------------------------------- addresses */

Test(listeners, addresses)
{
    static const struct {
        const char *name, *host, *port; /* NULL: it is none */
    } rows[] = {
        { "127.0.0.1:3000", "127.0.0.1", "3000" },
        { "[::1]:0", "::1", "0" },
        { "3000", "127.0.0.1", "3000" },
        { "localhost:80", "127.0.0.1", "80" },
        { "::1:80", NULL, NULL },
        { ":80", NULL, NULL },
        { "1.2.3.4:", NULL, NULL },
        { "1.2.3.4:65536", NULL, NULL },
        { "1.2.3.4:8o", NULL, NULL },
    };

    for (size_t i = 0; i < COUNT(rows); i++) {
        char host[64];
        const char *port;
        bool split = split_address(rows[i].name, host, &port);

        cr_assert(split == (rows[i].host != NULL), "%s", rows[i].name);
        if (!split)
            continue;
        cr_assert_str_eq(host, rows[i].host);
        cr_assert_str_eq(port, rows[i].port);
    }
}

/* ------------------------------------------------------------ credentials */

Test(credentials, are_those_of_a_bearer)
{
    static const struct {
        const char *authorization, *token; /* NULL: it is none */
    } rows[] = {
        { "Bearer a.b", "a.b" },
        { "bEARER  a ", "a" },
        { "Bearer", "" },
        { "Bearer ", "" },
        { "Basic a", NULL },
        { "Bearera", NULL },
        { "", NULL },
    };
    struct slice token;

    for (size_t i = 0; i < COUNT(rows); i++) {
        bool is_there = bearer(slice_of(rows[i].authorization), &token);

        cr_assert(is_there == (rows[i].token != NULL), "%s",
                  rows[i].authorization);
        cr_assert(!is_there || slice_is(token, rows[i].token), "%s",
                  rows[i].authorization);
    }
    cr_assert(!bearer((struct slice){ NULL, 0 }, &token));
}

Test(credentials, are_the_token_and_nothing_else)
{
    static const char *const wrong[] = {
        "",           "Bearer",    "Bearer a.", "Bearer a.bc",
        "Bearer a.c", "Basic a.b", "a.b",
    };
    static struct http http = { .token = "a.b", .token_length = 3 };
    struct request request = { .authorization = slice_of("Bearer a.b") };

    cr_assert(http_token_matches(&http, &request));
    for (size_t i = 0; i < COUNT(wrong); i++) {
        request.authorization = slice_of(wrong[i]);
        cr_assert(!http_token_matches(&http, &request), "%s", wrong[i]);
    }
}
