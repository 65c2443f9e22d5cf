// SPDX-License-Identifier: GPL-2.0-or-later
// The views, in the order of their tabs: a line for each file that registers one (router.js).

import "execmem/where.js";
import "execmem/what.js";
import "execmem/how.js";
import "execmem/run.js";
import "execmem/write.js";
import "execmem/designs.js";
import "execmem/poke.js";
import "execmem/kernel.js";
import "execmem/course.js";
