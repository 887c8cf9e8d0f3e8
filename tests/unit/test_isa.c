/* test_isa.c - levels of instruction sets and their names. SPDX-License-Identifier: MIT */
#include "support/fl_test.h"

#include "base/isa.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static void levels_include_lower_ones(void **state)
{
    static const char *const names[] = {"ref",    "avx2",       "avxvnni",
                                        "avx512", "avx512vnni", "amx"};
    uint32_t lower = 0, isa = 0;
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_int_equal(fl__isa_parse(names[i], &isa), 0);
        assert_int_equal(isa & lower, lower);
        assert_true(i == 0 || isa != lower);
        assert_string_equal(fl__isa_name(isa), names[i]);
        lower = isa;
    }
    assert_int_equal(fl__isa_parse("native", &isa), 0);
    assert_int_equal(isa & lower, lower);
}

static void unknown_names_are_refused(void **state)
{
    uint32_t isa = 7;
    (void)state;
    assert_int_equal(fl__isa_parse("", &isa), -1);
    assert_int_equal(fl__isa_parse("avx", &isa), -1);
    assert_int_equal(fl__isa_parse("AVX2", &isa), -1);
    assert_int_equal(isa, 7);
}

/* Linux lists what it lets programs use; AMX may still be refused by arch_prctl. */
static void detection_agrees_with_the_kernel(void **state)
{
    static const struct {
        const char *flag;
        uint32_t bit;
    } flags[] = {{" avx2 ", FL_ISA_AVX2},
                 {" avx512vl ", FL_ISA_AVX512},
                 {" avx512_vnni ", FL_ISA_AVX512VNNI},
                 {" avx_vnni ", FL_ISA_AVXVNNI}};
    static char line[16384];
    const uint32_t isa = fl__isa_detect();
    FILE *f = fopen("/proc/cpuinfo", "r");
    bool found = false;
    (void)state;
    if (!f) fl_test_skip("no /proc/cpuinfo");
    while (!found && fgets(line, sizeof line, f)) found = strncmp(line, "flags", 5) == 0;
    (void)fclose(f);
    if (!found) fl_test_skip("no flags in /proc/cpuinfo");
    line[strcspn(line, "\n")] = ' ';
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        assert_int_equal((isa & flags[i].bit) != 0, strstr(line, flags[i].flag) != NULL);
    if (isa & FL_ISA_AMX) assert_non_null(strstr(line, " amx_int8 "));
    assert_int_equal(isa, fl__isa_detect());
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(levels_include_lower_ones),
    cmocka_unit_test(unknown_names_are_refused),
    cmocka_unit_test(detection_agrees_with_the_kernel),
};

FL_TEST_MAIN(tests)
