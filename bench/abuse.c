/*
 * Bystanders: what 100 subscribers and their publisher notice while other
 * clients behave badly.
 *
 * Each case has a server of its own, where all but pages takes a signed token.
 * The bystanders connect first; then come the attackers, and once all of them
 * are at it the measuring begins. The publisher is open-loop: an event is due
 * every 50 ms, whether or not the ones before it have been acknowledged, and
 * all times are counted from when it was due, so a server that stalls is not
 * spared (no coordinated omission).
 *
 * A bystander that is cut off, an event that is lost, doubled or not
 * acknowledged by a 201, a server that does not end well: these are failures.
 * Times are only compared with a bound and shown, for a speed on a busy machine
 * proves nothing.
 *
 * The server has the first processor, all clients have the last. The
 * bystanders live in this process; each kind of attacker is a process of the
 * lowest priority, so that its use of the processor is not taken for the
 * server's slowness. What remains of that is shown: how late the publisher was.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <float.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    SUBSCRIBERS = 100,
    PUBLISHER = SUBSCRIBERS, /* behind them in the bystanders */
    BYSTANDERS,
    TIMER = BYSTANDERS, /* behind them in epoll's numbers */
    MS = 1000000,       /* ns */
    INTERVAL = 50,      /* ms from event to event */
    UNDISTURBED = 3,    /* runs without attackers */
    FACTOR = 3,         /* times their p99 is still well */
    ALWAYS_WELL = 15,   /* and so many ms are, anyway */
    SECONDS_MAX = 60,   /* of measuring */
    PATIENCE = 10,      /* s for the attackers to be at it */
    AFTERWARDS = 5,     /* s for what is due, while they still are */
    GRACE = 60,         /* and when they are no more: what then lacks is lost */
    CASE_MAX = 300,     /* s, of which nothing comes near */
    SAMPLES_MAX = (SECONDS_MAX * 1000 / INTERVAL + 1) * SUBSCRIBERS,
    LINE_KEPT = 64,
    READ_MAX = 65536,
    PATTERN = 16384, /* bytes that an attacker sends at a time, about */
    TEXT_MAX = 512,
    EVENTS_MAX = 256, /* of one epoll_wait */
    SWEEP = 100,      /* ms from look to look at what stands still */
    ATTACKS_MAX = 2,
    OPTIONS_MAX = 8,
};

static struct options {
    const char *ssed;
    double seconds;
    bool json;
} options = { .ssed = "./ssed", .seconds = 5 };

/* -------------------------------------------------------------- the cases */

/* What the connections of a process do: on each, the opening is sent once,
 * then the request again and again. */
struct attack {
    int connections;
    const char *opening; /* %d: the connection's number */
    const char *request;
    int body;    /* bytes of x behind each request */
    int window;  /* requests that may be unanswered; 0: no bound */
    int rate;    /* requests a second, of all together; 0: no bound */
    bool resets; /* it ends after the opening and comes again */
    bool unread; /* it never reads */
    int enough;  /* bytes after which it has read enough and comes again */
    int stale;   /* ms without a byte sent after which it comes again */
};

struct abuse {
    const char *name;
    const char *options[OPTIONS_MAX]; /* of the server */
    /* what is held before it begins: events in each of h0, h1 and so on */
    int topics, events, size;
    struct attack attacks[ATTACKS_MAX];
};

/* The server's secret, and a token for everything that was made with it:
 * {"read":["*"],"write":["*"],"exp":4000000000} */
#define SECRET "a secret that is none: it is here"
#define TOKEN                                         \
    "eyJhbGciOiJIUzI1NiJ9."                           \
    "eyJyZWFkIjpbIioiXSwid3JpdGUiOlsiKiJdLCJleHAiOjQ" \
    "wMDAwMDAwMDB9."                                  \
    "SlRuv-zYzNhN7Atu5F4pwsOn2oIbZ2Ww1T_YPtr-QOg"

#define PLAIN " HTTP/1.1\r\nHost: localhost\r\n"
#define HOST PLAIN "Authorization: Bearer " TOKEN "\r\n"
#define STREAM HOST "Content-Type: text/event-stream\r\n"
#define CHUNKED "Transfer-Encoding: chunked\r\n\r\n"
#define PAGE "GET /" PLAIN "\r\n"
#define MISSING "GET /nothing" PLAIN "\r\n"
#define SIXTEEN                                                           \
    "topic=h0&topic=h1&topic=h2&topic=h3&topic=h4&topic=h5&topic=h6&"     \
    "topic=h7&topic=h8&topic=h9&topic=h10&topic=h11&topic=h12&topic=h13&" \
    "topic=h14&topic=h15"

/* Asks with a token as long as may be, whose signature is wrong; those on this
 * machine may guess as often as they like. Made by make_guess(). */
static char guess[16384];

/* Those that are not read stand still once the buffers are full: new ones in
 * their place keep the attack up. */
#define READ(count, what)                                        \
    {                                                            \
        .connections = (count), .request = (what), .window = 600 \
    }
#define UNREAD(count, what)                                        \
    {                                                              \
        .connections = (count), .request = (what), .unread = true, \
        .stale = 500                                               \
    }

static const struct abuse undisturbed = { .name = "undisturbed" };

static const struct abuse abuses[] = {
    /* a byte of each head every 500 ms */
    { .name = "slow-heads",
      .attacks = { { .connections = 1000,
                     .opening = "GET /events/slow" HOST "X: ",
                     .request = "x",
                     .rate = 2000 } } },
    { .name = "never-read",
      .attacks = { { .connections = 500,
                     .opening = "GET /events/busy" HOST "\r\n",
                     .unread = true,
                     .stale = 2000 },
                   { .connections = 1,
                     .request = "POST /events/busy" HOST
                                "Content-Length: 4096\r\n\r\n",
                     .body = 4096,
                     .rate = 1000 } } },
    { .name = "connects",
      .attacks = { { .connections = 64, .resets = true },
                   { .connections = 64, .opening = PAGE, .resets = true } } },
    { .name = "replays",
      .options = { "--history", "10000" },
      .topics = 1,
      .events = 1000,
      .size = 4096,
      .attacks = { { .connections = 200,
                     .opening =
                         "GET /events/h0?lastEventId=earliest" HOST "\r\n",
                     .enough = 1000 * 4096 } } },
    { .name = "pages-1", .attacks = { READ(1, PAGE) } },
    { .name = "pages-100", .attacks = { READ(100, PAGE) } },
    { .name = "pages-100-unread", .attacks = { UNREAD(100, PAGE) } },
    { .name = "missing-1", .attacks = { READ(1, MISSING) } },
    { .name = "missing-100", .attacks = { READ(100, MISSING) } },
    { .name = "missing-100-unread", .attacks = { UNREAD(100, MISSING) } },
    /* id 100 is one of h0, and older than everything of h15 */
    { .name = "heads",
      .options = { "--history", "1000000", "--history-bytes", "256M",
                   "--first-id", "1" },
      .topics = 16,
      .events = 18750,
      .size = 8,
      .attacks = { { .connections = 256,
                     .request =
                         "HEAD /events?" SIXTEEN "&last=9999999" HOST "\r\n"
                         "HEAD /events/h15?lastEventId=100" HOST "\r\n" } } },
    { .name = "publishers",
      .attacks = { { .connections = 1000,
                     .opening = "POST /events/p%d" STREAM CHUNKED,
                     .request = "9\r\ndata: x\n\n\r\n" } } },
    { .name = "guesses-1", .attacks = { READ(1, guess) } },
    { .name = "guesses-100", .attacks = { READ(100, guess) } },
    { .name = "flood",
      .options = { "--max-connections", "300" },
      .attacks = { { .connections = 600 }, READ(300, PAGE) } },
};

enum {
    ABUSES = sizeof(abuses) / sizeof(abuses[0])
};

/* What the attackers have done, all told; in shared memory. */
struct tally {
    uint64_t connects, answers, sent, received; /* the latter two in bytes */
};

/* What the bystanders of a run have noticed; times in ms. */
struct outcome {
    const struct abuse *abuse;
    double p50, p99, longest;          /* from due to received */
    double answer_p99, answer_longest; /* from due to acknowledged */
    double late;                       /* from due to sent, at most */
    int lost, doubled, cut, refused;
    bool ended_badly; /* the server, or attackers before their time */
    struct tally attackers;
};

static struct tally *tally;
static const char *name = "begin"; /* of the run, for messages */
static int first_cpu = -1, last_cpu;
static int niceness; /* with which it was started: the server has it, too */

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "abuse: %s: %s: %s\n", name, what, strerror(errno));
    exit(2);
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t seconds_from_now(double seconds)
{
    return now_ns() + (uint64_t)(seconds * 1e9);
}

/* --------------------------------------------------------------- processes */

static void pin_to(int cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set) < 0)
        fail("sched_setaffinity");
}

static void prepare_machine(void)
{
    struct rlimit limit;
    cpu_set_t set;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        fail("getrlimit");
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0 ||
        sched_getaffinity(0, sizeof(set), &set) < 0)
        fail("setrlimit, sched_getaffinity");
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET((size_t)cpu, &set))
            continue;
        last_cpu = cpu;
        first_cpu = first_cpu < 0 ? cpu : first_cpu;
    }
    pin_to(last_cpu);
    niceness = getpriority(PRIO_PROCESS, 0);
    /* where it is allowed: the process that measures goes first */
    (void)setpriority(PRIO_PROCESS, 0, -5);
}

/* A process that ends with this one, whatever happens to it. */
static pid_t start_child(int cpu, int priority)
{
    pid_t parent = getpid(), pid = fork();

    if (pid < 0)
        fail("fork");
    if (pid > 0)
        return pid;
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
        _exit(126);
    pin_to(cpu);
    if (setpriority(PRIO_PROCESS, 0, priority) < 0)
        fail("setpriority");
    return 0;
}

/* Ends a process; returns its status, as waitpid() has it. */
static int end_child(pid_t pid, int signal)
{
    int status;

    if (kill(pid, signal) < 0)
        fail("kill");
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            fail("waitpid");
    return status;
}

/* -------------------------------------------------------------- the server */

struct server {
    pid_t pid;
    FILE *log;
    int port;
    bool ready, errors; /* what the log says */
};

static char secret_path[] = "/tmp/ssed-abuse-XXXXXX";
static pid_t secret_owner;

static void remove_secret(void)
{
    if (getpid() == secret_owner)
        unlink(secret_path);
}

static void make_secret(void)
{
    int fd = mkstemp(secret_path);

    if (fd < 0 || write(fd, SECRET, sizeof(SECRET) - 1) != sizeof(SECRET) - 1)
        fail("the secret");
    close(fd);
    secret_owner = getpid();
    atexit(remove_secret);
}

static void make_guess(void)
{
    enum {
        TOKEN_LONGEST = 8192,
        SIGNATURE = 43
    };
    size_t head = (size_t)sprintf(guess, "GET /events/guessed" PLAIN
                                         "Authorization: Bearer ");
    char *token = guess + head;

    memset(token, 'A', TOKEN_LONGEST);
    memcpy(token, TOKEN, strcspn(TOKEN, ".") + 1);
    token[TOKEN_LONGEST - SIGNATURE - 1] = '.';
    strcpy(token + TOKEN_LONGEST, "\r\n\r\n");
}

static _Noreturn void run_server(int log, const char *const more[])
{
    const char *arguments[8 + OPTIONS_MAX] = { options.ssed, "--port",
                                               "0",          "--interval",
                                               "0",          "--secret-file",
                                               secret_path };

    for (int i = 0; i < OPTIONS_MAX && more[i]; i++)
        arguments[7 + i] = more[i];
    if (dup2(log, STDERR_FILENO) < 0)
        _exit(126);
    execvp(arguments[0], (char *const *)(uintptr_t)arguments);
    fprintf(stderr, "level=error %s: %s\n", options.ssed, strerror(errno));
    _exit(127);
}

/* Reads what is new in the log, and shows the errors in it. */
static void read_log(struct server *server)
{
    static const char key[] = "event=listening address=127.0.0.1:";
    char line[TEXT_MAX];

    clearerr(server->log);
    while (fgets(line, sizeof(line), server->log)) {
        const char *address = strstr(line, key);

        if (address)
            server->port = atoi(address + sizeof(key) - 1);
        server->ready = server->ready || strstr(line, "event=ready");
        if (strstr(line, "level=error")) {
            fprintf(stderr, "abuse: %s: %s", name, line);
            server->errors = true;
        }
    }
}

/* The log is opened twice, for a place to read at that is not the writer's. */
static void start_server(struct server *server, const char *const more[])
{
    int log = memfd_create("log", MFD_CLOEXEC);
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", log);
    server->log = fopen(path, "re");
    if (!server->log)
        fail("the log");
    server->pid = start_child(first_cpu, niceness);
    if (server->pid == 0)
        run_server(log, more);
    close(log);
    while (read_log(server), !server->ready) {
        if (waitpid(server->pid, NULL, WNOHANG) != 0) {
            read_log(server);
            fputs("abuse: the server did not start\n", stderr);
            exit(2);
        }
        nanosleep(&(struct timespec){ .tv_nsec = 2L * MS }, NULL);
    }
}

/* True if it ended well. */
static bool stop_server(struct server *server)
{
    int status = end_child(server->pid, SIGTERM);

    read_log(server);
    fclose(server->log);
    if (status)
        fprintf(stderr, "abuse: %s: the server ended by %s %d\n", name,
                WIFSIGNALED(status) ? "signal" : "exit status",
                WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return status == 0 && !server->errors;
}

/* ------------------------------------------------------------- connections */

/* A connection from 127.0.0.1 and `host` addresses further, since one has not
 * ports enough for everybody. It ends by a reset, which leaves no port behind
 * in TIME_WAIT. */
static int connect_from(int host, int port, int flags, bool small)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK + (unsigned)host),
    };
    struct linger linger = { .l_onoff = 1 };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0), one = 1;

    if (fd < 0)
        fail("socket");
    if (setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one)) <
            0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)) < 0 ||
        (small && setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &one, sizeof(one)) < 0))
        fail("setsockopt");
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        fail("bind");
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((uint16_t)port);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 &&
        errno != EINPROGRESS)
        fail("connect");
    return fd;
}

/* By a socket that blocks. */
static void send_all(int fd, const char *bytes, size_t length)
{
    if (send(fd, bytes, length, MSG_NOSIGNAL) != (ssize_t)length)
        fail("send");
}

/* Publishes the events that a topic holds, in one body. */
static void fill_topic(const struct abuse *abuse, int port, int topic)
{
    size_t event = (size_t)abuse->size + 8;
    size_t length = event * (size_t)abuse->events;
    char head[TEXT_MAX], *body = malloc(length);
    int fd = connect_from(0, port, 0, false);

    if (!body)
        fail("malloc");
    memset(body, 'x', length);
    for (size_t at = 0; at < length; at += event) {
        memcpy(body + at, "data: ", 6);
        memcpy(body + at + event - 2, "\n\n", 2);
    }
    snprintf(head, sizeof(head),
             "POST /events/h%d" STREAM "Content-Length: %zu\r\n\r\n", topic,
             length);
    send_all(fd, head, strlen(head));
    send_all(fd, body, length);
    if (recv(fd, head, 12, MSG_WAITALL) != 12 ||
        memcmp(head, "HTTP/1.1 201", 12) != 0)
        fail("the history could not be filled");
    close(fd);
    free(body);
}

/* --------------------------------------------------------------- attackers */

struct client {
    int fd;
    int number;
    bool connected;
    uint32_t interest; /* what epoll has */
    uint64_t sent, received;
    uint64_t allowed; /* bytes of requests to be sent by now */
    uint64_t moved;   /* when it was begun or sent something */
    char tail[8];     /* of what was received: an answer's start may be split */
};

/* A process of attackers. */
struct gang {
    const struct attack *attack;
    int host, port, epoll;
    struct client *clients;
    char *pattern; /* requests, as many as make about PATTERN bytes */
    size_t request_length, pattern_length;
    uint64_t began, paced, swept, now;
};

static void add(uint64_t *number, uint64_t more)
{
    __atomic_fetch_add(number, more, __ATOMIC_RELAXED);
}

static void client_want(const struct gang *gang, struct client *client,
                        uint32_t interest)
{
    struct epoll_event event = { .events = interest, .data.ptr = client };
    int change = client->interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;

    if (interest == client->interest)
        return;
    if (epoll_ctl(gang->epoll, change, client->fd, &event) < 0)
        fail("epoll_ctl");
    client->interest = interest;
}

static void client_begin(const struct gang *gang, struct client *client)
{
    const struct attack *attack = gang->attack;
    uint64_t window = (uint64_t)attack->window * gang->request_length;

    *client = (struct client){
        .number = client->number,
        .moved = gang->now,
        .allowed =
            attack->request && !attack->rate && !window ? UINT64_MAX : window,
        .fd =
            connect_from(gang->host, gang->port, SOCK_NONBLOCK, attack->unread),
    };
    client_want(gang, client, EPOLLOUT);
}

static void client_again(const struct gang *gang, struct client *client)
{
    close(client->fd);
    client_begin(gang, client);
}

/* False if the connection is no more. */
static bool client_send(const struct gang *gang, struct client *client)
{
    uint64_t left = client->allowed - client->sent;
    uint32_t interest = gang->attack->unread ? EPOLLRDHUP : EPOLLIN;

    if (left) {
        size_t at = client->sent % gang->pattern_length;
        size_t length = gang->pattern_length - at;
        ssize_t n;

        n = send(client->fd, gang->pattern + at, left < length ? left : length,
                 MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        if (n > 0) {
            client->sent += (uint64_t)n;
            client->moved = gang->now;
            add(&tally->sent, (uint64_t)n);
        }
    }
    client_want(gang, client,
                interest | (client->sent < client->allowed ? EPOLLOUT : 0));
    return true;
}

/* False if the connection is no more, or has been read enough of. Answers are
 * counted by how they begin. */
static bool client_receive(const struct gang *gang, struct client *client)
{
    static const char start[] = "HTTP/1.1 ";
    static char bytes[sizeof(client->tail) + READ_MAX];
    size_t kept = sizeof(client->tail);
    ssize_t n = recv(client->fd, bytes + kept, READ_MAX, 0);
    char *at = bytes, *end = bytes + kept + n;

    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    memcpy(bytes, client->tail, kept);
    for (; (at = memmem(at, (size_t)(end - at), start, 9)); at += 9) {
        client->allowed += gang->attack->window ? gang->request_length : 0;
        add(&tally->answers, 1);
    }
    memcpy(client->tail, end - kept, kept);
    client->received += (uint64_t)n;
    add(&tally->received, (uint64_t)n);
    return n > 0 && (!gang->attack->enough ||
                     client->received < (uint64_t)gang->attack->enough);
}

/* It has been connected: the opening finds the socket empty. */
static bool client_open(const struct gang *gang, struct client *client)
{
    char text[TEXT_MAX] = "";
    size_t length;

    client->connected = true;
    add(&tally->connects, 1);
    if (gang->attack->opening)
        snprintf(text, sizeof(text), gang->attack->opening, client->number);
    length = strlen(text);
    add(&tally->sent, length);
    return (length == 0 ||
            send(client->fd, text, length, MSG_NOSIGNAL) == (ssize_t)length) &&
           !gang->attack->resets;
}

static void client_ready(const struct gang *gang, struct client *client,
                         uint32_t events)
{
    bool lives = !(events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP));

    if (lives && !client->connected)
        lives = client_open(gang, client);
    if (lives && events & EPOLLIN)
        lives = client_receive(gang, client);
    if (!lives || !client_send(gang, client))
        client_again(gang, client);
}

/* Lets one after the other send a request, as many as are due. */
static void gang_pace(struct gang *gang)
{
    const struct attack *attack = gang->attack;
    uint64_t ms = (gang->now - gang->began) / MS;
    uint64_t due = ms * (uint64_t)attack->rate / 1000;

    for (; gang->paced < due; gang->paced++) {
        struct client *client =
            &gang->clients[gang->paced % (uint64_t)attack->connections];

        client->allowed += gang->request_length;
        if (client->connected && !client_send(gang, client))
            client_again(gang, client);
    }
}

/* Begins again what stands still for too long. */
static void gang_sweep(struct gang *gang)
{
    uint64_t stale = (uint64_t)gang->attack->stale * MS;

    if (!stale || gang->now - gang->swept < (uint64_t)SWEEP * MS)
        return;
    gang->swept = gang->now;
    for (int i = 0; i < gang->attack->connections; i++)
        if (gang->now - gang->clients[i].moved > stale)
            client_again(gang, &gang->clients[i]);
}

static void gang_prepare(struct gang *gang)
{
    const struct attack *attack = gang->attack;
    const char *request = attack->request ? attack->request : "";
    size_t head = strlen(request), length = head + (size_t)attack->body, count;

    gang->clients = calloc((size_t)attack->connections, sizeof(*gang->clients));
    gang->epoll = epoll_create1(EPOLL_CLOEXEC);
    count = length ? PATTERN / length + 1 : 0;
    gang->request_length = length;
    gang->pattern_length = count * length;
    gang->pattern = malloc(gang->pattern_length + 1);
    if (!gang->clients || gang->epoll < 0 || !gang->pattern)
        fail("begin");
    memset(gang->pattern, 'x', gang->pattern_length);
    for (size_t i = 0; i < count; i++)
        memcpy(gang->pattern + i * length, request, head);
    gang->now = gang->began = now_ns();
    for (int i = 0; i < attack->connections; i++) {
        gang->clients[i].number = i;
        client_begin(gang, &gang->clients[i]);
    }
}

static _Noreturn void gang_run(struct gang *gang)
{
    struct epoll_event events[EVENTS_MAX];

    gang_prepare(gang);
    for (;;) {
        int count = epoll_wait(gang->epoll, events, EVENTS_MAX,
                               gang->attack->rate ? 1 : SWEEP);

        if (count < 0 && errno != EINTR)
            fail("epoll_wait");
        gang->now = now_ns();
        for (int i = 0; i < count; i++)
            client_ready(gang, events[i].data.ptr, events[i].events);
        gang_pace(gang);
        gang_sweep(gang);
    }
}

struct attackers {
    pid_t pids[ATTACKS_MAX]; /* 0: none */
    uint64_t wanted;         /* connections */
};

static void start_attackers(struct attackers *attackers,
                            const struct abuse *abuse, int port)
{
    memset(tally, 0, sizeof(*tally));
    for (int i = 0; i < ATTACKS_MAX && abuse->attacks[i].connections; i++) {
        struct gang gang = { .attack = &abuse->attacks[i],
                             .host = 1 + i,
                             .port = port };

        attackers->wanted += (uint64_t)gang.attack->connections;
        attackers->pids[i] = start_child(last_cpu, 19);
        if (attackers->pids[i])
            continue;
        alarm(CASE_MAX); /* it ends by itself, too */
        gang_run(&gang);
    }
}

/* False if one has ended by itself: it has said why. */
static bool stop_attackers(const struct attackers *attackers)
{
    bool well = true;

    for (int i = 0; i < ATTACKS_MAX && attackers->pids[i]; i++)
        well = WIFSIGNALED(end_child(attackers->pids[i], SIGKILL)) && well;
    if (!well)
        fprintf(stderr, "abuse: %s: attackers ended by themselves\n", name);
    return well;
}

/* -------------------------------------------------------------- bystanders */

/* A subscriber, or the publisher. */
struct bystander {
    int fd; /* -1: it has been cut off */
    /* of the newest event received, or acknowledged; -1: no answer yet */
    int number;
    int coming;   /* of the event under way; 0: none */
    uint64_t due; /* when that was */
    size_t kept;  /* of the line */
    char line[LINE_KEPT];
};

struct samples {
    size_t count;
    uint64_t values[SAMPLES_MAX];
};

struct crowd {
    struct outcome *outcome;
    const struct attackers *attackers;
    struct bystander bystanders[BYSTANDERS];
    int epoll, timer;
    int sent;       /* events */
    uint64_t began; /* when the first of them was due */
    uint64_t from;  /* what is due then or later is measured */
    uint64_t until; /* and nothing is due any more from then on */
    struct samples delivered, acknowledged;
};

static uint64_t due_time(const struct crowd *crowd, int number)
{
    return crowd->began + (uint64_t)(number - 1) * INTERVAL * MS;
}

static void record(const struct crowd *crowd, struct samples *samples,
                   uint64_t due)
{
    if (due >= crowd->from && samples->count < SAMPLES_MAX)
        samples->values[samples->count++] = now_ns() - due;
}

static void cut_off(struct crowd *crowd, struct bystander *bystander)
{
    crowd->outcome->cut++;
    close(bystander->fd);
    bystander->fd = -1;
}

/* A status line. A publisher that is refused ends, for it cannot be known any
 * more which events are to come. */
static void take_answer(struct crowd *crowd, struct bystander *bystander)
{
    bool publisher = bystander == &crowd->bystanders[PUBLISHER];

    if (memcmp(bystander->line + 9, publisher ? "201" : "200", 3) != 0) {
        crowd->outcome->refused++;
        fprintf(stderr, "abuse: %s: %s\n", name, bystander->line);
        close(bystander->fd);
        bystander->fd = -1;
        return;
    }
    bystander->number++;
    if (publisher)
        record(crowd, &crowd->acknowledged, due_time(crowd, bystander->number));
}

static void take_event(struct crowd *crowd, struct bystander *bystander)
{
    int coming = bystander->coming;

    bystander->coming = 0;
    if (coming <= bystander->number) {
        crowd->outcome->doubled++;
        return;
    }
    crowd->outcome->lost += coming - bystander->number - 1;
    bystander->number = coming;
    record(crowd, &crowd->delivered, bystander->due);
}

/* The sizes of chunks are lines that mean nothing here: ssed's chunks hold
 * whole lines, and its answers to a publish end with one. */
static void take_line(struct crowd *crowd, struct bystander *bystander)
{
    const char *line = bystander->line;
    char *rest;

    if (strncmp(line, "HTTP/1.1 ", 9) == 0) {
        take_answer(crowd, bystander);
    } else if (strncmp(line, "data: @", 7) == 0) {
        bystander->due = strtoull(line + 7, &rest, 10);
        bystander->coming = (int)strtol(rest, NULL, 10);
    } else if (*line == '\0' && bystander->coming) {
        take_event(crowd, bystander);
    }
}

/* Of a line only the start is kept. */
static void receive(struct crowd *crowd, struct bystander *bystander)
{
    static char bytes[READ_MAX];
    ssize_t n = recv(bystander->fd, bytes, sizeof(bytes), MSG_DONTWAIT);

    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        cut_off(crowd, bystander);
    for (ssize_t i = 0; i < n && bystander->fd >= 0; i++) {
        if (bytes[i] == '\n') {
            memset(bystander->line + bystander->kept, 0,
                   LINE_KEPT - bystander->kept);
            bystander->kept = 0;
            take_line(crowd, bystander);
        } else if (bytes[i] != '\r' && bystander->kept < LINE_KEPT - 1) {
            bystander->line[bystander->kept++] = bytes[i];
        }
    }
}

/* The socket has room for minutes: a request that is not taken whole is a
 * connection that has ended. */
static void publish(struct crowd *crowd, uint64_t due)
{
    struct bystander *publisher = &crowd->bystanders[PUBLISHER];
    char request[TEXT_MAX], data[64];
    double late = (double)(now_ns() - due) / MS;
    ssize_t length;

    snprintf(data, sizeof(data), "@%llu %d", (unsigned long long)due,
             ++crowd->sent);
    length =
        snprintf(request, sizeof(request),
                 "POST /events/bystanders" HOST "Content-Length: %zu\r\n\r\n%s",
                 strlen(data), data);
    if (send(publisher->fd, request, (size_t)length,
             MSG_NOSIGNAL | MSG_DONTWAIT) != length)
        cut_off(crowd, publisher);
    else if (due >= crowd->from && late > crowd->outcome->late)
        crowd->outcome->late = late;
}

static void publish_due(struct crowd *crowd)
{
    uint64_t expirations;

    if (read(crowd->timer, &expirations, sizeof(expirations)) < 0 &&
        errno != EAGAIN)
        fail("the timer");
    while (crowd->bystanders[PUBLISHER].fd >= 0) {
        uint64_t due = due_time(crowd, crowd->sent + 1);

        if (due > now_ns() || due >= crowd->until)
            return;
        publish(crowd, due);
    }
}

static void take_turn(struct crowd *crowd)
{
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(crowd->epoll, events, EVENTS_MAX, INTERVAL);

    if (count < 0 && errno != EINTR)
        fail("epoll_wait");
    for (int i = 0; i < count; i++) {
        uint32_t which = events[i].data.u32;

        if (which == TIMER)
            publish_due(crowd);
        else if (crowd->bystanders[which].fd >= 0)
            receive(crowd, &crowd->bystanders[which]);
    }
}

static bool are_attacked(const struct crowd *crowd)
{
    return __atomic_load_n(&tally->connects, __ATOMIC_RELAXED) >=
           crowd->attackers->wanted;
}

/* How many events everybody has to get: when the publisher has ended, those
 * that were acknowledged. */
static int expected(const struct crowd *crowd)
{
    const struct bystander *publisher = &crowd->bystanders[PUBLISHER];

    return publisher->fd < 0 ? publisher->number : crowd->sent;
}

/* Whether those that are still there have everything, also an answer. */
static bool have_all(const struct crowd *crowd)
{
    for (int i = 0; i < BYSTANDERS; i++)
        if (crowd->bystanders[i].fd >= 0 &&
            crowd->bystanders[i].number < expected(crowd))
            return false;
    return true;
}

static bool have_one(const struct crowd *crowd)
{
    return crowd->sent > 0 && have_all(crowd);
}

/* False if it does not come true in time; without a condition it is the time
 * that is waited for. */
static bool await(struct crowd *crowd, bool (*condition)(const struct crowd *),
                  double seconds)
{
    uint64_t deadline = seconds_from_now(seconds);

    while (!condition || !condition(crowd)) {
        if (now_ns() > deadline)
            return false;
        take_turn(crowd);
    }
    return true;
}

static void watch(const struct crowd *crowd, int fd, int which)
{
    struct epoll_event event = { .events = EPOLLIN,
                                 .data.u32 = (uint32_t)which };

    if (epoll_ctl(crowd->epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll_ctl");
}

static void connect_crowd(struct crowd *crowd, int port)
{
    static const char request[] = "GET /events/bystanders" HOST "\r\n";
    int room = 1 << 20;

    crowd->epoll = epoll_create1(EPOLL_CLOEXEC);
    crowd->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    for (int i = 0; i < BYSTANDERS; i++) {
        struct bystander *bystander = &crowd->bystanders[i];

        bystander->fd = connect_from(0, port, 0, false);
        bystander->number = i == PUBLISHER ? 0 : -1;
        watch(crowd, bystander->fd, i);
        if (i != PUBLISHER)
            send_all(bystander->fd, request, sizeof(request) - 1);
        else if (setsockopt(bystander->fd, SOL_SOCKET, SO_SNDBUF, &room,
                            sizeof(room)) < 0)
            fail("SO_SNDBUF");
    }
    watch(crowd, crowd->timer, TIMER);
    if (!await(crowd, have_all, PATIENCE)) {
        fprintf(stderr, "abuse: %s: a subscriber was not answered\n", name);
        exit(2);
    }
}

static void begin_publishing(struct crowd *crowd)
{
    struct itimerspec times = { .it_interval.tv_nsec = (long)INTERVAL * MS };

    crowd->began = now_ns() + (uint64_t)INTERVAL * MS;
    crowd->from = crowd->until = UINT64_MAX;
    times.it_value.tv_sec = (time_t)(crowd->began / 1000000000);
    times.it_value.tv_nsec = (long)(crowd->began % 1000000000);
    if (timerfd_settime(crowd->timer, TFD_TIMER_ABSTIME, &times, NULL) < 0)
        fail("timerfd_settime");
    await(crowd, have_one, PATIENCE);
}

/* What has not come has taken at least until now. */
static void end_crowd(struct crowd *crowd)
{
    struct outcome *outcome = crowd->outcome;
    int last = expected(crowd);

    for (int i = 0; i < BYSTANDERS; i++) {
        const struct bystander *bystander = &crowd->bystanders[i];
        bool publisher = i == PUBLISHER;

        if (bystander->fd < 0)
            continue;
        for (int k = bystander->number + 1; k <= last; k++) {
            outcome->lost += !publisher;
            outcome->refused += publisher;
            record(crowd, publisher ? &crowd->acknowledged : &crowd->delivered,
                   due_time(crowd, k));
        }
        close(bystander->fd);
    }
    close(crowd->timer);
    close(crowd->epoll);
}

/* --------------------------------------------------------------- measuring */

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* In milliseconds. */
static double percentile(struct samples *samples, size_t per_cent)
{
    size_t rank = (samples->count * per_cent + 99) / 100;

    qsort(samples->values, samples->count, sizeof(uint64_t), by_value);
    return rank ? (double)samples->values[rank - 1] / MS : 0;
}

/* What comes late is waited for while the attackers go on, so that its time is
 * not made better by their end; and then without them, for late is not lost. */
static void measure(struct crowd *crowd)
{
    struct outcome *outcome = crowd->outcome;

    if (!await(crowd, are_attacked, PATIENCE))
        fprintf(stderr, "abuse: %s: the attackers are not all at it\n", name);
    crowd->from = now_ns();
    crowd->until = seconds_from_now(options.seconds);
    await(crowd, NULL, options.seconds);
    outcome->attackers = *tally;
    await(crowd, have_all, AFTERWARDS);
    outcome->ended_badly = !stop_attackers(crowd->attackers);
    await(crowd, have_all, GRACE);
    end_crowd(crowd);
    outcome->p50 = percentile(&crowd->delivered, 50);
    outcome->p99 = percentile(&crowd->delivered, 99);
    outcome->longest = percentile(&crowd->delivered, 100);
    outcome->answer_p99 = percentile(&crowd->acknowledged, 99);
    outcome->answer_longest = percentile(&crowd->acknowledged, 100);
}

static void run_case(struct outcome *outcome)
{
    const struct abuse *abuse = outcome->abuse;
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    struct attackers attackers = { 0 };
    struct server server = { 0 };

    if (!crowd)
        fail("calloc");
    name = abuse->name;
    fprintf(stderr, "abuse: %s\n", name);
    alarm(CASE_MAX); /* the deadline of what is waited for without one */
    start_server(&server, abuse->options);
    for (int i = 0; i < abuse->topics; i++)
        fill_topic(abuse, server.port, i);
    crowd->outcome = outcome;
    crowd->attackers = &attackers;
    connect_crowd(crowd, server.port);
    begin_publishing(crowd);
    start_attackers(&attackers, abuse, server.port);
    measure(crowd);
    outcome->ended_badly = !stop_server(&server) || outcome->ended_badly;
    free(crowd);
}

/* ------------------------------------------------------------------ report */

/* Of the runs without attackers, the p99 in the middle: of three the second
 * one. */
static double undisturbed_p99(const struct outcome *outcomes, int count)
{
    double least = DBL_MAX, middle = DBL_MAX;

    for (int i = 0; i < count; i++) {
        double p99 = outcomes[i].p99;

        if (outcomes[i].abuse != &undisturbed)
            continue;
        if (p99 < least) {
            middle = least;
            least = p99;
        } else if (p99 < middle) {
            middle = p99;
        }
    }
    return middle;
}

static const char heading[] =
    "ms, from when due             delivered       201 sent   "
    "attackers                          bystanders\n"
    "case                  p50    p99 longest    p99 longest   late  connects"
    "   answers MB sent MB read lost doubled cut refused\n";
static const char row[] =
    "%-18s %6.1f %6.1f %7.1f %6.1f %7.1f %6.1f %9llu %9llu %7.1f %7.1f %4d "
    "%7d %3d %7d  %s\n";
static const char json[] =
    "{\"case\": \"%s\", \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"longest_ms\": "
    "%.3f, \"acknowledged_p99_ms\": %.3f, \"acknowledged_longest_ms\": %.3f, "
    "\"self_late_ms\": %.3f, \"connects\": %llu, \"answers\": %llu, "
    "\"megabytes_sent\": %.3f, \"megabytes_read\": %.3f, \"lost\": %d, "
    "\"doubled\": %d, \"cut\": %d, \"refused\": %d, \"verdict\": \"%s\"}\n";

static void print_outcome(const struct outcome *outcome, const char *verdict)
{
    const struct tally *attackers = &outcome->attackers;

    printf(options.json ? json : row, outcome->abuse->name, outcome->p50,
           outcome->p99, outcome->longest, outcome->answer_p99,
           outcome->answer_longest, outcome->late,
           (unsigned long long)attackers->connects,
           (unsigned long long)attackers->answers,
           (double)attackers->sent / 1e6, (double)attackers->received / 1e6,
           outcome->lost, outcome->doubled, outcome->cut, outcome->refused,
           verdict);
}

/* Returns the exit status. */
static int report(const struct outcome *outcomes, int count)
{
    double bound = FACTOR * undisturbed_p99(outcomes, count);
    bool failed = false;

    bound = bound < ALWAYS_WELL ? ALWAYS_WELL : bound;
    if (!options.json)
        fputs(heading, stdout);
    for (int i = 0; i < count; i++) {
        const struct outcome *outcome = &outcomes[i];
        const char *verdict = outcome->p99 <= bound ? "met" : "MISSED";

        if (outcome->abuse == &undisturbed)
            verdict = "-";
        if (outcome->lost || outcome->doubled || outcome->cut ||
            outcome->refused || outcome->ended_badly) {
            verdict = "FAILED";
            failed = true;
        }
        print_outcome(outcome, verdict);
    }
    if (!options.json)
        printf("bound: delivered p99 <= %.1f ms\n", bound);
    return failed;
}

/* -------------------------------------------------------------------- main */

static const char usage[] =
    "usage: abuse [OPTION...] [CASE...]\n"
    "What 100 subscribers and a publisher notice while other clients behave "
    "badly:\n"
    "milliseconds from when an event was due to its arrival, and to its 201.\n"
    "\"late\" is how late the publisher sent one: this machine's own noise.\n"
    "  --seconds N    for each case (5)\n"
    "  --ssed PATH    the server (./ssed)\n"
    "  --json         print a line of JSON for each case, not a table\n"
    "  --help         this text\n"
    "Exit status: 1 when an event was lost or doubled, a connection cut, a "
    "publish\n"
    "refused, or the server ended badly; a bound that is missed is only "
    "shown.\n"
    "Cases (all of them):\n";

static _Noreturn void print_usage(void)
{
    fputs(usage, stdout);
    for (int i = 0; i < ABUSES; i++)
        printf("  %s\n", abuses[i].name);
    exit(fflush(stdout) != 0);
}

static void parse_options(int argc, char **argv)
{
    static const struct option names[] = {
        { "seconds", 1, NULL, 's' }, { "ssed", 1, NULL, 'p' },
        { "json", 0, NULL, 'j' },    { "help", 0, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    char *end = NULL;
    int code;

    while ((code = getopt_long(argc, argv, "", names, NULL)) != -1) {
        if (code == 's')
            options.seconds = strtod(optarg, &end);
        else if (code == 'p')
            options.ssed = optarg;
        else if (code == 'h')
            print_usage();
        else if (code == '?')
            exit(2);
        options.json = options.json || code == 'j';
    }
    if ((end && *end) || !(options.seconds >= 0.1) ||
        options.seconds > SECONDS_MAX) {
        fprintf(stderr, "abuse: --seconds is a number from 0.1 to %d\n",
                SECONDS_MAX);
        exit(2);
    }
}

static const struct abuse *find_abuse(const char *wanted)
{
    for (int i = 0; i < ABUSES; i++)
        if (strcmp(abuses[i].name, wanted) == 0)
            return &abuses[i];
    fprintf(stderr, "abuse: there is no case '%s': see --help\n", wanted);
    exit(2);
}

/* The undisturbed runs are the first, one in the middle and the last, for the
 * machine may be busier at one time than at another. Returns how many runs. */
static int plan(struct outcome *outcomes, char **names, int given)
{
    int wanted = given ? given : ABUSES, count = 0;

    outcomes[count++].abuse = &undisturbed;
    for (int i = 0; i < wanted; i++) {
        outcomes[count++].abuse = given ? find_abuse(names[i]) : &abuses[i];
        if (i == wanted / 2)
            outcomes[count++].abuse = &undisturbed;
    }
    outcomes[count++].abuse = &undisturbed;
    return count;
}

int main(int argc, char **argv)
{
    struct outcome *outcomes;
    int count, status;

    parse_options(argc, argv);
    outcomes = calloc((size_t)argc + ABUSES + UNDISTURBED, sizeof(*outcomes));
    tally = mmap(NULL, sizeof(*tally), PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!outcomes || tally == MAP_FAILED)
        fail("memory");
    count = plan(outcomes, argv + optind, argc - optind);
    prepare_machine();
    make_secret();
    make_guess();
    for (int i = 0; i < count; i++)
        run_case(&outcomes[i]);
    status = report(outcomes, count);
    free(outcomes);
    return status;
}
