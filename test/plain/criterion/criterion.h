/*
 * Stands in for Criterion where there is none: for another libc or another
 * processor (-Itest/plain). It has what the unit tests use of it, and main():
 * each test runs in a process of its own, one after the other, for so many
 * seconds at most. What is named is left out: test_ring topics/ ring/wraps
 */
#ifndef PLAIN_CRITERION_H
#define PLAIN_CRITERION_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    PLAIN_TIMEOUT = 300, /* seconds, where a test does not say it */
    PLAIN_FAILED = 1,    /* exit statuses of a test's process */
    PLAIN_SKIPPED,
};

struct plain_test {
    const char *suite;
    const char *name; /* NULL: it is for all of the suite */
    void (*run)(void);
    void (*init)(void);
    void (*fini)(void);
    unsigned timeout;
    struct plain_test *next;
};

static struct plain_test *plain_first, **plain_last = &plain_first;
static int plain_status;
static jmp_buf plain_end;

#define PLAIN_FIRST(first, ...) first
#define PLAIN_REST(first, ...) __VA_ARGS__

/* Each adds itself to the list before main(). */
#define PLAIN_ADD(id, ...)                                  \
    __attribute__((constructor)) static void id##_add(void) \
    {                                                       \
        static struct plain_test test = { __VA_ARGS__ };    \
                                                            \
        *plain_last = &test;                                \
        plain_last = &test.next;                            \
    }
#define PLAIN_TEST(of, is, ...)                                              \
    static void of##_##is##_test(void);                                      \
    PLAIN_ADD(of##_##is, .suite = #of, .name = #is, .run = of##_##is##_test, \
              __VA_ARGS__)                                                   \
    static void of##_##is##_test(void)
#define PLAIN_SUITE(of, ...)                         \
    PLAIN_ADD(of##_suite, .suite = #of, __VA_ARGS__) \
    struct plain_test

#define Test(...) PLAIN_TEST(__VA_ARGS__, )
#define TestSuite(...) PLAIN_SUITE(__VA_ARGS__, )

/* A condition, and if need be what to say as with printf(). */
#define cr_assert(...)                                                \
    ((PLAIN_FIRST(__VA_ARGS__, ))                                     \
         ? (void)0                                                    \
         : plain_stop(PLAIN_FAILED, __FILE__, __LINE__, #__VA_ARGS__, \
                      PLAIN_REST(__VA_ARGS__, NULL)))
#define cr_assert_fail(...) \
    plain_stop(PLAIN_FAILED, __FILE__, __LINE__, "fail", __VA_ARGS__)
#define cr_assert_str_eq(...) PLAIN_STR_EQ(__VA_ARGS__, NULL)
#define PLAIN_STR_EQ(a, b, ...) cr_assert(plain_equal(a, b), __VA_ARGS__)
#define cr_skip(...) \
    plain_stop(PLAIN_SKIPPED, __FILE__, __LINE__, "skipped", __VA_ARGS__)
#define cr_skip_test cr_skip

static inline bool plain_equal(const char *a, const char *b)
{
    if (strcmp(a, b) == 0)
        return true;
    fprintf(stderr, "'%s' is not '%s'\n", a, b);
    return false;
}

static inline _Noreturn void plain_stop(int status, const char *file, int line,
                                        const char *what, const char *format,
                                        ...)
{
    va_list arguments;

    va_start(arguments, format);
    fprintf(stderr, "%s:%d: %s", file, line, what);
    if (format) {
        fputs(": ", stderr);
        vfprintf(stderr, format, arguments);
    }
    fputc('\n', stderr);
    va_end(arguments);
    plain_status = status;
    longjmp(plain_end, 1);
}

static _Noreturn void plain_run(const struct plain_test *suite,
                                const struct plain_test *test)
{
    unsigned timeout = test->timeout ? test->timeout : suite->timeout;

    alarm(timeout ? timeout : (unsigned)PLAIN_TIMEOUT);
    if (setjmp(plain_end) == 0) {
        if (suite->init)
            suite->init();
        if (test->init)
            test->init();
        test->run();
    }
    if (setjmp(plain_end) == 0) { /* also after a failure */
        if (test->fini)
            test->fini();
        if (suite->fini)
            suite->fini();
    }
    exit(plain_status);
}

/* What is for all of a test's suite. */
static const struct plain_test *plain_suite(const struct plain_test *test)
{
    static const struct plain_test none;
    const struct plain_test *suite = plain_first;

    while (suite && (suite->name || strcmp(suite->suite, test->suite) != 0))
        suite = suite->next;
    return suite ? suite : &none;
}

/* The exit status of a test's process; less than 0: a signal ended it. */
static int plain_await(const struct plain_test *test)
{
    pid_t pid;
    int status;

    fflush(NULL); /* or a part would be written by both */
    pid = fork();
    if (pid == 0)
        plain_run(plain_suite(test), test);
    if (pid < 0 || waitpid(pid, &status, 0) < 0)
        return PLAIN_FAILED;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static bool plain_is_left_out(const struct plain_test *test,
                              char *const names[])
{
    char name[256];

    snprintf(name, sizeof(name), "%s/%s", test->suite, test->name);
    while (*names && strncmp(name, *names, strlen(*names)) != 0)
        names++;
    return *names;
}

int main(int argc, char **argv)
{
    unsigned tested = 0, failed = 0, skipped = 0;

    (void)argc;
    for (struct plain_test *test = plain_first; test; test = test->next) {
        int status;

        if (!test->name || plain_is_left_out(test, argv + 1))
            continue;
        status = plain_await(test);
        tested++;
        skipped += status == PLAIN_SKIPPED;
        if (status == 0 || status == PLAIN_SKIPPED)
            continue;
        failed++;
        fprintf(stderr, "%s/%s failed: %s %d\n", test->suite, test->name,
                status < 0 ? "signal" : "status", abs(status));
    }
    printf("%u tests, %u failed, %u skipped\n", tested, failed, skipped);
    return failed || !tested;
}

#endif
