/* host_backend.h - a backend (kernels/backend.h) of the CPU's own kernels, for tests: what lies
 * between ops is float32, and each op is the CPU's. A model that the device's executor walks on
 * it gives the bits of the CPU's executor. SPDX-License-Identifier: MIT */
#ifndef FL_TEST_HOST_BACKEND_H
#define FL_TEST_HOST_BACKEND_H

#include "kernels/backend.h"

/* gates: weights may be gated. Fails the test when out of memory. Close it with its ops. */
fl_backend *fl_test_host_backend(const fl_exec *ex, bool gates);

#endif
