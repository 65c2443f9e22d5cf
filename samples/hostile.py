# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes from elsewhere, for lessons and tasks: the beginning of a file, a packet that is right."""

# A file of samples/modules/src/parser.c begins so.
FILE_HEAD = b"PRS\x01"
# IPv4 and TCP: most bytes of a segment, padding, a window's scale (RFC 791, 9293, 7323).
PACKET = bytes.fromhex(
    "4500003000000000400600007f0000017f000001"
    "0050005000000000000000007002000000000000020405b401030307"
)
TIMESTAMPS = 8  # an option of TCP that it does not have
