/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* SCTP's CRC32c (RFC 9260 appendix A) covers the ports. It is linear: of a packet in which some bits are turned over it is the old one, turned
 * over by the CRC of a packet that has only those bits. That is a polynomial, bits in reverse order, times x^(8 * length).
 */
#pragma once

#define SCTP_POLYNOMIAL 0x82f63b78
#define SCTP_ONE 0x80000000
#define SCTP_SUM 8 /* offset of the checksum, little-endian */

/* x^(8 * 2^k) */
static const __u32 sctp_power[16] = {
	0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18, 0x510ac59a, 0xb82be955, 0xb8fdb1e7,
	0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a, 0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc,
};

/* Without branches, so that the verifier sees one way. */
static __always_inline __u32 sctp_times(__u32 a, __u32 b)
{
	__u32 product = 0;

	for (int i = 0; i < 32; i++) {
		__u32 high = -(a >> 31), low = -(b & 1);

		asm volatile("" : "+r"(high), "+r"(low)); /* else the compiler makes branches of them */
		product ^= b & high;
		a <<= 1;
		b = b >> 1 ^ (SCTP_POLYNOMIAL & low);
	}
	return product;
}

/* How the checksum of a packet of len bytes changes when the first four, taken as little-endian, change by this. */
__noinline __u32 sctp_change(__u32 change, __u32 len)
{
	for (int k = 0; k < 16; k++) {
		__u32 used = -(len >> k & 1);

		asm volatile("" : "+r"(used));
		change = sctp_times(change, (sctp_power[k] & used) | (SCTP_ONE & ~used));
	}
	return change;
}
