/* bench_commit.c - the commit, which the build gives to this file alone.
 * SPDX-License-Identifier: MIT */
#include "api/bench_race.h"

const char *fl__bench_commit(void)
{
    return FL_COMMIT;
}
