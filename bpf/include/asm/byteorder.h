/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Little-endian targets only (amd64, arm64). */
#pragma once
#include <linux/byteorder/little_endian.h>
