/* A history file as a crash of the machine leaves it: see harness.h. It is
 * apart, for sse.h's names are not the harness's. */
#include "sse.h"

#include <criterion/criterion.h>

void run_in_another_boot(const char *path, bool kept_ids);

void run_in_another_boot(const char *path, bool kept_ids)
{
    struct history_wanted wanted = {
        .path = path,
        .limit = 100000,
        .size = 64 << 20,
        .kept_ids = kept_ids,
        .boot_id = "another-boot",
    };
    struct recovery recovery;
    struct ring ring;
    char error[ERROR_SIZE];

    cr_assert(ring_open(&ring, &wanted, &recovery, error) == 0, "%s", error);
    ring_release(&ring);
}
