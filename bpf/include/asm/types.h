/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The kernel's headers want the building machine's asm/types.h; every 64-bit target has this same one. */
#pragma once
#include <asm-generic/int-ll64.h>
