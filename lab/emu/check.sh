#!/bin/bash
# check.sh - check_kernels of the integer GEMM with its AMX and AVX-512 VNNI rows emulated.
# From the repository's root, after `cmake --build build --target check_kernels`. FILTERS: parts
# of the names of cases. SPDX-License-Identifier: MIT
set -e
out=${OUT:-/tmp/flatiron_emu}
mkdir -p "$out/kernels/x86"
# Nothing to pin to registers that are not there.
sed 's/__asm__.*/((void)(v))/' src/kernels/x86/simd.h >"$out/kernels/x86/simd.h"
sed 's/machine_isa = detect();/(void)detect; machine_isa = EMU_ISA;/' src/base/isa.c \
    >"$out/isa.c"
flags=(-std=c11 -D_GNU_SOURCE -O2 -g "-I$out" -Ilab/emu -Iinclude -Isrc -ffp-contract=off
    -Wno-psabi -mavx2 -mfma -mf16c
    '-DEMU_ISA=(FL_ISA_AVX2|FL_ISA_AVX512|FL_ISA_AVX512VNNI|FL_ISA_AMX)')
for f in gemm_32x32_amx gemm_4x64_avx512vnni gemm_12x32_avx512vnni; do
    gcc "${flags[@]}" -c src/kernels/x86/$f.c -o "$out/$f.o"
done
gcc "${flags[@]}" -c "$out/isa.c" -o "$out/isa.o"
gcc "$out"/*.o build/CMakeFiles/check_kernels.dir/tests/check/*.o build/libfl_test_support.a \
    build/libflatiron.a -fopenmp -ldnnl -ljansson -lpcre2-8 -lutf8proc -lopenblas -llapacke \
    -lcmocka -lm -o "$out/check"
for filter in ${FILTERS:-amx vnni gemm_run}; do
    "$out/check" --require=amx "--filter=$filter"
done
