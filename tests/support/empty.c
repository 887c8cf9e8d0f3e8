/* empty.c - keeps the support library non-empty. SPDX-License-Identifier: MIT */
typedef int fl_empty_translation_unit;
