// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * parserclean: the same as parser, without its mistakes. What finds something here is wrong.
 */
#define CLEAN
#include "parser.c"
