/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Nothing: the compiler has its own byte swaps. */
#pragma once
