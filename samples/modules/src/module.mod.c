// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The part of every module that its sources do not write: who it is and where its
 * init and exit are. Compiled once a module with -DNAME=hello, -DDEPENDS="" and
 * -DRELEASE="6.12.0-samples" (as the kernel's build does with a generated file).
 */
#include "module.h"

#define NAME_TEXT __text(NAME)

int init_module(void);
void cleanup_module(void);

struct module __this_module __section(".gnu.linkonce.this_module") = {
	.name = NAME_TEXT,
	.init = init_module,
	.exit = cleanup_module,
};

MODULE_INFO(depends, DEPENDS);
MODULE_INFO(name, NAME_TEXT);
MODULE_INFO(vermagic, RELEASE " " VERMAGIC_TAIL);
