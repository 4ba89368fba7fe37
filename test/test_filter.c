/*
 * Unit tests of the filter of system calls that sse.c makes: it is run here as
 * the kernel runs it, for every number, and the verdict must be that of the
 * tables here, which say once more what the server needs. What the kernel makes
 * of a verdict is tested in test/black-box/test_exploit.c.
 */
#define main ssed_main

int ssed_main(int argc, char **argv);

/* NOLINTNEXTLINE(bugprone-suspicious-include): the server without its main */
#include "../sse.c"
#undef main

#include <criterion/criterion.h>

enum {
    PID = 4321,
    EVERYTHING =
        FOR_ROOT | FOR_FILES | FOR_UNIX | FOR_LOG | FOR_INPUT | FOR_ADMIN,
    NUMBERS = 1001,
};

#define NO_SUCH_CALL (VERDICT_ERROR | ENOSYS)
#define NOT_PERMITTED (VERDICT_ERROR | EPERM)
#define BIT_32 UINT64_C(0x100000000)

/* struct seccomp_data: with little endian the low word of an argument lies
 * before the high one. */
struct data {
    uint32_t number, arch;
    uint64_t address;
    uint64_t arguments[6];
};

struct program {
    struct filter_code codes[FILTER_MAX];
    size_t length;
    bool saw_arguments; /* the last run has */
};

static void make(struct program *program, unsigned needs, bool only_logs)
{
    const struct filter_wanted wanted = {
        .needs = needs | (needs & FOR_LOG ? 0U : FOR_NO_LOG),
        .pid = PID,
        .family = AF_INET,
        .only_logs = only_logs
    };

    if (!FILTER_ARCH)
        cr_skip_test("there is no filter for this processor");
    program->length = make_filter(program->codes, &wanted);
}

/* The kernel's interpreter, of what such a program may hold. */
static uint32_t run(struct program *program, const struct data *data)
{
    uint32_t word = 0;

    program->saw_arguments = false;
    for (size_t i = 0; i < program->length; i++) {
        const struct filter_code *code = &program->codes[i];

        switch (code->code) {
        case CODE_LOAD:
            memcpy(&word, (const char *)data + code->value, sizeof(word));
            program->saw_arguments |= code->value > CALL_ARCH;
            break;
        case CODE_AND:
            word &= code->value;
            break;
        case CODE_EQUALS:
            i += word == code->value ? code->if_true : code->if_false;
            break;
        case CODE_REACHES:
            i += word >= code->value ? code->if_true : code->if_false;
            break;
        default:
            return code->value;
        }
    }
    cr_assert_fail("the program has no end");
    return 0;
}

static uint32_t run_number(struct program *program, uint32_t number)
{
    const struct data data = { .number = number, .arch = FILTER_ARCH };

    return run(program, &data);
}

/* What the kernel checks before it takes a program. Since jumps go forward and
 * the last code returns, each path comes to a return. */
Test(filter, is_well_formed)
{
    for (unsigned needs = 0; needs <= EVERYTHING; needs++) {
        struct program program;

        make(&program, needs, needs % 2);
        cr_assert(program.length > 0 && program.length <= FILTER_MAX);
        for (size_t i = 0; i < program.length; i++) {
            const struct filter_code *code = &program.codes[i];
            size_t furthest =
                code->if_true > code->if_false ? code->if_true : code->if_false;
            bool jumps =
                code->code == CODE_EQUALS || code->code == CODE_REACHES;

            cr_assert(i + 1 + (jumps ? furthest : 0) < program.length ||
                          code->code == CODE_RETURN,
                      "%zu leads out", i);
            cr_assert(jumps || code->code == CODE_LOAD ||
                          code->code == CODE_AND || code->code == CODE_RETURN,
                      "%zu: what is %#x", i, code->code);
            cr_assert(code->code != CODE_LOAD ||
                          (code->value % 4 == 0 &&
                           code->value + 4 <= sizeof(struct data)),
                      "%zu: loads at %u", i, code->value);
        }
        cr_assert(program.codes[program.length - 1].code == CODE_RETURN);
    }
}

/* --------------------------------------------------------- number by number */

struct expectation {
    uint32_t number;
    unsigned needs; /* for any of these alone; 0: always */
};

#define ALWAYS(name)  \
    {                 \
        SYS_##name, 0 \
    }
#define WITH(name, needs) \
    {                     \
        SYS_##name, needs \
    }

/* Allowed without a look at the arguments. */
static const struct expectation allowed[] = {
    /* connections */
    ALWAYS(epoll_pwait),
    ALWAYS(epoll_ctl),
    ALWAYS(accept4),
    ALWAYS(read),
    ALWAYS(writev),
    ALWAYS(close),
    WITH(recvfrom, FOR_LOG | FOR_INPUT),
    WITH(connect, FOR_LOG),
    ALWAYS(ppoll),
    /* pages, secrets, the history file, sockets of its own, the log */
    WITH(openat2, FOR_ROOT),
    WITH(sendfile, FOR_ROOT),
    ALWAYS(fstat),
    ALWAYS(msync),
    WITH(unlinkat, FOR_UNIX),
    ALWAYS(write),
    WITH(pread64, FOR_ADMIN),
    /* what a libc does without being asked */
    ALWAYS(brk),
    ALWAYS(munmap),
    ALWAYS(mremap),
    ALWAYS(madvise),
    ALWAYS(clock_gettime),
    ALWAYS(getrandom),
    ALWAYS(restart_syscall),
    ALWAYS(rt_sigreturn),
    ALWAYS(rt_sigprocmask),
    ALWAYS(getpid),
    ALWAYS(gettid),
    ALWAYS(exit_group),
    ALWAYS(newfstatat),
#ifdef __x86_64__
    /* older ones that the same functions of a libc make */
    ALWAYS(epoll_wait),
    ALWAYS(poll),
    ALWAYS(time),
    WITH(stat, FOR_FILES),
    WITH(lstat, FOR_UNIX),
    WITH(unlink, FOR_UNIX),
#endif
};

/* The arguments decide; those that are all zeros are refused, or allowed. */
static const struct {
    struct expectation call;
    bool zeros;
} checked[] = {
    { ALWAYS(mmap), true },
    { ALWAYS(mprotect), true },
    { WITH(openat, FOR_FILES), true },
#ifdef __x86_64__
    { WITH(open, FOR_FILES), true },
#endif
    { ALWAYS(setsockopt), false },
    { ALWAYS(shutdown), false },
    { WITH(socket, FOR_LOG), false },
    { ALWAYS(tgkill), false },
    { ALWAYS(tkill), false },
};

static const uint32_t killing[] = {
    /* another program, another process */
    SYS_execve,
    SYS_execveat,
    SYS_clone,
    SYS_clone3,
    SYS_unshare,
    SYS_setns,
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_kcmp,
    SYS_process_madvise,
    SYS_pidfd_getfd,
    /* somebody else */
    SYS_setuid,
    SYS_setgid,
    SYS_setreuid,
    SYS_setregid,
    SYS_setresuid,
    SYS_setresgid,
    SYS_setfsuid,
    SYS_setfsgid,
    SYS_setgroups,
    SYS_capset,
    SYS_personality,
    /* another tree of files */
    SYS_mount,
    SYS_umount2,
    SYS_move_mount,
    SYS_open_tree,
    SYS_fsopen,
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fspick,
    SYS_mount_setattr,
    SYS_pivot_root,
    SYS_chroot,
    SYS_swapon,
    SYS_swapoff,
    SYS_name_to_handle_at,
    SYS_open_by_handle_at,
    /* the kernel, and large parts of it that a defect may lie in */
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
    SYS_kexec_file_load,
    SYS_reboot,
    SYS_bpf,
    SYS_perf_event_open,
    SYS_userfaultfd,
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_add_key,
    SYS_request_key,
    SYS_keyctl,
    /* the machine's name and time */
    SYS_sethostname,
    SYS_setdomainname,
    SYS_settimeofday,
    SYS_clock_settime,
    SYS_clock_adjtime,
    SYS_adjtimex,
#ifdef __x86_64__
    SYS_fork,
    SYS_vfork,
    SYS_iopl,
    SYS_ioperm,
    SYS_modify_ldt,
#endif
};

static bool holds(const struct expectation *call, unsigned needs)
{
    return call->needs == 0 || (call->needs & needs) != 0;
}

/* What is expected of a call all of whose arguments are zeros. */
static uint32_t expect(uint32_t number, unsigned needs)
{
    if (number == SYS_sendto)
        return VERDICT_ALLOW;
    for (size_t i = 0; i < COUNT(allowed); i++)
        if (allowed[i].number == number)
            return holds(&allowed[i], needs) ? VERDICT_ALLOW : NO_SUCH_CALL;
    for (size_t i = 0; i < COUNT(checked); i++)
        if (checked[i].call.number == number && holds(&checked[i].call, needs))
            return checked[i].zeros ? VERDICT_ALLOW : NOT_PERMITTED;
    for (size_t i = 0; i < COUNT(killing); i++)
        if (killing[i] == number)
            return VERDICT_KILL;
#ifdef __x86_64__
    if (number >= X32_BIT)
        return VERDICT_KILL;
#endif
    return NO_SUCH_CALL;
}

static void expect_number(struct program *program, uint32_t number,
                          unsigned needs)
{
    uint32_t verdict = run_number(program, number);

    cr_assert(verdict == expect(number, needs),
              "call %u, needs %#x: %#x, not %#x", number, needs, verdict,
              expect(number, needs));
}

Test(filter, knows_every_number)
{
    static const uint32_t beyond[] = { 5000,        X32_BIT - 1,
                                       X32_BIT,     X32_BIT + SYS_read,
                                       X32_BIT + 1, X32_BIT + SYS_writev,
                                       INT32_MAX,   (uint32_t)INT32_MAX + 1,
                                       UINT32_MAX };

    for (unsigned needs = 0; needs <= EVERYTHING; needs++) {
        struct program program;

        make(&program, needs, false);
        for (uint32_t number = 0; number < NUMBERS; number++)
            expect_number(&program, number, needs);
        for (size_t i = 0; i < COUNT(beyond); i++)
            expect_number(&program, beyond[i], needs);
    }
}

/* A number means another call there. */
Test(filter, kills_other_architectures)
{
    /* AUDIT_ARCH_I386, AUDIT_ARCH_ARM, the other one of ours; none, all bits */
    const uint32_t archs[] = {
        0x40000003,
        0x40000028,
        FILTER_ARCH == 0xC000003E ? 0xC00000B7 : 0xC000003E,
        0,
        UINT32_MAX,
    };
    struct program program;

    make(&program, EVERYTHING, false);
    for (size_t i = 0; i < COUNT(archs); i++)
        for (uint32_t number = 0; number < NUMBERS; number++) {
            const struct data data = { .number = number, .arch = archs[i] };

            cr_assert(run(&program, &data) == VERDICT_KILL, "%#x: %u", archs[i],
                      number);
        }
}

/* --sandbox log allows all, and tells what else would be refused. */
Test(filter, only_logs)
{
    struct program refuses, logs;

    make(&refuses, EVERYTHING, false);
    make(&logs, EVERYTHING, true);
    for (uint32_t number = 0; number < NUMBERS; number++)
        cr_assert(run_number(&logs, number) ==
                      (run_number(&refuses, number) == VERDICT_ALLOW
                           ? VERDICT_ALLOW
                           : VERDICT_LOG),
                  "%u", number);
}

/* The kernel finds out at the start which numbers are allowed whatever the
 * arguments, and does not run the program for them any more. */
Test(filter, does_not_look_at_arguments_of_frequent_calls)
{
    struct program program;

    make(&program, EVERYTHING, false);
    for (size_t i = 0; i < COUNT(allowed); i++)
        cr_assert(run_number(&program, allowed[i].number) == VERDICT_ALLOW &&
                      !program.saw_arguments,
                  "%u", allowed[i].number);
    make(&program, EVERYTHING & ~(unsigned)FOR_LOG, false);
    cr_assert(run_number(&program, SYS_sendto) == VERDICT_ALLOW &&
              !program.saw_arguments);
}

/* -------------------------------------------------------------- arguments */

struct row {
    long number;
    uint64_t arguments[6];
    uint32_t verdict;
};

static void check_rows(const struct row *rows, size_t count, unsigned needs)
{
    struct program program;

    make(&program, needs, false);
    for (size_t i = 0; i < count; i++) {
        struct data data = { .number = (uint32_t)rows[i].number,
                             .arch = FILTER_ARCH };
        uint32_t verdict;

        memcpy(data.arguments, rows[i].arguments, sizeof(data.arguments));
        verdict = run(&program, &data);
        cr_assert(verdict == rows[i].verdict, "row %zu, call %ld: %#x", i,
                  rows[i].number, verdict);
    }
}

/* Of an argument that is an int the kernel takes the low half alone, whatever
 * the other is; of a pointer both. */
Test(filter, looks_at_arguments)
{
    const uint64_t all = UINT64_MAX;
    const struct row rows[] = {
        { SYS_mmap, { 0, 1, PROT_READ | PROT_WRITE }, VERDICT_ALLOW },
        { SYS_mmap, { all, all, PROT_NONE, all, all, all }, VERDICT_ALLOW },
        { SYS_mmap, { 0, 1, PROT_EXEC }, NOT_PERMITTED },
        { SYS_mmap, { 0, 1, PROT_READ | PROT_EXEC }, NOT_PERMITTED },
        { SYS_mmap, { 0, 1, BIT_32 | PROT_EXEC }, NOT_PERMITTED },
        { SYS_mmap, { 0, 1, all }, NOT_PERMITTED },
        { SYS_mprotect, { 0, 1, PROT_READ | PROT_WRITE }, VERDICT_ALLOW },
        { SYS_mprotect, { 0, 1, PROT_EXEC }, NOT_PERMITTED },
        { SYS_mprotect,
          { 0, 1, BIT_32 | PROT_READ | PROT_EXEC },
          NOT_PERMITTED },
        { SYS_setsockopt, { 9, SOL_SOCKET, SO_LINGER }, VERDICT_ALLOW },
        { SYS_setsockopt, { 9, SOL_SOCKET, SO_REUSEPORT }, NOT_PERMITTED },
        { SYS_setsockopt, { 9, IPPROTO_TCP, SO_LINGER }, NOT_PERMITTED },
        { SYS_setsockopt, { 9, IPPROTO_TCP, TCP_NODELAY }, NOT_PERMITTED },
        { SYS_shutdown, { 9, SHUT_WR }, VERDICT_ALLOW },
        { SYS_shutdown, { 9, SHUT_RD }, NOT_PERMITTED },
        { SYS_shutdown, { 9, SHUT_RDWR }, NOT_PERMITTED },
        { SYS_shutdown, { 9, BIT_32 | SHUT_RDWR }, NOT_PERMITTED },
        { SYS_tgkill, { PID, PID, SIGABRT }, VERDICT_ALLOW },
        { SYS_tgkill, { PID + 1, PID, SIGABRT }, NOT_PERMITTED },
        { SYS_tgkill, { all, PID, SIGABRT }, NOT_PERMITTED },
        { SYS_tgkill, { BIT_32 | 1, PID, SIGABRT }, NOT_PERMITTED },
        { SYS_tkill, { PID, SIGABRT }, VERDICT_ALLOW },
        { SYS_tkill, { 1, SIGABRT }, NOT_PERMITTED },
        /* these only with options */
        { SYS_openat, { 0, 0, O_RDONLY }, NO_SUCH_CALL },
        { SYS_socket, { AF_INET, SOCK_STREAM }, NO_SUCH_CALL },
    };

    check_rows(rows, COUNT(rows), 0);
}

Test(filter, opens_files_to_read_them)
{
    const struct row rows[] = {
        { SYS_openat,
          { BIT_32 - 100, 1, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY },
          VERDICT_ALLOW },
        { SYS_openat, { 0, 1, O_WRONLY }, NOT_PERMITTED },
        { SYS_openat, { 0, 1, O_RDWR | O_CLOEXEC }, NOT_PERMITTED },
        { SYS_openat, { 0, 1, O_RDONLY | O_CREAT, 0600 }, NOT_PERMITTED },
        { SYS_openat, { 0, 1, O_RDONLY | O_TRUNC }, NOT_PERMITTED },
        { SYS_openat, { 0, 1, O_TMPFILE | O_RDWR, 0600 }, NOT_PERMITTED },
        { SYS_openat, { 0, 1, BIT_32 | O_WRONLY }, NOT_PERMITTED },
#ifdef SYS_open
        { SYS_open, { 1, O_RDONLY | O_CLOEXEC }, VERDICT_ALLOW },
        { SYS_open, { 1, O_RDWR }, NOT_PERMITTED },
        { SYS_open, { 1, O_CREAT }, NOT_PERMITTED },
#endif
    };

    check_rows(rows, COUNT(rows), FOR_FILES);
}

/* sendto(2) with an address connects as well (MSG_FASTOPEN), and Landlock is
 * not asked. */
Test(filter, makes_connections_to_redis)
{
    enum {
        STREAM = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC
    };
    const struct row rows[] = {
        { SYS_socket, { AF_INET, STREAM, 0 }, VERDICT_ALLOW },
        { SYS_socket, { AF_INET, SOCK_DGRAM, 0 }, NOT_PERMITTED },
        { SYS_socket, { AF_INET, SOCK_RAW, 1 }, NOT_PERMITTED },
        { SYS_socket, { AF_INET, STREAM, 262 }, NOT_PERMITTED }, /* MPTCP */
        { SYS_socket, { AF_INET, STREAM, BIT_32 | 262 }, NOT_PERMITTED },
        { SYS_socket, { AF_INET6, STREAM, 0 }, NOT_PERMITTED },
        { SYS_socket, { AF_UNIX, STREAM, 0 }, NOT_PERMITTED },
        { SYS_socket, { BIT_32 | AF_NETLINK, STREAM, 0 }, NOT_PERMITTED },
        { SYS_setsockopt, { 9, IPPROTO_TCP, TCP_NODELAY }, VERDICT_ALLOW },
        { SYS_setsockopt, { 9, SOL_SOCKET, TCP_NODELAY }, NOT_PERMITTED },
        { SYS_sendto, { 9, 1, 1, MSG_NOSIGNAL, 0, 0 }, VERDICT_ALLOW },
        { SYS_sendto, { 9, 1, 1, MSG_NOSIGNAL, 4096, 16 }, NOT_PERMITTED },
        { SYS_sendto, { 9, 1, 1, 0, BIT_32, 16 }, NOT_PERMITTED },
        { SYS_sendto, { 9, 1, 1, 0, BIT_32 + 1, 16 }, NOT_PERMITTED },
    };

    check_rows(rows, COUNT(rows), FOR_LOG);
}
