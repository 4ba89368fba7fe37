/*
 * Unix sockets from outside: who may have the path and when, what is left
 * behind, and the mode.
 */
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define HEALTH "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"

/* A folder of the test's own, and a path in it that nothing is at. */
static char folder[] = "/tmp/ssed-unix-XXXXXX";
static char path[64], listen_option[80];

static void make_folder(void)
{
    cr_assert(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/s", folder);
    snprintf(listen_option, sizeof(listen_option), "unix:%s", path);
}

static void remove_folder(void)
{
    unlink(path);
    rmdir(folder);
}

TestSuite(unix, .init = make_folder, .fini = remove_folder);

static void expect_health(void)
{
    struct client client;
    struct response response;

    client_connect_unix(&client, path);
    client_send(&client, HEALTH);
    client_response(&client, &response, false);
    cr_assert(response.status == 200);
    client_close(&client);
}

static void leave_socket_behind(void)
{
    struct server server;

    server_start(&server, "--listen", listen_option);
    kill(server.pid, SIGKILL);
    cr_assert(server_wait(&server) == -SIGKILL);
    cr_assert(access(path, F_OK) == 0);
}

static void expect_in_use(void)
{
    char out[4096], err[4096];

    cr_assert(run_to_end((const char *[]){ "--listen", listen_option, NULL },
                         out, err) == 1);
    cr_assert(strstr(err, "in use"), "%s", err);
}

Test(unix, the_socket_of_the_next_server_stays)
{
    struct server old, next;

    server_start(&old, "--listen", listen_option);
    cr_assert(unlink(path) == 0);
    server_start(&next, "--listen", listen_option);
    server_stop(&old);
    expect_health();
    server_stop(&next);
    cr_assert(access(path, F_OK) != 0, "the socket is left behind");
}

Test(unix, a_file_in_its_place_stays)
{
    struct server server;
    int fd;

    server_start(&server, "--listen", listen_option);
    cr_assert(unlink(path) == 0);
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    cr_assert(fd >= 0 && close(fd) == 0);
    server_stop(&server);
    cr_assert(access(path, F_OK) == 0);
    expect_in_use();
    cr_assert(access(path, F_OK) == 0);
}

Test(unix, a_link_to_a_stale_socket_is_no_socket)
{
    char target[80];

    leave_socket_behind();
    snprintf(target, sizeof(target), "%s.old", path);
    cr_assert(rename(path, target) == 0 && symlink(target, path) == 0);
    expect_in_use();
    cr_assert(unlink(target) == 0);
}

/* Waits until each listens or has ended; one must listen. */
static struct server *the_one_that_listens(struct server *servers, int count)
{
    struct server *listens = NULL;

    for (int i = 0; i < count; i++) {
        if (server_await_either(&servers[i], "event=ready", "in use")) {
            cr_assert(!listens, "two listen");
            listens = &servers[i];
        } else {
            cr_assert(server_wait(&servers[i]) == 1);
            close(servers[i].log);
        }
    }
    cr_assert(listens, "none listens");
    return listens;
}

static void start_at_once(void)
{
    enum {
        SERVERS = 8
    };
    const char *options[] = { "--listen", listen_option, NULL };
    struct server servers[SERVERS], *listens;

    leave_socket_behind();
    for (int i = 0; i < SERVERS; i++)
        server_launch(&servers[i], options);
    listens = the_one_that_listens(servers, SERVERS);
    expect_health();
    server_stop(listens);
}

/* Whether the server has got to where it waits for the folder. */
static bool has_folder_open(const struct server *server)
{
    bool found = false;

    for (int fd = 0; fd < 64 && !found; fd++) {
        char link[64], target[256];
        ssize_t length;

        snprintf(link, sizeof(link), "/proc/%d/fd/%d", server->pid, fd);
        length = readlink(link, target, sizeof(target) - 1);
        target[length < 0 ? 0 : length] = '\0';
        found = strcmp(target, folder) == 0;
    }
    return found;
}

static bool is_ready(const struct server *server)
{
    char *log = server_log(server);
    bool ready = strstr(log, "event=ready") != NULL;

    free(log);
    return ready;
}

/* One has seen that the socket is stale when the other comes. */
Test(unix, the_socket_that_is_removed_is_the_stale_one)
{
    const char *options[] = { "--listen", listen_option, NULL };
    struct server servers[2], *listens;
    char hold[80], reached[96];
    int64_t deadline = 0;

    leave_socket_behind();
    snprintf(hold, sizeof(hold), "%s/hold", folder);
    snprintf(reached, sizeof(reached), "%s.reached", hold);
    cr_assert(close(creat(hold, 0600)) == 0);
    hold_up("HOLD_UNLINK", hold);
    server_launch(&servers[0], options);
    while (access(reached, F_OK) != 0)
        await_tick(&deadline, "the first one");
    server_launch(&servers[1], options);
    while (!has_folder_open(&servers[1]) && !is_ready(&servers[1]))
        await_tick(&deadline, "the second one");
    cr_assert(unlink(reached) == 0);
    listens = the_one_that_listens(servers, 2);
    expect_health();
    server_stop(listens);
}

Test(unix, of_several_that_start_at_once_one_has_it)
{
    for (int round = 0; round < 10; round++)
        start_at_once();
}

/* connect(2) waits for room in the queue, which nobody makes. */
Test(unix, a_listener_with_a_full_queue_is_no_obstacle_but_in_use)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int clients[16];
    size_t count = 0;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    cr_assert(bind(listener, (struct sockaddr *)&address, sizeof(address)) ==
                  0 &&
              listen(listener, 0) == 0);
    do {
        cr_assert(count < sizeof(clients) / sizeof(clients[0]));
        clients[count] =
            socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    } while (connect(clients[count++], (struct sockaddr *)&address,
                     sizeof(address)) == 0);
    cr_assert(errno == EAGAIN);
    expect_in_use();
    while (count > 0)
        close(clients[--count]);
    close(listener);
}

Test(unix, a_folder_that_stays_locked_is_named)
{
    char out[4096], err[4096];
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    cr_assert(fd >= 0 && flock(fd, LOCK_EX) == 0);
    cr_assert(run_to_end((const char *[]){ "--listen", listen_option, NULL },
                         out, err) == 1);
    cr_assert(strstr(err, path) && strstr(err, "locked"), "%s", err);
    close(fd);
}

static void expect_mode(const char *ending, mode_t mask, mode_t mode)
{
    struct server server;
    struct stat status;
    mode_t before = umask(mask);
    char option[128], line[32], proc[64], text[4096] = "";
    FILE *file;

    snprintf(option, sizeof(option), "%s%s", listen_option, ending);
    server_start(&server, "--listen", option);
    umask(before);
    cr_assert_str_eq(server.address, listen_option);
    cr_assert(lstat(path, &status) == 0);
    cr_assert((status.st_mode & 07777) == mode, "%s: %o", ending,
              status.st_mode & 07777);
    /* what else it makes is under the mask that it was given */
    snprintf(proc, sizeof(proc), "/proc/%d/status", server.pid);
    snprintf(line, sizeof(line), "\nUmask:\t%04o\n", mask);
    file = fopen(proc, "re");
    cr_assert(file && fread(text, 1, sizeof(text) - 1, file) > 0);
    fclose(file);
    if (!getenv("SSED_UNDER"))
        cr_assert(strstr(text, line), "%s", text);
    server_stop(&server);
    cr_assert(access(path, F_OK) != 0, "the socket is left behind");
}

Test(unix, has_the_mode_that_is_asked_for)
{
    expect_mode("", 0, 0600);
    expect_mode("", 077, 0600);
    expect_mode(",mode=660", 077, 0660);
    expect_mode(",mode=0666", 022, 0666);
    expect_mode(",mode=000", 0, 0);
}

/* The service manager's: it is served, and its path is not this server's to
 * remove. */
Test(unix, a_socket_that_is_handed_over_stays)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct server server;

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    cr_assert(listener >= 0);
    cr_assert(bind(listener, (void *)&address, sizeof(address)) == 0);
    cr_assert(listen(listener, 16) == 0);
    server_start_handed(&server, listener, (const char *[]){ NULL });
    cr_assert_str_eq(server.address, listen_option);
    expect_health();
    server_stop(&server);
    cr_assert(access(path, F_OK) == 0);
    close(listener);
}

/* A start that fails at a later listener leaves nothing behind. */
Test(unix, nothing_is_left_by_a_start_that_fails)
{
    char out[4096], err[4096];

    cr_assert(run_to_end((const char *[]){ "--listen", listen_option,
                                           "--listen", "192.0.2.1:1", NULL },
                         out, err) == 1);
    cr_assert(strstr(err, "cannot listen on '192.0.2.1:1'"), "%s", err);
    cr_assert(access(path, F_OK) < 0);
}
