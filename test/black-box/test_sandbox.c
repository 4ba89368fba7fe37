/*
 * What the server gives up: the privileges of its process, as /proc tells them;
 * and that what it goes on to need, it still has. What it can no longer do is
 * not tried here.
 */
#include "harness.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define USER "nobody" /* there is one on every system */

/* A folder of the test's own, and paths in it. */
static char folder[] = "/tmp/ssed-sandbox-XXXXXX";
static char token[64], new_token[64], history[64], unix_path[64];
static char unix_option[80], page[64], other[64];
static struct server server;

static void make_folder(void)
{
    cr_assert(mkdtemp(folder));
    snprintf(token, sizeof(token), "%s/token", folder);
    snprintf(new_token, sizeof(new_token), "%s/new", folder);
    snprintf(history, sizeof(history), "%s/history", folder);
    snprintf(unix_path, sizeof(unix_path), "%s/s", folder);
    snprintf(unix_option, sizeof(unix_option), "unix:%s", unix_path);
    snprintf(page, sizeof(page), "%s/page.html", folder);
    snprintf(other, sizeof(other), "%s/other", folder);
}

/* A server that became another user does not end with its parent. */
static void remove_folder(void)
{
    const char *const paths[] = { token, new_token, history, unix_path, page };

    if (server.pid > 0)
        kill(server.pid, SIGKILL);
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
        unlink(paths[i]);
    rmdir(other);
    rmdir(folder);
}

TestSuite(sandbox, .init = make_folder, .fini = remove_folder);

/* Where something watches the server, these tests have no subject. */
static void need_sandbox(void)
{
    if (getenv("SSED_OPTIONS"))
        cr_skip_test("SSED_OPTIONS turns the sandbox off");
}

static void need_root(void)
{
    if (geteuid() != 0)
        cr_skip_test("only root can become another user");
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "we");

    cr_assert(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

/* A field of /proc/PID/status, into the buffer, which is returned. */
static const char *status_of(pid_t pid, const char *field, char value[256])
{
    char path[64], line[64], text[8192];
    const char *found;
    FILE *file;
    size_t length;

    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    file = fopen(path, "re");
    cr_assert(file);
    length = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[length] = '\0';
    snprintf(line, sizeof(line), "\n%s:\t", field);
    found = strstr(text, line);
    cr_assert(found, "no %s in %s", field, text);
    found += strlen(line);
    snprintf(value, 256, "%.*s", (int)strcspn(found, "\n"), found);
    return value;
}

static void expect_status(const char *field, const char *expected)
{
    char value[256];

    cr_assert_str_eq(status_of(server.pid, field, value), expected, "%s: %s",
                     field, value);
}

static void expect_no_privileges(void)
{
    static const char none[] = "0000000000000000";

    expect_status("CapInh", none);
    expect_status("CapPrm", none);
    expect_status("CapEff", none);
    expect_status("CapAmb", none);
    if (geteuid() == 0)
        expect_status("CapBnd", none);
    expect_status("NoNewPrivs", "1");
}

static bool log_has(const char *text)
{
    char *log = server_log(&server);
    bool found = strstr(log, text);

    free(log);
    return found;
}

/* ------------------------------------------------------------------ modes */

/* The log says what holds; and what does not, which an emulator has to show. */
Test(sandbox, is_on_unless_it_is_told_otherwise)
{
    bool filtered, confined;

    need_sandbox();
    server_start(&server, NULL);
    cr_assert(log_has("level=info event=sandbox mode=on user="));
    filtered = log_has("seccomp=yes");
    confined = !log_has("landlock=0");
    cr_assert(filtered != log_has("level=warn event=sandbox_incomplete "
                                  "missing=seccomp error="));
    cr_assert(confined != log_has("level=warn event=sandbox_incomplete "
                                  "missing=landlock error="));
    expect_no_privileges();
    if (filtered)
        expect_status("Seccomp", "2");
    publish(&server, "x");
    server_stop(&server);
}

Test(sandbox, may_log_instead)
{
    need_sandbox();
    server_start(&server, "--sandbox", "log");
    cr_assert(log_has("event=sandbox mode=log") && log_has("landlock=0"));
    cr_assert(!log_has("missing=landlock"));
    expect_no_privileges();
    if (log_has("seccomp=yes"))
        expect_status("Seccomp", "2");
    publish(&server, "x");
    server_stop(&server);
}

/* Privileges are given up all the same. */
Test(sandbox, may_be_off)
{
    char own[256];

    server_start(&server, "--sandbox", "off");
    cr_assert(log_has("event=sandbox mode=off"));
    cr_assert(log_has("landlock=0 seccomp=no"));
    cr_assert(!log_has("event=sandbox_incomplete"));
    expect_no_privileges();
    expect_status("Seccomp", status_of(getpid(), "Seccomp", own));
    publish(&server, "x");
    server_stop(&server);
}

static void refused(int status, const char *says, const char *option,
                    const char *value)
{
    const char *const options[] = { "--port", "0",   "--listen", unix_option,
                                    option,   value, NULL };
    char out[4096], err[4096];

    cr_assert(run_to_end(options, out, err) == status, "%s", err);
    cr_assert(strstr(err, says), "%s", err);
    cr_assert(access(unix_path, F_OK) < 0, "the socket is left behind");
}

Test(sandbox, has_three_modes)
{
    refused(2, "--sandbox: 'maybe' is none of: on, log, off", "--sandbox",
            "maybe");
}

/* ------------------------------------------------------------------- user */

Test(sandbox, of_no_user)
{
    need_root();
    refused(1, "--user: there is no user 'no-such-user'", "--user",
            "no-such-user");
    refused(2, "--user: 'root' is root", "--user", "root");
}

Test(sandbox, of_a_user_without_root)
{
    if (geteuid() == 0)
        cr_skip_test("root can become another user");
    refused(1, "--user: only root can become '" USER "'", "--user", USER);
}

static void expect_owner(const char *path, uid_t user)
{
    struct stat status;

    cr_assert(lstat(path, &status) == 0 && status.st_uid == user, "%s", path);
}

/* What it makes is the user's, what was there has to be; no id is left that
 * could be taken back; and the socket goes at the end. */
Test(sandbox, of_a_user)
{
    const struct passwd *user = getpwnam(USER);
    char ids[64], out[4096], err[4096];
    struct client client;
    struct response response;

    need_root();
    cr_assert(user && chown(folder, user->pw_uid, user->pw_gid) == 0);
    write_file(token, "one");
    cr_assert(chmod(token, 0600) == 0);
    cr_assert(run_to_end((const char *[]){ "--port", "0", "--user", USER,
                                           "--token-file", token, NULL },
                         out, err) == 1);
    cr_assert(strstr(err, "Permission denied"), "%s", err);
    cr_assert(chown(token, user->pw_uid, user->pw_gid) == 0);
    server_start(&server, "--user", USER, "--token-file", token,
                 "--history-file", history, "--listen", unix_option);
    snprintf(ids, sizeof(ids), "%u\t%u\t%u\t%u", user->pw_uid, user->pw_uid,
             user->pw_uid, user->pw_uid);
    expect_status("Uid", ids);
    snprintf(ids, sizeof(ids), "%u\t%u\t%u\t%u", user->pw_gid, user->pw_gid,
             user->pw_gid, user->pw_gid);
    expect_status("Gid", ids);
    expect_no_privileges();
    expect_owner(history, user->pw_uid);
    expect_owner(unix_path, user->pw_uid);
    kill(server.pid, SIGHUP);
    server_await_log(&server, "event=token_reloaded");
    client_connect_unix(&client, unix_path);
    client_send(&client, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client_response(&client, &response, false);
    cr_assert(response.status == 200);
    client_close(&client);
    server_stop(&server);
    cr_assert(access(unix_path, F_OK) < 0, "the socket is left behind");
}

/* -------------------------------------------------- what it goes on to need */

/* A token is replaced by a new file, and may be a link into another folder. */
Test(sandbox, reads_a_token_again)
{
    char target[80];

    cr_assert(mkdir(other, 0700) == 0);
    snprintf(target, sizeof(target), "%s/target", other);
    write_file(target, "one");
    cr_assert(symlink(target, token) == 0);
    server_start(&server, "--token-file", token);
    write_file(new_token, "two");
    cr_assert(rename(new_token, target) == 0);
    kill(server.pid, SIGHUP);
    server_await_log(&server, "event=token_reloaded");
    write_file(new_token, "three\nfour");
    cr_assert(rename(new_token, token) == 0);
    kill(server.pid, SIGHUP);
    server_await_log(&server, "event=token_not_reloaded");
    cr_assert(!log_has("ermission"));
    server.errors_expected = true;
    server_stop(&server);
    unlink(target);
}

static void expect_page(const char *target, int status, const char *body)
{
    char request[128];
    struct response response;

    snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: h\r\n\r\n",
             target);
    ask(&server, request, &response);
    cr_assert(response.status == status, "%s: %d", target, response.status);
    cr_assert(!body || strcmp(response.body, body) == 0, "%s", response.body);
}

Test(sandbox, serves_files_that_come_later)
{
    if (getenv("SSED_UNDER"))
        cr_skip_test("emulators know no openat2(2)");
    server_start(&server, "--root", folder);
    expect_page("/page.html", 404, NULL);
    write_file(page, "one");
    expect_page("/page.html", 200, "one");
    cr_assert(mkdir(other, 0700) == 0);
    expect_page("/other", 301, NULL);
    server_stop(&server);
}

/* An address without a name in the file system cannot be connected to once the
 * sandbox is there. */
Test(sandbox, notifies_an_abstract_socket)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int length = snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1,
                          "ssed-test-%d", getpid());
    socklen_t size = (socklen_t)offsetof(struct sockaddr_un, sun_path) + 1 +
                     (socklen_t)length;
    char name[64], text[256] = "";

    snprintf(name, sizeof(name), "@ssed-test-%d", getpid());
    cr_assert(fd >= 0 && bind(fd, (void *)&address, size) == 0);
    setenv("NOTIFY_SOCKET", name, 1);
    server_start(&server, NULL);
    unsetenv("NOTIFY_SOCKET");
    server_stop(&server);
    cr_assert(recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT) > 0);
    cr_assert(strncmp(text, "READY=1\n", 8) == 0, "%s", text);
    cr_assert(recv(fd, text, sizeof(text) - 1, MSG_DONTWAIT) > 0);
    cr_assert(strncmp(text, "STOPPING=1\n", 11) == 0, "%s", text);
    close(fd);
}

static int accept_within(int listener, int milliseconds)
{
    struct pollfd ready = { .fd = listener, .events = POLLIN };

    return poll(&ready, 1, milliseconds) == 1
               ? accept4(listener, NULL, NULL, SOCK_CLOEXEC)
               : -1;
}

/* It connects, and connects again: to a port, to a Unix socket. */
static void expect_connections(const struct sockaddr *address, socklen_t length,
                               const char *path)
{
    int listener = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in bound = { 0 };
    socklen_t size = sizeof(bound);
    char text[128];

    cr_assert(listener >= 0 && bind(listener, address, length) == 0 &&
              listen(listener, 16) == 0);
    cr_assert(getsockname(listener, (void *)&bound, &size) == 0);
    if (path)
        snprintf(text, sizeof(text), "unix:%s", path);
    else
        snprintf(text, sizeof(text), "127.0.0.1:%d", ntohs(bound.sin_port));
    server_launch(&server,
                  (const char *[]){ "--redis", text, "--port", "0", NULL });
    for (int i = 0; i < 3; i++) {
        int fd = accept_within(listener, patience());

        cr_assert(fd >= 0, "attempt %d", i);
        close(fd);
    }
    cr_assert(!log_has("ermission"));
    server_stop(&server);
    close(listener);
}

Test(sandbox, connects_to_the_log)
{
    struct sockaddr_in tcp = { .sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    struct sockaddr_un local = { .sun_family = AF_UNIX };

    expect_connections((void *)&tcp, sizeof(tcp), NULL);
    snprintf(local.sun_path, sizeof(local.sun_path), "%s", unix_path);
    expect_connections((void *)&local, sizeof(local), unix_path);
}

Test(sandbox, a_terminal_is_told_the_address)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    struct pollfd terminal = { .fd = master, .events = POLLIN };
    char expected[64], line[256] = "";
    size_t length = 0;
    int slave;

    cr_assert(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
    slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
    cr_assert(slave >= 0);
    server_start_list_output(&server, slave, (const char *[]){ NULL });
    snprintf(expected, sizeof(expected), "ssed serves http://127.0.0.1:%d/ ",
             server.port);
    while (!strchr(line, '\n')) {
        ssize_t n = -1;

        if (poll(&terminal, 1, patience()) == 1)
            n = read(master, line + length, sizeof(line) - 1 - length);
        cr_assert(n > 0, "waited for the address, have: %s", line);
        length += (size_t)n;
    }
    cr_assert(strncmp(line, expected, strlen(expected)) == 0, "%s", line);
    close(slave);
    close(master);
    server_stop(&server);
}
